"""Memory over many ticks: with a callback that is slower than the stream, and with a fast one."""

from __future__ import annotations

from functools import partial
from typing import Any

import contenders as who
from harness import Figures, Goal, Options, Results, at_most, keep, note, run, table

TITLE = "Memory over a long burst"
#: The slow callback sleeps for `_PAUSE` seconds every `_EVERY` ticks, so it's much slower than the network thread.
_PAUSE, _EVERY = 0.01, 5_000
_SHOWN = (1, 10, 50, 100)
#: Timeout in seconds for a million ticks.
_PATIENCE = 30.0
#: Bytes. Flat memory grows by less from 10 % of the ticks on.
_FLAT = 1_000_000


def benchmark(options: Options) -> str:
    """Do one run with each callback, and sample the memory of the process on the way."""
    slow = _run("slow", options.memory_ticks, pause=_PAUSE, pause_every=_EVERY)
    fast = _run("fast", options.fast_ticks)
    keep({"slow": [slow], "fast": [fast]})
    return (
        f"{who.THREAD}, with the default queue of 65,536 ticks.\n\n"
        f"A slow callback, which sleeps {_PAUSE * 1e3:g} ms every {_EVERY:,} ticks:\n\n{_table(slow)}\n\n"
        f"A fast callback:\n\n{_table(fast)}"
    )


def goals(options: Options) -> list[Goal]:
    """Return the targets."""
    return [
        at_most(f"memory over {count:,} ticks, {callback} callback", _FLAT / 1e6, "MB more", partial(_grown, callback))
        for callback, count in (("fast", options.fast_ticks), ("slow", options.memory_ticks))
    ]


def _run(callback: str, count: int, **job: Any) -> Figures:
    note(f"{callback} callback: {count:,} ticks")
    timeout = 60 + _PATIENCE * count / 1e6
    return run(who.THREAD, {"mode": "burst"}, {"meter": "memory", "count": count, **job}, timeout=timeout)


def _grown(callback: str, results: Results) -> float:
    """Return by how many MB the peak grew between 10 % and 100 % of the ticks."""
    (figures,) = results[callback]
    peaks = {sample["percent"]: sample["peak"] for sample in figures["samples"]}
    return float(peaks[100] - peaks[10]) / 1e6


def _table(figures: Figures) -> str:
    rows = [
        (
            f"{mark['percent']} %",
            f"{mark['count']:,}",
            f"{mark['seconds']:.1f}",
            f"{mark['resident'] / 1e6:.1f}",
            f"{mark['peak'] / 1e6:.1f}",
            f"{mark['depth']:,}",
        )
        for mark in figures["samples"]
        if mark["percent"] in _SHOWN
    ]
    heads = ("of the ticks", "ticks", "s", "RSS MB", "peak RSS MB", "queue depth")
    return f"{table(heads, rows)}\n\nOther processes took {figures['disturbed']:.0%} of the machine."
