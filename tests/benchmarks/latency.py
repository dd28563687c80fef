"""Latency from the server's send to the callback, at a steady rate, with and without TLS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import contenders as who
from harness import (
    Figures,
    Goal,
    Options,
    Results,
    at_least,
    at_most,
    certificates,
    disturbed,
    median,
    no_worse,
    ratio,
    rounds,
    run,
    table,
)

TITLE = "Latency from send to callback, one pair"
NAMES = (who.PLAIN, who.AIOHTTP, who.PICOWS, who.PICOWS_UVLOOP, who.THREAD, who.INLINE, who.LOOP)
SECURED = (who.PICOWS, who.THREAD, who.INLINE)
RATES = (1_000, 10_000)
#: Factor on a burst's length, for enough samples at the low rate.
_LONGER = 1.5
#: In microseconds. If the server itself was later than that, the run says little about the client.
_LATE = 1_000.0


def benchmark(options: Options) -> str:
    """Run each contender at each rate. The server reports how late it was."""
    names = options.chosen(NAMES, always=(who.PLAIN, who.PICOWS))
    secured = options.chosen(SECURED, always=(who.PICOWS,))
    seconds = options.seconds * _LONGER
    cases = [(name, rate, tls) for rate in RATES for tls in (False, True) for name in (secured if tls else names)]
    results = rounds({_job(*case): partial(_paced, *case, seconds) for case in cases}, options.rounds)
    heads = (
        "contender",
        "ticks/s",
        "p50 us",
        "p99 us",
        "p50 / plain",
        "p50 / picows",
        "p99 / picows",
        "CPU %",
        "server late p99 us",
    )
    rows = [_row(results, name, rate) for name, rate, tls in cases if not tls]
    tls_heads = ("contender", "ticks/s", "p50 us", "p99 us", "CPU %", "encryption us", "p50", "p99", "CPU")
    tls_rows = [_tls_row(results, name, rate) for name, rate, tls in cases if tls]
    return (
        f"{table(heads, rows)}\n\nOver TLS:\n\n{table(tls_heads, tls_rows)}\n\n"
        "The last three columns divide the figure without TLS by the one with TLS. The server encrypts a tick after "
        "stamping it. The time this takes is the column encryption. It is subtracted first.\n\n"
        f"{disturbed(results)}"
    )


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    found = []
    for rate in RATES:
        picows, plain = _job(who.PICOWS, rate), _job(who.PLAIN, rate)
        inline, default = _job(who.INLINE, rate), _job(who.THREAD, rate)
        p50 = f"p50 at {rate:,}/s, inline / default / default"
        found += [
            at_most(p50, 1.05, "x picows", ratio(inline, picows, "p50")),
            at_most(p50, 1.15, "x picows", ratio(default, picows, "p50")),
            at_most(p50, 0.6, "x plain", ratio(default, plain, "p50")),
        ]
        if rate == max(RATES):
            found += [
                at_most(f"p99 at {rate:,}/s, inline / default", 1.6, "x picows", ratio(name, picows, "p99"))
                for name in (inline, default)
            ]
    found += [
        at_least(f"TLS at {rate:,}/s, {text}: p50 / p99 / CPU", 0.95, "x without", _tls_ratio(name, rate, key))
        for rate in RATES
        for name, text in ((who.INLINE, "inline"), (who.THREAD, "default"))
        for key in ("p50", "p99", "busy")
    ]
    for rate in RATES:
        found += no_worse(f"for tick in listener: p50 at {rate:,}/s", options, who.LOOP, partial(_speedup, rate))
    return found


def _job(name: str, rate: int, tls: bool = False) -> str:
    return f"{name} at {rate:,}/s{' over TLS' if tls else ''}"


def _speedup(rate: int, name: str, other: str) -> Callable[[Results], float]:
    return ratio(_job(other, rate), _job(name, rate), "p50")


def _paced(name: str, rate: int, tls: bool, seconds: float) -> Figures:
    count = int(rate * seconds)
    certificate, authority = certificates() if tls else ("", "")
    figures = run(
        name,
        {"mode": "paced", "count": count, "rate": rate, "certificate": certificate},
        {"meter": "latency", "count": count, "pairs": 1, "authority": authority},
    )
    if figures["server"]["late_p99"] > _LATE:
        figures["disturbed"] = 1.0
    return figures


def _row(results: Results, name: str, rate: int) -> tuple[object, ...]:
    runs, plain, picows = (results[_job(each, rate)] for each in (name, who.PLAIN, who.PICOWS))
    p50, p99 = median(runs, "p50"), median(runs, "p99")
    late = median(runs, lambda figures: figures["server"]["late_p99"])
    return (
        name,
        f"{rate:,}",
        f"{p50:,.1f}",
        f"{p99:,.0f}",
        f"{p50 / median(plain, 'p50'):.2f}",
        f"{p50 / median(picows, 'p50'):.2f}",
        f"{p99 / median(picows, 'p99'):.2f}",
        f"{median(runs, 'busy') * 100:.1f}",
        f"{late:,.0f}",
    )


def _tls_row(results: Results, name: str, rate: int) -> tuple[object, ...]:
    runs = results[_job(name, rate, True)]
    return (
        name,
        f"{rate:,}",
        f"{median(runs, 'p50'):,.1f}",
        f"{median(runs, 'p99'):,.0f}",
        f"{median(runs, 'busy') * 100:.1f}",
        f"{_encryption(results, name, rate):.1f}",
        *(f"{_tls_ratio(name, rate, key)(results):.2f}" for key in ("p50", "p99", "busy")),
    )


def _encryption(results: Results, name: str, rate: int) -> float:
    """Return how much more CPU time the server's `send` takes over TLS, in microseconds."""
    with_tls, without = (
        median(results[_job(name, rate, tls)], lambda figures: figures["server"]["sending_p50"])
        for tls in (True, False)
    )
    return max(0.0, with_tls - without)


def _tls_ratio(name: str, rate: int, key: str) -> Callable[[Results], float]:
    def figure(results: Results) -> float:
        server = 0.0 if key == "busy" else _encryption(results, name, rate)
        return median(results[_job(name, rate)], key) / (median(results[_job(name, rate, True)], key) - server)

    return figure
