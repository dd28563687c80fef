"""Function calls: one message there, one back, on one of a few connections.

The wire has no request ids, so a connection has one call in flight (source: O), and what went wrong with one leaves no
connection behind on which a late answer could be taken for another call's. The caller's own thread sends and waits: an
answer needs no hand-over. Between calls, one thread keeps the idle connections alive: it answers pings, drops what the
server has closed, and sends FinX's keepAlive (source: D).

Ctrl-C may strike between any two steps of a caller's. So whoever uses a connection is its `holder` by one assignment,
callers wait in nothing but primitives of the interpreter's own, and threads are started by threads that it spares.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import logging
import os
import queue
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs

from ..config.endpoint import redact
from ..config.reconnect import ReconnectPolicy, is_fatal, retry_delay
from ..config.redaction import ApiKey
from ..connection.attempt import Attempt, ConnectionConfig
from ..connection.failures import translate
from ..connection.handshake import outcome_of
from ..connection.websocket import Connection
from ..errors import (
    AuthenticationError,
    CallTimeout,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    FunctionError,
    ServerError,
)
from ..values import Notice
from ..wire.decoder import Decoder
from ..wire.frames import Binary

logger = logging.getLogger("finx_streamer")

#: Seconds after which an idle connection says that it is still wanted. D: a server may close it after 300.
KEEP_ALIVE = 240.0
#: Seconds within which that has to be answered.
_KEEP_ALIVE_TIMEOUT = 20.0
#: For so many seconds after a connection was opened, an error that the server answers with is not put down to its key.
TRUST_KEY = 60.0
#: How long a handshake may overrun its own deadline before it counts as stuck, in name resolution for one.
_GRACE = 0.25
#: How many handshakes that nobody waits for any more may hang, for each connection that there may be.
_STUCK = 4
#: How long `close` waits for threads that have nothing left to do but to end.
_LAST_STEPS = 1.0
#: How many times its timeout a call may take while its answer keeps coming.
LONGEST_ANSWER = 6
#: With less time than this left, a call does not try again.
_LAST_TRY = 0.05
_WORKER_PATIENCE = 0.2
#: A deadline may lie further ahead than a selector can wait.
_LONGEST_WAIT = 3_600.0
_NEVER = float("inf")
#: Those that can be told of a socket while another thread waits in them.
_TOLD_WHILE_WAITING = ("EpollSelector", "KqueueSelector")
#: One without a file descriptor of its own, where there is one.
_Waiting: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


@attrs.frozen
class Answer:
    """What the server said, and when its bytes were read (`time.time_ns()`)."""

    message: dict[str, Any] = attrs.field(repr=False)
    received_ns: int


@attrs.define(eq=False)
class _Call:
    """One call under way, over as many connections as it takes."""

    function: str
    arguments: dict[str, Any] = attrs.field(repr=False)
    #: Whether the answer is ticks, in which to look for the key would take longer than to read them.
    data: bool
    timeout: float
    deadline: float
    #: When it ends, though more of the answer keeps coming; and how much of one has come.
    ends: float
    received: int = 0
    #: A key that is not worth another try, and one that was asked for in its place.
    refused_key: ApiKey | None = attrs.field(default=None, repr=False)
    next_key: ApiKey | None = attrs.field(default=None, repr=False)
    #: Whether the connection that is held can be used for another call.
    clean: bool = False
    #: Rung where waiting may have an end. (An `Event` that an interrupt strikes may stay locked.)
    bell: queue.SimpleQueue[None] = attrs.field(factory=queue.SimpleQueue, repr=False)

    @property
    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def went_on(self, size: int) -> None:
        """So many bytes have come: there is more time for the rest."""
        self.received += size
        self.deadline = min(self.ends, time.monotonic() + self.timeout)

    def wait(self, seconds: float) -> None:
        """Until the bell rings, if it does."""
        with contextlib.suppress(queue.Empty):
            self.bell.get(timeout=min(max(0.0, seconds), _LONGEST_WAIT))

    def error(self, message: str, kind: type[FunctionError] = FunctionError) -> FunctionError:
        """An error of this call's, without the key."""
        return kind(self.function, _shown(self.arguments), redact(message))

    def timed_out(self, where: str, failure: ConnectionFailed | None = None) -> FunctionError:
        before = f"; before that: {failure.reason}" if failure is not None else ""
        return self.error(f"no answer within {self.timeout:g} s ({where}{before})", CallTimeout)


