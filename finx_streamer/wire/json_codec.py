"""JSON off the wire: any document, or quickly the two forms of a tick. By `msgspec` where it is installed, else by the
standard library, with the same results.

`loads` reads any document. `ENVELOPED` and `FLAT` read a tick that has the documented fields, each of its type, and
nothing else; whatever has more, less or other they refuse, for `loads` to have a closer look.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import attrs

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]
else:
    if not issubclass(msgspec.DecodeError, ValueError):
        # Before 0.21: what it raises would not be caught. Whoever has it for other reasons is not to suffer from it.
        msgspec = None  # type: ignore[assignment]

#: How many digits an integer may have; a sign counts as one. It is what `msgspec` allows.
_MAX_DIGITS = 4_300
#: An escape that is none or both halves of a surrogate pair.
_ESCAPE = re.compile(rb"\\(?:[^u]|u(?![dD][89a-fA-F])....|u[dD][89abAB]..\\u[dD][c-fC-F]..)", re.DOTALL)
#: What the readers of ticks may raise.
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, IndexError, StopIteration, RecursionError)


@attrs.frozen
class TickForm:
    """How to read one form of tick: the reader's result, or its `resultData`, has the wire's five fields."""

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
    """JSON by the standard library, held to RFC 8259: no NaN, no infinity, no half of a surrogate pair."""
    value = _decode(payload.decode("utf-8"))
    # In the text and not in the value: a key that comes twice takes its first value's place.
    if b"\\u" in payload and b"\\" in _ESCAPE.sub(b"", payload):
        raise ValueError("half of a surrogate pair")
    return value


class _Fields:
    """A tick's fields as the wire has them."""

    __slots__ = ("date", "exchange", "pair", "price", "time")

    def __init__(self, pair: str, date: str, time: str, exchange: str, price: str) -> None:
        self.pair, self.date, self.time, self.exchange, self.price = pair, date, time, exchange, price


def _plain_object(payload: bytes, size: int) -> Any:
    """The JSON object that is all of the payload and has so many members, without escapes anywhere."""
    if b"\\" in payload:
        raise ValueError("an escape")
    text = payload.decode("utf-8")
    value, end = _scan(text, 0)
    if end != len(text) or len(value) != size:
        raise ValueError("more or less than a tick")
    return value


def _read_enveloped(payload: bytes) -> _Fields:
    message = _plain_object(payload, 2)
    raw = message["resultData"]
    if message["results"] != "streaming" or len(raw) != 5:
        raise ValueError("more or less than a tick")
    # The others are checked by what is done with them.
    if type(raw["exchange"]) is not str:
        raise TypeError("no string")
    return _Fields(raw["pair"], raw["date"], raw["time"], raw["exchange"], raw["price"])


def _read_flat(payload: bytes) -> _Fields:
    raw = _plain_object(payload, 5)
    moment = raw["UTCDate"]
    if type(raw["exchange"]) is not str or type(raw["unixDate"]) not in (int, float) or moment[10] != "T":
        raise TypeError("no string, no number, or no date and time")
    return _Fields(raw["pair"], moment[:10], moment[11:], raw["exchange"], raw["price"])


loads: Callable[[bytes], Any] = loads_stdlib
#: The documented form (source: S), and the vendor's later one (source: D).
ENVELOPED = ENVELOPED_STDLIB = TickForm(_read_enveloped)
FLAT = FLAT_STDLIB = TickForm(_read_flat)

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

    class _Flat(msgspec.Struct, gc=False, forbid_unknown_fields=True):
        pair: str
        unixDate: int | float
        UTCDate: str
        exchange: str
        price: str

        @property
        def date(self) -> str:
            return self.UTCDate[:10]

        @property
        def time(self) -> str:
            if self.UTCDate[10] != "T":
                raise ValueError("no date and time")
            return self.UTCDate[11:]

    loads = msgspec.json.Decoder().decode
    ENVELOPED = TickForm(msgspec.json.Decoder(_Enveloped).decode, enveloped=True)
    FLAT = TickForm(msgspec.json.Decoder(_Flat).decode)
