"""One websocket connection. The only module that imports `websocket`.

A handshake blocks, so `open_connection` runs in a worker thread: it resolves, connects, shakes hands (TLS, then HTTP)
and returns a `Connection`, all within one deadline and open to `Attempt.cancel` from another thread. From then on
nothing blocks: the network thread calls `fill` when the socket is readable, `messages` for what is complete, `flush`
when it is writable.

`BufferedSocket` is what the library believes to be its socket. During the handshake it waits up to the deadline;
afterwards it
gives out buffered bytes, and raises `_NeedMore` where the library would have blocked inside a frame. The library's
frame buffer can be resumed after that, so half a frame costs nothing but memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import websocket
from websocket import ABNF, WebSocketApp

from .._version import __version__
from ..config.api_key import ApiKey
from ..config.redaction import redact
from ..errors import ConnectionFailed, ProtocolError
from ..wire.frames import (
    MAX_PLAIN_PAYLOAD,
    Binary,
    Fragments,
    FrameError,
    frame_size,
    message_too_large,
    read_text_frames,
)
from .attempt import Attempt
from .failures import (
    _check_answer,
    closed,
    translate,
)
from .http_response import without_cookies

logger = logging.getLogger("finx_streamer")

#: Larger reads make malloc map and unmap memory at every call.
READ_SIZE = 65_536
MAX_HEADER = 65_536
#: A peer that makes us answer but does not read has to be given up at some point.
MAX_UNSENT = 1024 * 1024
#: What the ping carries that asks whether everything sent before has arrived.
_PROBE = b"seam"


_hushed = threading.local()


@contextlib.contextmanager
def _hush() -> Iterator[None]:
    """Within it the library does not log the end of a connection, which it calls an error though it be our own stop.

    What there is to tell is told once, by an error of ours.
    """
    _hushed.here = True
    try:
        yield
    finally:
        _hushed.here = False


def _is_news(record: logging.LogRecord) -> bool:
    return not (getattr(_hushed, "here", False) and record.getMessage().endswith(" - goodbye"))


logging.getLogger("websocket").addFilter(_is_news)


class _NeedMore(Exception):
    """The bytes received so far end within a frame."""


class BufferedSocket:
    """The library's socket: blocking up to a deadline at first, a pair of buffers after `set_nonblocking`."""

    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        self.socket = sock
        self.secure = isinstance(sock, ssl.SSLSocket)
        self.received_ns = 0
        self.bytes_received = 0
        self._attempt: Attempt | None = attempt
        #: What was read, and up to where it was taken.
        self.buffer = b""
        self.at = 0
        #: How many bytes the library may take: those of the frame that was checked. The next is checked first.
        self.readable = 0
        #: What could not be sent yet.
        self.unsent = bytearray()

    # What the library calls. It asks for a timeout of 0 to find out that there is nothing to wait for.

    _closed = False

    def gettimeout(self) -> float:
        return 0.0

    def settimeout(self, timeout: float | None) -> None:
        """Deadlines are ours."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def shutdown(self, how: int) -> None:
        """The connection is closed by its owner, who may still have to flush."""

    def close(self) -> None:
        """The connection is closed by its owner, who may still have to flush."""

    def recv(self, size: int) -> bytes:
        if self._attempt is not None:
            if self.at == len(self.buffer):
                self._wait_for_response(self._attempt)
        else:
            size = min(size, self.readable)
            if not size or self.at == len(self.buffer):
                raise _NeedMore
        data = self.buffer[self.at : self.at + size]
        self.at += len(data)
        self.readable -= len(data)
        return data

    def send(self, data: bytes) -> int:
        if self._attempt is not None:
            self.socket.settimeout(self._attempt.remaining())
            self.socket.sendall(_without_cookie(data))
        else:
            self.unsent += data
            self.flush()
        return len(data)

    # What the handshake and the network thread call.

    def set_nonblocking(self) -> None:
        """From here on nothing blocks."""
        self._attempt = None
        self.readable = 0
        self.socket.setblocking(False)

    def fill(self) -> int:
        """Read what has arrived, up to about `READ_SIZE`; the number of bytes. Raises OSError; EOFError at the end."""
        try:
            data = self.socket.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        if not data:
            raise EOFError
        if self.secure:
            data = self._with_read_ahead(data)
        self.received_ns = time.time_ns()
        self.bytes_received += len(data)
        self.buffer = data if self.at == len(self.buffer) else self.buffer[self.at :] + data
        self.at = 0
        return len(data)

    def _with_read_ahead(self, data: bytes) -> bytes:
        """TLS gives out one record of 16 KiB at most, and no poller sees what it has read besides."""
        parts, size = [data], len(data)
        # Whatever ends the connection here ends it again at the next read.
        with contextlib.suppress(OSError):
            while size < READ_SIZE and data:
                data = self.socket.recv(READ_SIZE - size)
                parts.append(data)
                size += len(data)
            if rest := self.socket.pending():  # type: ignore[attr-defined]
                parts.append(self.socket.recv(rest))
        return b"".join(parts)

    def flush(self) -> None:
        """Send what can be sent without waiting. Raises OSError where the peer has left too much of it unread."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:
                # The peer takes no more, but what it said before is still to be read, and the end of it all behind.
                self.unsent.clear()
                break
            del self.unsent[:sent]
        if len(self.unsent) > MAX_UNSENT:
            raise OSError("the peer does not read what it asks for")

    def _wait_for_response(self, attempt: Attempt) -> None:
        """The server's answer to the handshake, whole: read byte by byte it would cost a system call each."""
        if self.buffer:
            raise EOFError  # the answer was all there, and the library asks for more
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            if len(answer) > MAX_HEADER:
                raise ProtocolError(
                    f"the answer to the handshake has a header of over {MAX_HEADER} bytes", permanent=True
                )
            self.socket.settimeout(attempt.remaining())
            data = self.socket.recv(4_096)
            if not data:
                raise EOFError
            answer += data
            if not b"HTTP/".startswith(answer[:5]):
                raise ProtocolError("the server does not speak HTTP, and so no websocket", permanent=True)
        # Frames may lie behind the answer already.
        self.received_ns = time.time_ns()
        self.bytes_received = len(answer)
        self.buffer = without_cookies(bytes(answer))
        _check_answer(self.buffer)


