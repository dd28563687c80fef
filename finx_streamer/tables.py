"""Convert ticks and Greeks to pandas or Polars tables. Needs the extra `[pandas]` or `[polars]`."""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .bars import Bar
from .errors import ConfigurationError
from .values import Greeks, Tick
from .wire.contract_ticker import NUMBERS

if TYPE_CHECKING:
    import pandas
    import polars

#: The fields of a tick that become columns. `date` and `time` don't: `timestamp` has both, truncated to microseconds.
_read_fields = itemgetter("timestamp", "pair", "exchange", "price", "received_ns", "backfilled")
_COLUMNS = ("timestamp", "pair", "exchange", "price", "received", "backfilled")
#: The columns of Greeks that are numbers; `raw` is no column.
_GREEKS_NUMBERS = ("strike", *NUMBERS)
_GREEKS_NAMES = ("symbol", "instrument", "exchange", "underlying", "kind")
_GREEKS_COLUMNS = ("timestamp", *_GREEKS_NAMES, "expiry", *_GREEKS_NUMBERS, "received")
_read_greeks = itemgetter(*_GREEKS_COLUMNS[:-1], "received_ns")
_BAR_PRICES = ("open", "high", "low", "close")
_BAR_COLUMNS = ("start", "end", "pair", "exchange", *_BAR_PRICES, "ticks", "final", "revision")
#: The digits of Polars' widest Decimal.
_DECIMAL_DIGITS = 38


def to_pandas(ticks: Iterable[Tick]) -> pandas.DataFrame:
    """Convert ticks to a `pandas.DataFrame` with one row each, in the given order::

        from datetime import UTC, datetime, timedelta

        from finx_streamer import FunctionClient, to_pandas

        with FunctionClient(endpoint="demo") as client:
            print(to_pandas(client.tick_history("BTC:USDC", datetime.now(UTC) - timedelta(minutes=1))))

    The columns are:

    - `timestamp`: datetime64[us, UTC]
    - `pair`, `exchange`: category
    - `price`: float64 if all prices are floats or ints; else object, with the prices as `parse_price` returned them
    - `received`: datetime64[ns, UTC]
    - `backfilled`: bool

    Args:
        ticks (Iterable[Tick]): Any ticks, e.g. from `FunctionClient.tick_history`.

    Returns:
        pandas.DataFrame: The table. Without ticks it's empty, with the same columns and types.

    Raises:
        ConfigurationError: `ticks` aren't ticks, or pandas isn't installed.
    """
    pd = _import("pandas", "to_pandas")
    columns = _columns(ticks)
    types = {
        "timestamp": "datetime64[us, UTC]",
        "pair": "category",
        "exchange": "category",
        "price": "float64" if _are_numbers(columns["price"]) else "object",
        "received": "datetime64[ns, UTC]",
        "backfilled": "bool",
    }
    frame: pandas.DataFrame = pd.DataFrame({name: pd.Series(columns[name], dtype=kind) for name, kind in types.items()})
    return frame


def to_polars(ticks: Iterable[Tick]) -> polars.DataFrame:
    """Convert ticks to a `polars.DataFrame` with one row each, in the given order::

        from datetime import UTC, datetime, timedelta

        from finx_streamer import FunctionClient, to_polars

        with FunctionClient(endpoint="demo") as client:
            print(to_polars(client.tick_history("BTC:USDC", datetime.now(UTC) - timedelta(minutes=1))))

    The columns are:

    - `timestamp`: Datetime[us, UTC]
    - `pair`, `exchange`: Categorical
    - `price`: Float64 if all prices are floats or ints; Decimal or String if all are `Decimal` or str; else Object
    - `received`: Datetime[ns, UTC]
    - `backfilled`: Boolean

    Args:
        ticks (Iterable[Tick]): Any ticks, e.g. from `FunctionClient.tick_history`.

    Returns:
        polars.DataFrame: The table. Without ticks it's empty, with the same columns and types.

    Raises:
        ConfigurationError: `ticks` aren't ticks, Polars isn't installed, or the prices need more than the 38 digits of
            a Decimal column.
    """
    pl = _import("polars", "to_polars")
    columns = _columns(ticks)
    types = {
        "timestamp": pl.Datetime("us", "UTC"),
        "pair": pl.Categorical,
        "exchange": pl.Categorical,
        "price": _polars_price(columns["price"]),
        "received": pl.Datetime("ns", "UTC"),
        "backfilled": pl.Boolean,
    }
    frame: polars.DataFrame = pl.DataFrame([pl.Series(name, columns[name], dtype=kind) for name, kind in types.items()])
    return frame


