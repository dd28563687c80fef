"""Scale: 1,000 pairs in one process, at a steady total rate."""

from __future__ import annotations

from functools import partial

import contenders as who
import ticks
from harness import Figures, Options, disturbed, median, rounds, run, table

TITLE = "1,000 pairs at 20,000 ticks/s"
NAMES = (who.PICOWS, who.THREAD, who.INLINE)
RATE = 20_000
#: Factor on a burst's length.
_LONGER = 3.0
#: In microseconds. A contender keeps up if its 99th percentile is below this.
_BEHIND = 100_000.0


def benchmark(options: Options) -> str:
    """Run each contender with all pairs, and with one pair at the same rate to find the memory per pair."""
    names = options.chosen(NAMES)
    count = int(RATE * options.seconds * _LONGER)
    jobs = {
        f"{name}, {pairs} pairs": partial(
            run,
            name,
            {"mode": "paced", "count": count, "rate": RATE, "clients": pairs},
            {"meter": "latency", "count": count, "pairs": pairs},
        )
        for name in names
        for pairs in (ticks.MOST_PAIRS, 1)
    }
    results = rounds(jobs, options.rounds)
    rows = [_row(name, results[f"{name}, {ticks.MOST_PAIRS} pairs"], results[f"{name}, 1 pairs"]) for name in names]
    heads = (
        "contender",
        "keeps up",
        "threads",
        "CPU %",
        "p50 us",
        "p99 us",
        "KB per additional pair",
        "MB in total",
        "server: ticks/s",
        "late p99 us",
    )
    return f"{table(heads, rows)}\n\nAll ticks arrived in all runs. {disturbed(results)}"


def _row(name: str, many: list[Figures], one: list[Figures]) -> tuple[object, ...]:
    resident = median(many, "resident")
    further = (resident - median(one, "resident")) / (ticks.MOST_PAIRS - 1)
    kept = sum(figures["p99"] < _BEHIND for figures in many)
    return (
        name,
        "yes" if kept == len(many) else f"in {kept} of {len(many)}",
        f"{median(many, 'threads'):.0f}",
        f"{median(many, 'busy') * 100:.0f}",
        f"{median(many, 'p50'):,.0f}",
        f"{median(many, 'p99'):,.0f}",
        f"{further / 1e3:.1f}",
        f"{resident / 1e6:.1f}",
        f"{median(many, lambda figures: figures['server']['sent_per_second']):,.0f}",
        f"{median(many, lambda figures: figures['server']['late_p99']):,.0f}",
    )
