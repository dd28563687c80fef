"""Read contract tickers, the messages of the Greeks streams: JSON objects whose values are strings. Source: D.

Strict: a ticker needs a contract, a time, and numbers where it has any. Tolerant: values may be missing, empty or null
(None), or numbers instead of strings, and there may be more of them. `raw` keeps everything.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from ..config.symbols import Contract, instrument
from ..errors import ConfigurationError
from ..values import Greeks

#: The values that are numbers, as in `Greeks`.
NUMBERS = (
    "delta",
    "gamma",
    "vega",
    "theta",
    "rho",
    "mark_iv",
    "bid_iv",
    "ask_iv",
    "mark_price",
    "underlying_price",
    "index_price",
    "best_bid_price",
    "best_ask_price",
)
#: The key that only contract tickers have.
NAME = "instrument_name"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The longest text of a number, in characters.
_LONGEST = 64
#: All contracts are Deribit's.
_EXCHANGE = "DERIBIT"


def read_greeks(raw: dict[str, Any], symbol: Contract, received_ns: int) -> Greeks:
    """Return the Greeks in a ticker of a stream. Raises ValueError that names the problem."""
    name = raw[NAME]
    if not isinstance(name, str):
        raise ValueError(f"{NAME} is not a string")
    try:
        contract = instrument(name)
    except ConfigurationError as fault:
        raise ValueError(str(fault)) from None
    if not symbol.includes(contract):
        raise ValueError(f"a ticker of {contract} on the stream of {symbol}")
    exchange = raw.get("exchange", _EXCHANGE)
    greeks = {
        "symbol": str(symbol),
        "instrument": contract.name,
        "exchange": exchange if isinstance(exchange, str) else _EXCHANGE,
        "underlying": contract.underlying,
        "kind": contract.kind,
        "strike": contract.strike,
        "expiry": contract.expiry,
        "timestamp": _time(raw),
        "received_ns": received_ns,
        **{key: _number(raw, key) for key in NUMBERS},
        "raw": raw,
    }
    return cast("Greeks", greeks)


def _time(raw: dict[str, Any]) -> datetime:
    milliseconds = _number(raw, "timestamp")
    if milliseconds is None:
        raise ValueError("timestamp is missing")
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise ValueError(f"timestamp {milliseconds:g} is not a time in milliseconds since 1970") from None


def _number(raw: dict[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is None or value == "":
        return None
    # `float` accepts underscores, white space and names such as "nan".
    plain = isinstance(value, str) and len(value) <= _LONGEST and not value.strip("0123456789+-.eE")
    if plain or type(value) in (int, float):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"{key} {str(value)[:_LONGEST]!r} is not a number")
