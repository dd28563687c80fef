"""The ticks of one stream on their way to the callback side: straight on, or held while a gap is looked into.

All of it lives in the network thread. `gaps.Recovery` knows what is to be done about a gap; this does it: it holds live
ticks back, has history fetched, and hands everything on in order, as the callback side has room for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Protocol

import attrs

from ..delivery.dispatcher import Delivery
from ..values import NO_BOUND, Event, Gap, Tick
from .backfill import Backfiller, Job
from .counters import Counters
from .delivered_window import DeliveredWindow, LastTime
from .recovery import PATIENCE, Deliver, Fetch, Finish, Probe, Recovery, Step

#: How many ticks and events one stream may hold while it can't do with less, where `queue_size` is not more: two
#: seconds of 250,000 ticks each, which no market has.
MOST_HELD = 524_288
_NEVER = float("inf")


@attrs.define(eq=False)
class Allowance:
    """How many ticks the streams of a listener hold back, all in all, and how many they may."""

    size: int
    used: int = 0

    @property
    def room(self) -> int:
        return self.size - self.used


class Host(Protocol):
    """What a flow can't do itself. None of it is done at once."""

    def probe(self, symbol: str) -> None:
        """Send a ping on the stream; tell its answer by `answered`."""

    def proceed(self) -> None:
        """Read the streams again that had no room."""

    def schedule(self, symbol: str) -> None:
        """Take note of a new `deadline`."""


