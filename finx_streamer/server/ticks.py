"""A tick as a market source plays it: checking one, reading its time, stamping it with another."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TypedDict

from ..config.symbols import Pair

_TIME = re.compile(r"(\d\d):(\d\d):(\d\d(?:\.\d+)?)Z?", re.ASCII)
_CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d)", re.ASCII)
_FRACTION = re.compile(r"(?:\.\d+)?Z?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_PRICE = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_FIELDS = ("pair", "date", "time", "exchange", "price")
_EPOCH = date(1970, 1, 1).toordinal()

#: A time to the last digit: whole seconds since 1970-01-01 UTC, and the digits of the fraction less its closing zeros.
#: Compared as tuples they are in order.
Moment = tuple[int, str]


class Tick(TypedDict):
    """One trade, all fields as strings. Source: S.

    `pair` is `BASE:QUOTE`, `date` is `YYYY-MM-DD` and `time` is `HH:MM:SS` with any number of fraction digits and,
    as a rule, a `Z`, both in UTC; `price` is a decimal string, exponents included (D).
    """

    pair: str
    date: str
    time: str
    exchange: str
    price: str


def checked(raw: object) -> Tick:
    """The five fields of a tick out of decoded JSON, untouched. Raises `ValueError` that says what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError(f"a tick is a JSON object, not {type(raw).__name__}")
    for field in _FIELDS:
        value = raw.get(field)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{field!r} is {'missing' if field not in raw else 'no text'}")
    check_series(raw["pair"], raw["exchange"])
    check_price(raw["price"])
    midnight(raw["date"])
    _seconds(raw["time"])
    return Tick(pair=raw["pair"], date=raw["date"], time=raw["time"], exchange=raw["exchange"], price=raw["price"])


def check_series(pair: str, exchange: str) -> None:
    """Raise `ValueError` unless a tick can be of this pair and from this exchange."""
    _check_pair(pair)
    if not isinstance(exchange, str) or not exchange:
        raise ValueError("'exchange' is no text")


def check_price(price: str) -> None:
    """Raise `ValueError` unless it is a decimal number."""
    if not _PRICE.fullmatch(price):
        raise ValueError(f"not a price: {price[:60]!r}")


def moment(day: str, time: str) -> Moment:
    """The exact time of a tick. A leap second (`:60`) is taken as the second that follows. Raises `ValueError`."""
    # In parts, of which there are few: ticks share their seconds, and fractions are in milliseconds as a rule.
    return midnight(day) + _clock(time[:8]), _fraction(time[8:])


def epoch(tick: Tick) -> float:
    """The tick's time in seconds since 1970-01-01 UTC."""
    return midnight(tick["date"]) + _seconds(tick["time"])


def stamped(tick: Tick, when: float) -> Tick:
    """The same tick at another time: `when` in seconds since 1970, cut to milliseconds."""
    day, time = stamp(when)
    return Tick(pair=tick["pair"], date=day, time=time, exchange=tick["exchange"], price=tick["price"])


def stamp(when: float) -> tuple[str, str]:
    """`date` and `time` as the wire has them, of a time in seconds since 1970."""
    moment = datetime.fromtimestamp(when, UTC)
    return moment.date().isoformat(), moment.time().isoformat("milliseconds") + "Z"


@lru_cache(maxsize=4_096)
def _check_pair(text: str) -> None:
    Pair.parse(text)


@lru_cache(maxsize=64)
def midnight(text: str) -> int:
    """The beginning of a day, in seconds since 1970-01-01 UTC. Raises `ValueError`."""
    if not _DATE.fullmatch(text):
        raise ValueError(f"not a date: {text[:60]!r}; expected YYYY-MM-DD")
    try:
        return (date.fromisoformat(text).toordinal() - _EPOCH) * 86_400
    except ValueError as error:
        raise ValueError(f"not a date: {text!r}: {error}") from None


def _seconds(text: str) -> float:
    """Seconds since midnight. A leap second (`:60`) is taken as the second that follows."""
    found = _TIME.fullmatch(text)
    if found:
        hours, minutes, seconds = int(found[1]), int(found[2]), float(found[3])
        if hours < 24 and minutes < 60 and seconds < 61:
            return hours * 3_600 + minutes * 60 + seconds
    raise _no_time(text)


@lru_cache(maxsize=4_096)
def _clock(text: str) -> int:
    """Whole seconds since midnight, of `HH:MM:SS`."""
    found = _CLOCK.fullmatch(text)
    if found:
        hours, minutes, seconds = map(int, found.groups())
        if hours < 24 and minutes < 60 and seconds < 61:
            return hours * 3_600 + minutes * 60 + seconds
    raise _no_time(text)


@lru_cache(maxsize=4_096)
def _fraction(text: str) -> str:
    """The digits of a fraction of a second, less the zeros at its end."""
    if not _FRACTION.fullmatch(text):
        raise _no_time(text)
    return text[1:].rstrip("Z").rstrip("0")


def _no_time(text: str) -> ValueError:
    return ValueError(f"not a time: {text[:60]!r}; expected HH:MM:SS.fffZ")
