"""Kraken: the trade channel of the second WebSocket API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .adapter import Adapter, Gap, Page, Trade, iso_time, join_pair, make_trade, to_json, unix_time, wants_newer

_PAGE = 1_000


class Kraken(Adapter):
    """Documentation: docs.kraken.com/api, 2026-11-29."""

    name = "KRAKEN"
    websocket = "wss://ws.kraken.com/v2"
    rest = "https://api.kraken.com"
    oldest_first = True
    rest_interval = 1.0
    ping = to_json({"method": "ping"})

    def __init__(self, base_url: str | None = None) -> None:
        super().__init__(base_url)
        #: REST has names of its own, such as XBTUSDT for BTC/USDT.
        self._rest_names: dict[str, str] = {}

    def listing_paths(self) -> Sequence[str]:
        return ["/0/public/AssetPairs"]

    def symbols(self, body: Any) -> Mapping[str, str]:
        found = {}
        for each in body["result"].values():
            if "wsname" in each and each.get("status", "online") == "online":
                pair = join_pair(*each["wsname"].split("/"))
                found[pair] = pair.replace(":", "/")
                self._rest_names[found[pair]] = each["altname"]
        return found

    def subscription(self, symbols: Sequence[str]) -> object:
        return {"method": "subscribe", "params": {"channel": "trade", "symbol": list(symbols), "snapshot": True}}

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        return [(row["symbol"], row) for row in message["data"]] if message.get("channel") == "trade" else []

    def is_snapshot(self, message: Any) -> bool:
        return bool(message["type"] == "snapshot")

    def trade(self, row: Any) -> Trade:
        return make_trade(row["trade_id"], row["price"], iso_time(row["timestamp"]))

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        if page is not None and not (wants_newer(page, gap, _PAGE) and page.newest.last > page.oldest.last):
            return None
        # One less, so that trades of the same moment are included.
        since = (gap.after if page is None else page.newest).nanoseconds - 1
        return f"/0/public/Trades?pair={self._rest_names[symbol]}&since={since}&count={_PAGE}"

    def history_rows(self, body: Any) -> Sequence[Any]:
        if body["error"]:
            raise ValueError("Kraken reports an error")
        return [row for name, rows in body["result"].items() if name != "last" for row in rows]

    def history_trade(self, row: Any) -> Trade:
        seconds, _, fraction = str(row[2]).partition(".")
        return make_trade(row[6], row[0], unix_time(seconds + fraction[:6].ljust(6, "0"), 6))
