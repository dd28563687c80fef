"""One connection for all pairs, by FinX's second wire, compared with one connection for each pair."""

from __future__ import annotations

from functools import partial

import contenders as who
import ticks
from harness import (
    Figures,
    Options,
    client,
    disturbed,
    median,
    note,
    rate,
    rounds,
    run,
    serving,
    spread,
    table,
    wait_for,
)

TITLE = "One connection for all pairs"
RATE = 20_000
#: How the server paces its ticks: the name, and the seconds of a turn.
PACES = {"each tick when it is due": 0.0, "once per millisecond": 0.001}
#: The pairs of a burst. One pair is the reference.
MIXES = (1, 10, 100, 1_000)
MEMORY = (1, 1_000, 5_000)
#: Ticks of each pair in the measurement of memory.
_FEW = 3
#: Factor on a burst's length.
_LONGER = 3.0
#: Seconds that a call of tick history takes.
_DELAY = 0.05


def benchmark(options: Options) -> str:
    """Measure CPU, throughput, memory, subscriptions and gaps."""
    return "\n\n".join((_steady(options), _burst(options), _memory(options), _gaps()))


def _steady(options: Options) -> str:
    count, pairs = int(RATE * options.seconds * _LONGER), ticks.MOST_PAIRS
    names = options.chosen((who.INLINE, who.INLINE_SHARED, who.THREAD, who.THREAD_SHARED))
    jobs = {
        f"{name}, {pace}": partial(
            run,
            name,
            {"mode": "paced", "count": count, "rate": RATE, "turn": turn, **_wire(name, pairs)},
            {"meter": "latency", "count": count, "pairs": pairs},
        )
        for pace, turn in PACES.items()
        for name in names
    }
    results = rounds(jobs, options.rounds)
    rows = [_steady_row(job, runs) for job, runs in results.items()]
    heads = (
        "contender, pace of the server",
        "CPU %",
        "lowest to highest",
        "p50 us",
        "p99 us",
        "MB",
        "server late p99 us",
    )
    return f"{pairs:,} pairs at {RATE:,} ticks/s in total:\n\n{table(heads, rows)}\n\n{disturbed(results)}"


def _wire(name: str, pairs: int) -> dict[str, int]:
    return {"pairs": pairs} if name in (who.INLINE_SHARED, who.THREAD_SHARED) else {"clients": pairs}


def _steady_row(job: str, runs: list[Figures]) -> tuple[object, ...]:
    late = median(runs, lambda figures: figures["server"]["late_p99"])
    return (
        job,
        f"{median(runs, 'busy') * 100:.1f}",
        spread(runs, lambda figures: figures["busy"] * 100, ".1f"),
        f"{median(runs, 'p50'):,.0f}",
        f"{median(runs, 'p99'):,.0f}",
        f"{median(runs, 'resident') / 1e6:.1f}",
        f"{late:,.0f}",
    )


def _burst(options: Options) -> str:
    names = options.chosen((who.INLINE_SHARED, who.THREAD_SHARED))
    jobs = {
        f"{name}, {pairs}": partial(
            run, name, {"mode": "burst", "pairs": pairs}, {"seconds": options.seconds, "pairs": pairs}
        )
        for name in names
        for pairs in MIXES
    }
    results = rounds(jobs, options.rounds)
    rows = []
    for name in names:
        speeds = [median(results[f"{name}, {pairs}"], rate) for pairs in MIXES]
        rows.append((name, *(f"{speed:,.0f}" for speed in speeds), f"{min(speeds[1:]) / speeds[0]:.2f}"))
    heads = ("contender", *(f"{pairs:,} {'pairs' if pairs > 1 else 'pair'}" for pairs in MIXES), "least / 1 pair")
    return f"Burst of mixed pairs, total ticks/s:\n\n{table(heads, rows)}\n\n{disturbed(results)}"


def _memory(options: Options) -> str:
    results = rounds({str(pairs): partial(_few_ticks, pairs) for pairs in MEMORY}, options.rounds)
    base = median(results[str(MEMORY[0])], "resident")
    rows = []
    for pairs in MEMORY:
        runs = results[str(pairs)]
        resident = median(runs, "resident")
        further = f"{(resident - base) / (pairs - 1):,.0f}" if pairs > 1 else ""
        last = median(runs, lambda figures: figures["server"]["subscribed_after"])
        rows.append(
            (f"{pairs:,}", f"{resident / 1e6:.1f}", further, f"{last:.2f}", f"{median(runs, 'joined_after'):.2f}")
        )
    heads = (
        "pairs",
        "MB",
        "bytes per additional pair",
        "s to the last request",
        "s from start() to the last confirmation",
    )
    return f"{_FEW} ticks of each pair, with backfill:\n\n{table(heads, rows)}\n\n{disturbed(results)}"


def _few_ticks(pairs: int) -> Figures:
    count = _FEW * pairs
    with (
        serving(mode="paced", count=count, rate=RATE, turn=0.01, pairs=pairs) as server,
        client("shared_client.py", port=server.port, pairs=pairs, count=count) as process,
    ):
        figures = wait_for(process, f"{pairs} pairs", 60.0)
        return {"disturbed": 0.0, **figures, "server": server.finish()}


def _gaps() -> str:
    note("gaps")
    pairs = ticks.MOST_PAIRS
    with client("gap_client.py", pairs=pairs, delay=_DELAY) as process:
        figures = wait_for(process, "gaps", 120.0)
    return (
        f"{pairs:,} pairs were cut off at once, and each missed 2 ticks. {figures['calls']:,} calls of history took "
        f"{_DELAY * 1e3:g} ms each. {pairs - figures['unfilled']:,} gaps were filled, the last one "
        f"{figures['seconds']:.1f} s after the server was back. All streams were requested after "
        f"{figures['subscribed_after']:.2f} s."
    )
