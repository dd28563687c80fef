"""Throughput with and without TLS: the cost of encryption for each contender."""

from __future__ import annotations

from functools import partial

import contenders as who
from harness import (
    Figures,
    Goal,
    Options,
    at_least,
    certificates,
    disturbed,
    median,
    rate,
    ratio,
    rounds,
    run,
    spread,
    table,
)

TITLE = "Burst over TLS, one pair"
NAMES = (who.DRAIN, who.PLAIN, who.UNCHECKED, who.AIOHTTP, who.PICOWS, who.THREAD, who.INLINE)


def benchmark(options: Options) -> str:
    """Run each contender with and without TLS in the same rounds. Certificates are verified."""
    names = options.chosen(NAMES, always=(who.DRAIN, who.PLAIN))
    certificate, authority = certificates()
    job = {"seconds": options.seconds}
    jobs = {}
    for name in names:
        jobs[name] = partial(run, name, {"mode": "burst"}, job)
        jobs[_secured(name)] = partial(
            run, name, {"mode": "burst", "certificate": certificate}, {**job, "authority": authority}
        )
    results = rounds(jobs, options.rounds)
    plain = median(results[_secured(who.PLAIN)], rate)
    rows = [_row(name, results[name], results[_secured(name)], plain) for name in names]
    heads = ("contender", "ticks/s over TLS", "slowest to fastest round", "x plain", "ticks/s without", "TLS / without")
    return f"{table(heads, rows)}\n\n{disturbed(results)}"


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    return [
        at_least("TLS, burst, inline / default", 0.95, "x without", ratio(_secured(name), name, rate))
        for name in (who.INLINE, who.THREAD)
    ]


def _secured(name: str) -> str:
    return f"{name} over TLS"


def _row(name: str, without: list[Figures], secured: list[Figures], plain: float) -> tuple[object, ...]:
    slow, fast = median(secured, rate), median(without, rate)
    return name, f"{slow:,.0f}", spread(secured, rate), f"{slow / plain:.2f}", f"{fast:,.0f}", f"{slow / fast:.2f}"
