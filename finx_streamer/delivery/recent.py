"""The ticks received last, for `listener.recent()` and the live view."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

from ..values import Tick

_FIELDS = frozenset(Tick.__annotations__)


class Recent:
    """A ring buffer of at least the last `size` ticks, in order of receipt.

    It stores whole batches, so that adding a batch costs as much as adding a tick. One thread adds, any may read.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        #: Each batch, with the value of `total` at its end.
        self._batches: deque[tuple[int, list[Tick]]] = deque()
        #: How many ticks were ever added.
        self.total = 0
        self._count = 0

    def extend(self, ticks: list[Tick]) -> None:
        """Add one or more ticks. Keeps the list instead of copying it."""
        self.total += len(ticks)
        self._count += len(ticks)
        self._batches.append((self.total, ticks))
        while self._count - len(self._batches[0][1]) >= self.size:
            self._count -= len(self._batches.popleft()[1])

    def append(self, tick: Tick) -> None:
        """Add one tick."""
        self.extend([tick])

    def last(self, count: int, pair: str | None = None) -> list[Tick]:
        """Return up to `count` of the last ticks, of one pair or of all, oldest first."""
        # The last `size` ticks only: how many more are stored depends on the batches.
        newest = islice(_newest_first(self._batches.copy()), self.size)
        matching = (tick for tick in newest if _is_complete(tick) and pair in {None, tick["pair"]})
        return list(islice(matching, count))[::-1]

    def since(self, position: int, limit: int) -> tuple[list[Tick], int]:
        """Return up to `limit` of the last ticks added after a position, and the position to pass next time."""
        batches = self._batches.copy()
        end = batches[-1][0] if batches else position
        newest = islice(_newest_first(batches), max(0, min(end - position, limit)))
        return [tick for tick in newest if _is_complete(tick)][::-1], end


def _newest_first(batches: deque[tuple[int, list[Tick]]]) -> Iterator[Tick]:
    return chain.from_iterable(reversed(batch) for _, batch in reversed(batches))


def _is_complete(tick: Tick) -> bool:
    """Whether all fields are there. Callbacks may change the ticks they get."""
    return tick.keys() >= _FIELDS
