"""A tick as a market source plays it: checking one, reading its time, stamping it with another."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TypedDict

from ..symbols import Pair

_TIME = re.compile(r"(\d\d):(\d\d):(\d\d(?:\.\d+)?)Z?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_PRICE = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_FIELDS = ("pair", "date", "time", "exchange", "price")
_EPOCH = date(1970, 1, 1).toordinal()


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
    _check_pair(raw["pair"])
    if not _PRICE.fullmatch(raw["price"]):
        raise ValueError(f"not a price: {raw['price'][:60]!r}")
    _midnight(raw["date"])
    _seconds(raw["time"])
    return Tick(pair=raw["pair"], date=raw["date"], time=raw["time"], exchange=raw["exchange"], price=raw["price"])


def epoch(tick: Tick) -> float:
    """The tick's time in seconds since 1970-01-01 UTC."""
    return _midnight(tick["date"]) + _seconds(tick["time"])


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
def _midnight(text: str) -> int:
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
    raise ValueError(f"not a time: {text[:60]!r}; expected HH:MM:SS.fffZ")
