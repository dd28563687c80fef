"""A fake server in the client's own thread, over a real socket pair. It sends just before the client reads.

With a second thread, findings would not be reproducible, and each input would take three times as long.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.config.symbols import Pair
from finx_streamer.connection import dial as dialling
from finx_streamer.connection.attempt import MAX_MESSAGE, Attempt, ConnectionConfig
from finx_streamer.connection.handshake import outcome_of
from finx_streamer.connection.websocket import Connection
from finx_streamer.errors import ConnectionFailed

#: The key of all connections. The fake server can quote it. Its first characters aren't hexadecimal digits, which could
#: complete an escape.
KEY = "zq/Zz-kEy"
_KEYS = KeySource.from_argument(KEY)
#: The key and its beginning and end, as they are and percent-encoded.
_KEY_PARTS = [part.replace("/", slash).casefold() for part in (KEY, KEY[:6], KEY[-6:]) for slash in ("/", "%2f")]
PAIR = Pair("BTC", "USDC")
#: In seconds. Inputs must not fail on a slow machine; libFuzzer detects those that hang.
_NO_TIMEOUT = 1e6
#: The size of one send in bytes. It fits into the socket's buffer.
_CHUNK = 16_384

#: Returns the response to a request, in pieces.
Respond = Callable[[bytes], list[bytes]]


class FakeServer(Attempt):
    """The server and the client's attempt in one: the client asks for the remaining time just before it reads."""

    def __init__(self, sock: socket.socket, respond: Respond) -> None:
        super().__init__()
        self.sock = sock
        self.request = b""
        #: The bytes that the client sent after its request.
        self.received = bytearray()
        self._respond = respond
        #: Chunks to send, the next one last. None before the request.
        self._unsent: list[bytes] | None = None

    def remaining(self, until: float = math.inf) -> float:
        left = super().remaining(until)
        if self._unsent is None:
            with contextlib.suppress(BlockingIOError):
                self.request += self.sock.recv(65_536)
            if not self.request.endswith(b"\r\n\r\n"):
                return left
            self.queue(self._respond(self.request))
        self._send()
        return left

    def queue(self, pieces: list[bytes]) -> None:
        """Send these pieces, one before each read."""
        chunks = [piece[at : at + _CHUNK] for piece in pieces for at in range(0, len(piece), _CHUNK)]
        self._unsent = chunks[::-1]

    def take_unsent(self) -> list[bytes]:
        """Return the chunks that have not been sent, and forget them."""
        unsent, self._unsent = self._unsent or [], []
        return unsent[::-1]

    def receive(self, connection: Connection) -> None:
        """Receive all that the client sends."""
        while True:
            with contextlib.suppress(BlockingIOError):
                while data := self.sock.recv(65_536):
                    self.received += data
            if not connection.wire.unsent:
                break
            connection.wire.flush()

    def _send(self) -> None:
        if self._unsent:
            self.sock.send(self._unsent.pop())
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the client's socket and the server's, which is non-blocking."""
    client, server = socket.socketpair()
    with client, server:
        server.setblocking(False)
        yield client, server


@contextlib.contextmanager
def connected(
    respond: Respond, keys: KeySource | None = None, max_message: int = MAX_MESSAGE
) -> Iterator[tuple[Connection | ConnectionFailed, FakeServer]]:
    """Connect without TCP and yield the outcome and the server."""
    with socket_pair() as (client, sock):
        server = FakeServer(sock, respond)
        endpoint = Endpoint("ws://127.0.0.1:1/")
        config = ConnectionConfig(endpoint, PAIR, keys or _KEYS, _NO_TIMEOUT, _no_context, max_message)
        dial, dialling.dial = dialling.dial, lambda *_: client  # type: ignore[assignment]
        try:
            outcome = outcome_of(config, server)
        finally:
            dialling.dial = dial
        try:
            yield outcome, server
        finally:
            if isinstance(outcome, Connection):
                outcome.close_socket()


def accept_value(request: bytes) -> str:
    """Return the correct value of Sec-WebSocket-Accept."""
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert found, request
    return base64.b64encode(hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def accept(request: bytes) -> list[bytes]:
    """Return the response of a server that accepts the request."""
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    return ["\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept_value(request)}", "", ""]).encode()]


def split_at(data: bytes, places: bytes) -> list[bytes]:
    """Split the data at the offsets in `places`, two bytes each."""
    numbers = [int.from_bytes(places[at : at + 2], "big") for at in range(0, len(places) - 1, 2)]
    cuts = sorted(number % (len(data) + 1) for number in numbers)
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


def check_error(error: ConnectionFailed, in_part: bool = True) -> None:
    """Check what holds for every error that a user gets."""
    text = str(error)
    assert text.isprintable(), ascii(text)
    assert len(text) < 100_000
    shown: BaseException | None = error
    while shown is not None:
        check_secrecy(f"{shown!r} {shown} {shown.args!r}", in_part)
        shown = shown.__cause__ or shown.__context__
    check_secrecy(repr(error.__dict__), in_part)
    assert error.retry_after is None or 0 <= error.retry_after < float("inf"), error.retry_after


def check_secrecy(text: str, in_part: bool = True) -> None:
    """Check that the text doesn't contain the key or, if `in_part`, its beginning or end."""
    shown = text.casefold()
    for part in _KEY_PARTS[: None if in_part else 2]:
        assert part not in shown, "the key is shown"


def contains_key(data: bytes) -> bool:
    """Return whether an input itself contains a part of the key, which redaction can't recognise."""
    return any(trace.encode() in data.lower() for trace in _KEY_PARTS)


def _no_context() -> Any:
    raise AssertionError("this connection has no TLS")
