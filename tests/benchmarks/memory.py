"""Memory under a callback that is slower than the stream: the queue is full all the time, and memory stays flat."""

from __future__ import annotations

import contenders as who
from harness import Options, note, run, table

TITLE = "Memory with a slow callback under a burst"
#: The callback sleeps this long, so often: much slower than the network side.
_PAUSE, _EVERY = 0.01, 5_000
_SHOWN = (1, 10, 50, 100)
#: Seconds for a million ticks, at the most.
_PATIENCE = 30.0


def benchmark(options: Options) -> str:
    """One run; what the process has in use on the way."""
    note(f"{options.memory_ticks:,} ticks")
    job = {"meter": "slow", "count": options.memory_ticks, "pause": _PAUSE, "pause_every": _EVERY}
    figures = run(who.THREAD, {"mode": "burst"}, job, timeout=60 + _PATIENCE * options.memory_ticks / 1e6)
    seen = [mark for mark in figures["seen"] if mark["percent"] in _SHOWN]
    rows = [
        (
            f"{mark['percent']} %",
            f"{mark['count']:,}",
            f"{mark['seconds']:.1f}",
            f"{mark['resident'] / 1e6:.1f}",
            f"{mark['peak'] / 1e6:.1f}",
            f"{mark['depth']:,}",
        )
        for mark in seen
    ]
    heads = ("of the ticks", "ticks", "s", "RSS MB", "peak RSS MB", "queue depth")
    grown = (seen[-1]["peak"] - next(mark["peak"] for mark in seen if mark["percent"] == 10)) / 1e6
    text = (
        f"{who.THREAD}, default queue (65,536 ticks). The callback sleeps {_PAUSE * 1e3:g} ms every {_EVERY:,} ticks. "
        f"Between 10 % and 100 % the peak grew by {grown:.1f} MB. "
        f"Other processes took {figures['disturbed']:.0%} of the machine."
    )
    return f"{table(heads, rows)}\n\n{text}"
