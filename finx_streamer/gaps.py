"""What is missing after a reconnect, and what tick history says of it. No socket, no clock, no thread.

Ticks carry no id, and equal lines are different trades. So what is missing is found by counting: of each (exchange,
time, price), history's count less what was delivered before the outage and what has been received since. A `Trail`
keeps what was delivered last; a `Recovery` goes from the moment a stream is connected again to the end of its gap:

    FIRST ──a live tick, or none for a while──> FETCH ──all pages──> PROBE ──pong──> (finished)
                                                  ^                     │
                                                  └───────PAUSE <───────┘ history behind the stream, or not certain yet

A stream that is lost and connected again meanwhile begins at FIRST anew, with what is held so far.
Live ticks are held from the beginning to the end. The answer to the ping tells that whatever the server had sent on the
stream when history answered has been received: without it a tick that is in history and still on its way would be taken
for a lost one.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter, deque
from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import Any

import attrs

from .errors import GapNotFilled
from .messages import Tick

#: Ticks may arrive up to so much later than others of the same or a later time, and are still told apart.
MARGIN = timedelta(seconds=1)
#: How many delivered ticks of a stream are remembered, at most. Beyond it the margin before an outage is shorter.
REMEMBERED = 4_096
#: After how many runs of ticks a trail is tidied up.
_LOOK_AFTER = 4
#: Seconds for which the first live tick is awaited. History is asked without it then.
FIRST_WAIT = 0.5
#: Seconds for which the answer to a ping is awaited. With none by then, what was on its way counts as arrived.
PROBE_WAIT = 5.0
#: Seconds between two looks at a history that is behind the stream, or that could not be told from it yet.
PAUSES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)

_MOMENT = timedelta(microseconds=1)
_NEVER = float("inf")


@attrs.frozen
class Gap:
    """The connection of a stream was lost, and ticks may have passed meanwhile.

    `since` is the time of the last tick before the gap and `until` that of the first one after it (aware, UTC; the
    ticks' own times). Where no tick has come since, `until` is the time of the last one that history knows. `ticks` is
    how many were fetched from history and delivered. `filled` says whether these are all that had been missed.
    """

    symbol: str
    since: datetime
    until: datetime
    filled: bool
    ticks: int


@attrs.frozen
class Fetch:
    """Get the ticks of start <= time < end from history, or up to its last one where `end` is None."""

    start: datetime
    end: datetime | None


@attrs.frozen
class Probe:
    """Send a ping, and tell when it is answered."""


@attrs.frozen
class Deliver:
    """Hand these ticks on: they are known to have been missed."""

    ticks: list[Tick]


@attrs.frozen
class Finish:
    """The gap is over: hand on `before`, then tell of the gap, then hand on `after`, which begins with a live tick."""

    gap: Gap
    error: GapNotFilled | None
    before: list[Tick]
    after: list[Any]


Step = Fetch | Probe | Deliver | Finish


class Trail:
    """The ticks of a stream that were delivered last: those within the margin, as far as there is room."""

    def __init__(self, margin: timedelta = MARGIN, size: int = REMEMBERED) -> None:
        self.margin = margin
        self._size = size
        self._runs: deque[list[Tick]] = deque()
        #: The time of the first tick of all: what was before it is nobody's loss.
        self._begin: datetime | None = None
        self._anew = False
        #: How many runs came since the last look at them.
        self._fresh = 0
        self._count = 0
        #: The latest times of the runs that were forgotten last, for their age or for want of room.
        self._aged: deque[datetime] = deque(maxlen=64)
        self._crowded: deque[datetime] = deque(maxlen=64)
        self._last: datetime | None = None
        #: The latest time that two runs in a row have reached: one alone may have a wrong time.
        self._reached: datetime | None = None

    def extend(self, ticks: list[Tick]) -> None:
        """Ticks that were handed on, at least one. The list is kept, not copied."""
        self._runs.append(ticks)
        self._fresh += 1
        if self._fresh >= _LOOK_AFTER:
            self._look()

    def begin_anew(self) -> None:
        """What came before the next tick, or with it, is not to be asked for, though the stream has been that far."""
        self._look()
        self._anew = True
        self._runs.clear()
        self._aged.clear()
        self._crowded.clear()
        self._count = 0
        self._last = self._begin = None

    @property
    def last(self) -> datetime | None:
        """The time of the tick that was delivered last."""
        return self._runs[-1][-1]["timestamp"] if self._runs else None

    @property
    def floor(self) -> datetime | None:
        """A time before this one is too late to be a late tick's: the stream plays a recording again, say."""
        self._look()
        return self._reached and self._reached - self.margin

    def window(self) -> tuple[datetime, list[Tick]]:
        """From when on all delivered ticks are remembered, and these. Only after the first `extend`."""
        self._look()
        assert self._last is not None
        assert self._begin is not None
        start = max([self._last - self.margin, self._begin, *(time + _MOMENT for time in self._aged)])
        if self._crowded and (edge := max(self._crowded)) >= start:
            # Well behind the edge, for the latest time of a long run is an estimate.
            start = max(edge, edge + (self._last - edge) / 2) + _MOMENT
        return start, [tick for run in self._runs for tick in run if tick["timestamp"] >= start]

    def _look(self) -> None:
        """Take note of the latest runs, and forget what is out of the margin: not at each run, for that costs time."""
        if not self._fresh:
            return
        runs = self._runs
        if self._begin is None:
            first = runs[0][0]["timestamp"]
            self._begin = first + _MOMENT if self._anew else first
        for number in range(len(runs) - self._fresh, len(runs)):
            previous, self._last = self._last, runs[number][-1]["timestamp"]
            self._count += len(runs[number])
            if previous is not None:
                steady = min(previous, self._last)
                if self._reached is None or steady > self._reached:
                    self._reached = steady
        self._fresh = 0
        assert self._last is not None
        bound = self._last - self.margin
        while len(runs) > 1:
            crowded = self._count - len(runs[0]) >= self._size
            latest = _latest(runs[0])
            if not crowded and latest >= bound:
                break
            (self._crowded if crowded else self._aged).append(latest)
            self._count -= len(runs.popleft())


class _Phase(enum.Enum):
    FIRST = "first"
    FETCH = "fetch"
    PROBE = "probe"
    PAUSE = "pause"
    DONE = "done"


class Recovery:
    """One gap, from the reconnect to its end. Most methods return the steps to take, in order.

    `now` is in monotonic seconds. Whoever drives it gives it the stream's live ticks, by `hold`, until there is a
    `Finish`, which gives them back.
    """

    def __init__(self, symbol: str, trail: Trail, now: float) -> None:
        assert trail.last is not None
        #: When `wake` is due.
        self.deadline = now + FIRST_WAIT
        self._symbol = symbol
        self._trail = trail
        self._since = trail.last
        self._start, delivered = trail.window()
        self._delivered: Counter[Hashable] = Counter(map(_key, delivered))
        #: Up to here history and what was delivered have to have something in common; None once that was seen.
        self._common_until: datetime | None = max((tick["timestamp"] for tick in delivered), default=None)
        self._floor = trail.floor
        self._phase = _Phase.FIRST
        self._held: list[Any] = []
        #: The time of the first tick that was held, and the latest time.
        self._held_from: datetime | None = None
        self._held_to: datetime | None = None
        #: The first live tick of the connection there is.
        self._first: Tick | None = None
        self._connected = True
        #: There is no room to hold more, so nothing is read, the answer to a ping included.
        self._full = False
        self._round = 0
        #: What was held when history was asked.
        self._asked: Counter[Hashable] = Counter()
        #: History's ticks from `_start` on, which are still to be told apart.
        self._tail: list[Tick] = []
        self._found = 0
        self._latest = trail.last

    def hold(self, ticks: list[Tick], now: float) -> list[Step]:
        """Live ticks, at least one."""
        if self._held_from is None:
            self._held_from = ticks[0]["timestamp"]
        latest = max(tick["timestamp"] for tick in ticks)
        self._held_to = latest if self._held_to is None else max(self._held_to, latest)
        self._held += ticks
        if self._first is not None:
            return []
        self._first = ticks[0]
        return self._fetch() if self._phase is _Phase.FIRST else []

    def hold_beside(self, entry: object) -> None:
        """What travels with the ticks, in their order."""
        self._held.append(entry)

    @property
    def can_pause(self) -> bool:
        """Whether enough is held to do without more: beyond the time at which lost ticks and live ones meet."""
        return self._first is not None and self._held_to is not None and self._held_to > self._first["timestamp"]

    def no_room(self, now: float) -> list[Step]:
        """No more can be held: the stream is not read until the end. Only where it `can_pause`."""
        self._full = True
        return self._settle(now) if self._phase is _Phase.PROBE else []

    def lost(self, now: float) -> list[Step]:
        """The connection is lost. What was on its way is lost with it, and so is to be found in history."""
        self._connected = False
        if self._phase is _Phase.FIRST:
            self.deadline = _NEVER
            return self._fetch() if self._held else []
        return self._settle(now) if self._phase is _Phase.PROBE else []

    def opened(self, now: float) -> list[Step]:
        """There is a connection again. What passed before is part of this gap, so history is asked anew: what it had
        begun to say may be out of date, and the call may hang in the same outage."""
        self._connected = True
        self._full = False
        self._first = None
        self._round = 0
        self._phase, self.deadline = _Phase.FIRST, now + FIRST_WAIT
        return []

    def page(self, ticks: list[Tick]) -> list[Step]:
        """Some of what history knows: sorted by time, and no earlier than what came before."""
        if not ticks or self._phase is not _Phase.FETCH:
            return []
        self._tail += ticks
        reached = ticks[-1]["timestamp"]
        self._latest = max(self._latest, reached)
        if self._held_from is None:
            return []  # any of them may be on its way
        # The ticks before this time are all there, and none of those that are held, or on their way, is that early.
        sure = min(reached, self._held_from) - self._trail.margin
        if sure <= self._start or (self._common_until is not None and reached <= self._common_until):
            return []
        if self._is_foreign():
            return self._finish(_FOREIGN)
        self._common_until = None
        self._start = sure
        settled = [tick for tick in self._tail if tick["timestamp"] < sure]
        del self._tail[: len(settled)]
        missed = _less(settled, self._delivered)
        self._found += len(missed)
        return [Deliver(missed)] if missed else []

    def fetched(self, now: float) -> list[Step]:
        """There are no more pages."""
        if self._phase is not _Phase.FETCH:
            return []
        if self._connected and not self._full:
            self._phase, self.deadline = _Phase.PROBE, now + PROBE_WAIT
            return [Probe()]
        return self._settle(now)

    def answered(self, now: float) -> list[Step]:
        """The ping was answered: what was sent on the stream when history answered has been received."""
        return self._settle(now) if self._phase is _Phase.PROBE else []

    def failed(self, reason: str) -> list[Step]:
        """History can't be had."""
        return self._finish(reason) if self._phase is _Phase.FETCH else []

    def wake(self, now: float) -> list[Step]:
        """Do what is due. Harmless when nothing is."""
        if now < self.deadline:
            return []
        return self._settle(now) if self._phase is _Phase.PROBE else self._fetch()

    def give_up(self, reason: str) -> list[Step]:
        """End at once, whatever is still missing."""
        return [] if self._phase is _Phase.DONE else self._finish(reason)

    def _fetch(self) -> list[Step]:
        earliest = self._since if self._first is None else min(self._since, self._first["timestamp"])
        if self._floor is not None and earliest < self._floor:
            return self._finish("the times of the ticks have gone back, so that history can't tell what is new")
        self._phase, self.deadline = _Phase.FETCH, _NEVER
        self._tail = []
        self._asked = self._held_keys()
        if self._first is None:
            return [Fetch(self._start, None)]
        end = max(self._since, self._first["timestamp"]) + self._trail.margin
        return [Fetch(self._start, max(end, self._start) + _MOMENT)]

    def _settle(self, now: float) -> list[Step]:
        """Tell the last of history's ticks apart, if that can be done already."""
        held = self._held_keys()
        if self._full and self._held_to is not None:
            # The rest is still to be read, some of it perhaps of the latest time.
            self._tail = [tick for tick in self._tail if tick["timestamp"] < self._held_to]
        if self._is_foreign():
            return self._finish(_FOREIGN)
        doubt = self._doubt(held)
        if doubt and self._round < len(PAUSES):
            self._phase, self.deadline = _Phase.PAUSE, now + PAUSES[self._round]
            self._round += 1
            return []
        missed = _less(_less(self._tail, Counter(self._delivered)), held)
        self._found += len(missed)
        return self._finish(doubt, missed)

    def _doubt(self, held: Counter[Hashable]) -> str | None:
        """Why history has to be asked once more; None where there is no reason to."""
        first = self._first
        if first is None:
            return None
        known = Counter(map(_key, self._tail))
        received = self._delivered + self._asked
        if first["timestamp"] >= self._start and known[_key(first)] < received[_key(first)]:
            return "history has not got as far as the first live tick"
        for tick in self._tail:
            key = _key(tick)
            # Of those that came after the question some may be in the answer, and some of the lost ones their equals.
            if tick["timestamp"] <= first["timestamp"] and held[key] > self._asked[key] and known[key] > received[key]:
                return "lost ticks can't be told from equal ones that were received"
        return None

    def _is_foreign(self) -> bool:
        """Whether history knows other ticks for the time before the gap, and none of those that were delivered."""
        if self._common_until is None:
            return False
        early = [_key(tick) for tick in self._tail if tick["timestamp"] <= self._common_until]
        return bool(early) and not any(self._delivered[key] for key in early)

    def _held_keys(self) -> Counter[Hashable]:
        return Counter(_key(entry) for entry in self._held if type(entry) is dict)

    def _finish(self, reason: str | None, missed: list[Tick] | None = None) -> list[Step]:
        self._phase, self.deadline = _Phase.DONE, _NEVER
        until = self._latest if self._first is None else self._first["timestamp"]
        gap = Gap(self._symbol, self._since, until, reason is None, self._found)
        error = GapNotFilled(reason, symbol=self._symbol) if reason is not None else None
        before, after = _woven(missed or [], self._held)
        self._held = []
        return [Finish(gap, error, before, after)]


_FOREIGN = "history knows none of the ticks that were received live before the gap"


def _latest(run: list[Tick]) -> datetime:
    """The latest time of a run; of a long one, nearly: this is in the path of every tick."""
    return max(tick["timestamp"] for tick in itertools.chain(run[-32:], run[:-32:32]))


def _key(tick: Any) -> Hashable:
    return tick["exchange"], tick["timestamp"], tick["price"]


def _less(ticks: list[Tick], taken: Counter[Hashable]) -> list[Tick]:
    """The ticks that remain when those counted in `taken`, which is used up, are taken away."""
    remaining = []
    for tick in ticks:
        key = _key(tick)
        if taken[key] > 0:
            taken[key] -= 1
        else:
            remaining.append(tick)
    return remaining


def _woven(missed: list[Tick], held: list[Any]) -> tuple[list[Tick], list[Any]]:
    """What comes before the first live tick, and the live ticks with what was lost among them. The latter keep their
    order; each of the former stands before the first that is not earlier."""
    before: list[Tick] = []
    after: list[Any] = []
    place = before
    waiting = deque(missed)
    for entry in held:
        if type(entry) is dict:
            while waiting and waiting[0]["timestamp"] <= entry["timestamp"]:
                place.append(waiting.popleft())
            place = after
        after.append(entry)
    place.extend(waiting)
    return before, after
