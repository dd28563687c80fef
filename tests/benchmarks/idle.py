"""Idle: how often a client's threads wake up while its streams are silent."""

from __future__ import annotations

import contextlib
import time
from functools import partial

import child
import contenders as who
from harness import Goal, Options, Results, at_most, client, keep, median, serving, table

TITLE = "Idle: wake-ups per second on silent streams"
NAMES = (who.PLAIN, who.AIOHTTP, who.PICOWS, who.THREAD, who.INLINE)
PAIRS = (1, 100)
_SETTLE = 2.0
_SECONDS = 5.0


def benchmark(options: Options) -> str:
    """Measure all contenders at the same time: idle processes don't disturb each other."""
    cases = [(name, pairs) for name in options.chosen(NAMES) for pairs in PAIRS]
    with contextlib.ExitStack() as stack:
        processes = []
        for name, pairs in cases:
            server = stack.enter_context(serving(mode="quiet", clients=pairs))
            job = {"contender": name, "port": server.port, "pairs": pairs, "meter": "silent"}
            processes.append(stack.enter_context(client(**job)).pid)
            server.wait_open(30.0)
        time.sleep(_SETTLE)
        before = [child.waits(pid) for pid in processes]
        time.sleep(_SECONDS)
        after = [child.waits(pid) for pid in processes]
    results = {
        _job(*case): [{"threads": len(now), "wake_ups": child.added(then, now) / _SECONDS}]
        for case, then, now in zip(cases, before, after, strict=True)
    }
    keep(results)
    rows = [
        (name, pairs, figures["threads"], f"{figures['wake_ups']:.1f}")
        for name, pairs in cases
        for figures in results[_job(name, pairs)]
    ]
    text = f"Voluntary context switches of all threads over {_SECONDS:g} s, with default settings, after {_SETTLE:g} s."
    return f"{table(('contender', 'pairs', 'threads', 'wake-ups/s'), rows)}\n\n{text}"


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    jobs = [_job(who.THREAD, pairs) for pairs in PAIRS]
    at = f"at rest, {' / '.join(map(str, PAIRS))} pairs, default"
    return [
        *(at_most(f"{at}: wake-ups", 0, "per second", partial(_wake_ups, job)) for job in jobs),
        *(at_most(f"{at}: threads", 2, "and the main thread", partial(_own_threads, job)) for job in jobs),
    ]


def _job(name: str, pairs: int) -> str:
    return f"{name}, {pairs} pairs"


def _wake_ups(job: str, results: Results) -> float:
    return median(results[job], "wake_ups")


def _own_threads(job: str, results: Results) -> float:
    return median(results[job], "threads") - 1
