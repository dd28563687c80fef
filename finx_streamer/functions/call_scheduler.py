"""Runs function calls over a few connections. Everything here lives on the thread of one event loop.

The wire has no request IDs, so each connection has one call in flight (source: O). A connection on which something
went wrong is closed: a late answer could be taken for the next call's.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import attrs

from ..clock import monotonic
from ..config.api_key import ApiKey
from ..config.endpoint import Endpoint
from ..config.reconnect import ReconnectPolicy, is_fatal, is_unreachable
from ..config.redaction import redact
from ..connection.attempt import ConnectionConfig
from ..connection.channel import WebSocketChannel
from ..connection.handshake_pool import HandshakePool
from ..connection.loop import EventLoop
from ..connection.websocket import Connection
from ..errors import AuthenticationError, CallTimeout, ConnectionFailed, FinxStreamerError, FunctionError
from ..values import NEVER
from ..wire.frames import Binary

logger = logging.getLogger("finx_streamer")

#: Seconds within which the answer to a keepAlive must come.
_KEEPALIVE_TIMEOUT = 20.0
#: A call may take this many times its timeout while its answer keeps arriving.
_LONGEST_ANSWER = 6
#: With less time left than this many seconds, a call isn't retried.
_LAST_RETRY = 0.05
#: Bytes; a longer answer is data, not an error.
_LONGEST_ERROR = 65_536


@attrs.frozen
class PoolSettings:
    """What a call pool was given."""

    #: Where to connect; its symbol is None.
    config: ConnectionConfig
    #: When to retry a call whose connection failed; None: never.
    policy: ReconnectPolicy | None
    #: The maximum number of connections.
    size: int
    #: Of the threads.
    name: str
    #: Seconds after which an idle connection is pinged, so that a router or load balancer doesn't forget it; and for
    #: the answer.
    ping_interval: float = 25.0
    pong_timeout: float = 5.0
    #: Seconds after which an idle connection sends a keepAlive. A server may close it after 300 (source: D).
    keepalive_interval: float = 240.0
    #: Seconds after the handshake during which an error answer isn't blamed on an expired key.
    key_trusted_for: float = 60.0
    #: Whether a call fails at once if the server can't be reached, as long as no connection has ever been open.
    fail_fast: bool = False


@attrs.frozen
class Reply:
    """An answer as it came, and `time.time_ns()` when its bytes were read."""

    payload: bytes | Binary = attrs.field(repr=False)
    received_ns: int


class _Waiting(enum.Enum):
    """What a call waits for. The value completes the message of a timeout."""

    CONNECTION = "all connections are busy"
    HANDSHAKE = "still connecting"
    ANSWER = "the server is silent"
    RETRY = "waiting to retry"


class Call:
    """One function call, over as many connections as it takes.

    Args:
        function: The name on the wire.
        arguments: Its arguments, without the key.
        timeout: Seconds until it is sent, and then for the answer.
        delays: The waits between its attempts, in seconds.
        silence: The silence that the same call met before, on a connection that may be dead. It gets a new one if there
            is room.
        wants_list: Whether the answer is a JSON array. Otherwise it is an object.
    """

    def __init__(
        self,
        function: str,
        arguments: dict[str, Any],
        timeout: float,
        delays: Iterator[float],
        silence: ConnectionFailed | None = None,
        wants_list: bool = False,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.timeout = timeout
        self.delays = delays
        self.wants_new_connection = silence is not None
        self.wants_list = wants_list
        self.waits_for = _Waiting.CONNECTION
        #: When it must have been sent.
        self.send_by = monotonic() + timeout
        #: When it was sent; when it times out then, unless more of its answer arrives; and when it does in any case.
        self.sent_at = self.answer_by = self.end_by = NEVER
        self.retry_at = NEVER
        self.attempt = 1
        #: Why the attempt before failed.
        self.failure = silence
        #: See `WebSocketChannel`.
        self.refused_key: ApiKey | None = None
        self.next_key: ApiKey | None = None
        #: The server to connect to. None: the preferred one.
        self.server: Endpoint | None = None
        self.connection: PooledConnection | None = None
        self.bytes_received = 0
        #: Set before the outcome is put. The caller waits at the queue, which is safe to interrupt.
        self.finished = False
        self.outcome: SimpleQueue[Reply | FinxStreamerError] = SimpleQueue()
        #: Set before it is submitted.
        self.scheduler: CallScheduler | None = None
        #: For the loop: see `Timed`.
        self.scheduled = NEVER

    def finish(self, outcome: Reply | FinxStreamerError) -> None:
        """Wake the caller."""
        self.finished = True
        self.outcome.put(outcome)

    @property
    def expires_at(self) -> float:
        """When it times out. Waiting for a connection leaves no less time for the answer."""
        return self.answer_by if self.waits_for is _Waiting.ANSWER else self.send_by

    @property
    def deadline(self) -> float:
        return NEVER if self.finished else min(self.expires_at, self.retry_at)

    def wake(self, now: float) -> None:
        if self.finished or self.scheduler is None:
            return
        if now >= self.expires_at:
            if self.met_silence and self.connection is not None:
                self.scheduler.distrust_connections(self.sent_at)
                self.connection.config.servers.leave(self.connection.config.endpoint)
            self.scheduler.finish(self, self._timed_out())
        elif now >= self.retry_at:
            self.retry_at = NEVER
            self.scheduler.enqueue(self)

    def sent(self, connection: PooledConnection) -> None:
        """Note that it has a connection, and begin to wait for its answer."""
        now = monotonic()
        self.connection, self.waits_for, self.bytes_received = connection, _Waiting.ANSWER, 0
        self.sent_at, self.answer_by, self.end_by = now, now + self.timeout, now + _LONGEST_ANSWER * self.timeout

    @property
    def met_silence(self) -> bool:
        """Whether it was sent, and nothing has arrived."""
        return self.waits_for is _Waiting.ANSWER and not self.bytes_received

    def count_received(self, size: int, now: float) -> None:
        """More of the answer has arrived, which gives the rest more time: a slow line isn't silence."""
        self.bytes_received += size
        self.answer_by = min(self.end_by, now + self.timeout)

    def error(self, message: str, kind: type[FunctionError] = FunctionError) -> FunctionError:
        """An error of this call, without the key."""
        shown = {name: redact(value) if isinstance(value, str) else value for name, value in self.arguments.items()}
        return kind(self.function, shown, redact(message))

    def _timed_out(self) -> FunctionError:
        before = f"; before that: {self.failure.reason}" if self.failure is not None else ""
        if self.waits_for is not _Waiting.ANSWER:
            where = f"waited {self.timeout:g} s for a connection ({self.waits_for.value}{before})"
        elif self.bytes_received:
            where = f"no answer within {self.timeout:g} s ({self.bytes_received:,} bytes had arrived{before})"
        else:
            where = f"no answer within {self.timeout:g} s ({self.waits_for.value}{before})"
        return self.error(where, CallTimeout)


