"""The most recently delivered ticks of a stream, from which `Recovery` knows what was not missed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime, timedelta
from itertools import chain
from operator import itemgetter
from typing import Any, Self, TypeVar

import attrs

from ..values import Tick
from ..wire.names import limit as limit_names
from ..wire.names import share

#: How much later than ticks with the same or a later timestamp a tick may arrive and still count as late.
LATENESS = timedelta(seconds=1)
#: How many delivered ticks of a stream are remembered, approximately. A larger window slows down bursts: each new tick
#: then evicts one that has left the CPU cache.
WINDOW_SIZE = 1_024
#: Trim after this many runs of ticks.
_TRIM_EVERY = 16
#: A run of at least this many ticks is one entry.
LONG_RUN = 16

#: The resolution of tick times.
MOMENT = timedelta(microseconds=1)
EARLIEST, _LATEST = (time.replace(tzinfo=UTC) for time in (datetime.min, datetime.max))

#: What identifies a tick: exchange, time and price. Equal keys may be different trades.
Key = tuple[str, datetime, Any]
tick_key: Callable[[Any], Key] = itemgetter("exchange", "timestamp", "price")
_time_of: Callable[[Any], datetime] = itemgetter("timestamp")
_moment_of: Callable[[Any], tuple[datetime, Any]] = itemgetter("timestamp", "price")
_T = TypeVar("_T")


@attrs.define(eq=False)
class _LongRun:
    """A run of ticks as one entry. Nearly all are dropped before a gap needs their keys, so these may be made later."""

    size: int
    #: The latest time of a sample of the ticks.
    latest: datetime
    _keys: list[Key] | Callable[[], list[Key]]

    def keys(self) -> list[Key]:
        if callable(self._keys):
            self._keys = self._keys()
        return self._keys

    def exact_latest(self) -> datetime:
        return max(time for _, time, _ in self.keys())


@attrs.define(eq=False, repr=False)
class DeliveredWindow:
    """Keys of the ticks that were delivered within `lateness` of the stream's current time, up to about `size`.

    Every delivered tick passes through here, on each of a thousand streams. It keeps keys and not ticks, because users
    may change ticks. Short runs are stored flat, three entries per tick, which leaves the garbage collector nothing to
    traverse; a long run is one entry.
    """

    lateness: timedelta = LATENESS
    _size: int = WINDOW_SIZE
    #: The time of the last delivered tick.
    last: datetime | None = attrs.field(default=None, init=False)
    _entries: deque[Any] = attrs.field(factory=deque, init=False)
    #: How many ticks the entries stand for.
    _count: int = attrs.field(default=0, init=False)
    #: How many runs are left until the next trim. The first run sets where the window begins.
    _until_trim: int = attrs.field(default=1, init=False)
    #: Ticks before this time were never part of the stream, or were dropped for their age.
    _begin: datetime | None = attrs.field(default=None, init=False)
    #: The stream's current time. It advances when the ends of two runs in a row agree: one tick with a wrong time
    #: can't advance it.
    _steady_time: datetime = attrs.field(default=EARLIEST, init=False)
    #: The latest time of the ticks that were dropped for lack of room.
    _evicted_until: datetime | None = attrs.field(default=None, init=False)

    def copy(self) -> Self:
        """Return a window that remembers the same."""
        other = copy(self)
        other._entries = self._entries.copy()
        return other

    def add(self, exchange: str, timestamp: datetime, price: Any) -> None:
        """Add one tick that is about to be delivered."""
        previous, self.last = self.last, timestamp
        self._entries.extend((share(exchange, exchange), timestamp, price))
        self._count += 1
        self._until_trim -= 1
        if not self._until_trim:
            self._trim(previous or timestamp, timestamp)

    def extend(self, ticks: list[Tick], keys: Callable[[], list[Key]] | None = None) -> None:
        """Add a run of ticks that are about to be delivered, at least one. `keys` makes their keys later."""
        if len(ticks) < LONG_RUN:
            self.extend_keys([(share(tick["exchange"], tick["exchange"]), *_moment_of(tick)) for tick in ticks])
        else:
            latest = max(map(_time_of, _sample(ticks)))
            self._entries.append(_LongRun(len(ticks), latest, keys or list(map(tick_key, ticks))))
            self._extended(len(ticks), ticks[0]["timestamp"], ticks[-1]["timestamp"])

    def extend_keys(self, keys: list[Key]) -> None:
        """Add a run of ticks by their keys, at least one, with shared names. Keeps a long list."""
        if len(keys) < LONG_RUN:
            self._entries.extend(chain.from_iterable(keys))
        else:
            self._entries.append(_LongRun(len(keys), max(time for _, time, _ in _sample(keys)), keys))
        self._extended(len(keys), keys[0][1], keys[-1][1])

    def _extended(self, count: int, first: datetime, last: datetime) -> None:
        """Count a run of ticks. `first` and `last` are the times of its ends."""
        previous, self.last = self.last, last
        self._count += count
        self._until_trim -= 1
        if not self._until_trim or self._count > self._size:
            self._trim(previous or first, last)

    def restart(self, first: datetime) -> None:
        """Forget all ticks: no later gap asks for one up to the time `first`, that of the next tick."""
        self._steady_time = self._furthest_time()
        self._begin = later(first, MOMENT)
        self._entries.clear()
        self._count = 0
        self.last = self._evicted_until = None

    def begin(self, at: datetime) -> None:
        """Begin the stream at a time: all later ticks belong to it, and none was delivered so far."""
        self._begin = self.last = at

    @property
    def is_empty(self) -> bool:
        """Whether it remembers no tick."""
        return not self._count

    @property
    def floor(self) -> datetime:
        """The earliest plausible time. Older ticks mean that time went backwards, not late delivery."""
        return earlier(self._furthest_time(), self.lateness)

    @property
    def overrun(self) -> bool:
        """Whether more ticks had the time of the last one than are remembered."""
        return self._evicted_until is not None and self.last is not None and self._evicted_until >= self.last

    def snapshot(self) -> tuple[datetime, list[Key]]:
        """Return the time from which all delivered ticks are remembered, and their countable keys.

        Needs a tick, or the time at which the stream began.
        """
        keys = self._keys()
        assert self._begin is not None
        if not keys:
            return self._begin, []
        last = keys[-1][1]
        start = max(earlier(last, self.lateness), self._begin)
        evicted = self._evicted_until
        if evicted is not None and evicted >= start:
            # Keep a distance: the time of an evicted long run is an estimate.
            start = later(max(evicted, evicted + (last - evicted) / 2), MOMENT)
        return start, [countable(key) for key in keys if key[1] >= start]

    def _keys(self) -> list[Key]:
        keys: list[Key] = []
        entries = iter(self._entries)
        for entry in entries:
            if type(entry) is _LongRun:
                keys += entry.keys()
            else:
                keys.append((entry, next(entries), next(entries)))
        return keys

    def _furthest_time(self) -> datetime:
        """Return the latest time that two consecutive ticks reached, or the steady time if that is later."""
        times = [time for _, time, _ in self._keys()]
        return max([self._steady_time, *map(min, times, times[1:])])

    def _trim(self, previous: datetime, last: datetime) -> None:
        """Advance the steady time, and drop ticks that are too old or too many.

        `previous` and `last` are the times at which the last two runs ended.
        """
        self._until_trim = _TRIM_EVERY
        limit_names()
        if self._begin is None:
            self._begin = previous
        steady = min(previous, last)
        self._steady_time = max(self._steady_time, steady)
        cutoff = earlier(steady, self.lateness)
        entries, drop, aged = self._entries, self._entries.popleft, False
        while True:
            head = entries[0]
            is_run = type(head) is _LongRun
            if is_run:
                size, latest = head.size, head.latest
                if earlier(cutoff, self.lateness) <= latest < cutoff:
                    # A tick that isn't in the sample may be later by `lateness`, and so still be needed.
                    latest = head.latest = head.exact_latest()
            else:
                size, latest = 1, entries[1]
            if size == self._count:
                break
            if self._count - size >= self._size:
                # A later time than the stream's is wrong, or from an exchange whose clock is ahead.
                until = min(latest, self._steady_time)
                self._evicted_until = max(self._evicted_until or until, until)
            elif latest < cutoff:
                aged = True
            else:
                break
            self._count -= size
            drop()
            if not is_run:
                drop()
                drop()
        if aged:
            self._begin = max(self._begin, cutoff)


@attrs.define(eq=False, repr=False)
class LastTickTime(DeliveredWindow):
    """A window without ticks: their last time is enough for a stream whose gaps are reported but not filled."""

    def add(self, exchange: str, timestamp: datetime, price: Any) -> None:
        self.last = timestamp

    def extend(self, ticks: list[Tick], keys: Callable[[], list[Key]] | None = None) -> None:
        self.last = ticks[-1]["timestamp"]

    def extend_keys(self, keys: list[Key]) -> None:
        self.last = keys[-1][1]


def _sample(entries: list[_T]) -> list[_T]:
    """Return some ticks or keys of a long run, among them the last."""
    return entries[-32:] + entries[:-32:32]


def countable(key: Key) -> Key:
    """Return a hashable key. An unhashable price equals only itself."""
    try:
        hash(key)
    except Exception:
        return key[0], key[1], id(key[2])
    return key


def earlier(time: datetime, by: timedelta) -> datetime:
    """Subtract without overflow: a server may send the first moment of the calendar."""
    return time - by if time - EARLIEST > by else EARLIEST


def later(time: datetime, by: timedelta) -> datetime:
    """Add without overflow."""
    return time + by if _LATEST - time > by else _LATEST
