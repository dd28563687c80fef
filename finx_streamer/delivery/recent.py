"""The ticks received last, for `listener.recent()` and the live view."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from ..values import Tick

_FIELDS = frozenset(Tick.__annotations__)
#: Single ticks are collected to chunks of this size. To free a large chunk would take long.
_CHUNK = 128


class Recent:
    """A buffer of at least the last `size` ticks, in order of receipt.

    One thread adds, any may read: at each moment, the ticks and their count belong together. No lock is needed, even
    without a global interpreter lock, because only the newest chunk grows, and the others are replaced as one.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._newest: list[Tick] = []
        #: How many ticks were added before the newest chunk, and all chunks.
        self._published: tuple[int, tuple[list[Tick], ...]] = 0, (self._newest,)
        #: How many ticks the chunks before the newest one have.
        self._older = 0

    def append(self, tick: Tick) -> None:
        """Add one tick."""
        newest = self._newest
        newest.append(tick)
        if len(newest) >= _CHUNK:
            self._begin_chunk()

    def extend(self, ticks: list[Tick]) -> None:
        """Add one or more ticks. Keeps a long list instead of copying it."""
        if len(ticks) >= _CHUNK:
            self._begin_chunk(ticks)
            return
        self._newest.extend(ticks)
        if len(self._newest) >= _CHUNK:
            self._begin_chunk()

    def _begin_chunk(self, *added: list[Tick]) -> None:
        """Begin a chunk, behind the newest one and the added ones, and remove those that aren't needed any more."""
        before, chunks = self._published
        ended = (self._newest, *added) if self._newest else added
        count = sum(map(len, ended))
        self._older += count
        at = 0
        chunks = (*chunks[:-1], *ended)
        while self._older - len(chunks[at]) >= self.size:
            self._older -= len(chunks[at])
            at += 1
        self._newest = []
        self._published = before + count, (*chunks[at:], self._newest)

    @property
    def total(self) -> int:
        """How many ticks were ever added."""
        before, chunks = self._published
        return before + len(chunks[-1])

    def last(self, count: int, pair: str | None = None) -> list[Tick]:
        """Return up to `count` of the last ticks, of one pair or of all, oldest first."""
        # The last `size` ticks only: how many more are stored depends on the chunks.
        newest = islice(self._newest_first()[0], self.size)
        matching = (tick for tick in newest if _is_complete(tick) and pair in {None, tick["pair"]})
        return list(islice(matching, count))[::-1]

    def since(self, position: int, limit: int) -> tuple[list[Tick], int]:
        """Return up to `limit` of the last ticks added after a position, and the position to pass next time."""
        ticks, end = self._newest_first()
        newest = islice(ticks, max(0, min(end - position, limit)))
        return [tick for tick in newest if _is_complete(tick)][::-1], end

    def _newest_first(self) -> tuple[Iterator[Tick], int]:
        """Return the stored ticks, and how many were ever added up to the first one of them."""
        before, chunks = self._published
        newest = chunks[-1].copy()  # it grows meanwhile
        older = map(reversed, reversed(chunks[:-1]))
        return chain(reversed(newest), chain.from_iterable(older)), before + len(newest)


def _is_complete(tick: Tick) -> bool:
    """Whether all fields are there. Callbacks may change the ticks they get."""
    return tick.keys() >= _FIELDS
