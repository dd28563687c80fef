"""Check arguments. Each check returns the value, or raises a `ConfigurationError` that never shows a key."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

from ..errors import ConfigurationError
from .redaction import redact, shown
from .symbols import Contract, Pair, Symbol, parse_symbol

#: What `moment` accepts.
Moment = datetime | date | str

_S = TypeVar("_S")
#: Clocks and selectors overflow somewhere above.
_MAX_SECONDS = 1e9
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)
_ANY_MOMENT = "an aware datetime, a date, or ISO text such as '2022-07-02' or '2022-07-02T15:30:55.817Z'"


def refusal(name: str, value: object, expected: str) -> ConfigurationError:
    """Return the error for a wrong argument."""
    return ConfigurationError(f"{name}: {shown(value)} is not allowed; expected {expected}")


def require(good: bool, name: str, value: object, expected: str) -> None:
    """Raise the error for a wrong argument unless `good`."""
    if not good:
        raise refusal(name, value, expected)


def number(name: str, value: Any, low: float, high: float, expected: str) -> float:
    """A number from `low` to `high`, not NaN."""
    found = _python_number(value)
    require(found is not None and low <= found <= high, name, value, expected)
    return float(found or 0)


def seconds(name: str, value: Any, zero: bool = False) -> float:
    """A duration; 0 only if `zero`."""
    low, bound = (0.0, ">=") if zero else (sys.float_info.min, ">")
    return number(name, value, low, _MAX_SECONDS, f"seconds, {bound} 0 and <= {_MAX_SECONDS:g}")


def seconds_or_none(name: str, value: Any, zero: bool = False) -> float | None:
    """A duration, or None; 0 only if `zero`."""
    return None if value is None else seconds(name, value, zero)


def integer(name: str, value: Any, low: int, or_none: str = "") -> int:
    """An int that fits in a size and is at least `low`. `or_none` explains in the error what None means."""
    found = _python_number(value)
    require(isinstance(found, int) and found >= low, name, value, f"an int >= {low}{or_none}")
    require(int(found or 0) <= sys.maxsize, name, value, f"an int <= {sys.maxsize}")
    return int(found or 0)


def _python_number(value: Any) -> int | float | None:
    """An integer or float of Python or NumPy, whose types are registered as such. None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    is_float = isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational)
    return float(value) if is_float else None


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    require(isinstance(value, bool), name, value, "True or False")
    return bool(value)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """One of a few texts."""
    require(isinstance(value, str) and value in allowed, name, value, f"one of {', '.join(map(repr, allowed))}")
    return str(value)


def text(name: str, value: Any, expected: str) -> str:
    """A text that isn't empty."""
    require(isinstance(value, str) and value != "", name, value, expected)
    return str(value)


def text_or_none(name: str, value: Any) -> str | None:
    """A text that isn't empty, or None."""
    return None if value is None else text(name, value, "a str or None")


def price_parser(value: Any) -> Callable[[str], Any]:
    """A callable for `parse_price`."""
    require(callable(value), "parse_price", value, "a callable such as float or decimal.Decimal")
    return value  # type: ignore[no-any-return]


def symbol(value: Any) -> Symbol:
    """A pair, an option month or a contract."""
    return _parsed(parse_symbol, value)


def pair(value: Any) -> Pair:
    """A pair."""
    require(isinstance(value, str | Pair), "pair", value, "a str such as 'BTC:USDC'")
    return _parsed(Pair.parse, str(value))


def contract(value: Any) -> Contract:
    """An option month or a contract."""
    parsed = symbol(value)
    if isinstance(parsed, Pair):
        raise refusal("symbol", value, "an option month such as 'BTCN2202207', or a contract such as 'BTC-PERPETUAL'")
    return parsed


def _parsed(parse: Callable[[Any], _S], value: Any) -> _S:
    try:
        return parse(value)
    except ConfigurationError:
        # That error would show the value, which may be a misplaced key.
        if not isinstance(value, str) or redact(value) == value:
            raise
    raise refusal(
        "symbol", value, "a pair such as 'BTC:USDC', or an option such as 'BTCN2202207' or 'BTC-26AUG22-20000-C'"
    )


def exchange(name: str, value: Any) -> str:
    """An exchange as ticks name it: in upper case (source: O), because no tick would match another spelling."""
    text(name, value, "a name such as 'BINANCE'")
    require(value == value.upper(), name, value, f"the upper case in which ticks name it: {shown(value.upper())}")
    return str(value)


def exchanges(value: Any) -> frozenset[str] | None:
    """Several exchanges, or None for all."""
    if value is None:
        return None
    if isinstance(value, str):
        raise ConfigurationError(f"exchanges: {shown(value)} is one str; expected several, as in [{shown(value)}]")
    try:
        names = frozenset(value)
    except TypeError:
        raise refusal("exchanges", value, "names such as ['BINANCE']") from None
    require(bool(names), "exchanges", value, "at least one name such as 'BINANCE'")
    return frozenset(exchange("exchanges", name) for name in names)


def moment(name: str, value: object) -> datetime:
    """An aware datetime in UTC, from an aware datetime, a date (its midnight in UTC) or ISO 8601 text.

    Text without an offset is in UTC, like FinX's own times. A naive datetime is refused: elsewhere in Python it means
    local time.
    """
    found = _parse_moment(name, value)
    if found.tzinfo is None:
        raise ConfigurationError(
            f"{name}: {value!r} has no time zone; expected an aware datetime such as {found.isoformat()}+00:00: "
            "pass tzinfo=datetime.UTC"
        )
    try:
        found = found.astimezone(UTC)
    except OverflowError:
        found = _LAST
    require(_FIRST <= found < _LAST, name, value, "a time from 1970 to 9998")
    return found


def moment_or_age(name: str, value: object) -> datetime | timedelta | None:
    """A time as `moment` accepts it, a `timedelta` before a time that is known later, or None."""
    if isinstance(value, timedelta):
        expected = f"a timedelta of 0 to {_MAX_SECONDS:g} seconds"
        require(timedelta(0) <= value <= timedelta(seconds=_MAX_SECONDS), name, value, expected)
        return value
    return None if value is None else moment(name, value)


def _parse_moment(name: str, value: object) -> datetime:
    if isinstance(value, datetime):
        # pandas' NaT is a datetime that doesn't equal itself.
        require(value == value, name, value, f"{_ANY_MOMENT}; NaT is a missing time")
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, str):
        raise refusal(name, value, _ANY_MOMENT)
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        raise refusal(name, value, _ANY_MOMENT) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
