"""The frame reader: bytes of a stream, cut anywhere, beside a plain reader that is given all of them at once.

An input's first byte says how to read: by the connection alone, or as the network side does, which takes runs of ticks
out of the buffer; how many messages at a time; and how often the rest is cut. Two bytes follow for each cut.
"""

from __future__ import annotations

import codecs
import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import attrs

from finx_streamer.config.reconnect import ReconnectPolicy
from finx_streamer.connection.websocket import Connection
from finx_streamer.errors import AuthenticationError, ConnectionFailed, ProtocolError
from finx_streamer.streaming.interfaces import Delivery
from finx_streamer.streaming.session import Session, Timing
from finx_streamer.streaming.streams import Stream, StreamConnection, Streams
from finx_streamer.values import NO_BOUND
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import Binary
from tests.fuzz.near import PAIR, Far, dialled, in_pieces, welcome
from tests.support.peers import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame, tick_text

#: A bound that inputs can reach.
MAX_MESSAGE = 300
SYMBOL = str(PAIR)
NOW_NS = 1_656_775_855_900_000_000
_BY_THE_NETWORK, _LIMIT, _CUTS = 0x01, 0x0E, 0xF0
_LIMITS = (1, 2, 3, 5, 64, 65, 1_000, NO_BOUND)
_CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


@attrs.define
class Heard:
    """What a reader made of a stream, and what it answered."""

    messages: list[bytes | Binary] = attrs.field(factory=list)
    #: Opcode and payload of each frame that it sent.
    answers: list[tuple[int, bytes]] = attrs.field(factory=list)
    #: What kind of error ended it, and the close code in that.
    end: tuple[type[ConnectionFailed], int | None] | None = None

    def broken(self, code: int) -> Heard:
        self.answers.append((CLOSE, struct.pack("!H", code)))
        self.end = ProtocolError, None
        return self


def run(data: bytes) -> None:
    """One input."""
    how, data = data[:1] or b"\0", data[1:]
    cuts = how[0] >> 4
    pieces = in_pieces(data[2 * cuts :], data[: 2 * cuts])
    limit = _LIMITS[(how[0] & _LIMIT) >> 1]
    expected = plainly(b"".join(pieces))
    if how[0] & _BY_THE_NETWORK:
        heard, entries = by_the_network(pieces, limit)
        assert entries == [*map(decoded, expected.messages)]
        expected.messages.clear()
    else:
        heard = by_the_connection(pieces, limit)
    assert heard == expected


def plainly(data: bytes) -> Heard:
    """RFC 6455 for what a server may send, a frame after another; and our bound on messages."""
    heard = Heard()
    begun: tuple[int, bytes] | None = None
    while len(data) >= 2:
        final, reserved, opcode = data[0] >= 0x80, data[0] & 0x70, data[0] & 0x0F
        size, masked, rest = data[1] & 0x7F, data[1] >= 0x80, data[2:]
        if reserved or masked or opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            return heard.broken(1002)
        if opcode >= CLOSE and (size > 125 or not final):
            return heard.broken(1002)
        if opcode < CLOSE and (opcode == 0) != (begun is not None):
            return heard.broken(1002)
        width = {126: 2, 127: 8}.get(size, 0)
        if len(rest) < width:
            break
        if width:
            size, rest = int.from_bytes(rest[:width], "big"), rest[width:]
        if opcode < CLOSE and size + len(begun[1] if begun else b"") > MAX_MESSAGE:
            return heard.broken(1009)
        if len(rest) < size:
            break
        payload, data = rest[:size], rest[size:]
        if opcode == CLOSE:
            return _closed(heard, payload)
        if opcode == PING:
            heard.answers.append((PONG, payload))
        elif opcode != PONG:
            kind, before = begun or (opcode, b"")
            begun = None if final else (kind, before + payload)
            if final and kind == TEXT and not _is_text(before + payload):
                return heard.broken(1007)
            if final:
                heard.messages.append(before + payload if kind == TEXT else Binary(before + payload))
    return heard


