"""Read runs of ticks of one pair straight out of the read buffer, by the expression of `tick_form`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..values import tick_copier
from .tick_form import HEADER, LONGEST, SHORT_HEADER, SHORTEST_VALUES, TickForm, digits, frame_size

#: Head, time, exchange and price of each tick. A last entry has what remains of the buffer instead.
_Found = list[tuple[str, str, str, str, str]]
#: What identifies each tick: exchange, time and price.
Keys = list[tuple[str, datetime, Any]]


@lru_cache(64)
def _finder(head: int, after: str) -> Callable[[str, int, int], _Found]:
    """Return the function that finds frames. `head`: the size of the part that is compared later, which is faster."""
    # The last alternative takes the rest of the buffer, so the run ends at the first frame that looks different.
    return re.compile(f"{HEADER}(.{{{head}}}){after}|(.+)", re.DOTALL).findall


class _Heads(dict[int, str]):
    """How a frame goes on after its header, by the size of its values: with the length and the beginning of a tick."""

    def __init__(self, fixed: int, beginning: str) -> None:
        super().__init__()
        self._fixed, self._beginning = fixed, beginning

    def __missing__(self, size: int) -> str:
        if self._fixed + size > LONGEST:
            return ""
        head = self[size] = chr(self._fixed + size) + self._beginning
        return head


class TickPattern:
    """What the ticks of one pair and day look like."""

    __slots__ = ("_date", "_day", "_find", "_fixed", "_heads", "_id_digits", "_pair")

    def __init__(self, form: TickForm, pair: str) -> None:
        self._pair, self._date, self._day = pair, form.date, form.date + "T"
        after, fixed = form.after_beginning(digits(form.id_digits))
        self._find = _finder(1 + len(form.beginning), after)
        #: The size of a message without its values.
        self._fixed = len(form.beginning) + fixed + form.id_digits
        self._heads = _Heads(self._fixed, form.beginning)
        self._id_digits = form.id_digits

    def match_ticks(
        self, text: str, at: int, limit: int, parse_price: Callable[[str], Any], received_ns: int
    ) -> tuple[list[Any], str, int]:
        """Return up to `limit` ticks from the frame at `at` on, the last one's ID, and the offset behind it.

        `text` is the read buffer as latin-1. Stops at the first frame that is incomplete or looks different, and at a
        price that `parse_price` rejects with a ValueError.
        """
        end = min(len(text), at + limit * (SHORT_HEADER + self._fixed + SHORTEST_VALUES))
        found = self._find(text, at, end)
        if found and not found[-1][0]:
            end -= len(found.pop()[-1])
        ticks: list[dict[str, Any]] = []
        append, parse_time = ticks.append, datetime.fromisoformat
        heads, day = self._heads, self._day
        copy = tick_copier(self._pair, self._date, received_ns, False)
        try:
            for head, time, exchange, price, _ in found:
                if head != heads[len(time) + len(exchange) + len(price)]:
                    break
                tick = copy()
                tick["time"] = time
                tick["exchange"] = exchange
                tick["price"] = parse_price(price)
                tick["timestamp"] = parse_time(day + time)
                append(tick)
        except ValueError:
            pass
        if len(ticks) < len(found):
            end = at + sum(frame_size(ord(head[0])) for head, *_ in found[: len(ticks)])
        return ticks, text[end - 1 - self._id_digits : end - 1] if ticks else "", end

    def read_keys(self, text: str, start: int, end: int) -> Keys:
        """Return the keys of ticks that `match_ticks` has read in this part of `text`, with `float` for prices."""
        parse_time, day, found = datetime.fromisoformat, self._day, self._find(text, start, end)
        return [(exchange, parse_time(day + time), float(price)) for _, time, exchange, price, _ in found]
