"""Faults of connections on demand, and slow clients."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support.market import OTHER, PAIR, Market, send
from tests.support.raw_client import handshake, masked_frame, open_socket, open_websocket, read_all

KEEP_ALIVE = '{"functionName":"keepAlive","APIKey":"demo"}'


@pytest.fixture
def quiet(make_ticks):
    """A server with two pairs whose market never starts."""
    ticks = make_ticks(1) + make_ticks(1, "ETH:USDC")
    with LocalServer(Tape(ticks, wait_for=99), keys={"demo", "other"}) as server:
        yield server


@pytest.mark.parametrize("reset", [False, True])
def test_drops_connections(quiet, dial, reset, close_frame_of):
    """A dropped connection ends without a close frame, and the next one is served."""
    peer = dial(quiet)
    assert quiet.drop_connections(reset=reset) == 1
    assert quiet.stats.connections == 0
    assert close_frame_of(peer) is None
    assert dial(quiet).ping().wait(10)


def test_reset_is_seen_by_the_client(quiet):
    """With `reset`, the client gets a ConnectionResetError."""
    with open_socket(quiet) as sock:
        sock.sendall(handshake())
        quiet.wait_connected()
        quiet.drop_connections(reset=True)
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_fault_of_one_symbol(quiet, dial, close_frame_of):
    """A fault can be limited to the streams of a symbol."""
    bitcoin, ether = dial(quiet), dial(quiet, "streaming/demo/ETH:USDC")
    assert quiet.close_connections(1012, symbol="BTC:USDC") == 1
    assert close_frame_of(bitcoin).code == 1012
    assert ether.ping().wait(10)
    assert quiet.drop_connections("NO:SUCH") == 0


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4999])
def test_closes_with_code_and_reason(quiet, dial, code, close_frame_of):
    """The client receives the code and the reason."""
    peer = dial(quiet)
    assert quiet.close_connections(code, "test") == 1
    assert quiet.stats.connections == 0
    close = close_frame_of(peer)
    assert (close.code, close.reason) == (code, "test")


@pytest.mark.parametrize(("code", "reason"), [(0, ""), (999, ""), (1005, ""), (1006, ""), (5000, ""), (1000, "ä" * 62)])
def test_rejects_invalid_close_frames(quiet, code, reason):
    """A code or reason that a close frame can't carry is an error."""
    with pytest.raises(ConfigurationError):
        quiet.close_connections(code, reason)


def test_ticks_before_a_close_arrive(make_ticks, dial, receive, close_frame_of):
    """Ticks played before the close arrive first."""
    with LocalServer(Tape(make_ticks(5_000), speed=None)) as server:
        peer = dial(server)
        server.wait_finished()
        server.close_connections(1012)
        assert len(receive(peer, 5_000)) == 5_000
        assert close_frame_of(peer).code == 1012


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
def test_refuses_the_next_handshakes(quiet, dial, retry_after, header):
    """The next handshakes are refused as requested, and later ones are accepted."""
    quiet.refuse_next(2, 429, retry_after)
    for _ in range(2):
        with pytest.raises(InvalidStatus) as caught:
            dial(quiet)
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers.get("Retry-After") == header
    dial(quiet)


def test_refuses_all_handshakes(quiet, dial):
    """A count of None refuses all handshakes, and 0 stops that."""
    quiet.refuse_next(None, 503)
    for _ in range(3):
        with pytest.raises(InvalidStatus):
            dial(quiet)
    quiet.refuse_next(0, 503)
    dial(quiet)


def test_refuses_with_headers(quiet):
    """A refusal can be a redirect."""
    quiet.refuse_next(1, 302, headers={"Location": "ws://127.0.0.1:1/elsewhere"})
    with open_socket(quiet) as sock:
        sock.sendall(handshake())
        head = read_all(sock)
    assert head.startswith(b"HTTP/1.1 302 ")
    assert b"\r\nLocation: ws://127.0.0.1:1/elsewhere\r\n" in head


@pytest.mark.parametrize(
    "arguments",
    [(-1, 503), (1, 101), (1, 99), (1, 777), (1, 429, datetime(2022, 7, 2))],
)
def test_rejects_invalid_refusals(quiet, arguments):
    """An invalid count, status or date is an error."""
    with pytest.raises(ConfigurationError):
        quiet.refuse_next(*arguments)


