"""The event loop: one thread that waits for sockets, deadlines and commands from other threads.

A listener and a FunctionClient each run their own loop. Everything that a loop owns (sockets, sessions, streams, calls)
is touched by the thread that drives it only, so none of it needs a lock. `RelievedLoop` lets two threads take turns.
"""

from __future__ import annotations

import _thread
import contextlib
import heapq
import itertools
import select
import selectors
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from ..clock import monotonic
from ..values import NEVER

#: Seconds; pollers can't wait longer.
LONGEST_WAIT = 3_600.0
#: The heap of deadlines may hold this many outdated entries before it is swept.
_OUTDATED_ENTRIES = 64
#: `on_turn` is called after this many turns that leave something to do at once: a flood must not delay it forever.
_MOST_BUSY_TURNS = 16

Command = Callable[[], None]


class Poller:
    """Watches file descriptors for `READ`, `WRITE` or both. One thread uses it."""

    READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, events: int, /) -> None:
        self._selector.register(fd, events)

    def modify(self, fd: int, events: int, /) -> None:
        self._selector.modify(fd, events)

    def unregister(self, fd: int, /) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait up to `timeout` seconds (None: no limit) for descriptors with events.

        An error or the end of a connection is neither `READ` nor `WRITE`. Try both then.
        """
        return [(key.fd, events) for key, events in self._selector.select(timeout)]

    def close(self) -> None:
        self._selector.close()


if sys.platform == "linux":

    class EpollPoller(Poller):
        """epoll without `selectors`, whose objects cost a tenth of a tick's way from the socket to the callback."""

        READ, WRITE = select.EPOLLIN, select.EPOLLOUT

        def __init__(self) -> None:
            epoll = select.epoll()
            for name in ("register", "modify", "unregister", "poll", "close"):
                setattr(self, name, getattr(epoll, name))


def new_poller() -> Poller:
    """Return the fastest poller that there is now: gevent removes epoll when it patches the process."""
    return EpollPoller() if sys.platform == "linux" and hasattr(select, "epoll") else Poller()


class SocketOwner(Protocol):
    """Something that owns a socket on the loop."""

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...


class Timed(Protocol):
    """Something with a deadline. The loop calls `wake` when it has passed."""

    #: The earliest deadline in the loop's heap; only the loop sets it. Initially `NEVER`.
    scheduled: float

    @property
    def deadline(self) -> float: ...

    def wake(self, now: float) -> None: ...


