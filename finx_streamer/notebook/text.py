"""Makes text from the server harmless: an exchange may have any name."""

from __future__ import annotations

import html
import unicodedata

#: The highest number of characters shown.
_LONGEST = 60


def plain(value: object) -> str:
    """Return one short line. Invisible characters, and those that change the direction of text, become escapes."""
    text = str(value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _INVISIBLE else c for c in text)


def escaped(value: object) -> str:
    """Return `plain(value)` escaped for HTML text and for quoted attributes."""
    return html.escape(plain(value), quote=True)


def price_text(price: object) -> str:
    """Format a price: a float without rounding noise in its last digits, any other type with `str`."""
    return format(price, ".12g") if isinstance(price, float) else plain(price)


#: Unicode categories: control, format, surrogate, private use, unassigned, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
