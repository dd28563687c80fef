"""Bitstamp: `ws.bitstamp.net` and `www.bitstamp.net`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from .exchange import Exchange, Trade, parsed
from .venue import Answer, Connection, RestError

#: How far back each value of `time` reaches, in seconds.
REACH = {"minute": 60, "hour": 3_600, "day": 86_400}


class Bitstamp(Exchange):
    name = "BITSTAMP"
    path = "/"
    first_id = 516_000_477
    # Microseconds, but the exchange knows milliseconds.
    time_unit = 1_000_000
    trimmed = False

    def symbol(self, pair: str) -> str:
        return "live_trades_" + pair.replace(":", "").lower()

    def next_id(self, newest: int) -> int:
        """All pairs share one sequence of IDs, so a pair's own have holes."""
        return newest + self._random.randint(1, 9)

    def on_text(self, connection: Connection, text: str) -> None:
        request = parsed(text)
        channel = request.get("data", {}).get("channel")
        if request.get("event") == "bts:heartbeat":
            connection.send({"event": "bts:heartbeat", "channel": "", "data": {"status": "success"}})
        elif request.get("event") == "bts:subscribe":
            # A channel that doesn't exist is accepted, and stays silent.
            connection.send({"event": "bts:subscription_succeeded", "channel": channel, "data": {}})
            if (pair := self.pair_of(channel)) is not None:
                self.subscribe(connection, pair)

    def request_reconnect(self) -> None:
        """Ask the clients to connect again, as before maintenance."""
        self.send_raw('{"event":"bts:request_reconnect","channel":"","data":""}')

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        channel = self.symbol(pair)
        for trade in (trade for group in groups for trade in group):
            number = trade.price.rstrip("0").rstrip(".")
            yield (
                f'{{"data":{{"id":{trade.id},"timestamp":"{trade.ms // 1_000}","amount":0.0792,'
                f'"amount_str":"0.07920000","price":{number},"price_str":"{trade.price}","type":0,'
                f'"microtimestamp":"{trade.time_ns // 1_000}","buy_order_id":1443875737346049,'
                f'"sell_order_id":1443875731320832}},"channel":"{channel}","event":"trade"}}'
            )

    def forms(self, trade: Trade) -> Sequence[tuple[datetime, str]]:
        return [(trade.moment, trade.price), (trade.moment.replace(microsecond=0), trade.price)]

    def answers(self) -> Mapping[str, Answer]:
        return {
            "/api/v2/trading-pairs-info/": self._trading_pairs,
            "/api/v2/markets/": self._markets,
            "/api/v2/transactions/{market}/": self._trades,
        }

    def _trading_pairs(self, query: Mapping[str, str]) -> Any:
        return [
            {
                "name": pair.replace(":", "/"),
                "url_symbol": pair.replace(":", "").lower(),
                "base_decimals": 8,
                "counter_decimals": 2,
                "trading": "Enabled",
                "minimum_order": "10.0 USD",
                "description": pair.replace(":", " / "),
            }
            for pair in self.books
        ]

    def _markets(self, query: Mapping[str, str]) -> Any:
        return [
            {
                "name": pair.replace(":", "/"),
                "market_symbol": pair.replace(":", "").lower(),
                "base_currency": pair.partition(":")[0],
                "counter_currency": pair.partition(":")[2],
                "market_type": "SPOT",
                "base_decimals": 8,
                "counter_decimals": 2,
                "trading": "Enabled",
                "instant_and_market_orders": "Enabled",
            }
            for pair in self.books
        ]

    def _trades(self, query: Mapping[str, str]) -> Any:
        pair = self.pair_of("live_trades_" + query["market"])
        reach = REACH.get(query.get("time", "hour"))
        if pair is None or reach is None:
            raise RestError(404, {"status": "error", "reason": "Invalid currency pair or time.", "code": "404.001"})
        oldest = time.time() - reach
        trades = [each for each in self.books[pair].trades if each.time_ns >= oldest * 1e9]
        return [
            {
                # Whole seconds.
                "date": str(each.ms // 1_000),
                "tid": str(each.id),
                "amount": "0.07920000",
                "type": "0",
                "price": each.price,
            }
            for each in self.newest(trades, None, len(trades) or 1)
        ]