class PooledConnection(WebSocketChannel):
    """A connection that carries one call at a time. While it is idle it is pinged, and sends a keepAlive now and then.

    Args:
        scheduler: Whose connection it is.
        call: What it is opened for.
    """

    __slots__ = (
        "_heard_at",
        "_keepalive_answer_by",
        "_keepalive_at",
        "_opened_at",
        "_ping_at",
        "_pong_by",
        "_scheduler",
        "call",
    )

    def __init__(self, scheduler: CallScheduler, call: Call) -> None:
        super().__init__(scheduler.loop, scheduler.handshakes, scheduler.settings.config.at(call.server))
        #: The call that has this connection.
        self.call: Call | None = call
        self._scheduler = scheduler
        self._opened_at = self._heard_at = 0.0
        self._keepalive_at = self._keepalive_answer_by = self._ping_at = self._pong_by = NEVER
        self._refused_key, self._next_key = call.refused_key, call.next_key

    @property
    def is_idle(self) -> bool:
        """Whether it is open, has no call, and owes no answer to a keepAlive."""
        return self.call is None and self.websocket is not None and self._keepalive_answer_by == NEVER

    @property
    def is_trusted(self) -> bool:
        """Whether it owes no answer to a ping."""
        return self._pong_by == NEVER

    @property
    def is_reusable(self) -> bool:
        """Whether the next message will be an answer: it is open, and nothing of another message has arrived."""
        return self.websocket is not None and self.websocket.between_messages

    def ask(self, call: Call) -> None:
        """Send the request of a call, which has the connection until its answer has come."""
        self.call = call
        call.sent(self)
        # From here on, the call has the deadline: a server may be too busy with it to answer a ping.
        self._ping_at = self._pong_by = NEVER
        self._send_request({"functionName": call.function, **call.arguments})

    def _send_request(self, request: dict[str, Any]) -> None:
        self.send(lambda websocket: websocket.send_request(request))

    # The handshake, and the end.

    def opened(self, websocket: Connection) -> None:
        self._opened_at = self._heard_at = monotonic()
        self._scheduler.has_connected = True
        self.update_watch()
        if websocket.messages(1) or not self.is_reusable:
            self.lost(websocket.ended or ConnectionFailed("the server sent something before it was asked"))
        elif self.call is not None:
            self.ask(self.call)
        else:
            # The call that it was opened for has timed out.
            self._idle_from(self._opened_at)
            self._scheduler.assign()

    def lost(self, error: ConnectionFailed) -> None:
        call = self.call
        if call is not None:
            if self.websocket is not None:
                self.note_refusal(error, self.websocket.key)
            call.refused_key, call.next_key = self._refused_key, self._next_key
        self._scheduler.drop(self)
        if call is not None:
            self._scheduler.attempt_failed(call, self.config.endpoint, error)

    # Deadlines.

    @property
    def deadline(self) -> float:
        if self.websocket is None:
            return NEVER
        return min(self._keepalive_at, self._keepalive_answer_by, self._ping_at, self._pong_by)

    def wake(self, now: float) -> None:
        if now >= self._keepalive_answer_by or now >= self._pong_by:
            self._scheduler.drop(self)
        elif not self.is_idle:
            # `_idle_from` sets them again.
            self._keepalive_at = self._ping_at = NEVER
        elif now >= self._keepalive_at:
            self._keepalive_at = NEVER
            self._keepalive_answer_by = now + _KEEPALIVE_TIMEOUT
            self._send_request({"functionName": "keepAlive"})
        elif now >= self._ping_at:
            self._ping(now)

    def distrust(self, since: float, now: float) -> None:
        """Ping it before its next call, unless it has sent something since then."""
        if self._heard_at <= since and self.is_trusted:
            self._ping(now)

    def _ping(self, now: float) -> None:
        settings = self._scheduler.settings
        self._ping_at = now + settings.ping_interval
        self._pong_by = min(self._pong_by, now + settings.pong_timeout)
        self.loop.schedule(self)
        self.send(Connection.send_ping)

    def _idle_from(self, now: float) -> None:
        settings = self._scheduler.settings
        self._keepalive_at, self._ping_at = now + settings.keepalive_interval, now + settings.ping_interval
        self.loop.schedule(self)

    # Reading.

    def on_readable(self) -> None:
        websocket, call = self.websocket, self.call
        if websocket is None:
            return
        size = self.fill(websocket)
        if self.websocket is None:
            return
        if size:
            self._heard_at, self._pong_by = monotonic(), NEVER
            if call is not None:
                call.count_received(size, self._heard_at)
        messages = websocket.messages(2)
        if messages and call is not None:
            self._answered(call, websocket, messages)
        elif messages:
            self._unasked(messages)
        elif websocket.ended is not None:
            self.lost(websocket.ended)
        else:
            self.update_watch()  # a ping may have left a pong to send
            if call is None:
                self._scheduler.assign()

    def _answered(self, call: Call, websocket: Connection, messages: list[bytes | Binary]) -> None:
        now, payload = monotonic(), messages[0]
        self.call = call.connection = None
        settings = self._scheduler.settings
        # An expired key may be the reason for an error. If there may be another, the next call asks for it.
        key_may_be_old = settings.config.keys.can_change and now >= self._opened_at + settings.key_trusted_for
        may_be_error = _may_be_error(payload)
        expected = _is_enclosed(payload, b"[]" if call.wants_list and not may_be_error else b"{}")
        clean = len(messages) == 1 and websocket.between_messages and expected
        if clean and not (key_may_be_old and may_be_error):
            self._idle_from(now)
        else:
            self._scheduler.drop(self)
        self._scheduler.finish(call, Reply(payload, websocket.wire.received_ns))

    def _unasked(self, messages: list[bytes | Binary]) -> None:
        """The answer to a keepAlive. An error may mean that the key has expired; anything else could be taken for an
        answer to the next call."""
        payload = messages[0]
        if self.is_idle or len(messages) > 1 or not _is_enclosed(payload, b"{}") or _may_be_error(payload):
            self._scheduler.drop(self)
        else:
            self._keepalive_answer_by = NEVER
            self._idle_from(monotonic())
            self._scheduler.assign()


