"""Delivery from the thread that reads to the user's callbacks: through a bounded queue, or inline.

Both classes implement `streaming.interfaces.Delivery`.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain, repeat, starmap
from operator import length_hint

from ..clock import monotonic
from ..connection.loop import EventLoop
from ..connection.relief import RelievedLoop
from ..errors import SlowConsumer, TicksDropped
from ..streaming.counters import Counters
from ..values import NEVER, NO_BOUND, Event, Tick, TimePassed
from .callbacks import CallbackRunner
from .iteration import Iterations
from .queue_peaks import QueuePeaks
from .queues import Entry, TickQueue
from .recent import Recent

#: Fill levels of the queue: nearly full above HIGH, recovered below LOW. Reading resumes at RESUME.
HIGH, LOW, RESUME = 0.8, 0.25, 0.5
#: During a burst, a sleeping callback thread is woken after this many entries. Each wake-up costs two context switches.
BATCH_SIZE = 4_096
#: `SlowConsumer` is reported after the queue was nearly full for this many seconds.
SLOW_AFTER = 1.0
#: Seconds between two reports of dropped ticks for one pair.
DROP_REPORT_INTERVAL = 1.0

#: Called after the last callback. The argument is what a callback raised to end everything, or None.
OnEnd = Callable[[BaseException | None], None]


class InlineDelivery:
    """Runs callbacks on the loop's thread. Only a `for tick in listener` can run out of room."""

    peak = 0

    def __init__(
        self,
        runner: CallbackRunner,
        iterations: Iterations,
        on_crash: Callable[[], None],
        on_end: OnEnd,
        recent: Recent | None = None,
    ) -> None:
        self._runner = runner
        #: Returns the time at the end, for bars.
        self.now: Callable[[], datetime] = _wall_clock
        #: Called when a callback has raised to end everything.
        self._on_crash = on_crash
        self._crash: BaseException | None = None
        self._recent = recent
        self._on_end = on_end
        #: Ticks that arrived after the last callback.
        self._discarded: list[Tick | Event] = []
        self.room = iterations.room
        self.want_room = iterations.want_room

    def new_loop(self, name: str, on_stop: Callable[[], None], on_end: OnEnd) -> EventLoop:
        return EventLoop(f"{name}-network", on_stop, on_end)

    def depth(self) -> int:
        return 0

    def depths(self) -> Mapping[str, int]:
        return {}

    def put_tick(self, tick: Tick) -> None:
        if self._recent is not None:
            self._recent.append(tick)
        ticks = iter((tick,))
        try:
            self._runner.run_pair(ticks, tick["pair"])
        except BaseException as error:
            self._end_by(error)
        if self._runner.abandoned:
            self._discarded += ticks

    def put_ticks(self, ticks: list[Tick], pairs: list[str] | None = None) -> None:
        if self._recent is not None:
            self._recent.extend(ticks)
        self._run(iter(ticks), ticks[0]["pair"] if pairs is None else None)

    def _run(self, ticks: Iterator[Tick], pair: str | None) -> None:
        runner = self._runner
        try:
            if pair is None:
                runner.run_ticks(ticks)
            else:
                runner.run_pair(ticks, pair)
                while length_hint(ticks) and not runner.abandoned:
                    runner.run_pair(ticks, pair)  # the callbacks have changed
        except BaseException as error:
            self._end_by(error)
        # None are left, unless the listener ends.
        self._discarded += ticks

    def put_greeks(self, event: Event) -> None:
        self.put_event(event)

    def put_event(self, event: Event) -> None:
        try:
            self._runner.run_event(event)
        except BaseException as error:
            self._end_by(error)

    def finish(self) -> None:
        self.put_event(_the_end(self.now()))
        self._on_end(self._crash)

    def abandon(self) -> None:
        self._runner.abandon()

    def discard(self) -> None:
        self._runner.discard(self._discarded)

    def _end_by(self, error: BaseException) -> None:
        """A callback raised SystemExit or KeyboardInterrupt to end everything. join() raises it again.

        The loop's thread goes on until its end, which counts the ticks that were received.
        """
        if self._crash is None:
            self._crash = error
        self._runner.abandon()
        self._on_crash()


