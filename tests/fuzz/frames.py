"""Fuzz the frame readers: the bytes of a stream arrive in pieces, and a simple reference reader gets them at once.

The first byte of an input selects how to read (with `Connection`, or like the network thread), how many messages at a
time, and the number of splits. Two bytes follow for each split.
"""

from __future__ import annotations

import codecs
import contextlib
import struct
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.config.reconnect import ReconnectPolicy
from finx_streamer.config.symbols import Pair
from finx_streamer.connection.attempt import ConnectionConfig
from finx_streamer.connection.loop import EventLoop
from finx_streamer.connection.websocket import Connection
from finx_streamer.errors import AuthenticationError, ConnectionFailed, ProtocolError
from finx_streamer.streaming.interfaces import Delivery
from finx_streamer.streaming.session import Session, Timing
from finx_streamer.streaming.settings import StreamSettings
from finx_streamer.streaming.stream import Stream
from finx_streamer.streaming.stream_connection import UrlConnection
from finx_streamer.streaming.streams import Streams
from finx_streamer.values import NO_BOUND
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import Binary
from tests.fuzz.fake_server import PAIR, FakeServer, accept, connected, split_at
from tests.support.peers import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame, tick_text

#: In bytes. Small enough for inputs to reach it.
MAX_MESSAGE = 300
SYMBOL = str(PAIR)
NOW_NS = 1_656_775_855_900_000_000
_AS_STREAM, _LIMIT = 0x01, 0x0E
_LIMITS = (1, 2, 3, 5, 64, 65, 1_000, NO_BOUND)
_CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


@attrs.define
class Result:
    """What a reader received and sent."""

    messages: list[bytes | Binary] = attrs.field(factory=list)
    #: Opcode and payload of each frame that it sent.
    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    #: The type of the error that ended it, and the close code in it.
    end: tuple[type[ConnectionFailed], int | None] | None = None

    def violation(self, code: int) -> Result:
        """End with a protocol error, and answer with this close code."""
        self.sent.append((CLOSE, struct.pack("!H", code)))
        self.end = ProtocolError, None
        return self


def run(data: bytes) -> None:
    """Try one input."""
    options, data = (data[0] if data else 0), data[1:]
    splits = options >> 4
    pieces = split_at(data[2 * splits :], data[: 2 * splits])
    limit = _LIMITS[(options & _LIMIT) >> 1]
    expected = read_by_reference(b"".join(pieces))
    if options & _AS_STREAM:
        result, entries = read_as_stream(pieces, limit)
        assert entries == [*map(decode, expected.messages)]
        expected.messages.clear()
    else:
        result = read_with_connection(pieces, limit)
    assert result == expected


def read_by_reference(data: bytes) -> Result:
    """Read one frame after another, strictly by RFC 6455, with our limit on messages."""
    result = Result()
    pending: tuple[int, bytes] | None = None
    while len(data) >= 2:
        final, reserved, opcode = data[0] >= 0x80, data[0] & 0x70, data[0] & 0x0F
        size, masked, rest = data[1] & 0x7F, data[1] >= 0x80, data[2:]
        if reserved or masked or opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            return result.violation(1002)
        if opcode >= CLOSE and (size > 125 or not final):
            return result.violation(1002)
        if opcode < CLOSE and (opcode == 0) != (pending is not None):
            return result.violation(1002)
        width = {126: 2, 127: 8}.get(size, 0)
        if len(rest) < width:
            break
        if width:
            size, rest = int.from_bytes(rest[:width], "big"), rest[width:]
        if opcode < CLOSE and size + len(pending[1] if pending else b"") > MAX_MESSAGE:
            return result.violation(1009)
        if len(rest) < size:
            break
        payload, data = rest[:size], rest[size:]
        if opcode == CLOSE:
            return _read_close(result, payload)
        if opcode == PING:
            result.sent.append((PONG, payload))
        elif opcode != PONG:
            kind, before = pending or (opcode, b"")
            pending = None if final else (kind, before + payload)
            if final and kind == TEXT and not _is_text(before + payload):
                return result.violation(1007)
            if final:
                result.messages.append(before + payload if kind == TEXT else Binary(before + payload))
    return result


