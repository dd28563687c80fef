"""Contracts in their wire form: the names of options, futures and perpetuals, and their tickers.

The grades S, D and O in the docstrings are explained in docs/protocol.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from typing import Any, Literal, final

import attrs

from ..config.symbols import MONTH_LETTERS
from ..errors import ConfigurationError
from .ticks import Tick, epoch_seconds, parse_tick, with_time

#: The keys of a contract's ticker, in the vendor's order. Source: D.
KEYS = (
    "redis_key", "underlying_price", "underlying_index", "timestamp", "state", "settlement_price", "open_interest",
    "min_price", "max_price", "mark_price", "mark_iv", "last_price", "interest_rate", "instrument_name", "index_price",
    "estimated_delivery_price", "bid_iv", "best_bid_price", "best_bid_amount", "best_ask_price", "best_ask_amount",
    "ask_iv", "vega", "theta", "rho", "gamma", "delta", "volume", "price_change", "low", "high",
)  # fmt: skip
#: Expiries are at 08:00 UTC. Source: D.
EXPIRY_HOUR = 8

_TEXTS = frozenset({"redis_key", "underlying_index", "state", "instrument_name"})
_NUMBERS = tuple(key for key in KEYS if key not in _TEXTS)
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?", re.ASCII)
_TIMESTAMP = re.compile(r"\d{1,14}", re.ASCII)
_LATEST_TIMESTAMP = 253_402_300_799_999
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_NAME = re.compile(
    r"([A-Z0-9]{1,32}(?:_([A-Z0-9]{1,32}))?)-"
    rf"(?:PERPETUAL|(\d{{1,2}})({'|'.join(_MONTHS)})(\d\d)(?:-(\d{{1,12}}(?:d\d{{1,8}})?)-([CP]))?)",
    re.ASCII,
)

Kind = Literal["call", "put", "future", "perpetual"]


@attrs.frozen
class Instrument:
    """A contract by its name, such as `BTC-26AUG22-20000-C`, `BTC-26AUG22` or `BTC-PERPETUAL`. Source: D.

    Attributes:
        name (str): The name.
        underlying (str): What it is about, such as `BTC`, or `BTC_USDC` for a contract that is settled in USDC.
        base (str): The coin that it is settled in, such as `BTC`, or `USDC` for `BTC_USDC`. Source: O.
        kind (str): `call`, `put`, `future` or `perpetual`.
        expiry (int | None): Seconds since 1970. None for a perpetual.
        strike (float | None): None unless it is an option.
        month (str | None): For options, the stream of the underlying and the month, such as `BTCN2202207`. Source: S.
    """

    name: str
    underlying: str
    base: str
    kind: Kind
    expiry: int | None = None
    strike: float | None = None
    month: str | None = None


@lru_cache(maxsize=4_096)
def parse_instrument(name: str) -> Instrument:
    """Parse a contract's name. Raises `ConfigurationError`, which doesn't quote it."""
    found = _NAME.fullmatch(name)
    malformed = ConfigurationError(
        "not a contract; expected a name such as BTC-26AUG22-20000-C, BTC-26AUG22 or BTC-PERPETUAL"
    )
    if not found:
        raise malformed
    underlying, coin, day, month_name, year, strike, side = found.groups()
    base = coin or underlying
    if day is None:
        return Instrument(name, underlying, base, "perpetual")
    month = _MONTHS.index(month_name) + 1
    try:
        expiry = int(datetime(2000 + int(year), month, int(day), EXPIRY_HOUR, tzinfo=UTC).timestamp())
    except ValueError:
        raise malformed from None
    if strike is None:
        return Instrument(name, underlying, base, "future", expiry)
    kind: Kind = "call" if side == "C" else "put"
    letter = MONTH_LETTERS[month - 1] + year[-1]
    stream = f"{underlying}{letter}20{year}{month:02}"
    return Instrument(name, underlying, base, kind, expiry, float(strike.replace("d", ".")), stream)


def format_expiry(expiry: int) -> str:
    """An expiry in seconds since 1970 as in a contract's name: `26AUG22`."""
    moment = datetime.fromtimestamp(expiry, UTC)
    return f"{moment.day}{_MONTHS[moment.month - 1]}{moment.year % 100:02}"


@lru_cache(maxsize=8)
def months_of(contracts: frozenset[str]) -> frozenset[str]:
    """The streams of an underlying and a month that have options, such as `BTCN2202207`."""
    return frozenset(filter(None, (parse_instrument(name).month for name in contracts)))


