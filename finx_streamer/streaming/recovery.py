"""Find the ticks that were missed between two connections, by comparing tick history with the ticks received."""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import attrs

from ..errors import ConnectionFailed, DecodeError, GapNotFilled
from ..values import NEVER, Event, Gap, Tick
from .delivered_window import EARLIEST, MOMENT, DeliveredWindow, Key, countable, earlier, later, tick_key

#: Seconds to wait for the first live tick. After that, history is fetched without an end.
FIRST_TICK_TIMEOUT = 0.5
#: Seconds for which live ticks may be held, or a probe be unanswered, while nothing is found for the gap. Outages don't
#: count, and further connections don't restart it.
HOLD_TIMEOUT = 30.0
#: Seconds to wait before history is fetched again, if it is behind the stream or the counts are ambiguous.
RETRY_DELAYS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
#: How many ticks of history may wait until live ticks show which of them were missed.
MAX_UNSETTLED = 524_288
#: How many ticks that can't be read are remembered, to count each of them once.
MAX_BAD = 10_000


@attrs.frozen
class Fetch:
    """Fetch history for start <= time < end; up to its last tick if `end` is None.

    With an `overlap`, history is followed until it has come close to now. See `Job`.
    """

    start: datetime
    end: datetime | None
    overlap: timedelta | None = None


@attrs.frozen
class Connect:
    """Open the stream: history has come close to now."""


@attrs.frozen
class Probe:
    """Send a ping, and report its answer."""


@attrs.frozen
class Deliver:
    """Deliver these ticks: they were missed."""

    ticks: list[Tick]


@attrs.frozen
class Report:
    """Report a failure. History is requested again."""

    error: ConnectionFailed


@attrs.frozen
class Finish:
    """The gap is over. Deliver `before`, then the gap, then the error, then `after`, which starts with a live tick."""

    gap: Gap
    error: GapNotFilled | None
    before: list[Tick]
    after: list[Tick | Event]

    def runs_after(self) -> Iterator[list[Tick] | Event]:
        """Yield consecutive ticks of `after` as lists, and events as they are."""
        entries: list[Any] = self.after
        for is_event, group in groupby(entries, key=lambda entry: isinstance(entry, Event)):
            if is_event:
                yield from group
            else:
                yield list(group)


Step = Fetch | Probe | Deliver | Connect | Report | Finish


class _Phase(enum.Enum):
    AWAITING_TICK = "awaiting tick"
    FETCHING = "fetching"
    PROBING = "probing"
    RETRYING = "retrying"


