"""Ticks as tables of pandas or Polars. Needs the extra `[pandas]` or `[polars]`."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError
from .values import Tick

if TYPE_CHECKING:
    import pandas
    import polars

#: The columns, in order. The wire's `date` and `time` are left out: `timestamp` has both, cut to microseconds.
COLUMNS = ("timestamp", "pair", "exchange", "price", "received", "backfilled")


def to_pandas(ticks: Iterable[Tick]) -> pandas.DataFrame:
    """Ticks as a `pandas.DataFrame`, one row each, in their order.

    - `timestamp`: datetime64[us, UTC]; `received`: datetime64[ns, UTC], from `received_ns`;
    - `pair`, `exchange`: categorical;
    - `price`: float64 where all prices are floats or ints (and where there is no tick); else object, with the prices as
      `parse_price` made them, such as `Decimal`;
    - `backfilled`: bool.

    Raises `ConfigurationError` where pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise _missing("pandas") from None
    columns = _columns(ticks)
    prices = columns["price"]
    return pd.DataFrame(
        {
            "timestamp": pd.Series(columns["timestamp"], dtype="datetime64[us, UTC]"),
            "pair": pd.Series(pd.Categorical(columns["pair"], categories=_categories(columns["pair"]))),
            "exchange": pd.Series(pd.Categorical(columns["exchange"], categories=_categories(columns["exchange"]))),
            "price": pd.Series(prices, dtype="float64" if _all_of(prices, (float, int)) else "object"),
            "received": pd.Series(columns["received_ns"], dtype="int64").astype("datetime64[ns, UTC]"),
            "backfilled": pd.Series(columns["backfilled"], dtype="bool"),
        }
    )


def to_polars(ticks: Iterable[Tick]) -> polars.DataFrame:
    """Ticks as a `polars.DataFrame`, one row each, in their order.

    - `timestamp`: Datetime[us, UTC]; `received`: Datetime[ns, UTC], from `received_ns`;
    - `pair`, `exchange`: Categorical;
    - `price`: Float64 where all prices are floats or ints (and where there is no tick); Decimal where each is a
      `Decimal`, with as many decimal places as the finest has; String where each is a str; else Object;
    - `backfilled`: Boolean.

    Raises `ConfigurationError` where polars is not installed, or a `Decimal` has more digits than its 38.
    """
    try:
        import polars as pl
    except ImportError:
        raise _missing("polars") from None
    columns = _columns(ticks)
    return pl.DataFrame(
        [
            pl.Series("timestamp", columns["timestamp"], dtype=pl.Datetime("us", "UTC")),
            pl.Series("pair", columns["pair"], dtype=pl.Categorical),
            pl.Series("exchange", columns["exchange"], dtype=pl.Categorical),
            pl.Series("price", columns["price"], dtype=_polars_price(columns["price"])),
            pl.Series("received", columns["received_ns"], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC")),
            pl.Series("backfilled", columns["backfilled"], dtype=pl.Boolean),
        ]
    )


def _columns(ticks: Iterable[Tick]) -> dict[str, list[Any]]:
    if not isinstance(ticks, Iterable):
        raise _no_ticks(f"{type(ticks).__name__} is no iterable of ticks")
    rows = []
    for t in ticks:
        try:
            row = t["timestamp"], t["pair"], t["exchange"], t["price"], t["received_ns"], t["backfilled"]
        except (TypeError, KeyError, IndexError):
            raise _no_ticks(f"one of them is of type {type(t).__name__}, and no tick") from None
        rows.append(row)
    names = ("timestamp", "pair", "exchange", "price", "received_ns", "backfilled")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in names}


def _no_ticks(fault: str) -> ConfigurationError:
    return ConfigurationError(f"ticks: {fault}; expected tick dicts, as tick_history gives")


def _categories(values: list[str]) -> list[str]:
    return sorted(set(values))


def _all_of(prices: list[Any], kinds: type | tuple[type, ...]) -> bool:
    return all(isinstance(price, kinds) and not isinstance(price, bool) for price in prices)


def _polars_price(prices: list[Any]) -> Any:
    import polars as pl

    if _all_of(prices, (float, int)):
        return pl.Float64
    if _all_of(prices, str):
        return pl.String
    if not _all_of(prices, Decimal):
        return pl.Object
    finite = [price for price in prices if price.is_finite()]
    places = max((max(0, -int(price.as_tuple().exponent)) for price in finite), default=0)
    whole = max((price.adjusted() + 1 for price in finite if price), default=1)
    if len(finite) < len(prices) or places + max(whole, 0) > 38:
        raise ConfigurationError(
            "to_polars: the prices take more digits than the 38 of a Decimal column; use parse_price=float or str"
        )
    return pl.Decimal(38, places)


def _missing(name: str) -> ConfigurationError:
    return ConfigurationError(f'to_{name} needs {name}, which is not installed: pip install "finx-streamer[{name}]"')
