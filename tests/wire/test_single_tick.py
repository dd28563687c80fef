"""Frames that are one plain tick: nothing else matches, and what matches means the same as to the decoder."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.wire.decoder import Decoder
from finx_streamer.wire.frames import read_text_frames
from finx_streamer.wire.mixed_pattern import spellings
from finx_streamer.wire.single_tick import LONGEST, SingleTick
from tests.support.effort import examples
from tests.support.peers import frame

PAIR = "BTC:USDC"
FIELDS = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55.817Z", "exchange": "BINANCE", "price": "1.5"}
FLAT = {"pair": PAIR, "unixDate": 1, "UTCDate": "2022-07-02T15:30:55.817Z", "exchange": "BINANCE", "price": "1.5"}
FORMS: list[dict[str, Any]] = [{"results": "streaming", "resultData": FIELDS}, FLAT]
MESSAGES = [
    json.dumps(form | number, separators=style)
    for form in FORMS
    for number in ({}, {"id": 7})
    for style in ((",", ":"), (", ", ": "))
]


@pytest.mark.parametrize("message", MESSAGES)
def test_reads_what_looks_like_what_it_learned(message: str) -> None:
    """In each form and style, with and without an ID, until it learns another one."""
    single = SingleTick()
    assert single.read(frame(message)) is None
    assert single.learn(frame(message)) == PAIR
    number = "7" if '"id"' in message else None
    expected = (PAIR, "15:30:55.817Z", "BINANCE", "1.5", number)
    assert (single.read(frame(message)), single.date) == (expected, "2022-07-02")
    assert single.learn(frame("{}")) is None
    assert single.read(frame(message)) == expected
    other = message.replace("2022-07-02", "2022-07-03")
    assert single.read(frame(other)) is None
    assert (single.learn(frame(other)), single.date) == (PAIR, "2022-07-03")
    assert single.read(frame(message)) is None


def padded(message: str, size: int) -> bytes:
    """A tick of this size, with a long exchange."""
    return message.replace("BINANCE", "X" * (size - len(message) + 7)).encode()


@pytest.mark.parametrize("size", [124, 125, 126, 127, 255, 256])
def test_all_headers_of_short_frames(size: int) -> None:
    """A payload of up to 125 bytes has a header of two bytes, a longer one of four."""
    content = padded(MESSAGES[4], size)
    single = SingleTick()
    single.learn(frame(MESSAGES[4]))
    assert (single.read(frame(content)) is not None) is (size <= LONGEST - 4)


def test_a_header_that_looks_like_the_beginning_of_a_message() -> None:
    """The frame is longer than what was read."""
    single = SingleTick()
    single.learn(frame(MESSAGES[4]))
    assert single.read(b"\x81\x7e" + padded(MESSAGES[4], 126)) is None
    whole = frame(padded(MESSAGES[4], 200))
    assert single.read(whole) is not None
    assert single.read(whole[:2] + b"\1" + whole[3:]) is None


byte = st.one_of(st.integers(0, 255), st.sampled_from(b'0.9:Z-"\\{}, \x81\x7e'))
changes = st.lists(st.tuples(st.integers(0, 260), byte), max_size=3)


@given(st.sampled_from(MESSAGES), changes, st.integers(-2, 2), st.text(max_size=3), st.text("0123456789.", max_size=40))
@example(MESSAGES[4], [], 0, "", ".")
@example(MESSAGES[0], [(87, ord(":"))], 0, "", "")
@examples(500)
def test_agrees_with_the_decoder(
    message: str, changed: list[tuple[int, int]], cut: int, exchange: str, price: str
) -> None:
    """All that it reads are whole frames with one tick that the decoder reads in the same way."""
    single = SingleTick()
    single.learn(frame(message))
    message = message.replace("BINANCE", json.dumps("B" + exchange)[1:-1]).replace('"1.5"', f'"{price or 1.5}"')
    data = bytearray(frame(message))
    for at, value in changed:
        if at < len(data):
            data[at] = value
    sent = bytes(data[:cut] if cut < 0 else data + b"\x81" * cut)
    found = single.read(sent)
    if found is None:
        return
    spelling, time, name, number, identity = found
    payloads, end = read_text_frames(sent, 0, 2)
    assert (len(payloads), end) == (1, len(sent))
    decoder = Decoder(PAIR, PAIR)
    tick: Any = decoder.decode(payloads[0], 0)
    if spelling not in spellings(PAIR) or not isinstance(tick, dict):
        # Then the lane leaves it to the decoder: for another pair, or for a time that doesn't exist.
        if spelling == PAIR:
            with pytest.raises(ValueError, match=r"isoformat|must be in"):
                datetime.fromisoformat(f"{single.date}T{time}")
        return
    assert (tick["date"], tick["time"], tick["exchange"]) == (single.date, time, name)
    assert (tick["price"], decoder.number) == (float(number), int(identity) if identity else None)
