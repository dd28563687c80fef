"""Resequence one stream's ticks.

While a gap is being filled, live ticks are held back. Afterwards everything is delivered in order, as fast as the
queue accepts it. `Recovery` decides what to do; `Resequencer` does it. Runs on the network thread only.
"""

from __future__ import annotations

import enum
import logging
import time
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Protocol

import attrs

from ..values import NO_BOUND, Event, Gap, Tick
from .backfill import Backfiller, Job
from .counters import Counters
from .delivered_window import DeliveredWindow, LastTickTime
from .interfaces import Delivery
from .recovery import HOLD_TIMEOUT, Deliver, Fetch, Finish, Probe, Recovery, Step

logger = logging.getLogger("finx_streamer")

#: How many ticks and events one stream may hold where it can't stop reading, unless `queue_size` is larger: two seconds
#: at 250,000 ticks per second, more than any market brings.
MAX_HELD = 524_288
_NEVER = float("inf")


@attrs.define(eq=False)
class Allowance:
    """How many ticks and events all streams of a listener may hold back together, and how many they do."""

    size: int
    used: int = 0

    @property
    def room(self) -> int:
        return self.size - self.used


class Host(Protocol):
    """The owner of one stream. It carries out each request after the current step, not during it."""

    def send_probe(self) -> None:
        """Send a ping on the stream's connection. Report its answer through `Resequencer.probe_answered`."""

    def resume_reading(self) -> None:
        """Read again from all streams that were paused for lack of room."""

    def reschedule(self) -> None:
        """Look at `Resequencer.deadline` again: it may have changed."""


class _Phase(enum.Enum):
    LIVE = "live"
    DRAINING = "draining"
    REPORTING = "reporting"
    RECOVERING = "recovering"
    GIVEN_UP = "given up"


