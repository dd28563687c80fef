"""`PublishedMarket`: a live source whose ticks also go elsewhere, such as to NATS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from .contracts import ContractTicker, Played
from .protocol import OPTIONS_EXCHANGE
from .source import LiveSource, Outlet, exchange_stats
from .stats import ExchangeStats
from .ticks import Tick


class Publishing(Protocol):
    """Where the ticks go, too."""

    async def publish_tick(self, tick: Mapping[str, str], trade: str | None) -> None:
        """Publish a tick. `trade` is the exchange's own ID. Waits for room."""

    async def publish_contract(self, instrument: str, values: Mapping[str, Any], exchange: str) -> None:
        """Publish a contract's ticker. Waits for room."""


class PublishedMarket:
    """A live source that is also published. While that has no room, the source waits.

    Args:
        source: The source. If it has an attribute `sends_trade_ids`, that is set.
        publishing: Where the ticks go, too.
    """

    def __init__(self, source: LiveSource, publishing: Publishing) -> None:
        self._source, self._publishing = source, publishing
        if hasattr(source, "sends_trade_ids"):
            source.sends_trade_ids = True

    @property
    def pairs(self) -> frozenset[str]:
        return self._source.pairs

    @property
    def contracts(self) -> frozenset[str]:
        return getattr(self._source, "contracts", frozenset())

    @property
    def exchange_stats(self) -> Mapping[str, ExchangeStats]:
        return exchange_stats(self._source)

    async def run(self, outlet: Outlet) -> None:
        """Send the market, and publish it. See `LiveSource.run`."""
        await self._source.run(_Both(outlet, self._publishing))


class _Both:
    """An outlet that also publishes."""

    def __init__(self, outlet: Outlet, publishing: Publishing) -> None:
        self._outlet, self._publishing = outlet, publishing
        self.notify = outlet.notify

    async def publish(self, played: Sequence[Played]) -> None:
        # The IDs are only for publishing: clients don't get them.
        trades = [None if isinstance(each, ContractTicker) else each.get("trade") for each in played]
        if any(trades):
            played = [_without_trade(each) for each in played]
        await self._outlet.publish(played)
        publishing = self._publishing
        for each, trade in zip(played, trades, strict=True):
            if isinstance(each, ContractTicker):
                await publishing.publish_contract(each.instrument.name, each.values, OPTIONS_EXCHANGE)
            else:
                await publishing.publish_tick(cast("Mapping[str, str]", each), trade)


def _without_trade(played: Played) -> Played:
    if isinstance(played, ContractTicker) or "trade" not in played:
        return played
    tick: Any = {name: value for name, value in played.items() if name != "trade"}
    return cast("Tick", tick)
