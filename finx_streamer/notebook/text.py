"""Text from outside, made harmless: an exchange may be named anything."""

from __future__ import annotations

import html
import unicodedata

#: As much as is shown of one text.
_LONGEST = 60


def plain(value: object) -> str:
    """One short line. Control characters, and those that turn the direction of text, are shown as their numbers."""
    text = str(value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _UNSEEN else c for c in text)


def escaped(value: object) -> str:
    """The same, as text within HTML or within an attribute in quotes."""
    return html.escape(plain(value), quote=True)


def price_text(price: object) -> str:
    """A price for a table: a float without the noise of its last digits, anything else as it prints."""
    return format(price, ".12g") if isinstance(price, float) else plain(price)


#: Control and format characters, private and unassigned ones, halves of surrogate pairs, ends of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
