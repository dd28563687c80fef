"""Deribit: the tickers of options, futures and perpetuals, every 100 ms, which need no login."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import ConfigurationError
from ..contracts import parse_instrument
from .adapter import Adapter, to_json


def request(method: str, **params: object) -> object:
    """A request of the JSON-RPC interface."""
    return {"jsonrpc": "2.0", "id": 1, "method": f"public/{method}", "params": params}


class Deribit(Adapter):
    """Documentation: docs.deribit.com, 2026-11-29."""

    name = "DERIBIT"
    websocket = "wss://www.deribit.com/ws/api/v2"
    rest = "https://www.deribit.com"
    ping = to_json(request("test"))
    relist_seconds = 300.0

    def __init__(self, base_url: str | None = None, currencies: Sequence[str] = ()) -> None:
        super().__init__(base_url)
        self._currencies = currencies

    def listing_paths(self) -> Sequence[str]:
        return [f"/api/v2/public/get_instruments?currency={each}&expired=false" for each in self._currencies]

    def symbols(self, body: Any) -> Mapping[str, str]:
        names = (each["instrument_name"] for each in body["result"])
        return {name: name for name in names if self._is_ours(name)}

    def _is_ours(self, name: str) -> bool:
        """Whether this is a contract. Combinations aren't."""
        try:
            return parse_instrument(name).base in self._currencies
        except ConfigurationError:
            return False

    def subscription(self, symbols: Sequence[str]) -> object:
        return request("subscribe", channels=[f"ticker.{symbol}.100ms" for symbol in symbols])

    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        if message.get("method") != "subscription":
            return []
        return [(message["params"]["data"]["instrument_name"], message)]
