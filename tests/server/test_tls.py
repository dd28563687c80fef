"""The server over TLS."""

from __future__ import annotations

import ssl

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, WebSocketException

from finx_streamer.server import LocalServer, Tape


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def contexts(authority):
    """A server's and a client's context that trust each other."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_ticks_over_tls(make_ticks, dial, receive, contexts):
    """With a context the URL is wss:// and the certificate is checked."""
    with LocalServer(Tape(make_ticks(2_000), speed=None), ssl_context=contexts[0]) as server:
        assert f"wss://127.0.0.1:{server.port}/" == server.url
        with pytest.raises(ssl.SSLCertVerificationError):
            dial(server)
        assert len(receive(dial(server, ssl=contexts[1]), 2_000)) == 2_000


def test_faults_over_tls(make_ticks, dial, contexts):
    """Dropping, closing and silence work as without."""
    with LocalServer(Tape(make_ticks(1), wait_for=9), ssl_context=contexts[0]) as server:
        peer = dial(server, ssl=contexts[1])
        server.go_silent()
        pong = peer.ping()
        assert not pong.wait(0.3)
        server.resume()
        assert pong.wait(10)
        server.drop_connections()
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv(timeout=10)
        assert caught.value.rcvd is None
        peer = dial(server, ssl=contexts[1])
        server.close_connections(1012)
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv(timeout=10)
        assert caught.value.rcvd.code == 1012


def test_plain_text_is_no_tls(make_ticks, dial, contexts):
    """A plain client gets nowhere, and the server serves on."""
    with LocalServer(Tape(make_ticks(1)), ssl_context=contexts[0]) as server:
        plain = type("Plain", (), {"url": server.url.replace("wss", "ws")})
        with pytest.raises((WebSocketException, OSError)):
            dial(plain)
        assert dial(server, ssl=contexts[1]).ping().wait(10)
