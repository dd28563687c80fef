"""Idle: how often a client's threads wake up while its streams are silent."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import contenders as who
from harness import Options, client, serving, table

TITLE = "Idle: wake-ups per second on silent streams"
NAMES = (who.PLAIN, who.AIOHTTP, who.PICOWS, who.THREAD, who.INLINE)
PAIRS = (1, 100)
_SETTLE = 1.0
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
        before = [_count_waits(pid) for pid in processes]
        time.sleep(_SECONDS)
        after = [_count_waits(pid) for pid in processes]
    rows = [
        (name, pairs, len(now), f"{_added(then, now) / _SECONDS:.1f}")
        for (name, pairs), then, now in zip(cases, before, after, strict=True)
    ]
    text = f"Voluntary context switches of all threads over {_SECONDS:g} s, with default settings, after {_SETTLE:g} s."
    return f"{table(('contender', 'pairs', 'threads', 'wake-ups/s'), rows)}\n\n{text}"


def _count_waits(pid: int) -> dict[str, int]:
    """Return how often each thread of the process has waited so far."""
    return {folder.name: _waits(folder / "status") for folder in Path(f"/proc/{pid}/task").iterdir()}


def _waits(status: Path) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _added(then: dict[str, int], now: dict[str, int]) -> int:
    return sum(waits - then.get(thread, 0) for thread, waits in now.items())
