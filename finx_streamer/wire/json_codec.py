"""Parse JSON with `msgspec` if it's installed, else with the standard library. Both give the same results.

`loads` parses any document. `ENVELOPED` and `FLAT` parse only plain ticks, faster, and reject anything else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, NoReturn

import attrs

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]
else:
    if not issubclass(msgspec.DecodeError, ValueError):
        # Before 0.21. It may be installed for other reasons, so it's not an error.
        msgspec = None  # type: ignore[assignment]

#: The longest integer, in characters with its sign. `msgspec` has the same limit.
_MAX_DIGITS = 4_300
#: An escape that is a whole surrogate pair, or no surrogate.
_ESCAPE = re.compile(rb"\\(?:[^u]|u(?![dD][89a-fA-F])....|u[dD][89abAB]..\\u[dD][c-fC-F]..)", re.DOTALL)
#: What `TickFormat.read` may raise.
READ_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, StopIteration, RecursionError)


@attrs.frozen
class TickFormat:
    """A parser for one tick format.

    Its result, or its result's `resultData` if `enveloped`, has the five fields. The result has the `id`.
    """

    read: Callable[[bytes], Any]
    enveloped: bool = False


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("number out of range")
    return value


def _bounded(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("number out of range")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_float=_finite, parse_int=_bounded, parse_constant=_no_constant)
_decode = _decoder.decode
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]


def loads_stdlib(payload: bytes) -> Any:
    """Parse JSON with the standard library, strictly by RFC 8259: no NaN, no infinity, no lone surrogate."""
    value = _decode(payload.decode("utf-8"))
    # Search the text, not the value: the value lacks what a duplicate key replaced.
    if b"\\u" in payload and b"\\" in _ESCAPE.sub(b"", payload):
        raise ValueError("a lone surrogate")
    return value


class _Fields:
    """The fields of a tick, as sent, and its ID if the message has one."""

    __slots__ = ("date", "exchange", "id", "pair", "price", "time")

    def __init__(self, raw: Any, date: str, time: str, number: Any) -> None:
        # The decoder's use of the other fields fails if they aren't strings.
        if type(raw["exchange"]) is not str or type(number) not in (int, NoneType):
            raise TypeError("not a plain tick")
        self.pair, self.exchange, self.price = raw["pair"], raw["exchange"], raw["price"]
        self.date, self.time, self.id = date, time, number


def _plain_object(payload: bytes, size: int) -> Any:
    """Parse a payload that is one JSON object with `size` members, or an ID in addition, and no escapes."""
    if b"\\" in payload:
        raise ValueError("an escape")
    text = payload.decode("utf-8")
    value, end = _scan(text, 0)
    if end != len(text) or len(value) != size + ("id" in value):
        raise ValueError("not a plain tick")
    return value


def _read_enveloped(payload: bytes) -> _Fields:
    message = _plain_object(payload, 2)
    raw = message["resultData"]
    if message["results"] != "streaming" or len(raw) != 5:
        raise ValueError("not a plain tick")
    return _Fields(raw, raw["date"], raw["time"], message.get("id"))


def _read_flat(payload: bytes) -> _Fields:
    raw = _plain_object(payload, 5)
    utc_date = raw["UTCDate"]
    if type(raw["unixDate"]) not in (int, float) or utc_date[10] != "T":
        raise TypeError("not a plain tick")
    return _Fields(raw, utc_date[:10], utc_date[11:], raw.get("id"))


loads: Callable[[bytes], Any] = loads_stdlib
#: The documented tick format (source: S), and the vendor's later one (source: D).
ENVELOPED = ENVELOPED_STDLIB = TickFormat(_read_enveloped)
FLAT = FLAT_STDLIB = TickFormat(_read_flat)

if msgspec is not None:

    class _Inner(msgspec.Struct, gc=False, forbid_unknown_fields=True):
        pair: str
        date: str
        time: str
        exchange: str
        price: str

    class _Enveloped(msgspec.Struct, gc=False, forbid_unknown_fields=True):
        results: Literal["streaming"]
        resultData: _Inner
        id: int | None = None

    class _Flat(msgspec.Struct, gc=False, forbid_unknown_fields=True):
        pair: str
        unixDate: int | float
        UTCDate: str
        exchange: str
        price: str
        id: int | None = None

        @property
        def date(self) -> str:
            return self.UTCDate[:10]

        @property
        def time(self) -> str:
            if self.UTCDate[10] != "T":
                raise ValueError("not a date and time")
            return self.UTCDate[11:]

    loads = msgspec.json.Decoder().decode
    ENVELOPED = TickFormat(msgspec.json.Decoder(_Enveloped).decode, enveloped=True)
    FLAT = TickFormat(msgspec.json.Decoder(_Flat).decode)
