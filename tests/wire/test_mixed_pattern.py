"""The mixed pattern: ticks that it matches in a buffer are the same as those of the slow path."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.values import Tick
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import read_text_frames
from finx_streamer.wire.mixed_pattern import MixedPattern, spellings
from tests.support.effort import examples

#: A quotation mark is escaped, so the slow path reads the last one.
PAIRS = ("BTC:USDC", "币安人生:USDT", "USDC.E:USDT", "Ä:Ö", 'A"B:USDC')
DATE, NEXT_DATE = "2022-08-07", "2022-08-08"
NOW_NS = 1_659_897_295_000_000_000
ALL = 1 << 30
COMPACT, SPACED = (",", ":"), (", ", ": ")
KNOWN = {spelling: pair for pair in PAIRS for spelling in spellings(pair)}


def text(separators: tuple[str, str] = COMPACT, ascii_only: bool = False, **changed: object) -> bytes:
    """Return a tick's message, with some values changed."""
    message = {
        "pair": PAIRS[0],
        "unixDate": 1659897295,
        "UTCDate": f"{DATE}T18:34:55.000Z",
        "exchange": "BINANCE",
        "price": "23233.684999999998",
        **changed,
    }
    return json.dumps(message, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def frame(payload: bytes, length: int | None = None, first: int = 0x81) -> bytes:
    """Return a frame with the shortest header, optionally with a wrong length in it."""
    size = len(payload) if length is None else length
    return (struct.pack("!BB", first, size) if size < 126 else struct.pack("!BBH", first, 126, size)) + payload


def pattern_of(payload: bytes) -> MixedPattern:
    """Return a pattern that has learned from this tick."""
    pattern = MixedPattern()
    pattern.learn(payload)
    return pattern


def match(
    pattern: MixedPattern, *frames: bytes, limit: int = ALL, parse_price: Callable[[str], Any] = float
) -> tuple[list[Tick], int]:
    """Match ticks, and check what comes with them."""
    ticks, pairs, keys, _, at = pattern.match_ticks(
        b"".join(frames).decode("latin-1"), 0, limit, KNOWN, Decoder(None, None, parse_price).price_parser, NOW_NS
    )
    assert pairs == [tick["pair"] for tick in ticks]
    assert keys == [(tick["exchange"], tick["timestamp"], tick["price"]) for tick in ticks]
    return ticks, at


def check(pattern: MixedPattern, buffer: bytes, parse_price: Callable[[str], Any] = float) -> int:
    """Check that matched ticks are those that the slow path reads in the same frames. Return how many there are."""
    ticks, at = match(pattern, buffer, parse_price=parse_price)
    payloads, end = read_text_frames(buffer, 0, len(ticks))
    assert (len(payloads), end) == (len(ticks), at)
    for payload, tick in zip(payloads, ticks, strict=True):
        pair = json.loads(payload)["pair"]
        assert repr(Decoder(pair, pair, parse_price).decode(payload, NOW_NS)) == repr(tick)
    return len(ticks)


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("parse_price", [float, Decimal, str])
def test_documented_ticks_of_all_pairs_match(
    separators: tuple[str, str], ascii_only: bool, parse_price: Callable[[str], Any]
) -> None:
    """With short and long headers, in both spellings of a pair, with any time, exchange and price."""
    payloads = [
        text(
            separators,
            ascii_only,
            pair=PAIRS[number % 4],
            UTCDate=f"{DATE}T18:34:{number:02}.{'817462'[: number % 6 + 1]}Z",
            exchange="X" * number,
            price=f"{number}.5",
        )
        for number in range(60)
    ]
    assert min(map(len, payloads)) < 126 <= max(map(len, payloads)) < 256
    buffer = b"".join(map(frame, payloads))
    assert check(pattern_of(payloads[0]), buffer, parse_price) == len(payloads)


def test_nothing_matches_before_the_first_tick() -> None:
    """A new pattern knows neither the day nor the separators."""
    assert match(MixedPattern(), frame(text())) == ([], 0)


def test_a_message_that_begins_differently_teaches_nothing() -> None:
    """The pattern stays as it was."""
    pattern = pattern_of(text())
    for other in (b'{"exchange":"X"}', b'{ "pair":"A:B"}', b"[]", b""):
        pattern.learn(other)
    assert len(match(pattern, frame(text()))[0]) == 1


def test_the_limit_is_never_exceeded() -> None:
    """Ticks beyond the limit stay in the buffer, and most of those within it are matched."""
    pattern, frames = pattern_of(text()), [frame(text())] * 100
    for limit in (1, 2, 10, 99, 100, 101):
        assert len(match(pattern, *frames, limit=limit)[0]) <= limit
    assert len(match(pattern, *frames, limit=99)[0]) > 60


ODD = [
    frame(text(), first=0x01),
    frame(text(), first=0x82),
    frame(text(), first=0xC1),
    frame(text(), length=len(text()) + 1),
    frame(text(), length=len(text()) - 1),
    struct.pack("!BBH", 0x81, 126, 100) + text()[:100],
    frame(text() + b" "),
    frame(text(SPACED)),
    frame(text(pair="SOL:USDC")),
    frame(text(pair="BTC:USDC\\")),
    frame(text(pair=5)),
    frame(text(unixDate="1659897295")),
    frame(text(unixDate=-1)),
    frame(text().replace(b"1659897295", b"0659897295")),
    frame(text(unixDate=True)),
    frame(text(UTCDate=f"{NEXT_DATE}T00:00:00.000Z")),
    frame(text(UTCDate=f"{DATE}T18:34:55Z")),
    frame(text(UTCDate=f"{DATE}T18:34:55.000")),
    frame(text(UTCDate=f"{DATE}T25:34:55.000Z")),
    frame(text(UTCDate=f"{DATE}T18:34:55,000Z")),
    frame(text(UTCDate=f"{DATE}T18:34:60.000Z")),
    frame(text(UTCDate=f"{DATE} 18:34:55.000Z")),
    frame(text(exchange='BINA"NCE')),
    frame(text(exchange="BIN\\ANCE")),
    frame(text(exchange="BINÄNCE")),
    frame(text(exchange="BINANCE\x7f")),
    frame(text(exchange=None)),
    frame(text(price="1.2.3")),
    frame(text(price=".")),
    frame(text(price="1e5")),
    frame(text(price="nan")),
    frame(text(price="1_000")),
    frame(text(price=" 1")),
    frame(text(price="\u0661")),
    frame(text(price="9" * 31)),
    frame(text(price=1.5)),
    frame(text(more="x")),
    frame(text())[:-1],
    frame(text())[:1],
    b"\x89\x00",
    b"\x81\x02{}",
    b"",
]


@pytest.mark.parametrize("odd", ODD)
def test_a_run_ends_at_any_difference(odd: bytes) -> None:
    """The ticks before it are matched, and the offset is that of the odd frame."""
    before = frame(text()) * 3
    ticks, at = match(pattern_of(text()), before, odd, frame(text()))
    assert (len(ticks), at) == (3, len(before)) if odd else (4, len(before) + len(frame(text())))


def test_midnight_ends_a_run_and_not_the_stream() -> None:
    """Around midnight, ticks of two days may alternate. Each change of the day is learned from one tick."""
    pattern = pattern_of(text())
    days = [DATE, DATE, NEXT_DATE, DATE, NEXT_DATE, NEXT_DATE, DATE]
    payloads = [text(UTCDate=f"{day}T12:00:00.5Z") for day in days]
    buffer, at, slow = b"".join(map(frame, payloads)).decode("latin-1"), 0, 0
    got: list[Tick] = []
    while at < len(buffer):
        ticks, _, _, _, at = pattern.match_ticks(buffer, at, ALL, KNOWN, float, NOW_NS)
        got += ticks
        if at < len(buffer):
            slow += 1
            pattern.learn(payloads[len(got)])
    assert [tick["date"] for tick in got] == days
    assert slow == 4


times = st.one_of(
    st.from_regex(
        r"[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,9})?Z?", fullmatch=True, alphabet=st.characters(codec="ascii")
    ),
    st.text("0123456789:.Z,٣+-", max_size=14),
)
prices = st.one_of(
    st.floats(allow_nan=True).map(str),
    st.decimals().map(str),
    st.text("0123456789.eE+-_ \u0661", max_size=35),
)
exchanges = st.one_of(st.sampled_from(["BINANCE", ""]), st.text(max_size=40))
pairs = st.one_of(st.sampled_from(PAIRS), st.text(max_size=12))
payloads = st.one_of(
    st.builds(
        lambda separators, ascii_only, pair, date, time, exchange, price: text(
            separators, ascii_only, pair=pair, UTCDate=f"{date}T{time}", exchange=exchange, price=price
        ),
        st.sampled_from([COMPACT, SPACED]),
        st.booleans(),
        pairs,
        st.sampled_from([DATE, NEXT_DATE]),
        times,
        exchanges,
        prices,
    ),
    st.builds(text, pair=st.sampled_from(PAIRS), price=st.integers(0, 10**6).map(str)),
    st.binary(max_size=40),
)


@given(st.lists(payloads, max_size=6), st.sampled_from([COMPACT, SPACED]), st.sampled_from([float, Decimal, str]))
@examples(400)
def test_whatever_matches_is_read_identically(
    given_payloads: list[bytes], separators: tuple[str, str], parse_price: Callable[[str], Any]
) -> None:
    """By the slow path: fields, types and framing."""
    check(pattern_of(text(separators)), b"".join(map(frame, given_payloads)), parse_price)


@given(
    st.lists(st.builds(text, pair=st.sampled_from(PAIRS)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
@examples(400)
def test_ticks_with_changed_bytes_are_read_identically(
    given_payloads: list[bytes], changes: list[tuple[int, int]]
) -> None:
    """Or they aren't matched."""
    buffer = bytearray(b"".join(map(frame, given_payloads)))
    for place, byte in changes:
        buffer[place % len(buffer)] = byte
    check(pattern_of(text()), bytes(buffer))
