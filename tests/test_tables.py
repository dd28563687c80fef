"""Tables of ticks: columns, types, order and values, also without any ticks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from finx_streamer import ConfigurationError, Tick, to_pandas, to_polars

MOMENT = datetime(2022, 7, 2, 15, 30, 55, 817_001, tzinfo=UTC)
RECEIVED = 1_656_775_855_900_000_123


def tick(price: Any, exchange: str = "BINANCE", pair: str = "BTC:USDC", backfilled: bool = False) -> Tick:
    """Return a tick with this price."""
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
    """The columns have the documented types, also without ticks."""
    frame = to_pandas(iter(ticks))
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == PANDAS
    assert list(frame.columns) == list(PANDAS)
    assert len(frame) == len(ticks)


@pytest.mark.parametrize("ticks", [TICKS, []], ids=["some", "none"])
def test_polars_types(ticks: list[Tick]) -> None:
    """The columns have the documented types, also without ticks."""
    frame = to_polars(iter(ticks))
    assert list(frame.schema.items()) == list(POLARS.items())
    assert len(frame) == len(ticks)


def test_pandas_values() -> None:
    """Each row has the values of its tick, even if two ticks are equal."""
    frame = to_pandas(TICKS)
    assert [moment.to_pydatetime() for moment in frame["timestamp"]] == [MOMENT] * 3
    assert [moment.value for moment in frame["received"]] == [RECEIVED] * 3
    assert list(frame["exchange"]) == ["FTX", "BINANCE", "FTX"]
    assert list(frame["pair"]) == ["BTC:USDC", "ETH:BTC", "BTC:USDC"]
    assert list(frame["price"]) == [19200.84, 1.5, 19200.84]
    assert list(frame["backfilled"]) == [False, True, False]


def test_polars_values() -> None:
    """Each row has the values of its tick, even if two ticks are equal."""
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
def test_pandas_keeps_prices_as_parse_price_returned_them(prices: list[Any]) -> None:
    """A Decimal doesn't become a float, and a text doesn't become a number."""
    frame = to_pandas([tick(price) for price in prices])
    assert str(frame["price"].dtype) == "object"
    assert list(frame["price"]) == prices
    assert [type(price) for price in frame["price"]] == [type(price) for price in prices]


def test_polars_keeps_decimals() -> None:
    """The column has as many decimal places as the finest price, so no digit is lost."""
    prices = [Decimal("21865.010000000002"), Decimal("9.2E-7"), Decimal(3541058), Decimal("1E+3"), Decimal(0)]
    frame = to_polars([tick(price) for price in prices])
    assert frame.schema["price"] == pl.Decimal(38, 12)
    assert frame["price"].to_list() == prices


@pytest.mark.parametrize("price", [Decimal("1E-39"), Decimal("1E+39"), Decimal("1." + "1" * 38), Decimal("NaN")])
def test_polars_rejects_decimals_that_do_not_fit(price: Decimal) -> None:
    """A Decimal with too many digits is an error, not a rounded number."""
    with pytest.raises(ConfigurationError, match="38"):
        to_polars([tick(price)])


def test_polars_keeps_strings_and_objects() -> None:
    """Strings stay strings, and mixed types become an Object column."""
    assert to_polars([tick("1"), tick("2.50")])["price"].to_list() == ["1", "2.50"]
    assert to_polars([tick(1.5), tick("x")])["price"].to_list() == [1.5, "x"]


def test_ints_become_floats() -> None:
    """`parse_price` may return ints."""
    assert str(to_pandas([tick(1), tick(2.5)])["price"].dtype) == "float64"
    assert to_polars([tick(1), tick(2.5)]).schema["price"] == pl.Float64


@pytest.mark.parametrize(("convert", "name"), [(to_pandas, "pandas"), (to_polars, "polars")])
def test_a_missing_extra_is_named(convert: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf'pip install "finx-streamer\[{name}\]"'):
        convert([])


def test_common_pandas_operations_work() -> None:
    """The table can be grouped by exchange and indexed by time."""
    means = to_pandas(TICKS).groupby("exchange", observed=True)["price"].mean()
    assert means.to_dict() == {"BINANCE": 1.5, "FTX": 19200.84}
    assert to_pandas(TICKS).set_index("timestamp").index[0] == pd.Timestamp(MOMENT)


@pytest.mark.parametrize("convert", [to_pandas, to_polars])
@pytest.mark.parametrize(
    ("ticks", "reason"),
    [
        (3, "int is not iterable"),
        (None, "NoneType is not iterable"),
        ([1], "one of them is a int, not a tick"),
        (TICKS[0], "one of them is a str, not a tick"),
        ([{"price": 1.5}], "one of them is a dict, not a tick"),
        ([[1, 2]], "one of them is a list, not a tick"),
        ([*TICKS, None], "one of them is a NoneType, not a tick"),
    ],
)
def test_anything_but_ticks_is_rejected(convert: Any, ticks: Any, reason: str) -> None:
    """The error says what was expected, e.g. if a single tick is passed."""
    with pytest.raises(ConfigurationError) as caught:
        convert(ticks)
    assert str(caught.value) == f"ticks: {reason}; expected tick dicts, as tick_history returns them"


@pytest.mark.parametrize("parse_price", [np.float64, np.float32, lambda text: np.int64(float(text))])
def test_prices_may_be_numbers_of_numpy(parse_price: Callable[[str], Any]) -> None:
    """They become a column of floats."""
    ticks = [tick(parse_price("1.5"))]
    assert str(to_pandas(ticks)["price"].dtype) == "float64"
    assert to_polars(ticks)["price"].dtype == pl.Float64


def test_fractions_stay_exact() -> None:
    """A float would lose digits."""
    assert to_pandas([tick(Fraction(1, 3))])["price"][0] == Fraction(1, 3)
