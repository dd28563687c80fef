"""Binance: aggregated trades of the market data service, which needs no key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .adapter import Adapter, Gap, Page, Trade, join_pair, make_trade, to_json, unix_time, wants_newer

_PAGE = 1_000


class Binance(Adapter):
    """Documentation: developers.binance.com/docs/binance-spot-api-docs, 2026-11-29."""

    name = "BINANCE"
    websocket = "wss://data-stream.binance.vision/stream"
    rest = "https://data-api.binance.vision"
    oldest_first = True
    # It accepts five messages per second.
    batch = 200
    # It sends only ping frames, and a quiet pair nothing else.
    ping = to_json({"method": "LIST_SUBSCRIPTIONS", "id": 2})

    def listing_paths(self) -> Sequence[str]:
        return ["/api/v3/exchangeInfo?permissions=SPOT&showPermissionSets=false&symbolStatus=TRADING"]

    def symbols(self, body: Any) -> Mapping[str, str]:
        return {
            join_pair(each["baseAsset"], each["quoteAsset"]): each["symbol"]
            for each in body["symbols"]
            if each.get("status") == "TRADING"
        }

    def subscription(self, symbols: Sequence[str]) -> object:
        return {"method": "SUBSCRIBE", "params": [f"{symbol.lower()}@aggTrade" for symbol in symbols], "id": 1}

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        row = message.get("data")
        return [(row["s"], row)] if row and row["e"] == "aggTrade" else []

    def trade(self, row: Any) -> Trade:
        return make_trade(row["a"], row["p"], unix_time(row["T"], 3))

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        if page is not None and not wants_newer(page, gap, _PAGE):
            return None
        first = gap.low if page is None else page.newest.last + 1
        return f"/api/v3/aggTrades?symbol={symbol}&fromId={first}&limit={_PAGE}"
