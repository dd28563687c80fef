"""Live sources: markets that send ticks as they occur."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from finx_streamer.server import LocalServer, Outlet, Tick
from tests.support.raw_client import TIMEOUT

Dial = Callable[..., ClientConnection]


def tick(price: int, pair: str = "BTC:USDC") -> Tick:
    return {"pair": pair, "date": "2026-11-29", "time": "08:00:00.000Z", "exchange": "MINE", "price": str(price)}


class Market:
    """Runs a function of the test when the test says so."""

    pairs = frozenset({"BTC:USDC", "ETH:USDC"})

    def __init__(self, run: Callable[[Outlet], Awaitable[None]]) -> None:
        self._run = run
        self.begin = asyncio.Event()

    async def run(self, outlet: Outlet) -> None:
        await self.begin.wait()
        await self._run(outlet)


def begin(server: LocalServer, market: Market) -> None:
    server.wait_connected()
    server._thread.call(lambda service: market.begin.set())


def received(peer: ClientConnection) -> Any:
    return json.loads(peer.recv(timeout=TIMEOUT))


def test_its_ticks_are_sent_and_stored(dial: Dial) -> None:
    """In the order in which it publishes them, and more at once than the store has room for."""

    async def run(outlet: Outlet) -> None:
        await outlet.publish([tick(price) for price in range(1_000)])
        await outlet.publish([tick(1_000)])

    market = Market(run)
    with LocalServer(market, store_batch=64) as server:
        peer = dial(server)
        begin(server, market)
        assert [received(peer)["resultData"]["price"] for _ in range(1_001)] == list(map(str, range(1_001)))
        server.wait_finished()
        assert server.wait_until(lambda stats: stats.ticks_stored == 1_001).ticks_played == 1_001


def test_a_notice_reaches_the_subscribers_of_its_pairs(dial: Dial) -> None:
    async def run(outlet: Outlet) -> None:
        outlet.notify(["BTC:USDC"], {"notice": "exchange away", "source": "MINE"})
        await outlet.publish([tick(1), tick(2, "ETH:USDC")])

    market = Market(run)
    with LocalServer(market) as server:
        affected, other = dial(server), dial(server, "streaming/demo/ETH:USDC")
        server.wait_connected(2)
        begin(server, market)
        assert received(affected) == {"notice": "exchange away", "source": "MINE", "pair": "BTC:USDC"}
        assert received(affected)["resultData"]["price"] == "1"
        assert received(other)["resultData"]["price"] == "2"


def test_an_error_ends_the_source_and_not_the_server(dial: Dial) -> None:
    async def run(outlet: Outlet) -> None:
        raise ValueError("broken")

    market = Market(run)
    with LocalServer(market) as server:
        dial(server)
        begin(server, market)
        with pytest.raises(ValueError, match="broken"):
            server.wait_finished()
        assert server.running


def test_the_end_of_the_server_ends_the_source() -> None:
    """It may have to close connections first."""
    ended: list[bool] = []

    async def run(outlet: Outlet) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    market = Market(run)
    market.begin.set()
    with LocalServer(market) as server:
        server.wait_until(lambda stats: stats.started)
    assert ended == [True]