class Recovery:
    """One gap, from the reconnect to its end. No socket, no clock, no thread.

        AWAITING_TICK ──live tick, or timeout──> FETCHING ──last page──> PROBING ──pong──> the end
                                                    ^                       │
                                                    └────── RETRYING <──────┘ history is behind, or counts are ambiguous

    Ticks carry no ID, and equal ticks are different trades. So missed ticks are found by counting. For each (exchange,
    time, price), history's count minus the count delivered before the gap minus the count received since is the count
    missed.

    Live ticks are held until the end, so that missed ones can go first. The pong shows that everything the server had
    sent when history answered has arrived. Without it, a tick that is in history and still in transit would look
    missed. A new connection within the gap starts over at AWAITING_TICK and keeps what is held.

    The caller passes live ticks and events to `hold` and `hold_event` until a `Finish` returns them, which is the last
    step. It decides when the recovery is `overdue`. Most methods return the step to take, if any. `now` is in monotonic
    seconds.
    """

    def __init__(self, symbol: str, window: DeliveredWindow, now: float) -> None:
        assert window.last is not None
        self._symbol = symbol
        # What was delivered.
        self._since = window.last
        self._lateness, self._overrun = window.lateness, window.overrun
        #: The earliest plausible time. The last tick before the gap may have had a wrong time far ahead.
        self._floor = EARLIEST if window.is_empty else max(window.floor, earlier(window.last, window.lateness))
        #: Everything before this time is settled.
        self._start, delivered = window.snapshot()
        self._delivered = Counter(delivered)
        #: History must have a delivered tick up to this time; None once it was found to.
        self._common_until: datetime | None = max((time for _, time, _ in delivered), default=None)
        # What was received since.
        self._held: list[Tick | Event] = []
        #: The time of the first held tick, and the latest time of all.
        self._held_from: datetime | None = None
        self._held_to = EARLIEST
        #: The first live tick of the current connection.
        self._first: Tick | None = None
        #: The held ticks at the time of the last fetch.
        self._held_at_fetch: Counter[Key] = Counter()
        # What history says.
        #: History's ticks from `_start` on, missed or not.
        self._unsettled: list[Tick] = []
        self._latest = window.last
        #: How many missed ticks were found.
        self._found = 0
        #: What is wrong with the ticks that can't be read, by their text: a further fetch finds them again.
        self._bad: dict[str | bytes, str] = {}
        self._bad_count = 0
        self.opened(now)

    def _enter(self, phase: _Phase, deadline: float = NEVER) -> None:
        """Set the phase and its deadline. Nothing else does."""
        self._phase = phase
        #: When to call `wake`; infinity for never.
        self.deadline = deadline

    # The stream.

    def hold(self, ticks: list[Tick]) -> Step | None:
        """Hold live ticks, at least one."""
        self._held_from = self._held_from or ticks[0]["timestamp"]
        self._held_to = max(self._held_to, *(tick["timestamp"] for tick in ticks))
        self._held += ticks
        if self._first is not None:
            return None
        self._first = ticks[0]
        return self._fetch() if self._phase is _Phase.AWAITING_TICK else None

    def hold_event(self, event: Event) -> None:
        """Hold an event, in order with the ticks."""
        self._held.append(event)

    @property
    def history_until(self) -> datetime | None:
        """Return what history has reached, if it comes before the stream."""
        return None

    @property
    def can_pause(self) -> bool:
        """Whether reading may pause: no unread tick, even a late one, can equal a missed one."""
        if self._first is None:
            return False
        return earlier(self._held_to, self._lateness) > later(self._first["timestamp"], self._lateness)

    def reading_paused(self, now: float) -> Step | None:
        """Go on without a pong: the stream isn't read until the end. Only if it `can_pause`."""
        self._paused = True
        return self.probe_answered(now)

    def lost(self, now: float) -> Step | None:
        """Take note that the connection was lost. What was in transit is lost with it, so history will tell."""
        self._connected = False
        if self._phase is _Phase.AWAITING_TICK:
            self._enter(_Phase.AWAITING_TICK)
            return self._fetch() if self._held else None
        return self.probe_answered(now)

    def opened(self, now: float) -> None:
        """Start over on a new connection: the gap includes the new outage. The fetch in progress must be cancelled."""
        self._connected = True
        #: Reading is paused, so no pong will be read.
        self._paused = False
        self._first = None
        self._retries = 0
        self._enter(_Phase.AWAITING_TICK, now + FIRST_TICK_TIMEOUT)

    def probe_answered(self, now: float) -> Step | None:
        """Take note that the pong arrived."""
        return self._settle(now) if self._phase is _Phase.PROBING else None

    # History.

    def page(self, ticks: list[Tick], reached: datetime | None = None) -> Step | None:
        """Take a page of history: sorted by time, and no earlier than the page before.

        `reached`: the time of the page's last tick, if the page has others than those that are wanted.
        """
        if ticks:
            self._unsettled += ticks
            self._latest = max(self._latest, ticks[-1]["timestamp"])
            reached = reached or ticks[-1]["timestamp"]
        if reached is None:
            return None
        if len(self._unsettled) > MAX_UNSETTLED:
            return self.finish("history has more ticks than can be kept until live ticks show which were missed")
        certain_until = self._certain_until(reached)
        if certain_until <= self._start or (self._common_until is not None and reached <= self._common_until):
            return None
        if self._is_foreign():
            return self.finish(_FOREIGN)
        self._common_until = None
        self._start = certain_until
        settled = self._unsettled[: bisect_left(self._unsettled, certain_until, key=_time_of)]
        del self._unsettled[: len(settled)]
        missed = subtract(settled, self._delivered)
        if self._delivered:
            # Further pages are later than this, so that most of them have nothing to compare.
            later_ones = {key: count for key, count in self._delivered.items() if key[1] >= certain_until}
            self._delivered = Counter(later_ones)
        self._found += len(missed)
        return Deliver(missed) if missed else None

    def _certain_until(self, reached: datetime) -> datetime:
        """Return the time up to which history, as far as it has reached, shows what was missed."""
        if self._held_from is None:
            return EARLIEST  # any tick may be in transit
        # No tick that is held or in transit is earlier than this.
        return earlier(min(reached, self._held_from), self._lateness)

    def note_bad_ticks(self, errors: list[DecodeError]) -> None:
        """Take note of ticks that can't be read. The gap is filled with the others, and says so."""
        for error in errors:
            if error.payload not in self._bad:
                self._bad_count += 1
                if len(self._bad) < MAX_BAD:
                    self._bad[error.payload] = error.reason

    def restarted(self, start: datetime) -> None:
        """Take note that history continues at this time: what it had from there on comes again."""
        del self._unsettled[bisect_left(self._unsettled, start, key=_time_of) :]

    def fetch_failed(self, reason: str, temporary: bool, now: float) -> Step | None:
        """Take note that history failed. `temporary`: a further fetch may work."""
        return self.finish(reason)

    def fetched(self, now: float) -> Step | None:
        """Take note that there are no more pages."""
        if self._connected and not self._paused:
            self._enter(_Phase.PROBING)
            return Probe()
        return self._settle(now)

    # Time.

    def wake(self, now: float) -> Step | None:
        """Do what is due. Harmless when nothing is."""
        return self._fetch() if now >= self.deadline else None

    def overdue(self, now: float) -> Step | None:
        """Finish with what is known so far: live ticks have been held for too long."""
        if self._phase is _Phase.PROBING:
            return self._settle(now, "the stream did not answer a ping, so ticks in transit may have come twice")
        if self._phase is _Phase.RETRYING:
            return self._settle(now, _BEHIND)
        return self.finish(f"history did not answer while live ticks were held for {HOLD_TIMEOUT:g} s")

    def finish(self, reason: str | None, missed: list[Tick] | None = None) -> Finish:
        """Finish at once. `reason`: why the gap is not filled, or None if it is."""
        until = self._latest if self._first is None else self._first["timestamp"]
        gap = Gap(self._symbol, self._since, until, reason is None, self._found)
        error = GapNotFilled(reason, symbol=self._symbol) if reason is not None else None
        return Finish(gap, error, *merge(missed or [], self._held))

    def _fetch(self) -> Step:
        earliest = self._since if self._first is None else min(self._since, self._first["timestamp"])
        if earliest < self._floor:
            return self.finish("the ticks' times went backwards, so history can't show which ticks are new")
        self._begin_fetch()
        if self._first is None or self._first["timestamp"] < self._start:
            return Fetch(self._start, None)
        end = later(self._first["timestamp"], self._lateness)
        return Fetch(self._start, later(max(end, self._start), MOMENT))

    def _begin_fetch(self) -> None:
        self._enter(_Phase.FETCHING)
        self._unsettled = []
        self._held_at_fetch = self._count_held()

    def _retry(self, at: float) -> None:
        """Fetch again at this time."""
        self._enter(_Phase.RETRYING, at)

    def _settle(self, now: float, flaw: str | None = None) -> Step | None:
        """Find the missed ticks in the rest of history and finish. Retry if in doubt, unless there is a `flaw`."""
        held = self._count_held()
        if self._paused:
            # Unread ticks, even late ones, are no earlier than this.
            unread_from = earlier(self._held_to, self._lateness)
            self._unsettled = [tick for tick in self._unsettled if tick["timestamp"] < unread_from]
        if self._is_foreign():
            return self.finish(_FOREIGN)
        doubt = self._find_doubt(held)
        if doubt and not flaw and self._retries < len(RETRY_DELAYS):
            self._retry(now + RETRY_DELAYS[self._retries])
            self._retries += 1
            return None
        if doubt is _BEHIND and self._first is not None:
            # Or history has it at another price. Then it may have later live ticks at another price, too.
            self._unsettled = [tick for tick in self._unsettled if tick["timestamp"] < self._first["timestamp"]]
        missed = subtract(self._unsettled, self._delivered + held)
        self._found += len(missed)
        return self.finish(doubt or (_OVERRUN if self._overrun else flaw or self._describe_bad_ticks()), missed)

    def _describe_bad_ticks(self) -> str | None:
        if not self._bad:
            return None
        count, first = self._bad_count, next(iter(self._bad.values()))
        ticks = "1 tick of history" if count == 1 else f"{count:,} ticks of history"
        return f"{ticks} can't be read ({first}); the others were delivered"

    def _find_doubt(self, held: Counter[Key]) -> str | None:
        """Return why history must be fetched once more; None if there is no reason to."""
        first = self._first
        if first is None:
            return None
        known = Counter(map(_count_key, self._unsettled))
        received = self._delivered + self._held_at_fetch
        if first["timestamp"] >= self._start and known[_count_key(first)] < received[_count_key(first)]:
            return _BEHIND
        for tick in self._unsettled:
            key = _count_key(tick)
            # A tick received after the fetch may or may not be in the answer. If an equal one was missed, the counts
            # are ambiguous.
            if (
                tick["timestamp"] <= first["timestamp"]
                and held[key] > self._held_at_fetch[key]
                and known[key] > received[key]
            ):
                return "missed ticks can't be told apart from equal ones that were received"
        return None

    def _is_foreign(self) -> bool:
        """Return whether history has ticks from before the gap, but none of those that were delivered."""
        if self._common_until is None:
            return False
        early = [_count_key(tick) for tick in self._unsettled if tick["timestamp"] <= self._common_until]
        return bool(early) and not any(self._delivered[key] for key in early)

    def _count_held(self) -> Counter[Key]:
        return Counter(_count_key(entry) for entry in self._held if not isinstance(entry, Event))


