"""Throughput over many pairs: the cost of a tick must not grow with their number."""

from __future__ import annotations

from functools import partial

import contenders as who
from harness import Figures, Options, disturbed, median, rate, rounds, run, table

TITLE = "Burst over 1 to 1,000 pairs, total ticks/s"
NAMES = (who.DRAIN, who.PICOWS, who.THREAD, who.INLINE)
PAIRS = (1, 10, 100, 1_000)
#: Total ticks for each second of a burst.
_COUNT = 600_000


def benchmark(options: Options) -> str:
    """Run each contender with the same number of ticks over more and more pairs."""
    names = options.chosen(NAMES, always=(who.DRAIN,))
    jobs = {f"{name}, {pairs}": _job(name, pairs, options.seconds) for name in names for pairs in PAIRS}
    results = rounds(jobs, options.rounds)
    rows = []
    for name in names:
        speeds = [median(results[f"{name}, {pairs}"], rate) for pairs in PAIRS]
        rows.append((name, *(f"{speed:,.0f}" for speed in speeds), f"{speeds[-1] / speeds[0]:.2f}"))
    heads = ("contender", *(f"{pairs:,} {'pairs' if pairs > 1 else 'pair'}" for pairs in PAIRS), "1,000 / 1")
    return f"{table(heads, rows)}\n\n{disturbed(results)}"


def _job(name: str, pairs: int, seconds: float) -> partial[Figures]:
    count = int(_COUNT * seconds) // pairs
    return partial(run, name, {"mode": "burst", "clients": pairs, "count": count}, {"pairs": pairs, "count": count})
