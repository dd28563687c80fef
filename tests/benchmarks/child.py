"""Functions for the client processes of benchmarks: report results, measure memory and threads."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn


def report(**figures: Any) -> NoReturn:
    """Print the figures and exit at once, without closing the client."""
    os.write(1, json.dumps(figures).encode())
    os._exit(0)


def fail(reason: object) -> NoReturn:
    """Exit with this reason. The benchmark fails with it."""
    sys.stderr.flush()
    os.write(2, f"{reason}\n".encode())
    os._exit(1)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith("VmHWM:"))


def threads() -> int:
    """Return the number of threads of this process."""
    return len(os.listdir("/proc/self/task"))


def waits(pid: int | str = "self") -> dict[str, int]:
    """Return how often each thread of a process has waited so far, by default of this process."""
    return {folder.name: _waits(folder / "status") for folder in Path(f"/proc/{pid}/task").iterdir()}


def added(then: dict[str, int], now: dict[str, int]) -> int:
    """Return how often all threads have waited between two results of `waits`."""
    return sum(count - then.get(thread, 0) for thread, count in now.items())


def _waits(status: Path) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
