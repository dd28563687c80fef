"""Tick history and tick snaps over a call pool, as decoded ticks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from ..errors import CallTimeout, DecodeError, FunctionError
from ..values import Tick
from ..wire.decoder import Decoder
from .call_pool import Answer, CallPool
from .history import HistoryWalk, SnapsRefused

#: How a server says that there is no tick at or before a time. Source: O.
_NO_TICK = re.compile(r"\bno ticks?\b", re.IGNORECASE)


class TickReader:
    """Reads past ticks. For any thread.

    Args:
        pool: Makes the calls. The reader closes it.
        timeout: Seconds for each call.
        parse_price: Turns the wire's decimal string into the price.
    """

    def __init__(self, pool: CallPool, timeout: float, parse_price: Callable[[str], Any]) -> None:
        self._pool = pool
        self._timeout = timeout
        self._parse_price = parse_price

    def history_pages(
        self,
        pair: str,
        start: datetime,
        end: datetime | None,
        exchange: str | None = None,
        empty_days: int | None = None,
    ) -> Iterator[list[Tick]]:
        """The ticks of a time range, page by page; see `HistoryWalk`."""
        narrow = {"exchange": exchange} if exchange is not None else {}
        found = HistoryWalk(
            lambda pair, date, time: self.fetch(pair, date, time, narrow),
            lambda pair, date, time: self.snap_if_any(pair, date, time, narrow),
            pair,
            start,
            end,
            max_empty_days=empty_days,
        ).pages()
        # A server that ignores the argument sends the ticks of all exchanges, and its pages are cut accordingly.
        return found if exchange is None else _of_exchange(found, exchange)

    def fetch(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> list[Tick]:
        """One page of history: the ticks of a date after a time, in any order."""
        arguments = {"pair": pair, "date": date, "time": time, **narrow}
        answer = self._pool.call("tickHistory", arguments, self._timeout, data=True, insist=True)
        return self._decode(pair, answer, many=True)

    def snap(self, pair: str, date: str, time: str, narrow: dict[str, str] | None = None, insist: bool = False) -> Tick:
        """The last tick at or before a time. `insist`: as for `CallPool.call`."""
        arguments = {"pair": pair, "date": date, "time": time, **(narrow or {})}
        answer = self._pool.call("tickSnap", arguments, self._timeout, data=True, insist=insist)
        return self._decode(pair, answer, many=False)[0]

    def interrupt(self) -> None:
        """Close without waiting: calls in progress fail."""
        self._pool.close(wait=False)

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()

    def snap_if_any(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> Tick | None:
        try:
            return self.snap(pair, date, time, narrow, insist=True)
        except FunctionError as error:
            if isinstance(error, CallTimeout) or self._pool.closed:
                raise
            if _NO_TICK.search(error.message):
                return None
            raise SnapsRefused(error) from None

    def _decode(self, pair: str, answer: Answer, *, many: bool) -> list[Tick]:
        ticks = self._ticks_or_error(pair, answer, many)
        if isinstance(ticks, DecodeError):
            # Raised here, where no local variable shows the answer.
            raise ticks
        return ticks

    def _ticks_or_error(self, pair: str, answer: Answer, many: bool) -> list[Tick] | DecodeError:
        decoder = Decoder(pair, pair, self._parse_price)
        ticks: list[Tick] = []
        for raw in answer.message.values() if many else [answer.message]:
            tick = decoder.decode_tick(raw, answer.received_ns)
            if isinstance(tick, DecodeError):
                return tick
            tick["backfilled"] = True
            ticks.append(tick)
        return ticks


def _of_exchange(found: Iterator[list[Tick]], exchange: str) -> Iterator[list[Tick]]:
    for page in found:
        if wanted := [tick for tick in page if tick["exchange"] == exchange]:
            yield wanted
