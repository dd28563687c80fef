"""Faults on demand, and clients that are too slow."""

from __future__ import annotations

import contextlib
import socket
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape

HANDSHAKE = (
    b"GET /streaming/demo/BTC:USDC HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
KEEP_ALIVE = '{"functionName":"keepAlive","APIKey":"demo"}'


@pytest.fixture
def quiet(make_ticks):
    """A server whose market never begins, with two pairs."""
    ticks = make_ticks(1) + make_ticks(1, "ETH:USDC")
    with LocalServer(Tape(ticks, wait_for=99), keys={"demo", "other"}) as server:
        yield server


def ending(peer):
    """The close frame that ends a connection; None if it ended without one."""
    try:
        while True:
            peer.recv(timeout=30)
    except ConnectionClosed as closed:
        return closed.rcvd


def read_to_the_end(raw):
    return b"".join(iter(lambda: raw.recv(4_096), b""))


@pytest.mark.parametrize("reset", [False, True])
def test_dropped_connections(quiet, dial, reset):
    """A dropped connection ends without a close frame, and the next one is served."""
    peer = dial(quiet)
    assert quiet.drop_connections(reset=reset) == 1
    assert quiet.stats.connections == 0
    assert ending(peer) is None
    assert dial(quiet).ping().wait(10)


def test_a_reset_is_a_reset(quiet):
    """With `reset` the client's system is told so."""
    with socket.create_connection((quiet.host, quiet.port), timeout=20) as raw:
        raw.sendall(HANDSHAKE)
        quiet.wait_connected()
        quiet.drop_connections(reset=True)
        with pytest.raises(ConnectionResetError):
            read_to_the_end(raw)


def test_faults_of_one_symbol_only(quiet, dial):
    """A symbol narrows a fault to its streams."""
    bitcoin, ether = dial(quiet), dial(quiet, "streaming/demo/ETH:USDC")
    assert quiet.close_connections(1012, symbol="BTC:USDC") == 1
    assert ending(bitcoin).code == 1012
    assert ether.ping().wait(10)
    assert quiet.drop_connections("NO:SUCH") == 0


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4999])
def test_closing_with_a_code(quiet, dial, code):
    """The client sees the code and the reason."""
    peer = dial(quiet)
    assert quiet.close_connections(code, "so it is") == 1
    assert quiet.stats.connections == 0
    assert (code, "so it is") == (ending(peer).code, ending(peer).reason)


@pytest.mark.parametrize(("code", "reason"), [(0, ""), (999, ""), (1005, ""), (1006, ""), (5000, ""), (1000, "ä" * 62)])
def test_closes_that_cannot_be_said(quiet, code, reason):
    """A code or reason that no close frame may hold is an error."""
    with pytest.raises(ConfigurationError):
        quiet.close_connections(code, reason)


def test_ticks_before_a_close_are_sent(make_ticks, dial, receive):
    """What was played before the close arrives before it."""
    with LocalServer(Tape(make_ticks(5_000), speed=None)) as server:
        peer = dial(server)
        server.wait_finished()
        server.close_connections(1012)
        assert len(receive(peer, 5_000)) == 5_000
        assert ending(peer).code == 1012


@pytest.mark.parametrize(
    ("retry_after", "header"),
    [
        (None, None),
        (2, "2"),
        (0.2, "1"),
        ("soon", "soon"),
        (datetime(2022, 7, 2, 15, 30, 55, tzinfo=UTC), "Sat, 02 Jul 2022 15:30:55 GMT"),
        (datetime(2022, 7, 2, 17, 30, 55, tzinfo=timezone(timedelta(hours=2))), "Sat, 02 Jul 2022 15:30:55 GMT"),
    ],
)
def test_refused_handshakes(quiet, dial, retry_after, header):
    """The next handshakes are refused as told, and those after them are not."""
    quiet.refuse_next(2, 429, retry_after)
    for _ in range(2):
        with pytest.raises(InvalidStatus) as caught:
            dial(quiet)
        assert caught.value.response.status_code == 429
        assert header == caught.value.response.headers.get("Retry-After")
    dial(quiet)


def test_refusing_until_told_otherwise(quiet, dial):
    """`None` refuses all, 0 none."""
    quiet.refuse_next(None, 503)
    for _ in range(3):
        with pytest.raises(InvalidStatus):
            dial(quiet)
    quiet.refuse_next(0, 503)
    dial(quiet)


