"""Binance's market data without a key: `data-stream.binance.vision` and `data-api.binance.vision`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .exchange import Exchange, Trade, parsed
from .venue import Answer, Connection, RestError


class Binance(Exchange):
    name = "BINANCE"
    path = "/stream"
    first_id = 3_561_840_211
    ping_seconds = 20.0

    def symbol(self, pair: str) -> str:
        return pair.replace(":", "").lower() + "@aggTrade"

    def price(self, pair: str, number: int) -> str:
        # Always eight digits.
        whole, _, fraction = super().price(pair, number).partition(".")
        return f"{whole}.{fraction:0<8}"

    def on_text(self, connection: Connection, text: str) -> None:
        request = parsed(text)
        if request.get("method") == "SUBSCRIBE":
            connection.send({"result": None, "id": request.get("id")})
            # A stream that doesn't exist is accepted, and stays silent.
            for each in request.get("params", ()):
                if (pair := self.pair_of(each)) is not None:
                    self.subscribe(connection, pair)
        elif request.get("method") == "LIST_SUBSCRIPTIONS":
            streams = [self.symbol(pair) for pair in connection.subscriptions]
            connection.send({"result": streams, "id": request.get("id")})

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        stream, symbol = self.symbol(pair), pair.replace(":", "")
        for trade in (trade for group in groups for trade in group):
            yield (
                f'{{"stream":"{stream}","data":{{"e":"aggTrade","E":{trade.ms},"s":"{symbol}","a":{trade.id},'
                f'"p":"{trade.price}","q":"0.00100000","f":{trade.id + 9},"l":{trade.id + 9},"T":{trade.ms},'
                '"m":false,"M":true}}'
            )

    def answers(self) -> Mapping[str, Answer]:
        return {"/api/v3/exchangeInfo": self._listing, "/api/v3/aggTrades": self._trades}

    def _listing(self, query: Mapping[str, str]) -> Any:
        asked = {query["symbol"]} if "symbol" in query else set(json.loads(query.get("symbols", "[]")))
        symbols = [
            {
                "symbol": pair.replace(":", ""),
                "status": "TRADING",
                "baseAsset": pair.partition(":")[0],
                "quoteAsset": pair.partition(":")[2],
                "isSpotTradingAllowed": True,
            }
            for pair in self.books
        ]
        if asked - {each["symbol"] for each in symbols}:
            raise RestError(400, {"code": -1121, "msg": "Invalid symbol."})
        chosen = [each for each in symbols if not asked or each["symbol"] in asked]
        return {"timezone": "UTC", "serverTime": int(time.time() * 1_000), "rateLimits": [], "symbols": chosen}

    def _trades(self, query: Mapping[str, str]) -> Any:
        book = {pair.replace(":", ""): book for pair, book in self.books.items()}.get(query.get("symbol", ""))
        if book is None:
            raise RestError(400, {"code": -1121, "msg": "Invalid symbol."})
        limit = self.limit(query.get("limit", "500"), 1_000)
        trades = book.after(int(query["fromId"]) - 1)[:limit] if "fromId" in query else book.trades[-limit:]
        return [
            {
                "a": each.id,
                "p": each.price,
                "q": "0.00100000",
                "f": each.id + 9,
                "l": each.id + 9,
                "T": each.ms,
                "m": False,
                "M": True,
            }
            for each in trades
        ]