def test_stalls_a_handshake(quiet, dial):
    """A stalled handshake gets no answer, and the next one does."""
    quiet.stall_next(1)
    with pytest.raises(TimeoutError):
        dial(quiet, open_timeout=0.2)
    dial(quiet)
    quiet.resume()


def test_faults_before_the_start(make_ticks, dial):
    """Refusals and keys can be set before the start, and faults of connections affect none."""
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


def test_silence_and_resume(quiet, dial, receive):
    """A silent connection stays open without answering, and continues afterwards."""
    peer = dial(quiet)
    assert quiet.go_silent() == 1
    pong = peer.ping()
    peer.send(KEEP_ALIVE)
    assert not pong.wait(0.1)
    with pytest.raises(TimeoutError):
        peer.recv(timeout=0)
    assert quiet.stats.connections == 1
    assert dial(quiet, "streaming/other/ETH:USDC").ping().wait(10)
    assert quiet.resume() == 1
    assert pong.wait(10)
    assert receive(peer) == [{"keepAlive": True}]


def test_silence_survives_the_servers_pings(make_ticks, dial):
    """A silent connection stays open when pongs are overdue, and works afterwards."""
    with LocalServer(
        Tape(make_ticks(1), wait_for=2), ping_interval=0.05, ping_timeout=0.05, idle_limit=None, close_timeout=0.05
    ) as server:
        peer = dial(server)
        server.go_silent()
        with pytest.raises(TimeoutError):
            peer.recv(timeout=0.5)
        server.resume()
        assert peer.ping().wait(10)


def test_ticks_are_queued_during_silence(make_ticks, dial, receive):
    """The market plays on, and its ticks arrive after the silence."""
    with LocalServer(Tape(make_ticks(100), speed=None, wait_for=2)) as server:
        peer = dial(server)
        server.go_silent()
        other = dial(server)
        assert len(receive(other, 100)) == 100
        server.wait_finished()
        with pytest.raises(TimeoutError):
            peer.recv(timeout=0.2)
        server.resume()
        prices = [message["resultData"]["price"] for message in receive(peer, 100)]
        assert prices == [str(number) for number in range(1, 101)]


def test_queue_overflow_during_silence(make_ticks, dial, receive, close_frame_of):
    """A silent connection queues a limited amount, stalls no one, and is closed with 1013 afterwards."""
    with LocalServer(Tape(make_ticks(2_000), speed=None, wait_for=2), queue_bytes=10_000) as server:
        peer = dial(server)
        server.go_silent()
        assert len(receive(dial(server), 2_000)) == 2_000
        assert server.stats.connections == 2
        server.resume()
        assert close_frame_of(peer).code == 1013
        assert server.stats.slow_clients == 1


def test_silent_connections_can_be_ended(quiet, dial, close_frame_of):
    """Closing and dropping work on silent connections."""
    closed, dropped = dial(quiet), dial(quiet, "streaming/demo/ETH:USDC")
    quiet.go_silent()
    quiet.close_connections(1011, symbol="BTC:USDC")
    quiet.drop_connections("ETH:USDC")
    assert close_frame_of(closed).code == 1011
    assert close_frame_of(dropped) is None


def test_replaced_keys(quiet, dial, close_frame_of):
    """Connections of keys that are no longer accepted are closed with 1008. The others go on."""
    gone, kept = dial(quiet), dial(quiet, "streaming/other/BTC:USDC")
    assert quiet.set_keys({"other": 1, "new": 2}) == 1
    assert close_frame_of(gone).code == 1008
    with pytest.raises(InvalidStatus):
        dial(quiet)
    assert kept.ping().wait(10)
    assert dial(quiet, "streaming/new/BTC:USDC").ping().wait(10)
    with pytest.raises(ConfigurationError):
        quiet.set_keys("new")
    assert dial(quiet, "streaming/new/BTC:USDC").ping().wait(10)


def test_revoked_key(quiet, dial, close_frame_of):
    """A revoked key's connections are closed with 1008 and refused with 401 until the key is added again."""
    peer, other = dial(quiet), dial(quiet, "streaming/other/BTC:USDC")
    assert quiet.revoke_key("demo") == 1
    assert close_frame_of(peer).code == 1008
    assert other.ping().wait(10)
    with pytest.raises(InvalidStatus, match="401"):
        dial(quiet)
    quiet.add_key("demo")
    dial(quiet)


@pytest.mark.parametrize(("message", "expected"), [("{not json", "{not json"), (b"\x00\xff", b"\x00\xff")])
def test_sends_any_message(quiet, dial, message, expected):
    """Any text or bytes can be sent to clients."""
    peer = dial(quiet)
    assert quiet.send_message(message, "BTC:USDC") == 1
    assert peer.recv(timeout=10) == expected


