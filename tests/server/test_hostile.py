"""Hostile clients: they affect no one else, and everything has a limit."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websocket
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.server.service import MESSAGE_LIMIT
from tests.support.effort import examples
from tests.support.raw_client import (
    TIMEOUT,
    close_socket,
    handshake,
    masked_frame,
    open_socket,
    open_websocket,
    read_all,
)

# All of these tests use one server, whose log is checked at the end.
pytestmark = pytest.mark.xdist_group("hostile")

Dial = Callable[..., ClientConnection]


@pytest.fixture(scope="module")
def target() -> Iterator[LocalServer]:
    """A server for many tests. At the end, checks that its log has no key and no failure."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    # websockets logs "unexpected internal error" for a client that leaves while it is refused.
    handler.addFilter(lambda record: record.name != "finx_streamer.server.wire")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    ours = logging.getLogger("finx_streamer")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    try:
        with LocalServer(SimulatedMarket(["BTC:USDC"], rate=100.0, seed=1), keys={"secret-key-1"}) as server:
            yield server
            # A record that proves that the log was captured.
            with open_socket(server) as sock:
                sock.sendall(handshake("/"))
                read_all(sock)
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
    assert "handshake refused" in logged.getvalue()
    assert "secret" not in logged.getvalue()
    assert "the server failed" not in logged.getvalue()
    assert "Traceback" not in logged.getvalue(), logged.getvalue()[:2_000]


def assert_serves(server: LocalServer) -> None:
    """Check that a normal client is served."""
    with connect(server.url + "streamer/secret-key-1", compression=None, proxy=None) as peer:
        peer.send('{"functionName":"authenticate","APIKey":"secret-key-1"}')
        assert json.loads(peer.recv(timeout=TIMEOUT)) == {"isAuth": True}
    with connect(server.url + "streaming/secret-key-1/BTC:USDC", compression=None, proxy=None) as peer:
        assert "resultData" in json.loads(peer.recv(timeout=TIMEOUT))


FUZZ = examples(120, suppress_health_check=[HealthCheck.function_scoped_fixture])
line = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"GET /streamer/secret-key-1 HTTP/1.1",
        b"Upgrade: websocket",
        b"Host: x",
        b"",
        b"\0",
        b"A: " * 99,
    ]
) | st.binary(max_size=60)
frames = st.builds(
    masked_frame,
    st.integers(0, 15),
    st.binary(max_size=200) | st.sampled_from([b'{"functionName":"keepAlive","APIKey":"secret-key-1"}', b"[" * 9_999]),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 7]),
    announced=st.none() | st.sampled_from([0, 125, 126, 65_536, 1 << 40, (1 << 63) - 1]),
)


@given(sent=st.binary(max_size=300) | st.lists(line, max_size=30).map(b"\r\n".join), reset=st.booleans())
@FUZZ
def test_any_bytes_instead_of_a_handshake(target: LocalServer, sent: bytes, reset: bool) -> None:
    """Any bytes in place of a request harm no one."""
    sock = open_socket(target)
    with contextlib.suppress(OSError):
        sock.sendall(sent)
    close_socket(sock, reset=reset)
    assert target.running


@given(
    sent=st.lists(frames | st.binary(max_size=100), max_size=8),
    path=st.sampled_from(["/streamer/secret-key-1", "/streaming/secret-key-1/BTC:USDC"]),
    reset=st.booleans(),
)
@FUZZ
def test_any_frames_after_the_handshake(target: LocalServer, sent: list[bytes], path: str, reset: bool) -> None:
    """Any bytes after the handshake affect only this client."""
    sock = open_websocket(target, path)
    with contextlib.suppress(OSError):
        for data in sent:
            sock.sendall(data)
    close_socket(sock, reset=reset)
    assert target.running


def test_serves_after_hostile_clients(target: LocalServer) -> None:
    """After all that, the server works and no connection is left."""
    for path in ("/streaming/secret-key-1/BTC:USDC\0", "/streaming/secret-key-1/BTC:USDC HTTP/1.1\r\nX"):
        with contextlib.suppress(OSError), open_socket(target) as sock:
            sock.sendall(handshake(path))
            sock.recv(1_000)
    assert_serves(target)
    target.wait_until(lambda stats: stats.connections == 0)
    assert not target.stats.finished


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (handshake("/" + "x" * 2_048), b"414"),
        (handshake("/streaming/wrong/BTC:USDC"), b"401"),
        (handshake("/", headers="X: " + "y" * 100_000 + "\r\n"), b"400"),
        (handshake("/", headers="".join(f"X-{n}: y\r\n" for n in range(1_000))), b"400"),
    ],
    ids=["path", "key", "header", "headers"],
)
def test_limits_requests(target: LocalServer, sent: bytes, status: bytes) -> None:
    """Long paths and headers are refused or end the connection, without a delay."""
    with open_socket(target) as sock:
        answer = b""
        with contextlib.suppress(OSError):
            sock.sendall(sent)
            while data := sock.recv(65_536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 " + status) or (status == b"400" and b"101" not in answer[:20])
    assert_serves(target)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "evil.example:8765"])
