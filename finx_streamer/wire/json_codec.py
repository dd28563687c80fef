"""Parse JSON strictly by RFC 8259: no NaN, no infinity, no lone surrogate, no number that a float can't hold."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

#: The longest integer, in characters with its sign.
_MAX_DIGITS = 4_300
#: An escape that is a whole surrogate pair, or no surrogate.
_ESCAPE = re.compile(rb"\\(?:[^u]|u(?![dD][89a-fA-F])....|u[dD][89abAB]..\\u[dD][c-fC-F]..)", re.DOTALL)


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


_decode = json.JSONDecoder(parse_float=_finite, parse_int=_bounded, parse_constant=_no_constant).decode


def loads(payload: bytes) -> Any:
    """Parse a document. Raises ValueError, or RecursionError if it's nested too deep."""
    value = _decode(payload.decode("utf-8"))
    # Search the text, not the value: the value lacks what a duplicate key replaced.
    if b"\\u" in payload and b"\\" in _ESCAPE.sub(b"", payload):
        raise ValueError("a lone surrogate")
    return value
