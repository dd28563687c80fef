"""Ticks in their wire form: validate them, read their time, set another time."""

from __future__ import annotations

import contextlib
import numbers
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, NotRequired, TypedDict

from ..config.symbols import Pair

_CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d)", re.ASCII)
_FRACTION = re.compile(r"(?:\.\d+)?Z?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_PRICE = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
#: The fields of a tick on the wire.
FIELDS = ("pair", "date", "time", "exchange", "price")
_texts_of = itemgetter(*FIELDS)
_EPOCH = date(1970, 1, 1).toordinal()

#: An exact time: whole seconds since 1970 UTC, and the digits of the fraction without trailing zeros. Tuples of this
#: type sort by time.
ExactTime = tuple[int, str]


class Tick(TypedDict):
    """One trade, as a `Source` plays it. All fields are strings, as on the wire::

        from finx_streamer.server import Tick

        tick = Tick(pair="BTC:USDC", date="2022-07-02", time="15:30:55.817Z", exchange="BINANCE", price="19200.84")

    `date` and `time` are in UTC. Source: S; exponents in a price: D.

    Attributes:
        pair (str): `BASE:QUOTE`.
        date (str): `YYYY-MM-DD`.
        time (str): `HH:MM:SS`, with any number of fraction digits and usually a `Z`.
        exchange (str): The name of the exchange.
        price (str): A decimal number, possibly with an exponent.
        trade (NotRequired[str]): The exchange's own ID of the trade, for publishers only. No client gets it.
    """

    pair: str
    date: str
    time: str
    exchange: str
    price: str
    trade: NotRequired[str]


def parse_tick(raw: object) -> Tick:
    """Validate a tick and return its five fields, unchanged if they are in their wire form.

    A client's tick is accepted, too: its price may be a number. Without `date` and `time`, the `timestamp` counts.

    Raises `ValueError` that names the problem.
    """
    # A look at the type first, because it's cheaper. The same below: a relay has many ticks.
    if type(raw) is not dict and not isinstance(raw, Mapping):
        raise ValueError(f"a tick must be a JSON object, not {type(raw).__name__}")
    values = raw if type(raw.get("price")) is str and "date" in raw else _wire_values(raw)
    try:
        texts = pair, day, time, exchange, price = _texts_of(values)
    except KeyError as missing:
        raise ValueError(f"{missing} is missing") from None
    if not type(pair) is type(day) is type(time) is type(exchange) is type(price) is str or not all(texts):
        for field, text in zip(FIELDS, texts, strict=True):
            if not isinstance(text, str) or not text:
                raise ValueError(f"{field!r} must be a non-empty string")
        pair, day, time, exchange, price = map(str, texts)
    check_series(pair, exchange)
    check_price(price)
    exact_time(day, time)
    return {"pair": pair, "date": day, "time": time, "exchange": exchange, "price": price}


def _wire_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a client's tick or of a table's row, with the price, date and time in their wire form."""
    values = dict(raw)
    price = values.get("price")
    if not isinstance(price, bool) and isinstance(price, numbers.Number):
        values["price"] = str(price)
    if "timestamp" in values and "date" not in values and "time" not in values:
        values["date"], values["time"] = _date_and_time(values["timestamp"])
    return values


def _date_and_time(timestamp: object) -> tuple[str, str]:
    found = timestamp
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(found)
    if not isinstance(found, datetime) or found.tzinfo is None:
        raise ValueError(f"not a timestamp: {str(timestamp)[:60]!r}; expected a date and time with an offset from UTC")
    moment = found.astimezone(UTC)
    digits = "microseconds" if moment.microsecond % 1_000 else "milliseconds"
    return moment.date().isoformat(), moment.time().isoformat(digits) + "Z"


def check_series(pair: str, exchange: str) -> None:
    """Raise `ValueError` unless both names are valid."""
    if not isinstance(pair, str) or not pair:
        raise ValueError("'pair' must be a non-empty string")
    _check_pair(pair)
    if not isinstance(exchange, str) or not exchange:
        raise ValueError("'exchange' must be a non-empty string")


def check_price(price: str) -> None:
    """Raise `ValueError` unless the price is a decimal number."""
    if not _PRICE.fullmatch(price):
        raise ValueError(f"not a price: {price[:60]!r}; expected a decimal number")


def exact_time(day: str, time: str) -> ExactTime:
    """Parse a tick's date and time. A leap second (`:60`) counts as the next second. Raises `ValueError`."""
    # Ticks share their seconds and fractions, so caching the parts is faster than parsing the whole.
    seconds, fraction = _clock_seconds(time[:8]), _fraction_digits(time[8:])
    if seconds is None or fraction is None:
        raise ValueError(f"not a time: {time[:60]!r}; expected HH:MM:SS.fffZ")
    return day_start(day) + seconds, fraction


def epoch_seconds(tick: Tick) -> float:
    """The tick's time in seconds since 1970 UTC."""
    seconds, fraction = exact_time(tick["date"], tick["time"])
    return seconds + float(f"0.{fraction or 0}")


def with_time(tick: Tick, when: float) -> Tick:
    """A copy of the tick at another time, in seconds since 1970, truncated to milliseconds."""
    day, time = format_time(when)
    return Tick(pair=tick["pair"], date=day, time=time, exchange=tick["exchange"], price=tick["price"])


def format_time(when: float) -> tuple[str, str]:
    """A time in seconds since 1970 as the wire's `date` and `time`."""
    moment = datetime.fromtimestamp(when, UTC)
    return moment.date().isoformat(), moment.time().isoformat("milliseconds") + "Z"


@lru_cache(maxsize=4_096)
def _check_pair(text: str) -> None:
    Pair.parse(text)


@lru_cache(maxsize=64)
def day_start(text: str) -> int:
    """Midnight UTC of a `YYYY-MM-DD` date, in seconds since 1970. Raises `ValueError`."""
    if not _DATE.fullmatch(text):
        raise ValueError(f"not a date: {text[:60]!r}; expected YYYY-MM-DD")
    try:
        return (date.fromisoformat(text).toordinal() - _EPOCH) * 86_400
    except ValueError as error:
        raise ValueError(f"not a date: {text!r}: {error}") from None


@lru_cache(maxsize=4_096)
def _clock_seconds(text: str) -> int | None:
    """Whole seconds since midnight of `HH:MM:SS`; None if malformed."""
    found = _CLOCK.fullmatch(text)
    if found:
        hours, minutes, seconds = map(int, found.groups())
        if hours < 24 and minutes < 60 and seconds < 61:
            return hours * 3_600 + minutes * 60 + seconds
    return None


@lru_cache(maxsize=4_096)
def _fraction_digits(text: str) -> str | None:
    """The fraction digits of a second without trailing zeros; None if malformed."""
    return text[1:].rstrip("Z").rstrip("0") if _FRACTION.fullmatch(text) else None
