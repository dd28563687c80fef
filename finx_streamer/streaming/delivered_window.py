"""streaming.delivered_window"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from ..values import Tick

#: Ticks may arrive up to so much later than others of the same or a later time, and are still told apart.
MARGIN = timedelta(seconds=1)
#: How many delivered ticks of a stream are remembered, about. Beyond it the margin before an outage is shorter. More
#: would cost speed in a burst, where each tick that is kept pushes another one out of the processor's cache.
REMEMBERED = 1_024
#: After how many runs of ticks a window is tidied up, and how many ticks are a long run.
_LOOK_AFTER, _LONG = 4, 16

_MOMENT = timedelta(microseconds=1)
_EARLIEST, _LATEST = (time.replace(tzinfo=UTC) for time in (datetime.min, datetime.max))


#: What a tick is recognised by: exchange, time and price.
Key = tuple[str, datetime, Any]
_parts: Callable[[Any], Key] = itemgetter("exchange", "timestamp", "price")
#: The exchanges' names, each once. Not by `sys.intern`: Python 3.12 never gives back what is interned.
_names: dict[str, str] = {}
_MOST_NAMES = 1_024


class DeliveredWindow:
    """The ticks of a stream that were delivered last: those within the margin, as far as there is room.

    It is in the path of every tick, for each of a thousand streams. What is kept is exchange, time and price, for the
    ticks themselves are the user's to change: of a few ticks one after another in one deque, which gives the garbage
    collector nothing to look through; of a long run a list of keys. What has grown old is forgotten every fourth run.
    """

    __slots__ = (
        "_aged",
        "_anew",
        "_begin",
        "_checked",
        "_count",
        "_crowded",
        "_fresh",
        "_kept",
        "_reached",
        "_size",
        "last",
        "margin",
    )

    def __init__(self, margin: timedelta = MARGIN, size: int = REMEMBERED) -> None:
        self.margin = margin
        #: The time of the tick that was delivered last.
        self.last: datetime | None = None
        self._size = size
        self._kept: deque[Any] = deque()
        self._count = 0
        #: The time of the first tick of all: what was before it is nobody's loss.
        self._begin: datetime | None = None
        self._anew = False
        #: How many runs came since the last look at them, and the time of the last tick at that look.
        self._fresh = 0
        self._checked: datetime | None = None
        #: What was forgotten for its age is earlier than this.
        self._aged: datetime | None = None
        #: The latest time that was forgotten for want of room.
        self._crowded: datetime | None = None
        #: How far the stream has got. It moves only where two looks in a row agree, so that one tick with a wrong time
        #: can't move it.
        self._reached: datetime | None = None

    def extend(self, ticks: list[Tick]) -> None:
        """Ticks that are about to be handed on, at least one."""
        self.last = ticks[-1]["timestamp"]
        if len(ticks) < _LONG:
            for tick in ticks:
                exchange = tick["exchange"]
                self._kept.extend((_names.setdefault(exchange, exchange), tick["timestamp"], tick["price"]))
        else:
            self._kept.append(list(map(_parts, ticks)))
        self._count += len(ticks)
        self._fresh += 1
        if self._fresh >= _LOOK_AFTER or self._count > self._size or self._begin is None:
            self._look(ticks[0]["timestamp"], self.last)

    def restart(self) -> None:
        """What came before the next tick, or with it, is not to be asked for, though the stream has been that far."""
        self._anew = True
        self._reached = self._furthest()
        self._kept.clear()
        self._count = 0
        self.last = self._begin = self._checked = self._aged = self._crowded = None

    @property
    def floor(self) -> datetime | None:
        """A time before this one is too late to be a late tick's: the stream plays a recording again, say."""
        furthest = self._furthest()
        return furthest and _earlier(furthest, self.margin)

    @property
    def overrun(self) -> bool:
        """Whether so many ticks had the time of the last one that not all of them are remembered."""
        return self._crowded is not None and self.last is not None and self._crowded >= self.last

    def window(self) -> tuple[datetime, list[Key]]:
        """From when on all delivered ticks are remembered, and their keys. Only after the first `extend`."""
        keys = self._keys()
        last = keys[-1][1]
        assert self._begin is not None
        start = max(_earlier(last, self.margin), self._begin, self._aged or self._begin)
        if self._crowded is not None and self._crowded >= start:
            # Well behind that, for it is an estimate where a run was long.
            start = _later(max(self._crowded, self._crowded + (last - self._crowded) / 2), _MOMENT)
        return start, [key for key in keys if key[1] >= start]

    def _keys(self) -> list[Key]:
        keys: list[Key] = []
        entries = iter(self._kept)
        for entry in entries:
            if type(entry) is list:
                keys += entry
            else:
                keys.append((entry, next(entries), next(entries)))
        return keys

    def _furthest(self) -> datetime | None:
        times = [time for _, time, _ in self._keys()]
        steady = [*map(min, times, times[1:]), *([self._reached] if self._reached else [])]
        return max(steady, default=None)

    def _look(self, first: datetime, last: datetime) -> None:
        """Take note of how far the stream is, and forget what is out of the margin."""
        self._fresh = 0
        if len(_names) > _MOST_NAMES:
            _names.clear()
        if self._begin is None:
            self._begin = _later(first, _MOMENT) if self._anew else first
        steady = min(self._checked or first, last)
        self._checked = last
        if self._reached is None or steady > self._reached:
            self._reached = steady
        bound = _earlier(steady, self.margin)
        kept = self._kept
        while True:
            head = kept[0]
            size, latest = (len(head), _latest(head)) if type(head) is list else (1, kept[1])
            if self._count == size:
                break
            if latest < bound and type(head) is list and latest >= _earlier(bound, self.margin):
                # One that the estimate has passed over may be ahead of it by the margin, and so still be needed.
                latest = max(time for _, time, _ in head)
            if self._count - size >= self._size:
                # A time that was never reached is a wrong one, or of an exchange that is ahead; others go with it.
                edge = min(latest, self._reached)
                self._crowded = edge if self._crowded is None else max(self._crowded, edge)
            elif latest < bound:
                self._aged = bound if self._aged is None else max(self._aged, bound)
            else:
                break
            self._count -= size
            for _ in range(1 if type(head) is list else 3):
                kept.popleft()


class LastTime:
    """What is known of a stream whose gaps are told, and not filled: the time of the tick that was delivered last."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: datetime | None = None

    def extend(self, ticks: list[Tick]) -> None:
        self.last = ticks[-1]["timestamp"]


def _latest(run: list[Key]) -> datetime:
    """The latest time of a run; of a long one, nearly: this is in the path of every tick."""
    return max(time for _, time, _ in itertools.chain(run[-32:], run[:-32:32]))


def _earlier(time: datetime, by: timedelta) -> datetime:
    """Not before the beginning of all times, at which a server's clock may well stand."""
    return time - by if time - _EARLIEST > by else _EARLIEST


def _later(time: datetime, by: timedelta) -> datetime:
    return time + by if _LATEST - time > by else _LATEST
