"""From the network side to the user's callbacks: through a bounded queue and a thread of its own, or inline.

The network thread calls `room`, `put_ticks`, `put_event` and, once, `finish`. Where `room` was 0 it stops reading,
says so with `want_room`, and is called back (`on_room`) when it is worth going on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat, starmap
from typing import Protocol

from ..errors import SlowConsumer, TicksDropped
from ..streaming.counters import Counters
from ..streaming.interfaces import Delivery
from ..values import NO_BOUND, Event, Tick
from .callbacks import CallbackRunner
from .iteration import Iterations
from .queues import TickQueue
from .recent import Recent

#: A queue is nearly full above this share, and has recovered below that one.
HIGH, LOW = 0.8, 0.25
#: Reading goes on when the queue has fallen to this share.
RESUME = 0.5
#: How many entries are put before a sleeping callback thread is woken in the midst of a burst. To wake it costs two
#: context switches, during which neither thread works.
HAND_OVER = 4_096
#: Seconds over which a queue that does not recover counts as one that stays nearly full.
SLOW_AFTER = 1.0
#: Seconds between two reports of dropped ticks of one pair.
DROP_REPORT_INTERVAL = 1.0

#: Called when the last callback has returned, with what a callback raised to end everything, if one did.
OnEnd = Callable[[BaseException | None], None]


class Dispatcher(Delivery, Protocol):
    """The callback side of one run, from start to join."""

    @property
    def peak(self) -> int: ...

    def start(self) -> None: ...

    def finish(self) -> None:
        """Nothing more will be put."""

    def abandon(self) -> None:
        """Begin no further call. From any thread."""

    def join(self, timeout: float) -> None:
        """Wait for the thread, if there is one and it is not the calling one."""

    def depth(self) -> int: ...

    def depths(self) -> dict[str, int]: ...

    def runs_here(self) -> bool:
        """Whether the calling thread is the one that runs callbacks."""


class InlineDelivery:
    """Callbacks run on the network thread. Only a `for tick in listener` may make it wait for room."""

    peak = 0

    def __init__(
        self, runner: CallbackRunner, iterations: Iterations, on_end: OnEnd, recent: Recent | None = None
    ) -> None:
        self._runner = runner
        self._recent = recent
        self._on_end = on_end
        self._thread: int | None = None
        self.room = iterations.room
        self.want_room = iterations.want_room

    def start(self) -> None:
        """There is no thread to start."""

    def put_ticks(self, ticks: list[Tick]) -> None:
        self._thread = threading.get_ident()
        if self._recent is not None:
            self._recent.extend(ticks)
        self._runner.run_ticks(ticks)

    def put_event(self, event: Event) -> None:
        self._thread = threading.get_ident()
        self._runner.run_event(event)

    def finish(self) -> None:
        self._on_end(None)

    def abandon(self) -> None:
        self._runner.abandon()

    def join(self, timeout: float) -> None:
        """There is no thread of its own."""

    def flush(self) -> None:
        """Nothing is held back."""

    def depth(self) -> int:
        return 0

    def depths(self) -> dict[str, int]:
        return {}

    def runs_here(self) -> bool:
        return threading.get_ident() == self._thread


class ThreadDelivery:
    """Callbacks run on a thread of their own, which sleeps while the queue is empty."""

    def __init__(
        self,
        runner: CallbackRunner,
        queue: TickQueue,
        size: int,
        counters: Mapping[str, Counters],
        on_room: Callable[[], None],
        on_end: OnEnd,
        name: str,
        recent: Recent | None = None,
    ) -> None:
        self.peak = 0
        self.room = queue.room
        self.depth = queue.depth
        self.depths = queue.depths
        self._runner = runner
        self._queue = queue
        self._size = size
        self._counters = counters
        self._on_room = on_room
        self._on_end = on_end
        self._recent = recent
        self._bell = Wakeup()
        self._finished = False
        #: How many entries were ever put.
        self._put = 0
        #: How many entries were put since the callback thread was last woken.
        self._pending = 0
        self._room_wanted = False
        self._dropped = _Dropped()
        self._slow = _SlowWatch(size)
        self._urgent: deque[Event] = deque()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    # The network side's calls.

    def start(self) -> None:
        self._thread.start()

    def want_room(self) -> None:
        self._room_wanted = True
        self._interrupt()

    def put_ticks(self, ticks: list[Tick]) -> None:
        if self._recent is not None:
            self._recent.extend(ticks)
        waited, pair = self._queue.depth(), ticks[0]["pair"]
        # From here on the ticks are the user's, who may change them.
        dropped = self._queue.put_ticks(ticks)
        if dropped:
            for name, count in dropped.items():
                if counters := self._counters.get(name):
                    counters.dropped += count
            self._dropped.add(dropped)
            self._interrupt()
        self._put += len(ticks)
        depth = self._queue.depth()
        self.peak = max(self.peak, depth)
        if counters := self._counters.get(pair):
            counters.count_waiting(len(ticks), self._put, self._put - depth)
        if self._slow.looks(depth) and self._slow.is_told(waited, depth, time.monotonic()):
            self._urgent.append(Event(SlowConsumer(depth, self._size)))
            self._interrupt()
        self._pending += len(ticks)
        if self._pending >= HAND_OVER:
            self.flush()

    def put_event(self, event: Event) -> None:
        if not self._runner.abandoned:
            self._put += 1
            self._queue.put_event(event)
            self._pending += 1

    def flush(self) -> None:
        if self._pending:
            self._pending = 0
            self._bell.ring()

    def finish(self) -> None:
        self._finished = True
        self._bell.ring()

    def abandon(self) -> None:
        self._runner.abandon()
        self._bell.ring()

    def join(self, timeout: float) -> None:
        if self._thread.is_alive() and not self.runs_here():
            self._thread.join(timeout)

    def _interrupt(self) -> None:
        """Something besides the queue needs a look: one flag, so that a tick pays for one check."""
        self._runner.interrupted = True
        self._bell.ring()

    def runs_here(self) -> bool:
        return threading.current_thread() is self._thread

    # The callback thread.

    def _main(self) -> None:
        crash: BaseException | None = None
        try:
            self._deliver()
        except BaseException as error:
            # SystemExit, KeyboardInterrupt: the callback wants everything to end. join() raises it.
            crash = error
            self._runner.abandon()
        self._queue.clear()
        self._on_end(crash)

    def _deliver(self) -> None:
        runner, pop = self._runner, self._queue.pop
        while not runner.abandoned:
            budget = self._look_aside() if runner.interrupted or self._room_wanted else NO_BOUND
            event: Event | None = None
            # A run of ticks is called for in one loop, which ends at an event, at the end of the queue (IndexError), or
            # when something besides the queue needs a look.
            with contextlib.suppress(IndexError):
                event = runner.run_ticks(starmap(pop, repeat((), budget)))
            if event is not None:
                runner.run_event(event)
            elif not self._await_more():
                return

    def _await_more(self) -> bool:
        """Sleep until there is something to do. False: there will be nothing more."""
        if self._queue.depth() or self._runner.interrupted or self._room_wanted:
            return True
        if self._finished:
            # Looked at once more: what was put before the end was told may have come since the look above.
            if self._queue.depth():
                return True
            self._report_dropped(everything=True)
            return False
        # Whatever was put since that look has rung.
        self._bell.wait(self._dropped.due_in(time.monotonic()))
        if self._dropped:
            self._runner.interrupted = True
        return True

    def _look_aside(self) -> int:
        """Do what stands beside the queue. Returns after how many ticks, at the latest, to look again."""
        # Cleared before the look: what the other side sets meanwhile is seen next time.
        self._runner.interrupted = self._runner.abandoned
        while self._urgent:
            self._runner.run_event(self._urgent.popleft())
        self._report_dropped()
        if self._dropped and self._queue.depth():
            self._runner.interrupted = True
        if not self._room_wanted:
            return NO_BOUND
        surplus = self._queue.depth() - int(self._size * RESUME)
        if surplus > 0:
            return surplus
        self._room_wanted = False
        self._on_room()
        return NO_BOUND

    def _report_dropped(self, everything: bool = False) -> None:
        for pair, count in self._dropped.due(time.monotonic(), everything):
            self._runner.report(TicksDropped(count, symbol=pair))


class Wakeup:
    """Wakes one sleeper. A ring before the sleep is not lost: the sleep ends at once.

    `threading.Event` does the same with a lock made for each wait, and takes ten times as long.
    """

    def __init__(self) -> None:
        #: Held while nobody has rung.
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """From any thread."""
        if self._silent.locked():
            try:  # noqa: SIM105 (in the path of each hand-over)
                self._silent.release()
            except RuntimeError:
                pass  # somebody else has rung in the same moment

    def wait(self, timeout: float | None) -> None:
        """Until the next ring, if none is to be answered already."""
        self._silent.acquire(timeout=-1 if timeout is None else timeout)


class _Dropped:
    """How many ticks of each pair were dropped since it was last reported, and when the next report is due."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._reported: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, dropped: Mapping[str, int]) -> None:
        with self._lock:
            for pair, count in dropped.items():
                self._counts[pair] = self._counts.get(pair, 0) + count

    def due(self, now: float, everything: bool) -> list[tuple[str, int]]:
        if not self._counts:
            return []
        with self._lock:
            ripe = [pair for pair in self._counts if everything or now >= self._due_at(pair)]
            self._reported.update(dict.fromkeys(ripe, now))
            return [(pair, self._counts.pop(pair)) for pair in ripe]

    def due_in(self, now: float) -> float | None:
        """Seconds until the next report; None while there is nothing to report."""
        with self._lock:
            return max(0.0, min(map(self._due_at, self._counts)) - now) if self._counts else None

    def _due_at(self, pair: str) -> float:
        return self._reported.get(pair, -DROP_REPORT_INTERVAL) + DROP_REPORT_INTERVAL


class _SlowWatch:
    """Tells once when a queue stays nearly full, and again only after it had recovered."""

    def __init__(self, size: int) -> None:
        self._high, self._low = size * HIGH, size * LOW
        self._since: float | None = None
        self._told = False

    def looks(self, depth: int) -> bool:
        """Whether there is anything to watch: mostly there is not, and no need to know the time."""
        return self._since is not None or depth > self._high

    def is_told(self, before: int, after: int, now: float) -> bool:
        """The depths are those before and after a put: bursts that fill the queue tell nothing of the time between."""
        if before <= self._low:
            self._since, self._told = None, False
        if self._since is None:
            if after > self._high:
                self._since = now
        elif not self._told and now - self._since >= SLOW_AFTER:
            self._told = True
            return True
        return False
