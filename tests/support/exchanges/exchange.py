"""A loopback exchange with trades: it makes them, sends them, and keeps them so that its REST answers are right."""

from __future__ import annotations

import json
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple

from .venue import Connection, Venue

#: The price of the first trade, by base asset.
FIRST_PRICES = {"BTC": 64_000, "ETH": 3_500}


class Trade(NamedTuple):
    """One trade.

    Attributes:
        id (int): Its ID. Consecutive, except on Bitstamp.
        time_ns (int): Its time in nanoseconds since 1970, as precise as the exchange's WebSocket.
        price (str): The price as the WebSocket sends it.
        last (int): The ID of the last trade of its message. Only OKX sends the trades of a message as one.
    """

    id: int
    time_ns: int
    price: str
    last: int

    @property
    def moment(self) -> datetime:
        """Its time."""
        return datetime.fromtimestamp(self.time_ns // 1_000_000_000, UTC).replace(
            microsecond=self.time_ns // 1_000 % 1_000_000
        )

    @property
    def ms(self) -> int:
        """Its time in milliseconds since 1970."""
        return self.time_ns // 1_000_000

    @property
    def iso(self) -> str:
        """Its time in ISO format with six digits."""
        return self.moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Book:
    """The trades of one pair, oldest first."""

    def __init__(self, keep: int | None) -> None:
        self.trades: list[Trade] = []
        #: The number of trades that were ever made, and of their prices.
        self.total = self.prices = 0
        self._keep = keep

    def add(self, trades: Sequence[Trade]) -> None:
        self.trades.extend(trades)
        self.total += len(trades)
        if self._keep is not None and len(self.trades) > 2 * self._keep:
            del self.trades[: -self._keep]

    def after(self, trade_id: int) -> list[Trade]:
        """The trades with a greater ID."""
        return self.trades[bisect_right(self.trades, trade_id, key=lambda each: each.id) :]

    def before(self, trade_id: int) -> list[Trade]:
        """The trades with a smaller ID."""
        return self.trades[: bisect_left(self.trades, trade_id, key=lambda each: each.id)]


class Exchange(Venue):
    """A loopback exchange with trades. See `Venue` for its faults."""

    #: The ID of the first trade.
    first_id: ClassVar[int]
    #: The unit of times in nanoseconds.
    time_unit: ClassVar[int] = 1_000_000
    #: The number of digits after the point in a price, and whether zeros at the end are left out.
    digits: ClassVar[int] = 2
    trimmed: ClassVar[bool] = True
    #: The most trades in a message.
    max_group: ClassVar[int] = 1
    #: Whether the trades of a message have one price, and are sent as one trade.
    merges: ClassVar[bool] = False

    def __init__(self, pairs: Iterable[str], seed: int, keep: int | None) -> None:
        super().__init__()
        self.books = {pair: Book(keep) for pair in pairs}
        #: How many prices there were when a client last subscribed to a pair.
        self.joined = dict.fromkeys(self.books, 0)
        self._random = random.Random(f"{seed} {self.name}")
        self._by_symbol = {self.symbol(pair): pair for pair in self.books}

    def symbol(self, pair: str) -> str:
        """How the WebSocket spells a pair."""
        raise NotImplementedError

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        """The messages that announce trades. Each group is one message on exchanges that group trades."""
        raise NotImplementedError

    def snapshot(self, pair: str) -> Iterable[str]:
        """What the exchange sends after a subscription."""
        return ()

    def next_id(self, newest: int) -> int:
        return newest + 1

    def pair_of(self, symbol: object) -> str | None:
        """The listed pair with this spelling."""
        return self._by_symbol.get(symbol) if isinstance(symbol, str) else None

    def subscribe(self, connection: Connection, pair: str) -> None:
        self.joined[pair] = self.books[pair].prices
        connection.subscriptions.add(pair)
        for each in self.snapshot(pair):
            connection.send(each)

    def subscribed(self, pair: str) -> bool:
        """Whether any client receives this pair now."""
        return any(pair in each.subscriptions for each in self.connections)

    def make(
        self, pair: str, count: int = 1, *, send: bool = True, age: float = 0.0, alike: bool = False
    ) -> list[Trade]:
        """Make trades and send them.

        Args:
            pair (str): The pair, such as "BTC:USDT".
            count (int): How many.
            send (bool): False makes trades that only REST knows: a gap.
            age (float): How many seconds ago they took place. Never before an earlier trade.
            alike (bool): Whether all of them have the same time and price. Only their IDs differ.
        """
        book = self.books[pair]
        groups: list[list[Trade]] = []
        newest = book.trades[-1] if book.trades else None
        trade_id = self.first_id if newest is None else newest.id
        moment = 0 if newest is None else newest.time_ns
        moment = max(moment, (time.time_ns() - int(age * 1e9)) // self.time_unit * self.time_unit)
        number = book.prices
        while count > 0:
            size = self._random.randint(1, min(self.max_group, count))
            ids = [trade_id := self.next_id(trade_id) for _ in range(size)]
            group = []
            for each in ids:
                # Merged trades have one price, and the trades after them a new one.
                if not alike and not (self.merges and group):
                    number += 1
                group.append(Trade(each, moment, self.price(pair, number), ids[-1]))
            groups.append(group)
            count -= size
            if not alike:
                moment = max(moment, (time.time_ns() - int(age * 1e9)) // self.time_unit * self.time_unit)
        made = [trade for group in groups for trade in group]
        book.add(made)
        book.prices = number + alike
        if send:
            receivers = [each for each in self.connections if pair in each.subscriptions]
            for message in self.messages(pair, groups) if receivers else ():
                for each in receivers:
                    each.send(message)
        self.changed()
        return made

    def replay(self, pair: str, lines: Iterable[str], trades: Sequence[Trade]) -> None:
        """Send recorded messages as they are. `trades` is what they say."""
        self.books[pair].add(trades)
        for connection in self.connections:
            if pair in connection.subscriptions:
                for each in lines:
                    connection.send(each)

    def price(self, pair: str, number: int) -> str:
        """The price of the trade with this number. Each has its own, so that a tick can be traced to its trade."""
        units = FIRST_PRICES.get(pair.partition(":")[0], 100) * 10**self.digits + number
        whole, fraction = divmod(units, 10**self.digits)
        text = f"{whole}.{fraction:0{self.digits}}"
        return text.rstrip("0").rstrip(".") if self.trimmed else text

    def number(self, pair: str, price: str) -> int:
        """The inverse of `price`."""
        first = FIRST_PRICES.get(pair.partition(":")[0], 100) * 10**self.digits
        return int(Decimal(price).scaleb(self.digits)) - first

    def is_tick_of(self, trade: Trade, tick: Mapping[str, Any]) -> bool:
        """Whether a client's tick has the time and the digits of a trade, as the WebSocket or REST sends it."""
        return (tick["timestamp"], tick["price"]) in self.forms(trade)

    def forms(self, trade: Trade) -> Sequence[tuple[datetime, str]]:
        """The time and the price of a trade, as the WebSocket and REST send them."""
        return [(trade.moment, trade.price)]

    def newest(self, trades: Sequence[Trade], limit: str | None, most: int) -> list[Trade]:
        """The newest trades of a REST answer, newest first."""
        return trades[: -self.limit(limit, most) - 1 : -1]  # type: ignore[return-value]

    def limit(self, limit: str | None, most: int) -> int:
        """How many trades a REST answer has."""
        return min(int(limit or most), most, self.page or most)


def parsed(text: str) -> Mapping[str, Any]:
    """A client's message. An exchange ignores anything but an object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