def test_a_refusal_with_headers(quiet):
    """A redirect can be played."""
    quiet.refuse_next(1, 302, headers={"Location": "ws://127.0.0.1:1/elsewhere"})
    with socket.create_connection((quiet.host, quiet.port), timeout=20) as raw:
        raw.sendall(HANDSHAKE)
        head = read_to_the_end(raw)
    assert head.startswith(b"HTTP/1.1 302 ")
    assert b"\r\nLocation: ws://127.0.0.1:1/elsewhere\r\n" in head


@pytest.mark.parametrize(
    "arguments",
    [(-1, 503), (1, 101), (1, 99), (1, 777), (1, 429, datetime(2022, 7, 2))],
)
def test_refusals_that_make_no_sense(quiet, arguments):
    """A count, status or date that cannot be is an error."""
    with pytest.raises(ConfigurationError):
        quiet.refuse_next(*arguments)


def test_a_stalled_handshake(quiet, dial):
    """A stalled handshake has no answer, and the one after it has."""
    quiet.stall_next(1)
    with pytest.raises(TimeoutError):
        dial(quiet, open_timeout=0.3)
    dial(quiet)
    quiet.resume()


def test_faults_can_be_set_before_the_start(make_ticks, dial):
    """Refusals and keys need no running server; connections do."""
    server = LocalServer(Tape(make_ticks(1)), keys=[])
    server.refuse_next(1, 503)
    server.add_key("demo")
    assert (
        server.drop_connections(),
        server.close_connections(),
        server.go_silent(),
        server.revoke_key("x"),
    ) == (0, 0, 0, 0)
    with server:
        with pytest.raises(InvalidStatus, match="503"):
            dial(server)
        dial(server)


def test_silence_and_its_end(quiet, dial, receive):
    """A silent connection answers neither pings nor messages, stays open, and goes on where it was."""
    peer = dial(quiet)
    assert quiet.go_silent() == 1
    pong = peer.ping()
    peer.send(KEEP_ALIVE)
    assert not pong.wait(0.3)
    with pytest.raises(TimeoutError):
        peer.recv(timeout=0)
    assert quiet.stats.connections == 1
    assert dial(quiet, "streaming/other/ETH:USDC").ping().wait(10)
    assert quiet.resume() == 1
    assert pong.wait(10)
    assert receive(peer) == [{"keepAlive": True}]


def test_silence_outlasts_the_servers_pings(make_ticks, dial):
    """A silent connection stays open though its own pings are overdue, and pings again afterwards."""
    with LocalServer(
        Tape(make_ticks(1), wait_for=2), ping_interval=0.05, ping_timeout=0.05, idle_limit=None, close_timeout=0.05
    ) as server:
        peer = dial(server)
        server.go_silent()
        with pytest.raises(TimeoutError):
            peer.recv(timeout=0.5)
        server.resume()
        assert peer.ping().wait(10)


def test_ticks_wait_for_the_end_of_silence(make_ticks, dial, receive):
    """The market plays on; what a silent connection was due arrives when it speaks again."""
    with LocalServer(Tape(make_ticks(100), speed=None, wait_for=2)) as server:
        peer = dial(server)
        server.go_silent()
        other = dial(server)
        assert len(receive(other, 100)) == 100
        server.wait_finished()
        with pytest.raises(TimeoutError):
            peer.recv(timeout=0.2)
        server.resume()
        assert [str(number) for number in range(1, 101)] == [
            message["resultData"]["price"] for message in receive(peer, 100)
        ]


def test_too_much_silence(make_ticks, dial, receive):
    """A silent connection keeps no more than its queue, stalls nobody, and is told 1013 when it speaks again."""
    with LocalServer(Tape(make_ticks(2_000), speed=None, wait_for=2), queue_bytes=10_000) as server:
        peer = dial(server)
        server.go_silent()
        assert len(receive(dial(server), 2_000)) == 2_000
        assert server.stats.connections == 2
        server.resume()
        assert ending(peer).code == 1013
        assert server.stats.slow_clients == 1


def test_a_silent_connection_can_be_ended(quiet, dial):
    """Closing, dropping and stopping work on silent connections too."""
    closed, dropped = dial(quiet), dial(quiet, "streaming/demo/ETH:USDC")
    quiet.go_silent()
    quiet.close_connections(1011, symbol="BTC:USDC")
    quiet.drop_connections("ETH:USDC")
    assert ending(closed).code == 1011
    assert ending(dropped) is None


def test_a_revoked_key(quiet, dial):
    """Who is connected with it is closed with 1008, who tries again gets 401, and adding it again mends that."""
    peer, other = dial(quiet), dial(quiet, "streaming/other/BTC:USDC")
    assert quiet.revoke_key("demo") == 1
    assert ending(peer).code == 1008
    assert other.ping().wait(10)
    with pytest.raises(InvalidStatus, match="401"):
        dial(quiet)
    quiet.add_key("demo")
    dial(quiet)


