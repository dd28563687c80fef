"""Throughput: ticks per second of one pair that each contender takes from a server that never waits."""

from __future__ import annotations

from functools import partial

import contenders as who
from harness import (
    Figures,
    Goal,
    Options,
    at_least,
    disturbed,
    median,
    no_worse,
    rate,
    ratio,
    rounds,
    run,
    spread,
    table,
)

TITLE = "Burst, one pair"


def benchmark(options: Options) -> str:
    """Run each contender for a fixed time. `drain` shows how much the server can send."""
    # One pair, in the URL: the wire of one connection for all pairs has a benchmark of its own.
    contenders = [name for name in who.CONTENDERS if name not in (who.THREAD_SHARED, who.INLINE_SHARED)]
    names = options.chosen(contenders, always=(who.DRAIN, who.PLAIN, who.PICOWS))
    job = {"seconds": options.seconds}
    results = rounds({name: partial(run, name, {"mode": "burst"}, job) for name in names}, options.rounds)
    plain, picows = median(results[who.PLAIN], rate), median(results[who.PICOWS], rate)
    rows = [_row(name, results[name], plain, picows) for name in names]
    heads = ("contender", "ticks/s", "slowest to fastest round", "x plain", "x picows", "CPU us/tick", "threads")
    return f"{table(heads, rows)}\n\n{disturbed(results)}"


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    both = "burst, inline / default"
    return [
        at_least(both, 1.2, "x picows", ratio(who.INLINE, who.PICOWS, rate)),
        at_least(both, 0.95, "x inline", ratio(who.THREAD, who.INLINE, rate)),
        at_least("burst, recording", 0.85, "x default", ratio(who.RECORDING, who.THREAD, rate)),
        *no_worse("for tick in listener: burst", options, who.LOOP, partial(ratio, key=rate)),
    ]


def _row(name: str, runs: list[Figures], plain: float, picows: float) -> tuple[object, ...]:
    speed = median(runs, rate)
    cpu = median(runs, lambda figures: figures["cpu"] / figures["count"] * 1e6)
    threads = runs[0].get("threads", 1)
    return (
        name,
        f"{speed:,.0f}",
        spread(runs, rate),
        f"{speed / plain:.2f}",
        f"{speed / picows:.2f}",
        f"{cpu:.2f}",
        threads,
    )
