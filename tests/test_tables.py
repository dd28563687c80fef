"""Ticks as tables: columns, types, order and values, also of no ticks at all."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pytest

from finx_streamer import ConfigurationError, Tick, to_pandas, to_polars
from finx_streamer.tables import COLUMNS

MOMENT = datetime(2022, 7, 2, 15, 30, 55, 817_001, tzinfo=UTC)
RECEIVED = 1_656_775_855_900_000_123


def tick(price: Any, exchange: str = "BINANCE", pair: str = "BTC:USDC", backfilled: bool = False) -> Tick:
    """A tick with this price."""
    return {
        "pair": pair,
        "date": "2022-07-02",
        "time": "15:30:55.817001Z",
        "exchange": exchange,
        "price": price,
        "timestamp": MOMENT,
        "received_ns": RECEIVED,
        "backfilled": backfilled,
    }


TICKS = [tick(19200.84, "FTX"), tick(1.5, "BINANCE", "ETH:BTC", True), tick(19200.84, "FTX")]
PANDAS = {
    "timestamp": "datetime64[us, UTC]",
    "pair": "category",
    "exchange": "category",
    "price": "float64",
    "received": "datetime64[ns, UTC]",
    "backfilled": "bool",
}
POLARS = {
    "timestamp": pl.Datetime("us", "UTC"),
    "pair": pl.Categorical,
    "exchange": pl.Categorical,
    "price": pl.Float64,
    "received": pl.Datetime("ns", "UTC"),
    "backfilled": pl.Boolean,
}


@pytest.mark.parametrize("ticks", [TICKS, []], ids=["some", "none"])
def test_pandas_types(ticks: list[Tick]) -> None:
    """Times are in UTC, names are categories, flags are flags; the same for no ticks."""
    frame = to_pandas(iter(ticks))
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == PANDAS
    assert list(COLUMNS) == list(frame.columns)
    assert len(ticks) == len(frame)


@pytest.mark.parametrize("ticks", [TICKS, []], ids=["some", "none"])
def test_polars_types(ticks: list[Tick]) -> None:
    """The same columns, in Polars' own types."""
    frame = to_polars(iter(ticks))
    assert list(POLARS.items()) == list(frame.schema.items())
    assert len(ticks) == len(frame)


def test_pandas_values() -> None:
    """Every row is its tick, equal ones included, to the nanosecond."""
    frame = to_pandas(TICKS)
    assert [moment.to_pydatetime() for moment in frame["timestamp"]] == [MOMENT] * 3
    assert [moment.value for moment in frame["received"]] == [RECEIVED] * 3
    assert list(frame["exchange"]) == ["FTX", "BINANCE", "FTX"]
    assert list(frame["pair"]) == ["BTC:USDC", "ETH:BTC", "BTC:USDC"]
    assert list(frame["price"]) == [19200.84, 1.5, 19200.84]
    assert list(frame["backfilled"]) == [False, True, False]


def test_polars_values() -> None:
    """The same in Polars."""
    frame = to_polars(TICKS)
    assert frame["timestamp"].to_list() == [MOMENT] * 3
    assert frame["received"].cast(pl.Int64).to_list() == [RECEIVED] * 3
    assert frame["exchange"].to_list() == ["FTX", "BINANCE", "FTX"]
    assert frame["pair"].to_list() == ["BTC:USDC", "ETH:BTC", "BTC:USDC"]
    assert frame["price"].to_list() == [19200.84, 1.5, 19200.84]
    assert frame["backfilled"].to_list() == [False, True, False]


@pytest.mark.parametrize(
    "prices", [[Decimal("21865.010000000002"), Decimal("9.2E-7"), Decimal(3541058)], ["1", "2.50"]]
)
def test_pandas_keeps_what_parse_price_made(prices: list[Any]) -> None:
    """A Decimal is not made a float, nor a text a number."""
    frame = to_pandas([tick(price) for price in prices])
    assert str(frame["price"].dtype) == "object"
    assert prices == list(frame["price"])
    assert [type(price) for price in prices] == [type(price) for price in frame["price"]]


def test_polars_keeps_decimals() -> None:
    """A column of its own type, with as many places as the finest price has, and not a digit lost."""
    prices = [Decimal("21865.010000000002"), Decimal("9.2E-7"), Decimal(3541058), Decimal("1E+3"), Decimal(0)]
    frame = to_polars([tick(price) for price in prices])
    assert pl.Decimal(38, 12) == frame.schema["price"]
    assert prices == frame["price"].to_list()


@pytest.mark.parametrize("price", [Decimal("1E-39"), Decimal("1E+39"), Decimal("1." + "1" * 38), Decimal("NaN")])
def test_polars_says_where_a_decimal_is_too_long(price: Decimal) -> None:
    """What does not fit is an error, and not another number."""
    with pytest.raises(ConfigurationError, match="38"):
        to_polars([tick(price)])


def test_polars_keeps_texts_and_objects() -> None:
    """Text stays text; what Polars has no type for stays what it is."""
    assert to_polars([tick("1"), tick("2.50")])["price"].to_list() == ["1", "2.50"]
    assert to_polars([tick(1.5), tick("x")])["price"].to_list() == [1.5, "x"]


def test_whole_numbers_are_numbers() -> None:
    """Prices may be ints, where `parse_price` makes some of them."""
    assert str(to_pandas([tick(1), tick(2.5)])["price"].dtype) == "float64"
    assert pl.Float64 == to_polars([tick(1), tick(2.5)]).schema["price"]


@pytest.mark.parametrize(("make", "name"), [(to_pandas, "pandas"), (to_polars, "polars")])
def test_what_is_missing_is_named(make: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf'pip install "finx-streamer\[{name}\]"'):
        make([])


def test_pandas_groups_by_exchange() -> None:
    """What people do with it works."""
    means = to_pandas(TICKS).groupby("exchange", observed=True)["price"].mean()
    assert means.to_dict() == {"BINANCE": 1.5, "FTX": 19200.84}
    assert pd.Timestamp(MOMENT) == to_pandas(TICKS).set_index("timestamp").index[0]


@pytest.mark.parametrize("make", [to_pandas, to_polars])
@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (3, "int is no iterable of ticks"),
        (None, "NoneType is no iterable of ticks"),
        ([1], "one of them is of type int, and no tick"),
        (TICKS[0], "one of them is of type str, and no tick"),
        ([{"price": 1.5}], "one of them is of type dict, and no tick"),
        ([[1, 2]], "one of them is of type list, and no tick"),
        ([*TICKS, None], "one of them is of type NoneType, and no tick"),
    ],
)
def test_what_is_no_ticks_is_refused(make: Any, given: Any, fault: str) -> None:
    """One tick alone, a number, the price: the refusal says what was expected."""
    with pytest.raises(ConfigurationError) as caught:
        make(given)
    assert f"ticks: {fault}; expected tick dicts, as tick_history gives" == str(caught.value)
