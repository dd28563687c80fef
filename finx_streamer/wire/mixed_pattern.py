"""Read runs of ticks of many pairs straight out of the read buffer, in the flat form of FinX's second wire.

As in `tick_pattern`, one regular expression does the framing, the JSON and the checks. It matches only what the slow
path would read in the same way: no escapes and only ASCII, but for the pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from .names import share
from .tick_pattern import ID, STYLES

#: Ticks, the pair and the key of each (exchange, time, price), its ID or "", and the offset behind the last one.
Matched = tuple[list[Any], list[str], list[tuple[str, datetime, Any]], list[str], int]
_Found = list[tuple[str, str, str, str, str, str, str]]
#: The shortest frame of a tick, in bytes.
_SHORTEST = 2 + len('{"pair":"A:B","unixDate":0,"UTCDate":"2022-07-02T00:00:00.Z","exchange":"","price":"0"}')


@lru_cache(16)
def _finder(style: tuple[str, str], date: str) -> Callable[[str, int, int], _Found]:
    """Return the function that finds the frames of one style and day. The keys and their order are documented (D)."""
    colon, comma = style
    # The header of a text frame of up to 255 bytes, without its first byte.
    header = r"(~\0.|[\0-}])"
    # With this point and this Z, the time parser accepts only digits in between. A price of 30 characters is finite.
    tick = (
        rf'\{{"pair"{colon}"([^"]*)"{comma}"unixDate"{colon}(?:0|[1-9][0-9]*){comma}"UTCDate"{colon}"{date}T([0-9:]{{8}}\.[0-9]*Z)"'
        rf'{comma}"exchange"{colon}"([ !#-[\]-~]*)"{comma}"price"{colon}"([0-9.]{{1,30}})"'
        rf'(?:{comma}"id"{colon}({ID}))?\}}'
    )
    # The last alternative takes the rest of the buffer, so the run ends at the first frame that looks different.
    return re.compile(rf"\x81{header}({tick})|.+", re.DOTALL).findall


def spellings(pair: str) -> set[str]:
    """Return how a pair may be written in a buffer that was decoded as latin-1."""
    plain = pair.encode().decode("latin-1")
    return {plain, json.dumps(pair)[1:-1]}


class MixedPattern:
    """What the flat ticks of a server look like on one day. Without a tick so far, nothing matches."""

    def __init__(self) -> None:
        self._date = ""
        self._find: Callable[[str, int, int], _Found] | None = None

    def learn(self, payload: bytes, date: str) -> None:
        """Note how a valid tick is written that the pattern didn't match."""
        for style in STYLES:
            if payload.startswith(f'{{"pair"{style[0]}"'.encode()):
                self._date, self._find = date, _finder(style, date)

    def match_ticks(
        self,
        text: str,
        at: int,
        limit: int,
        pairs: Mapping[str, str],
        parse_price: Callable[[str], Any],
        received_ns: int,
    ) -> Matched:
        """Return up to `limit` ticks from the frame at `at` on, and the offset behind the last one.

        `text` is the read buffer as latin-1. `pairs` has each spelling of each pair. Stops at the first frame that is
        incomplete or looks different, at another pair, and at a price that `parse_price` rejects with a ValueError.
        """
        ticks: list[Any] = []
        symbols: list[str] = []
        keys: list[tuple[str, datetime, Any]] = []
        numbers: list[str] = []
        if self._find is None:
            return ticks, symbols, keys, numbers, at
        append, append_symbol, append_key, append_number = ticks.append, symbols.append, keys.append, numbers.append
        parse_time, date, day = datetime.fromisoformat, self._date, self._date + "T"
        found = self._find(text, at, at + limit * _SHORTEST)
        try:
            for header, payload, spelling, time, exchange, price_text, number in found:
                size = len(payload)
                if ord(header[-1]) != size:
                    break
                pair, exchange = pairs[spelling], share(exchange, exchange)
                price, timestamp = parse_price(price_text), parse_time(day + time)
                append(
                    {
                        "pair": pair,
                        "date": date,
                        "time": time,
                        "exchange": exchange,
                        "price": price,
                        "timestamp": timestamp,
                        "received_ns": received_ns,
                        "backfilled": False,
                    }
                )
                append_symbol(pair)
                append_key((exchange, timestamp, price))
                append_number(number)
                at += 1 + len(header) + size
        except (ValueError, KeyError, IndexError):
            pass
        return ticks, symbols, keys, numbers, at
