"""Read runs of ticks of many pairs straight out of the read buffer, by the expression of `tick_form`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..values import tick_copier
from .names import share
from .tick_form import HEADER, ID, LONGEST, SHORT_HEADER, SHORTEST_VALUES, TickForm, frame_size
from .tick_pattern import Keys

#: Ticks, the pair and the key of each, its ID or "", and the offset behind the last one.
Matched = tuple[list[Any], list[str], Keys, list[str], int]
#: Length, pair, time, exchange, price and ID of each tick. A last entry has what remains of the buffer instead.
_Found = list[tuple[str, str, str, str, str, str, str]]


@lru_cache(16)
def _finder(colon: str, comma: str, after: str) -> tuple[Callable[[str, int, int], _Found], int]:
    """Return the function that finds frames, and the size of the part before `after` without the pair."""
    # The last alternative takes the rest of the buffer, so the run ends at the first frame that looks different.
    to_pair, from_pair = f'{{"pair"{colon}"', f'"{comma}"unixDate"{colon}'
    find = re.compile(rf'{HEADER}(.)\{to_pair}([^"]*+){from_pair}{after}|(.+)', re.DOTALL).findall
    return find, len(to_pair + from_pair)


@lru_cache(16)
def _lengths(fixed: int) -> tuple[str, ...]:
    """Return the length in the header of a frame whose message has `fixed` bytes, and one more with each item."""
    return tuple(map(chr, range(fixed, LONGEST + 1)))


def spellings(pair: str) -> set[str]:
    """Return how a pair may be written in a buffer that was decoded as latin-1."""
    plain = pair.encode().decode("latin-1")
    return {plain, json.dumps(pair)[1:-1]}


class MixedPattern:
    """What the flat ticks of a server look like on one day. Without a tick so far, nothing matches."""

    def __init__(self) -> None:
        self._date = ""
        self._find: Callable[[str, int, int], _Found] | None = None
        self._lengths: tuple[str, ...] = ()
        self._shortest = 0

    def learn(self, payload: bytes) -> None:
        """Note how a valid tick is written that the pattern didn't match."""
        form = TickForm.of(payload)
        if form is None or not form.unix_digits:
            return
        self._date = form.date
        after, after_size = form.after_beginning(f"({ID})" if form.id_digits else "()")
        self._find, size = _finder(form.colon, form.comma, after)
        self._lengths = _lengths(size + after_size)
        self._shortest = SHORT_HEADER + size + after_size + SHORTEST_VALUES

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
        keys: Keys = []
        if self._find is None:
            return ticks, symbols, keys, [], at
        append, append_symbol, append_key = ticks.append, symbols.append, keys.append
        parse_time, length_of, day = datetime.fromisoformat, self._lengths, self._date + "T"
        copy = tick_copier("", self._date, received_ns, False)
        end = min(len(text), at + limit * self._shortest)
        found = self._find(text, at, end)
        if found and not found[-1][0]:
            end -= len(found.pop()[-1])
        try:
            for length, spelling, time, exchange, price_text, number, _ in found:
                if length != length_of[len(spelling) + len(time) + len(exchange) + len(price_text) + len(number)]:
                    break
                tick = copy()
                tick["pair"] = pair = pairs[spelling]
                tick["time"] = time
                tick["exchange"] = exchange = share(exchange, exchange)
                tick["price"] = price = parse_price(price_text)
                tick["timestamp"] = timestamp = parse_time(day + time)
                append(tick)
                append_symbol(pair)
                append_key((exchange, timestamp, price))
        except (ValueError, KeyError, IndexError):
            pass
        if len(ticks) < len(found):
            del found[len(ticks) :]
            end = at + sum(frame_size(ord(length)) for length, *_ in found)
        return ticks, symbols, keys, [row[5] for row in found], end
