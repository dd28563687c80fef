"""One WebSocket connection on top of `websocket-client`, for an event loop.

After the handshake nothing blocks. `BufferedSocket` is the library's socket: it hands out buffered bytes, and raises
`_NeedMore` where the library would block within a frame. The library resumes such a frame later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from types import MappingProxyType
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
from .failures import check_response, closed, translate
from .http_response import without_cookies

#: In bytes. Larger reads make malloc map and unmap memory each time.
READ_SIZE = 65_536
#: In bytes. No TLS record holds more, so a read of `READ_SIZE` leaves nothing of it in the TLS object.
_TLS_RECORD = 16_384
#: With TLS, every this many reads look for a further record.
_LOOK_EVERY = 32
#: What a read raises that would have to wait.
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: In bytes, for the header of the answer to the handshake.
MAX_HEADER = 65_536
#: Besides those of the service, `doctor` reads these headers of the answer. A connection is too small to keep all.
_KEPT_HEADERS = ("date", "server")
#: In bytes. A peer that makes us answer, but doesn't read the answers, is given up.
MAX_UNSENT = 1024 * 1024
#: How the payload of a ping by `send_probe` starts. The number of the probe follows.
_PROBE = b"probe "

_muted = threading.local()


@contextlib.contextmanager
def _end_not_logged() -> Iterator[None]:
    """Keep the library from logging the end of a connection as an error: our own error reports it."""
    _muted.active = True
    try:
        yield
    finally:
        _muted.active = False


def _is_logged(record: logging.LogRecord) -> bool:
    return not (getattr(_muted, "active", False) and record.getMessage().endswith(" - goodbye"))


logging.getLogger("websocket").addFilter(_is_logged)


class _NeedMore(Exception):
    """The received bytes end within a frame."""


class BufferedSocket:
    """The library's socket: it blocks up to the attempt's deadline at first, and never after `set_nonblocking`."""

    __slots__ = (
        "_attempt",
        "_until_next_look",
        "at",
        "buffer",
        "bytes_received",
        "readable",
        "received_ns",
        "secure",
        "socket",
        "unsent",
    )

    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        self.socket = sock
        self.secure = isinstance(sock, ssl.SSLSocket)
        #: With TLS: after this many reads, one reads further records.
        self._until_next_look = _LOOK_EVERY
        self.received_ns = 0
        self.bytes_received = 0
        self._attempt: Attempt | None = attempt
        #: The bytes that were read, and the offset of the first that wasn't taken.
        self.buffer = b""
        self.at = 0
        #: How many bytes the library may take: the rest of the frame that was checked.
        self.readable = 0
        self.unsent = bytearray()

    # For the library. With a timeout of 0 it doesn't wait by itself.

    _closed = False

    def gettimeout(self) -> float:
        return 0.0

    def settimeout(self, timeout: float | None) -> None:
        """Does nothing: the attempt has the deadline."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def shutdown(self, how: int) -> None:
        """Does nothing: `Connection.close_socket` flushes first."""

    def close(self) -> None:
        """Does nothing: `Connection.close_socket` flushes first."""

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

    # For this package.

    def set_nonblocking(self) -> None:
        """The handshake is over: don't block from now on."""
        self._attempt = None
        self.readable = 0
        self.socket.setblocking(False)

    def fill(self) -> int:
        """Read what has arrived, about `READ_SIZE` bytes at most, and return its size.

        Raises:
            EOFError: The peer closed the connection.
            OSError: The connection is lost.
        """
        try:
            data = self.reader(READ_SIZE)
        except WOULD_BLOCK:
            return 0
        return self.take(data)

    @property
    def reader(self) -> Callable[[int], bytes]:
        """What reads about as many bytes as asked at most, and raises one of `WOULD_BLOCK` if there are none."""
        return self._read_records if self.secure else self.socket.recv

    def take(self, data: bytes) -> int:
        """Take what `reader` has returned, and return its size.

        Raises:
            EOFError: The peer closed the connection.
        """
        if not data:
            raise EOFError
        self.received_ns = time.time_ns()
        self.bytes_received += len(data)
        self.buffer = data if self.at == len(self.buffer) else self.buffer[self.at :] + data
        self.at = 0
        return len(data)

    def _read_records(self, size: int) -> bytes:
        """Read one TLS record, or about `size` bytes during a burst. Raises what `SSLSocket.recv` does.

        When everything was read, another read costs more than the one before. So records after the first are read only
        if that one was full, if there were any the last time, and now and then.
        """
        data: bytes = self.socket.recv(size)
        self._until_next_look -= 1
        if not self._until_next_look or len(data) >= _TLS_RECORD:
            parts, read = [data], len(data)
            # The next read raises the error again.
            with contextlib.suppress(OSError):
                while data and read < size:
                    data = self.socket.recv(size)
                    parts.append(data)
                    read += len(data)
            self._until_next_look = 1 if len(parts) > 1 else _LOOK_EVERY
            return b"".join(parts)
        return data

    def flush(self) -> None:
        """Send what can be sent without blocking. Raises OSError if the peer leaves too much unread."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent)
            except WOULD_BLOCK:
                break
            except OSError:
                # The peer reads no more, but its last messages and its close frame may still be unread here.
                self.unsent.clear()
                break
            del self.unsent[:sent]
        if len(self.unsent) > MAX_UNSENT:
            raise OSError("the peer does not read the answers that it asks for")

    def _wait_for_response(self, attempt: Attempt) -> None:
        """Read and check the whole answer to the handshake. The library would read it byte by byte."""
        if self.buffer:
            raise EOFError  # the answer ended, and the library asks for more
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            if len(answer) > MAX_HEADER:
                fault = f"the answer to the handshake has a header of over {MAX_HEADER} bytes"
                raise ProtocolError(fault, permanent=True)
            self.socket.settimeout(attempt.remaining())
            data = self.socket.recv(4_096)
            if not data:
                raise EOFError
            answer += data
            if not b"HTTP/".startswith(answer[:5]):
                raise ProtocolError("the server does not speak HTTP, so it is no websocket server", permanent=True)
        # Frames may follow the answer already.
        self.received_ns = time.time_ns()
        self.bytes_received = len(answer)
        self.buffer = without_cookies(bytes(answer))
        check_response(self.buffer)


def _without_cookie(request: bytes) -> bytes:
    """Remove the cookies of the library's jar, which the whole process shares."""
    ours, cookie, _ = request.partition(b"\r\nCookie: ")
    # It is the last header, and a cookie may contain line breaks.
    return ours + b"\r\n\r\n" if cookie else request


