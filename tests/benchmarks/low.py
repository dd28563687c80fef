"""Low rates: latency and wake-ups at a few ticks per second."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import contenders as who
from harness import (
    Figures,
    Goal,
    Options,
    Results,
    Watch,
    at_most,
    client,
    disturbed,
    keep,
    median,
    rounds,
    serving,
    table,
    wait_for,
)

TITLE = "Low rates, one pair"
NAMES = (who.PICOWS, who.THREAD, who.INLINE)
RATES = (1, 4, 50)
#: Factor on a burst's length.
_LONGER = 20.0
_FEWEST = 10
#: Seconds.
_PATIENCE = 60.0


def benchmark(options: Options) -> str:
    """Run all contenders at all rates at the same time: together they need little of the machine."""
    cases = [(name, rate) for rate in RATES for name in options.chosen(NAMES)]
    seconds = options.seconds * _LONGER
    together = rounds({"all": partial(_all_at_once, cases, seconds)}, options.rounds)
    results = {_job(*case): [figures[_job(*case)] for figures in together["all"]] for case in cases}
    keep(results)
    rows = [_row(name, rate, results[_job(name, rate)]) for name, rate in cases]
    heads = ("contender", "ticks/s", "p50 us", "wake-ups per tick", "CPU ms per tick")
    text = f"All {len(cases)} clients ran at the same time, for {seconds:g} s. Wake-ups are those of the whole process."
    return f"{table(heads, rows)}\n\n{text} {disturbed(together)}"


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    jobs = [(_job(who.THREAD, rate), _job(who.INLINE, rate)) for rate in RATES]
    at = f"at {' / '.join(map(str, RATES))} ticks/s, default"
    return [
        *(at_most(f"p50 {at}", 10, "us more than inline", partial(_difference, *names)) for names in jobs),
        *(at_most(f"wake-ups per tick {at}", 3, "", partial(_wake_ups, default)) for default, _ in jobs),
    ]


def _job(name: str, rate: int) -> str:
    return f"{name} at {rate}/s"


def _all_at_once(cases: Sequence[tuple[str, int]], seconds: float) -> Figures:
    with contextlib.ExitStack() as stack:
        servers, clients = [], []
        for name, rate in cases:
            count = max(_FEWEST, int(rate * seconds))
            servers.append(stack.enter_context(serving(mode="paced", count=count, rate=rate)))
            job = {"contender": name, "port": servers[-1].port, "meter": "latency", "count": count}
            clients.append(stack.enter_context(client(**job)))
        watch = Watch(*(process.pid for process in (*servers, *clients)))
        figures = {
            _job(*case): wait_for(process, case[0], seconds + _PATIENCE)
            for case, process in zip(cases, clients, strict=True)
        }
        return {"disturbed": watch.disturbance(), **figures}


def _row(name: str, rate: int, runs: list[Figures]) -> tuple[object, ...]:
    return (
        name,
        rate,
        f"{median(runs, 'p50'):,.0f}",
        f"{median(runs, 'waits_per_tick'):.2f}",
        f"{median(runs, 'busy') * 1e3 / rate:.2f}",
    )


def _difference(name: str, base: str, results: Results) -> float:
    return median(results[name], "p50") - median(results[base], "p50")


def _wake_ups(name: str, results: Results) -> float:
    return median(results[name], "waits_per_tick")