class Flood:
    """A paced source whose ticks are all due at once."""

    pairs = frozenset({"BTC:USDC"})
    wait_for = 1
    paced = True

    def __init__(self, ticks):
        self._ticks = ticks

    def play(self, clock):
        return ((0.0, tick) for tick in self._ticks)


def test_disconnects_a_client_beyond_its_limit(make_ticks, dial, close_frame_of):
    """In a paced market, a client that doesn't read is closed with 1013 as soon as its queue is full."""
    options = {"queue_bytes": 50_000, "send_buffer": 8_192, "slow_client_timeout": 600.0, "close_timeout": 600.0}
    server = LocalServer(Flood(make_ticks(5_000)), **options)
    with server:
        peer = dial(server, lazy=True)
        server.wait_until(lambda stats: stats.slow_clients == 1, timeout=30)
        assert server.stats.streams == 0
        close = close_frame_of(peer)
        assert (close.code, close.reason) == (1013, "client too slow")


def test_stuck_client_does_not_stall_others_forever(make_ticks, dial, receive, close_frame_of):
    """An unpaced market waits for a stuck client, then closes it with 1013, and others miss no tick."""
    count = 5_000
    with LocalServer(
        Tape(make_ticks(count), speed=None, wait_for=2),
        queue_bytes=100_000,
        send_buffer=8_192,
        slow_client_timeout=0.3,
        close_timeout=600.0,
    ) as server:
        stuck, healthy = dial(server, lazy=True), dial(server)
        prices = [message["resultData"]["price"] for message in receive(healthy, count)]
        assert prices == [str(number) for number in range(1, count + 1)]
        assert server.stats.slow_clients == 1
        assert close_frame_of(stuck).code == 1013


def test_unpaced_market_waits_for_a_paused_client(make_ticks, dial, receive):
    """A client that reads later still receives every tick."""
    with LocalServer(
        Tape(make_ticks(5_000), speed=None), queue_bytes=20_000, send_buffer=8_192, slow_client_timeout=600.0
    ) as server:
        peer = dial(server, lazy=True)
        server.wait_until(lambda stats: stats.ticks_played > 100)
        assert not server.stats.finished
        assert len(receive(peer, 5_000)) == 5_000
        server.wait_finished()


def test_client_that_never_reads_its_answers(make_ticks, dial):
    """The server stops reading from the client, and disconnects it in the end."""
    with LocalServer(
        Tape(make_ticks(1), wait_for=2), queue_bytes=2_000, send_buffer=8_192, slow_client_timeout=0.2
    ) as server:
        peer = dial(server, lazy=True)
        server.wait_connected()
        with contextlib.suppress(ConnectionClosed):
            while server.stats.connections:
                peer.send(KEEP_ALIVE)
        assert server.stats.slow_clients == 1


def test_closing_client_with_full_queue_delays_no_one(make_ticks, dial, receive):
    """A client that sent a close frame no longer delays the market, even if its queue is full."""
    with LocalServer(
        Tape(make_ticks(5_000), speed=None, wait_for=2),
        queue_bytes=20_000,
        send_buffer=8_192,
        slow_client_timeout=600.0,
        close_timeout=600.0,
    ) as server:
        leaving, healthy = dial(server, lazy=True), dial(server)
        server.wait_until(lambda stats: stats.ticks_played > 200)
        assert not server.stats.finished
        leaving.socket.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
        assert len(receive(healthy, 5_000)) == 5_000
        assert server.stats.streams == 1
        server.drop_connections()


def test_faults_from_many_threads(dial):
    """Every method is thread-safe."""
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


def test_a_pong_does_not_overtake_ticks() -> None:
    """Clients rely on it: what was sent before the ping arrives before the pong, also if it had to wait."""
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, send_buffer=4_096) as server:
        with open_websocket(server, f"/streaming/demo/{PAIR}") as sock:
            server.wait_connected(1)
            send(server, *range(5_000))
            sock.sendall(masked_frame(0x9, b"ping"))
            # Each call takes a turn of the server's loop, which reads the ping.
            for number in range(3):
                send(server, number, pair=OTHER)
            read = b""
            while b"\x8a\x04ping" not in read:
                read += sock.recv(65_536)
        assert read.partition(b"\x8a\x04ping")[0].count(b'"price"') == 5_000