@attrs.define(eq=False)
class PooledConnection:
    """The place of one connection. What is held by nobody is idle."""

    #: A call, the keeper, or nobody. Weakly, for an interrupt that strikes while a call gives back what it held.
    holder: weakref.ref[_Call] | CallPool | None
    connection: Connection | None = None
    opened: float = attrs.field(factory=time.monotonic)
    #: When it was last used.
    used: float = attrs.field(factory=time.monotonic)
    #: Until when the answer to a keepAlive may take.
    answer_by: float = _NEVER
    #: Whether the keeper's selector knows it.
    watched: bool = False
    #: What a call waits in, and for what.
    waiting: selectors.BaseSelector = attrs.field(factory=lambda: _Waiting())
    wanted: int = 0

    @property
    def in_use(self) -> bool:
        return isinstance(self.holder, weakref.ref)

    @property
    def orphaned(self) -> bool:
        return isinstance(self.holder, weakref.ref) and self.holder() is None

    def held_by(self, call: _Call) -> bool:
        return isinstance(self.holder, weakref.ref) and self.holder() is call


@attrs.define(eq=False)
class _Opening:
    """A handshake in a thread of its own, for nothing interrupts name resolution or a user's key callable."""

    attempt: Attempt
    bell: queue.SimpleQueue[None]
    done: bool = False
    outcome: Connection | ConnectionFailed | None = None
    abandoned: bool = False


