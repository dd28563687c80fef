"""The quick frame reader beside the library's own: the same bytes, cut anywhere, give the same messages and answers."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import websocket
from hypothesis import given
from hypothesis import strategies as st
from websocket import ABNF

from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.config.symbols import Pair
from finx_streamer.connection.attempt import Attempt, ConnectionConfig
from finx_streamer.connection.handshake import open_connection
from finx_streamer.connection.websocket import Binary, Connection
from finx_streamer.errors import ProtocolError
from finx_streamer.wire import frames
from finx_streamer.wire.frames import FrameError, frame_size, read_text_frames
from tests.support.effort import examples
from tests.support.peers import BINARY, CLOSE, PATIENCE, PING, PONG, TEXT, Caller, Peer, close_frame, frame

MEBIBYTE = 1 << 20
EXAMPLES = examples(60)


@attrs.define
class Heard:
    """What a reader made of some bytes, and what it answered."""

    messages: list[bytes | Binary] = attrs.field(factory=list)
    #: Opcode and payload of each frame that it sent.
    answers: list[tuple[int, bytes]] = attrs.field(factory=list)
    failed: bool = False


def unmasked(data: bytes) -> list[tuple[int, bytes]]:
    """The frames that a client sent. They are short and masked."""
    frames = []
    while data:
        opcode, length = data[0] & 0xF, data[1] & 0x7F
        mask, payload = data[2:6], data[6 : 6 + length]
        frames.append((opcode, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))))
        data = data[6 + length :]
    return frames


class Memory:
    """A socket for the library's own reader: it gives out bytes, and keeps what is sent."""

    def __init__(self, data: bytes) -> None:
        self.data, self.sent = data, bytearray()

    def gettimeout(self) -> float:
        return 0.0

    def recv(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def close(self) -> None:
        """It holds nothing."""


def by_the_library(data: bytes) -> Heard:
    """The library's own reader, with its own validation of UTF-8."""
    memory, heard = Memory(data), Heard()
    reader = websocket.WebSocket()
    reader.sock, reader.connected = memory, True  # type: ignore[assignment]
    try:
        while True:
            opcode, read = reader.recv_data_frame(True)
            if opcode == ABNF.OPCODE_CLOSE:
                break
            if opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY):
                heard.messages.append(read.data if opcode == ABNF.OPCODE_TEXT else Binary(read.data))
    except websocket.WebSocketConnectionClosedException:
        pass  # out of bytes
    except websocket.WebSocketException:
        heard.failed = True
    heard.answers = unmasked(bytes(memory.sent))
    return heard


@contextlib.contextmanager
def connected(answers: bytearray | None = None, max_message: int = 16 * MEBIBYTE) -> Iterator[Connection]:
    """A real connection after a real handshake; what it sends is in `answers` when it is closed."""
    left = threading.Event()

    def hear(caller: Caller) -> None:
        caller.welcome()
        with contextlib.suppress(OSError):
            while data := caller.sock.recv(65_536):
                if answers is not None:
                    answers.extend(data)
        left.set()

    with Peer(hear) as peer:
        target = ConnectionConfig(
            Endpoint(peer.url), Pair("BTC", "USDC"), KeySource.from_argument("key"), PATIENCE, Any, max_message
        )
        connection = open_connection(target, Attempt())
        try:
            yield connection
        finally:
            connection.close_socket()
            assert left.wait(PATIENCE)


def feed(connection: Connection, data: bytes, heard: Heard) -> None:
    """Bytes as they would come from the socket."""
    wire = connection.wire
    wire.buffer, wire.at = wire.buffer[wire.at :] + data, 0
    if connection.ended is None:
        heard.messages += connection.messages(1 << 30)


def by_us(pieces: list[bytes]) -> Heard:
    """Our reader, with the bytes in these pieces."""
    heard, answers = Heard(), bytearray()
    with connected(answers) as connection:
        for piece in pieces:
            feed(connection, piece, heard)
        heard.failed = isinstance(connection.ended, ProtocolError)
    heard.answers = unmasked(bytes(answers))
    return heard


texts = st.text(max_size=40).map(str.encode) | st.sampled_from([125, 126, 127, 300]).map(lambda size: b"x" * size)
controls = st.builds(frame, st.binary(max_size=20), st.sampled_from([PING, PONG]))
whole = st.builds(frame, texts, st.just(TEXT)) | st.builds(frame, st.binary(max_size=40), st.just(BINARY))


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """A message in fragments, with control frames in between. A fragment may end within a character."""
    payload = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    frames = b""
    for number, part in enumerate(parts):
        frames += frame(part, 0 if number else TEXT, fin=number == len(parts) - 1)
        if number < len(parts) - 1:
            frames += draw(st.just(b"") | controls)
    return frames


#: What both readers refuse.
broken = st.sampled_from(
    [
        frame("x", TEXT, rsv=4),
        frame("x", PING, rsv=1),
        frame("x", 0x3),
        frame("x", 0xB),
        frame("x", PING, fin=False),
        frame("x", 0),
        frame("x", TEXT, fin=False) + frame("y", TEXT),
        frame("x", TEXT, fin=False) + frame(b"y", BINARY),
        frame(b"\xff\xfe", TEXT),
        frame(b"\xc3", TEXT, fin=False) + frame(b"(", 0),
        frame(b"\x03", CLOSE),
        frame(struct.pack("!H", 999), CLOSE),
        frame(struct.pack("!H", 1000) + b"\xff", CLOSE),
    ]
)
endings = st.just(b"") | broken | st.builds(close_frame, st.sampled_from([1000, 1001, 1008, 1011, 3000, 4999]))


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """Some frames, perhaps an end, cut into pieces anywhere."""
    data = b"".join(draw(st.lists(whole | controls | fragmented(), max_size=8))) + draw(endings)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(pieces())