def greeks_to_pandas(greeks: Iterable[Greeks] | Mapping[str, Greeks]) -> pandas.DataFrame:
    """Convert Greeks to a `pandas.DataFrame` with one row each, in the given order::

        from finx_streamer import FunctionClient, greeks_to_pandas

        with FunctionClient(endpoint="demo") as client:
            print(greeks_to_pandas(client.five_minute_matrix("BTC")))

    The columns are:

    - `timestamp`: datetime64[us, UTC]
    - `symbol`, `instrument`, `exchange`, `underlying`, `kind`: category
    - `expiry`: datetime64[us, UTC]
    - `strike`, and the numbers of `Greeks` from `delta` to `best_ask_price`: float64
    - `received`: datetime64[ns, UTC]

    Args:
        greeks (Iterable[Greeks] | Mapping[str, Greeks]): Any Greeks, e.g. from `FunctionClient.five_minute_matrix`, or
            what `StreamListener.greeks` returns.

    Returns:
        pandas.DataFrame: The table. Missing values are NaN or NaT. Without Greeks it's empty, with the same columns.

    Raises:
        ConfigurationError: `greeks` aren't Greeks, or pandas isn't installed.
    """
    pd = _import("pandas", "greeks_to_pandas")
    columns = _greeks_columns(greeks)
    types = dict.fromkeys(_GREEKS_COLUMNS, "float64") | dict.fromkeys(_GREEKS_NAMES, "category")
    types |= {"timestamp": "datetime64[us, UTC]", "expiry": "datetime64[us, UTC]", "received": "datetime64[ns, UTC]"}
    frame: pandas.DataFrame = pd.DataFrame({name: pd.Series(columns[name], dtype=kind) for name, kind in types.items()})
    return frame


def greeks_to_polars(greeks: Iterable[Greeks] | Mapping[str, Greeks]) -> polars.DataFrame:
    """Convert Greeks to a `polars.DataFrame` with one row each, in the given order::

        from finx_streamer import FunctionClient, greeks_to_polars

        with FunctionClient(endpoint="demo") as client:
            print(greeks_to_polars(client.five_minute_matrix("BTC")))

    The columns are:

    - `timestamp`: Datetime[us, UTC]
    - `symbol`, `instrument`, `exchange`, `underlying`, `kind`: Categorical
    - `expiry`: Datetime[us, UTC]
    - `strike`, and the numbers of `Greeks` from `delta` to `best_ask_price`: Float64
    - `received`: Datetime[ns, UTC]

    Args:
        greeks (Iterable[Greeks] | Mapping[str, Greeks]): Any Greeks, e.g. from `FunctionClient.five_minute_matrix`, or
            what `StreamListener.greeks` returns.

    Returns:
        polars.DataFrame: The table. Missing values are null. Without Greeks it's empty, with the same columns.

    Raises:
        ConfigurationError: `greeks` aren't Greeks, or Polars isn't installed.
    """
    pl = _import("polars", "greeks_to_polars")
    columns = _greeks_columns(greeks)
    types = dict.fromkeys(_GREEKS_COLUMNS, pl.Float64) | dict.fromkeys(_GREEKS_NAMES, pl.Categorical)
    types |= {"timestamp": pl.Datetime("us", "UTC"), "expiry": pl.Datetime("us", "UTC")}
    types |= {"received": pl.Datetime("ns", "UTC")}
    frame: polars.DataFrame = pl.DataFrame([pl.Series(name, columns[name], dtype=kind) for name, kind in types.items()])
    return frame


