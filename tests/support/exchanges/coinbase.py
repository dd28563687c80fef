"""Coinbase Exchange: `ws-feed.exchange.coinbase.com` and `api.exchange.coinbase.com`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .exchange import Exchange, Trade, parsed
from .venue import Answer, Connection, RestError


class Coinbase(Exchange):
    """Coinbase Exchange.

    Attributes:
        before_is_adjacent (bool): Which page `before=ID` returns: the one next to that ID, or the newest one. The
            documentation leaves it open.
    """

    name = "COINBASE"
    path = "/"
    first_id = 1_069_726_290
    time_unit = 1_000
    before_is_adjacent = False

    def symbol(self, pair: str) -> str:
        return pair.replace(":", "-")

    def on_text(self, connection: Connection, text: str) -> None:
        request = parsed(text)
        if request.get("type") != "subscribe":
            connection.send({"type": "error", "message": "Malformed JSON", "reason": "unknown type"})
            return
        names, products = [], list(request.get("product_ids", ()))
        for channel in request.get("channels", ()):
            names.append(channel["name"] if isinstance(channel, dict) else channel)
            products += channel.get("product_ids", ()) if isinstance(channel, dict) else ()
        for each in products:
            if self.pair_of(each) is None:
                message, reason = "Failed to subscribe", f"{each} is not a valid product"
                connection.send({"type": "error", "message": message, "reason": reason})
                return
        unique = list(dict.fromkeys(products))
        channels = [{"name": name, "product_ids": unique, "account_ids": None} for name in names]
        if "heartbeat" in names:
            connection.subscriptions.update(f"heartbeat {product}" for product in unique)
        for pair in map(self.pair_of, unique) if "matches" in names else ():
            assert pair is not None
            self.subscribe(connection, pair)
        connection.send({"type": "subscriptions", "channels": channels})

    def beat(self, connection: Connection) -> None:
        for pair, book in self.books.items():
            product = self.symbol(pair)
            if f"heartbeat {product}" in connection.subscriptions:
                newest = book.trades[-1].id if book.trades else 0
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                beat = {"type": "heartbeat", "last_trade_id": newest, "product_id": product, "sequence": 90}
                connection.send({**beat, "time": now})

    def snapshot(self, pair: str) -> Iterable[str]:
        return [self._message("last_match", pair, each) for each in self.books[pair].trades[-1:]]

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        return (self._message("match", pair, trade) for group in groups for trade in group)

    def _message(self, kind: str, pair: str, trade: Trade) -> str:
        return (
            f'{{"type":"{kind}","trade_id":{trade.id},"maker_order_id":"27fff20b-af29-4f45-8744-56dd1ef57dc0",'
            f'"taker_order_id":"1da6ce16-c8da-4732-9f71-6049f4c6aaf8","side":"sell","size":"0.04",'
            f'"price":"{trade.price}","product_id":"{self.symbol(pair)}","sequence":{trade.id + 100},'
            f'"time":"{trade.iso}"}}'
        )

    def answers(self) -> Mapping[str, Answer]:
        return {"/products": self._listing, "/products/{product}/trades": self._trades}

    def _listing(self, query: Mapping[str, str]) -> Any:
        return [
            {
                "id": self.symbol(pair),
                "base_currency": pair.partition(":")[0],
                "quote_currency": pair.partition(":")[2],
                "display_name": pair.replace(":", "/"),
                "status": "online",
                "trading_disabled": False,
            }
            for pair in self.books
        ]

    def _trades(self, query: Mapping[str, str]) -> Any:
        pair = self.pair_of(query["product"])
        if pair is None:
            raise RestError(404, {"message": "NotFound"})
        if "before" in query and "after" in query:
            raise RestError(400, {"message": "before and after can't be used together"})
        book, limit = self.books[pair], self.limit(query.get("limit"), 1_000)
        trades = book.trades
        if "after" in query:
            trades = book.before(int(query["after"]))
        elif "before" in query:
            trades = book.after(int(query["before"]))
            trades = trades[:limit] if self.before_is_adjacent else trades
        page = self.newest(trades, query.get("limit"), 1_000)
        return [
            {"trade_id": each.id, "side": "sell", "size": "0.04000000", "price": each.price, "time": each.iso}
            for each in page
        ]
