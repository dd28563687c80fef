"""Resequence one stream's ticks.

While a gap is being filled, live ticks are held back. Afterwards everything is delivered in order, as fast as the
queue accepts it. `Recovery` decides what to do; `Resequencer` does it. Runs on the loop's thread only.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs

from ..clock import monotonic
from ..errors import GapNotFilled
from ..values import NEVER, NO_BOUND, Event, Gap, Greeks, Tick
from .backfill import Backfiller, Job
from .catch_up import CatchUp, Past
from .counters import Counters
from .delivered_window import LATENESS, DeliveredWindow, Key, LastTickTime
from .interfaces import Delivery, Host
from .recovery import HOLD_TIMEOUT, Connect, Deliver, Fetch, Finish, Probe, Recovery, Report, Step
from .settings import Allowance
from .tap import Tap

logger = logging.getLogger("finx_streamer")

#: How many ticks and events one stream may hold where it can't stop reading, unless `queue_size` is larger: two seconds
#: at 250,000 ticks per second, more than any market brings.
MAX_HELD = 524_288


class _Phase(enum.Enum):
    LIVE = "live"
    DRAINING = "draining"
    REPORTING = "reporting"
    RESUMING = "resuming"
    RECOVERING = "recovering"
    GIVEN_UP = "given up"


#: What became of missed ticks isn't known yet.
_OPEN_GAPS = (_Phase.REPORTING, _Phase.RESUMING, _Phase.RECOVERING)


@attrs.define(eq=False, repr=False)
class Resequencer:
    """Decides for each tick of one stream: deliver it, queue it, or hold it.

        LIVE ──opened──> REPORTING ──next tick──> DRAINING ──queue empty──> LIVE     (without a backfiller)

        LIVE ──opened──> RECOVERING ──finished──> DRAINING ──queue empty──> LIVE     (with a backfiller)
                             └──failed──> GIVEN_UP ──next live tick──> DRAINING

        LIVE ──resumed──> RESUMING ──end of what was missed──> DRAINING ──queue empty──> LIVE     (a server with a log)

    LIVE: ticks go straight to the delivery.
    DRAINING: ticks join the queue, which drains into the delivery.
    REPORTING: the time of the next tick ends the gap, which is reported but not filled.
    RESUMING: the server sends what was missed, in order, before anything else: nothing is held.
    RECOVERING: `Recovery` holds live ticks while history is fetched.
    GIVEN_UP: the last gap was not filled. At the next live tick, the delivered window restarts: no later gap asks for
    the missed ticks again.

    With a past, a stream begins as RECOVERING, before it has a connection.
    A new connection starts a gap from DRAINING and GIVEN_UP, too. In the others it extends the gap.
    Ticks of exchanges that are not in `exchanges` are discarded; None keeps all.
    """

    _symbol: str
    _delivery: Delivery
    _counters: Counters
    _allowance: Allowance
    _exchanges: frozenset[str] | None
    _backfiller: Backfiller | None
    _host: Host
    _lateness: timedelta = LATENESS
    _tap: Tap | None = None
    _phase: _Phase = attrs.field(default=_Phase.LIVE, init=False)
    _window: DeliveredWindow = attrs.field(init=False)
    #: Runs of ticks and events that leave as soon as there is room. None while LIVE: an empty deque takes 760 bytes.
    _queue: deque[list[Tick] | Event] | None = attrs.field(default=None, init=False)
    #: The ID of the newest tick that was missed. The rest is set while RESUMING only.
    resume_until: int = attrs.field(default=0, init=False)
    #: When the gap began, and how many missed ticks have arrived.
    _resume_since: datetime | None = attrs.field(default=None, init=False)
    _resumed_ticks: int = attrs.field(default=0, init=False)
    #: Whether the stream ends.
    _ends: bool = attrs.field(default=False, init=False)
    # The rest is set while RECOVERING only.
    _recovery: Recovery | None = attrs.field(default=None, init=False)
    _job: Job | None = attrs.field(default=None, init=False)
    #: When live ticks have been held, or a probe unanswered, for too long.
    _give_up_at: float = attrs.field(default=NEVER, init=False)
    #: How many seconds of that are left when the connection is back.
    _hold_left: float = attrs.field(default=NEVER, init=False)

    def __attrs_post_init__(self) -> None:
        self._window = DeliveredWindow(self._lateness) if self.fills_gaps else LastTickTime()

    @property
    def window(self) -> DeliveredWindow:
        """The last delivered ticks."""
        return self._window

    @property
    def is_live(self) -> bool:
        """Whether ticks go straight to the delivery."""
        return self._phase is _Phase.LIVE

    @property
    def fills_gaps(self) -> bool:
        """Whether missed ticks are wanted."""
        return self._backfiller is not None

    @property
    def is_resuming(self) -> bool:
        """Whether the server is sending what was missed."""
        return self._phase is _Phase.RESUMING

    @property
    def is_recovering(self) -> bool:
        """Whether live ticks are held while history is fetched."""
        return self._recovery is not None

    @property
    def history_until(self) -> datetime | None:
        """Return what history has reached, if it comes before the stream. From any thread."""
        recovery = self._recovery
        return None if recovery is None else recovery.history_until

    def _enter(self, phase: _Phase) -> None:
        """Set the phase. Nothing else does."""
        if phase is not self._phase:
            logger.debug("%s: resequencer: %s", self._symbol, phase.value)
            self._phase = phase
            self._host.set_busy(phase is not _Phase.LIVE)
            if self._tap is not None and phase in _OPEN_GAPS and self._window.last is not None:
                self._tap.put_missing(self._symbol, self._window.last)

    # Ticks and events come in.

    def wanted(self, ticks: list[Tick]) -> list[Tick]:
        """Return the ticks that `exchanges` doesn't discard."""
        if self._exchanges is None:
            return ticks
        return [tick for tick in ticks if tick["exchange"] in self._exchanges]

    def take_ticks(self, ticks: list[Tick], now: float, keys: Callable[[], list[Key]] | None = None) -> list[Tick]:
        """Queue or hold wanted live ticks, at least one. If they are to be delivered now, return them instead.

        `keys` makes their keys later, when a gap needs them.
        """
        if self._phase is _Phase.LIVE:
            self._window.extend(ticks, keys)
            self._counters.count_ticks(ticks, now)
            return ticks
        if self._recovery is not None:
            self._hold(len(ticks), self._recovery.hold(ticks))
            if self._recovery is not None and (self._job is None or self._job.started):
                self._give_up_at = min(self._give_up_at, now + HOLD_TIMEOUT)
                self._host.reschedule()
        else:
            self._enqueue_live(ticks)
            self.drain()
        return []

    def note_delivered(self, keys: list[Key], last: Tick, received_ns: int, now: float) -> None:
        """Take note of ticks, at least one, that went straight to the delivery while the stream was live."""
        self._window.extend_keys(keys)
        self._counters.count_live(len(keys), last, keys[-1][1], received_ns, now)

    def put_event(self, event: Event) -> None:
        """Deliver, queue or hold an event, in order with the ticks."""
        if self._recovery is not None:
            self._recovery.hold_event(event)
            self._hold(1, None)
            return
        self._record(event)
        if self._queue:
            self._enqueue(event)
        else:
            self._delivery.put_event(event)

    def _record(self, event: Event) -> None:
        if self._tap is not None:
            self._tap.put_event(event)

    def put_greeks(self, event: Event, greeks: Greeks, now: float) -> None:
        """Deliver or queue an event with Greeks. They have no history: a gap before them is reported, not filled."""
        if self._phase is _Phase.LIVE:
            self._window.last = greeks["timestamp"]
            self._deliver_greeks(event, greeks, now)
            return
        self._begin_live(greeks["timestamp"])
        self._window.last = greeks["timestamp"]
        self._enqueue(event)
        self.drain()

    def _deliver_greeks(self, event: Event, greeks: Greeks, now: float) -> None:
        self._counters.count_greeks(greeks["timestamp"], greeks["received_ns"], now)
        self._delivery.put_greeks(event)

    def room(self) -> int:
        """Return how many ticks may be read now. At 0 or less, stop reading."""
        if self._phase is _Phase.LIVE:
            return self._delivery.room()
        return NO_BOUND if self.must_read else self._allowance.room

    @property
    def must_read(self) -> bool:
        """Whether a gap can't be filled unless reading goes on: unread ticks would look like lost ones."""
        return self._recovery is not None and not self._recovery.can_pause

    # The connection changes.

    def begin(self, past: Past) -> bool:
        """Continue after a past. Return whether history comes first: `Host.connect` is called after it."""
        self._window = past.seed(self._window)
        if self._backfiller is None or self._window.last is None or past.log:
            return False
        self._enter(_Phase.RECOVERING)
        self._recovery = catch_up = CatchUp(self._symbol, self._window)
        self._carry_out(catch_up.begin())
        return True

    def reading_paused(self, now: float) -> None:
        """Take note that reading stopped for lack of room."""
        if self._recovery is not None and self._recovery.can_pause:
            self._carry_out(self._recovery.reading_paused(now))

    def lost(self, now: float) -> None:
        """Take note that the connection was lost."""
        if self._recovery is not None:
            # An outage doesn't count: a server that is away answers no fetch.
            self._hold_left, self._give_up_at = min(self._hold_left, self._give_up_at - now), NEVER
            self._carry_out(self._recovery.lost(now))

    def requested(self, now: float) -> None:
        """Take note that ticks may arrive on a new connection. Nothing is certain until it has `opened`."""
        if self._recovery is not None:
            self.opened(now)

    def opened(self, now: float) -> None:
        """Take note of a new connection: ticks may be missing, unless the stream has had none so far."""
        if self._phase is _Phase.RESUMING:
            # What is missing from here on, the log doesn't know any more.
            self.end_resume()
        if self._window.last is None:
            return
        if self._backfiller is None:
            self._enter(_Phase.REPORTING)
            return
        self._enter(_Phase.RECOVERING)
        self._drop_job()
        if self._recovery is None:
            self._recovery = Recovery(self._symbol, self._window, now)
        else:
            self._recovery.opened(now)
        self._give_up_at = min(self._give_up_at, now + self._hold_left)
        self._hold_left = NEVER
        self._host.reschedule()

    def resumed(self, until: int) -> None:
        """Take note of a new connection on which what was missed comes first: everything up to this ID."""
        self.resume_until = until
        if self._phase is _Phase.RESUMING or self._window.last is None:
            return
        self._resume_since, self._resumed_ticks = self._window.last, 0
        was_given_up = self._phase is _Phase.GIVEN_UP
        self._enter(_Phase.RESUMING)
        if was_given_up:
            # No later gap asks for the ticks of that one.
            self._window.restart(self._resume_since)

    def take_missed(self, ticks: list[Tick]) -> None:
        """Queue wanted ticks that were missed, at least one."""
        for tick in ticks:
            tick["backfilled"] = True
        self._resumed_ticks += len(ticks)
        self._enqueue(ticks)
        self.drain()

    def end_resume(self, first: datetime | None = None, reason: str | None = None) -> None:
        """Report what was missed, if the server was sending it. `first`: the time of the first live tick, if known.

        `reason`: why that isn't all.
        """
        if self._phase is _Phase.RESUMING:
            assert self._resume_since is not None
            until = first or self._window.last or self._resume_since
            gap = Gap(self._symbol, self._resume_since, until, reason is None, self._resumed_ticks)
            error = None if reason is None else GapNotFilled(reason, symbol=self._symbol)
            self._enqueue_gap(gap, error)
            self._enter(_Phase.DRAINING)
            self.drain()

    def probe_answered(self, now: float) -> None:
        """Take note of the answer to a probe."""
        if self._recovery is not None:
            self._carry_out(self._recovery.probe_answered(now))

    @property
    def deadline(self) -> float:
        """When to call `wake`; infinity for never."""
        return min(self._recovery.deadline, self._give_up_at) if self._recovery is not None else NEVER

    def wake(self, now: float) -> None:
        """Do what is due. Harmless when nothing is."""
        if self._recovery is None:
            return
        if now < self._give_up_at:
            self._carry_out(self._recovery.wake(now))
        elif self._queue or now < self._host.starved_at + HOLD_TIMEOUT:
            # The callbacks are slow, not history: ticks found for this gap, or unread answers, wait for room.
            self._give_up_at = now + HOLD_TIMEOUT
            self._host.reschedule()
        else:
            self._carry_out(self._recovery.overdue(now))

    def end(self, reason: str) -> None:
        """End the stream: deliver everything that was received, even without room."""
        # What is held isn't recorded: a recorder that starts again resumes before the gap.
        self._ends = True
        if self._recovery is not None:
            self._carry_out(self._recovery.finish(reason))
        self.end_resume(reason=reason)
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
            if self._job is not None:
                # The pages so far were delivered, or `Recovery` keeps them.
                self._job.acknowledge()
            if self._phase is _Phase.DRAINING:
                self._queue = None
                self._enter(_Phase.LIVE)
        if self._phase is _Phase.LIVE or (was_full and self._allowance.room > 0):
            self._host.resume_reading()

    def _deliver_next(self, room: int) -> None:
        assert self._queue is not None
        entry = self._queue.popleft()
        if isinstance(entry, Event):
            self._allowance.used -= 1
            if entry.greeks is not None:
                self._deliver_greeks(entry, entry.greeks, monotonic())
            else:
                self._delivery.put_event(entry)
            return
        if len(entry) > room:
            self._queue.appendleft(entry[room:])
            entry = entry[:room]
        self._allowance.used -= len(entry)
        self._counters.count_ticks(entry, monotonic())
        self._delivery.put_ticks(entry)

    def _enqueue(self, entry: list[Tick] | Event) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(entry)
        if isinstance(entry, Event):
            self._allowance.used += 1
        else:
            self._allowance.used += len(entry)
            self._window.extend(entry)
            if self._tap is not None:
                self._tap.put_leaving(entry, record=not self._ends)

    def _enqueue_live(self, ticks: list[Tick]) -> None:
        """Enqueue ticks of which the first is live."""
        self._begin_live(ticks[0]["timestamp"])
        self._enqueue(ticks)

    def _begin_live(self, first: datetime) -> None:
        """End a gap that waited for the next live message. `first` is its time."""
        if self._phase is _Phase.REPORTING:
            assert self._window.last is not None
            self._enqueue_gap(Gap(self._symbol, self._window.last, first, False, 0))
        elif self._phase is _Phase.GIVEN_UP:
            self._window.restart(first)
        self._enter(_Phase.DRAINING)

    def _enqueue_gap(self, gap: Gap, error: GapNotFilled | None = None) -> None:
        """`error`: why it isn't filled."""
        self._counters.gaps += 1
        self._counters.unfilled_gaps += not gap.filled
        self._counters.filled_ticks += gap.ticks
        if self._tap is not None and not self._ends:
            self._tap.put_gap(gap, None if error is None else error.reason)
        self._enqueue(Event(gap, self._symbol))
        if error is not None:
            event = Event(error, self._symbol)
            self._record(event)
            self._enqueue(event)

    # A gap is recovered.

    def _hold(self, count: int, step: Step | None) -> None:
        """Count held entries, and take the step that follows from them."""
        self._counters.held += count
        self._allowance.used += count
        self._carry_out(step)
        too_many = self._counters.held > max(self._allowance.size, MAX_HELD)
        if too_many and self._recovery is not None and not self._recovery.can_pause:
            # The ticks' own time doesn't advance, or only events arrive: this could go on forever.
            self._carry_out(self._recovery.finish("more arrived during the gap than can be held"))

    def _carry_out(self, step: Step | None) -> None:
        match step:
            case Fetch():
                self._fetch(step)
            case Probe():
                self._host.send_probe()
                self._give_up_at = min(self._give_up_at, monotonic() + HOLD_TIMEOUT)
            case Deliver():
                self._enqueue(step.ticks)
                if self._give_up_at < NEVER:
                    self._give_up_at = monotonic() + HOLD_TIMEOUT
                if self._hold_left < NEVER:
                    self._hold_left = HOLD_TIMEOUT
            case Connect():
                self._host.connect()
            case Report():
                self._host.report(step.error)
            case Finish():
                self._finish(step)
        self.drain()
        self._host.reschedule()

    def _fetch(self, step: Fetch) -> None:
        assert self._backfiller is not None
        self._drop_job()
        self._job = job = Job(self._symbol, step.start, step.end, self._begin_job, self._take_page, self._end_job)
        if self._recovery is not None:
            job.overlap, job.on_restart = step.overlap, self._recovery.restarted
        self._backfiller.fetch(job)

    def _begin_job(self) -> None:
        """The fetch begins. With many gaps at once, it had to wait for its turn, which doesn't count."""
        if self._counters.held:
            self._give_up_at = min(self._give_up_at, monotonic() + HOLD_TIMEOUT)
            self._host.reschedule()

    def _take_page(self, ticks: list[Tick]) -> None:
        assert self._recovery is not None
        if self._job is not None:
            self._recovery.note_bad_ticks(self._job.take_bad())
        self._carry_out(self._recovery.page(self.wanted(ticks), ticks[-1]["timestamp"]))

    def _end_job(self, reason: str | None) -> None:
        assert self._recovery is not None
        recovery, job, now = self._recovery, self._job, monotonic()
        if job is not None:
            recovery.note_bad_ticks(job.take_bad())
        self._job = None
        if reason is None:
            self._carry_out(recovery.fetched(now))
        else:
            self._carry_out(recovery.fetch_failed(reason, job is not None and job.temporary, now))

    def _drop_job(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def _finish(self, step: Finish) -> None:
        self._drop_job()
        self._recovery = None
        self._host.connect()
        self._give_up_at = self._hold_left = NEVER
        self._enter(_Phase.DRAINING if step.error is None else _Phase.GIVEN_UP)
        # Held entries are counted again when they join the queue.
        self._allowance.used -= self._counters.held
        self._counters.held = 0
        if step.before:
            self._enqueue(step.before)
        self._enqueue_gap(step.gap, step.error)
        for entry in step.runs_after():
            if isinstance(entry, Event):
                self._record(entry)
                self._enqueue(entry)
            else:
                self._enqueue_live(entry)
        if self._tap is not None:
            self._tap.put_rest(self._symbol, record=not self._ends)
