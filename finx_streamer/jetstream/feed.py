"""`Feed`: makes messages of what one source of ticks delivers."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from json import dumps
from json.encoder import encode_basestring
from typing import Any

from ..values import Gap, Greeks, State, Tick
from .counts import Counts, stamp_of
from .message import LONG_AGO, Message, time_of, trade_prefix
from .subjects import greeks_subject, pair_subjects, tick_subject
from .waiting import Waiting

_ID_BYTES = 12


class _Series:
    """The ticks of one pair on one exchange, with everything about them that doesn't change."""

    __slots__ = ("after_time", "before_date", "counts", "exchange", "filter", "hash", "prefix", "subject")

    def __init__(self, pair: str, exchange: str) -> None:
        self.counts = Counts()
        self.exchange = exchange
        self.subject, self.filter = tick_subject(exchange, pair), pair_subjects(pair)
        self.before_date = f'{{"pair":{encode_basestring(pair)},"date":'
        self.after_time = f',"exchange":{encode_basestring(exchange)},"price":'
        self.hash = blake2b(_compact([pair, exchange]).encode(), digest_size=_ID_BYTES)
        #: Of the exchange's own trade IDs.
        self.prefix = trade_prefix(exchange, pair)

    def message(self, date: str, clock: str, stamp: str, price: str, born: int, trade: str | None = None) -> Message:
        if trade is None:
            ordinal, certified = self.counts.add(stamp, price)
            hashed = self.hash.copy()
            hashed.update(f"{ordinal} {stamp} {price}".encode())
            message_id = urlsafe_b64encode(hashed.digest()).decode()
            born = born if certified else LONG_AGO
        else:
            message_id = self.prefix + trade
        payload = (
            f"{self.before_date}{encode_basestring(date)},"
            f'"time":{encode_basestring(clock)}{self.after_time}{encode_basestring(price)}}}'
        )
        return Message(
            self.subject,
            payload.encode(),
            message_id,
            self.exchange,
            stamp,
            born,
            self.filter,
        )


class Feed:
    """Makes messages of the ticks of one source, in its order. Used by one thread at a time.

    Args:
        waiting: Where they wait to be sent.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._series: dict[tuple[str, str], _Series] = {}
        #: When the last live tick of each pair was received.
        self._last_live: dict[str, int] = {}

    def on_tick(self, tick: Tick) -> None:
        """Publish a listener's tick, whose price is the text that was sent."""
        pair = tick["pair"]
        series = self._find(pair, tick["exchange"])
        if tick["backfilled"]:
            # Others may have sent it since then.
            born = self._last_live.get(pair, LONG_AGO)
        else:
            born = self._last_live[pair] = tick["received_ns"]
        date, clock = tick["date"], tick["time"]
        message = series.message(date, clock, stamp_of(date, clock), tick["price"], born)
        self._waiting.put(message, is_history=tick["backfilled"])

    def on_gap(self, gap: Gap) -> None:
        """After an unfilled gap, the ticks of the next time may be incomplete."""
        if not gap.filled:
            self.join([gap.symbol])

    def on_state(self, symbol: str, state: State) -> None:
        """After the end of a stream, its pair may begin again. Ticks from before may have waited until now."""
        if state.ended:
            self.begin([symbol])

    def on_greeks(self, greeks: Greeks) -> None:
        """Publish a listener's Greeks as they were sent."""
        message = contract_message(greeks["instrument"], greeks["raw"], greeks["exchange"], greeks["received_ns"])
        self._waiting.put(message)

    async def publish_tick(self, tick: Mapping[str, str], trade: str | None) -> None:
        """Publish a server's tick. `trade` is the exchange's own ID. Waits for room."""
        series = self._find(tick["pair"], tick["exchange"])
        date, clock = tick["date"], tick["time"]
        stamp = stamp_of(date, clock)
        # A source may also send ticks that it has missed. Others may have sent them in time.
        born = min(time.time_ns(), time_of(stamp))
        message = series.message(date, clock, stamp, tick["price"], born, trade)
        await self._waiting.put_in_loop(message)

    async def publish_contract(self, instrument: str, values: Mapping[str, Any], exchange: str) -> None:
        """Publish a contract's ticker. Waits for room."""
        await self._waiting.put_in_loop(contract_message(instrument, values, exchange, time.time_ns()))

    def join(self, pairs: Iterable[str]) -> None:
        """Take note that ticks of some pairs may be missing before the next one."""
        joined = set(pairs)
        # A copy: another thread may add to it.
        for (pair, _), series in list(self._series.items()):
            if pair in joined:
                series.counts.join()
                self._last_live.pop(pair, None)

    def begin(self, pairs: Iterable[str]) -> None:
        """Take note that some pairs begin, perhaps again, and with ticks that were published already."""
        begun = set(pairs)
        for (pair, _), series in list(self._series.items()):
            if pair in begun:
                series.counts = Counts()
                self._last_live.pop(pair, None)

    def _find(self, pair: str, exchange: str) -> _Series:
        series = self._series.get((pair, exchange))
        if series is None:
            series = self._series[pair, exchange] = _Series(pair, exchange)
        return series


def contract_message(instrument: str, values: Mapping[str, Any], exchange: str, born: int) -> Message:
    """Return the message of a contract's ticker."""
    payload = _compact(values).encode()
    digest = blake2b(payload, digest_size=_ID_BYTES).digest()
    moment = datetime.fromtimestamp(float(values["timestamp"]) / 1_000, UTC)
    stamp = moment.replace(tzinfo=None).isoformat()
    subject = greeks_subject(exchange, instrument)
    return Message(subject, payload, urlsafe_b64encode(digest).decode(), exchange, stamp, born, subject)


def _compact(value: Any) -> str:
    return dumps(value, ensure_ascii=False, separators=(",", ":"))