@pytest.mark.parametrize(("message", "expected"), [("{not json", "{not json"), (b"\x00\xff", b"\x00\xff")])
def test_any_message_can_be_sent(quiet, dial, message, expected):
    """Notices and nonsense can be played to clients."""
    peer = dial(quiet)
    assert quiet.send_message(message, "BTC:USDC") == 1
    assert expected == peer.recv(timeout=10)


class Flood:
    """Ticks that are all due at once, by the clock."""

    pairs = frozenset({"BTC:USDC"})
    wait_for = 1
    paced = True

    def __init__(self, ticks):
        self._ticks = ticks

    def play(self, clock):
        return ((0.0, tick) for tick in self._ticks)


def test_a_client_over_its_limit_is_disconnected_at_once(make_ticks, dial):
    """With a market on the clock, a client that reads nothing gets 1013 as soon as its queue is over the limit."""
    options = {"queue_bytes": 50_000, "send_buffer": 8_192, "slow_client_timeout": 600.0, "close_timeout": 600.0}
    server = LocalServer(Flood(make_ticks(20_000)), **options)
    with server:
        peer = dial(server, lazy=True)
        server.wait_until(lambda stats: stats.slow_clients == 1, timeout=30)
        assert server.stats.streams == 0
        assert (ending(peer).code, ending(peer).reason) == (1013, "client too slow")


def test_a_stuck_client_does_not_stall_the_others_for_ever(make_ticks, dial, receive):
    """Without a pace everybody is waited for, but not for ever: the stuck one gets 1013, the others every tick."""
    count = 20_000
    with LocalServer(
        Tape(make_ticks(count), speed=None, wait_for=2),
        queue_bytes=100_000,
        send_buffer=8_192,
        slow_client_timeout=1.0,
        close_timeout=600.0,
    ) as server:
        stuck, healthy = dial(server, lazy=True), dial(server)
        prices = [message["resultData"]["price"] for message in receive(healthy, count)]
        assert [str(number) for number in range(1, count + 1)] == prices
        assert server.stats.slow_clients == 1
        assert ending(stuck).code == 1013


def test_a_client_that_pauses_loses_nothing_without_a_pace(make_ticks, dial, receive):
    """The tape waits for room: a client that comes to it later still gets every tick."""
    with LocalServer(
        Tape(make_ticks(30_000), speed=None), queue_bytes=20_000, send_buffer=8_192, slow_client_timeout=600.0
    ) as server:
        peer = dial(server, lazy=True)
        server.wait_until(lambda stats: stats.ticks_played > 100)
        assert not server.stats.finished
        assert len(receive(peer, 30_000)) == 30_000
        server.wait_finished()


def test_a_client_that_asks_and_never_reads(make_ticks, dial):
    """It is read no more once its answers wait, so it cannot go on asking; and it is disconnected in the end."""
    with LocalServer(
        Tape(make_ticks(1), wait_for=2), queue_bytes=2_000, send_buffer=8_192, slow_client_timeout=0.5
    ) as server:
        peer = dial(server, lazy=True)
        server.wait_connected()
        with contextlib.suppress(ConnectionClosed):
            while server.stats.connections:
                peer.send(KEEP_ALIVE)
        assert server.stats.slow_clients == 1


def test_a_client_that_goes_unread_holds_nobody_up(make_ticks, dial, receive):
    """A client that says goodbye with its queue full no longer counts, even if it sees nothing through."""
    with LocalServer(
        Tape(make_ticks(20_000), speed=None, wait_for=2),
        queue_bytes=20_000,
        send_buffer=8_192,
        slow_client_timeout=600.0,
        close_timeout=600.0,
    ) as server:
        leaver, healthy = dial(server, lazy=True), dial(server)
        server.wait_until(lambda stats: stats.ticks_played > 200)
        assert not server.stats.finished
        leaver.socket.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
        assert len(receive(healthy, 20_000)) == 20_000
        assert server.stats.streams == 1
        server.drop_connections()


def test_faults_from_many_threads(dial):
    """Every method may be called from any thread at any time."""
    with LocalServer(SimulatedMarket(rate=2_000.0, seed=1)) as server:

        def disturb():
            for _ in range(50):
                server.go_silent()
                server.resume()
                server.send_message("{}")
                server.drop_connections()
                server.add_key("x")
                assert server.stats.connections >= 0

        threads = [threading.Thread(target=disturb) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            dial(server)
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        server.wait_until(lambda stats: stats.connections_total == 10)
