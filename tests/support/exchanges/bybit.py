"""Bybit: `stream.bybit.com/v5/public/spot` and `api.bybit.com`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .exchange import Exchange, Trade, parsed
from .venue import Answer, Connection


class Bybit(Exchange):
    name = "BYBIT"
    path = "/v5/public/spot"
    first_id = 2_290_000_001_190_010_743
    digits = 2
    max_group = 6

    def symbol(self, pair: str) -> str:
        return "publicTrade." + pair.replace(":", "")

    def on_text(self, connection: Connection, text: str) -> None:
        request = parsed(text)
        common = {"conn_id": "2324d924-aa4d-45b0-a858-7b8be29ab52b", "op": request.get("op")}
        if "req_id" in request:
            common["req_id"] = request["req_id"]
        if request.get("op") == "ping":
            connection.send({"success": True, "ret_msg": "pong", **common})
        elif request.get("op") == "subscribe":
            topics = request.get("args", [])
            unknown = [each for each in topics if self.pair_of(each) is None]
            if len(topics) > 10:
                connection.send({"success": False, "ret_msg": "args size >10", **common})
            elif unknown:
                message = f"error:handler not found,topic:{unknown[0]}"
                connection.send({"success": False, "ret_msg": message, **common})
            else:
                connection.send({"success": True, "ret_msg": "subscribe", **common})
                for each in topics:
                    self.subscribe(connection, self._by_symbol[each])

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        topic, symbol = self.symbol(pair), pair.replace(":", "")
        for group in groups:
            data = ",".join(
                f'{{"i":"{trade.id}","T":{trade.ms},"p":"{trade.price}","v":"0.00325","S":"Sell",'
                f'"seq":112571834644,"s":"{symbol}","BT":false,"RPI":false}}'
                for trade in group
            )
            yield f'{{"topic":"{topic}","ts":{group[-1].ms + 1},"type":"snapshot","data":[{data}]}}'

    def answers(self) -> Mapping[str, Answer]:
        return {"/v5/market/instruments-info": self._listing, "/v5/market/recent-trade": self._trades}

    def _listing(self, query: Mapping[str, str]) -> Any:
        listed = [
            {
                "symbol": pair.replace(":", ""),
                "baseCoin": pair.partition(":")[0],
                "quoteCoin": pair.partition(":")[2],
                "innovation": "0",
                "status": "Trading",
            }
            for pair in self.books
            if query.get("symbol") in (None, pair.replace(":", ""))
        ]
        return self._answer(query, listed)

    def _trades(self, query: Mapping[str, str]) -> Any:
        symbol = query.get("symbol", "")
        pair = self.pair_of("publicTrade." + symbol)
        if pair is None:
            return {"retCode": 10001, "retMsg": "Not supported symbols", "result": {}, "retExtInfo": {}, "time": 0}
        trades = [
            {
                "execId": str(each.id),
                "symbol": symbol,
                "price": each.price,
                "size": "0.00325",
                "side": "Sell",
                "time": str(each.ms),
                "isBlockTrade": False,
                "isRPITrade": False,
                "seq": "112571834644",
            }
            for each in self.newest(self.books[pair].trades, query.get("limit"), 60)
        ]
        return self._answer(query, trades)

    def _answer(self, query: Mapping[str, str], values: Sequence[Any]) -> Any:
        if query.get("category") != "spot":
            return {"retCode": 10001, "retMsg": "params error: category", "result": {}, "retExtInfo": {}, "time": 0}
        result = {"category": "spot", "list": values}
        now = int(time.time() * 1_000)
        return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": now}
