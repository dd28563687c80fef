"""Convert ticks to pandas or Polars tables. Needs the extra `[pandas]` or `[polars]`."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError
from .values import Tick

if TYPE_CHECKING:
    import pandas
    import polars

#: The fields of a tick that become columns. `date` and `time` don't: `timestamp` has both, truncated to microseconds.
_FIELDS = ("timestamp", "pair", "exchange", "price", "received_ns", "backfilled")
_read_fields = itemgetter(*_FIELDS)
#: The digits of Polars' widest Decimal.
_DECIMAL_DIGITS = 38


def to_pandas(ticks: Iterable[Tick]) -> pandas.DataFrame:
    """Convert ticks to a `pandas.DataFrame` with one row each, in the given order.

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
    try:
        import pandas as pd
    except ImportError:
        raise _not_installed("pandas") from None
    columns = _columns(ticks)
    prices = columns["price"]

    def category(texts: list[str]) -> pandas.Series[Any]:
        return pd.Series(pd.Categorical(texts, categories=sorted(set(texts))))

    return pd.DataFrame(
        {
            "timestamp": pd.Series(columns["timestamp"], dtype="datetime64[us, UTC]"),
            "pair": category(columns["pair"]),
            "exchange": category(columns["exchange"]),
            "price": pd.Series(prices, dtype="float64" if _all_of(prices, (float, int)) else "object"),
            "received": pd.Series(columns["received_ns"], dtype="int64").astype("datetime64[ns, UTC]"),
            "backfilled": pd.Series(columns["backfilled"], dtype="bool"),
        }
    )


def to_polars(ticks: Iterable[Tick]) -> polars.DataFrame:
    """Convert ticks to a `polars.DataFrame` with one row each, in the given order.

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
    try:
        import polars as pl
    except ImportError:
        raise _not_installed("polars") from None
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
        raise _not_ticks(f"{type(ticks).__name__} is not iterable")
    rows = []
    for tick in ticks:
        try:
            rows.append(_read_fields(tick))
        except (TypeError, KeyError):
            raise _not_ticks(f"one of them is a {type(tick).__name__}, not a tick") from None
    return {field: [row[number] for row in rows] for number, field in enumerate(_FIELDS)}


def _not_ticks(reason: str) -> ConfigurationError:
    return ConfigurationError(f"ticks: {reason}; expected tick dicts, as tick_history returns them")


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
    if len(finite) < len(prices) or places + max(whole, 0) > _DECIMAL_DIGITS:
        raise ConfigurationError(
            f"to_polars: the prices need more than the {_DECIMAL_DIGITS} digits of a Decimal column; "
            "use parse_price=float or str"
        )
    return pl.Decimal(_DECIMAL_DIGITS, places)


def _not_installed(name: str) -> ConfigurationError:
    return ConfigurationError(f'to_{name} needs {name}, which is not installed: pip install "finx-streamer[{name}]"')
