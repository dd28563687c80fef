"""`RelievedLoop`: an event loop whose thread also runs callbacks, and a relief that drives it while they are slow.

A tick that one thread reads and hands to a callback needs no second wake-up. But while a callback runs, that thread
reads nothing and answers no ping. So a relief takes over the loop when callbacks take longer than a few milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import attrs

from ..clock import monotonic
from ..values import NEVER
from .loop import Command, EventLoop
from .wakeup import Wakeup


@attrs.frozen
class ReliefTiming:
    """When the relief looks, takes over and hands back, in seconds."""

    #: How long callbacks may take before the relief drives.
    grace: float = 0.005
    #: Between two looks: after a slow call, while calls are frequent, and otherwise.
    careful_look: float = 0.005
    short_look: float = 0.02
    long_look: float = 0.6
    #: For how long after a slow call.
    careful_for: float = 2.0
    #: For how long the relief drives at least, by the number of takeovers within a second of the last one, in fours.
    holds: tuple[float, ...] = (0.0, 0.0, 0.0, 0.05, 0.1, 0.25, 0.5, 1.0)


#: Tests replace it, to force takeovers.
TIMING = ReliefTiming()
#: Calls are frequent if there were this many since the last look.
_FREQUENT_CALLS = 25
#: The relief sleeps after this many looks without a call. After a slow call, it sleeps at the first one.
_QUIET_LOOKS = 2
#: Takeovers count as repeated within this many seconds, and this many make the relief drive longer.
_REPEATED_WITHIN, _TAKEOVERS_PER_HOLD = 1.0, 4


class Calls(Protocol):
    """The callbacks that the loop's thread runs between two events."""

    @property
    def abandoned(self) -> bool:
        """Whether no further call begins."""

    def run(self) -> None:
        """Run callbacks until nothing waits for them. Raises nothing."""

    def run_last(self) -> None:
        """The loop has ended: run callbacks for the rest, and end."""

    def flush(self) -> None:
        """Wake the callback thread if there is work for it."""

    def taken_over(self) -> None:
        """The relief drives from now on, until it hands back."""


