"""What is missing after a reconnect, and what tick history says of it. No socket, no clock, no thread.

Ticks carry no id, and equal lines are different trades. So what is missing is found by counting: of each (exchange,
time, price), history's count less what was delivered before the outage and what has been received since. A
`DeliveredWindow` keeps what was delivered last; a `Recovery` goes from the moment a stream is connected again to the
end of its gap:

    FIRST ──a live tick, or none for a while──> FETCH ──all pages──> PROBE ──pong──> (finished)
                                                  ^                     │
                                                  └───────PAUSE <───────┘ history behind the stream, or not certain yet

A stream that is lost and connected again meanwhile begins at FIRST anew, with what is held so far.
Live ticks are held from the beginning to the end, and so that is bounded: whoever drives this says when they are
`overdue`. The answer to the ping tells that whatever the server had sent on the stream when history answered has been
received: without it a tick that is in history and still on its way would be taken for a lost one.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from datetime import datetime
from typing import Any

import attrs

from ..errors import GapNotFilled
from ..values import Gap, Tick
from .delivered_window import (
    _EARLIEST,
    _MOMENT,
    DeliveredWindow,
    Key,
    _earlier,
    _later,
    _parts,
)

#: Seconds for which the first live tick is awaited. History is asked without it then.
FIRST_WAIT = 0.5
#: Seconds for which live ticks may be held, or a ping be unanswered, while nothing is found for the gap; over however
#: many connections.
PATIENCE = 30.0
#: Seconds between two looks at a history that is behind the stream, or that could not be told from it yet.
PAUSES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)

#: How many of history's ticks may wait for being told apart. It takes that many within a second or two of their time,
#: or no live tick at all.
MOST_TOLD = 524_288
_NEVER = float("inf")


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

    def __init__(self, symbol: str, window: DeliveredWindow, now: float) -> None:
        assert window.last is not None
        #: When `wake` is due.
        self.deadline = now + FIRST_WAIT
        self._symbol = symbol
        self._window = window
        self._since = window.last
        self._start, delivered = window.window()
        self._delivered: Counter[Key] = Counter(map(_countable, delivered))
        #: Up to here history and what was delivered have to have something in common; None once that was seen.
        self._common_until: datetime | None = max((time for _, time, _ in delivered), default=None)
        self._floor = window.floor
        self._overrun = window.overrun
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
        self._asked: Counter[Key] = Counter()
        #: History's ticks from `_start` on, which are still to be told apart.
        self._tail: list[Tick] = []
        self._found = 0
        self._latest = window.last

    def hold(self, ticks: list[Tick]) -> list[Step]:
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
        """Whether enough is held to do without more: no lost tick is as late as one that is still to be read."""
        if self._first is None or self._held_to is None:
            return False
        return _earlier(self._held_to, self._window.margin) > _later(self._first["timestamp"], self._window.margin)

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
        if len(self._tail) > MOST_TOLD:
            return self._finish("history has more ticks than can be told from live ones that are still to come")
        if self._held_from is None:
            return []  # any of them may be on its way
        # The ticks before this time are all there, and none of those that are held, or on their way, is that early.
        sure = _earlier(min(reached, self._held_from), self._window.margin)
        if sure <= self._start or (self._common_until is not None and reached <= self._common_until):
            return []
        if self._is_foreign():
            return self._finish(_FOREIGN)
        self._common_until = None
        self._start = sure
        settled = [tick for tick in self._tail if tick["timestamp"] < sure]
        del self._tail[: len(settled)]
        missed = subtract(settled, self._delivered)
        self._found += len(missed)
        return [Deliver(missed)] if missed else []

    def fetched(self, now: float) -> list[Step]:
        """There are no more pages."""
        if self._phase is not _Phase.FETCH:
            return []
        if self._connected and not self._full:
            self._phase, self.deadline = _Phase.PROBE, _NEVER
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
        return self._fetch() if now >= self.deadline else []

    def overdue(self, now: float) -> list[Step]:
        """Live ticks have been held for too long: they go out, with what is known by now."""
        if self._phase is _Phase.PROBE:
            return self._settle(now, "the stream answered no ping, so that ticks on their way may have come twice")
        if self._phase is _Phase.PAUSE:
            return self._settle(now, _BEHIND)
        return self.give_up(f"live ticks had waited for {PATIENCE:g} s, and history had not answered")

    def give_up(self, reason: str) -> list[Step]:
        """End at once, whatever is still missing."""
        return [] if self._phase is _Phase.DONE else self._finish(reason)

    def _fetch(self) -> list[Step]:
        earliest = self._since if self._first is None else min(self._since, self._first["timestamp"])
        # The last one before the gap may have been the only one with a wrong time.
        floor = max(self._floor or _EARLIEST, _earlier(self._since, self._window.margin))
        if earliest < floor:
            return self._finish("the times of the ticks have gone back, so that history can't tell what is new")
        self._phase, self.deadline = _Phase.FETCH, _NEVER
        self._tail = []
        self._asked = self._held_keys()
        if self._first is None:
            return [Fetch(self._start, None)]
        end = _later(self._first["timestamp"], self._window.margin)
        return [Fetch(self._start, _later(max(end, self._start), _MOMENT))]

    def _settle(self, now: float, flaw: str | None = None) -> list[Step]:
        """Tell the last of history's ticks apart, if that can be done already; now, where there is a flaw in it."""
        held = self._held_keys()
        if self._full and self._held_to is not None:
            # The rest is still to be read, some of it perhaps late.
            to_come = _earlier(self._held_to, self._window.margin)
            self._tail = [tick for tick in self._tail if tick["timestamp"] < to_come]
        if self._is_foreign():
            return self._finish(_FOREIGN)
        doubt = self._doubt(held)
        if doubt and not flaw and self._round < len(PAUSES):
            self._phase, self.deadline = _Phase.PAUSE, now + PAUSES[self._round]
            self._round += 1
            return []
        if doubt is _BEHIND and self._first is not None:
            # Or it does know it, and by another price: others that were received may be here as well.
            self._tail = [tick for tick in self._tail if tick["timestamp"] < self._first["timestamp"]]
        if self._overrun and doubt is None:
            doubt = "more ticks had the time of the last one before the gap than are remembered"
        missed = subtract(subtract(self._tail, Counter(self._delivered)), held)
        self._found += len(missed)
        return self._finish(doubt or flaw, missed)

    def _doubt(self, held: Counter[Key]) -> str | None:
        """Why history has to be asked once more; None where there is no reason to."""
        first = self._first
        if first is None:
            return None
        known = Counter(map(_key, self._tail))
        received = self._delivered + self._asked
        if first["timestamp"] >= self._start and known[_key(first)] < received[_key(first)]:
            return _BEHIND
        for tick in self._tail:
            key = _key(tick)
            # A live tick that came after the question may or may not be in the answer. If equal ones were lost as well,
            # the counts can't tell which is which.
            if tick["timestamp"] <= first["timestamp"] and held[key] > self._asked[key] and known[key] > received[key]:
                return "lost ticks can't be told from equal ones that were received"
        return None

    def _is_foreign(self) -> bool:
        """Whether history knows other ticks for the time before the gap, and none of those that were delivered."""
        if self._common_until is None:
            return False
        early = [_key(tick) for tick in self._tail if tick["timestamp"] <= self._common_until]
        return bool(early) and not any(self._delivered[key] for key in early)

    def _held_keys(self) -> Counter[Key]:
        return Counter(_key(entry) for entry in self._held if type(entry) is dict)

    def _finish(self, reason: str | None, missed: list[Tick] | None = None) -> list[Step]:
        self._phase, self.deadline = _Phase.DONE, _NEVER
        until = self._latest if self._first is None else self._first["timestamp"]
        gap = Gap(self._symbol, self._since, until, reason is None, self._found)
        error = GapNotFilled(reason, symbol=self._symbol) if reason is not None else None
        before, after = merge(missed or [], self._held)
        self._held = []
        return [Finish(gap, error, before, after)]


_BEHIND = "history has not got as far as the first live tick"
_FOREIGN = "history knows none of the ticks that were received live before the gap"


def _key(tick: Any) -> Key:
    return _countable(_parts(tick))


def _countable(key: Key) -> Key:
    """The same, or what can be counted in its place: a price that has no hash is like no other."""
    try:
        hash(key)
    except Exception:
        return key[0], key[1], id(key[2])
    return key


def subtract(ticks: list[Tick], taken: Counter[Key]) -> list[Tick]:
    """The ticks that remain when those counted in `taken`, which is used up, are taken away."""
    remaining = []
    for tick in ticks:
        key = _key(tick)
        if taken[key] > 0:
            taken[key] -= 1
        else:
            remaining.append(tick)
    return remaining


def merge(missed: list[Tick], held: list[Any]) -> tuple[list[Tick], list[Any]]:
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
