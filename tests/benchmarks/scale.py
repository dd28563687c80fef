"""Scale: 1,000 pairs in one process, at a steady total rate."""

from __future__ import annotations

from functools import partial

import contenders as who
import ticks
from harness import Figures, Goal, Options, Results, at_most, disturbed, median, ratio, rounds, run, table

TITLE = "1,000 pairs at 20,000 ticks/s"
NAMES = (who.PICOWS, who.THREAD, who.INLINE)
RATE = 20_000
#: Factor on a burst's length.
_LONGER = 3.0
#: In microseconds. A contender keeps up if its 99th percentile is below this.
_BEHIND = 100_000.0


def benchmark(options: Options) -> str:
    """Run each contender with all pairs, and with one pair at the same rate to find the memory per pair."""
    names = options.chosen(NAMES, always=(who.PICOWS,))
    count = int(RATE * options.seconds * _LONGER)
    jobs = {
        _job(name, pairs): partial(
            run,
            name,
            {"mode": "paced", "count": count, "rate": RATE, "clients": pairs},
            {"meter": "latency", "count": count, "pairs": pairs},
        )
        for name in names
        for pairs in (ticks.MOST_PAIRS, 1)
    }
    results = rounds(jobs, options.rounds)
    heads = (
        "contender",
        "keeps up",
        "threads",
        "CPU %",
        "CPU / picows",
        "p50 us",
        "p99 us",
        "KiB per additional pair",
        "MB in total",
        "server: ticks/s",
        "late p99 us",
    )
    rows = [_row(name, results) for name in names]
    return f"{table(heads, rows)}\n\nAll ticks arrived in all runs. {disturbed(results)}"


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    names, picows = (who.INLINE, who.THREAD), _job(who.PICOWS)
    return [
        *(
            at_most("1,000 pairs: CPU, inline / default", most, "x picows", ratio(_job(name), picows, "busy"))
            for name, most in zip(names, (1.1, 1.3), strict=True)
        ),
        *(at_most("1,000 pairs: p99, inline / default", 100, "us", partial(_p99, _job(name))) for name in names),
        *(at_most("each additional pair, inline / default", 16, "KiB", partial(_additional, name)) for name in names),
    ]


def _job(name: str, pairs: int = ticks.MOST_PAIRS) -> str:
    return f"{name}, {pairs} pairs"


def _p99(job: str, results: Results) -> float:
    return median(results[job], "p99")


def _additional(name: str, results: Results) -> float:
    many, one = (median(results[_job(name, pairs)], "resident") for pairs in (ticks.MOST_PAIRS, 1))
    return (many - one) / (ticks.MOST_PAIRS - 1) / 1_024


def _row(name: str, results: Results) -> tuple[object, ...]:
    many: list[Figures] = results[_job(name)]
    kept = sum(figures["p99"] < _BEHIND for figures in many)
    return (
        name,
        "yes" if kept == len(many) else f"in {kept} of {len(many)}",
        f"{median(many, 'threads'):.0f}",
        f"{median(many, 'busy') * 100:.0f}",
        f"{ratio(_job(name), _job(who.PICOWS), 'busy')(results):.2f}",
        f"{median(many, 'p50'):,.0f}",
        f"{median(many, 'p99'):,.0f}",
        f"{_additional(name, results):.1f}",
        f"{median(many, 'resident') / 1e6:.1f}",
        f"{median(many, lambda figures: figures['server']['sent_per_second']):,.0f}",
        f"{median(many, lambda figures: figures['server']['late_p99']):,.0f}",
    )