class RelievedLoop(EventLoop):
    """An event loop that two threads drive, one at a time: whoever holds `_lock`.

        the callback thread                                    the relief
        ───────────────────                                    ──────────
        drives: polls, reads                                   sleeps, or looks now and then
          └─ ticks wait: releases the lock, runs callbacks ──── callbacks take over 5 ms: takes the lock, drives
               ├─ takes the lock again: drives on
               └─ the relief has it: runs callbacks from       a turn began while the callback thread waited:
                  the queue, waits for more <───────────────── releases the lock, wakes it

    Callbacks run only on the callback thread, without the lock, and when no stream is half changed. The relief never
    waits for the lock, and only the relief hands back.

    Args:
        name: The threads' names begin with it.
        on_stop: See `EventLoop`.
        on_end: See `EventLoop`. May run on either thread.
        calls: The callbacks.
    """

    def __init__(
        self, name: str, on_stop: Command, on_end: Callable[[BaseException | None], None], calls: Calls
    ) -> None:
        super().__init__(f"{name}-callbacks", on_stop, on_end)
        #: Whether the relief drives.
        self.relieved = False
        self._calls = calls
        self._timing = TIMING
        self._lock = threading.Lock()
        #: Whether the callback thread runs callbacks without the lock, and how often it has begun to.
        self._in_calls = False
        self._calls_begun = 0
        #: Whether the callback thread waits for work while the relief drives.
        self._idle = False
        #: The callback thread wakes the relief when it has begun this many calls.
        self._wake_at = NEVER
        #: Whether the loop has ended, and everything was released.
        self._over = False
        #: Looks are short until then, because a call was slow.
        self._careful_until = 0.0
        #: How many takeovers followed each other quickly, and when the last one was.
        self._takeovers, self._taken_over_at = 0, 0.0
        self._wakeup, self._relief_wakeup = Wakeup(), Wakeup()
        self._relief = threading.Thread(target=self._stand_by, name=f"{name}-relief", daemon=True)

    # From any thread.

    def post(self, command: Command, discard: Command = lambda: None) -> bool:
        posted = super().post(command, discard)
        if self._in_calls:
            # Nothing polls, and the call may take long.
            self._relief_wakeup.wake()
        return posted

    def leave(self) -> None:
        super().leave()
        self._lock.acquire(blocking=False)  # so that no thread drives
        self._over = True

    @property
    def alive(self) -> bool:
        """Whether one of the threads runs and isn't the calling one."""
        return any(self._others())

    @property
    def runs_here(self) -> bool:
        return threading.current_thread() in (self._thread, self._relief)

    def join(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for each of the threads to end, unless it is the calling one."""
        for thread in self._others():
            thread.join(timeout)

    def wake_calls(self) -> None:
        """Have the callback thread look for work, if it waits for the relief."""
        self._wakeup.wake()

    def _others(self) -> list[threading.Thread]:
        current = threading.current_thread()
        return [thread for thread in (self._thread, self._relief) if thread is not current and thread.is_alive()]

    def _start_threads(self) -> None:
        self._relief.start()
        try:
            super()._start_threads()
        except BaseException:
            self._over = True
            self._relief_wakeup.wake()
            raise

    # On the thread that drives.

    def call_soon(self) -> None:
        """Have callbacks run: behind the current event, or at once if the relief drives."""
        if self.relieved:
            self._wakeup.wake()
        else:
            self.calls_wait = True

    # The callback thread.

    def _main(self) -> None:
        try:
            while not self._over:
                if self._lock.acquire(blocking=False):
                    self._drive()
                elif self._calls.abandoned:
                    # The relief drives to the end, even if it has just handed back.
                    self._in_calls = True
                    self._relief_wakeup.wake()
                    break
                else:
                    self._serve()
        finally:
            self._calls.run_last()

    def _drive(self) -> None:
        """Drive the loop until the relief does, or until the end. Needs the lock; the end keeps it."""
        crash: BaseException | None = None
        try:
            self.polled_at = monotonic()
            if not self._run_calls():
                return
            while not self._stopping:
                if not self._turn():
                    return
                if self.now - self.polled_at > self._timing.grace:
                    self._careful_until = self.now + self._timing.careful_for
        except BaseException as error:
            crash = error
        self._finish(crash)

    def _run_calls(self) -> bool:
        self.calls_wait = False
        self._calls_begun += 1
        self._in_calls = True
        self._lock.release()
        # A command that was posted since the poll must not wait for the next look.
        if self._calls_begun >= self._wake_at or self._inbox:
            self._wake_at = NEVER
            self._relief_wakeup.wake()
        self._calls.run()
        self._in_calls = False
        return self._lock.acquire(blocking=False)

    def _serve(self) -> None:
        """The relief drives: run callbacks from the queue, then wait for more."""
        self._in_calls = True
        self._calls.run()
        self._in_calls = False
        self._idle = True
        # Returns at once if there was a wake-up since `run` looked last.
        self._wakeup.wait()
        self._idle = False

    # The relief.

    def _stand_by(self) -> None:
        timing = self._timing
        look: float | None = None
        seen = quiet = 0
        while not self._over:
            if look is None:
                self._wake_at = seen + 1
                if self._in_calls or self._calls_begun != seen or self._over:
                    look = timing.short_look
            elif look == timing.long_look:
                self._wake_at = seen + _FREQUENT_CALLS
            self._relief_wakeup.wait(look)
            self._wake_at = NEVER
            if self._takes_over():
                self._relieve()
                # The callback thread may be in a slow call already.
                look, seen, quiet = timing.grace, self._calls_begun, 0
                continue
            calls, seen = self._calls_begun - seen, self._calls_begun
            quiet = 0 if calls or self._in_calls else quiet + 1
            look = self._next_look(look or timing.short_look, calls, quiet)

    def _next_look(self, waited: float, calls: int, quiet: int) -> float | None:
        """Return how long to wait for the next look; None: until there is a call.

        `calls` were begun while it waited `waited` seconds. `quiet`: how many looks in a row have found none.
        """
        timing = self._timing
        if monotonic() < self._careful_until:
            return None if quiet else timing.careful_look
        if self._in_calls or calls >= _FREQUENT_CALLS or calls * timing.short_look > waited:
            return timing.short_look
        return timing.long_look if quiet < _QUIET_LOOKS else None

    def _takes_over(self) -> bool:
        """Take the lock if callbacks have taken long. Return whether that succeeded."""
        left = self.polled_at + self._timing.grace - monotonic()
        if self._in_calls and left > 0.0:
            self._relief_wakeup.wait(left)
            left = self.polled_at + self._timing.grace - monotonic()
        # Without waiting: between two callbacks, the callback thread drives.
        return self._in_calls and left <= 0.0 and self._lock.acquire(blocking=False)

    def _relieve(self) -> None:
        """Drive the loop until the callback thread waits, or until the end. Needs the lock; the end keeps it."""
        timing, now = self._timing, monotonic()
        self._takeovers = self._takeovers + 1 if now < self._taken_over_at + _REPEATED_WITHIN else 0
        self._taken_over_at, self._careful_until = now, now + timing.careful_for
        # If takeovers repeat, each costs more than the second wake-up per tick that it saves.
        hold = now + timing.holds[min(self._takeovers // _TAKEOVERS_PER_HOLD, len(timing.holds) - 1)]
        crash: BaseException | None = None
        try:
            self.relieved, self._on_turn = True, self._calls.flush
            self._calls.taken_over()
            while not self._stopping:
                idle = self._idle
                self._turn()
                if idle and self.now >= hold and not self._stopping:
                    self.relieved, self._on_turn = False, None
                    self._lock.release()
                    self._wakeup.wake()
                    return
        except BaseException as error:
            crash = error
        self._finish(crash)

    def _finish(self, crash: BaseException | None) -> None:
        try:
            super()._finish(crash)
        finally:
            # The lock stays taken: the loop ends once.
            self._over = True
            self._wakeup.wake()
            self._relief_wakeup.wake()
