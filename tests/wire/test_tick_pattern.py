"""The tick pattern: ticks that it matches in a buffer are the same as those of the slow path."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.errors import DecodeError
from finx_streamer.values import Tick
from finx_streamer.wire import json_codec
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import read_text_frames
from finx_streamer.wire.tick_pattern import TickPattern
from tests.support.effort import examples

PAIR = "BTC:USDC"
DATE = "2022-07-02"
NOW_NS = 1_656_775_855_900_000_000
ALL = 1 << 30
COMPACT, SPACED = (",", ":"), (", ", ": ")
VALUES = {"pair": PAIR, "date": DATE, "time": "15:30:55.817Z", "exchange": "BINANCE", "price": "19200.84"}


def text(separators: tuple[str, str] = COMPACT, **changed: object) -> bytes:
    """Return a tick's message, with some values changed."""
    message = {"results": "streaming", "resultData": {**VALUES, **changed}}
    return json.dumps(message, separators=separators, ensure_ascii=False).encode("utf-8", "surrogatepass")


def frame(payload: bytes, length: int | None = None, first: int = 0x81) -> bytes:
    """Return a frame, optionally with a wrong length in its header."""
    return struct.pack("!BBH", first, 126, len(payload) if length is None else length) + payload


def decoder_after(payload: bytes, **options: Any) -> Decoder:
    """Return a decoder that has learned the pattern of this tick."""
    decoder = Decoder(PAIR, PAIR, **options)
    assert len(decoder.decode_ticks([payload], 0, NOW_NS)) == 1
    return decoder


def match(decoder: Decoder, *frames: bytes, limit: int = ALL) -> tuple[list[Tick], int]:
    return decoder.match_ticks(b"".join(frames).decode("latin-1"), 0, limit, NOW_NS)


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("tick_format", [json_codec.ENVELOPED, json_codec.ENVELOPED_STDLIB])
@pytest.mark.parametrize("parse_price", [float, Decimal, str])
def test_documented_ticks_are_match(
    separators: tuple[str, str], tick_format: json_codec.TickFormat, parse_price: Callable[[str], Any]
) -> None:
    """After one tick, all similar ones are matched, with any time, exchange and price."""
    decoder = Decoder(PAIR, PAIR, parse_price=parse_price)
    decoder._format = tick_format
    payloads = [
        text(separators, time=f"15:30:{n:02}.{'817462'[: n % 6 + 1]}Z", exchange="X" * n, price=f"{n}.5")
        for n in range(1, 40)
    ]
    frames = [*map(frame, payloads)]
    assert len(decoder.decode_ticks(payloads[:1], 0, NOW_NS)) == 1
    expected = [Decoder(PAIR, PAIR, parse_price=parse_price).decode(payload, NOW_NS) for payload in payloads]
    assert match(decoder, *frames) == (expected, sum(map(len, frames)))


def test_nothing_matches_before_the_first_tick() -> None:
    """A new decoder has no pattern."""
    assert match(Decoder(PAIR, PAIR), frame(text())) == ([], 0)


def test_the_limit_is_never_exceeded() -> None:
    """Ticks beyond the limit stay in the buffer, and most of those within it are matched."""
    decoder, frames = decoder_after(text()), [frame(text())] * 100
    for limit in (1, 2, 10, 99, 100, 101):
        assert len(match(decoder, *frames, limit=limit)[0]) <= limit
    assert len(match(decoder, *frames, limit=99)[0]) > 80


@pytest.mark.parametrize(
    "odd",
    [
        frame(text(), first=0x01),
        frame(text(), first=0x82),
        frame(text(), first=0xC1),
        frame(text(), length=len(text()) + 1),
        frame(text(), length=len(text()) - 1),
        frame(text() + b" "),
        frame(text(SPACED)),
        frame(text(pair="ETH:USDC")),
        frame(text(date="2022-07-03")),
        frame(text(time="15:30:55Z")),
        frame(text(time="25:30:55.817Z")),
        frame(text(time="15:30:55,817Z")),
        frame(text(exchange='BINA"NCE')),
        frame(text(exchange="BIN\\ANCE")),
        frame(text(exchange="BINÄNCE")),
        frame(text(exchange="BINANCE\x7f")),
        frame(text(exchange=None)),
        frame(text(price="1.2.3")),
        frame(text(price="nan")),
        frame(text(price="1_000")),
        frame(text(price=" 1")),
        frame(text(price="\u0661")),
        frame(text(price="9" * 31)),
        frame(text(price=1.5)),
        frame(text(more="x")),
        frame(text())[:-1],
        frame(text())[:3],
        b"\x89\x00",
        b"\x81\x02{}",
        b"",
    ],
)
def test_a_run_ends_at_any_difference(odd: bytes) -> None:
    """Ticks before the difference are matched, but none after it."""
    decoder, good = decoder_after(text()), frame(text())
    ticks, end = match(decoder, good, good, odd, good)
    # Without anything odd in between, all three match.
    assert (len(ticks), end) == (2 + (not odd), (2 + (not odd)) * len(good))


