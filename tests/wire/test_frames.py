"""The frame reader agrees with websocket-client's own, however the bytes are split."""

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
class Result:
    """What a reader received and sent."""

    messages: list[bytes | Binary] = attrs.field(factory=list)
    #: Opcode and payload of each frame that it sent.
    sent: list[tuple[int, bytes]] = attrs.field(factory=list)
    failed: bool = False


def parse_client_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Return opcode and payload of a client's frames, which are short and masked."""
    frames = []
    while data:
        opcode, length = data[0] & 0xF, data[1] & 0x7F
        mask, payload = data[2:6], data[6 : 6 + length]
        frames.append((opcode, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))))
        data = data[6 + length :]
    return frames


class FakeSocket:
    """A socket that returns the given bytes and records what is sent."""

    def __init__(self, data: bytes) -> None:
        self.data, self.sent = data, bytearray()

    def gettimeout(self) -> float:
        return 0.0

    def recv(self, size: int) -> bytes:
        received, self.data = self.data[:size], self.data[size:]
        return received

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def close(self) -> None:
        """Do nothing."""


def read_with_library(data: bytes) -> Result:
    """Read with websocket-client, which also validates UTF-8."""
    sock, result = FakeSocket(data), Result()
    reader = websocket.WebSocket()
    reader.sock, reader.connected = sock, True  # type: ignore[assignment]
    try:
        while True:
            opcode, received = reader.recv_data_frame(True)
            if opcode == ABNF.OPCODE_CLOSE:
                break
            if opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY):
                result.messages.append(received.data if opcode == ABNF.OPCODE_TEXT else Binary(received.data))
    except websocket.WebSocketConnectionClosedException:
        pass  # all bytes are read
    except websocket.WebSocketException:
        result.failed = True
    result.sent = parse_client_frames(bytes(sock.sent))
    return result


@contextlib.contextmanager
def connected(sent: bytearray | None = None, max_message: int = 16 * MEBIBYTE) -> Iterator[Connection]:
    """Open a real connection. After it is closed, `sent` has all that it sent."""
    closed = threading.Event()

    def receive(caller: Caller) -> None:
        caller.welcome()
        with contextlib.suppress(OSError):
            while data := caller.sock.recv(65_536):
                if sent is not None:
                    sent.extend(data)
        closed.set()

    with Peer(receive) as peer:
        config = ConnectionConfig(
            Endpoint(peer.url), Pair("BTC", "USDC"), KeySource.from_argument("key"), PATIENCE, Any, max_message
        )
        connection = open_connection(config, Attempt())
        try:
            yield connection
        finally:
            connection.close_socket()
            assert closed.wait(PATIENCE)


def feed(connection: Connection, data: bytes, result: Result) -> None:
    """Let the connection read these bytes, as if they came from its socket."""
    wire = connection.wire
    wire.buffer, wire.at = wire.buffer[wire.at :] + data, 0
    if connection.ended is None:
        result.messages += connection.messages(1 << 30)


def read_with_connection(pieces: list[bytes]) -> Result:
    """Read these pieces with our `Connection`."""
    result, sent = Result(), bytearray()
    with connected(sent) as connection:
        for piece in pieces:
            feed(connection, piece, result)
        result.failed = isinstance(connection.ended, ProtocolError)
    result.sent = parse_client_frames(bytes(sent))
    return result


texts = st.text(max_size=40).map(str.encode) | st.sampled_from([125, 126, 127, 300]).map(lambda size: b"x" * size)
controls = st.builds(frame, st.binary(max_size=20), st.sampled_from([PING, PONG]))
whole = st.builds(frame, texts, st.just(TEXT)) | st.builds(frame, st.binary(max_size=40), st.just(BINARY))


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """Draw a fragmented message with control frames in between. A fragment may end within a character."""
    payload = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    frames = b""
    for number, part in enumerate(parts):
        frames += frame(part, 0 if number else TEXT, fin=number == len(parts) - 1)
        if number < len(parts) - 1:
            frames += draw(st.just(b"") | controls)
    return frames


#: Frames that both readers reject.
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
    """Draw some frames and perhaps an ending, split anywhere."""
    data = b"".join(draw(st.lists(whole | controls | fragmented(), max_size=8))) + draw(endings)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(pieces())