@EXAMPLES
def test_the_quick_reader_hears_what_the_library_hears(cut: list[bytes]) -> None:
    """Messages, failures, pongs and the answer to a close are the same, wherever the bytes are cut."""
    expected, heard = by_the_library(b"".join(cut)), by_us(cut)
    if expected.failed:
        # The library leaves the close frame to its user.
        assert heard.answers.pop()[0] == CLOSE
    heard.answers = [answer for answer in heard.answers if answer != (CLOSE, struct.pack("!H", 1000))]
    expected.answers = [answer for answer in expected.answers if answer != (CLOSE, struct.pack("!H", 1000))]
    assert heard == expected


@pytest.mark.parametrize("pair", [frame("a") + frame("b", PING) + frame("c" * 200) + close_frame(1000, b"bye")])
def test_every_place_to_cut_is_harmless(pair: bytes) -> None:
    """The same bytes cut in two at each possible place, and byte by byte."""
    expected = by_the_library(pair).messages
    for at in range(len(pair) + 1):
        assert by_us([pair[:at], pair[at:]]).messages == expected
    assert by_us([pair[at : at + 1] for at in range(len(pair))]).messages == expected


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, MEBIBYTE])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_frames_of_every_form_of_length(size: int, opcode: int) -> None:
    """The three forms of a length, at their edges."""
    payload = b"x" * size
    data = frame(payload, opcode) + frame("after")
    expected = [payload if opcode == TEXT else Binary(payload), b"after"]
    half = len(data) // 2
    assert by_us([data]).messages == expected
    assert by_us([data[:half], data[half:]]).messages == expected


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x81\0\0\0\0x", 1002),
        (b"\x89\x80\0\0\0\0", 1002),
        (frame(b"x" * 126, PING), 1002),
        (frame(b"x", PONG, fin=False), 1002),
        (frame(struct.pack("!H", 1000), CLOSE, fin=False), 1002),
        (frame("", TEXT, rsv=2), 1002),
        (frame("", 0x7), 1002),
        (frame("", 0), 1002),
        (frame(b"\x80", TEXT), 1007),
        (frame("", TEXT, announced=1 << 40), 1009),
        (frame("", BINARY, announced=(16 << 20) + 1), 1009),
        (b"\x81\xff" + b"\xff" * 8, 1002),
    ],
)
def test_what_breaks_the_protocol_is_refused_with_its_code(data: bytes, code: int) -> None:
    """What RFC 6455 forbids ends the connection, even where the library lets it pass; what came before is heard."""
    heard = by_us([frame("before") + data + frame("after")])
    assert heard.messages == [b"before"]
    assert heard.failed
    assert [(CLOSE, struct.pack("!H", code))] == heard.answers


@pytest.mark.parametrize("cut", [0, 1])
def test_a_bound_that_is_smaller_than_a_plain_frame_holds(cut: int) -> None:
    """A text over the bound is refused whether it arrives whole or in two parts; what came before is heard."""
    heard, data = Heard(), frame("before") + frame("x" * 1_001) + frame("after")
    with connected(max_message=1_000) as connection:
        for piece in (data[: len(data) * cut // 2], data[len(data) * cut // 2 :]):
            feed(connection, piece, heard)
        assert isinstance(connection.ended, ProtocolError)
    assert heard.messages == [b"before"]


def test_a_message_in_fragments_is_bounded_in_size() -> None:
    """The bound holds for the whole message, not for each fragment."""
    heard = Heard()
    with connected(max_message=1_000) as connection:
        feed(connection, frame("x" * 600, TEXT, fin=False), heard)
        assert connection.ended is None
        feed(connection, frame("x" * 600, 0), heard)
        assert isinstance(connection.ended, ProtocolError)
    assert heard.messages == []


def test_the_number_of_fragments_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of endless empty fragments ends the connection."""
    monkeypatch.setattr(frames, "MAX_FRAGMENTS", 1_000)
    heard = Heard()
    with connected() as connection:
        feed(connection, frame("", TEXT, fin=False) + frame("", 0, fin=False) * frames.MAX_FRAGMENTS, heard)
        assert isinstance(connection.ended, ProtocolError)


def test_a_message_in_many_fragments_arrives() -> None:
    """20,000 fragments are one message."""
    heard = Heard()
    with connected() as connection:
        data = frame("a", TEXT, fin=False) + frame("b", 0, fin=False) * 20_000 + frame("c", 0)
        for at in range(0, len(data), 16_384):
            feed(connection, data[at : at + 16_384], heard)
    assert heard.messages == [b"a" + b"b" * 20_000 + b"c"]


@given(st.binary(max_size=40), st.integers(0, 3), st.integers(1, 5))
@EXAMPLES
def test_any_bytes_are_frames_or_one_error(data: bytes, at: int, limit: int) -> None:
    """Whatever the bytes are, the reader stays within them and within the limit."""
    payloads, end = read_text_frames(data, at, limit)
    assert len(payloads) <= limit
    assert at <= end <= max(at, len(data))
    with contextlib.suppress(FrameError):
        frame_size(data, end, None, 1_000)


def test_a_limit_leaves_the_rest_in_the_buffer() -> None:
    """No more messages are taken than asked for, and none is lost by that."""
    heard: list[bytes | Binary] = []
    with connected() as connection:
        connection.wire.buffer = b"".join(frame(str(number)) for number in range(10)) + frame("ping", PING)
        connection.wire.at = 0
        for _ in range(4):
            heard += connection.messages(3)
            assert len(heard) <= 10
    assert heard == [str(number).encode() for number in range(10)]
