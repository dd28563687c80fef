"""What a stranger, or a client gone mad, may send: nobody else notices, and everything has a bound."""

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
from finx_streamer.server.keys import KeyRing
from finx_streamer.server.service import MESSAGE_LIMIT
from tests.support.effort import examples

# One server for all of these tests. At the end, its log is checked.
pytestmark = pytest.mark.xdist_group("hostile")

Dial = Callable[..., ClientConnection]
PATIENCE = 20.0
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def market() -> SimulatedMarket:
    return SimulatedMarket(["BTC:USDC"], rate=100.0, seed=1)


@pytest.fixture(scope="module")
def target() -> Iterator[LocalServer]:
    """A server that is shot at by many tests. All that it logs meanwhile is no key, and no failure of its own."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    # The library below says "unexpected internal error" of a client that leaves in the moment in which it is refused.
    handler.addFilter(lambda record: record.name != "finx_streamer.server.wire")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    ours = logging.getLogger("finx_streamer")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    try:
        with LocalServer(SimulatedMarket(["BTC:USDC"], rate=100.0, seed=1), keys={"secret-key-1"}) as server:
            yield server
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
    assert "handshake refused" in logged.getvalue()
    assert "secret" not in logged.getvalue()
    assert "the server failed" not in logged.getvalue()
    assert "Traceback" not in logged.getvalue(), logged.getvalue()[:2_000]


def raw(server: LocalServer, path: str | None = None) -> socket.socket:
    """A socket to the server; with a path, the handshake is done."""
    sock = socket.create_connection((server.host, server.port), timeout=PATIENCE)
    if path is not None:
        sock.sendall(REQUEST.format(path=path).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(4_096)
        assert answer.startswith(b"HTTP/1.1 101 ")
    return sock


def masked(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, announced: int | None = None) -> bytes:
    """A client's frame; `announced` is a length that need not be true."""
    size = len(payload) if announced is None else announced
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + b"\0\0\0\0" + payload


def assert_well(server: LocalServer) -> None:
    """A good client is served as ever."""
    with connect(server.url + "streamer/secret-key-1", compression=None, proxy=None) as peer:
        peer.send('{"functionName":"authenticate","APIKey":"secret-key-1"}')
        assert json.loads(peer.recv(timeout=PATIENCE)) == {"isAuth": True}
    with connect(server.url + "streaming/secret-key-1/BTC:USDC", compression=None, proxy=None) as peer:
        assert "resultData" in json.loads(peer.recv(timeout=PATIENCE))


def leave(sock: socket.socket, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


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
    masked,
    st.integers(0, 15),
    st.binary(max_size=200) | st.sampled_from([b'{"functionName":"keepAlive","APIKey":"secret-key-1"}', b"[" * 9_999]),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 7]),
    announced=st.none() | st.sampled_from([0, 125, 126, 65_536, 1 << 40, (1 << 63) - 1]),
)


@given(sent=st.binary(max_size=300) | st.lists(line, max_size=30).map(b"\r\n".join), reset=st.booleans())
@FUZZ
def test_any_bytes_instead_of_a_handshake(target: LocalServer, sent: bytes, reset: bool) -> None:
    """Whatever comes in place of a request harms nobody."""
    sock = raw(target)
    with contextlib.suppress(OSError):
        sock.sendall(sent)
    leave(sock, reset)
    assert target.running


@given(
    sent=st.lists(frames | st.binary(max_size=100), max_size=8),
    path=st.sampled_from(["/streamer/secret-key-1", "/streaming/secret-key-1/BTC:USDC"]),
    reset=st.booleans(),
)
@FUZZ
def test_any_frames_after_the_handshake(target: LocalServer, sent: list[bytes], path: str, reset: bool) -> None:
    """Whatever comes after the handshake costs this client alone."""
    sock = raw(target, path)
    with contextlib.suppress(OSError):
        for data in sent:
            sock.sendall(data)
    leave(sock, reset)
    assert target.running


