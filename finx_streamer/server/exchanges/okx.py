"""OKX: the trades channel, which reports the trades of one taker order at one price as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .adapter import Adapter, Gap, Page, Trade, join_pair, make_trade, unix_time, wants_older

_PAGE = 100


class Okx(Adapter):
    """Documentation: www.okx.com/docs-v5, 2026-11-29."""

    name = "OKX"
    websocket = "wss://ws.okx.com:8443/ws/v5/public"
    rest = "https://www.okx.com"
    ping = "ping"

    def listing_paths(self) -> Sequence[str]:
        return ["/api/v5/public/instruments?instType=SPOT"]

    def symbols(self, body: Any) -> Mapping[str, str]:
        return {
            join_pair(each["baseCcy"], each["quoteCcy"]): each["instId"]
            for each in body["data"]
            if each.get("state", "live") == "live"
        }

    def subscription(self, symbols: Sequence[str]) -> object:
        return {"op": "subscribe", "args": [{"channel": "trades", "instId": symbol} for symbol in symbols]}

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        if "data" not in message or message["arg"]["channel"] != "trades":
            return []
        return [(row["instId"], row) for row in message["data"]]

    def trade(self, row: Any) -> Trade:
        # The ID is that of the last of `count` trades.
        return make_trade(row["tradeId"], row["px"], unix_time(row["ts"], 3), row.get("count", 1))

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        if page is not None and not wants_older(page, gap, _PAGE):
            return None
        end = (None if gap.high is None else gap.high + 1) if page is None else page.oldest.first
        # To OKX, the page after an ID is the one with older trades.
        path = f"/api/v5/market/history-trades?instId={symbol}&type=1&limit={_PAGE}"
        return path + ("" if end is None else f"&after={end}")

    def history_rows(self, body: Any) -> Sequence[Any]:
        if str(body["code"]) != "0":
            raise ValueError("OKX reports an error")
        return list(body["data"])
