"""Tick history and tick snaps over a call pool, as decoded ticks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from ..errors import CallTimeout, DecodeError, FunctionError
from ..values import Tick
from ..wire.decoder import Decoder
from .call_pool import Answer, CallPool
from .history import BadTick, HistoryWalk, OnBad, SnapsRefused, raise_error

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
        on_bad: OnBad = raise_error,
    ) -> Iterator[list[Tick]]:
        """The ticks of a time range, page by page; see `HistoryWalk`."""
        narrow = {"exchange": exchange} if exchange is not None else {}
        found = HistoryWalk(
            lambda pair, date, time: self.fetch(pair, date, time, narrow),
            lambda pair, date, time: self._snap_for_walk(pair, date, time, narrow),
            pair,
            start,
            end,
            max_empty_days=empty_days,
            on_bad=on_bad,
        ).pages()
        # A server that ignores the argument sends the ticks of all exchanges, and its pages are cut accordingly.
        return found if exchange is None else _of_exchange(found, exchange)

    def fetch(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> list[Tick | BadTick]:
        """One page of history: the ticks of a date after a time, in any order."""
        arguments = {"pair": pair, "date": date, "time": time, **narrow}
        answer = self._pool.call("tickHistory", arguments, self._timeout, data=True, insist=True)
        return self._decode(pair, answer, answer.message.values())

    def snap(self, pair: str, date: str, time: str) -> Tick:
        """The last tick at or before a time."""
        tick = self._snap(pair, date, time, {}, insist=False)
        if isinstance(tick, BadTick):
            raise tick.error
        return tick

    def snap_if_any(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> Tick | BadTick | None:
        """The last tick at or before a time. None if there is none."""
        try:
            return self._snap(pair, date, time, narrow, insist=True)
        except FunctionError as error:
            if not isinstance(error, CallTimeout) and _NO_TICK.search(error.message):
                return None
            raise

    def interrupt(self) -> None:
        """Close without waiting: calls in progress fail."""
        self._pool.close(wait=False)

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()

    def _snap(self, pair: str, date: str, time: str, narrow: dict[str, str], *, insist: bool) -> Tick | BadTick:
        arguments = {"pair": pair, "date": date, "time": time, **narrow}
        answer = self._pool.call("tickSnap", arguments, self._timeout, data=True, insist=insist)
        return self._decode(pair, answer, [answer.message])[0]

    def _snap_for_walk(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> Tick | BadTick | None:
        try:
            return self.snap_if_any(pair, date, time, narrow)
        except FunctionError as error:
            if isinstance(error, CallTimeout) or self._pool.closed:
                raise
            raise SnapsRefused(error) from None

    def _decode(self, pair: str, answer: Answer, raws: Iterable[Any]) -> list[Tick | BadTick]:
        """Decode ticks. An answer with anything but ticks of the pair may belong to another call: `DecodeError`."""
        decoder = Decoder(pair, pair, self._parse_price)
        ticks: list[Tick | BadTick] = []
        for raw in raws:
            tick = decoder.decode_tick(raw, answer.received_ns)
            if isinstance(tick, DecodeError):
                if type(raw) is not dict or raw.get("pair", pair) != pair:
                    # A traceback could show these.
                    del raw, raws, answer
                    raise tick
                ticks.append(BadTick(tick, decoder.time_of(raw)))
                continue
            tick["backfilled"] = True
            ticks.append(tick)
        return ticks


def _of_exchange(found: Iterator[list[Tick]], exchange: str) -> Iterator[list[Tick]]:
    for page in found:
        if wanted := [tick for tick in page if tick["exchange"] == exchange]:
            yield wanted