_BEHIND = "history does not reach the first live tick"
_OVERRUN = "more ticks than are remembered had the time of the last one before the gap"
_FOREIGN = "history has none of the ticks that were received before the gap"


_time_of: Callable[[Any], datetime] = itemgetter("timestamp")


def _count_key(tick: Tick) -> Key:
    return countable(tick_key(tick))


def subtract(ticks: list[Tick], counts: Counter[Key]) -> list[Tick]:
    """Return the ticks that remain after taking away those in `counts`, which are used up. `ticks` is sorted by time.

    Only ticks within the times of `counts` are compared: a long gap has few of them, at its ends.
    """
    if not counts:
        return ticks
    times = [time for _, time, _ in counts]
    begin = bisect_left(ticks, min(times), key=_time_of)
    end = bisect_right(ticks, max(times), begin, key=_time_of)
    remaining = ticks[:begin]
    for tick in ticks[begin:end]:
        key = _count_key(tick)
        if counts[key] > 0:
            counts[key] -= 1
        else:
            remaining.append(tick)
    return remaining + ticks[end:]


def merge(missed: list[Tick], held: list[Tick | Event]) -> tuple[list[Tick], list[Tick | Event]]:
    """Merge missed ticks into the held entries. Return what comes before the first live tick, and the rest.

    Held entries keep their order. A missed tick goes before the first held one that is not earlier.
    """
    before: list[Tick] = []
    after: list[Tick | Event] = []
    place: list[Tick] | list[Tick | Event] = before
    waiting = deque(missed)
    for entry in held:
        if not isinstance(entry, Event):
            while waiting and waiting[0]["timestamp"] <= entry["timestamp"]:
                place.append(waiting.popleft())
            place = after
        after.append(entry)
    place.extend(waiting)
    return before, after