class CallScheduler:
    """Gives connections to calls, first come first served, and retries those whose connection failed.

    `loop.start`, `loop.post` and `loop.stop` are for any thread; everything else is for the loop's own.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.connections: list[PooledConnection] = []
        #: Whether any connection was ever open.
        self.has_connected = False
        self.loop = EventLoop(f"{settings.name}-calls", self._close, self._ended)
        self.handshakes = HandshakePool(self.loop, settings.name)
        self._calls: set[Call] = set()
        #: Those that wait for a connection.
        self._queue: deque[Call] = deque()

    def submit(self, call: Call) -> None:
        """Begin a call."""
        self._calls.add(call)
        self.loop.schedule(call)
        self.enqueue(call)

    def enqueue(self, call: Call) -> None:
        """Let a call wait for a connection."""
        call.waits_for = _Waiting.CONNECTION
        self._queue.append(call)
        self.assign()

    def assign(self) -> None:
        """Give idle connections, and new ones as far as allowed, to the calls that wait."""
        while self._queue:
            room = len(self.connections) < self.settings.size
            idle = None
            if not (room and self._queue[0].wants_new_connection):
                idle = next((each for each in self.connections if each.is_idle and each.is_trusted), None)
            if idle is not None and not idle.is_reusable:
                self.drop(idle)
            elif idle is not None:
                idle.ask(self._queue.popleft())
            elif room:
                call = self._queue.popleft()
                call.waits_for = _Waiting.HANDSHAKE
                call.connection = PooledConnection(self, call)
                self.connections.append(call.connection)
                call.connection.connect()
            else:
                return

    def finish(self, call: Call, outcome: Reply | FinxStreamerError) -> None:
        """End a call. A connection that it still has is closed: its answer would be taken for another call's."""
        if call.finished:
            return
        if call in self._queue:
            self._queue.remove(call)
        if call.connection is not None and call.connection.handshake is None:
            self.drop(call.connection)
        elif call.connection is not None:
            # The handshake isn't late: let it go on, for other calls.
            call.connection.call = None
        self.loop.unschedule(call)
        self.assign()
        self._calls.discard(call)
        # Last, because the caller's thread runs from here on.
        call.finish(outcome)

    def distrust_connections(self, since: float) -> None:
        """Ping all idle connections that have sent nothing since then: they may have died with another one."""
        now = monotonic()
        for connection in tuple(self.connections):
            if connection.is_idle:
                connection.distrust(since, now)

    def drop(self, connection: PooledConnection) -> None:
        """Close a connection and make room for another one."""
        if connection.call is not None:
            connection.call.connection = None
            connection.call = None
        connection.disconnect()
        self.loop.unschedule(connection)
        with contextlib.suppress(ValueError):
            self.connections.remove(connection)
        # Deferred, because the caller may be about to finish a call.
        self.loop.defer(self.assign)

    def attempt_failed(self, call: Call, server: Endpoint, failure: ConnectionFailed) -> None:
        """Retry a call, or report the failure to its caller."""
        self.settings.config.servers.name_in(failure, server)
        failure.attempt, call.failure = call.attempt, failure
        delay = self._retry_delay(call, server, failure)
        if delay is None:
            self.finish(call, failure)
            return
        logger.debug("%s: %s is retried in %.2f s: %s", self.settings.name, call.function, delay, failure)
        call.attempt += 1
        call.waits_for = _Waiting.RETRY
        call.retry_at = monotonic() + delay
        self.loop.schedule(call)

    def _retry_delay(self, call: Call, server: Endpoint, failure: ConnectionFailed) -> float | None:
        """Seconds to wait before the next attempt, at the next server; None if there is none."""
        policy, config = self.settings.policy, self.settings.config
        if policy is None or (policy.attempts is not None and failure.attempt >= policy.attempts):
            return None
        another_key = isinstance(failure, AuthenticationError) and config.keys.can_change and not failure.permanent
        tried = failure.attempt >= len(config.servers.endpoints)
        hopeless = is_fatal(failure, not tried) and not another_key
        hasty = self.settings.fail_fast and not self.has_connected and tried and is_unreachable(failure)
        if hopeless or hasty or (left := call.send_by - (now := monotonic())) < _LAST_RETRY:
            return None
        drawn = next(call.delays)
        call.server, delay = config.servers.after(server, failure, drawn, now)
        if delay != drawn:  # a server has asked to wait, perhaps for too long
            return delay if delay < left else None
        # Use all the time: the line may be back before the policy would have tried.
        return min(drawn, left / 2)

    def _close(self) -> None:
        for call in self._calls:
            call.finish(call.error("the client was closed"))
        for connection in self.connections:
            connection.disconnect()
        self.handshakes.close()

    def _ended(self, crash: BaseException | None) -> None:
        if crash is not None:
            logger.error("%s: the thread of function calls crashed", self.settings.name, exc_info=crash)


def _is_enclosed(payload: bytes | Binary, by: bytes) -> bool:
    """Whether this may be a JSON object, or a JSON array, with these brackets."""
    return isinstance(payload, bytes) and payload.strip()[:1] + payload.rstrip()[-1:] == by


def _may_be_error(payload: bytes | Binary) -> bool:
    return isinstance(payload, bytes) and len(payload) <= _LONGEST_ERROR and b'"error' in payload
