"""A connection whose far end is in the same thread: it speaks just before the client reads. The sockets are real ones.

With a thread at the far end a finding would come back only now and then, and each input would take three times as long.
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

#: The key of all connections. What the far end says can quote it. (Its beginning is no end of an escape: who puts a "%"
#: before "f0" has spelled another text.)
KEY = "zq/Zz-kEy"
_KEYS = KeySource.from_argument(KEY)
#: The whole of it, and what could be left at an end; as it is, and as it is in a URL.
_TRACES = [part.replace("/", slash).casefold() for part in (KEY, KEY[:6], KEY[-6:]) for slash in ("/", "%2f")]
PAIR = Pair("BTC", "USDC")
#: No input is to fail for a slow machine; one that hangs is found by its time.
_EVER = 1e6
#: How much is said at once, in bytes: a socket takes more than that without anybody reading.
_BREATH = 16_384

#: Given the request, the answer in pieces.
Answer = Callable[[bytes], list[bytes]]


class Far(Attempt):
    """The far end, and the attempt that leads there: who asks an attempt for the time left is about to read."""

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        super().__init__()
        self.sock = sock
        self.request = b""
        #: What the client sent once it had asked.
        self.heard = bytearray()
        self._answer = answer
        #: What is still to be said, the next of it last; None: nobody has asked yet.
        self._unsaid: list[bytes] | None = None

    def remaining(self, until: float = math.inf) -> float:
        left = super().remaining(until)
        if self._unsaid is None:
            with contextlib.suppress(BlockingIOError):
                self.request += self.sock.recv(65_536)
            if not self.request.endswith(b"\r\n\r\n"):
                return left
            self.will_say(self._answer(self.request))
        self._speak()
        return left

    def will_say(self, pieces: list[bytes]) -> None:
        breaths = [piece[at : at + _BREATH] for piece in pieces for at in range(0, len(piece), _BREATH)]
        self._unsaid = breaths[::-1]

    def left_to_say(self) -> list[bytes]:
        """The pieces that nobody has waited for so far."""
        unsaid, self._unsaid = self._unsaid or [], []
        return unsaid[::-1]

    def listen(self, connection: Connection) -> None:
        """Take in all that the client has to say."""
        while True:
            with contextlib.suppress(BlockingIOError):
                while data := self.sock.recv(65_536):
                    self.heard += data
            if not connection.wire.unsent:
                break
            connection.wire.flush()

    def _speak(self) -> None:
        if self._unsaid:
            self.sock.send(self._unsaid.pop())
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The near end, and the far one, which never waits."""
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        yield near, far


@contextlib.contextmanager
def dialled(
    answer: Answer, keys: KeySource | None = None, max_message: int = MAX_MESSAGE
) -> Iterator[tuple[Connection | ConnectionFailed, Far]]:
    """What came of an attempt to connect, with all that belongs to one but TCP; and the far end."""
    with socket_pair() as (near, sock):
        far = Far(sock, answer)
        target = ConnectionConfig(Endpoint("ws://127.0.0.1:1/"), PAIR, keys or _KEYS, _EVER, _no_context, max_message)
        dial, dialling.dial = dialling.dial, lambda *_: near  # type: ignore[assignment]
        try:
            outcome = outcome_of(target, far)
        finally:
            dialling.dial = dial
        try:
            yield outcome, far
        finally:
            if isinstance(outcome, Connection):
                outcome.close_socket()


def acceptance(request: bytes) -> str:
    """What Sec-WebSocket-Accept has to be."""
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert found, request
    return base64.b64encode(hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def welcome(request: bytes) -> list[bytes]:
    """The answer of a server that has nothing against it."""
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    return ["\r\n".join([*lines, f"Sec-WebSocket-Accept: {acceptance(request)}", "", ""]).encode()]


def in_pieces(data: bytes, places: bytes) -> list[bytes]:
    """The data cut at some places: two bytes for each."""
    numbers = [int.from_bytes(places[at : at + 2], "big") for at in range(0, len(places) - 1, 2)]
    cuts = sorted(number % (len(data) + 1) for number in numbers)
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


def check_error(error: ConnectionFailed, in_part: bool = True) -> None:
    """What holds for every error that a user gets."""
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
    """No text of ours shows the key, nor what is left of it where it was cut; as it is or percent-encoded."""
    shown = text.casefold()
    for spelled in _TRACES[: None if in_part else 2]:
        assert spelled not in shown, "the key is shown"


def holds_traces(data: bytes) -> bool:
    """Whether an input has a part of the key in it by itself, which nothing could tell from other text."""
    return any(trace.encode() in data.lower() for trace in _TRACES)


def _no_context() -> Any:
    raise AssertionError("there is no TLS here")
