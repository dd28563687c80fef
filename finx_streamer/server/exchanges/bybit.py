"""Bybit: the public trades of the spot market."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .adapter import Adapter, Gap, Page, Trade, join_pair, make_trade, to_json, unix_time


class Bybit(Adapter):
    """Documentation: bybit-exchange.github.io/docs/v5, 2026-11-29."""

    name = "BYBIT"
    websocket = "wss://stream.bybit.com/v5/public/spot"
    rest = "https://api.bybit.com"
    ping = to_json({"op": "ping"})
    batch = 10

    def listing_paths(self) -> Sequence[str]:
        return ["/v5/market/instruments-info?category=spot"]

    def symbols(self, body: Any) -> Mapping[str, str]:
        return {
            join_pair(each["baseCoin"], each["quoteCoin"]): each["symbol"]
            for each in body["result"]["list"]
            if each.get("status", "Trading") == "Trading"
        }

    def subscription(self, symbols: Sequence[str]) -> object:
        return {"op": "subscribe", "args": [f"publicTrade.{symbol}" for symbol in symbols]}

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        # Each message has the type "snapshot", but all of its trades are new.
        is_trade = str(message.get("topic", "")).startswith("publicTrade.")
        return [(row["s"], row) for row in message["data"]] if is_trade else []

    def trade(self, row: Any) -> Trade:
        return make_trade(row["i"], row["p"], unix_time(row["T"], 3))

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        # There is no second page.
        return f"/v5/market/recent-trade?category=spot&symbol={symbol}&limit=60" if page is None else None

    def history_rows(self, body: Any) -> Sequence[Any]:
        return list(body["result"]["list"])

    def history_trade(self, row: Any) -> Trade:
        return make_trade(row["execId"], row["price"], unix_time(row["time"], 3))