def test_the_server_is_well_after_all_that(target: LocalServer) -> None:
    """It serves, and has let go of everybody."""
    for path in ("/streaming/secret-key-1/BTC:USDC\0", "/streaming/secret-key-1/BTC:USDC HTTP/1.1\r\nX"):
        with contextlib.suppress(OSError), raw(target) as sock:
            sock.sendall(REQUEST.format(path=path).encode())
            sock.recv(1_000)
    assert_well(target)
    target.wait_until(lambda stats: stats.connections == 0)
    assert not target.stats.finished


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (REQUEST.format(path="/" + "x" * 2_048), b"414"),
        (REQUEST.format(path="/streaming/wrong/BTC:USDC"), b"401"),
        (REQUEST.format(path="/").replace("Host: x", "X: " + "y" * 100_000), b"400"),
        (REQUEST.format(path="/").replace("Host: x", "\r\n".join(f"X-{n}: y" for n in range(1_000))), b"400"),
    ],
    ids=["path", "key", "header", "headers"],
)
def test_a_request_is_bounded(target: LocalServer, request_: str, status: bytes) -> None:
    """A path, a header or headers beyond what is sensible are refused, or the connection is ended, without waiting."""
    with raw(target) as sock:
        answer = b""
        with contextlib.suppress(OSError):
            sock.sendall(request_.encode())
            while data := sock.recv(65_536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 " + status) or (status == b"400" and b"101" not in answer[:20])
    assert_well(target)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "evil.example:8765"])
