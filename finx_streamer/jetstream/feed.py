"""`Feed`: makes messages of what one source of ticks delivers."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from json import dumps
from json.encoder import encode_basestring
from typing import Any

from ..values import Gap, Greeks, Tick
from .counts import Counts, stamp_of
from .message import LONG_AGO, Message
from .subjects import greeks_subject, pair_subjects, tick_subject

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
        self.prefix = f"{exchange}:{pair}:".encode("ascii", "backslashreplace").decode()

    def message(self, date: str, clock: str, price: str, born: int, trade: str | None = None) -> Message:
        stamp = stamp_of(date, clock)
        ordinal, certified = self.counts.add(stamp, price)
        if trade is None:
            hashed = self.hash.copy()
            hashed.update(f"{ordinal} {stamp} {price}".encode())
            message_id = urlsafe_b64encode(hashed.digest()).decode()
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
            born if certified else LONG_AGO,
            self.filter,
        )


class Feed:
    """Makes messages of the ticks of one source, in its order. Used by one thread at a time.

    Args:
        put: Called with each message.
    """

    def __init__(self, put: Callable[[Message], None]) -> None:
        self._put = put
        self._series: dict[tuple[str, str], _Series] = {}
        #: When the last live tick of each pair was received.
        self._last_live: dict[str, int] = {}

    def on_tick(self, tick: Tick) -> None:
        """Publish a listener's tick, whose price is the text that was sent."""
        pair = tick["pair"]
        series = self._series.get((pair, tick["exchange"])) or self._add(pair, tick["exchange"])
        if tick["backfilled"]:
            # Others may have sent it since then.
            born = self._last_live.get(pair, LONG_AGO)
        else:
            born = self._last_live[pair] = tick["received_ns"]
        self._put(series.message(tick["date"], tick["time"], tick["price"], born))

    def on_gap(self, gap: Gap) -> None:
        """After an unfilled gap, the ticks of the next time may be incomplete."""
        if not gap.filled:
            self.join([gap.symbol])

    def on_greeks(self, greeks: Greeks) -> None:
        """Publish a listener's Greeks as they were sent."""
        self.put_contract(greeks["instrument"], greeks["raw"], greeks["exchange"], greeks["received_ns"])

    def message_of(self, tick: Mapping[str, str]) -> Message:
        """Return the message of a server's tick. The key `trade` is the exchange's own ID."""
        pair, exchange = tick["pair"], tick["exchange"]
        series = self._series.get((pair, exchange)) or self._add(pair, exchange)
        return series.message(tick["date"], tick["time"], tick["price"], time.time_ns(), tick.get("trade"))

    def put_contract(self, instrument: str, values: Mapping[str, Any], exchange: str, born: int) -> None:
        """Publish a contract's ticker."""
        self._put(contract_message(instrument, values, exchange, born))

    def join(self, pairs: Iterable[str]) -> None:
        """Take note that ticks of some pairs may be missing before the next one."""
        joined = set(pairs)
        for (pair, _), series in self._series.items():
            if pair in joined:
                series.counts.join()
                self._last_live.pop(pair, None)

    def _add(self, pair: str, exchange: str) -> _Series:
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
