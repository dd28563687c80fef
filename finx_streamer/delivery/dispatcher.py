"""Delivery from the network thread to the user's callbacks: through a bounded queue and a thread, or inline.

Both classes implement `streaming.interfaces.Delivery`.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat, starmap

from ..clock import monotonic
from ..errors import SlowConsumer, TicksDropped
from ..streaming.counters import Counters
from ..values import NO_BOUND, Event, Tick
from .callbacks import CallbackRunner
from .iteration import Iterations
from .queue_peaks import QueuePeaks
from .queues import BlockQueue, Entry, TickQueue
from .recent import Recent
from .wakeup import Wakeup

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
    """Runs callbacks on the network thread. Only a `for tick in listener` can run out of room."""

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
        #: Called when a callback has raised to end everything.
        self._on_crash = on_crash
        self._crash: BaseException | None = None
        self._recent = recent
        self._on_end = on_end
        self._thread: int | None = None
        #: Always empty.
        self.queue = BlockQueue(0)
        #: Ticks that arrived after the last callback.
        self._discarded: list[Tick | Event] = []
        self.room = iterations.room
        self.want_room = iterations.want_room

    def start(self) -> None:
        """Do nothing: there is no callback thread."""

    def put_ticks(self, ticks: list[Tick], pairs: list[str] | None = None) -> None:
        self._thread = threading.get_ident()
        if self._recent is not None:
            self._recent.extend(ticks)
        entries = iter(ticks)
        try:
            self._runner.run_ticks(entries)
        except BaseException as error:
            self._end_by(error)
        # None are left, unless the listener ends.
        self._discarded += entries

    def put_tick(self, tick: Tick) -> None:
        self.put_ticks([tick])

    def put_greeks(self, event: Event) -> None:
        self.put_event(event)

    def put_event(self, event: Event) -> None:
        self._thread = threading.get_ident()
        try:
            self._runner.run_event(event)
        except BaseException as error:
            self._end_by(error)

    def finish(self) -> None:
        self._on_end(self._crash)

    def abandon(self) -> None:
        self._runner.abandon()

    def discard(self) -> None:
        self._runner.discard(self._discarded)

    def _end_by(self, error: BaseException) -> None:
        """A callback raised SystemExit or KeyboardInterrupt to end everything. join() raises it again.

        The network thread goes on until its end, which counts the ticks that were received.
        """
        if self._crash is None:
            self._crash = error
        self._runner.abandon()
        self._on_crash()

    def join(self, timeout: float) -> None:
        """Do nothing: there is no callback thread."""

    def flush(self) -> None:
        """Do nothing: callbacks have already run."""

    def runs_here(self) -> bool:
        return threading.get_ident() == self._thread


class ThreadDelivery:
    """Runs callbacks on a thread of their own, which sleeps while the queue is empty."""

    def __init__(
        self,
        runner: CallbackRunner,
        queue: TickQueue,
        counters: Mapping[str, Counters],
        on_room: Callable[[], None],
        on_end: OnEnd,
        name: str,
        recent: Recent | None = None,
    ) -> None:
        #: The highest depth of the queue so far.
        self.peak = 0
        self.room = queue.room
        self._runner = runner
        self.queue = queue
        self._counters = counters
        self._on_room = on_room
        self._on_end = on_end
        self._recent = recent
        self._wakeup = Wakeup()
        self._finished = False
        self._peaks = QueuePeaks(counters)
        #: How many entries were put since the last wake-up.
        self._pending = 0
        self._room_wanted = False
        self._drops = _DropReports()
        #: When `SlowConsumer` is due: None while the queue isn't nearly full, infinity once it's reported.
        self._slow_at: float | None = None
        #: Events that overtake the queue.
        self._urgent: deque[Event] = deque()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    # Called by the network thread, or by any thread where stated.

    def start(self) -> None:
        self._thread.start()

    def want_room(self) -> None:
        self._room_wanted = True
        self._interrupt()

    def put_ticks(self, ticks: list[Tick], pairs: list[str] | None = None) -> None:
        if self._recent is not None:
            self._recent.extend(ticks)
        depth_before, pair, count = self.queue.depth(), ticks[0]["pair"], len(ticks)
        # From here on the ticks belong to the user, who may change them.
        dropped = self.queue.put_ticks(ticks)
        replaced = self._count_dropped(dropped)
        depth = self.queue.depth()
        if pairs is None or count == 1:
            self._peaks.put_one(pair, count - replaced.get(pair, 0), depth)
        else:
            self._peaks.put_mixed(_new_entries(pairs, replaced) if replaced else pairs, depth)
        self._count_put(count, depth_before, depth)

    def put_tick(self, tick: Tick) -> None:
        self.put_ticks([tick])

    def put_greeks(self, event: Event) -> None:
        if self._runner.abandoned:
            return
        depth_before, symbol = self.queue.depth(), str(event.symbol)
        replaced = self._count_dropped(self.queue.put_greeks(event))
        depth = self.queue.depth()
        self._peaks.put_one(symbol, 1 - replaced.get(symbol, 0), depth)
        self._count_put(1, depth_before, depth)

    def _count_dropped(self, dropped: dict[str, int]) -> Mapping[str, int]:
        """Count what was dropped, and have it reported. Return how many entries took the place of older ones."""
        if not dropped:
            return dropped
        for name, count in dropped.items():
            if counters := self._counters.get(name):
                counters.dropped += count
        self._drops.add(dropped)
        self._interrupt()
        return dropped if self.queue.replaces else {}

    def _count_put(self, count: int, depth_before: int, depth: int) -> None:
        self.peak = max(self.peak, depth)
        if self._slow_at is not None or depth > self.queue.size * HIGH:
            self._check_slow(depth_before, depth)
        self._pending += count
        if self._pending >= BATCH_SIZE:
            self.flush()

    def put_event(self, event: Event) -> None:
        if not self._runner.abandoned:
            self.queue.put_event(event)
            self._peaks.put_one("", 1, self.queue.depth())
            self._pending += 1

    def flush(self) -> None:
        if self._pending:
            self._pending = 0
            self._wakeup.wake()

    def finish(self) -> None:
        """No more entries will be put. Deliver the rest, then call `on_end`."""
        self._finished = True
        self._wakeup.wake()

    def abandon(self) -> None:
        """Begin no further call. From any thread."""
        self._runner.abandon()
        self._wakeup.wake()

    def discard(self) -> None:
        """Count and report what no callback will get. At the end, when nothing is put any more."""
        # Those that the overflow policy dropped are counted already, but their report may not have been due yet.
        self._runner.discard(_drain(self.queue), dict(self._drops.take_due(monotonic(), everything=True)))

    def join(self, timeout: float) -> None:
        """Wait for the callback thread, unless it is the calling one. From any thread."""
        if self._thread.is_alive() and not self.runs_here():
            self._thread.join(timeout)

    def _interrupt(self) -> None:
        """Have the callback thread look beyond the queue. There is only one flag, so that a tick costs one check."""
        self._runner.interrupted = True
        self._wakeup.wake()

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

    def runs_here(self) -> bool:
        """Whether callbacks run on the calling thread."""
        return threading.current_thread() is self._thread

    # The callback thread.

    def _main(self) -> None:
        crash: BaseException | None = None
        try:
            self._deliver()
        except BaseException as error:
            # A callback raised SystemExit or KeyboardInterrupt to end everything. join() raises it again.
            crash = error
            self._runner.abandon()
        self._on_end(crash)

    def _deliver(self) -> None:
        runner, pop = self._runner, self.queue.pop
        while not runner.abandoned:
            limit = self._handle_interrupt() if runner.interrupted or self._room_wanted else NO_BOUND
            event: Event | None = None
            # One call runs a whole batch of ticks. It ends at an event, at the end of the queue (IndexError), at the
            # limit, or when it is interrupted.
            with contextlib.suppress(IndexError):
                event = runner.run_ticks(starmap(pop, repeat((), limit)))
            if event is not None:
                runner.run_event(event)
            elif not self._wait_for_work():
                return

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do. Return False at the end."""
        # Read before the depth: no entry is put after the end.
        finished = self._finished
        if self.queue.depth() or self._runner.interrupted or self._room_wanted:
            return True
        if finished:
            self._report_drops(everything=True)
            return False
        # Returns at once if an entry was put since the check.
        self._wakeup.wait(self._drops.due_in(monotonic()))
        if self._drops:
            self._runner.interrupted = True
        return True

    def _handle_interrupt(self) -> int:
        """Handle events and reports besides the queue. Return how many ticks may run before the next call."""
        # Clear the flag first, so that an interrupt from now on is handled next time.
        self._runner.interrupted = self._runner.abandoned
        while self._urgent:
            self._runner.run_event(self._urgent.popleft())
        self._report_drops()
        if self._drops and self.queue.depth():
            self._runner.interrupted = True
        if not self._room_wanted:
            return NO_BOUND
        surplus = self.queue.depth() - int(self.queue.size * RESUME)
        if surplus > 0:
            return surplus
        self._room_wanted = False
        self._on_room()
        return NO_BOUND

    def _report_drops(self, everything: bool = False) -> None:
        for pair, count in self._drops.take_due(monotonic(), everything):
            self._runner.report(TicksDropped(count, symbol=pair))


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
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        #: The earliest time of each pair's next report. A pair without a report yet isn't in here.
        self._due_at: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, dropped: Mapping[str, int]) -> None:
        with self._lock:
            for pair, count in dropped.items():
                self._counts[pair] = self._counts.get(pair, 0) + count

    def take_due(self, now: float, everything: bool) -> list[tuple[str, int]]:
        """Remove and return the counts whose report is due, or all of them."""
        with self._lock:
            due = [pair for pair in self._counts if everything or now >= self._due_at.get(pair, now)]
            self._due_at.update(dict.fromkeys(due, now + DROP_REPORT_INTERVAL))
            return [(pair, self._counts.pop(pair)) for pair in due]

    def due_in(self, now: float) -> float | None:
        """Return the seconds until the next report. None if there is nothing to report."""
        with self._lock:
            return min((max(0.0, self._due_at.get(pair, now) - now) for pair in self._counts), default=None)
