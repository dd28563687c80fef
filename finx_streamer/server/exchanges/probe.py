"""`probe`: try one exchange as `ExchangeMarket` would use it, and say what was found."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from ..contracts import Played
from . import find_adapters
from .counters import Counters
from .market import EXCHANGES, ExchangeMarket
from .trades import TradeFeed


@attrs.define
class Finding:
    """What is known about an exchange.

    Attributes:
        listed (frozenset[str] | None): Which of the pairs it lists. None if there was no listing.
        listing_ms (float | None): How long the listing took, in milliseconds.
        open_ms (float | None): How long it took to connect and to receive the first message.
        trade_ms (float | None): How long it took from then until the first new trade.
        lag (float | None): Seconds from that trade's own time to its arrival.
        error (str | None): Why a step failed.
    """

    listed: frozenset[str] | None = None
    listing_ms: float | None = None
    open_ms: float | None = None
    trade_ms: float | None = None
    lag: float | None = None
    error: str | None = None


class _Outlet:
    """Notes the first trades, and the first failure."""

    def __init__(self) -> None:
        self.traded, self.failed = asyncio.Event(), asyncio.Event()

    async def publish(self, played: Sequence[Played]) -> None:
        if played:
            self.traded.set()

    def notify(self, pairs: Iterable[str], notice: Mapping[str, Any]) -> None:
        if notice.get("notice") == "exchange away":
            self.failed.set()


def checked(
    pairs: Iterable[str], exchanges: Iterable[str] | None, base_urls: Mapping[str, str] | None
) -> tuple[tuple[str, ...], tuple[str, ...], Mapping[str, str]]:
    """Return the names of the exchanges, the pairs and the base URLs. Raises as `ExchangeMarket` does."""
    market = ExchangeMarket(pairs, EXCHANGES if exchanges is None else exchanges, base_urls=base_urls)
    return tuple(market.exchange_stats), tuple(sorted(market.pairs)), base_urls or {}


async def probe(name: str, pairs: Iterable[str], base_url: str | None, limit: float) -> Finding:
    """Try an exchange: its listing, its connection, its first trade. No step takes more than `limit` seconds."""
    finding, loop = Finding(), asyncio.get_running_loop()
    outlet, listed, counters = _Outlet(), asyncio.Event(), Counters()
    feed = TradeFeed(
        find_adapters()[name](base_url), counters, ssl.create_default_context(), listed.set, pairs, fill_seconds=limit
    )
    task = loop.create_task(feed.run(outlet))
    try:
        for step, event in (("listing", listed), ("open", feed.is_connected), ("trade", outlet.traded)):
            began = loop.time()
            if not await _wait_for_either(event, outlet.failed, limit):
                # A quiet pair isn't a failure.
                if step != "trade" or outlet.failed.is_set():
                    finding.error = counters.error or f"no answer within {limit:g} s"
                break
            setattr(finding, f"{step}_ms", (loop.time() - began) * 1_000)
            finding.listed = frozenset((feed.symbols or {}).values())
            if not finding.listed:
                break
        if finding.trade_ms is not None:
            finding.lag = counters.snapshot().lag
    finally:
        task.cancel()
        await asyncio.wait([task])
    return finding


async def _wait_for_either(event: asyncio.Event, failure: asyncio.Event, limit: float) -> bool:
    """Wait until one of two events is set. Returns whether it is the first one."""
    waits = [asyncio.ensure_future(each.wait()) for each in (event, failure)]
    await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return event.is_set()
