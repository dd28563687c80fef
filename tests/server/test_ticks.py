"""Checking ticks and reading their times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.server.ticks import checked, epoch, stamp, stamped

TICK = {
    "pair": "BTC:USDC",
    "date": "1970-01-02",
    "time": "00:00:01.500Z",
    "exchange": "BINANCE",
    "price": "21865.010000000002",
}


def test_a_good_tick_is_untouched() -> None:
    """The five fields come back as they are, in the documented order, and nothing else."""
    assert list(TICK.items()) == list(checked({"more": 1} | dict(reversed(TICK.items()))).items())


@pytest.mark.parametrize("price", ["1", "0", "-3.5e-7", "9.2E-7", "58001.03000000", "3541058.0", "0.00000000397"])
def test_prices_that_occur(price: str) -> None:
    """Every decimal notation is a price."""
    assert price == checked(TICK | {"price": price})["price"]


@pytest.mark.parametrize("time", ["00:00:00", "00:00:00Z", "23:59:60Z", "00:00:00.1Z", "00:00:00.123456789Z"])
def test_times_that_occur(time: str) -> None:
    """Fraction and Z may be missing; a leap second is a time."""
    assert time == checked(TICK | {"time": time})["time"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pair": "btc-usdc"}, "not a pair"),
        ({"pair": 7}, "'pair' is no text"),
        ({"exchange": ""}, "'exchange' is no text"),
        ({"price": "abc"}, "not a price"),
        ({"price": "nan"}, "not a price"),
        ({"price": " 1"}, "not a price"),
        ({"price": 1.5}, "'price' is no text"),
        ({"date": "2022-7-2"}, "not a date"),
        ({"date": "20220702"}, "not a date"),
        ({"date": "2022-02-30"}, "not a date"),
        ({"time": "24:00:00Z"}, "not a time"),
        ({"time": "12:60:00Z"}, "not a time"),
        ({"time": "12:00:61Z"}, "not a time"),
        ({"time": "12:00Z"}, "not a time"),
        ({"time": "1٢:00:00Z"}, "not a time"),
    ],
)
def test_fields_that_are_wrong(change: dict[str, object], says: str) -> None:
    """A wrong field is named."""
    with pytest.raises(ValueError, match=says):
        checked(TICK | change)


@pytest.mark.parametrize("field", list(TICK))
def test_fields_that_are_missing(field: str) -> None:
    """A missing field is named."""
    with pytest.raises(ValueError, match=f"'{field}' is missing"):
        checked({name: value for name, value in TICK.items() if name != field})


@pytest.mark.parametrize("raw", [None, [], "tick", 1])
def test_what_is_no_object(raw: object) -> None:
    """A tick is an object."""
    with pytest.raises(ValueError, match="JSON object"):
        checked(raw)


def test_the_time_of_a_tick() -> None:
    """Times are seconds since 1970."""
    assert epoch(TICK) == 86_401.5


@given(st.integers(0, 4_102_444_800_000))
def test_stamps_read_as_they_were_written(milliseconds: int) -> None:
    """A stamped tick has the time that it was stamped with, to the millisecond below."""
    tick = stamped(TICK, milliseconds / 1_000)
    assert milliseconds - 1 <= round(epoch(checked(tick)) * 1_000) <= milliseconds


def test_a_stamp_always_has_its_milliseconds() -> None:
    """A whole second is written with three zeros."""
    assert stamp(7.0) == ("1970-01-01", "00:00:07.000Z")
