"""Coinbase Exchange: the matches channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .adapter import Adapter, Gap, Page, Trade, iso_time, join_pair, make_trade, wants_older

_PAGE = 1_000


class Coinbase(Adapter):
    """Documentation: docs.cdp.coinbase.com/exchange, 2026-11-29."""

    name = "COINBASE"
    websocket = "wss://ws-feed.exchange.coinbase.com/"
    rest = "https://api.exchange.coinbase.com"

    def listing_paths(self) -> Sequence[str]:
        return ["/products"]

    def symbols(self, body: Any) -> Mapping[str, str]:
        return {
            join_pair(each["base_currency"], each["quote_currency"]): each["id"]
            for each in body
            if each.get("status", "online") == "online"
        }

    def subscription(self, symbols: Sequence[str]) -> object:
        # A heartbeat per product and second, so that a quiet product isn't silent.
        return {"type": "subscribe", "product_ids": list(symbols), "channels": ["matches", "heartbeat"]}

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        return [(message["product_id"], message)] if message.get("type") in ("match", "last_match") else []

    def is_snapshot(self, message: Any) -> bool:
        return bool(message["type"] == "last_match")

    def trade(self, row: Any) -> Trade:
        return make_trade(row["trade_id"], row["price"], iso_time(row["time"]))

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        if page is not None and not wants_older(page, gap, _PAGE):
            return None
        end = (None if gap.high is None else gap.high + 1) if page is None else page.oldest.first
        # To Coinbase, the page after is the one with older trades.
        return f"/products/{symbol}/trades?limit={_PAGE}" + ("" if end is None else f"&after={end}")