def _read_close(result: Result, payload: bytes) -> Result:
    if not payload:
        code = None
    elif len(payload) == 1 or not _is_text_prefix(payload[2:]):
        return result.violation(1002)
    else:
        code = int.from_bytes(payload[:2], "big")
        if code not in _CLOSE_CODES:
            return result.violation(1002)
    result.sent.append((CLOSE, struct.pack("!H", 1000)))
    result.end = (AuthenticationError if code == 1008 else ConnectionFailed), code
    return result


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_text_prefix(payload: bytes) -> bool:
    """Return whether it is UTF-8 up to a cut-off last character, which the library accepts in a close reason."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(payload)
    except UnicodeDecodeError:
        return False
    return True


def read_with_connection(pieces: list[bytes], limit: int) -> Result:
    """Read with `Connection.messages`, like the answers to function calls."""
    result = Result()
    with open_connection() as (connection, server):
        for _ in receive(connection, server, pieces):
            while messages := connection.messages(limit):
                assert len(messages) <= limit
                result.messages += messages
        finish(result, connection, server)
    return result


class Entries(Delivery):
    """Collects ticks and events as text, so that 1 and 1.0 differ."""

    peak = 0

    def __init__(self) -> None:
        self.entries: list[str] = []

    def new_loop(self, name: str, on_stop: Any, on_end: Any) -> EventLoop:
        return EventLoop(name, on_stop, on_end)

    def room(self) -> int:
        return NO_BOUND

    def put_tick(self, tick: Any) -> None:
        self.put_ticks([tick])

    def put_ticks(self, ticks: list[Any], pairs: list[str] | None = None) -> None:
        self.entries += map(repr, ticks)

    def put_event(self, event: Any) -> None:
        self.entries.append(repr(event.payload))


def read_as_stream(pieces: list[bytes], limit: int) -> tuple[Result, list[str]]:
    """Read like the network thread: from the buffer to ticks, notices and errors."""
    result, delivery = Result(), Entries()
    streams = new_streams(delivery)
    try:
        with open_connection() as (websocket, server):
            connection = _stream_connection(streams)
            for _ in receive(websocket, server, pieces):
                websocket.wire.received_ns = NOW_NS
                while connection.read_messages(websocket, limit):
                    pass
            finish(result, websocket, server)
    finally:
        streams.loop._close()
    return result, delivery.entries


def new_streams(delivery: Delivery, wire: Literal["url", "subscribe"] = "url") -> Streams:
    """Streams without a network."""
    endpoint = Endpoint("ws://127.0.0.1:9/", wire=wire)
    config = ConnectionConfig(endpoint, None, KeySource.from_argument("key"), 1.0, Any)  # type: ignore[arg-type]
    settings = StreamSettings(connection=config, name="fuzz", max_held=NO_BOUND)
    # History is for streams with a gap only. Without it, none has a position in a log.
    return Streams(delivery, settings, lambda failure: None, None if wire == "url" else Any)  # type: ignore[arg-type]


def _stream_connection(streams: Streams) -> UrlConnection:
    session = Session(ReconnectPolicy(), Timing(), streams.settings.connection.servers)
    session.start(0.0)
    session.opened(0.0)
    return UrlConnection(streams, session, None, Stream(Pair.parse(SYMBOL), streams))  # type: ignore[arg-type]


def decode(message: bytes | Binary) -> str:
    """Decode a message with a new decoder."""
    return repr(Decoder(SYMBOL, SYMBOL).decode(message, NOW_NS))


@contextlib.contextmanager
def open_connection() -> Iterator[tuple[Connection, FakeServer]]:
    """Connect, and yield the connection and the server."""
    with connected(accept, max_message=MAX_MESSAGE) as (connection, server):
        assert isinstance(connection, Connection), connection
        yield connection, server


def receive(connection: Connection, server: FakeServer, pieces: list[bytes]) -> Iterator[None]:
    """Receive one piece after another until the connection ends."""
    for piece in pieces:
        server.sock.send(piece)
        assert connection.wire.fill() == len(piece)
        yield
        server.receive(connection)
        if connection.ended is not None:
            break


def finish(result: Result, connection: Connection, server: FakeServer) -> None:
    if (ended := connection.ended) is not None:
        result.end = type(ended), ended.close_code
    sent = bytes(server.received)
    while sent:
        # The client's frames are short and masked.
        size = sent[1] & 0x7F
        mask, payload = sent[2:6], sent[6 : 6 + size]
        result.sent.append((sent[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))))
        sent = sent[6 + size :]


_TICKS = b"".join(frame(tick_text(number).replace(" ", "")) for number in range(4))
_FLAT_TICK = frame(
    '{"pair":"BTC:USDC","unixDate":1659897295,"UTCDate":"2022-08-07T18:34:55.000Z","exchange":"X","price":"2.5"}'
)
_FRAGMENTS = frame("Gr", fin=False) + frame(b"\xc3", 0, fin=False) + frame("", PING) + frame(b"\xbc\xc3\x9fe", 0)
_STREAMS = (
    b"",
    _TICKS,
    frame(tick_text(1)) + frame("{}", PING) + _TICKS + frame("[1]") + _FLAT_TICK + frame(b"\0", BINARY),
    _FRAGMENTS + frame("{}") + close_frame(1001, b"bye"),
    frame("x", fin=False) + frame("y", 0, fin=False) + frame("z", 0) + frame("w", 0),
    frame("x" * 126) + frame("x" * MAX_MESSAGE) + frame("x" * (MAX_MESSAGE + 1)),
    frame(b"x" * 126, BINARY) + frame(b"", PONG) + frame(b"\xff"),
    frame("", announced=1 << 40),
    close_frame(1008),
    close_frame(1005),
    frame(b"", CLOSE),
    frame(b"\x03", CLOSE),
    close_frame(1000, b"\xff"),
    frame("", rsv=4),
    frame("", 0x3),
    b"\x81\x81\0\0\0\0x",
)
#: Each stream, read in both ways, whole and in three pieces.
SEEDS = [
    options + stream
    for stream in _STREAMS
    for options in (b"\x0e", b"\x0f", b"\x2e\x00\x03\x00\x59", b"\x23\x00\x81\x01\x07")
]
WORDS = [
    *(bytes([first, size]) for first in (0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A) for size in (0, 2, 125, 126)),
    b"\x81\x7f\0\0\0\0\0\0\0\x05",
    b"\x81\x7e\x01\x2c",
    b"\x81\x7e\x00\x8b",
    *(struct.pack("!H", code) for code in (1000, 1005, 1008, 1015, 3000, 4999)),
    b'{"results":"streaming","resultData":{',
    b'"time":"15:30:55.817Z"',
    b'"exchange":"BINANCE"',
    b'"price":"1"}}',
    b'{"error":"x"}',
    b'{"keepAlive":true}',
    b"\xc3\xbc",
    b"\xed\xa0\x80",
]
