"""The answers to browsers and probes. They take part in nothing that clients see."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.server.ticks import Tick
from tests.support.raw_client import TIMEOUT
from tests.support.tls import client_context, server_context


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A server without ticks."""
    with LocalServer(SimulatedMarket(limit=0), keys={"demo"}) as running:
        yield running


def ask(
    server: LocalServer, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """Send a request, and return the status, the headers and the body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/health", "/health?from=probe"])
def test_health(server: LocalServer, path: str) -> None:
    """It is JSON, and not to be cached."""
    status, headers, body = ask(server, path)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert json.loads(body) == {"status": "ok", "store": "ok", "source": "ok"}


def test_health_without_a_store(tmp_path: Path) -> None:
    """While the store has failed, the answer is 503, without the reason."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with LocalServer(SimulatedMarket(limit=0), store=folder / "ticks.db") as server:
        away = folder.rename(tmp_path / "away")
        server.wait_until(lambda stats: stats.store_error is not None)
        status, _, body = ask(server, "/health")
        assert (status, json.loads(body)) == (503, {"status": "failed", "store": "failed", "source": "ok"})
        away.rename(folder)
        server.wait_until(lambda stats: stats.store_error is None)
        assert ask(server, "/health")[0] == 200


class BrokenSource:
    """A source that fails at once."""

    pairs = frozenset({"BTC:USDC"})
    wait_for = 0
    paced = True

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """Fail."""
        raise OSError("secret reason")
        yield


def test_health_without_a_source() -> None:
    """When the source has failed, the answer is 503, without the reason."""
    with LocalServer(BrokenSource()) as server:
        server.wait_until(lambda stats: stats.finished)
        status, _, body = ask(server, "/health")
    assert (status, json.loads(body)) == (503, {"status": "failed", "store": "ok", "source": "failed"})


def test_the_page_says_what_this_is(server: LocalServer) -> None:
    """It has the address that the browser used, in safe HTML, and names no pair of the market."""
    status, headers, body = ask(server, "/", Host='a"><script>:1')
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "This is a local FinX server" in body
    assert "--endpoint ws://a&quot;&gt;&lt;script&gt;:1/" in body
    assert "ETH:" not in body


@pytest.mark.parametrize("path", ["/", "/health", "/streaming/demo/BTC:USDC", "/*"])
@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS"])
def test_other_methods_get_405(server: LocalServer, path: str, method: str) -> None:
    """Every path gets the same answer."""
    status, headers, _ = ask(server, path, method)
    assert (status, headers["Allow"]) == (405, "GET")


def test_a_long_body_does_not_cost_the_answer(server: LocalServer) -> None:
    """The server reads it to its end."""
    assert ask(server, "/health", "POST", bytes(3_000_000))[0] == 405


def test_a_method_in_pieces_gets_405(server: LocalServer) -> None:
    """The pieces of TCP don't matter."""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"P", b"OS", b"T / HTTP/1.1\r\n\r\n"):
            peer.sendall(piece)
        assert peer.recv(4_096).startswith(b"HTTP/1.1 405 ")


def test_other_methods_get_405_over_tls() -> None:
    """Also where the server can't close one direction."""
    authority = trustme.CA()
    context = server_context(authority.issue_cert("127.0.0.1"))
    with LocalServer(SimulatedMarket(limit=0), ssl_context=context) as server:
        client = client_context(authority)
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=TIMEOUT, context=client)
        connection.request("POST", "/health", b"body")
        assert connection.getresponse().status == 405
        connection.close()


def test_probes_use_up_no_fault_and_count_nothing(
    server: LocalServer, dial: Callable[..., ClientConnection], caplog: pytest.LogCaptureFixture
) -> None:
    """Faults wait for clients. The log has no line, not even for a probe that says nothing."""
    caplog.set_level(logging.INFO)
    server.refuse_next(1, 418)
    server.stall_next(1)
    before = server.stats
    for path, method in (("/", "GET"), ("/health", "GET"), ("/health", "POST")):
        assert ask(server, path, method)[0] in {200, 405}
    for sent in (b"", b"SSH-2.0-x\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as peer:
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            peer.recv(4_096)
    assert server.stats == before
    assert caplog.messages == []
    server.stall_next(0)
    with pytest.raises(InvalidStatus) as refused:
        dial(server)
    assert refused.value.response.status_code == 418


@pytest.mark.parametrize("path", ["", "health"])
def test_a_client_gets_no_page(server: LocalServer, dial: Callable[..., Any], path: str) -> None:
    """A WebSocket handshake is refused as before, and counted."""
    with pytest.raises(InvalidStatus) as refused:
        dial(server, path)
    assert refused.value.response.status_code == 404
    assert server.stats.refused == 1
