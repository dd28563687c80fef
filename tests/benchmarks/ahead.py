"""Reading ahead: a burst whose callback blocks now and then. A client that reads meanwhile is faster."""

from __future__ import annotations

from functools import partial

import contenders as who
from harness import Goal, Options, at_most, disturbed, median, name_from, ratio, rounds, run, spread, table

COUNT = 600_000
_PAUSE, _PAUSE_EVERY = 0.01, 5_000
TITLE = f"Reading ahead: {COUNT:,} ticks, and {_PAUSE * 1e3:g} ms of sleep every {_PAUSE_EVERY:,}"
NAMES = (who.PICOWS, who.THREAD, who.INLINE)
#: The default may take this much longer than that of another checkout.
_SLOWER = 1.1


def benchmark(options: Options) -> str:
    """Measure the time from the first tick to the last one."""
    names = options.chosen(NAMES)
    job = {"meter": "laps", "count": COUNT, "pause": _PAUSE, "pause_every": _PAUSE_EVERY}
    jobs = {name: partial(run, name, {"mode": "burst", "count": COUNT}, job) for name in names}
    results = rounds(jobs, options.rounds)
    rows = [
        (
            name,
            f"{median(results[name], 'seconds'):.2f}",
            spread(results[name], lambda figures: figures["seconds"], ".2f"),
            f"{median(results[name], 'cpu'):.2f}",
        )
        for name in names
    ]
    asleep = COUNT / _PAUSE_EVERY * _PAUSE
    text = f"The callback sleeps for {asleep:g} s in total."
    return f"{table(('contender', 's', 'fastest to slowest round', 'CPU s'), rows)}\n\n{text} {disturbed(results)}"


def goals(options: Options) -> list[Goal]:
    """Return the targets. They compare checkouts."""
    return [
        at_most(
            f"{COUNT:,} ticks with pauses, default",
            _SLOWER,
            f"x {path}",
            ratio(who.THREAD, name_from(who.THREAD, path), "seconds"),
        )
        for path in options.against
    ]
