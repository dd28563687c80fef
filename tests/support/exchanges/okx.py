"""OKX: `ws.okx.com:8443` and `www.okx.com`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .exchange import Exchange, Trade, parsed
from .venue import Answer, Connection


class Okx(Exchange):
    name = "OKX"
    path = "/ws/v5/public"
    first_id = 1_040_968_613
    digits = 1
    max_group = 3
    merges = True

    def symbol(self, pair: str) -> str:
        return pair.replace(":", "-")

    def on_text(self, connection: Connection, text: str) -> None:
        if text == "ping":
            connection.send("pong")
            return
        request = parsed(text)
        if request.get("op") != "subscribe":
            error = {"event": "error", "code": "60012", "msg": f"Invalid request: {text[:100]}"}
            connection.send({**error, "connId": "a4d3ae55"})
            return
        for each in request.get("args", ()):
            pair = self.pair_of(each.get("instId"))
            if pair is None or each.get("channel") != "trades":
                message = f"Wrong URL or channel:{each.get('channel')},instId:{each.get('instId')} doesn't exist."
                connection.send({"event": "error", "code": "60018", "msg": message, "connId": "a4d3ae55"})
                continue
            connection.send({"event": "subscribe", "arg": each, "connId": "a4d3ae55"})
            self.subscribe(connection, pair)

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        symbol = self.symbol(pair)
        for group in groups:
            # The trades of a group have one price, and are sent as one: the last, with their count.
            trade = group[-1]
            yield (
                f'{{"arg":{{"channel":"trades","instId":"{symbol}"}},"data":[{{"instId":"{symbol}",'
                f'"tradeId":"{trade.id}","px":"{trade.price}","sz":"0.00240857","side":"buy","ts":"{trade.ms}",'
                f'"count":"{len(group)}","source":"0","seqId":{trade.id + 78_665_796_629}}}]}}'
            )

    def answers(self) -> Mapping[str, Answer]:
        return {
            "/api/v5/public/instruments": self._listing,
            "/api/v5/market/history-trades": self._history,
            "/api/v5/market/trades": self._recent,
        }

    def _listing(self, query: Mapping[str, str]) -> Any:
        if query.get("instType") != "SPOT":
            return {"code": "51000", "msg": "Parameter instType error", "data": []}
        data = [
            {
                "instType": "SPOT",
                "instId": self.symbol(pair),
                "baseCcy": pair.partition(":")[0],
                "quoteCcy": pair.partition(":")[2],
                "state": "live",
            }
            for pair in self.books
        ]
        return {"code": "0", "msg": "", "data": data}

    def _history(self, query: Mapping[str, str]) -> Any:
        pair = self.pair_of(query.get("instId"))
        if pair is None:
            return {"code": "51001", "msg": "Instrument ID doesn't exist.", "data": []}
        book = self.books[pair]
        trades = book.trades
        if query.get("type", "1") == "2":
            trades = [each for each in trades if each.ms < int(query.get("after", "9" * 13))]
        elif "after" in query:
            trades = book.before(int(query["after"]))
        elif "before" in query:
            # The newest ones are returned.
            trades = book.after(int(query["before"]))
        return self._answer(pair, self.newest(trades, query.get("limit"), 100))

    def _recent(self, query: Mapping[str, str]) -> Any:
        pair = self.pair_of(query.get("instId"))
        if pair is None:
            return {"code": "51001", "msg": "Instrument ID doesn't exist.", "data": []}
        return self._answer(pair, self.newest(self.books[pair].trades, query.get("limit", "100"), 500))

    def _answer(self, pair: str, trades: Sequence[Trade]) -> Any:
        data = [
            {
                "instId": self.symbol(pair),
                "side": "buy",
                "sz": "0.00240857",
                "source": "0",
                "px": each.price,
                "tradeId": str(each.id),
                "ts": str(each.ms),
            }
            for each in trades
        ]
        return {"code": "0", "msg": "", "data": data}
