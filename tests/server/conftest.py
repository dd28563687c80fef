"""Fixtures for the tests of the local server. Its peer is the sync client of `websockets`, not this package's own."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.raw_client import TIMEOUT


@pytest.fixture
def market() -> SimulatedMarket:
    """A market with 100 ticks per second of BTC:USDC."""
    return SimulatedMarket(["BTC:USDC"], rate=100.0, seed=1)


@pytest.fixture
def make_ticks() -> Callable[..., list[dict[str, str]]]:
    """Creates ticks of one pair, one second apart, whose prices count from 1."""

    def make(count: int, pair: str = "BTC:USDC", exchange: str = "BINANCE") -> list[dict[str, str]]:
        return [
            {
                "pair": pair,
                "date": "2022-07-02",
                "time": f"15:{number // 60 % 60:02}:{number % 60:02}.817Z",
                "exchange": exchange,
                "price": str(number + 1),
            }
            for number in range(count)
        ]

    return make


@pytest.fixture
def dial() -> Iterator[Callable[..., ClientConnection]]:
    """Connects to a path of a server. All connections are closed at the end of the test.

    A lazy peer reads only when asked to, and its kernel buffers little.
    """
    with contextlib.ExitStack() as stack:

        def dial(
            server: LocalServer, path: str = "streaming/demo/BTC:USDC", *, lazy: bool = False, **options: Any
        ) -> ClientConnection:
            settings = {"compression": None, "proxy": None, "close_timeout": 0.2, "ping_interval": None} | options
            if lazy:
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                sock.connect((server.host, server.port))
                settings |= {"sock": sock, "max_queue": 1}
            return stack.enter_context(connect(server.url + path, **settings))

        yield dial


@pytest.fixture
def receive() -> Callable[..., list[Any]]:
    """Receives a number of messages and decodes them."""

    def receive(peer: ClientConnection, count: int = 1) -> list[Any]:
        return [json.loads(peer.recv(timeout=TIMEOUT)) for _ in range(count)]

    return receive


@pytest.fixture
def close_frame_of() -> Callable[[ClientConnection], Any]:
    """Waits for the end of a connection and returns its close frame; `None` if it ended without one."""

    def close_frame_of(peer: ClientConnection) -> Any:
        try:
            while True:
                peer.recv(timeout=TIMEOUT)
        except ConnectionClosed as closed:
            return closed.rcvd

    return close_frame_of
