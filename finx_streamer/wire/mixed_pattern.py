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

from .frames import Binary
from .tick_pattern import STYLES

_Found = list[tuple[str, str, str, str, str, str, str]]
#: The shortest frame of a tick, in bytes.
_SHORTEST = 2 + len('{"pair":"A:B","unixDate":0,"UTCDate":"2022-07-02T00:00:00.Z","exchange":"","price":"0"}')


@lru_cache
def _finder(style: tuple[str, str]) -> Callable[[str, int, int], _Found]:
    """Return the function that finds the frames of one style. The keys and their order are documented (source: D)."""
    colon, comma = style
    # The header of a text frame of up to 255 bytes, without its first byte.
    header = r"(~\0.|[\0-}])"
    # With this point and this Z, the time parser accepts only digits in between. A price of 30 characters is finite.
    time = r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9:]{8}\.[0-9]*Z)"
    tick = (
        rf'\{{"pair"{colon}"([^"]*)"{comma}"unixDate"{colon}[0-9]+{comma}"UTCDate"{colon}"{time}"{comma}'
        rf'"exchange"{colon}"([ !#-[\]-~]*)"{comma}"price"{colon}"([0-9.]{{1,30}})"\}}'
    )
    # The last alternative takes the rest of the buffer, so the run ends at the first frame that looks different.
    return re.compile(rf"\x81{header}({tick})|.+", re.DOTALL).findall


#: By the beginning of a message.
_FINDERS = {f'{{"pair"{style[0]}"'.encode(): _finder(style) for style in STYLES}


def spellings(pair: str) -> set[str]:
    """Return how a pair may be written in a buffer that was decoded as latin-1."""
    plain = pair.encode().decode("latin-1")
    return {plain, json.dumps(pair)[1:-1]}


class MixedPattern:
    """What flat ticks look like: how the separators are written, which all messages of a server have in common."""

    def __init__(self) -> None:
        self._find = _finder(STYLES[0])

    def learn(self, payload: bytes | Binary) -> None:
        """Note how a message of a stream is written that the pattern didn't match."""
        for beginning, find in _FINDERS.items():
            if isinstance(payload, bytes) and payload.startswith(beginning):
                self._find = find

    def match_ticks(
        self,
        text: str,
        at: int,
        limit: int,
        pairs: Mapping[str, str],
        parse_price: Callable[[str], Any],
        received_ns: int,
    ) -> tuple[list[Any], int]:
        """Return up to `limit` ticks from the frame at `at` on, and the offset behind the last one.

        `text` is the read buffer as latin-1. `pairs` has each spelling of each pair. Stops at the first frame that is
        incomplete or looks different, at another pair, and at a price that `parse_price` rejects with a ValueError.
        """
        ticks: list[dict[str, Any]] = []
        append, parse_time = ticks.append, datetime.fromisoformat
        try:
            for header, payload, pair, date, time, exchange, price in self._find(text, at, at + limit * _SHORTEST):
                size = len(payload)
                if ord(header[-1]) != size:
                    break
                append(
                    {
                        "pair": pairs[pair],
                        "date": date,
                        "time": time,
                        "exchange": exchange,
                        "price": parse_price(price),
                        "timestamp": parse_time(f"{date}T{time}"),
                        "received_ns": received_ns,
                        "backfilled": False,
                    }
                )
                at += 1 + len(header) + size
        except (ValueError, KeyError, IndexError):
            pass
        return ticks, at
