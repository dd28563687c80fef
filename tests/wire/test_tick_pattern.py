"""The tick pattern: ticks that it matches in a buffer are the same as those of the thorough decoder."""

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
from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import read_text_frames
from finx_streamer.wire.tick_form import TickForm
from tests.support.effort import examples

PAIR = "BTC:USDC"
DATE = "2022-07-02"
NOW_NS = 1_656_775_855_900_000_000
ALL = 1 << 30
COMPACT, SPACED = (",", ":"), (", ", ": ")
VALUES = {"pair": PAIR, "date": DATE, "time": "15:30:55.817Z", "exchange": "BINANCE", "price": "19200.84"}


def text(
    separators: tuple[str, str] = COMPACT,
    flat: bool = False,
    number: int | None = None,
    ascii_only: bool = False,
    **changed: Any,
) -> bytes:
    """Return a tick's message, with some values changed."""
    tick = {**VALUES, **changed}
    message: dict[str, Any] = {"results": "streaming", "resultData": tick}
    if flat:
        moment = f"{tick.pop('date')}T{tick.pop('time')}"
        message = {"pair": tick.pop("pair"), "unixDate": tick.pop("unix", 1656775855), "UTCDate": moment, **tick}
    if number is not None:
        message["id"] = number
    return json.dumps(message, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def frame(payload: bytes, length: int | None = None, first: int = 0x81) -> bytes:
    """Return a frame with the shortest header, optionally with a wrong length in it."""
    size = len(payload) if length is None else length
    return (struct.pack("!BB", first, size) if size < 126 else struct.pack("!BBH", first, 126, size)) + payload


def decoder_after(payload: bytes, **options: Any) -> Decoder:
    """Return a decoder that has learned the pattern of this tick."""
    decoder = Decoder(PAIR, PAIR, **options)
    assert isinstance(decoder.decode(payload, NOW_NS), dict)
    return decoder


def match(decoder: Decoder, *frames: bytes, limit: int = ALL) -> tuple[list[Tick], int]:
    return decoder.match_ticks(b"".join(frames).decode("latin-1"), 0, limit, NOW_NS)


def check(decoder: Decoder, data: bytes, parse_price: Callable[[str], Any] = float) -> int:
    """Check that matched ticks are those that the thorough decoder reads. Return how many there are."""
    ticks, end = match(decoder, data)
    payloads, same_end = read_text_frames(data, 0, len(ticks))
    assert (len(ticks), end) == (len(payloads), same_end)
    thorough = Decoder(PAIR, decoder.pair, parse_price)
    assert [*map(repr, ticks)] == [repr(thorough.decode(payload, NOW_NS)) for payload in payloads]
    if ticks:
        assert decoder.number == thorough.number
        if parse_price is float:
            keys = decoder.later_keys(data.decode("latin-1"), 0, end)
            assert keys is not None
            assert keys() == [(tick["exchange"], tick["timestamp"], tick["price"]) for tick in ticks]
    return len(ticks)


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("number", [None, 100, 10**17])
@pytest.mark.parametrize("parse_price", [float, Decimal, str])
def test_documented_ticks_match(
    separators: tuple[str, str], flat: bool, number: int | None, parse_price: Callable[[str], Any]
) -> None:
    """After one tick, all similar ones match, with any time, exchange and price, in short and long frames."""
    payloads = [
        text(
            separators,
            flat,
            None if number is None else number + n,
            time=f"15:30:{n:02}.{'817462'[: n % 6 + 1]}Z",
            exchange="X" * n,
            price=f"{n}.5",
        )
        for n in range(1, 40)
    ]
    assert not flat or min(map(len, payloads)) < 126 or separators == SPACED or number == 10**17
    assert check(decoder_after(payloads[0], parse_price=parse_price), b"".join(map(frame, payloads)), parse_price) == 39


def test_nothing_matches_before_the_first_tick() -> None:
    """A new decoder has no pattern."""
    assert match(Decoder(PAIR, PAIR), frame(text())) == ([], 0)


def test_a_stream_without_ticks_has_no_pattern() -> None:
    """An option's stream has no ticks, even if a message looks like one."""
    decoder = Decoder("BTCN2202207", None)
    decoder.decode(text(), NOW_NS)
    assert match(decoder, frame(text())) == ([], 0)


@pytest.mark.parametrize("flat", [False, True])
def test_the_limit_is_never_exceeded(flat: bool) -> None:
    """Ticks beyond the limit stay in the buffer, and most of those within it are matched."""
    payload = text(flat=flat)
    decoder, frames = decoder_after(payload), [frame(payload)] * 100
    for limit in (1, 2, 10, 99, 100, 101):
        assert len(match(decoder, *frames, limit=limit)[0]) <= limit
    assert len(match(decoder, *frames, limit=99)[0]) > 75


def test_only_the_price_of_a_float_is_read_again() -> None:
    """`parse_price` may return another object each time, so the keys of its ticks are made at once."""
    decoder = decoder_after(text(), parse_price=Decimal)
    match(decoder, frame(text()))
    assert decoder.later_keys(frame(text()).decode("latin-1"), 0, len(frame(text()))) is None


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
        frame(text(flat=True)),
        frame(text(number=7)),
        b"\x81\x7b" + text()[:123],
        struct.pack("!BBH", 0x81, 126, 100) + text()[:100],
        struct.pack("!BBQ", 0x81, 127, len(text())) + text(),
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
        expected = decoder.decode(other, NOW_NS)
        assert match(decoder, frame(other))[0] == [expected]


FLAT_ODD = [
    {"unix": "1656775855"},
    {"unix": -1656775855},
    {"unix": 165677585},
    {"unix": 16567758550},
    {"unix": 1656775855.0},
    {"unix": True},
    {"date": "2022-07-03"},
    {"date": '2022-07-02T15:30:55.000Z","x":"2022-07-02'},
    {"time": "15:30:55Z"},
    {"pair": "ETH:USDC"},
    {"more": "x"},
    {"number": 7},
    {"separators": SPACED},
    {"flat": False},
]


@pytest.mark.parametrize("changed", FLAT_ODD)
def test_a_run_of_flat_ticks_ends_at_any_difference(changed: dict[str, Any]) -> None:
    """Ticks before the difference are matched, but none after it."""
    good, odd = frame(text(flat=True)), frame(text(**{"flat": True, **changed}))
    assert check(decoder_after(text(flat=True)), good + good + odd + good) == 2


@pytest.mark.parametrize("flat", [False, True])
def test_an_id_with_another_number_of_digits_is_learned(flat: bool) -> None:
    """That happens at each power of ten. Only the first such tick takes the thorough path."""
    decoder = decoder_after(text(flat=flat, number=8))
    frames = [frame(text(flat=flat, number=number)) for number in (9, 10, 11, 12)]
    assert check(decoder, b"".join(frames)) == 1
    decoder.decode(text(flat=flat, number=10), NOW_NS)
    assert check(decoder, b"".join(frames[1:])) == 3
    assert decoder.number == 12


@pytest.mark.parametrize(
    "pair", ["币安人生:USDT", "$TRUMP:USDC", 'A"B:C', 'X","Y":"Z', "[{(.*+?:\\1", '~\x7f:{"pair":']
)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_a_pair_may_have_any_characters(pair: str, ascii_only: bool, flat: bool) -> None:
    """It may be escaped in the message, and counts in bytes."""
    payload = text(flat=flat, ascii_only=ascii_only, pair=pair)
    decoder = Decoder(pair, pair)
    expected = decoder.decode(payload, NOW_NS)
    assert match(decoder, frame(payload), frame(payload))[0] == [expected, expected]
    values = b'"date":"2022-07-02","time":"15:30:55.817Z","exchange":"BINANCE","price":"1"'
    stranger = frame(b'{"results":"streaming","resultData":{"pair":"X","Y":"Z",%s}}' % values)
    assert match(decoder, stranger) == ([], 0)


def test_other_messages_have_no_form() -> None:
    """Such as another order of keys, and a repeated key, of which the last one counts."""
    good = text()
    for payload in (
        json.dumps(VALUES).encode(),
        b'{"resultData":' + json.dumps(VALUES).encode() + b"}",
        good.replace(b'"price"', b'"pair":"ETH:USDC","price"'),
        good.replace(b"}}", b'},"id":0}'),
        good.replace(b"}}", b'},"id":1,"id":2}'),
        good + b" ",
        text(exchange="B\u00c4R"),
        text(flat=True).replace(b"1656775855", b"1.5"),
        text(exchange="X" * 200),
        b"",
    ):
        assert TickForm.of(payload) is None


BEGINNINGS = [
    text(separators, flat).partition(b"15:30")[0] for separators in (COMPACT, SPACED) for flat in (False, True)
]


@pytest.mark.parametrize("flat", [False, True])
def test_a_beginning_elsewhere_is_not_counted(flat: bool) -> None:
    """One frame that begins differently and contains the beginning, or a part of it, doesn't match."""
    good = text(flat=flat)
    size = len(good.partition(b"1656775855" if flat else b"15:30")[0])
    beginning, values = good[:size], good[size:]
    decoder = decoder_after(good)
    for shift in range(1, size):
        for moved in (
            beginning[shift:] + beginning[:shift],
            b"{" + beginning[: size - 1],
            b" " * shift + beginning[shift:],
        ):
            for payload in (moved + values, beginning + moved + values, moved + beginning + values):
                assert check(decoder, frame(good) + frame(payload) + frame(good)) == 1
    # The length of a short frame is a brace, so that a beginning begins there.
    filler = b"9" * (123 - len(beginning[1:] + b"x" + values))
    short = beginning[1:] + b"x" + values.replace(b"19200", b"19200" + filler)
    assert check(decoder, frame(good) + frame(short, 0x7B) + frame(good)) == 1


pieces = st.sampled_from(
    [
        "",
        " ",
        "Z",
        ".",
        ":",
        "-",
        '"',
        "\\",
        "\\u0041",
        '","',
        "_",
        "e5",
        "9" * 30,
        "Ä",
        "\x00",
        "}}",
        "{",
        "\x81~\0",
        "T",
    ]
    + [beginning.decode() for beginning in BEGINNINGS]
)
changed_values = st.builds(
    lambda key, at, removed, inserted: {key: VALUES[key][:at] + inserted + VALUES[key][at + removed :]},
    st.sampled_from(sorted(VALUES)),
    st.integers(0, 14),
    st.integers(0, 3),
    pieces,
)
headers = st.sampled_from([None, None, None, None, 0, 1, 122, 123, 125, 126, 127, 138, 140, 255])
styles = st.sampled_from([COMPACT, SPACED])
ids = st.sampled_from([None, None, 1, 9, 10, 42, 43, 10**18 - 1, 10**18])
texts = st.builds(
    lambda changed, style, flat, number: text(style, flat, number, **changed),
    st.just({}) | changed_values,
    styles,
    st.booleans(),
    ids,
)
changed_bytes = st.builds(
    lambda payload, at, removed, inserted: payload[:at] + inserted + payload[at + removed :],
    texts,
    st.integers(0, 150),
    st.integers(0, 90),
    st.sampled_from([b"", b" ", b'"', b"\\", b"\x81", b"\xff", b"\x00", b"{", *BEGINNINGS]),
)
learned = [text(style, flat, number) for style in (COMPACT, SPACED) for flat in (False, True) for number in (None, 42)]


@given(
    st.lists(st.builds(frame, texts | changed_bytes, headers), max_size=6).map(b"".join),
    st.integers(0, 200),
    st.sampled_from([float, Decimal, str]),
)
@examples(1_000)
@example(frame(text(), 126) + frame(text()), 0, float)
def test_matched_ticks_equal_those_of_the_thorough_decoder(
    data: bytes, removed: int, parse_price: Callable[[str], Any]
) -> None:
    """Any bytes, cut off anywhere, give the ticks that the frames contain."""
    data = data[: len(data) - removed]
    for payload in learned:
        check(decoder_after(payload, parse_price=parse_price), data, parse_price)


@given(
    st.sampled_from(learned), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)
)
@examples(500)
def test_ticks_with_changed_bytes_are_read_identically(payload: bytes, changes: list[tuple[int, int]]) -> None:
    """Or they aren't matched."""
    data = bytearray(frame(payload) * 4)
    for place, byte in changes:
        data[place % len(data)] = byte
    check(decoder_after(payload), bytes(data))


@given(texts | changed_bytes)
@examples(500)
def test_only_a_valid_tick_teaches_a_pattern(payload: bytes) -> None:
    """And the next one like it matches."""
    decoder = Decoder(PAIR, PAIR)
    if isinstance(decoder.decode(payload, NOW_NS), DecodeError):
        assert match(decoder, frame(payload)) == ([], 0)
    elif TickForm.of(payload) is not None:
        assert check(decoder, frame(payload)) == 1
