"""Read runs of similar ticks straight out of the read buffer.

The ticks of a stream differ only in frame length, time, exchange and price. So one regular expression does the framing,
the JSON and the checks. It matches only what the slow path would read in the same way: no escapes and only ASCII, but
for the pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

#: Key and item separators of JSON, as JavaScript and as Python write them.
STYLES = ((":", ","), (": ", ", "))
#: The header of a text frame of 126 to 255 bytes, without the last byte of the length. Nearly all ticks fit in one.
_HEADER = "\x81~\0"
_SHORTEST_VALUES = len("00:00:00.Z") + len("0")

#: The ID in the log of a server that can resume a stream.
ID = "[1-9][0-9]{0,17}"

_Found = list[tuple[str, str, str, str, str, str]]


@lru_cache(64)
def _finder(style: tuple[str, str], beginning: int, numbered: bool) -> tuple[Callable[[str, int, int], _Found], int]:
    """Return the function that finds the frames of one style, and the size of a frame without its values.

    `beginning` is the length of the part before the time. `numbered`: each message has an ID.
    """
    colon, comma = style
    to_exchange, to_price = f'"{comma}"exchange"{colon}"', f'"{comma}"price"{colon}"'
    end = f'"}}{comma}"id"{colon}' if numbered else '"}'
    # The beginning is compared later, which is faster. With this point and this Z, the time parser accepts only digits
    # in between. A price of 30 characters is finite.
    values = rf"([0-9:]{{8}}\.[0-9]*Z){to_exchange}([ !#-[\]-~]*){to_price}([0-9.]{{1,30}})"
    tick = f"{_HEADER}(.)(.{{{beginning}}}){values}{end}({ID if numbered else ''})}}"
    # The last alternative takes the rest of the buffer, so the run ends at the first frame that looks different.
    find = re.compile(f"{tick}|.+", re.DOTALL).findall
    return find, len(_HEADER) + 1 + beginning + len(to_exchange + to_price + end + "}")


@lru_cache(1_024)
def _beginnings(pair: str, date: str) -> tuple[tuple[bytes, tuple[str, str]], ...]:
    """Return how a tick message may begin, up to the time, and in which style. A pair that isn't ASCII may be escaped.

    The keys and their order are documented (source: S).
    """
    pairs = dict.fromkeys(json.dumps(pair, ensure_ascii=ascii_only) for ascii_only in (True, False))
    return tuple(
        (
            f'{{"results"{colon}"streaming"{comma}"resultData"{colon}'
            f'{{"pair"{colon}{written}{comma}"date"{colon}"{date}"{comma}"time"{colon}"'.encode(),
            (colon, comma),
        )
        for colon, comma in STYLES
        for written in pairs
    )


class TickPattern:
    """What the ticks of one pair and day look like."""

    def __init__(self, pair: str, date: str, style: tuple[str, str], beginning: bytes, numbered: bool) -> None:
        self._pair, self._date, self._day = pair, date, date + "T"
        self._beginning = beginning.decode("latin-1")
        self._find, self._fixed = _finder(style, len(beginning), numbered)

    @classmethod
    def from_tick(cls, payload: bytes, pair: str, date: str) -> TickPattern | None:
        """Return the pattern of a valid tick's payload. None if it isn't in the documented format."""
        for beginning, style in _beginnings(pair, date):
            if payload.startswith(beginning):
                return cls(pair, date, style, beginning, numbered=not payload.endswith(b'"}}'))
        return None

    def match_ticks(
        self, text: str, at: int, limit: int, parse_price: Callable[[str], Any], received_ns: int
    ) -> tuple[list[Any], str, int]:
        """Return up to `limit` ticks from the frame at `at` on, the last one's ID, and the offset behind it.

        `text` is the read buffer as latin-1. Stops at the first frame that is incomplete or looks different, and at a
        price that `parse_price` rejects with a ValueError.
        """
        ticks: list[dict[str, Any]] = []
        last = ""
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
        # Copying takes a third of the time of a new dict.
        copy = blank.copy
        try:
            for length, begins, time, exchange, price, number in self._find(
                text, at, at + limit * (fixed + _SHORTEST_VALUES)
            ):
                size = fixed + len(time) + len(exchange) + len(price) + len(number)
                # The length in the header doesn't count the header's own four bytes.
                if begins != beginning or ord(length) != size - 4:
                    break
                tick = copy()
                tick["time"] = time
                tick["exchange"] = exchange
                tick["price"] = parse_price(price)
                tick["timestamp"] = parse_time(day + time)
                append(tick)
                at += size
                last = number
        except ValueError:
            pass
        return ticks, last, at
