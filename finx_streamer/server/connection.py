"""One client's connection: a bounded send queue, and ways to end or freeze it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from http import HTTPStatus
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from .addresses import Address
from .pages import METHOD_NOT_ALLOWED, Page
from .protocol import Route, encode_frame
from .resuming import Start
from .settings import Settings

#: The close code for a client that has to connect again.
TRY_AGAIN = 1013
#: The most bytes per write, and the transport's high-water mark.
CHUNK = 65_536

#: The most bytes to wait for before the method of a request is known.
_METHOD_LENGTH = 16

_CLOSING = (State.CLOSING, State.CLOSED)


class Observer(Protocol):
    """Receives the events of connections."""

    def on_opened(self, connection: Connection) -> None:
        """TCP (and TLS) is connected. The handshake follows."""

    def on_answered(self, connection: Connection) -> None:
        """The handshake has ended, or a page was sent, or there will be no answer."""

    def on_closing(self, connection: Connection) -> None:
        """The connection accepts no more ticks. May be called more than once."""

    def on_lost(self, connection: Connection) -> None:
        """TCP has ended."""

    def on_too_slow(self, connection: Connection) -> None:
        """The connection is about to be closed because the client is too slow."""

    def on_room(self) -> None:
        """A connection's queue has room again."""


class Connection(ServerConnection):
    """A connection that accepts encoded frames without waiting.

    The library's `send()` waits for a slow client, and its `broadcast()` has no limit. Here, frames are queued while
    the transport is full. The client is disconnected with 1013 when the queue exceeds its limit, or when the transport
    stays full for `slow_client_timeout`.
    """

    def __init__(self, *arguments: Any, settings: Settings, observer: Observer, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.route: Route | None = None
        #: Where its stream starts in the log, if the client asked for that.
        self.start: Start | None = None
        self.address: Address | None = None
        #: The page that was sent instead of a handshake.
        self.page: Page | None = None
        #: The route's symbol, if it is one that the source lists, and the number of its key, if that is accepted.
        self.listed_symbol: str | None = None
        self.key_number: int | None = None
        #: When the handshake completed.
        self.opened_at: float | None = None
        self.messages_sent = 0
        self.frozen = False
        self.queued_bytes = 0
        self._settings = settings
        self._observer = observer
        self._queue: deque[bytes] = deque()
        self._overflowed = False
        #: The beginning of the request, until its method is known. None afterwards.
        self._head: bytes | None = b""
        self._refused = False
        #: Input that arrived while the connection was frozen.
        self._held_input: list[bytes] = []
        self._slow_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether the queue is full and waiting may help. It doesn't while the connection is frozen."""
        return self.queued_bytes >= self._settings.queue_bytes and not self.frozen

    @property
    def network(self) -> str:
        """What counts as this client's address."""
        return "" if self.address is None else self.address.network

    @property
    def status(self) -> int | None:
        """The HTTP status that was sent; None if there was no answer."""
        if self._refused:
            return HTTPStatus.METHOD_NOT_ALLOWED
        if self.response is None or (self.response.status_code == 101 and self.protocol.state is not State.OPEN):
            return None
        return self.response.status_code

    @property
    def first_close_code(self) -> int:
        """The code of the close frame that came first, from either side; 1006 if there was none."""
        received, sent = self.protocol.close_rcvd, self.protocol.close_sent
        first = received if self.protocol.close_rcvd_then_sent or sent is None else sent
        return 1006 if first is None else first.code

    def enqueue(self, data: bytes, *, can_wait: bool = False) -> None:
        """Queue a frame for `flush()`. Beyond the limit, disconnect the client unless the caller can wait.

        A caller that can wait checks `is_full` before it queues more. The limit always applies to a frozen connection.
        """
        if self._overflowed:
            return
        exceeds = self.queued_bytes + len(data) > self._settings.queue_bytes
        if exceeds and self._queue and (self.frozen or not can_wait):
            self._overflow()
            return
        self._queue.append(data)
        self.queued_bytes += len(data)

    def reply(self, message: str | bytes) -> None:
        """Send a message after those in the queue. It may exceed the limit, because the caller waits for `drain()`."""
        self.enqueue(encode_frame(message), can_wait=True)
        self.flush()

    def flush(self) -> None:
        """Write as much of the queue as the transport accepts."""
        while self._queue and not self.paused and not self.frozen and self._is_open:
            self.transport.write(self._take_chunk())

    async def drain(self) -> None:
        """Wait until the transport has accepted the queue. While the connection is frozen, it doesn't."""
        await super().drain()
        # The transport may have had room for a part of it.
        while self._queue and self._is_open and not self.frozen:
            self.flush()
            await super().drain()

    def begin_close(self, code: int, reason: str = "") -> None:
        """Send the queue and a close frame. Abort if the client doesn't answer in time. Returns at once."""
        self._observer.on_closing(self)
        self._resume_input()
        if not self._is_open:
            return
        self.messages_sent += len(self._queue)
        self.transport.write(b"".join(self._queue))
        self._clear_queue()
        self.protocol.send_close(code, reason)
        self.send_data()

    def drop(self, *, reset: bool = False) -> None:
        """End TCP without a close frame: with RST if `reset`, else with FIN."""
        self._observer.on_closing(self)
        self._clear_queue()
        if reset:
            with contextlib.suppress(OSError):
                tcp = self.transport.get_extra_info("socket")
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def freeze(self) -> None:
        """Stop reading and sending, control frames included. TCP stays open."""
        if self.frozen or not self._is_open:
            return
        self.frozen = True
        self.transport.pause_reading()
        self._cancel_slow_timer()
        # Our pings could not be sent, and the missing pongs would close the connection.
        if self.keepalive_task is not None:
            self.keepalive_task.cancel()
            self.keepalive_task = None

    def thaw(self) -> None:
        """Undo `freeze()`: process the input held back and send the queue, or close with 1013 if it overflowed."""
        if not self.frozen:
            return
        self._resume_input()
        if not self._is_open:
            return
        self.start_keepalive()
        if self._overflowed:
            self._close_too_slow()
            return
        self.flush()
        if self.paused:
            self._start_slow_timer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.address = Address.of(transport.get_extra_info("peername"))
        self._observer.on_opened(self)

    async def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().handshake(*arguments, **options)
        finally:
            self._observer.on_answered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_slow_timer()
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self._clear_queue()
        self._observer.on_closing(self)
        self._observer.on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            data = self._check_method(self._head + data)
        if not self.frozen:
            if data:
                super().data_received(data)
            return
        # The library resumes reading when a message is consumed. Pause it again.
        self._held_input.append(data)
        self.transport.pause_reading()

    def send_data(self) -> None:
        # While frozen, the protocol object keeps its output until thaw().
        if self.frozen:
            return
        if self._queue and self.protocol.state is State.OPEN:
            # A pong shows clients that everything sent before it has arrived.
            for data in self.protocol.data_to_send():
                self.enqueue(data, can_wait=True)
            self.flush()
            return
        super().send_data()
        # Every close goes through here, whether the client, the library or begin_close() started it.
        if self.protocol.state in _CLOSING and self._abort_timer is None:
            self._limit_close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.frozen:
            self._start_slow_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_slow_timer()
        self.flush()
        self._observer.on_room()

    def _check_method(self, data: bytes) -> bytes:
        """Answer a request of another method than GET with 405. Returns the data for the library.

        Only recent versions of the library answer, after they have asked us about the request.
        """
        if self._refused:
            return b""
        method, space, _ = data[:_METHOD_LENGTH].partition(b" ")
        if not space and len(data) < _METHOD_LENGTH:
            self._head = data
            return b""
        if space and method != b"GET" and method.isalpha() and method.isupper():
            self._refuse_method()
            return b""
        self._head = None
        return data

    def _refuse_method(self) -> None:
        self._head, self._refused = b"", True
        self.transport.write(METHOD_NOT_ALLOWED)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        # Read on, and discard the body: an unread one would reset the connection before the client has our answer.
        self.transport.write_eof()
        self._abort_timer = self.loop.call_later(self._settings.close_timeout, self.transport.abort)

    @property
    def _is_open(self) -> bool:
        return self.protocol.state is State.OPEN and not self.transport.is_closing()

    def _take_chunk(self) -> bytes:
        if self.queued_bytes <= CHUNK:
            data = b"".join(self._queue)
            self.messages_sent += len(self._queue)
            self._clear_queue()
            return data
        frames, size = [], 0
        while self._queue and size < CHUNK:
            frames.append(self._queue.popleft())
            size += len(frames[-1])
        self.messages_sent += len(frames)
        self.queued_bytes -= size
        return b"".join(frames)

    def _clear_queue(self) -> None:
        self._queue.clear()
        self.queued_bytes = 0

    def _resume_input(self) -> None:
        if self.frozen:
            self.frozen = False
            held, self._held_input = self._held_input, []
            for data in held:
                super().data_received(data)
            self.send_data()
            self.transport.resume_reading()

    def _limit_close(self) -> None:
        """Accept no more ticks, and abort TCP if the client doesn't close it in time."""
        self._observer.on_closing(self)
        self._clear_queue()
        self._cancel_slow_timer()
        self._abort_timer = self.loop.call_later(self._settings.close_timeout, self.transport.abort)

    def _start_slow_timer(self) -> None:
        self._cancel_slow_timer()
        self._slow_timer = self.loop.call_later(self._settings.slow_client_timeout, self._close_too_slow)

    def _cancel_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None

    def _overflow(self) -> None:
        """Discard the queue and close the connection. A frozen one is closed by thaw()."""
        self._overflowed = True
        self._clear_queue()
        if not self.frozen:
            self._close_too_slow()

    def _close_too_slow(self) -> None:
        if self._is_open:
            self._clear_queue()
            self._observer.on_too_slow(self)
            self.begin_close(TRY_AGAIN, "client too slow")