class CallPool:
    """At most `size` connections to one target. Every method is for any thread."""

    def __init__(
        self,
        target: ConnectionConfig,
        policy: ReconnectPolicy | None,
        size: int,
        name: str,
        keep_alive: float = KEEP_ALIVE,
        trust_key: float = TRUST_KEY,
    ) -> None:
        self._target = target
        self._policy = policy
        self._size = size
        self._name = name
        self._keep_alive = keep_alive
        self._trust_key = trust_key
        # Reentrant, for a signal handler that closes while its thread is in here.
        self._lock = threading.RLock()
        self._lines: list[PooledConnection] = []
        self._closed = False
        #: Calls that wait for a connection, and those that wait for their next try.
        self._waiting: deque[weakref.ref[_Call]] = deque()
        self._resting: weakref.WeakSet[_Call] = weakref.WeakSet()
        self._openings: dict[threading.Thread, _Opening] = {}
        self._numbers = itertools.count(1)
        self._keeper: threading.Thread | None = None
        self._selector: selectors.BaseSelector | None = None
        self._waker: socket.socket | None = None
        self._pid = os.getpid()

    @property
    def target(self) -> ConnectionConfig:
        return self._target

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def connections(self) -> int:
        """How many there are at the moment."""
        return sum(line.connection is not None for line in tuple(self._lines))

    def call(self, function: str, arguments: dict[str, Any], timeout: float, *, data: bool = False) -> Answer:
        """The answer to a function call, within `timeout` seconds all in all; or so many since the last of its bytes,
        for a slow line is no silence, but no more than six times as long. What is not `data` is free of the key.

        `arguments` is emptied. Raises `FunctionError` where the server answers with an error, or this is closed;
        `CallTimeout`; `DecodeError` for an answer that is no JSON object; `ConnectionFailed` where the policy does not
        try again.
        """
        now = time.monotonic()
        call = _Call(function, arguments.copy(), data, timeout, now + timeout, now + LONGEST_ANSWER * timeout)
        # Tracebacks may show the locals of the frames that it came through, and a key may be among them.
        arguments.clear()
        delays = self._policy.delays() if self._policy is not None else iter(())
        failure: ConnectionFailed | None = None
        for attempt in itertools.count(1):
            outcome = self._once(call, failure)
            if isinstance(outcome, Answer):
                return outcome
            if not isinstance(outcome, ConnectionFailed) or self.closed:
                break
            failure = outcome
            failure.attempt = attempt
            delay = self._delay(call, failure, delays)
            if delay is None:
                break
            logger.debug("%s: %s is tried again in %.2f s: %s", self._name, function, delay, failure)
            self._rest(call, delay)
        # It was made elsewhere: no frame of its making is told of.
        if self.closed:
            raise call.error("the client was closed")
        assert isinstance(outcome, FinxStreamerError)
        raise outcome

    def close(self, wait: bool = True) -> None:
        """End it all, now. Idempotent. Calls under way raise `FunctionError`. `wait`: for its threads."""
        if self._pid != os.getpid():
            self._close_copies()
            return
        self._closed = True
        with self._lock:
            self._wake()
            for call in (*(waiting() for waiting in self._waiting), *self._resting):
                if call is not None:
                    call.bell.put(None)
            for opening in self._openings.values():
                opening.attempt.cancel()
                opening.bell.put(None)
            for line in self._lines:
                if line.in_use and line.connection is not None:
                    # Wakes a thread that waits for it; closing would not.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(line.connection.wire.socket, socket.SHUT_RDWR)
            keeper, workers = self._keeper, list(self._openings)
        if not wait:
            return
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(_LAST_STEPS)
        patience_ends = time.monotonic() + _WORKER_PATIENCE
        for worker in workers:
            worker.join(max(0.0, patience_ends - time.monotonic()))

    # One try.

    def _once(self, call: _Call, failure: ConnectionFailed | None) -> Answer | FinxStreamerError:
        """One try on one connection. What went wrong is returned, for frames that it passed could show the answer."""
        call.clean = False
        try:
            line = self._take(call)
            if line is None:
                return call.timed_out(f"all {self._size} connections are busy", failure)
            if line.connection is None:
                failed = self._open(call, line)
                if failed is not None:
                    return failed
                # For its deadline.
                self._wake()
            if line.connection is None or self.closed:
                return call.timed_out("still connecting", failure)
            return self._exchange(call, line, line.connection)
        finally:
            self._give_back(call)

    def _delay(self, call: _Call, failure: ConnectionFailed, delays: Iterator[float]) -> float | None:
        """How long to wait before the next try; None: there is none."""
        policy = self._policy
        if policy is None or (policy.attempts is not None and failure.attempt >= policy.attempts):
            return None
        another_key = (
            isinstance(failure, AuthenticationError) and self._target.keys.can_change and not failure.permanent
        )
        if is_fatal(failure) and not another_key:
            return None
        left = call.remaining
        if left < _LAST_TRY:
            return None
        drawn = next(delays)
        if failure.retry_after:
            delay = retry_delay(failure, drawn)
            # One that can't be in time is no reason to keep the caller waiting.
            return delay if delay < left else None
        # All the time is used that there is: the line may be back before the policy would have looked.
        return min(drawn, left / 2)

    def _exchange(self, call: _Call, line: PooledConnection, connection: Connection) -> Answer | FinxStreamerError:
        """Ask and wait for the answer."""
        try:
            failed: FinxStreamerError | None = _send(connection, {"functionName": call.function, **call.arguments})
            while failed is None:
                messages = connection.messages(2)
                if messages:
                    return self._answered(call, line, connection, messages)
                failed = connection.ended or self._read_more(call, line, connection.wire)
        except BaseException as interrupt:
            # Of frames that may show the key.
            raise interrupt.with_traceback(None) from None
        if isinstance(failed, AuthenticationError):
            call.refused_key = connection.key
        return failed

    def _read_more(self, call: _Call, line: PooledConnection, wire: Any) -> FinxStreamerError | None:
        """Wait until there is something to read, and read it. Returns what went wrong."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if wire.unsent else 0)
        if not line.wanted:
            line.waiting.register(wire.socket, wanted)
        elif line.wanted != wanted:
            line.waiting.modify(wire.socket, wanted)
        line.wanted = wanted
        left = call.remaining
        if left <= 0:
            return call.timed_out(f"{call.received:,} bytes had come" if call.received else "the server is silent")
        try:
            # What TLS has read ahead wakes no selector.
            if wire.secure and (size := wire.fill()):
                call.went_on(size)
                return None
            line.waiting.select(min(left, _LONGEST_WAIT))
            wire.flush()
            if size := wire.fill():
                call.went_on(size)
        except (OSError, EOFError) as cause:
            return translate(cause)
        return None

    def _answered(
        self, call: _Call, line: PooledConnection, connection: Connection, messages: list[bytes | Binary]
    ) -> Answer | FinxStreamerError:
        """The answer as an object, or as an error. The connection is clean if this was all that it had to say."""
        received_ns = connection.wire.received_ns
        decoder = Decoder(call.function, None, bounded=False, redact_notices=not call.data)
        message = decoder.decode(messages[0], received_ns)
        if isinstance(message, DecodeError):
            return message
        call.clean = len(messages) == 1 and connection.between_messages
        if isinstance(message, ServerError):
            # It may be the key that has grown old: where there may be another, the next call asks for it.
            fresh = time.monotonic() - line.opened < self._trust_key or not self._target.keys.can_change
            call.clean = call.clean and fresh
            return call.error(message.message)
        assert isinstance(message, Notice), "the decoder knows of no pair"
        return Answer(message.message, received_ns)

    # Connections come and go.

    def _take(self, call: _Call) -> PooledConnection | None:
        """An idle connection, or the place for a new one, when it is this call's turn. None: not in time."""
        own = weakref.ref(call)
        self._waiting.append(own)
        try:
            while True:
                with self._lock:
                    self._check_usable(call)
                    line = self._free_line(call) if self._first_waiting() is call else None
                    left = call.remaining
                    if line is not None or left <= 0:
                        return line
                call.wait(left)
        finally:
            with self._lock:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(own)
                self._ring()

    def _first_waiting(self) -> _Call | None:
        """Under the lock. One at a time, in their order: else whoever gives a connection back would take it again."""
        while self._waiting:
            call = self._waiting[0]()
            if call is not None:
                return call
            self._waiting.popleft()
        return None

    def _ring(self) -> None:
        """Under the lock. There may be a connection for the first that waits."""
        call = self._first_waiting()
        if call is not None:
            call.bell.put(None)

    def _rest(self, call: _Call, seconds: float) -> None:
        """Wait for the next try."""
        with self._lock:
            self._resting.add(call)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.closed:
            call.wait(left)

    def _free_line(self, call: _Call) -> PooledConnection | None:
        for line in tuple(self._lines):
            if line.holder is None:
                line.holder = weakref.ref(call)
                self._unwatch(line)
                if self._is_quiet(line):
                    return line
                self._drop(line)
            elif line.orphaned:
                self._drop(line)
        if len(self._lines) >= self._size:
            return None
        line = PooledConnection(weakref.ref(call))
        self._lines.append(line)
        return line

    def _give_back(self, call: _Call) -> None:
        with self._lock:
            for line in tuple(self._lines):
                if line.held_by(call):
                    if call.clean and not self.closed:
                        line.used = time.monotonic()
                        self._watch(line)
                        line.holder = None
                    else:
                        self._drop(line)
                    self._ring()

    def _open(self, call: _Call, line: PooledConnection) -> ConnectionFailed | None:
        """Connect, as far as the time for the call allows. Returns what went wrong."""
        opening = _Opening(Attempt(call.refused_key, call.next_key), call.bell)
        call.next_key = None
        name = f"{self._name}-handshake-{next(self._numbers)}"
        worker = threading.Thread(target=self._shake_hands, args=(opening,), name=name, daemon=True)
        if len(self._openings) >= _STUCK * self._size:
            return ConnectionFailed(
                f"{len(self._openings)} earlier attempts still hang in name resolution, or in the api_key callable"
            )
        try:
            try:
                _thread.start_new_thread(self._launch, (worker, opening))
            except RuntimeError as cause:
                # No thread to be had: the system's limit, or the interpreter is going down.
                return ConnectionFailed(str(cause))
            until = min(call.deadline, time.monotonic() + self._target.connect_timeout + _GRACE)
            while (left := until - time.monotonic()) > 0 and not opening.done and not self.closed:
                call.wait(left)
            outcome = opening.outcome
            if isinstance(outcome, Connection):
                line.connection, opening.outcome = outcome, None
                return None
        finally:
            with self._lock:
                opening.abandoned = True
                if isinstance(opening.outcome, Connection):
                    opening.outcome.disconnect()
            if not opening.done:
                opening.attempt.cancel()
        if outcome is None and call.remaining > 0:
            seconds = self._target.connect_timeout
            return ConnectionFailed(f"no connection within {seconds:g} s: name resolution hangs, or the source of keys")
        if isinstance(outcome, AuthenticationError):
            call.refused_key, call.next_key = opening.attempt.key, opening.attempt.next_key
        return outcome

    def _launch(self, worker: threading.Thread, opening: _Opening) -> None:
        """In a bare thread: `start` waits for an `Event`, and an interrupt that strikes it there leaves it locked."""
        try:
            worker.start()
        except RuntimeError as cause:
            opening.outcome = ConnectionFailed(str(cause))
            opening.done = True
            opening.bell.put(None)

    def _shake_hands(self, opening: _Opening) -> None:
        """In a worker thread."""
        with self._lock:
            self._openings[threading.current_thread()] = opening
            if opening.abandoned or self.closed:
                opening.attempt.cancel()
        outcome = outcome_of(self._target, opening.attempt)
        with self._lock:
            self._openings.pop(threading.current_thread(), None)
            wanted = not (opening.abandoned or self.closed)
            failed = self._start_keeper() if wanted and isinstance(outcome, Connection) else None
            if wanted and failed is None:
                opening.outcome = outcome
            elif isinstance(outcome, Connection):
                outcome.disconnect()
                opening.outcome = failed
            opening.done = True
            opening.bell.put(None)

    def _drop(self, line: PooledConnection) -> None:
        """Under the lock. It can be done again, should an interrupt strike here."""
        self._unwatch(line)
        if line.connection is not None:
            line.connection.disconnect()
        line.waiting.close()
        if line in self._lines:
            self._lines.remove(line)
        line.connection = None

    def _is_quiet(self, line: PooledConnection) -> bool:
        """Whether an idle connection is as it was left: open, and with nothing said that nobody asked for."""
        connection = line.connection
        if connection is None:
            return False
        try:
            arrived = connection.wire.fill()
        except (OSError, EOFError):
            return False
        return not (arrived and connection.messages(1)) and connection.between_messages

    # The keeper.

    def _start_keeper(self) -> ConnectionFailed | None:
        """Under the lock. Returns what went wrong."""
        if self._keeper is None:
            self._selector = selectors.DefaultSelector()
            self._waker, woken = socket.socketpair()
            self._waker.setblocking(False)
            woken.setblocking(False)
            self._selector.register(woken, selectors.EVENT_READ)
            self._keeper = threading.Thread(
                target=self._keep, args=(self._selector, woken), name=f"{self._name}-keeper", daemon=True
            )
            try:
                self._keeper.start()
            except RuntimeError as cause:
                self._end_keeper(self._selector, woken)
                return ConnectionFailed(str(cause))
        return None

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(OSError):
                waker.send(b"\0")

    def _keep(self, selector: selectors.BaseSelector, woken: socket.socket) -> None:
        while not self.closed:
            ready = selector.select(self._patience())
            with self._lock:
                for key, _ in ready:
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            woken.recv(4_096)
                    elif key.data.watched:
                        self._look_at(key.data)
                self._due(time.monotonic())
        with self._lock:
            for line in tuple(self._lines):
                if not line.in_use or line.orphaned:
                    self._drop(line)
            self._end_keeper(selector, woken)

    def _end_keeper(self, selector: selectors.BaseSelector, woken: socket.socket) -> None:
        selector.close()
        woken.close()
        if self._waker is not None:
            self._waker.close()
        self._keeper = self._selector = self._waker = None

    def _patience(self) -> float | None:
        """How long nothing is due. A connection in use counts as if it were given back at once."""
        due = [min(line.used + self._keep_alive, line.answer_by) for line in tuple(self._lines)]
        return min(max(0.0, min(due) - time.monotonic()), _LONGEST_WAIT) if due else None

    def _look_at(self, line: PooledConnection) -> None:
        """Read what an idle connection has got: pings are answered by that."""
        connection = line.connection
        if connection is None:
            return
        try:
            connection.wire.fill()
        except (OSError, EOFError):
            self._drop(line)
            return
        messages = connection.messages(2)
        if connection.ended is not None or len(messages) > (1 if line.holder is self else 0):
            self._drop(line)
        elif messages:
            self._kept_alive(line, messages[0])
        self._ring()

    def _kept_alive(self, line: PooledConnection, payload: bytes | Binary) -> None:
        """The answer to a keepAlive. An error may say that the key has grown old."""
        line.answer_by = _NEVER
        if not isinstance(Decoder("keepAlive", None).decode(payload, 0), Notice):
            self._drop(line)
            return
        line.used = time.monotonic()
        line.holder = None

    def _due(self, now: float) -> None:
        for line in tuple(self._lines):
            if line.answer_by <= now:
                self._drop(line)
                self._ring()
            elif line.holder is None and line.used + self._keep_alive <= now and line.connection is not None:
                # Held meanwhile: a call would take the answer for its own.
                line.holder = self
                line.answer_by = now + _KEEP_ALIVE_TIMEOUT
                line.used = now
                if _send(line.connection, {"functionName": "keepAlive"}) is not None:
                    self._drop(line)
            elif line.in_use:
                line.used = max(line.used, now - self._keep_alive / 2)

    def _watch(self, line: PooledConnection) -> None:
        if self._selector is not None and line.connection is not None:
            self._selector.register(line.connection.wire.socket, selectors.EVENT_READ, line)
            line.watched = True
            if type(self._selector).__name__ not in _TOLD_WHILE_WAITING:
                self._wake()

    def _unwatch(self, line: PooledConnection) -> None:
        line.watched = False
        if self._selector is not None and line.connection is not None:
            # Also where an interrupt struck between the two steps of watching it.
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(line.connection.wire.socket)

    # Other.

    def _check_usable(self, call: _Call) -> None:
        if self.closed:
            raise call.error("the client is closed")

    def check_process(self) -> None:
        """Raises `ConfigurationError` in a forked process."""
        if self._pid != os.getpid():
            raise ConfigurationError(
                "this client was made before a fork, and its connections are the other process's; make a new one here"
            )

    def _close_copies(self) -> None:
        """In a forked process: let go of the sockets without a word to the server, which the other process talks to."""
        self._closed = True
        for line in self._lines:
            if line.connection is not None:
                line.connection.wire.socket.close()


def _send(connection: Connection, request: dict[str, Any]) -> ConnectionFailed | None:
    """Send a request. Returns what went wrong: the frames that raised it know the key."""
    try:
        connection.send_request(request)
    except Exception as cause:
        return translate(cause)
    return None


def _shown(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an error may keep them."""
    return {name: redact(value) if isinstance(value, str) else value for name, value in arguments.items()}
