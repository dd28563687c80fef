"""Memory with a callback that is slower than the stream: the queue is always full, and memory stays flat."""

from __future__ import annotations

import contenders as who
from harness import Options, note, run, table

TITLE = "Memory with a slow callback under a burst"
#: The callback sleeps for `_PAUSE` seconds every `_EVERY` ticks, so it's much slower than the network thread.
_PAUSE, _EVERY = 0.01, 5_000
_SHOWN = (1, 10, 50, 100)
#: Timeout in seconds for a million ticks.
_PATIENCE = 30.0


def benchmark(options: Options) -> str:
    """Do one run and sample the memory of the process on the way."""
    note(f"{options.memory_ticks:,} ticks")
    job = {"meter": "slow", "count": options.memory_ticks, "pause": _PAUSE, "pause_every": _EVERY}
    figures = run(who.THREAD, {"mode": "burst"}, job, timeout=60 + _PATIENCE * options.memory_ticks / 1e6)
    samples = [mark for mark in figures["samples"] if mark["percent"] in _SHOWN]
    rows = [
        (
            f"{mark['percent']} %",
            f"{mark['count']:,}",
            f"{mark['seconds']:.1f}",
            f"{mark['resident'] / 1e6:.1f}",
            f"{mark['peak'] / 1e6:.1f}",
            f"{mark['depth']:,}",
        )
        for mark in samples
    ]
    heads = ("of the ticks", "ticks", "s", "RSS MB", "peak RSS MB", "queue depth")
    grown = (samples[-1]["peak"] - next(mark["peak"] for mark in samples if mark["percent"] == 10)) / 1e6
    text = (
        f"{who.THREAD}, default queue (65,536 ticks). The callback sleeps {_PAUSE * 1e3:g} ms every {_EVERY:,} ticks. "
        f"Between 10 % and 100 % the peak grew by {grown:.1f} MB. "
        f"Other processes took {figures['disturbed']:.0%} of the machine."
    )
    return f"{table(heads, rows)}\n\n{text}"