def _without_cookie(request: bytes) -> bytes:
    """A handshake without what the library's jar, which all of the process share, would have us send."""
    ours, cookie, _ = request.partition(b"\r\nCookie: ")
    # It comes last, and may hold line breaks.
    return ours + b"\r\n\r\n" if cookie else request


class _AppDispatcher:
    """The library's dispatcher: takes note of how to read a frame, and leaves the waiting to the network thread."""

    def __init__(self) -> None:
        self.read_frame: Callable[[], bool] | None = None

    def read(self, sock: BufferedSocket, read_callback: Callable[[], bool], check_callback: Callable[[], bool]) -> None:
        sock.set_nonblocking()
        self.read_frame = read_callback

    def send(self, sock: BufferedSocket, data: bytes) -> int:
        return sock.send(data)


class Connection(WebSocketApp):  # type: ignore[misc, unused-ignore]
    """A `WebSocketApp` whose frames are read when the network thread says so."""

    def __init__(self, url: str, wire: BufferedSocket, key: ApiKey, max_message: int) -> None:
        super().__init__(
            url,
            header={"User-Agent": f"finx-streamer/{__version__}"},
            socket=wire,  # type: ignore[arg-type]
            on_data=_on_data,
            on_error=_on_error,
            on_close=_on_close,
            on_pong=_on_pong,
        )
        self.wire = wire
        self.key = key
        self.failure: BaseException | None = None
        #: Whether the ping that was to probe the connection has been answered; None: there was none.
        self.probe_answered: bool | None = None
        #: How the connection ended, once its end has been read.
        self.ended: ConnectionFailed | None = None
        self._doorstep = _AppDispatcher()
        self._max_message = max_message
        self._fragments = Fragments()
        self._received: list[bytes | Binary] = []

    def create_dispatcher(
        self, ping_timeout: object, dispatcher: Any = None, is_ssl: bool = False, handleDisconnect: object = None
    ) -> Any:
        return dispatcher

    def shake_hands(self) -> None:
        """The HTTP part of the handshake. Raises whatever went wrong."""
        with _hush():
            self.run_forever(dispatcher=self._doorstep, skip_utf8_validation=True, suppress_origin=True)
        # The URL has served its purpose; what does not hold the key can't show it.
        self.url = redact(self.url)
        if self._doorstep.read_frame is None or self.sock is None:
            raise self.failure or EOFError()
        self.sock.cont_frame = self._fragments  # type: ignore[assignment]
        # It checks messages in Python, a byte at a time, and so is told not to; but the reason of a close frame may be.
        self.sock.frame_buffer.skip_utf8_validation = False

    @property
    def before_message(self) -> bool:
        """Whether what is read next begins a message, and is not within one, or behind the end."""
        return not self.wire.readable and self._fragments.pending_size is None and self.ended is None

    def messages(self, limit: int) -> list[bytes | Binary]:
        """Up to `limit` messages of what has been read, in order. Sets `ended` where the stream's end is among them."""
        received: list[bytes | Binary] = []
        self._received = received
        try:
            while len(received) < limit and self.ended is None and self._take_frames(limit - len(received)):
                pass
        except FrameError as fault:
            self.fail(fault.to_protocol_error(), fault.code)
        except websocket.WebSocketException as fault:
            self.fail(FrameError(redact(str(fault))).to_protocol_error(), 1002)
        except OSError as fault:
            self.ended = translate(fault)
        return received

    @property
    def between_messages(self) -> bool:
        """Whether it is open, and all that has been read was taken: nothing of a further message."""
        return self.before_message and self.wire.at == len(self.wire.buffer)

    def _take_frames(self, limit: int) -> bool:
        """Read a run of plain text frames, or one frame of another kind by way of the library. False: out of bytes."""
        wire = self.wire
        if not wire.readable:
            if self._fragments.pending_size is None:
                payloads, wire.at = read_text_frames(wire.buffer, wire.at, limit)
                if payloads:
                    self._take_texts(payloads)
                    return wire.at < len(wire.buffer)
            wire.readable = frame_size(wire.buffer, wire.at, self._fragments.pending_size, self._max_message)
            if not wire.readable:
                return False
        self._read_frame()
        return not wire.readable

    def _read_frame(self) -> None:
        """Have the library read the frame that was checked, as far as it is there."""
        read_frame = self._doorstep.read_frame
        assert read_frame is not None
        # It asks for more at the end of a fragment too, where it wants the next one.
        with contextlib.suppress(_NeedMore), _hush():
            if not read_frame() and self.ended is None:
                self.ended = closed(None, None)

    def _take_texts(self, payloads: list[bytes]) -> None:
        if self._max_message < MAX_PLAIN_PAYLOAD and max(map(len, payloads), default=0) > self._max_message:
            # The quick reader knows of no such bound.
            self._take_texts([*takewhile(lambda payload: len(payload) <= self._max_message, payloads)])
            raise message_too_large(self._max_message)
        if not all(map(bytes.isascii, payloads)):
            for number, payload in enumerate(payloads):
                try:
                    payload.decode("utf-8")
                except UnicodeDecodeError:
                    self._received += payloads[:number]
                    raise FrameError("a text message that is not UTF-8", 1007) from None
        self._received += payloads

    def fail(self, error: ConnectionFailed, code: int) -> None:
        """End the connection for a fault of the peer's, and tell it so."""
        self.ended = error
        self.send_close(code)

    def send_close(self, code: int = 1000) -> None:
        """Send a close frame, as far as that goes without waiting."""
        with contextlib.suppress(Exception):
            if self.sock is not None and self.sock.connected:
                self.sock.send_close(code)

    def send_ping(self) -> None:
        """Raises OSError where the connection is lost."""
        if self.sock is not None:
            self.sock.ping()

    def send_probe(self) -> None:
        """A ping whose answer is noted in `probe_answered`. Raises OSError where the connection is lost."""
        self.probe_answered = False
        if self.sock is not None:
            self.sock.ping(_PROBE)

    def send_keep_alive(self) -> None:
        """FinX's own keepAlive (source: D). Raises OSError where the connection is lost."""
        self.send_request({"functionName": "keepAlive"})

    def send_request(self, request: dict[str, Any]) -> None:
        """A function call (source: D), to which the key is added. Raises OSError where the connection is lost."""
        if self.sock is not None:
            self.sock.send_text(json.dumps({"APIKey": self.key.reveal(), **request}))

    def close_socket(self) -> None:
        """Close the socket at once, and let go of what refers back to here."""
        sock = self.wire.socket
        with contextlib.suppress(OSError):
            self.wire.flush()
        if isinstance(sock, ssl.SSLSocket):
            # Tells the peer that nothing was cut off; it does not wait for the answer.
            with contextlib.suppress(OSError, ValueError):
                sock.unwrap()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        self.sock = None
        self._doorstep.read_frame = None

    def disconnect(self) -> None:
        """Say goodbye, and close."""
        self.send_close()
        self.close_socket()

    def take_data(self, payload: bytes, opcode: int) -> None:
        """One whole message, from the library."""
        if opcode == ABNF.OPCODE_BINARY:
            self._received.append(Binary(payload))
            return
        try:
            self._take_texts([payload])
        except FrameError as fault:
            # The library would swallow it.
            self.fail(fault.to_protocol_error(), fault.code)

    def take_close(self, code: int | None, reason: str | None) -> None:
        """The end of the connection, from the library."""
        if self._doorstep.read_frame is not None and self.ended is None:
            self.ended = closed(code, reason)


# The library's callbacks. Bound methods would make a reference cycle, and keep a dead connection until a collection.


def _on_data(connection: Any, payload: bytes, opcode: int, _final: bool) -> None:
    connection.take_data(payload, opcode)


def _on_error(connection: Any, error: BaseException) -> None:
    connection.failure = error


def _on_pong(connection: Any, payload: bytes) -> None:
    if payload == _PROBE and connection.probe_answered is False:
        connection.probe_answered = True


def _on_close(connection: Any, code: int | None, reason: str | None) -> None:
    connection.take_close(code, reason)
