"""Fuzz a connection of several pairs: the pattern and the thorough decoder must give the same ticks and events.

The first byte of an input selects which separators the pattern knows at first, how many messages to read at a time, and
the number of splits. Two bytes follow for each split. The rest are frames. `~` and a digit stand for one of `_FRAMES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from finx_streamer.config.symbols import Pair
from finx_streamer.streaming.shared_connection import SharedConnection
from finx_streamer.streaming.stream import Stream
from finx_streamer.streaming.streams import Streams
from finx_streamer.values import NO_BOUND, Gap, State
from finx_streamer.wire.mixed_pattern import MixedPattern, spellings
from tests.fuzz.fake_server import split_at
from tests.fuzz.frames import NOW_NS, Entries, Result, finish, new_streams, open_connection, receive
from tests.support.peers import BINARY, PING, close_frame, frame

PAIRS = ("BTC:USDC", "ETH:USDC", "币:U")
DATE = "2022-08-07"
_LIMITS = (1, 2, 3, 5, 64, 65, 1_000, NO_BOUND)


class _NoPattern(MixedPattern):
    """Matches nothing, so that each message takes the slow path."""

    def learn(self, payload: bytes) -> None:
        pass


class _Entries(Entries):
    """Collects what is delivered, and that of each stream.

    The order between streams may differ in two respects. A stream that joins says so before the ticks of other streams
    that were read with its first one, or among them. And a stream whose gap ends may overtake others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_streams: dict[str | None, list[str]] = {}
        self.has_gap = False

    def put_ticks(self, ticks: list[Any], pairs: list[str] | None = None) -> None:
        super().put_ticks(ticks, pairs)
        assert pairs is None or pairs == [tick["pair"] for tick in ticks]
        for tick in ticks:
            self.of_streams.setdefault(tick["pair"], []).append(repr(tick))

    def put_event(self, event: Any) -> None:
        self.has_gap = self.has_gap or isinstance(event.payload, Gap)
        if event.payload is not State.STREAMING:
            super().put_event(event)
        self.of_streams.setdefault(event.symbol, []).append(repr(event.payload))


def run(data: bytes) -> None:
    """Try one input."""
    options, data = (data[0] if data else 0), data[1:]
    splits = options >> 4
    body = re.sub(rb"~([0-9])", lambda found: _FRAMES[int(found[1])], data[2 * splits :])
    pieces = split_at(body, data[: 2 * splits])
    expected = read([b"".join(pieces)] if pieces else [], NO_BOUND, _NoPattern())
    pattern = MixedPattern()
    # Short inputs would be over before the pattern has learned.
    pattern.learn(_spaced(_A).encode() if options & 1 else _A.encode())
    assert read(pieces, _LIMITS[(options >> 1) & 7], pattern) == expected


def read(pieces: list[bytes], limit: int, pattern: MixedPattern) -> tuple[object, ...]:
    """Return what was sent and delivered, and each stream's counters."""
    result, delivery = Result(), _Entries()
    streams = new_streams(delivery, "subscribe")
    try:
        with open_connection() as (websocket, server):
            connection = streams._shared
            assert connection is not None
            connection._pattern = pattern
            connection.session.start(0.0)
            connection.session.opened(0.0)
            own = [_add(streams, connection, pair) for pair in PAIRS]
            for _ in receive(websocket, server, pieces):
                websocket.wire.received_ns = NOW_NS
                while connection.read_messages(websocket, limit):
                    pass
            finish(result, websocket, server)
            connection.settle()
            counts = [*map(_counts, own), connection.counters.messages, connection.counters.decode_errors]
            entries = delivery.entries
            return result, sorted(entries) if delivery.has_gap else entries, delivery.of_streams, counts
    finally:
        streams.loop._close()


def _add(streams: Streams, connection: SharedConnection, pair: str) -> Stream:
    stream = Stream(Pair.parse(pair), streams)
    stream.connection = connection
    streams._streams[pair] = connection._streams[pair] = stream
    connection._pairs.update(dict.fromkeys(spellings(pair), pair))
    connection._routes[pair] = [stream]
    connection._requested.add(pair)
    connection._unjoined.add(pair)
    return stream


def _counts(stream: Stream) -> tuple[object, ...]:
    counters = stream.counters
    position = stream.log, stream._log, stream._number
    return position, stream.state, counters.messages, counters.ticks, counters.decode_errors, repr(counters.last_tick)


def flat(pair: str, second: str, price: str, exchange: str = "X", date: str = DATE) -> str:
    """A tick as the second wire sends it."""
    return (
        f'{{"pair":"{pair}","unixDate":1659897295,"UTCDate":"{date}T18:34:{second}Z","exchange":"{exchange}",'
        f'"price":"{price}"}}'
    )