class ThreadDelivery:
    """Runs callbacks on the thread that reads, or from a queue while the relief reads. See `RelievedLoop`.

    The thread that drives the loop puts, and the callback thread runs. Without the relief they are the same.
    """

    def __init__(
        self,
        runner: CallbackRunner,
        queue: TickQueue,
        counters: Mapping[str, Counters],
        on_room: Callable[[], None],
        on_crash: Callable[[], None],
        on_end: OnEnd,
        recent: Recent | None = None,
    ) -> None:
        #: The highest depth of the queue so far.
        self.peak = 0
        #: Returns the time at the end, for bars.
        self.now: Callable[[], datetime] = _wall_clock
        #: For the loop: see `Timed`.
        self.scheduled = NEVER
        self.queue = queue
        # On the hot path.
        self._depth, self._space = queue.depth, queue.space
        self._runner = runner
        self._counters = counters
        self._on_room, self._on_crash, self._on_end = on_room, on_crash, on_end
        self._recent = recent
        self._crash: BaseException | None = None
        #: Ticks of one pair that are ahead of the queue: read by the callback thread, while nothing waited.
        self._run: Iterator[Tick] | None = None
        self._run_pair = ""
        self._peaks = QueuePeaks(counters)
        #: How many entries were put since the last wake-up, while the relief drives.
        self._pending = 0
        self._room_wanted = False
        self._drops = _DropReports()
        #: When to look next whether earlier reports were taken.
        self._look_at = -NEVER
        #: When `SlowConsumer` is due: None while the queue isn't nearly full, infinity once it's reported.
        self._slow_at: float | None = None
        #: Events that overtake the queue.
        self._urgent: deque[Event] = deque()

    def new_loop(self, name: str, on_stop: Callable[[], None], on_end: OnEnd) -> RelievedLoop:
        self._loop = RelievedLoop(name, on_stop, on_end, self)
        return self._loop

    # On the thread that drives the loop, or on any thread where stated.

    def room(self) -> int:
        # A callback that is fast enough must not cause drops, so what doesn't fit waits for it unread.
        room = self.queue.room() if self._loop.relieved else self._space()
        return room if self._run is None else room - length_hint(self._run)

    def want_room(self) -> None:
        self._room_wanted = True
        self._interrupt()

    def taken_over(self) -> None:
        if self._room_wanted:
            self._on_room()  # a queue that drops ticks has room again

    def depth(self) -> int:
        """Return the number of ticks and events that wait. From any thread."""
        run = self._run
        return self._depth() + (0 if run is None else length_hint(run))

    def depths(self) -> Mapping[str, int]:
        """Return the number of ticks and Greeks of each symbol that wait. From any thread."""
        depths, run = Counter(self.queue.depths()), self._run
        if run is not None:
            depths[self._run_pair] += length_hint(run)
        return depths

    def put_tick(self, tick: Tick) -> None:
        if self._loop.relieved or self._run is not None or self._depth():
            self.put_ticks([tick])
            return
        if self._recent is not None:
            self._recent.append(tick)
        self._run, self._run_pair = iter((tick,)), tick["pair"]
        self._loop.calls_wait = True

    def put_ticks(self, ticks: list[Tick], pairs: list[str] | None = None) -> None:
        if self._recent is not None:
            self._recent.extend(ticks)
        if pairs is None and self.queue.keeps_all and not (self._loop.relieved or self._run or self._depth()):
            self._put_run(ticks)
            return
        depth_before, pair, count = self._depth(), ticks[0]["pair"], len(ticks)
        # From here on the ticks belong to the user, who may change them.
        dropped = self.queue.put_ticks(ticks)
        replaced = self._count_dropped(dropped)
        depth = self._depth()
        if pairs is None or count == 1:
            self._peaks.put_one(pair, count - replaced.get(pair, 0), depth)
        else:
            self._peaks.put_mixed(_new_entries(pairs, replaced) if replaced else pairs, depth)
        self._count_put(count, depth_before, depth)

    def _put_run(self, ticks: list[Tick]) -> None:
        """Let callbacks have ticks of one pair without the detour of the queue: nothing waits there."""
        pair, count = ticks[0]["pair"], len(ticks)
        self._run, self._run_pair = iter(ticks), pair
        self._loop.calls_wait = True
        self.peak = max(self.peak, count)
        if (counters := self._counters.get(pair)) is not None and count > counters.queue_peak:
            counters.queue_peak = count

    def put_greeks(self, event: Event) -> None:
        if self._runner.abandoned:
            return
        depth_before, symbol = self._depth(), str(event.symbol)
        replaced = self._count_dropped(self.queue.put_greeks(event))
        depth = self._depth()
        self._peaks.put_one(symbol, 1 - replaced.get(symbol, 0), depth)
        self._count_put(1, depth_before, depth)

    def put_event(self, event: Event) -> None:
        if not self._runner.abandoned:
            self.queue.put_event(event)
            self._peaks.put_one("", 1, self._depth())
            self._have_run(1)

    def _count_dropped(self, dropped: dict[str, int]) -> Mapping[str, int]:
        """Count what was dropped, and have it reported. Return how many entries took the place of older ones."""
        if not dropped:
            return dropped
        for name, count in dropped.items():
            if counters := self._counters.get(name):
                counters.dropped += count
        self._drops.add(dropped)
        self.wake(monotonic())
        self._loop.schedule(self)
        return dropped if self.queue.replaces else {}

    def _count_put(self, count: int, depth_before: int, depth: int) -> None:
        self.peak = max(self.peak, depth)
        if self._slow_at is not None or depth > self.queue.size * HIGH:
            self._check_slow(depth_before, depth)
        self._have_run(count)

    def _have_run(self, count: int) -> None:
        """Have the callback thread run what was put."""
        if not self._loop.relieved:
            self._loop.calls_wait = True
            return
        self._pending += count
        if self._pending >= BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._pending = 0
            self._loop.wake_calls()

    @property
    def deadline(self) -> float:
        """When the next report of dropped ticks is due."""
        return max(self._drops.due_at, self._look_at)

    def wake(self, now: float) -> None:
        """Have the reports of dropped ticks delivered that are due."""
        if self._urgent:
            # A callback keeps earlier ones waiting. Meanwhile, the counts add up.
            self._look_at = now + DROP_REPORT_INTERVAL
            return
        reports = self._drops.take_due(now)
        if reports:
            self._urgent.extend(Event(TicksDropped(count, symbol=pair), pair) for pair, count in reports)
            self._interrupt()

    def _check_slow(self, before: int, after: int) -> None:
        """Report a queue that stays nearly full: once, and again only after it had recovered.

        Args:
            before: Its depth before a put.
            after: Its depth after the put. A burst may fill the queue only briefly.
        """
        now, size = monotonic(), self.queue.size
        if before <= size * LOW:
            self._slow_at = None
        if self._slow_at is None:
            if after > size * HIGH:
                self._slow_at = now + SLOW_AFTER
        elif now >= self._slow_at:
            self._slow_at = math.inf
            self._urgent.append(Event(SlowConsumer(after, size)))
            self._interrupt()

    def _interrupt(self) -> None:
        """Have the callback thread look beyond the queue. There is only one flag, so that a tick costs one check."""
        self._runner.interrupted = True
        self._loop.call_soon()

    def finish(self) -> None:
        """Do nothing: the loop calls `run_last` at its end."""

    def abandon(self) -> None:
        """Begin no further call. From any thread."""
        self._runner.abandon()
        self._loop.wake_calls()

    def discard(self) -> None:
        """Count and report what no callback will get. At the end, when nothing is put any more."""
        waiting = chain(self._run or (), _drain(self.queue))
        # Those that the overflow policy dropped are counted already, but their report may not have been due yet.
        reported = {
            str(event.symbol): event.payload.count for event in self._urgent if isinstance(event.payload, TicksDropped)
        }
        self._runner.discard(waiting, Counter(reported) + Counter(dict(self._drops.take_due(math.inf))))

    # On the callback thread.

    @property
    def abandoned(self) -> bool:
        return self._runner.abandoned

    def run(self) -> None:
        runner, depth = self._runner, self._depth
        try:
            while not runner.abandoned:
                limit = self._handle_interrupt() if runner.interrupted or self._room_wanted else NO_BOUND
                if (run := self._run) is not None:
                    runner.run_pair(run, self._run_pair)
                    if length_hint(run):
                        continue  # interrupted, or the callbacks have changed
                    self._run = None
                if depth():
                    self._run_queue(limit)
                if not (depth() or runner.interrupted or self._room_wanted):
                    return
        except BaseException as error:
            # A callback raised SystemExit or KeyboardInterrupt to end everything. join() raises it again.
            if self._crash is None:
                self._crash = error
            self.abandon()
            self._on_crash()

    def _run_queue(self, limit: int) -> None:
        """Run callbacks for entries of the queue, up to `limit` ticks or an event."""
        event: Event | None = None
        # One call runs a whole batch of ticks. It ends at an event, at the end of the queue (IndexError), at the limit,
        # or when it is interrupted.
        with contextlib.suppress(IndexError):
            event = self._runner.run_ticks(starmap(self.queue.pop, repeat((), limit)))
        if event is not None:
            self._runner.run_event(event)

    def run_last(self) -> None:
        self.run()
        if not self._runner.abandoned:
            self.wake(math.inf)
            self.queue.put_event(_the_end(self.now()))
            self.run()
        self._on_end(self._crash)

    def _handle_interrupt(self) -> int:
        """Handle events and reports besides the queue. Return how many ticks may run before the next call."""
        # Clear the flag first, so that an interrupt from now on is handled next time.
        self._runner.interrupted = self._runner.abandoned
        while self._urgent and not self._runner.abandoned:
            self._runner.run_event(self._urgent.popleft())
        if not self._room_wanted:
            return NO_BOUND
        surplus = self.depth() - int(self.queue.size * RESUME)
        if surplus > 0:
            return surplus
        self._room_wanted = False
        self._on_room()
        return NO_BOUND


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def _the_end(now: datetime) -> Event:
    """Return the event with which the bars that are still open reach their callbacks."""
    return Event(TimePassed(now, at_end=True))


