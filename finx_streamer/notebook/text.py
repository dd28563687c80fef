"""Formats prices, and makes text from the server harmless: an exchange may have any name."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from ..values import Tick

#: The highest number of characters shown.
_LONGEST = 60
#: The highest number of digits on each side of a price's decimal point. `Intl.NumberFormat` has the same limit.
_MOST_DIGITS = 20


def plain(value: object) -> str:
    """Return one short line. Invisible characters, and those that change the direction of text, become escapes."""
    text = str(value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _INVISIBLE else c for c in text)


@lru_cache(1_000)
def plain_name(name: str) -> str:
    """Return `plain(name)` at once if the name comes often."""
    return plain(name)


def escaped(value: object) -> str:
    """Return `plain(value)` escaped for HTML text and for quoted attributes."""
    return html.escape(plain(value), quote=True)


def price_text(price: object, digits: int = 0) -> str:
    """Format a price with thousands separators and at least `digits` decimals, as `price` in live.js does.

    Floats lose the rounding noise of their last digits. A price that isn't a number stays as it is.
    """
    number = _number(price)
    return plain(price) if number is None else format(number, f",.{max(digits, _digits(number))}f")


def price_digits(price: object) -> int:
    """Return the number of decimals that a price needs."""
    number = _number(price)
    return 0 if number is None else _digits(number)


def finite(value: Any) -> float | None:
    """Return a value as a finite float. None if it isn't one: `parse_price` may return any type."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def digits_of_pairs(ticks: Iterable[Tick]) -> dict[str, int]:
    """Return the number of decimals that the prices of each pair need."""
    found: dict[str, int] = {}
    for tick in ticks:
        found[tick["pair"]] = max(found.get(tick["pair"], 0), price_digits(tick["price"]))
    return found


def _number(price: object) -> Decimal | None:
    """Return a price as an exact number. None if it isn't one, or has too many digits."""
    try:
        number = Decimal(format(price, ".12g") if isinstance(price, float) else str(price))
    except ArithmeticError:
        return None
    return number if number.is_finite() and abs(number.adjusted()) <= _MOST_DIGITS else None


def _digits(number: Decimal) -> int:
    return min(len(format(number, "f").partition(".")[2].rstrip("0")), _MOST_DIGITS)


#: Unicode categories: control, format, surrogate, private use, unassigned, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