class _AppDispatcher:
    """The library's dispatcher: keeps the function that reads a frame, and leaves the waiting to our event loop."""

    def __init__(self) -> None:
        self.read_frame: Callable[[], bool] | None = None

    def read(self, sock: BufferedSocket, read_callback: Callable[[], bool], check_callback: Callable[[], bool]) -> None:
        sock.set_nonblocking()
        self.read_frame = read_callback

    def send(self, sock: BufferedSocket, data: bytes) -> int:
        return sock.send(data)


class Connection(WebSocketApp):  # type: ignore[misc, unused-ignore]
    """An open connection: a `WebSocketApp` that reads frames only in `messages`."""

    # Without slots, there would be too many attributes for the compact form of instances.
    __slots__ = (
        "_dispatcher",
        "_fragments",
        "_received",
        "ended",
        "failure",
        "key",
        "max_message",
        "probe_answered",
        "probes_sent",
        "response_headers",
        "wire",
    )

    def __init__(
        self,
        url: str,
        wire: BufferedSocket,
        key: ApiKey,
        max_message: int,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(
            url,
            header={"User-Agent": f"finx-streamer/{__version__}", **headers},
            socket=wire,  # type: ignore[arg-type]
            on_data=_on_data,
            on_error=_on_error,
            on_close=_on_close,
            on_pong=_on_pong,
        )
        self.wire = wire
        self.key = key
        #: The headers of the answer to the handshake that matter, with names in lower case.
        self.response_headers: Mapping[str, str] = {}
        self.failure: BaseException | None = None
        #: How many probes were sent, and the last one that was answered. Its answer covers those before it.
        self.probes_sent = self.probe_answered = 0
        #: Why the connection ended, once its end has been read.
        self.ended: ConnectionFailed | None = None
        self._dispatcher = _AppDispatcher()
        self.max_message = max_message
        self._fragments = Fragments()
        self._received: list[bytes | Binary] = []

    def create_dispatcher(
        self, ping_timeout: object, dispatcher: Any = None, is_ssl: bool = False, handleDisconnect: object = None
    ) -> Any:
        return dispatcher

    def handshake(self) -> None:
        """Send the HTTP request and check the answer. Raises any exception."""
        with _end_not_logged():
            self.run_forever(dispatcher=self._dispatcher, skip_utf8_validation=True, suppress_origin=True)
        # The URL isn't needed any more, and it holds the key.
        self.url = redact(self.url)
        if self._dispatcher.read_frame is None or self.sock is None:
            raise self.failure or EOFError()
        headers = self.sock.getheaders() or {}
        kept = (name for name in headers if name.startswith("finx-") or name in _KEPT_HEADERS)
        self.response_headers = {name: headers[name] for name in kept}
        self.sock.handshake_response = None
        self.sock.cont_frame = self._fragments  # type: ignore[assignment]
        # The library validates UTF-8 byte by byte in Python. That is fine for the reason of a close frame only.
        self.sock.frame_buffer.skip_utf8_validation = False

    @property
    def before_message(self) -> bool:
        """Whether the next byte starts a message: it isn't within one, and the connection hasn't ended."""
        return not self.wire.readable and self._fragments.pending_size is None and self.ended is None

    def messages(self, limit: int) -> list[bytes | Binary]:
        """Return up to `limit` messages from the buffer, in order. Sets `ended` when the end is reached."""
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
        """Whether the connection is open and the buffer holds nothing of a further message."""
        return self.before_message and self.wire.at == len(self.wire.buffer)

    def _take_frames(self, limit: int) -> bool:
        """Read a run of plain text frames, or one other frame through the library. False if the buffer is used up."""
        wire = self.wire
        if not wire.readable:
            if self._fragments.pending_size is None:
                payloads, wire.at = read_text_frames(wire.buffer, wire.at, limit)
                if payloads:
                    self._take_texts(payloads)
                    return wire.at < len(wire.buffer)
            wire.readable = frame_size(wire.buffer, wire.at, self._fragments.pending_size, self.max_message)
            if not wire.readable:
                return False
        self._read_frame()
        return not wire.readable

    def _read_frame(self) -> None:
        """Let the library read the frame that was checked, as far as it is in the buffer."""
        read_frame = self._dispatcher.read_frame
        assert read_frame is not None
        # At the end of a fragment the library asks for the next one.
        with contextlib.suppress(_NeedMore), _end_not_logged():
            if not read_frame() and self.ended is None:
                self.ended = closed(None, None)

    def _take_texts(self, payloads: list[bytes]) -> None:
        if self.max_message < MAX_PLAIN_PAYLOAD and max(map(len, payloads), default=0) > self.max_message:
            # `read_text_frames` doesn't check this limit.
            self._take_texts([*takewhile(lambda payload: len(payload) <= self.max_message, payloads)])
            raise message_too_large(self.max_message)
        if not all(map(bytes.isascii, payloads)):
            for number, payload in enumerate(payloads):
                try:
                    payload.decode("utf-8")
                except UnicodeDecodeError:
                    self._received += payloads[:number]
                    raise FrameError("a text message that is not UTF-8", 1007) from None
        self._received += payloads

    def fail(self, error: ConnectionFailed, code: int) -> None:
        """End the connection because the peer broke the protocol, with a close frame."""
        self.ended = error
        self.send_close(code)

    def send_close(self, code: int = 1000) -> None:
        """Send a close frame, if that is possible without blocking."""
        with contextlib.suppress(Exception):
            if self.sock is not None and self.sock.connected:
                self.sock.send_close(code)

    def send_ping(self) -> None:
        """Send a ping. Raises OSError if the connection is lost."""
        if self.sock is not None:
            self.sock.ping()

    def send_probe(self) -> None:
        """Send a ping whose answer sets `probe_answered`. Raises OSError if the connection is lost."""
        self.probes_sent += 1
        if self.sock is not None:
            self.sock.ping(_PROBE + b"%d" % self.probes_sent)

    def send_keep_alive(self) -> None:
        """Send FinX's keepAlive message. Raises OSError if the connection is lost. Source: D."""
        self.send_request({"functionName": "keepAlive"})

    def send_request(self, request: dict[str, Any]) -> None:
        """Send a function call, and add the key to it. Raises OSError if the connection is lost. Source: D."""
        if self.sock is not None:
            self.sock.send_text(json.dumps({"APIKey": self.key.reveal(), **request}))

    def close_socket(self) -> None:
        """Close the socket without waiting, and break the reference cycles with the library."""
        sock = self.wire.socket
        with contextlib.suppress(OSError):
            self.wire.flush()
        if isinstance(sock, ssl.SSLSocket):
            # Tells the peer that nothing was cut off. Doesn't wait for its answer.
            with contextlib.suppress(OSError, ValueError):
                sock.unwrap()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        self.sock = None
        self._dispatcher.read_frame = None

    def disconnect(self) -> None:
        """Send a close frame and close the socket."""
        self.send_close()
        self.close_socket()

    def take_data(self, payload: bytes, opcode: int) -> None:
        """Take a whole message from the library."""
        if opcode == ABNF.OPCODE_BINARY:
            self._received.append(Binary(payload))
            return
        try:
            self._take_texts([payload])
        except FrameError as fault:
            # The library would swallow the exception.
            self.fail(fault.to_protocol_error(), fault.code)

    def take_close(self, code: int | None, reason: str | None) -> None:
        """Take the end of the connection from the library."""
        if self._dispatcher.read_frame is not None and self.ended is None:
            self.ended = closed(code, reason)


# The library's callbacks. Bound methods would be reference cycles, which keep a dead connection until a collection.


def _on_data(connection: Any, payload: bytes, opcode: int, _final: bool) -> None:
    connection.take_data(payload, opcode)


def _on_error(connection: Any, error: BaseException) -> None:
    connection.failure = error


def _on_pong(connection: Any, payload: bytes) -> None:
    number = payload.removeprefix(_PROBE)
    # A peer may send a pong that answers nothing.
    if number != payload and number.isdigit() and int(number) <= connection.probes_sent:
        connection.probe_answered = max(connection.probe_answered, int(number))


def _on_close(connection: Any, code: int | None, reason: str | None) -> None:
    connection.take_close(code, reason)
