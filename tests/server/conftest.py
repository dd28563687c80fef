"""Fixtures for the tests of the local server. The peer is the `websockets` sync client: not this package's own."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def data() -> Path:
    """The directory of real ticks; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real ticks: {DATA} is absent")
    return DATA


@pytest.fixture
def make_ticks() -> Callable[..., list[dict[str, str]]]:
    """Ticks of one pair whose prices count from 1, a second apart."""

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
    """Connects to a path of a server, and closes all connections at the end."""
    with contextlib.ExitStack() as stack:

        def call(
            server: Any, path: str = "streaming/demo/BTC:USDC", *, lazy: bool = False, **options: Any
        ) -> ClientConnection:
            settings = {"compression": None, "proxy": None, "close_timeout": 0.2, "ping_interval": None} | options
            if lazy:
                # It reads only when asked to, and the kernel keeps little for it.
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                sock.connect((server.host, server.port))
                settings |= {"sock": sock, "max_queue": 1}
            return stack.enter_context(connect(server.url + path, **settings))

        yield call


@pytest.fixture
def receive() -> Callable[..., list[Any]]:
    """Reads so many messages, decoded."""

    def read(peer: ClientConnection, count: int = 1) -> list[Any]:
        return [json.loads(peer.recv(timeout=20)) for _ in range(count)]

    return read
