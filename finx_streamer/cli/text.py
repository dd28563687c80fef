"""Text for people: made harmless for a terminal, and written where the data does not go."""

from __future__ import annotations

import contextlib
import sys


def clean(text: str) -> str:
    """The text with control characters and other invisible ones escaped.

    What a server sends could otherwise move a terminal's cursor, set its title, or turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """One line on standard error. That nobody reads it is no reason to fail."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"finx-streamer: {clean(text)}", file=sys.stderr, flush=True)


def count(number: int, noun: str) -> str:
    """`1 tick`, `2 ticks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
