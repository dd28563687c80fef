"""Pongs: how long the answers to pings take while a callback blocks now and then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import contenders as who
from harness import Figures, Goal, Options, Results, at_most, disturbed, median, rounds, run, table

TITLE = "Answers to pings while every 100th callback takes 50 ms"
NAMES = (who.PLAIN, who.THREAD, who.INLINE)
RATE = 1_000
#: Whether the callback computes. Otherwise it sleeps.
KINDS = {"sleeps": False, "spins": True}
_PAUSE, _PAUSE_EVERY = 0.05, 100
#: It has no factor in common with `_PAUSE_EVERY`, so that pings arrive at all moments of a pause.
_PING_EVERY = 3
#: Factor on a burst's length, for enough pings.
_LONGER = 6.0
_PERCENTILES = ("pong_p50", "pong_p99", "pong_p99.9")


def benchmark(options: Options) -> str:
    """Run each contender with both kinds of callbacks."""
    names = options.chosen(NAMES)
    count = int(RATE * options.seconds * _LONGER)
    cases = [(name, kind) for kind in KINDS for name in names]
    jobs = {_job(*case): partial(_run, *case, count) for case in cases}
    results = rounds(jobs, options.rounds)
    heads = (
        "contender",
        "callback",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "pings",
        "unanswered",
        "ticks: p50 us",
        "p99 ms",
    )
    rows = [_row(name, kind, results[_job(name, kind)]) for name, kind in cases]
    text = f"{RATE:,} ticks/s and a ping after every {_PING_EVERY}rd tick. The maximum is that of all rounds."
    return f"{table(heads, rows)}\n\n{text} {disturbed(results)}"


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    jobs = [_job(who.THREAD, kind) for kind in KINDS]
    text = f"pongs while a callback {' / '.join(KINDS)} for {_PAUSE * 1e3:g} ms, default"
    return [
        *(at_most(f"{text}: p99.9", 30, "ms", _of_server(job, "pong_p99.9", median)) for job in jobs),
        *(at_most(f"{text}: lost", 0, "", _of_server(job, "lost", _total)) for job in jobs),
    ]


def _job(name: str, kind: str) -> str:
    return f"{name} {kind}"


def _run(name: str, kind: str, count: int) -> Figures:
    return run(
        name,
        {"mode": "paced", "count": count, "rate": RATE, "ping_every": _PING_EVERY},
        {"meter": "latency", "count": count, "pause": _PAUSE, "pause_every": _PAUSE_EVERY, "spin": KINDS[kind]},
    )


def _of_server(job: str, key: str, of_all: Callable[..., float]) -> Callable[[Results], float]:
    return lambda results: of_all(results[job], lambda figures: figures["server"][key])


def _total(runs: list[Figures], key: Callable[[Figures], float]) -> float:
    return sum(map(key, runs))


def _row(name: str, kind: str, runs: list[Figures]) -> tuple[object, ...]:
    servers = [figures["server"] for figures in runs]
    return (
        name,
        kind,
        *(f"{median(servers, key):.2f}" for key in _PERCENTILES),
        f"{max(figures['pong_max'] for figures in servers):.1f}",
        f"{sum(figures['pings'] for figures in servers):,}",
        sum(figures["lost"] for figures in servers),
        f"{median(runs, 'p50'):,.0f}",
        f"{median(runs, 'p99') / 1e3:.1f}",
    )