@final
@attrs.frozen
class ContractTicker:
    """The ticker of a contract.

    Attributes:
        instrument (Instrument): The contract.
        timestamp (int): Milliseconds since 1970.
        values (dict[str, str]): The 31 keys, each with a string. A missing value is empty.
    """

    instrument: Instrument
    timestamp: int
    values: dict[str, str]

    def at(self, when: float) -> ContractTicker:
        """A copy at another time, in seconds since 1970, truncated to milliseconds."""
        timestamp = int(when * 1_000)
        return ContractTicker(self.instrument, timestamp, {**self.values, "timestamp": str(timestamp)})


#: What a source plays.
Played = Tick | ContractTicker


def parse_played(raw: object) -> Played:
    """Validate a tick or a contract's ticker. Raises `ValueError` that names the problem."""
    if isinstance(raw, ContractTicker):
        return raw
    if isinstance(raw, Mapping) and "pair" not in raw:
        # What `finx-streamer listen` writes has the ticker as it was sent.
        ticker = raw["raw"] if "instrument" in raw and isinstance(raw.get("raw"), Mapping) else raw
        if not {"instrument_name", "params"}.isdisjoint(ticker):
            return parse_ticker(ticker)
    return parse_tick(raw)


def seconds_of(played: Played) -> float:
    """The time of a tick or of a contract's ticker in seconds since 1970 UTC."""
    return played.timestamp / 1_000 if isinstance(played, ContractTicker) else epoch_seconds(played)


def moved(played: Played, when: float) -> Played:
    """A copy at another time, in seconds since 1970, truncated to milliseconds."""
    return played.at(when) if isinstance(played, ContractTicker) else with_time(played, when)


def parse_ticker(raw: Mapping[str, Any]) -> ContractTicker:
    """Validate a contract's ticker.

    It has the vendor's 31 keys, or is a Deribit message, whose `params.data` has the same values in numbers and the
    sub-objects `greeks` and `stats`. A missing key is an empty string, other keys are ignored. Strings stay as they
    are; numbers are written without an exponent and without trailing zeros. Source: D for both forms, O for the rest.

    Raises `ValueError` that names the problem.
    """
    flat, is_deribit = _flattened(raw)
    name = flat.get("instrument_name")
    if not isinstance(name, str) or not name:
        raise ValueError("'instrument_name' must be a non-empty string")
    try:
        instrument = parse_instrument(name)
    except ConfigurationError as error:
        raise ValueError(f"'instrument_name' is {error!s}") from None
    values = {key: _text(key, flat.get(key), is_deribit) for key in KEYS}
    if not _TIMESTAMP.fullmatch(values["timestamp"]) or int(values["timestamp"]) > _LATEST_TIMESTAMP:
        raise ValueError("'timestamp' must be a whole number of milliseconds since 1970")
    for key in _NUMBERS:
        if values[key] and not _NUMBER.fullmatch(values[key]):
            raise ValueError(f"{key!r} must be a decimal number or empty")
    values["redis_key"] = values["redis_key"] or name
    return ContractTicker(instrument, int(values["timestamp"]), values)


def _flattened(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The values of a ticker in one level, and whether they were in a Deribit message."""
    if "params" not in raw:
        return raw, False
    params = raw["params"]
    data = params.get("data") if isinstance(params, Mapping) else None
    if not isinstance(data, Mapping):
        raise ValueError("'params' must be an object with the 'data' of a ticker")
    parts = [part for part in (data.get("greeks"), data.get("stats")) if part is not None]
    if not all(isinstance(part, Mapping) for part in parts):
        raise ValueError("'greeks' and 'stats' must be objects")
    return dict(chain(data.items(), *(part.items() for part in parts))), True


def _text(key: str, value: object, is_deribit: bool) -> str:
    """A value as the vendor sends it."""
    if value is None:
        return ""
    if isinstance(value, str):
        # A file's numbers arrive as they are written.
        return plain(value) if is_deribit and key not in _TEXTS and _NUMBER.fullmatch(value) else value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{key!r} must be a string or a number")
    return plain(str(value))


def plain(number: str) -> str:
    """A number without an exponent and without trailing zeros: `0.000001` for `1e-06`, `5` for `5.0`. Source: D.

    Text that isn't a number is returned as it is.
    """
    if not _NUMBER.fullmatch(number):
        return number
    text = format(Decimal(number), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def check_emitted(raw: Mapping[str, Any], pairs: Collection[str], contracts: Collection[str]) -> Played:
    """Return a tick or ticker that `emit` got. Raises `ConfigurationError` unless the source plays its symbol."""
    try:
        played = parse_played(raw)
    except ValueError as error:
        raise ConfigurationError(f"emit(): {error}") from None
    if isinstance(played, ContractTicker):
        symbol, known = played.instrument.name, contracts
    else:
        symbol, known = played["pair"], pairs
    if symbol not in known:
        raise ConfigurationError(f"emit(): the source does not play {symbol}; expected one of {sorted(known)}")
    return played