def test_a_web_page_from_elsewhere_is_refused(market: SimulatedMarket, host: str) -> None:
    """It learns nothing, not even whether the key is right, and uses up no fault that is meant for others."""
    with LocalServer(market, keys={"secret-key-1"}) as server:
        server.refuse_next(1, 503)
        request = REQUEST.replace("Host: x", f"Host: {host}\r\nOrigin: http://evil.example:8765")
        for key in ("secret-key-1", "wrong"):
            with raw(server) as sock:
                sock.sendall(request.format(path=f"/streaming/{key}/BTC:USDC").encode())
                answer = b"".join(iter(lambda: sock.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"the Origin header names another host" in answer
        with pytest.raises(InvalidStatus, match="503"):
            connect(server.url + "streamer/secret-key-1", proxy=None)
        assert server.stats.refused == 3


def test_programs_that_send_an_origin_are_let_in(target: LocalServer) -> None:
    """`websocket-client` names the server there, unless it is told not to."""
    for more in ({}, {"suppress_origin": True}):
        peer = websocket.create_connection(target.url + "streaming/secret-key-1/BTC:USDC", timeout=PATIENCE, **more)
        try:
            assert "resultData" in json.loads(peer.recv())
        finally:
            peer.close()


def test_a_handshake_that_dribbles_is_ended(market: SimulatedMarket) -> None:
    """A request a byte at a time has `open_timeout` in all, and the byte rate does not prolong it."""
    with LocalServer(market, keys={"secret-key-1"}, open_timeout=0.3) as server, raw(server) as sock:
        sock.settimeout(0.02)
        begun = time.monotonic()
        ended = False
        for byte in REQUEST.format(path="/streamer/secret-key-1" + "y" * 1_000).encode():
            try:
                sock.sendall(bytes([byte]))
                ended = sock.recv(1_000) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
        assert ended, time.monotonic() - begun
        assert_well(server)


def test_a_large_message_is_refused_before_it_is_stored(target: LocalServer) -> None:
    """A frame that announces 1 TiB, and fragments that add up to too much, are answered with 1009."""
    too_much = MESSAGE_LIMIT // 2 + 1
    for sent in (
        masked(1, b"x", announced=1 << 40),
        masked(1, b"x" * too_much, fin=False) + masked(0, b"x" * too_much, fin=False),
    ):
        with raw(target, "/streamer/secret-key-1") as sock:
            sock.sendall(sent)
            answer = b""
            with contextlib.suppress(OSError):
                while data := sock.recv(4_096):
                    answer += data
            assert answer[:1] == b"\x88"
            assert struct.pack("!H", 1009) == answer[2:4]
    assert_well(target)


def test_connections_of_one_key_are_bounded(market: SimulatedMarket, dial: Dial) -> None:
    """Beyond the limit a key gets 429, whatever it asks for, and other keys do not feel it; who leaves makes room."""
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


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_key"])
def test_many_that_knock_at_once_find_no_more_room(market: SimulatedMarket, limit: str) -> None:
    """The bound holds for handshakes side by side, too."""
    admitted = 0
    lock = threading.Lock()
    together, done = threading.Barrier(20), threading.Barrier(20)

    with LocalServer(market, keys={"one"}, **{limit: 3}) as server:

        def knock() -> None:
            nonlocal admitted
            with socket.create_connection((server.host, server.port), timeout=PATIENCE) as sock:
                together.wait(PATIENCE)
                sock.sendall(REQUEST.format(path="/streamer/one").encode())
                status = sock.recv(12)
                with lock:
                    admitted += status == b"HTTP/1.1 101"
                done.wait(PATIENCE)

        threads = [threading.Thread(target=knock) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert admitted == 3


def test_handshakes_that_are_not_completed_keep_no_place(market: SimulatedMarket, dial: Dial) -> None:
    """A client that is let in, and leaves before it is there, is not counted for ever."""
    with LocalServer(market, keys={"one"}, max_connections_per_key=1) as server:
        for _ in range(20):
            sock = socket.create_connection((server.host, server.port), timeout=PATIENCE)
            sock.sendall(REQUEST.format(path="/streamer/one").encode())
            leave(sock, reset=True)
        for _ in range(int(PATIENCE / 0.01)):
            try:
                dial(server, "streamer/one")
                break
            except (InvalidStatus, ConnectionClosed):
                time.sleep(0.01)  # the server may still be hearing of the last one
        else:
            pytest.fail("no place was given back")


def test_keys_are_compared_whole() -> None:
    """Each accepted key is compared in constant time, whichever fits: the comparisons made do not depend on the key."""
    ring = KeyRing(f"key-number-{number}" for number in range(50))
    made: list[tuple[bytes, bytes]] = []

    def compare(first: bytes, second: bytes) -> bool:
        made.append((first, second))
        return first == second

    from finx_streamer.server import keys

    before = keys.hmac.compare_digest
    keys.hmac.compare_digest = compare  # type: ignore[assignment]
    try:
        counts = []
        for key in ("key-number-0", "key-number-49", "key-number-", "x", "x" * 5_000, "\ud800"):
            made.clear()
            ring.accepts(key)
            counts.append(len(made))
    finally:
        keys.hmac.compare_digest = before
    assert counts == [50] * 6


def test_idle_and_silent_clients_are_let_go(market: SimulatedMarket) -> None:
    """A client that answers no ping is gone after `ping_interval` and `ping_timeout`; one that only sends noise, and no
    keepAlive, after `idle_limit`."""
    with (
        LocalServer(market, keys={"one"}, ping_interval=0.1, ping_timeout=0.2, close_timeout=0.2) as server,
        raw(server, "/streamer/one"),
    ):
        server.wait_until(lambda stats: stats.connections_total == 1 and stats.connections == 0)
    with (
        LocalServer(market, keys={"one"}, idle_limit=0.3, close_timeout=0.2) as server,
        raw(server, "/streamer/one") as sock,
    ):
        with contextlib.suppress(OSError):
            for _ in range(int(PATIENCE / 0.02)):
                sock.sendall(masked(9, b"noise") + masked(1, b"{}"))
                if server.stats.connections_total and not server.stats.connections:
                    break
                time.sleep(0.02)  # the noise has a pace, for it must not fill its own way
        server.wait_until(lambda stats: stats.connections_total == 1 and stats.connections == 0)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")
def test_strangers_leave_nothing(target: LocalServer) -> None:
    """A thousand connections that come to nothing leave no descriptor."""

    def shoot(count: int) -> int:
        for number in range(count):
            sock = raw(target)
            if number % 2:
                sock.sendall(b"nonsense\r\n\r\n")
            leave(sock, reset=bool(number % 3))
        assert_well(target)
        target.wait_until(lambda stats: stats.connections == 0)
        return len(os.listdir("/proc/self/fd"))

    shoot(50)
    before = shoot(50)
    fds: Any = None
    for _ in range(int(PATIENCE)):
        fds = shoot(100)
        if fds <= before + 2:
            break
    assert fds <= before + 2
