"""Fixtures for the tests of function calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from finx_streamer import FunctionClient
from tests.support.calls import ClientFactory, threads_of, wait_until
from tests.support.peers import PATIENCE, QUICK, Peer


@pytest.fixture
def make_client() -> Iterator[ClientFactory]:
    """Creates clients. Closes them at the end, and checks that no thread is left."""
    clients: list[FunctionClient] = []

    def make(peer: Peer, **settings: Any) -> FunctionClient:
        defaults = {"api_key": "demo", "endpoint": peer.url, "timeout": PATIENCE, "reconnect": QUICK}
        clients.append(FunctionClient(**{**defaults, "name": f"client-of-a-test-{len(clients)}", **settings}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    wait_until(lambda: not threads_of("client-of-a-test"))