def bars_to_pandas(bars: Iterable[Bar]) -> pandas.DataFrame:
    """Convert bars to a `pandas.DataFrame` with one row each, in the given order::

        from datetime import UTC, datetime, timedelta

        from finx_streamer import FunctionClient, bars, bars_to_pandas

        with FunctionClient(endpoint="demo") as client:
            ticks = client.iter_tick_history("BTC:USDC", datetime.now(UTC) - timedelta(minutes=1))
            print(bars_to_pandas(bars(ticks, "15s")))

    The columns are:

    - `start`, `end`: datetime64[us, UTC]
    - `pair`, `exchange`: category. The exchange is missing (NaN) in bars of all exchanges.
    - `open`, `high`, `low`, `close`: float64 if all prices are floats or ints; else object, with the prices as
      `parse_price` returned them. An empty bar has NaN or None.
    - `ticks`, `revision`: int64
    - `final`: bool

    Args:
        bars (Iterable[Bar]): Any bars, e.g. from `bars`, or those that an `on_bar` callback got.

    Returns:
        pandas.DataFrame: The table. Without bars it's empty, with the same columns and types.

    Raises:
        ConfigurationError: `bars` aren't bars, or pandas isn't installed.
    """
    pd = _import("pandas", "bars_to_pandas")
    columns = _read("bars", bars, itemgetter(*_BAR_COLUMNS), _BAR_COLUMNS, "a bar", "bar dicts, as bars() yields them")
    prices = [price for name in _BAR_PRICES for price in columns[name] if price is not None]
    types = dict.fromkeys(_BAR_COLUMNS, "int64") | {"pair": "category", "exchange": "category", "final": "bool"}
    types |= dict.fromkeys(_BAR_PRICES, "float64" if _are_numbers(prices) else "object")
    types |= dict.fromkeys(("start", "end"), "datetime64[us, UTC]")
    frame: pandas.DataFrame = pd.DataFrame({name: pd.Series(columns[name], dtype=kind) for name, kind in types.items()})
    return frame


def _columns(ticks: Iterable[Tick]) -> dict[str, list[Any]]:
    return _read("ticks", ticks, _read_fields, _COLUMNS, "a tick", "tick dicts, as tick_history returns them")


def _greeks_columns(greeks: Iterable[Greeks] | Mapping[str, Greeks]) -> dict[str, list[Any]]:
    values = greeks.values() if isinstance(greeks, Mapping) else greeks
    return _read("greeks", values, _read_greeks, _GREEKS_COLUMNS, "Greeks", "dicts of Greeks, as on_greeks gets them")


def _read(
    argument: str,
    values: Iterable[Any],
    read: Callable[[Any], tuple[Any, ...]],
    columns: tuple[str, ...],
    kind: str,
    expected: str,
) -> dict[str, list[Any]]:
    """Return the columns of a table. Raises `ConfigurationError` if a value isn't a row."""
    if not isinstance(values, Iterable):
        raise ConfigurationError(f"{argument}: {type(values).__name__} is not iterable; expected {expected}")
    rows = []
    for value in values:
        try:
            rows.append(read(value))
        except (TypeError, KeyError):
            fault = f"one of them is a {type(value).__name__}, not {kind}"
            raise ConfigurationError(f"{argument}: {fault}; expected {expected}") from None
    return {name: [row[number] for row in rows] for number, name in enumerate(columns)}


def _are_numbers(prices: list[Any]) -> bool:
    """Whether all are floats or ints, of Python or NumPy. A `Fraction` would lose digits as a float."""
    return _all_of(prices, numbers.Real) and not any(type(price) is Fraction for price in prices)


def _all_of(prices: list[Any], kinds: type | tuple[type, ...]) -> bool:
    return all(isinstance(price, kinds) and not isinstance(price, bool) for price in prices)


def _polars_price(prices: list[Any]) -> Any:
    import polars as pl

    if _are_numbers(prices):
        return pl.Float64
    if _all_of(prices, str):
        return pl.String
    if not _all_of(prices, Decimal):
        return pl.Object
    finite = [price for price in prices if price.is_finite()]
    places = max((max(0, -int(price.as_tuple().exponent)) for price in finite), default=0)
    whole = max((price.adjusted() + 1 for price in finite if price), default=1)
    if len(finite) < len(prices) or places + max(whole, 0) > _DECIMAL_DIGITS:
        raise ConfigurationError(
            f"to_polars: the prices need more than the {_DECIMAL_DIGITS} digits of a Decimal column; "
            "use parse_price=float or str"
        )
    return pl.Decimal(_DECIMAL_DIGITS, places)


def _import(name: str, function: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigurationError(
            f'{function} needs {name}, which is not installed: pip install "finx-streamer[{name}]"'
        ) from None