@EXAMPLES
def test_both_readers_agree(split: list[bytes]) -> None:
    """Messages, failures and pongs are the same, however the bytes are split."""
    expected, result = read_with_library(b"".join(split)), read_with_connection(split)
    if expected.failed:
        # Only ours sends a close frame after a protocol error.
        assert result.sent.pop()[0] == CLOSE
    result.sent = [sent for sent in result.sent if sent != (CLOSE, struct.pack("!H", 1000))]
    expected.sent = [sent for sent in expected.sent if sent != (CLOSE, struct.pack("!H", 1000))]
    assert result == expected


@pytest.mark.parametrize("data", [frame("a") + frame("b", PING) + frame("c" * 200) + close_frame(1000, b"bye")])
def test_bytes_can_be_split_anywhere(data: bytes) -> None:
    """The messages are the same for each split in two, and byte by byte."""
    expected = read_with_library(data).messages
    for at in range(len(data) + 1):
        assert read_with_connection([data[:at], data[at:]]).messages == expected
    assert read_with_connection([data[at : at + 1] for at in range(len(data))]).messages == expected


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, MEBIBYTE])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_frames_of_every_length_encoding(size: int, opcode: int) -> None:
    """The three encodings of a length work at their limits."""
    payload = b"x" * size
    data = frame(payload, opcode) + frame("after")
    expected = [payload if opcode == TEXT else Binary(payload), b"after"]
    half = len(data) // 2
    assert read_with_connection([data]).messages == expected
    assert read_with_connection([data[:half], data[half:]]).messages == expected


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
def test_a_protocol_violation_is_answered_with_its_close_code(data: bytes, code: int) -> None:
    """A violation of RFC 6455 ends the connection, even if the library accepts it. Earlier messages are kept."""
    result = read_with_connection([frame("before") + data + frame("after")])
    assert result.messages == [b"before"]
    assert result.failed
    assert result.sent == [(CLOSE, struct.pack("!H", code))]


@pytest.mark.parametrize("split", [0, 1])
def test_a_small_size_limit_holds_for_plain_frames(split: int) -> None:
    """A text over the limit is rejected, whether it arrives whole or in two parts. Earlier messages are kept."""
    result, data = Result(), frame("before") + frame("x" * 1_001) + frame("after")
    with connected(max_message=1_000) as connection:
        for piece in (data[: len(data) * split // 2], data[len(data) * split // 2 :]):
            feed(connection, piece, result)
        assert isinstance(connection.ended, ProtocolError)
    assert result.messages == [b"before"]


def test_the_size_of_a_fragmented_message_is_limited() -> None:
    """The limit applies to the whole message, not to each fragment."""
    result = Result()
    with connected(max_message=1_000) as connection:
        feed(connection, frame("x" * 600, TEXT, fin=False), result)
        assert connection.ended is None
        feed(connection, frame("x" * 600, 0), result)
        assert isinstance(connection.ended, ProtocolError)
    assert result.messages == []


def test_the_number_of_fragments_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message with too many empty fragments ends the connection."""
    monkeypatch.setattr(frames, "MAX_FRAGMENTS", 1_000)
    result = Result()
    with connected() as connection:
        feed(connection, frame("", TEXT, fin=False) + frame("", 0, fin=False) * frames.MAX_FRAGMENTS, result)
        assert isinstance(connection.ended, ProtocolError)


def test_a_message_in_many_fragments_arrives() -> None:
    """20,000 fragments make one message."""
    result = Result()
    with connected() as connection:
        data = frame("a", TEXT, fin=False) + frame("b", 0, fin=False) * 20_000 + frame("c", 0)
        for at in range(0, len(data), 16_384):
            feed(connection, data[at : at + 16_384], result)
    assert result.messages == [b"a" + b"b" * 20_000 + b"c"]


@given(st.binary(max_size=40), st.integers(0, 3), st.integers(1, 5))
@EXAMPLES
def test_any_bytes_are_frames_or_an_error(data: bytes, at: int, limit: int) -> None:
    """The reader never exceeds the buffer or the limit, and raises only `FrameError`."""
    payloads, end = read_text_frames(data, at, limit)
    assert len(payloads) <= limit
    assert at <= end <= max(at, len(data))
    with contextlib.suppress(FrameError):
        frame_size(data, end, None, 1_000)


def test_a_limit_leaves_the_rest_in_the_buffer() -> None:
    """No more messages are read than requested, and none is lost."""
    messages: list[bytes | Binary] = []
    with connected() as connection:
        connection.wire.buffer = b"".join(frame(str(number)) for number in range(10)) + frame("ping", PING)
        connection.wire.at = 0
        for _ in range(4):
            messages += connection.messages(3)
            assert len(messages) <= 10
    assert messages == [str(number).encode() for number in range(10)]
