"""Latency from the server's send to the callback, at a steady rate."""

from __future__ import annotations

from functools import partial

import contenders as who
from harness import Figures, Options, disturbed, median, rounds, run, table

TITLE = "Latency from send to callback, one pair"
NAMES = (who.PLAIN, who.AIOHTTP, who.PICOWS, who.PICOWS_UVLOOP, who.THREAD, who.INLINE)
RATES = (1_000, 10_000)
#: Factor on a burst's length, for enough samples at the low rate.
_LONGER = 1.5
#: In microseconds. If the server itself was later than that, the run says little about the client.
_LATE = 1_000.0


def benchmark(options: Options) -> str:
    """Run each contender at each rate. The server reports how late it was."""
    names = options.chosen(NAMES, always=(who.PLAIN,))
    jobs = {
        f"{name} at {rate:,}/s": partial(_paced, name, rate, options.seconds * _LONGER)
        for rate in RATES
        for name in names
    }
    results = rounds(jobs, options.rounds)
    rows = [
        _row(name, rate, results[f"{name} at {rate:,}/s"], results[f"{who.PLAIN} at {rate:,}/s"])
        for rate in RATES
        for name in names
    ]
    heads = ("contender", "ticks/s", "p50 us", "p99 us", "p50 / plain", "p99 / plain", "CPU %", "server late p99 us")
    return f"{table(heads, rows)}\n\n{disturbed(results)}"


def _paced(name: str, rate: int, seconds: float) -> Figures:
    count = int(rate * seconds)
    figures = run(
        name, {"mode": "paced", "count": count, "rate": rate}, {"meter": "latency", "count": count, "pairs": 1}
    )
    if figures["server"]["late_p99"] > _LATE:
        figures["disturbed"] = 1.0
    return figures


def _row(name: str, rate: int, runs: list[Figures], plain: list[Figures]) -> tuple[object, ...]:
    p50, p99 = median(runs, "p50"), median(runs, "p99")
    late = median(runs, lambda figures: figures["server"]["late_p99"])
    return (
        name,
        f"{rate:,}",
        f"{p50:,.0f}",
        f"{p99:,.0f}",
        f"{p50 / median(plain, 'p50'):.2f}",
        f"{p99 / median(plain, 'p99'):.2f}",
        f"{median(runs, 'busy') * 100:.0f}",
        f"{late:,.0f}",
    )