def _closed(heard: Heard, payload: bytes) -> Heard:
    if not payload:
        code = None
    elif len(payload) == 1 or not _begins_text(payload[2:]):
        return heard.broken(1002)
    else:
        code = int.from_bytes(payload[:2], "big")
        if code not in _CLOSE_CODES:
            return heard.broken(1002)
    heard.answers.append((CLOSE, struct.pack("!H", 1000)))
    heard.end = (AuthenticationError if code == 1008 else ConnectionFailed), code
    return heard


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _begins_text(payload: bytes) -> bool:
    """The library lets a reason pass that ends within a character; it is shown with a sign in that one's place."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(payload)
    except UnicodeDecodeError:
        return False
    return True


def by_the_connection(pieces: list[bytes], limit: int) -> Heard:
    """By `Connection.messages`, as answers to function calls are read."""
    heard = Heard()
    with open_to_read() as (connection, far):
        for _ in _read(connection, far, pieces):
            while messages := connection.messages(limit):
                assert len(messages) <= limit
                heard.messages += messages
        _conclude(heard, connection, far)
    return heard


class Entries(Delivery):
    """Takes whatever comes, as text: two that are equal look so, and numbers of different types do not."""

    peak = 0

    def __init__(self) -> None:
        self.entries: list[str] = []

    def room(self) -> int:
        return NO_BOUND

    def put_ticks(self, ticks: list[Any]) -> None:
        self.entries += map(repr, ticks)

    def put_event(self, event: Any) -> None:
        self.entries.append(repr(event.payload))


def by_the_network(pieces: list[bytes], limit: int) -> tuple[Heard, list[str]]:
    """By the network side's own way from a buffer to ticks, notices and errors."""
    heard, outlet = Heard(), Entries()
    streams = Streams(outlet, None, "fuzz", lambda failure: None, NO_BOUND, None)
    try:
        with open_to_read() as (websocket, far):
            connection = _stream_connection(streams)
            for _ in _read(websocket, far, pieces):
                websocket.wire.received_ns = NOW_NS
                while connection._read_messages(websocket, limit):
                    pass
            _conclude(heard, websocket, far)
    finally:
        streams.loop._close()
    return heard, outlet.entries


def _stream_connection(streams: Streams) -> StreamConnection:
    session = Session(ReconnectPolicy(), Timing())
    session.start(0.0)
    session.opened(0.0)
    stream = Stream(SYMBOL, Decoder(SYMBOL, SYMBOL), streams)
    return StreamConnection(streams, session, None, stream)  # type: ignore[arg-type]


def decoded(message: bytes | Binary) -> str:
    """What a decoder that has seen nothing before makes of a message."""
    return repr(Decoder(SYMBOL, SYMBOL).decode(message, NOW_NS))


@contextlib.contextmanager
def open_to_read() -> Iterator[tuple[Connection, Far]]:
    """A connection after a good handshake."""
    with dialled(welcome, max_message=MAX_MESSAGE) as (connection, far):
        assert isinstance(connection, Connection), connection
        yield connection, far


def _read(connection: Connection, far: Far, pieces: list[bytes]) -> Iterator[None]:
    """One piece after another, up to the end of the connection."""
    for piece in pieces:
        far.sock.send(piece)
        assert len(piece) == connection.wire.fill()
        yield
        far.listen(connection)
        if connection.ended is not None:
            break


def _conclude(heard: Heard, connection: Connection, far: Far) -> None:
    if (ended := connection.ended) is not None:
        heard.end = type(ended), ended.close_code
    sent = bytes(far.heard)
    while sent:
        # What a client sends here is short and masked.
        size = sent[1] & 0x7F
        mask, payload = sent[2:6], sent[6 : 6 + size]
        heard.answers.append((sent[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))))
        sent = sent[6 + size :]


_TICKS = b"".join(frame(tick_text(number).replace(" ", "")) for number in range(4))
_LATER = frame(
    '{"pair":"BTC:USDC","unixDate":1659897295,"UTCDate":"2022-08-07T18:34:55.000Z","exchange":"X","price":"2.5"}'
)
_FRAGMENTS = frame("Gr", fin=False) + frame(b"\xc3", 0, fin=False) + frame("", PING) + frame(b"\xbc\xc3\x9fe", 0)
_STREAMS = (
    b"",
    _TICKS,
    frame(tick_text(1)) + frame("{}", PING) + _TICKS + frame("[1]") + _LATER + frame(b"\0", BINARY),
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
#: Each stream in both ways, whole and cut in three.
SEEDS = [
    how + stream for stream in _STREAMS for how in (b"\x0e", b"\x0f", b"\x2e\x00\x03\x00\x59", b"\x23\x00\x81\x01\x07")
]
#: What is worth putting in.
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