def _new_entries(pairs: list[str], replaced: Mapping[str, int]) -> list[str]:
    """Return the pairs that got a new entry, in order. The ticks of the others have replaced older ones."""
    return [pair for pair, count in Counter(pairs).items() if count > replaced.get(pair, 0)]


def _drain(queue: TickQueue) -> Iterator[Entry]:
    with contextlib.suppress(IndexError):
        while True:
            yield queue.pop()


class _DropReports:
    """Counts the dropped ticks of each pair since its last report, and knows when the next report is due."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        #: The earliest time of each pair's next report. A pair without a report yet isn't in here.
        self._due_at: dict[str, float] = {}

    def add(self, dropped: Mapping[str, int]) -> None:
        for pair, count in dropped.items():
            self._counts[pair] = self._counts.get(pair, 0) + count

    def take_due(self, now: float) -> list[tuple[str, int]]:
        """Remove and return the counts whose report is due."""
        due = [pair for pair in self._counts if now >= self._due_at.get(pair, now)]
        self._due_at.update(dict.fromkeys(due, now + DROP_REPORT_INTERVAL))
        return [(pair, self._counts.pop(pair)) for pair in due]

    @property
    def due_at(self) -> float:
        """When the next report is due; infinity if there is nothing to report."""
        return min((self._due_at.get(pair, -NEVER) for pair in self._counts), default=NEVER)
