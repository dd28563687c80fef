"""`ContractFeed`: the tickers of the contracts of one exchange."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ..contracts import months_of, parse_ticker
from ..ticks import format_time
from .feed import Feed


class ContractFeed(Feed):
    """The tickers of all contracts that the exchange lists. They have no history, so that gaps aren't filled."""

    def wanted(self, listed: dict[str, str]) -> dict[str, str]:
        return {symbol: name for name, symbol in listed.items()}

    def affected(self) -> Iterable[str]:
        contracts = frozenset((self.symbols or {}).values())
        return contracts | months_of(contracts)

    def take(self, message: Any) -> bool:
        rows = self.adapter.rows(message)
        for symbol, row in rows:
            if symbol in (self.symbols or ()):
                ticker = parse_ticker(row)
                self.counters.newest = (*format_time(ticker.timestamp / 1_000), time.time())
                self.ready.append(ticker)
                self.is_ready.set()
        return bool(rows)

    def on_connected(self) -> None:
        """What was missed is gone."""