def test_refuses_web_pages_of_other_hosts(market: SimulatedMarket, host: str) -> None:
    """A web page of another host learns nothing, not even about the key, and uses up no fault."""
    with LocalServer(market, keys={"secret-key-1"}) as server:
        server.refuse_next(1, 503)
        for key in ("secret-key-1", "wrong"):
            with open_socket(server) as sock:
                origin = "Origin: http://evil.example:8765\r\n"
                sock.sendall(handshake(f"/streaming/{key}/BTC:USDC", host=host, headers=origin))
                answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"the Origin header names another host" in answer
        with pytest.raises(InvalidStatus, match="503"):
            connect(server.url + "streamer/secret-key-1", proxy=None)
        assert server.stats.refused == 3


def test_accepts_programs_with_an_origin(target: LocalServer) -> None:
    """`websocket-client` names the server in its Origin header, unless suppressed."""
    for more in ({}, {"suppress_origin": True}):
        peer = websocket.create_connection(target.url + "streaming/secret-key-1/BTC:USDC", timeout=TIMEOUT, **more)
        try:
            assert "resultData" in json.loads(peer.recv())
        finally:
            peer.close()


def test_slow_handshake_is_ended(market: SimulatedMarket) -> None:
    """A request sent byte by byte must be complete within `open_timeout`."""
    with LocalServer(market, keys={"secret-key-1"}, open_timeout=0.3) as server, open_socket(server) as sock:
        sock.settimeout(0.02)
        ended = False
        for byte in handshake("/streamer/secret-key-1" + "y" * 1_000):
            try:
                sock.sendall(bytes([byte]))
                ended = sock.recv(1_000) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
        assert ended
        assert_serves(server)


def test_refuses_large_messages_early(target: LocalServer) -> None:
    """Announced lengths and fragments beyond the limit are answered with 1009."""
    half = MESSAGE_LIMIT // 2 + 1
    for sent in (
        masked_frame(1, b"x", announced=1 << 40),
        masked_frame(1, b"x" * half, fin=False) + masked_frame(0, b"x" * half, fin=False),
    ):
        with open_websocket(target, "/streamer/secret-key-1") as sock:
            sock.sendall(sent)
            answer = b""
            with contextlib.suppress(OSError):
                while data := sock.recv(4_096):
                    answer += data
            assert answer[:1] == b"\x88"
            assert answer[2:4] == struct.pack("!H", 1009)
    assert_serves(target)


def test_limits_connections_per_key(market: SimulatedMarket, dial: Dial) -> None:
    """Beyond the limit, a key gets 429 everywhere until one of its clients leaves, and other keys don't."""
    with LocalServer(market, keys={"one", "two"}, max_connections_per_key=2) as server:
        first = dial(server, "streaming/one/BTC:USDC")
        dial(server, "streamer/one")
        for path in ("streaming/one/BTC:USDC", "streamer/one"):
            with pytest.raises(InvalidStatus) as caught:
                dial(server, path)
            assert (caught.value.response.status_code, caught.value.response.headers["Retry-After"]) == (429, "1")
            assert b"with this key" in caught.value.response.body
            assert b"one" not in caught.value.response.body
        dial(server, "streamer/two")
        first.close()
        server.wait_until(lambda stats: stats.connections == 2)
        dial(server, "streamer/one")


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("max_connections", b"too many connections to this server; the limit is 2"),
        ("max_connections_per_key", b"too many connections with this key; the limit is 2"),
        ("max_connections_per_address", b"too many connections from this address; the limit is 2"),
    ],
)
def test_says_which_limit_is_reached(market: SimulatedMarket, dial: Dial, limit: str, says: bytes) -> None:
    """A place is free again when a client leaves."""
    with LocalServer(market, keys={"one"}, **{limit: 2}) as server:
        first = dial(server, "streamer/one")
        dial(server, "streaming/one/BTC:USDC")
        with pytest.raises(InvalidStatus) as caught:
            dial(server, "streamer/one")
        assert (caught.value.response.status_code, says in caught.value.response.body) == (429, True)
        first.close()
        server.wait_until(lambda stats: stats.connections == 1)
        dial(server, "streamer/one")


