"""Kraken: `ws.kraken.com/v2` and `api.kraken.com`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .exchange import Exchange, Trade, parsed
from .venue import Answer, Connection

#: The spellings of the REST interface, for assets that have another one in the second WebSocket interface.
ALTERNATIVES = {"BTC": "XBT", "DOGE": "XDG"}
#: Currencies that have a letter in front in the keys of old pairs. Stablecoins have none.
OLD = {"XBT": "XXBT", "ETH": "XETH", "XDG": "XXDG", "USD": "ZUSD", "EUR": "ZEUR"}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Kraken(Exchange):
    name = "KRAKEN"
    path = "/v2"
    first_id = 9_622_656
    time_unit = 1_000
    digits = 1
    trimmed = False
    max_group = 3

    def symbol(self, pair: str) -> str:
        return pair.replace(":", "/")

    def on_connect(self, connection: Connection) -> None:
        state = {"version": "2.0.10", "system": "online", "api_version": "v2", "connection_id": 13834774380200032777}
        connection.send({"channel": "status", "type": "update", "data": [state]})

    def on_text(self, connection: Connection, text: str) -> None:
        request = parsed(text)
        params = request.get("params", {})
        times = {"time_in": _now(), "time_out": _now()}
        if request.get("method") == "ping":
            connection.send({"method": "pong", "req_id": request.get("req_id"), **times})
        elif request.get("method") == "subscribe" and params.get("channel") == "trade":
            for symbol in params.get("symbol", ()):
                pair = self.pair_of(symbol)
                if pair is None:
                    error = f"Currency pair not supported {symbol}"
                    refusal = {"error": error, "method": "subscribe", "success": False, "symbol": symbol}
                    connection.send({**refusal, **times})
                    continue
                snapshot = params.get("snapshot", True)
                result = {"channel": "trade", "snapshot": snapshot, "symbol": symbol}
                connection.send({"method": "subscribe", "result": result, "success": True, **times})
                if snapshot:
                    self.subscribe(connection, pair)
                else:
                    connection.subscriptions.add(pair)

    def beat(self, connection: Connection) -> None:
        if connection.subscriptions:
            connection.send('{"channel":"heartbeat"}')

    def snapshot(self, pair: str) -> Iterable[str]:
        return [self._message("snapshot", pair, self.books[pair].trades[-50:])]

    def messages(self, pair: str, groups: Sequence[Sequence[Trade]]) -> Iterable[str]:
        return (self._message("update", pair, group) for group in groups)

    def _message(self, kind: str, pair: str, trades: Sequence[Trade]) -> str:
        symbol = self.symbol(pair)
        data = ",".join(
            f'{{"symbol":"{symbol}","side":"buy","price":{trade.price},"qty":0.00409283,"ord_type":"market",'
            f'"trade_id":{trade.id},"timestamp":"{trade.iso}"}}'
            for trade in trades
        )
        return f'{{"channel":"trade","type":"{kind}","data":[{data}]}}'

    def forms(self, trade: Trade) -> Sequence[tuple[datetime, str]]:
        return [(trade.moment, trade.price), (trade.moment, f"{trade.price}0000")]

    def answers(self) -> Mapping[str, Answer]:
        return {"/0/public/AssetPairs": self._listing, "/0/public/Trades": self._trades}

    def _names(self, pair: str) -> tuple[str, str, str]:
        """The pair's key, its alternative name, and the name in the first WebSocket interface."""
        base, _, quote = pair.partition(":")
        base, quote = ALTERNATIVES.get(base, base), ALTERNATIVES.get(quote, quote)
        alternative = base + quote
        is_old = base in OLD and quote in OLD
        return (OLD[base] + OLD[quote] if is_old else alternative), alternative, f"{base}/{quote}"

    def _listing(self, query: Mapping[str, str]) -> Any:
        result = {}
        for pair in self.books:
            key, alternative, name = self._names(pair)
            base, _, quote = name.partition("/")
            result[key] = {
                "altname": alternative,
                "wsname": name,
                "aclass_base": "currency",
                "base": OLD.get(base, base),
                "aclass_quote": "currency",
                "quote": OLD.get(quote, quote),
                "pair_decimals": 1,
                "status": "online",
            }
        return {"error": [], "result": result}

    def _trades(self, query: Mapping[str, str]) -> Any:
        pair = next((each for each in self.books if query.get("pair") in self._names(each)), None)
        if pair is None:
            return {"error": ["EQuery:Unknown asset pair"]}
        book = self.books[pair]
        since, limit = query.get("since"), self.limit(query.get("count"), 1_000)
        if since is None:
            trades = book.trades[-limit:]
        else:
            # Seconds are accepted, too.
            after = int(since) if len(since) > 12 else int(float(since) * 1e9)
            trades = [each for each in book.trades if self._nanoseconds(each) > after][:limit]
        last = str(self._nanoseconds(trades[-1])) if trades else since or "0"
        # As text, because the times have more digits than a float.
        rows = ",".join(
            f'["{each.price}0000","0.00409283",{self._seconds(each)},"b","m","",{each.id}]' for each in trades
        )
        return f'{{"error":[],"result":{{"{self._names(pair)[0]}":[{rows}],"last":"{last}"}}}}'

    @staticmethod
    def _nanoseconds(trade: Trade) -> int:
        """The time in REST answers is more precise than that of the WebSocket. Equal times stay equal."""
        return trade.time_ns + trade.time_ns // 1_000 * 7_919 % 1_000

    def _seconds(self, trade: Trade) -> str:
        seconds, fraction = divmod(self._nanoseconds(trade), 1_000_000_000)
        return f"{seconds}.{fraction:09}".rstrip("0")
