"""Bitstamp: live trades. A pair's IDs increase, but have holes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .adapter import Adapter, Gap, Page, Trade, join_pair, make_trade, to_json, unix_time

_CHANNEL = "live_trades_"
#: Which windows a REST request can ask for, and up to which age of the gap they are enough, in seconds.
_WINDOWS = (("minute", 50.0), ("hour", 3_500.0), ("day", 86_000.0))


class Bitstamp(Adapter):
    """Documentation: www.bitstamp.net/api and www.bitstamp.net/websocket/v2, 2026-11-29."""

    name = "BITSTAMP"
    websocket = "wss://ws.bitstamp.net/"
    rest = "https://www.bitstamp.net"
    consecutive = False
    ping = to_json({"event": "bts:heartbeat"})
    batch = 1
    reach = 86_400.0

    def listing_paths(self) -> Sequence[str]:
        return ["/api/v2/markets/"]

    def symbols(self, body: Any) -> Mapping[str, str]:
        return {join_pair(*each["name"].split("/")): each["market_symbol"] for each in body}

    def subscription(self, symbols: Sequence[str]) -> object:
        return {"event": "bts:subscribe", "data": {"channel": f"{_CHANNEL}{symbols[0]}"}}

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        is_trade = message.get("event") == "trade"
        return [(message["channel"].removeprefix(_CHANNEL), message["data"])] if is_trade else []

    def trade(self, row: Any) -> Trade:
        return make_trade(row["id"], row["price_str"], unix_time(row["microtimestamp"], 6))

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        window = next((name for name, age in _WINDOWS if seconds < age), "day")
        return f"/api/v2/transactions/{symbol}/?time={window}" if page is None else None

    def history_trade(self, row: Any) -> Trade:
        # Its REST interface has whole seconds only.
        return make_trade(row["tid"], row["price"], unix_time(row["date"], 0))

    def problem(self, message: Any) -> str | None:
        if message.get("event") == "bts:request_reconnect":
            return "asked for a new connection"
        return super().problem(message)