class Resequencer:
    """See the module. There may be thousands of them, and they are small."""

    __slots__ = (
        "_allowance",
        "_backfiller",
        "_counters",
        "_delivery",
        "_exchanges",
        "_gap_open",
        "_given_up",
        "_held",
        "_host",
        "_job",
        "_overdue_at",
        "_pages",
        "_recovery",
        "_symbol",
        "_waiting",
        "straight",
        "window",
    )

    def __init__(
        self,
        symbol: str,
        delivery: Delivery,
        counters: Counters,
        allowance: Allowance,
        exchanges: frozenset[str] | None,
        backfiller: Backfiller | None,
        host: Host,
    ) -> None:
        #: Nothing is held and nothing waits: ticks may go straight to the delivery, by way of the window.
        self.straight = True
        self.window: DeliveredWindow | LastTime = DeliveredWindow() if backfiller is not None else LastTime()
        self._symbol = symbol
        self._delivery = delivery
        self._counters = counters
        self._allowance = allowance
        self._exchanges = exchanges
        self._backfiller = backfiller
        self._host = host
        self._recovery: Recovery | None = None
        self._job: Job | None = None
        #: Without a backfiller: the connection is a new one, and the next tick tells where the gap ends.
        self._gap_open = False
        #: The last gap was given up with no live tick after it: the window begins anew at the next one.
        self._given_up = False
        #: What is to go out as soon as there is room: runs of ticks, and events.
        self._waiting: deque[list[Tick] | Event] | None = None
        #: How many ticks and events the recovery holds, and when they will have been held for too long.
        self._held = 0
        self._overdue_at = _NEVER
        #: How many of the pages that were taken from the job wait among them.
        self._pages = 0

    # The way of a tick.

    def put_ticks(self, ticks: list[Tick]) -> None:
        """Ticks of the stream, at least one, in order; not `straight`."""
        now = time.monotonic()
        if self._recovery is not None:
            self._hold(len(ticks))
            self._overdue_at = min(self._overdue_at, now + PATIENCE)
            self._do(self._recovery.hold(ticks, now))
            self._keep_bound(now)
            return
        if self._gap_open and self.window.last is not None:
            self._gap_open = False
            self._tell(Gap(self._symbol, self.window.last, ticks[0]["timestamp"], False, 0))
        if self._given_up:
            self._given_up = False
            self.window.restart()
        self._queue(ticks)
        self.drain()

    def put_event(self, event: Event) -> None:
        """Whatever has its place among the ticks."""
        if self._recovery is not None:
            self._hold(1)
            self._recovery.hold_beside(event)
            self._keep_bound(time.monotonic())
        elif self._waiting:
            self._line_up(event)
        else:
            self._delivery.put_event(event)

    def room(self) -> int:
        """How many ticks may be read now; 0 or less: stop reading."""
        if self.straight:
            return self._delivery.room()
        if self._recovery is not None and not self._recovery.can_pause:
            # It can't do with less: what is left unread now would count as arrived when the ping is not answered.
            return NO_BOUND
        return self._allowance.room

    def held_up(self, now: float) -> None:
        """The stream is not read any more, for want of room."""
        if self._recovery is not None and self._recovery.can_pause:
            self._do(self._recovery.no_room(now))

    # What the stream does.

    def lost(self, now: float) -> None:
        if self._recovery is not None:
            self._do(self._recovery.lost(now))

    def opened(self, now: float) -> None:
        """Connected. What came before is missing, if there was anything."""
        if self._recovery is not None:
            self._do(self._recovery.opened(now))
        elif self.window.last is not None:
            self.straight = False
            if isinstance(self.window, DeliveredWindow):
                # With a gap that was given up just before, for nothing has come since: there is but one hole.
                self._given_up = False
                self._recovery = Recovery(self._symbol, self.window, now)
                self._host.schedule(self._symbol)
            else:
                self._gap_open = True

    def answered(self, now: float) -> None:
        """A ping was answered."""
        if self._recovery is not None:
            self._do(self._recovery.answered(now))

    @property
    def deadline(self) -> float:
        return min(self._recovery.deadline, self._overdue_at) if self._recovery is not None else _NEVER

    def wake(self, now: float) -> None:
        if self._recovery is None:
            return
        if now < self._overdue_at:
            self._do(self._recovery.wake(now))
        elif self._waiting:
            # It is the callbacks that are slow: what was found for this gap has not gone out yet.
            self._overdue_at = now + PATIENCE
            self._host.schedule(self._symbol)
        else:
            self._do(self._recovery.overdue(now))

    def end(self, reason: str) -> None:
        """The stream ends: everything that was received goes out now, whatever the room."""
        if self._recovery is not None:
            self._do(self._recovery.give_up(reason))
        self.drain(NO_BOUND)

    # Out.

    def drain(self, room: int | None = None) -> None:
        """Hand on what waits, as far as there is room."""
        full = self._allowance.room <= 0
        waiting = self._waiting
        while waiting:
            left = self._delivery.room() if room is None else room
            if left <= 0:
                self._delivery.want_room()
                break
            entry = waiting.popleft()
            if isinstance(entry, Event):
                self._allowance.used -= 1
                self._delivery.put_event(entry)
                continue
            if len(entry) > left:
                waiting.appendleft(entry[left:])
                entry = entry[:left]
            self._counters.count_ticks(entry, time.monotonic())
            self._delivery.put_ticks(entry)
            self._allowance.used -= len(entry)
        else:
            self._waiting = None
            self._take_more()
            self.straight = self._recovery is None and not (self._gap_open or self._given_up)
        if self.straight or (full and self._allowance.room > 0):
            self._host.proceed()

    def _queue(self, ticks: list[Tick]) -> None:
        self._allowance.used += len(ticks)
        self._line_up(ticks)
        self.window.extend(ticks)

    def _tell(self, gap: Gap) -> None:
        self._counters.gaps += 1
        self._counters.filled_ticks += gap.ticks
        self._line_up(Event(gap, self._symbol))

    def _line_up(self, entry: list[Tick] | Event) -> None:
        if self._waiting is None:
            self._waiting = deque()
        if isinstance(entry, Event):
            self._allowance.used += 1
        self._waiting.append(entry)

    def _hold(self, count: int) -> None:
        self._held += count
        self._counters.held = self._held
        self._allowance.used += count

    def _keep_bound(self, now: float) -> None:
        recovery = self._recovery
        if recovery is None or self._allowance.room > 0:
            return
        if recovery.can_pause:
            self._do(recovery.no_room(now))
        elif self._held > max(self._allowance.size, MOST_HELD):
            # The stream's time stands still, or it brings no ticks at all: that could go on without end.
            self._do(recovery.give_up("more came meanwhile than can wait"))

    # A recovery's steps.

    def _do(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Fetch():
                    self._fetch(step)
                case Probe():
                    self._host.probe(self._symbol)
                    self._overdue_at = min(self._overdue_at, time.monotonic() + PATIENCE)
                case Deliver():
                    self._queue(step.ticks)
                    if self._overdue_at < _NEVER:
                        self._overdue_at = time.monotonic() + PATIENCE
                case Finish():
                    self._finish(step)
        if steps:
            self.drain()
        self._host.schedule(self._symbol)

    def _fetch(self, step: Fetch) -> None:
        assert self._backfiller is not None
        self._drop_job()
        job = Job(
            self._symbol,
            step.start,
            step.end,
            on_page=lambda ticks: self._page(job, ticks),
            on_end=lambda reason: self._end(job, reason),
        )
        self._job = job
        self._backfiller.fetch(job)

    def _page(self, job: Job, ticks: list[Tick]) -> None:
        if job is not self._job or self._recovery is None:
            return
        if self._exchanges is not None:
            ticks = [tick for tick in ticks if tick["exchange"] in self._exchanges]
        self._pages += 1
        self._do(self._recovery.page(ticks))
        if not self._waiting:
            self._take_more()

    def _take_more(self) -> None:
        """The pages that were taken have gone out, or lie where they are told apart: others may come."""
        pages, self._pages = self._pages, 0
        if self._job is not None:
            for _ in range(pages):
                self._job.taken()

    def _end(self, job: Job, reason: str | None) -> None:
        if job is not self._job or self._recovery is None:
            return
        self._job = None
        self._do(self._recovery.fetched(time.monotonic()) if reason is None else self._recovery.failed(reason))

    def _finish(self, step: Finish) -> None:
        assert self._recovery is not None
        self._drop_job()
        # What was held is counted anew on its way out.
        self._allowance.used -= self._held
        self._held = self._counters.held = 0
        self._overdue_at = _NEVER
        self._recovery = None
        if step.before:
            self._queue(step.before)
        self._tell(step.gap)
        if step.error is not None:
            self._line_up(Event(step.error, self._symbol))
            self._given_up = not any(type(entry) is dict for entry in step.after)
            if not self._given_up:
                self.window.restart()
        for entry in _runs(step.after):
            if isinstance(entry, Event):
                self._line_up(entry)
            else:
                self._queue(entry)

    def _drop_job(self) -> None:
        if self._job is not None:
            self._job.cancel()
        self._job, self._pages = None, 0


def _runs(entries: list[Any]) -> Iterator[Any]:
    """Ticks in lists, and what stands between them as it is."""
    for is_tick, some in groupby(entries, key=lambda entry: type(entry) is dict):
        if is_tick:
            yield list(some)
        else:
            yield from some