def test_limits_connections_per_address(market: SimulatedMarket) -> None:
    """Clients of other addresses have their own places, with the same key. An IPv4 client is one on any socket."""

    def status_of(address: str, host: str = "127.0.0.1") -> int:
        sock = socket.create_connection((host, server.port), timeout=TIMEOUT, source_address=(address, 0))
        sockets.append(sock)
        sock.sendall(handshake("/streamer/one"))
        return int(sock.recv(4_096).split()[1])

    sockets: list[socket.socket] = []
    with pytest.warns(RuntimeWarning, match="other machines"):
        server = LocalServer(market, keys={"one"}, host="::", max_connections_per_address=2).start()
    with server, contextlib.ExitStack() as stack:
        statuses = [status_of(address) for address in ("127.0.0.1",) * 3 + ("127.0.0.2",) * 3]
        for sock in sockets:
            stack.callback(sock.close)
    assert statuses == [101, 101, 429] * 2


def test_open_handshakes_of_an_address_are_limited(market: SimulatedMarket) -> None:
    """A client that opens connections and sends nothing leaves room for others."""
    with (
        LocalServer(market, keys={"one"}, max_connections_per_address=1) as server,
        contextlib.ExitStack() as stack,
    ):
        sockets = [stack.enter_context(open_socket(server)) for _ in range(80)]
        ended = 0
        for sock in sockets[66:]:
            with contextlib.suppress(OSError):
                assert sock.recv(1) == b""
            ended += 1
        with socket.create_connection(
            (server.host, server.port), timeout=TIMEOUT, source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(handshake("/streamer/one"))
            assert other.recv(12) == b"HTTP/1.1 101"
        sockets[0].sendall(handshake("/streamer/one"))
        assert sockets[0].recv(12) == b"HTTP/1.1 101"
    assert ended == 14


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_key", "max_connections_per_address"])
def test_simultaneous_handshakes_respect_the_limits(market: SimulatedMarket, limit: str) -> None:
    """The limits hold for simultaneous handshakes."""
    admitted = 0
    lock = threading.Lock()
    ready, done = threading.Barrier(20), threading.Barrier(20)

    with LocalServer(market, keys={"one"}, **{limit: 3}) as server:

        def connect_and_count() -> None:
            nonlocal admitted
            with open_socket(server) as sock:
                ready.wait(TIMEOUT)
                sock.sendall(handshake("/streamer/one"))
                status = sock.recv(12)
                with lock:
                    admitted += status == b"HTTP/1.1 101"
                done.wait(TIMEOUT)

        threads = [threading.Thread(target=connect_and_count) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
    assert admitted == 3


def test_abandoned_handshakes_free_their_place(market: SimulatedMarket, dial: Dial) -> None:
    """A client that leaves during its handshake isn't counted forever."""
    with LocalServer(market, keys={"one"}, max_connections_per_key=1) as server:
        for _ in range(20):
            sock = open_socket(server)
            sock.sendall(handshake("/streamer/one"))
            close_socket(sock, reset=True)
        for _ in range(int(TIMEOUT / 0.01)):
            try:
                dial(server, "streamer/one")
                break
            except (InvalidStatus, ConnectionClosed):
                time.sleep(0.01)  # The server may not have noticed the last one yet.
        else:
            pytest.fail("the places were not freed")


def test_disconnects_idle_and_silent_clients(market: SimulatedMarket) -> None:
    """Clients without pongs end after `ping_timeout`, and clients without keepAlive after `idle_limit`."""
    with (
        LocalServer(market, keys={"one"}, ping_interval=0.1, ping_timeout=0.2, close_timeout=0.2) as server,
        open_websocket(server, "/streamer/one"),
    ):
        server.wait_until(lambda stats: stats.connections_total == 1 and stats.connections == 0)
    with (
        LocalServer(market, keys={"one"}, idle_limit=0.3, close_timeout=0.2) as server,
        open_websocket(server, "/streamer/one") as sock,
    ):
        with contextlib.suppress(OSError):
            for _ in range(int(TIMEOUT / 0.02)):
                sock.sendall(masked_frame(9, b"noise") + masked_frame(1, b"{}"))
                if server.stats.connections_total and not server.stats.connections:
                    break
                time.sleep(0.02)  # Without a pause, the noise would fill its own buffers.
        server.wait_until(lambda stats: stats.connections_total == 1 and stats.connections == 0)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_hostile_clients_leak_no_descriptors(target: LocalServer) -> None:
    """Failed connections leak no file descriptor."""

    def connect_badly(count: int) -> int:
        for number in range(count):
            sock = open_socket(target)
            if number % 2:
                sock.sendall(b"nonsense\r\n\r\n")
            close_socket(sock, reset=bool(number % 3))
        assert_serves(target)
        target.wait_until(lambda stats: stats.connections == 0)
        return len(os.listdir("/proc/self/fd"))

    connect_badly(50)
    before = connect_badly(50)
    fds: Any = None
    for _ in range(int(TIMEOUT)):
        fds = connect_badly(100)
        if fds <= before + 2:
            break
    assert fds <= before + 2
