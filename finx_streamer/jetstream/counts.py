"""Count equal ticks, so that all publishers of the same ticks give each one the same message ID."""

from __future__ import annotations

from collections import Counter

#: How many different ticks of a series are remembered. The older half is forgotten beyond that.
MOST = 512


def stamp_of(date: str, time: str) -> str:
    """Return a tick's time in the form in which it is compared: stamps sort by time."""
    clock = time.rstrip("Z")
    return f"{date}T{clock.rstrip('0').rstrip('.') if '.' in clock else clock}"


class Counts:
    """The ticks of one pair on one exchange, as one publisher sees them.

    Equal ticks have the same time and price. Their ordinals are 0, 1, 2 …. An ordinal is certified if the publisher
    has seen all ticks of that time: then other publishers give the same ordinals to the same number of ticks. Otherwise
    it may be too low. A tick with too low an ordinal takes the ID of another one. It must not be sent without a look at
    the log, because NATS forgets IDs.
    """

    __slots__ = ("_counts", "_floor", "_joins")

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        #: Ticks up to this time aren't certified.
        self._floor = ""
        self._joins = True

    def join(self) -> None:
        """Take note that ticks may be missing before the next one."""
        self._joins = True

    def add(self, stamp: str, price: str) -> tuple[int, bool]:
        """Count a tick. Return its ordinal, and whether that is certified."""
        if self._joins:
            # It may be in the middle of the ticks of its time.
            self._joins, self._floor = False, max(self._floor, stamp)
        counts, key = self._counts, (stamp, price)
        ordinal = counts[key]
        counts[key] = ordinal + 1
        if len(counts) > MOST:
            self._forget()
        return ordinal, stamp > self._floor

    def _forget(self) -> None:
        stamps = sorted(stamp for stamp, _ in self._counts)
        self._floor = max(self._floor, stamps[len(stamps) // 2])
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] > self._floor})
