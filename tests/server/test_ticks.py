"""Validating ticks and converting their times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.server.ticks import epoch_seconds, format_time, parse_tick, with_time

TICK = {
    "pair": "BTC:USDC",
    "date": "1970-01-02",
    "time": "00:00:01.500Z",
    "exchange": "BINANCE",
    "price": "21865.010000000002",
}


def test_valid_tick_is_unchanged() -> None:
    """Only the five fields are returned, unchanged and in the documented order."""
    assert list(parse_tick({"more": 1} | dict(reversed(TICK.items()))).items()) == list(TICK.items())


@pytest.mark.parametrize("price", ["1", "0", "-3.5e-7", "9.2E-7", "58001.03000000", "3541058.0", "0.00000000397"])
def test_accepts_every_decimal_notation(price: str) -> None:
    """Signs, fractions and exponents are valid in a price."""
    assert parse_tick(TICK | {"price": price})["price"] == price


@pytest.mark.parametrize("time", ["00:00:00", "00:00:00Z", "23:59:60Z", "00:00:00.1Z", "00:00:00.123456789Z"])
def test_accepts_every_time_format(time: str) -> None:
    """The fraction and the Z are optional, and a leap second is valid."""
    assert parse_tick(TICK | {"time": time})["time"] == time


@pytest.mark.parametrize(
    ("price", "text"),
    [
        (19200.84, "19200.84"),
        (7, "7"),
        (1e-07, "1e-07"),
        (Decimal("21865.010000000002"), "21865.010000000002"),
        (np.float64(19200.84), "19200.84"),
        (np.int64(7), "7"),
    ],
)
def test_a_number_is_a_price(price: object, text: str) -> None:
    """A client's tick has what `parse_price` returned."""
    assert parse_tick(TICK | {"price": price})["price"] == text


@pytest.mark.parametrize(
    ("timestamp", "date", "time"),
    [
        (datetime(2022, 7, 2, 15, 30, 55, 817_000, UTC), "2022-07-02", "15:30:55.817Z"),
        (datetime(2022, 7, 2, 15, 30, 55, 817_123, UTC), "2022-07-02", "15:30:55.817123Z"),
        (datetime(2022, 7, 2, 23, tzinfo=timezone(timedelta(hours=-2))), "2022-07-03", "01:00:00.000Z"),
        (pd.Timestamp("2022-07-02T15:30:55.817Z"), "2022-07-02", "15:30:55.817Z"),
        ("2022-07-02 15:30:55.817000+00:00", "2022-07-02", "15:30:55.817Z"),
    ],
)
def test_a_timestamp_is_a_date_and_a_time(timestamp: object, date: str, time: str) -> None:
    """The rows of a table have a timestamp only."""
    row = {"timestamp": timestamp, "pair": "BTC:USDC", "exchange": "BINANCE", "price": 1.5}
    assert parse_tick(row) == TICK | {"date": date, "time": time, "price": "1.5"}


@pytest.mark.parametrize("timestamp", [datetime(2022, 7, 2), "2022-07-02", "noon", 1656775855817, None, pd.NaT])
def test_a_timestamp_has_an_offset(timestamp: object) -> None:
    """A naive datetime means local time elsewhere in Python."""
    row = {"timestamp": timestamp, "pair": "BTC:USDC", "exchange": "BINANCE", "price": 1.5}
    with pytest.raises(ValueError, match=r"not a timestamp: .*expected a date and time with an offset from UTC"):
        parse_tick(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": "btc-usdc"}, "not a pair"),
        ({"pair": 7}, "'pair' must be a non-empty string"),
        ({"exchange": ""}, "'exchange' must be a non-empty string"),
        ({"price": "abc"}, "not a price"),
        ({"price": "nan"}, "not a price"),
        ({"price": " 1"}, "not a price"),
        ({"price": True}, "'price' must be a non-empty string"),
        ({"price": float("nan")}, "not a price: 'nan'"),
        ({"price": Decimal("Infinity")}, "not a price: 'Infinity'"),
        ({"price": Fraction(1, 3)}, "not a price: '1/3'"),
        ({"date": "2022-7-2"}, "not a date"),
        ({"date": "20220702"}, "not a date"),
        ({"date": "2022-02-30"}, "not a date"),
        ({"time": "24:00:00Z"}, "not a time: '24:00:00Z'"),
        ({"time": "12:60:00Z"}, "not a time"),
        ({"time": "12:00:61Z"}, "not a time"),
        ({"time": "12:00Z"}, "not a time"),
        ({"time": "12:00:00."}, "not a time"),
        ({"time": "12:00:00ZZ"}, "not a time"),
        ({"time": "1٢:00:00Z"}, "not a time"),
    ],
)
def test_invalid_field_is_named(change: dict[str, object], message: str) -> None:
    """The error names the invalid field."""
    with pytest.raises(ValueError, match=message):
        parse_tick(TICK | change)


@pytest.mark.parametrize("field", list(TICK))
def test_missing_field_is_named(field: str) -> None:
    """The error names the missing field."""
    with pytest.raises(ValueError, match=f"'{field}' is missing"):
        parse_tick({name: value for name, value in TICK.items() if name != field})


@pytest.mark.parametrize("raw", [None, [], "tick", 1])
def test_rejects_other_json_than_objects(raw: object) -> None:
    """A tick must be a JSON object."""
    with pytest.raises(ValueError, match="JSON object"):
        parse_tick(raw)


def test_time_in_seconds_since_1970() -> None:
    """A tick's time converts to seconds since 1970."""
    assert epoch_seconds(TICK) == 86_401.5


@given(st.integers(0, 4_102_444_800_000))
def test_time_survives_a_round_trip(milliseconds: int) -> None:
    """A tick has the time it was given, truncated to milliseconds."""
    tick = with_time(TICK, milliseconds / 1_000)
    assert milliseconds - 1 <= round(epoch_seconds(parse_tick(tick)) * 1_000) <= milliseconds


def test_formatted_time_always_has_milliseconds() -> None:
    """A whole second is formatted with three zeros."""
    assert format_time(7.0) == ("1970-01-01", "00:00:07.000Z")
