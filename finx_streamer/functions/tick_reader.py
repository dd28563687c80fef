"""Tick history and tick snaps over a call pool, as decoded ticks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import attrs

from ..errors import CallTimeout, DecodeError, FunctionError, ServerError
from ..values import Tick
from ..wire.decoder import Decoder
from ..wire.tick_list import BadTick, TickList, decode_tick, read_tick_list
from .call_pool import CallPool, PendingCall
from .history import HistoryWalk, OnBad, SnapsRefused, raise_error

#: How a server says that there is no tick at or before a time. Source: O.
_NO_TICK = re.compile(r"\bno ticks?\b", re.IGNORECASE)


@attrs.frozen
class HistoryCall:
    """A page of history that was requested."""

    _pending: PendingCall
    _decoder: Decoder
    _date: str

    def answer(self) -> TickList:
        """Wait for it. Raises `DecodeError` for anything but ticks of the pair: it may belong to another call."""
        call, reply = self._pending.wait()
        found = read_tick_list(reply.payload, self._decoder, self._date, reply.received_ns)
        del reply  # a traceback could show it
        if isinstance(found, ServerError):
            raise call.error(found.message)
        if isinstance(found, DecodeError):
            raise found
        return found

    def cancel(self) -> None:
        """Give it up."""
        self._pending.cancel()


class TickReader:
    """Reads past ticks. For any thread.

    Args:
        pool: Makes the calls. The reader closes it.
        timeout: Seconds for each call.
        parse_price: Turns the wire's decimal string into the price.
        keeps_text: Whether ticks of history also have that string, as `SENT`.
    """

    def __init__(
        self, pool: CallPool, timeout: float, parse_price: Callable[[str], Any], keeps_text: bool = False
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._parse_price = parse_price
        self._keeps_text = keeps_text

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
            lambda pair, date, time: self.request(pair, date, time, narrow),
            lambda pair, date, time: self._snap_for_walk(pair, date, time, narrow),
            pair,
            start,
            end,
            max_empty_days=empty_days,
            on_bad=on_bad,
        ).pages()
        # A server that ignores the argument sends the ticks of all exchanges, and its pages are cut accordingly.
        return found if exchange is None else _of_exchange(found, exchange)

    def request(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> HistoryCall:
        """Request one page of history: the ticks of a date after a time, in any order."""
        arguments = {"pair": pair, "date": date, "time": time, **narrow}
        pending = self._pool.begin("tickHistory", arguments, self._timeout, insist=True)
        pending.wait_begun()
        return HistoryCall(pending, self._decoder(pair), date)

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
        tick = decode_tick(answer.message, self._decoder(pair), answer.received_ns)
        if isinstance(tick, DecodeError):
            del answer  # a traceback could show it
            raise tick
        return tick

    def _decoder(self, pair: str) -> Decoder:
        return Decoder(pair, pair, self._parse_price, keeps_text=self._keeps_text)

    def _snap_for_walk(self, pair: str, date: str, time: str, narrow: dict[str, str]) -> Tick | BadTick | None:
        try:
            return self.snap_if_any(pair, date, time, narrow)
        except FunctionError as error:
            if isinstance(error, CallTimeout) or self._pool.closed:
                raise
            raise SnapsRefused(error) from None


def _of_exchange(found: Iterator[list[Tick]], exchange: str) -> Iterator[list[Tick]]:
    for page in found:
        if wanted := [tick for tick in page if tick["exchange"] == exchange]:
            yield wanted