class EventLoop:
    """One thread, its poller, its deadlines and its inbox.

    `start`, `post`, `stop`, `join` and `alive` are for any thread; everything else is for the loop's own.

    Args:
        name: The thread's name.
        on_stop: Called once on the loop's thread after the last turn: release everything the loop owns.
        on_end: Called last, with the exception that crashed the loop, if one did.
    """

    def __init__(
        self,
        name: str,
        on_stop: Command,
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        #: `monotonic()` before the last turn's events, and after them: near enough to now for a timeout or a rate.
        self.now = monotonic()
        #: Set when callbacks are due that only `_run_calls` may run.
        self.calls_wait = False
        #: Set when the last read filled its buffer: there is more to read at once.
        self.read_again = False
        #: `monotonic()` at the beginning of the turn.
        self.polled_at = self.now
        #: How many turns in a row have left something to do at once.
        self._busy_turns = 0
        self.poller = new_poller()
        self._on_stop, self._on_end = on_stop, on_end
        #: Called after each turn that leaves nothing to do at once, and now and then if none does.
        self._on_turn: Command | None = None
        self._owners: dict[int, SocketOwner] = {}
        self._deadlines: list[tuple[float, int, Timed]] = []
        self._order = itertools.count()
        self._sweep_at = _OUTDATED_ENTRIES
        self._deferred: deque[Command] = deque()
        #: Each command, and what to do instead if the loop ends before it can run.
        self._inbox: deque[tuple[Command, Command]] = deque()
        self._stopping = False
        self._closed = False
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        # For a loop that never starts, or whose `post` was interrupted.
        for end in (self._waker, self._woken):
            weakref.finalize(self, end.close).atexit = False
        self._woken_fd = self._woken.fileno()
        self.poller.register(self._woken_fd, self.poller.READ)
        #: One entry per thread inside `post`. Once the loop has ended, the last one out closes the waker in `_wakers`.
        self._posting: deque[None] = deque()
        self._wakers = deque([self._waker])
        self._start_lock = threading.Lock()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    # From any thread.

    def start(self) -> None:
        """Start the thread, unless it runs. Raises RuntimeError, and closes, if the system has no more threads."""
        # From a thread that Ctrl-C can't reach: an interrupt inside Thread.start() would leave it half started.
        outcome: SimpleQueue[BaseException | None] = SimpleQueue()
        try:
            _thread.start_new_thread(self._start_thread, (outcome,))
        except RuntimeError:
            self._close()
            raise
        error = outcome.get()
        if error is not None:
            raise error

    def post(self, command: Command, discard: Command = lambda: None) -> bool:
        """Run a command soon on the loop's thread.

        Returns False if the loop has ended. `discard` runs instead if it ends before it gets to the command.
        """
        # No lock: a signal handler may re-enter through stop().
        posted = command, discard
        self._posting.append(None)
        try:
            if self._closed:
                return False
            self._inbox.append(posted)
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")
            return not self._is_left_over(posted)
        finally:
            self._posting.pop()
            if self._closed:
                self._close_waker()

    def stop(self) -> None:
        """End after the current turn."""
        self.post(self.end)

    def leave(self) -> None:
        """In a forked process: its copy of the thread, if a callback has forked, ends. The sockets are the parent's."""
        self._stopping = True
        self._owners.clear()
        self._on_stop = lambda: None

    @property
    def alive(self) -> bool:
        """Whether the thread runs and isn't the calling one."""
        return self._thread.is_alive() and not self.runs_here

    @property
    def runs_here(self) -> bool:
        return threading.current_thread() is self._thread

    def join(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for the thread to end, unless it is the calling one."""
        if self.alive:
            self._thread.join(timeout)

    # On the loop's thread.

    def end(self) -> None:
        """End after the current turn."""
        self._stopping = True

    def watch(self, fd: int, owner: SocketOwner, events: int, before: int) -> None:
        """Watch a descriptor for `events`, where it was watched for `before`; 0 is not at all."""
        if not events:
            self.poller.unregister(fd)
            del self._owners[fd]
        elif before:
            self.poller.modify(fd, events)
        else:
            self.poller.register(fd, events)
            self._owners[fd] = owner

    def schedule(self, timed: Timed) -> None:
        """Note a deadline that may be earlier than before. A later one needs no call: waking early is harmless."""
        deadline = timed.deadline
        if deadline < timed.scheduled:
            timed.scheduled = deadline
            heapq.heappush(self._deadlines, (deadline, next(self._order), timed))
            if len(self._deadlines) > self._sweep_at:
                self._deadlines = [entry for entry in self._deadlines if entry[0] == entry[2].scheduled]
                heapq.heapify(self._deadlines)
                self._sweep_at = _OUTDATED_ENTRIES + 2 * len(self._deadlines)

    def unschedule(self, timed: Timed) -> None:
        """Forget the deadlines of something that has ended."""
        timed.scheduled = NEVER

    def defer(self, command: Command) -> None:
        """Run a command at the end of this turn, when nothing is half changed."""
        self._deferred.append(command)

    def _start_thread(self, outcome: SimpleQueue[BaseException | None]) -> None:
        error: BaseException | None = None
        try:
            with self._start_lock:
                if self._thread.ident is None:
                    try:
                        self._start_threads()
                    except BaseException:
                        self._close()
                        raise
        except BaseException as cause:
            error = cause
        # In any case: `start` waits for it.
        outcome.put(error)

    def _start_threads(self) -> None:
        self._thread.start()

    def _main(self) -> None:
        crash: BaseException | None = None
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            crash = error
        self._finish(crash)

    def _finish(self, crash: BaseException | None) -> None:
        try:
            self._close()
        finally:
            self._on_end(crash)

    def _run_calls(self) -> bool:
        """Run callbacks that are due. Return False if another thread drives the loop since then."""
        raise NotImplementedError

    def _turn(self) -> bool:
        """Wait, and handle what happens. Return False if another thread drives the loop since then."""
        timeout: float | None = None
        if self.read_again or self._deferred:
            timeout, self.read_again = 0.0, False
        elif self._deadlines:
            timeout = min(max(0.0, self._deadlines[0][0] - self.now), LONGEST_WAIT)
        # Read before checking deadlines: after a pause of the process, the answer to a ping may be waiting there.
        poller, owners, woken = self.poller, self._owners.get, False
        ready = poller.poll(timeout)
        self.now = self.polled_at = monotonic()
        for fd, events in ready:
            owner = owners(fd)
            if owner is None:
                # The inbox, or a socket that an earlier event of this turn has closed.
                woken = woken or fd == self._woken_fd
                continue
            if events & ~poller.READ:
                owner.on_writable()
            if events & ~poller.WRITE:
                owner.on_readable()
            if self.calls_wait and not self._run_calls():
                return False
        if woken:
            # After reading: a command may depend on what the sockets have to say.
            self._run_inbox()
        self.now = monotonic()
        if self._deadlines and self._deadlines[0][0] <= self.now:
            self._wake_due(self.now)
            self.now = monotonic()
        for _ in range(len(self._deferred)):
            if not self._stopping:
                self._deferred.popleft()()
        # Commands that these have deferred run after a look at everything else.
        if self._on_turn is not None:
            self._busy_turns = self._busy_turns + 1 if self.read_again or self._deferred else 0
            if self._busy_turns % _MOST_BUSY_TURNS == 0:
                self._on_turn()
        return not self.calls_wait or self._run_calls()

    def _run_inbox(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4_096)
        for _ in range(len(self._inbox)):
            if not self._stopping:
                self._inbox.popleft()[0]()

    def _wake_due(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now and not self._stopping:
            deadline, _, timed = heapq.heappop(self._deadlines)
            # An earlier deadline or `unschedule` has outdated the other entries.
            if deadline == timed.scheduled:
                timed.scheduled = NEVER
                timed.wake(now)
                self.schedule(timed)
        while self._deadlines and self._deadlines[0][0] != self._deadlines[0][2].scheduled:
            heapq.heappop(self._deadlines)

    def _close(self) -> None:
        self._closed = True
        try:
            self._on_stop()
        finally:
            with contextlib.suppress(IndexError):
                while True:
                    self._inbox.popleft()[1]()
            self.poller.close()
            self._close_waker()
            self._woken.close()

    def _is_left_over(self, posted: tuple[Command, Command]) -> bool:
        """Take back a command that was posted after the end had emptied the inbox."""
        if not self._closed:
            return False
        try:
            self._inbox.remove(posted)
        except ValueError:
            return False
        return True

    def _close_waker(self) -> None:
        """Close the waker, unless a thread may be sending on it: another socket could get its number."""
        if not self._posting:
            with contextlib.suppress(IndexError):
                self._wakers.pop().close()
