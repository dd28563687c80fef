"""The highest number of ticks of each pair that waited in the queue."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from ..streaming.counters import Counters

#: The pairs of consecutive entries in the queue: one pair and how often, or the pair of each.
_Run = tuple[str, int] | list[str]


class QueuePeaks:
    """Updates `Counters.queue_peak` from the queue's depth alone: the callback thread need not count.

    Args:
        counters: The counters of each stream. Other pairs, and events, are counted without them.
    """

    def __init__(self, counters: Mapping[str, Counters]) -> None:
        self._counters = counters
        #: What was put and may still wait, oldest first.
        self._runs: deque[_Run] = deque()
        #: How many entries of the oldest run were taken, and how many are left in all runs.
        self._begin = self._size = 0
        #: How many entries of each pair were put and taken, since the queue was last empty.
        self._put: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()

    def put_one(self, pair: str, count: int, depth: int) -> None:
        """Count entries of one pair that were just put. `depth` is that of the queue since then."""
        self._append((pair, count), count, depth)
        self._put[pair] += count
        self._note((pair,))

    def put_mixed(self, pairs: list[str], depth: int) -> None:
        """Count entries of several pairs that were just put. `depth` is that of the queue since then."""
        self._append(pairs, len(pairs), depth)
        self._put.update(pairs)
        self._note(set(pairs))

    def _note(self, pairs: set[str] | tuple[str]) -> None:
        put, taken, all_counters = self._put, self._taken, self._counters
        for pair in pairs:
            waiting = put[pair] - taken[pair]
            if (counters := all_counters.get(pair)) is not None and waiting > counters.queue_peak:
                counters.queue_peak = waiting

    def _append(self, run: _Run, count: int, depth: int) -> None:
        if depth <= count:
            # All that was put before was taken.
            self._runs.clear()
            self._put.clear()
            self._taken.clear()
            self._begin = self._size = 0
        self._runs.append(run)
        self._size += count
        self._take(self._size - depth)

    def _take(self, excess: int) -> None:
        """Count this many of the oldest entries as taken."""
        while excess > 0:
            run, begin = self._runs[0], self._begin
            size = run[1] if isinstance(run, tuple) else len(run)
            end = min(begin + excess, size)
            if isinstance(run, tuple):
                self._taken[run[0]] += end - begin
            else:
                self._taken.update(run[begin:end])
            excess -= end - begin
            self._size -= end - begin
            self._begin = end
            if end == size:
                self._runs.popleft()
                self._begin = 0
