"""The server over TLS."""

from __future__ import annotations

import contextlib
import ssl

import pytest
import trustme
from websockets.exceptions import WebSocketException

from finx_streamer.server import LocalServer, Tape
from tests.support.raw_client import open_socket
from tests.support.tls import peer_context, server_context


@pytest.fixture(scope="module")
def authority():
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture
def contexts(authority):
    """SSL contexts of a server and a client that trust each other."""
    return server_context(authority.issue_cert("127.0.0.1")), peer_context(authority)


def test_streams_over_tls(make_ticks, dial, receive, contexts):
    """With an SSL context, the URL is wss:// and clients can verify the certificate."""
    with LocalServer(Tape(make_ticks(2_000), speed=None), ssl_context=contexts[0]) as server:
        assert server.url == f"wss://127.0.0.1:{server.port}/"
        with pytest.raises(ssl.SSLCertVerificationError):
            dial(server)
        assert len(receive(dial(server, ssl=contexts[1]), 2_000)) == 2_000


def test_faults_over_tls(make_ticks, dial, close_frame_of, contexts):
    """Dropping, closing and silence work over TLS."""
    with LocalServer(Tape(make_ticks(1), wait_for=9), ssl_context=contexts[0]) as server:
        peer = dial(server, ssl=contexts[1])
        server.go_silent()
        pong = peer.ping()
        assert not pong.wait(0.1)
        server.resume()
        assert pong.wait(10)
        server.drop_connections()
        assert close_frame_of(peer) is None
        peer = dial(server, ssl=contexts[1])
        server.close_connections(1012)
        assert close_frame_of(peer).code == 1012


def test_an_endless_tls_handshake_is_ended(make_ticks, contexts):
    """A client that connects and sends nothing is disconnected after `open_timeout`, before TLS as well as after it."""
    with LocalServer(Tape(make_ticks(1)), ssl_context=contexts[0], open_timeout=0.2) as server:
        for secure in (False, True):
            with open_socket(server) as plain, contextlib.ExitStack() as stack:
                sock = plain
                if secure:
                    sock = stack.enter_context(contexts[1].wrap_socket(plain, server_hostname="127.0.0.1"))
                with contextlib.suppress(OSError):
                    assert sock.recv(1) == b""


def test_survives_a_plain_text_client(make_ticks, dial, contexts):
    """A client without TLS fails, and others are served."""
    with LocalServer(Tape(make_ticks(1)), ssl_context=contexts[0]) as server:
        plain = type("Plain", (), {"url": server.url.replace("wss", "ws")})
        with pytest.raises((WebSocketException, OSError)):
            dial(plain)
        assert dial(server, ssl=contexts[1]).ping().wait(10)
