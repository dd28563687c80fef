"""Runs of ticks that look alike: what is taken in one go is what the thorough way makes of the same bytes."""

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
    """A tick's message, with some values changed."""
    message = {"results": "streaming", "resultData": {**VALUES, **changed}}
    return json.dumps(message, separators=separators, ensure_ascii=False).encode("utf-8", "surrogatepass")


def frame(payload: bytes, length: int | None = None, first: int = 0x81) -> bytes:
    """A frame that says to be of some length."""
    return struct.pack("!BBH", first, 126, len(payload) if length is None else length) + payload


def taught(payload: bytes, **options: Any) -> Decoder:
    """A decoder that has seen such a tick."""
    decoder = Decoder(PAIR, PAIR, **options)
    assert len(decoder.decode_ticks([payload], 0, NOW_NS)) == 1
    return decoder


def taken(decoder: Decoder, *frames: bytes, limit: int = ALL) -> tuple[list[Tick], int]:
    return decoder.match_ticks(b"".join(frames).decode("latin-1"), 0, limit, NOW_NS)


@pytest.mark.parametrize("separators", [COMPACT, SPACED])
@pytest.mark.parametrize("form", [json_codec.ENVELOPED, json_codec.ENVELOPED_STDLIB])
@pytest.mark.parametrize("parse_price", [float, Decimal, str])
def test_ticks_as_documented_are_taken(
    separators: tuple[str, str], form: json_codec.TickForm, parse_price: Callable[[str], Any]
) -> None:
    """After one tick, all that look like it are taken at once, whatever their time, exchange and price."""
    decoder = Decoder(PAIR, PAIR, parse_price=parse_price)
    decoder._form = form
    payloads = [
        text(separators, time=f"15:30:{n:02}.{'817462'[: n % 6 + 1]}Z", exchange="X" * n, price=f"{n}.5")
        for n in range(1, 40)
    ]
    frames = [*map(frame, payloads)]
    assert len(decoder.decode_ticks(payloads[:1], 0, NOW_NS)) == 1
    expected = [Decoder(PAIR, PAIR, parse_price=parse_price).decode(payload, NOW_NS) for payload in payloads]
    assert (expected, sum(map(len, frames))) == taken(decoder, *frames)


def test_nothing_is_taken_before_the_first_tick() -> None:
    """There is nothing to look like."""
    assert taken(Decoder(PAIR, PAIR), frame(text())) == ([], 0)


def test_no_more_ticks_than_asked_for() -> None:
    """What is beyond the limit stays for later; and a limit is no reason to take none for ever."""
    decoder, frames = taught(text()), [frame(text())] * 100
    for limit in (1, 2, 10, 99, 100, 101):
        assert len(taken(decoder, *frames, limit=limit)[0]) <= limit
    assert len(taken(decoder, *frames, limit=99)[0]) > 80


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
def test_a_run_ends_at_whatever_looks_different(odd: bytes) -> None:
    """What stands before it is taken, and nothing behind it."""
    decoder, good = taught(text()), frame(text())
    ticks, end = taken(decoder, good, good, odd, good)
    # Where there is nothing odd between them, they are a run of three.
    assert (len(ticks), end) == (2 + (not odd), (2 + (not odd)) * len(good))


def test_a_price_that_parse_price_refuses_ends_a_run() -> None:
    """It is for the thorough way to say what is wrong."""

    def picky(price: str) -> float:
        if price == "13.0":
            raise ZeroDivisionError
        return float(price)

    decoder = taught(text(), parse_price=picky)
    assert len(taken(decoder, frame(text()), frame(text(price="13.0")), frame(text()))[0]) == 1


def test_another_day_or_style_is_learned_from_its_first_tick() -> None:
    """The first of the new ones goes the thorough way, the others do not."""
    decoder = taught(text())
    for other in (text(date="2022-07-03"), text(SPACED, date="2022-07-03"), text()):
        assert taken(decoder, frame(other)) == ([], 0)
        expected = decoder.decode_ticks([other], 0, NOW_NS)
        assert taken(decoder, frame(other))[0] == expected


def test_a_form_without_a_template_has_none() -> None:
    """The vendor's later form, and any other order of keys."""
    for payload in (json.dumps(VALUES).encode(), b'{"resultData":' + json.dumps(VALUES).encode() + b"}"):
        assert None is TickPattern.from_tick(payload, PAIR, DATE)


pieces = st.sampled_from(
    ["", " ", "Z", ".", ":", "-", '"', "\\", "\\u0041", '","', "_", "e5", "9" * 30, "Ä", "\x00", "}}"]
)
bent = st.builds(
    lambda key, at, cut, put: {key: VALUES[key][:at] + put + VALUES[key][at + cut :]},
    st.sampled_from(sorted(VALUES)),
    st.integers(0, 14),
    st.integers(0, 3),
    pieces,
)
headers = st.sampled_from([None, None, None, None, 0, 1, 125, 126, 127, 138, 140, 255])
texts = st.builds(lambda changed, style: text(style, **changed), st.just({}) | bent, st.sampled_from([COMPACT, SPACED]))
raw = st.builds(
    lambda payload, at, cut, put: payload[:at] + put + payload[at + cut :],
    texts,
    st.integers(0, 150),
    st.integers(0, 3),
    st.sampled_from([b"", b" ", b'"', b"\\", b"\x81", b"\xff", b"\x00"]),
)


@given(st.lists(st.builds(frame, texts | raw, headers), max_size=6).map(b"".join), st.integers(0, 200))
@examples(1_500)
@example(frame(text(), 126) + frame(text()), 0)
def test_what_is_taken_is_what_the_thorough_way_takes(data: bytes, cut: int) -> None:
    """Whatever the bytes, and wherever they are cut: the same ticks out of the same frames, or none."""
    data = data[: len(data) - cut]
    for learned in (text(), text(SPACED)):
        ticks, end = taken(taught(learned), data)
        payloads, same_end = read_text_frames(data, 0, len(ticks))
        assert (len(ticks), end) == (len(payloads), same_end)
        thorough = Decoder(PAIR, PAIR)
        assert [thorough.decode(payload, NOW_NS) for payload in payloads] == ticks


@given(texts | raw)
@examples(500)
def test_a_template_is_learned_from_good_ticks_alone(payload: bytes) -> None:
    """What the decoder refuses teaches it nothing."""
    decoder = Decoder(PAIR, PAIR)
    try:
        decoder.decode(payload, NOW_NS)
    except DecodeError:
        assert decoder.decode_ticks([payload], 0, NOW_NS) == []
        assert taken(decoder, frame(payload)) == ([], 0)
