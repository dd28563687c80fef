"""One client's connection: a bounded queue before the socket, and the ways to end or to freeze it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import Any, Protocol

import attrs
from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from .protocol import Route, frame

#: RFC 6455 custom: try again later. It tells a client that it was too slow.
TOO_SLOW = 1013
#: How much goes to the socket in one write, in bytes. It is also the mark above which a transport asks for a pause.
CHUNK = 65_536

_ENDING = (State.CLOSING, State.CLOSED)


@attrs.frozen
class Limits:
    """What a connection is bounded by: bytes, and seconds."""

    queue_bytes: int
    slow_client_timeout: float
    close_timeout: float


class Watcher(Protocol):
    """Whom a connection tells what becomes of it."""

    def opened(self, connection: Connection) -> None:
        """TCP (and TLS) is there; the handshake is still to come."""

    def leave(self, connection: Connection) -> None:
        """It takes no more ticks. May be told more than once."""

    def lost(self, connection: Connection) -> None:
        """TCP is gone."""

    def slow(self, connection: Connection) -> None:
        """It is about to be disconnected for being slow."""

    def has_room(self) -> None:
        """Some connection's queue got shorter."""


class Connection(ServerConnection):
    """A connection that can be sent ready-made frames without waiting.

    The library's own `send()` waits for a slow client, and its `broadcast()` has no bound. Here frames wait in a queue
    while the transport is full, and a client is disconnected with 1013 when that queue is over its limit, or when the
    transport has stayed full for `slow_client_timeout`.
    """

    def __init__(self, *arguments: Any, limits: Limits, watcher: Watcher, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.route: Route | None = None
        self.silent = False
        #: What waits in the queue, in bytes.
        self.queued = 0
        self._limits = limits
        self._watcher = watcher
        self._queue: deque[bytes] = deque()
        self._overflowed = False
        self._held: list[bytes] = []
        self._patience: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether there is no room for more, and there is a point in waiting for it."""
        return self.queued >= self._limits.queue_bytes and not self.silent

    def offer(self, data: bytes, *, patient: bool = False) -> None:
        """Queue a frame; `flush()` sends it. Over the limit the client is given up, unless the caller is `patient`.

        A patient caller looks at `full` before it offers more. Nobody can wait for a silent connection, though.
        """
        if self._overflowed:
            return
        over = self.queued + len(data) > self._limits.queue_bytes
        if over and self._queue and (self.silent or not patient):
            self._give_up()
            return
        self._queue.append(data)
        self.queued += len(data)

    def say(self, message: str | bytes) -> None:
        """Send a message now, behind those that wait; one that is being waited for may go over the limit."""
        self.offer(frame(message), patient=True)
        self.flush()

    def flush(self) -> None:
        """Hand the transport as much of the queue as it takes."""
        while self._queue and not self.paused and not self.silent and self._is_open:
            self.transport.write(self._chunk())

    def shut(self, code: int, reason: str = "") -> None:
        """Send what waits, then a close frame; abort if the client has not answered it in time. Returns at once."""
        self._watcher.leave(self)
        self._unfreeze()
        if not self._is_open:
            return
        self.transport.write(b"".join(self._queue))
        self._clear()
        self.protocol.send_close(code, reason)
        self.send_data()

    def drop(self, *, reset: bool = False) -> None:
        """End TCP without a close frame: with FIN, or with RST if `reset`."""
        self._watcher.leave(self)
        self._clear()
        if reset:
            with contextlib.suppress(OSError):
                tcp = self.transport.get_extra_info("socket")
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def freeze(self) -> None:
        """Neither read nor send from now on, control frames included; TCP stays open."""
        if self.silent or not self._is_open:
            return
        self.silent = True
        self.transport.pause_reading()
        self._cancel_patience()
        # Its pings could not go out, so their pongs would be missed.
        if self.keepalive_task is not None:
            self.keepalive_task.cancel()
            self.keepalive_task = None

    def thaw(self) -> None:
        """Go on after `freeze()`: answer what came meanwhile and send what waits, or 1013 if that was too much."""
        if not self.silent:
            return
        self._unfreeze()
        if not self._is_open:
            return
        self.start_keepalive()
        if self._overflowed:
            self._dismiss()
            return
        self.flush()
        if self.paused:
            self._await_patiently()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._watcher.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel_patience()
        if self._deadline is not None:
            self._deadline.cancel()
        self._clear()
        self._watcher.leave(self)
        self._watcher.lost(self)

    def data_received(self, data: bytes) -> None:
        if not self.silent:
            super().data_received(data)
            return
        # Reading is paused, but the library resumes it for reasons of its own when a message is taken.
        self._held.append(data)
        self.transport.pause_reading()

    def send_data(self) -> None:
        # What the protocol wants to say while silent stays within it until `thaw()`.
        if self.silent:
            return
        super().send_data()
        # Every end passes here, whoever began it: the client, the library or `shut()`.
        if self.protocol.state in _ENDING and self._deadline is None:
            self._wind_up()

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.silent:
            self._await_patiently()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_patience()
        self.flush()
        self._watcher.has_room()

    @property
    def _is_open(self) -> bool:
        return self.protocol.state is State.OPEN and not self.transport.is_closing()

    def _chunk(self) -> bytes:
        if self.queued <= CHUNK:
            data = b"".join(self._queue)
            self._clear()
            return data
        parts, size = [], 0
        while self._queue and size < CHUNK:
            parts.append(self._queue.popleft())
            size += len(parts[-1])
        self.queued -= size
        return b"".join(parts)

    def _clear(self) -> None:
        self._queue.clear()
        self.queued = 0

    def _unfreeze(self) -> None:
        if self.silent:
            self.silent = False
            held, self._held = self._held, []
            for data in held:
                super().data_received(data)
            self.send_data()
            self.transport.resume_reading()

    def _wind_up(self) -> None:
        """No more ticks for it; and if the client does not see to the end of TCP in time, that is done here."""
        self._watcher.leave(self)
        self._clear()
        self._cancel_patience()
        self._deadline = self.loop.call_later(self._limits.close_timeout, self.transport.abort)

    def _await_patiently(self) -> None:
        self._cancel_patience()
        self._patience = self.loop.call_later(self._limits.slow_client_timeout, self._dismiss)

    def _cancel_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        """The queue is over its limit. A silent connection is only told when it is silent no more."""
        self._overflowed = True
        self._clear()
        if not self.silent:
            self._dismiss()

    def _dismiss(self) -> None:
        if self._is_open:
            self._clear()
            self._watcher.slow(self)
            self.shut(TOO_SLOW, "client too slow")
