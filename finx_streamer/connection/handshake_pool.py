"""The handshake pool: handshakes block, so they run on worker threads, a few at a time."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Protocol

import attrs

from ..clock import monotonic
from ..errors import ConnectionFailed
from ..values import NEVER
from .attempt import Attempt, ConnectionConfig
from .handshake import outcome_of
from .loop import EventLoop
from .websocket import Connection

#: More at a time would be no faster, and would look like an attack to the server.
MAX_CONCURRENT = 8
#: Cancelled attempts may hang in name resolution, which can't be interrupted. Others start in their place, up to this.
MAX_WORKERS = 4 * MAX_CONCURRENT
#: A handshake ends itself in time, with the reason. Only this many seconds later it counts as stuck.
_GRACE = 0.25
#: Seconds that the end of the loop waits for cancelled workers, in total.
_JOIN_TIMEOUT = 0.2

_STUCK = f"{MAX_WORKERS} earlier attempts still hang in name resolution, or in the api_key callable"


class Requester(Protocol):
    """Who asks for a handshake."""

    def handshake_ended(self, handshake: Handshake, outcome: Connection | ConnectionFailed) -> None:
        """It succeeded or failed, on the loop's thread. Not called after `cancel`."""


@attrs.define(eq=False)
class Handshake:
    """One attempt to open a connection."""

    config: ConnectionConfig
    attempt: Attempt
    requester: Requester
    #: Set when its turn has come.
    pool: HandshakePool | None = None
    cancelled: bool = False
    #: For the loop: see `Timed`.
    deadline: float = NEVER
    scheduled: float = NEVER

    def wake(self, now: float) -> None:
        if self.pool is not None and now >= self.deadline:
            self.pool.time_out(self)


class HandshakePool:
    """Runs handshakes for everything on one loop. All methods are for the loop's thread."""

    def __init__(self, loop: EventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._numbers = itertools.count(1)
        self._queue: deque[Handshake] = deque()
        self._in_flight = 0
        self._workers: list[threading.Thread] = []

    def request(self, handshake: Handshake) -> None:
        """Start a handshake when its turn comes."""
        self._queue.append(handshake)
        self._start_queued()

    def cancel(self, handshake: Handshake) -> None:
        """Cancel a handshake, without an outcome. If its connection still opens, it is closed."""
        handshake.cancelled = True
        if handshake.pool is None:
            self._queue.remove(handshake)
            return
        handshake.attempt.cancel()
        self._release(handshake)
        # Deferred, because the next ones may be about to be cancelled, too.
        self._loop.defer(self._start_queued)

    def time_out(self, handshake: Handshake) -> None:
        """Fail a handshake that is stuck where it can't be interrupted."""
        seconds = handshake.config.connect_timeout
        self.cancel(handshake)
        stuck = f"no connection within {seconds:g} s: name resolution or the api_key callable hangs"
        handshake.requester.handshake_ended(handshake, ConnectionFailed(stuck))

    def close(self) -> None:
        """Wait briefly for the workers, after everything was cancelled. The rest are daemons that hang in DNS."""
        self._queue.clear()
        deadline = monotonic() + _JOIN_TIMEOUT
        for worker in self._workers:
            worker.join(max(0.0, deadline - monotonic()))

    def _start_queued(self) -> None:
        while self._queue and self._in_flight < MAX_CONCURRENT:
            handshake = self._queue.popleft()
            handshake.pool = self
            self._in_flight += 1
            self._workers = [worker for worker in self._workers if worker.is_alive()]
            if len(self._workers) >= MAX_WORKERS:
                self._fail_later(handshake, _STUCK)
                continue
            handshake.deadline = monotonic() + handshake.config.connect_timeout + _GRACE
            self._loop.schedule(handshake)
            name = f"{self._name}-handshake-{next(self._numbers)}"
            worker = threading.Thread(target=self._work, args=(handshake,), name=name, daemon=True)
            try:
                worker.start()
            except RuntimeError as cause:
                # The system has no more threads, or the interpreter is shutting down.
                self._fail_later(handshake, str(cause))
            else:
                self._workers.append(worker)

    def _fail_later(self, handshake: Handshake, reason: str) -> None:
        """Not at once: the requester is in the middle of its request."""
        self._loop.defer(lambda: self._end(handshake, ConnectionFailed(reason)))

    def _work(self, handshake: Handshake) -> None:
        """Run on a worker thread."""
        outcome = outcome_of(handshake.config, handshake.attempt)
        if not self._loop.post(lambda: self._end(handshake, outcome), lambda: _discard(outcome)):
            _discard(outcome)

    def _end(self, handshake: Handshake, outcome: Connection | ConnectionFailed) -> None:
        if handshake.cancelled:
            _discard(outcome)
        else:
            self._release(handshake)
            handshake.requester.handshake_ended(handshake, outcome)
        self._start_queued()

    def _release(self, handshake: Handshake) -> None:
        self._in_flight -= 1
        handshake.deadline = NEVER
        self._loop.unschedule(handshake)


def _discard(outcome: Connection | ConnectionFailed) -> None:
    if isinstance(outcome, Connection):
        outcome.disconnect()