@attrs.define(eq=False, repr=False)
class Resequencer:
    """Decides for each tick of one stream: deliver it, queue it, or hold it.

        LIVE ──opened──> REPORTING ──next tick──> DRAINING ──queue empty──> LIVE     (without a backfiller)

        LIVE ──opened──> RECOVERING ──finished──> DRAINING ──queue empty──> LIVE     (with a backfiller)
                             └──failed, no live tick yet──> GIVEN_UP ──next tick──> DRAINING

    LIVE: ticks go straight to the delivery.
    DRAINING: ticks join the queue, which drains into the delivery.
    REPORTING: the time of the next tick ends the gap, which is reported but not filled.
    RECOVERING: `Recovery` holds live ticks while history is fetched.
    GIVEN_UP: the last gap failed before any live tick. The delivered window restarts at the next one.

    A new connection starts a gap from DRAINING and GIVEN_UP, too. In REPORTING and RECOVERING it extends the gap.
    Ticks of exchanges that are not in `exchanges` are discarded; None keeps all.
    """

    _symbol: str
    _delivery: Delivery
    _counters: Counters
    _allowance: Allowance
    _exchanges: frozenset[str] | None
    _backfiller: Backfiller | None
    _host: Host
    _phase: _Phase = attrs.field(default=_Phase.LIVE, init=False)
    _window: DeliveredWindow | LastTickTime = attrs.field(init=False)
    #: Runs of ticks and events that leave as soon as there is room.
    _queue: deque[list[Tick] | Event] = attrs.field(factory=deque, init=False)
    # The rest is set while RECOVERING only.
    _recovery: Recovery | None = attrs.field(default=None, init=False)
    _job: Job | None = attrs.field(default=None, init=False)
    #: Pages of history that were taken from the job and not acknowledged yet.
    _pages_taken: int = attrs.field(default=0, init=False)
    #: When live ticks have been held, or a probe unanswered, for too long.
    _give_up_at: float = attrs.field(default=_NEVER, init=False)

    def __attrs_post_init__(self) -> None:
        self._window = DeliveredWindow() if self._backfiller is not None else LastTickTime()

    @property
    def is_live(self) -> bool:
        """Whether ticks go straight to the delivery."""
        return self._phase is _Phase.LIVE

    def _enter(self, phase: _Phase) -> None:
        """Set the phase. Nothing else does."""
        if phase is not self._phase:
            logger.debug("%s: resequencer: %s", self._symbol, phase.value)
            self._phase = phase

    # Ticks and events come in.

    def put_ticks(self, ticks: list[Tick], now: float) -> bool:
        """Deliver, queue or hold live ticks. Return whether any was wanted: `exchanges` may discard all of them."""
        if self._exchanges is not None:
            ticks = [tick for tick in ticks if tick["exchange"] in self._exchanges]
        if not ticks:
            return False
        if self._phase is _Phase.LIVE:
            self._window.extend(ticks)
            self._counters.count_ticks(ticks, now)
            self._delivery.put_ticks(ticks)
        elif self._recovery is not None:
            self._hold_ticks(self._recovery, ticks, now)
        else:
            self._end_gap_at(ticks[0])
            self._queue_ticks(ticks)
            self.drain()
        return True

    def put_event(self, event: Event) -> None:
        """Deliver, queue or hold an event, in order with the ticks."""
        if self._recovery is not None:
            self._recovery.hold_event(event)
            self._count_held(1)
            self._limit_held(time.monotonic())
        elif self._queue:
            self._queue_event(event)
        else:
            self._delivery.put_event(event)

    def room(self) -> int:
        """Return how many ticks may be read now. At 0 or less, stop reading."""
        if self._phase is _Phase.LIVE:
            return self._delivery.room()
        if self._recovery is not None and not self._recovery.can_pause:
            # Unread ticks would look like lost ones.
            return NO_BOUND
        return self._allowance.room

    # The connection changes.

    def reading_paused(self, now: float) -> None:
        """Take note that reading stopped for lack of room."""
        if self._recovery is not None and self._recovery.can_pause:
            self._carry_out(self._recovery.reading_paused(now))

    def lost(self, now: float) -> None:
        """Take note that the connection was lost."""
        if self._recovery is not None:
            self._carry_out(self._recovery.lost(now))

    def opened(self, now: float) -> None:
        """Take note of a new connection: ticks may be missing, unless the stream has had none so far."""
        if self._recovery is not None:
            self._carry_out(self._recovery.opened(now))
        elif self._window.last is None:
            return
        elif isinstance(self._window, DeliveredWindow):
            self._enter(_Phase.RECOVERING)
            self._recovery = Recovery(self._symbol, self._window, now)
            self._host.reschedule()
        else:
            self._enter(_Phase.REPORTING)

    def probe_answered(self, now: float) -> None:
        """Take note of the answer to a probe."""
        if self._recovery is not None:
            self._carry_out(self._recovery.probe_answered(now))

    @property
    def deadline(self) -> float:
        """When to call `wake`; infinity for never."""
        return min(self._recovery.deadline, self._give_up_at) if self._recovery is not None else _NEVER

    def wake(self, now: float) -> None:
        """Do what is due. Harmless when nothing is."""
        if self._recovery is None:
            return
        if now < self._give_up_at:
            self._carry_out(self._recovery.wake(now))
        elif self._queue:
            # The callbacks are slow, not history: ticks found for this gap still wait for room.
            self._give_up_at = now + HOLD_TIMEOUT
            self._host.reschedule()
        else:
            self._carry_out(self._recovery.overdue(now))

    def end(self, reason: str) -> None:
        """End the stream: deliver everything that was received, even without room."""
        if self._recovery is not None:
            self._carry_out(self._recovery.give_up(reason))
        self.drain(NO_BOUND)

    # Ticks and events go out.

    def drain(self, room: int | None = None) -> None:
        """Deliver from the queue while there is room: `room` ticks per step, or what the delivery takes."""
        was_full = self._allowance.room <= 0
        while self._queue:
            left = self._delivery.room() if room is None else room
            if left <= 0:
                self._delivery.want_room()
                break
            self._deliver_next(left)
        else:
            self._acknowledge_pages()
            if self._phase is _Phase.DRAINING:
                self._enter(_Phase.LIVE)
        if self._phase is _Phase.LIVE or (was_full and self._allowance.room > 0):
            self._host.resume_reading()

    def _deliver_next(self, room: int) -> None:
        entry = self._queue.popleft()
        if isinstance(entry, Event):
            self._allowance.used -= 1
            self._delivery.put_event(entry)
            return
        if len(entry) > room:
            self._queue.appendleft(entry[room:])
            entry = entry[:room]
        self._allowance.used -= len(entry)
        self._counters.count_ticks(entry, time.monotonic())
        self._delivery.put_ticks(entry)

    def _queue_ticks(self, ticks: list[Tick]) -> None:
        self._allowance.used += len(ticks)
        self._queue.append(ticks)
        self._window.extend(ticks)

    def _queue_event(self, event: Event) -> None:
        self._allowance.used += 1
        self._queue.append(event)

    def _queue_gap(self, gap: Gap) -> None:
        self._counters.gaps += 1
        self._counters.filled_ticks += gap.ticks
        self._queue_event(Event(gap, self._symbol))

    def _end_gap_at(self, tick: Tick) -> None:
        """End a gap that waits for the next live tick, if there is one."""
        if self._phase is _Phase.REPORTING:
            assert self._window.last is not None
            self._queue_gap(Gap(self._symbol, self._window.last, tick["timestamp"], False, 0))
        elif self._phase is _Phase.GIVEN_UP:
            assert isinstance(self._window, DeliveredWindow)
            self._window.restart(tick["timestamp"])
        self._enter(_Phase.DRAINING)

    # A gap is recovered.

    def _hold_ticks(self, recovery: Recovery, ticks: list[Tick], now: float) -> None:
        self._count_held(len(ticks))
        self._give_up_at = min(self._give_up_at, now + HOLD_TIMEOUT)
        self._carry_out(recovery.hold(ticks))
        self._limit_held(now)

    def _count_held(self, count: int) -> None:
        self._counters.held += count
        self._allowance.used += count

    def _limit_held(self, now: float) -> None:
        recovery = self._recovery
        if recovery is None or self._allowance.room > 0:
            return
        if recovery.can_pause:
            self._carry_out(recovery.reading_paused(now))
        elif self._counters.held > max(self._allowance.size, MAX_HELD):
            # The ticks' own time doesn't advance, or only events arrive: this could go on forever.
            self._carry_out(recovery.give_up("more arrived during the gap than can be held"))

    def _carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Fetch():
                    self._fetch(step)
                case Probe():
                    self._host.send_probe()
                    self._give_up_at = min(self._give_up_at, time.monotonic() + HOLD_TIMEOUT)
                case Deliver():
                    self._queue_ticks(step.ticks)
                    if self._give_up_at < _NEVER:
                        self._give_up_at = time.monotonic() + HOLD_TIMEOUT
                case Finish():
                    self._finish(step)
        if steps:
            self.drain()
        self._host.reschedule()

    def _fetch(self, step: Fetch) -> None:
        assert self._backfiller is not None
        self._drop_job()
        job = Job(
            self._symbol,
            step.start,
            step.end,
            on_page=lambda ticks: self._take_page(job, ticks),
            on_end=lambda reason: self._end_job(job, reason),
        )
        self._job = job
        self._backfiller.fetch(job)

    def _take_page(self, job: Job, ticks: list[Tick]) -> None:
        if job is not self._job or self._recovery is None:
            return
        if self._exchanges is not None:
            ticks = [tick for tick in ticks if tick["exchange"] in self._exchanges]
        self._pages_taken += 1
        self._carry_out(self._recovery.page(ticks))
        if not self._queue:
            self._acknowledge_pages()

    def _acknowledge_pages(self) -> None:
        """Let the job fetch more: the pages taken so far were delivered, or `Recovery` keeps them."""
        pages, self._pages_taken = self._pages_taken, 0
        if self._job is not None:
            for _ in range(pages):
                self._job.taken()

    def _end_job(self, job: Job, reason: str | None) -> None:
        if job is not self._job or self._recovery is None:
            return
        self._job = None
        recovery = self._recovery
        self._carry_out(recovery.fetched(time.monotonic()) if reason is None else recovery.fetch_failed(reason))

    def _drop_job(self) -> None:
        if self._job is not None:
            self._job.cancel()
        self._job, self._pages_taken = None, 0

    def _finish(self, step: Finish) -> None:
        self._drop_job()
        self._recovery = None
        self._give_up_at = _NEVER
        self._enter(_Phase.DRAINING)
        # Held entries are counted again when they join the queue.
        self._allowance.used -= self._counters.held
        self._counters.held = 0
        if step.before:
            self._queue_ticks(step.before)
        self._queue_gap(step.gap)
        if step.error is not None:
            self._queue_event(Event(step.error, self._symbol))
            self._restart_window(step.after)
        for entry in _group_ticks(step.after):
            if isinstance(entry, Event):
                self._queue_event(entry)
            else:
                self._queue_ticks(entry)

    def _restart_window(self, held: list[Tick | Event]) -> None:
        """Never ask for the given-up ticks again: restart the window at the first live tick, now or when it comes."""
        assert isinstance(self._window, DeliveredWindow)
        first = next((entry for entry in held if not isinstance(entry, Event)), None)
        if first is None:
            self._enter(_Phase.GIVEN_UP)
        else:
            self._window.restart(first["timestamp"])


def _group_ticks(entries: list[Any]) -> Iterator[list[Tick] | Event]:
    """Yield consecutive ticks as lists, and events as they are."""
    for is_event, group in groupby(entries, key=lambda entry: isinstance(entry, Event)):
        if is_event:
            yield from group
        else:
            yield list(group)
