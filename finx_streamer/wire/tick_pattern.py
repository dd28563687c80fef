"""Runs of ticks that look alike, read out of a buffer in one go: framing, JSON and checks by one regular expression.

A stream's ticks are the same byte for byte, but for the length of the frame and three values: time, exchange and price.
What stands before the time does not change within a day. So one expression takes all frames of a buffer that look just
so, in compiled code; whatever looks different in any way ends the run, for the thorough way to read. What is taken is
what the thorough way would have made of it, since nothing else fits: no escape, no character beyond ASCII, no other
key, and a length that is exactly the frame's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

#: How JSON is written: what stands after a key, and what between members. JavaScript's way, and Python's.
_STYLES = ((":", ","), (": ", ", "))
#: A whole text frame whose length takes two more bytes, the first of them 0: of 126 to 255 bytes, as nearly all are.
_HEADER = "\x81~\0"
_SHORTEST_VALUES = len("00:00:00.Z") + len("0")

_Found = list[tuple[str, str, str, str, str]]


@lru_cache(64)
def _finder(style: tuple[str, str], beginning: int) -> tuple[Callable[[str, int, int], _Found], int]:
    """What finds frames of one style, whose beginning has one size; and the size of such a frame without its values."""
    colon, comma = style
    to_exchange, to_price, end = f'"{comma}"exchange"{colon}"', f'"{comma}"price"{colon}"', '"}}'
    # The beginning is compared afterwards, which is quicker. A point there and a Z there leave the parser of times one
    # way to read the rest; a price of so few digits is finite.
    values = rf"([0-9:]{{8}}\.[0-9]*Z){to_exchange}([ !#-[\]-~]*){to_price}([0-9.]{{1,30}})"
    tick = f"{_HEADER}(.)(.{{{beginning}}}){values}{end}"
    # The last alternative takes all that is left, where a tick does not: so none is found behind anything odd.
    find = re.compile(f"{tick}|.+", re.DOTALL).findall
    return find, len(_HEADER) + 1 + beginning + len(to_exchange + to_price + end)


def _beginning(pair: str, date: str, style: tuple[str, str]) -> str:
    """What a tick's message begins with. Source: S for the keys and their order."""
    colon, comma = style
    return (
        f'{{"results"{colon}"streaming"{comma}"resultData"{colon}'
        f'{{"pair"{colon}"{pair}"{comma}"date"{colon}"{date}"{comma}"time"{colon}"'
    )


class TickPattern:
    """What the ticks of one pair look like on one day."""

    def __init__(self, pair: str, date: str, style: tuple[str, str]) -> None:
        self._pair, self._date, self._day = pair, date, date + "T"
        self._beginning = _beginning(pair, date, style)
        self._find, self._fixed = _finder(style, len(self._beginning))

    @classmethod
    def of(cls, payload: bytes, pair: str, date: str) -> TickPattern | None:
        """The template of ticks that look like this one, which is known to be good; None for a form that has none."""
        for style in _STYLES:
            if payload.startswith(_beginning(pair, date, style).encode()):
                return cls(pair, date, style)
        return None

    def ticks(
        self, text: str, at: int, limit: int, parse_price: Callable[[str], Any], received_ns: int
    ) -> tuple[list[Any], int]:
        """At most `limit` ticks out of a buffer, read as latin-1, from `at` on; and where the last of them ends.

        Stops at the first frame that is incomplete, or in any way different. A ValueError of `parse_price` is a
        difference, too.
        """
        ticks: list[dict[str, Any]] = []
        append, parse_time = ticks.append, datetime.fromisoformat
        beginning, fixed, day = self._beginning, self._fixed, self._day
        blank: dict[str, Any] = {
            "pair": self._pair,
            "date": self._date,
            "time": "",
            "exchange": "",
            "price": None,
            "timestamp": None,
            "received_ns": received_ns,
            "backfilled": False,
        }
        # To copy it takes a third of the time that a new dict of eight keys takes.
        copy = blank.copy
        try:
            for length, begins, time, exchange, price in self._find(text, at, at + limit * (fixed + _SHORTEST_VALUES)):
                size = fixed + len(time) + len(exchange) + len(price)
                # The length that the header tells is without its own four bytes.
                if begins != beginning or ord(length) != size - 4:
                    break
                tick = copy()
                tick["time"] = time
                tick["exchange"] = exchange
                tick["price"] = parse_price(price)
                tick["timestamp"] = parse_time(day + time)
                append(tick)
                at += size
        except ValueError:
            pass
        return ticks, at