def test_a_price_that_parse_price_rejects_ends_a_run() -> None:
    """The slow path reports what is wrong."""

    def reject_13(price: str) -> float:
        if price == "13.0":
            raise ZeroDivisionError
        return float(price)

    decoder = decoder_after(text(), parse_price=reject_13)
    assert len(match(decoder, frame(text()), frame(text(price="13.0")), frame(text()))[0]) == 1


def test_a_new_day_or_style_is_learned_from_its_first_tick() -> None:
    """Only the first tick with another date or JSON style takes the slow path."""
    decoder = decoder_after(text())
    for other in (text(date="2022-07-03"), text(SPACED, date="2022-07-03"), text()):
        assert match(decoder, frame(other)) == ([], 0)
        expected = decoder.decode_ticks([other], 0, NOW_NS)
        assert match(decoder, frame(other))[0] == expected


@pytest.mark.parametrize("pair", ["币安人生:USDT", "$TRUMP:USDC", 'A"B:C', 'X","Y":"Z'])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_pair_may_have_any_characters(pair: str, ascii_only: bool) -> None:
    """It may be escaped in the message, and counts in bytes."""
    payload = json.dumps({"results": "streaming", "resultData": {**VALUES, "pair": pair}}, ensure_ascii=ascii_only)
    compact = payload.replace(", ", ",").replace('": ', '":').encode()
    decoder = Decoder(pair, pair)
    expected = decoder.decode(compact, NOW_NS)
    # Without msgspec, ticks with escapes aren't learned.
    is_learned = json_codec.msgspec is not None or b"\\" not in compact
    assert decoder.decode_ticks([compact], 0, NOW_NS) == [expected] * is_learned
    if is_learned:
        assert match(decoder, frame(compact), frame(compact))[0] == [expected, expected]
    values = b'"date":"2022-07-02","time":"15:30:55.817Z","exchange":"BINANCE","price":"1"'
    stranger = frame(b'{"results":"streaming","resultData":{"pair":"X","Y":"Z",%s}}' % values)
    assert match(decoder, stranger) == ([], 0)


def test_other_formats_have_no_pattern() -> None:
    """The flat format and another order of keys have no pattern."""
    for payload in (json.dumps(VALUES).encode(), b'{"resultData":' + json.dumps(VALUES).encode() + b"}"):
        assert TickPattern.from_tick(payload, PAIR, DATE) is None


pieces = st.sampled_from(
    ["", " ", "Z", ".", ":", "-", '"', "\\", "\\u0041", '","', "_", "e5", "9" * 30, "Ä", "\x00", "}}"]
)
changed_values = st.builds(
    lambda key, at, removed, inserted: {key: VALUES[key][:at] + inserted + VALUES[key][at + removed :]},
    st.sampled_from(sorted(VALUES)),
    st.integers(0, 14),
    st.integers(0, 3),
    pieces,
)
headers = st.sampled_from([None, None, None, None, 0, 1, 125, 126, 127, 138, 140, 255])
texts = st.builds(
    lambda changed, style: text(style, **changed), st.just({}) | changed_values, st.sampled_from([COMPACT, SPACED])
)
changed_bytes = st.builds(
    lambda payload, at, removed, inserted: payload[:at] + inserted + payload[at + removed :],
    texts,
    st.integers(0, 150),
    st.integers(0, 3),
    st.sampled_from([b"", b" ", b'"', b"\\", b"\x81", b"\xff", b"\x00"]),
)


@given(st.lists(st.builds(frame, texts | changed_bytes, headers), max_size=6).map(b"".join), st.integers(0, 200))
@examples(1_500)
@example(frame(text(), 126) + frame(text()), 0)
def test_matched_ticks_equal_those_of_the_slow_path(data: bytes, removed: int) -> None:
    """Any bytes, cut off anywhere, give the ticks that the frames contain."""
    data = data[: len(data) - removed]
    for learned in (text(), text(SPACED)):
        ticks, end = match(decoder_after(learned), data)
        payloads, same_end = read_text_frames(data, 0, len(ticks))
        assert (len(ticks), end) == (len(payloads), same_end)
        decoder = Decoder(PAIR, PAIR)
        assert ticks == [decoder.decode(payload, NOW_NS) for payload in payloads]


@given(texts | changed_bytes)
@examples(500)
def test_an_invalid_tick_teaches_no_pattern(payload: bytes) -> None:
    """The decoder learns patterns only from valid ticks."""
    decoder = Decoder(PAIR, PAIR)
    if isinstance(decoder.decode(payload, NOW_NS), DecodeError):
        assert decoder.decode_ticks([payload], 0, NOW_NS) == []
        assert match(decoder, frame(payload)) == ([], 0)