def _flats(values: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(frame(flat(PAIRS[1], second, price)) for second, price in values)


def _numbered(*numbers: int | None) -> bytes:
    """Ticks with IDs. None: without one."""
    return b"".join(frame(_B if number is None else f'{_B[:-1]},"id":{number}}}') for number in numbers)


def _spaced(tick: str) -> str:
    return tick.replace('":', '": ').replace(',"', ', "')


_A, _B, _C = (flat(pair, f"{number}0.5", f"{number}.25") for number, pair in enumerate(PAIRS, 1))
_FRAMES = (
    *map(frame, (_A, _B, _C)),
    frame(flat(PAIRS[0], "59.999", "7", "X" * 40)),
    frame(flat(PAIRS[1], "00.", "8", date="2022-08-08")),
    frame('{"subscribed":"BTC:USDC"}'),
    frame('{"unsubscribed":"BTC:USDC"}'),
    frame('{"error":"unknown pair","pair":"ETH:USDC"}'),
    frame('{"keepAlive":true}'),
    frame("", PING),
)
_SPACED = frame(_spaced(_B))
_NOTICE = frame('{"pair":"ETH:USDC","notice":"x"}')
_ESCAPED = frame(_C.replace("币", "\\u5e01"))
_ENVELOPED = frame(
    '{"results":"streaming","resultData":{"pair":"ETH:USDC","date":"2022-08-07","time":"18:34:55.5Z","exchange":"X",'
    '"price":"1"}}'
)
_STREAMS = (
    b"",
    b"~0~1~2~0~1~2~0~1~2",
    b"~0~3~4~0~4~1~3",
    b"~0~1~6~1~0~6~1~0~1",
    b"~5~0~1~6~0~5~2~7~1~8~9~0",
    b"~0" + _SPACED + b"~1" + _SPACED + b"~0" + _SPACED,
    b"~2" + _ESCAPED + b"~2" + _ESCAPED + _ENVELOPED + b"~1" + _ENVELOPED,
    b"~0~1" + frame("[1]") + b"~1" + frame("{") + b"~0" + frame(b"x", BINARY) + b"~2" + frame(b"\xff") + b"~0",
    b"~0" + frame('{"pair":5,"error":"x"}') + frame('{"subscribed":[]}') + frame('{"unsubscribed":{}}') + b"~0",
    b"~0" + frame(_A[:50], fin=False) + b"~9" + frame(_A[50:], 0) + b"~0" + close_frame(1001),
    b"~0" + frame(flat("SOL:USDC", "1.5", "1")) + b"~0" + frame(_A.replace(":", " :")) + b"~1",
    b"~0"
    + b"".join(frame(flat(PAIRS[1], "11.5", price)) for price in ("1e5", "1e999", "-1", ".", "1" * 40, "0"))
    + b"~0",
    b"~0" + _flats((second, "1") for second in ("60.0", "1.5", "11.5x", "11,5", "٣٣.5")) + b"~0",
    b"~0" + frame(_B.replace("1659897295", "0659897295")) + b"~1",
    b"~0~7" + frame('{"error":"x","pair":"BTC:USDC"}') + frame('{"error":"y","pair":"\\u5e01:U"}') + b"~8~0~1~8",
    b"~0\x81\x7e\x00\x05hello~0",
    _numbered(1, 2, None, 3, 9, 10**18 - 1, 10**18, 5, 0) + b"~5~0",
    b"~2" + frame('{"subscribed":"ETH:USDC","log":"a:7"}') + _numbered(3, 8) + _NOTICE + _numbered(9, 12) + _NOTICE,
    frame('{"subscribed":"BTC:USDC","log":"a:7","resume":"no"}')
    + b"~0~1"
    + frame('{"unsubscribed":"BTC:USDC"}')
    + b"~0",
)
#: Each stream, whole, one message at a time, and in pieces.
SEEDS = [
    options + stream
    for stream in _STREAMS
    for options in (b"\x0e", b"\x00", b"\x2f\x00\x33\x00\x99", b"\x24\x00\x81\x01\x07")
]
WORDS = [
    *(b"~%d" % number for number in range(10)),
    *(b'"%s":' % name for name in (b"log", b"resume", b"id")),
    b'"a:7"',
    *(
        b'"%s":' % name
        for name in (b"pair", b"unixDate", b"UTCDate", b"exchange", b"price", b"subscribed", b"unsubscribed", b"error")
    ),
    b'"BTC:USDC"',
    b'"ETH:USDC"',
    b'"\\u5e01:U"',
    b"\xe5\xb8\x81",
    b"2022-08-08T",
    b"\x81\x7e\x00",
    b"\x81\x7d",
    b"1e5",
    b", ",
    b": ",
]
