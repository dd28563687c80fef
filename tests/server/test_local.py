"""The life of a server, as seen by an independent client and from other threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
import time
from datetime import timedelta

import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support.raw_client import handshake, open_socket


def test_streams_a_tape(make_ticks, dial, receive):
    """Clients receive the tape's ticks, enveloped and unchanged."""
    ticks = make_ticks(3)
    with LocalServer(Tape(ticks, speed=None), keys={"demo"}) as server:
        assert server.url == f"ws://127.0.0.1:{server.port}/"
        expected = [{"results": "streaming", "resultData": tick} for tick in ticks]
        assert receive(dial(server), 3) == expected


def test_sends_the_documented_message(dial):
    """The message is the documented example without its spaces."""
    tick = {
        "pair": "BTC:USDC",
        "date": "2022-07-02",
        "time": "15:30:55.817Z",
        "exchange": "BINANCE",
        "price": "19200.84",
    }
    with LocalServer(Tape([tick])) as server:
        expected = (
            '{"results":"streaming","resultData":{"pair":"BTC:USDC","date":"2022-07-02",'
            '"time":"15:30:55.817Z","exchange":"BINANCE","price":"19200.84"}}'
        )
        assert dial(server).recv(timeout=10) == expected


def test_sends_the_flat_form(make_ticks, dial, receive):
    """On request, ticks have the vendor's later form."""
    with LocalServer(Tape(make_ticks(1)), form="flat") as server:
        assert receive(dial(server)) == [
            {
                "pair": "BTC:USDC",
                "unixDate": 1656774000,
                "UTCDate": "2022-07-02T15:00:00.817Z",
                "exchange": "BINANCE",
                "price": "1",
            }
        ]


def test_refuses_compression(market, dial):
    """The server doesn't accept permessage-deflate."""
    with LocalServer(market) as server:
        peer = dial(server, compression="deflate")
        assert "Sec-WebSocket-Extensions" not in peer.response.headers


@pytest.mark.parametrize(
    "path", ["streamer/demo/BTC:USDC", "streaming/demo/BTC%3AUSDC", "streaming/%64emo/BTC:USDC?x=1"]
)
def test_equivalent_paths(market, dial, receive, path):
    """The later prefix and percent-encoding are accepted."""
    with LocalServer(market, keys={"demo"}) as server:
        assert receive(dial(server, path))[0]["resultData"]["pair"] == "BTC:USDC"


def test_each_client_gets_its_own_pair(make_ticks, dial, receive):
    """Streams of two pairs from one tape are not mixed."""
    ticks = [tick for pair in zip(make_ticks(50), make_ticks(50, "ETH:USDC"), strict=True) for tick in pair]
    with LocalServer(Tape(ticks, speed=None, wait_for=3)) as server:
        peers = {pair: dial(server, f"streaming/k/{pair}") for pair in ("BTC:USDC", "ETH:USDC")}
        twin = dial(server, "streaming/k/BTC:USDC")
        for pair, peer in [*peers.items(), ("BTC:USDC", twin)]:
            expected = [tick for tick in ticks if tick["pair"] == pair]
            assert [message["resultData"] for message in receive(peer, 50)] == expected


def test_tape_waits_for_streams(make_ticks, dial, receive):
    """Nothing is played before `wait_for` streams are connected, and all of them get the first tick."""
    with LocalServer(Tape(make_ticks(2), wait_for=2, speed=None)) as server:
        first = dial(server)
        first.send('{"functionName":"keepAlive","APIKey":"k"}')
        assert receive(first) == [{"keepAlive": True}]
        assert not server.stats.started
        second = dial(server)
        server.wait_connected(2)
        server.wait_finished()
        assert receive(first, 2) == receive(second, 2)


def test_function_connections_do_not_start_a_tape(make_ticks, dial, receive):
    """`wait_for` counts only streams."""
    with LocalServer(Tape(make_ticks(2))) as server:
        peer = dial(server, "streamer/demo")
        peer.send('{"functionName":"authenticate","APIKey":"demo"}')
        assert receive(peer) == [{"isAuth": True}]
        assert (server.stats.connections, server.stats.streams, server.stats.started) == (1, 0, False)


def test_connections_stay_open_after_the_last_tick(make_ticks, dial, receive):
    """The end of the tape doesn't close connections."""
    with LocalServer(Tape(make_ticks(2), speed=None)) as server:
        peer = dial(server)
        server.wait_finished()
        assert len(receive(peer, 2)) == 2
        assert peer.ping().wait(10)
        assert (server.stats.streams, server.stats.ticks_played, server.stats.ticks_sent) == (1, 2, 2)


def test_late_client_misses_earlier_ticks(make_ticks, dial, receive):
    """All clients share one clock."""
    with LocalServer(Tape(make_ticks(300), speed=100.0), close_timeout=0.1) as server:
        first = dial(server)
        assert receive(first)[0]["resultData"]["price"] == "1"
        server.wait_until(lambda stats: stats.ticks_played >= 20)
        late = receive(dial(server))[0]["resultData"]["price"]
        assert int(late) > 20


def test_paced_tape_takes_its_time(make_ticks, dial, receive):
    """Two seconds of a tape at tenfold speed take at least 0.15 seconds."""
    with LocalServer(Tape(make_ticks(3), speed=10.0)) as server:
        peer = dial(server)
        receive(peer)
        started = time.monotonic()
        receive(peer, 2)
        assert time.monotonic() - started > 0.15


def test_unpaced_tape_stops_without_clients(make_ticks, dial, receive):
    """Without clients, an unpaced tape stands still, and continues with the next client."""
    with LocalServer(Tape(make_ticks(10), speed=None, loop=True), close_timeout=0.1) as server:
        peer = dial(server)
        receive(peer, 25)
        peer.close()
        played = server.wait_until(lambda stats: stats.streams == 0).ticks_played
        assert receive(dial(server))[0]["resultData"]["price"] in {str(n) for n in range(1, 11)}
        assert server.stats.ticks_played > played


def test_greeks_stream_sends_a_placeholder(market, dial, receive):
    """A Greeks stream announces a future release and stays open."""
    with LocalServer(market) as server:
        peer = dial(server, "streaming/greeks/demo/BTCN2202207")
        assert peer.recv(timeout=10) == '{"feature":"scheduled for future release"}'
        peer.send('{"functionName":"keepAlive","APIKey":"demo"}')
        assert receive(peer) == [{"keepAlive": True}]
        assert dict(server.stats.symbols) == {"BTCN2202207": 1}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("streaming/wrong/BTC:USDC", 401),
        ("streaming//BTC:USDC", 401),
        ("streaming/wrong/nonsense", 401),
        ("streamer/wrong", 401),
        ("streaming/demo/NO:SUCH", 404),
        ("streaming/demo/btc-usdc", 404),
        ("streaming/greeks/demo/BTCN2202208", 404),
        ("streaming/wrong", 401),
        ("", 404),
        ("streaming/demo/BTC:USDC/x", 404),
        ("streaming/" + "k" * 3_000 + "/BTC:USDC", 414),
        pytest.param("streaming/" + "k" * 20_000 + "/BTC:USDC", 414, id="path of 20,000"),
    ],
)
def test_refuses_handshakes(market, dial, path, status):
    """A wrong key, stream or path has its own status, and the response doesn't contain the key."""
    with LocalServer(market, keys={"demo"}) as server:
        with pytest.raises(InvalidStatus) as caught:
            dial(server, path)
        assert caught.value.response.status_code == status
        assert b"wrong" not in caught.value.response.body
        assert server.stats.connections == 0


def test_refusal_says_why(market, dial):
    """The body of a refusal is a JSON object with an error."""
    with LocalServer(market) as server:
        with pytest.raises(InvalidStatus) as caught:
            dial(server, "streaming/demo/btc-usdc")
        response = caught.value.response
        assert response.headers["Content-Type"] == "application/json"
        assert "did you mean 'BTC:USDC'?" in json.loads(response.body)["error"]
        assert server.stats.refused == 1


def test_limits_connections(market, dial):
    """Beyond the limit, handshakes are refused with 429 and Retry-After until a client leaves."""
    with LocalServer(market, max_connections=1) as server:
        peer = dial(server)
        with pytest.raises(InvalidStatus) as caught:
            dial(server)
        assert (caught.value.response.status_code, caught.value.response.headers["Retry-After"]) == (429, "1")
        peer.close()
        server.wait_until(lambda stats: stats.connections == 0)
        dial(server)


@pytest.mark.parametrize("path", ["streaming/secret-key-1/BTC:USDC", "streamer/secret-key-1", "streaming/secret-key-1"])
def test_answers_messages(make_ticks, dial, receive, path):
    """Every message is answered in order, and no answer contains the key."""
    with LocalServer(Tape(make_ticks(1), wait_for=2), keys={"secret-key-1"}) as server:
        peer = dial(server, path)
        key = '"APIKey":"secret-key-1"'
        for message in (
            f'{{"functionName":"keepAlive",{key}}}',
            f'{{"functionName":"authenticate",{key}}}',
            f'{{"functionName":"noSuch",{key}}}',
            '{"functionName":"keepAlive"}',
            "nonsense",
            b"\x00",
        ):
            peer.send(message)
        answers = receive(peer, 6)
        assert answers[:2] == [{"keepAlive": True}, {"isAuth": True}]
        assert "'noSuch'" in answers[2]["error"]
        assert [list(each) for each in answers[3:]] == [["error"]] * 3
        assert "secret" not in json.dumps(answers)


def test_long_message_closes_the_connection(make_ticks, dial):
    """A message beyond the limit is answered with 1009."""
    with LocalServer(Tape(make_ticks(1), wait_for=2)) as server:
        peer = dial(server)
        peer.send("x" * 20_000)
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv(timeout=10)
        assert caught.value.rcvd.code == 1009


def test_closes_idle_connections(make_ticks, dial):
    """With an `idle_limit`, connections without keepAlive are closed with 1000."""
    with LocalServer(Tape(make_ticks(1), wait_for=2), idle_limit=0.1) as server:
        with pytest.raises(ConnectionClosed) as caught:
            dial(server).recv(timeout=10)
        assert caught.value.rcvd.code == 1000


def test_client_that_answers_pings_stays_connected(make_ticks, dial):
    """The server pings, and keeps a client that sends nothing but pongs."""
    with LocalServer(Tape(make_ticks(1), wait_for=2), ping_interval=0.05, ping_timeout=10.0) as server:
        peer = dial(server)
        with pytest.raises(TimeoutError):
            peer.recv(timeout=0.3)
        assert server.stats.connections == 1


def test_stop_closes_everything(market, dial, receive):
    """Stopping sends 1001, can be repeated, and leaves no thread and no open port."""
    server = LocalServer(market)
    server.stop()
    server.start()
    peer = dial(server)
    server.wait_connected()
    server.stop()
    server.stop()
    with pytest.raises(ConnectionClosed) as caught:
        receive(peer, 10_000)
    assert caught.value.rcvd.code == 1001
    assert not server.running
    assert server.stats.connections == 0
    assert not any(thread.name == "finx-local-server" for thread in threading.enumerate())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=5)


def test_stop_is_bounded(market):
    """Clients without a handshake or an answer to a close frame can't delay the stop."""
    server = LocalServer(market, close_timeout=0.2).start()
    with open_socket(server), open_socket(server) as raw:
        raw.sendall(handshake())
        server.wait_connected()
        started = time.monotonic()
        server.stop(timeout=20)
        assert not server.running
        assert time.monotonic() - started < 10


def test_restarts_on_its_port(make_ticks, dial, receive):
    """A restart keeps the port and the counters, and plays from the beginning."""
    server = LocalServer(Tape(make_ticks(2), speed=None))
    for _ in range(2):
        with server:
            port = server.port
            assert [message["resultData"]["price"] for message in receive(dial(server), 2)] == ["1", "2"]
    assert server.port == port
    assert server.stats.connections_total == 2


def test_start_is_idempotent(market):
    """`start()` returns the server, running or not."""
    with LocalServer(market) as server:
        port = server.port
        assert server is server.start()
        assert server.port == port


def test_port_in_use_is_an_error(market):
    """A server that can't listen fails to start."""
    with LocalServer(market) as server, pytest.raises(OSError, match="ddress already in use"):
        LocalServer(market, port=server.port).start()


def test_no_url_before_the_start(market):
    """The port isn't known before the start."""
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        _ = LocalServer(market).url


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_no_warning_on_loopback(market, dial, host):
    """Other names of loopback cause no warning."""
    try:
        server = LocalServer(market, host=host).start()
    except OSError:
        pytest.skip(f"no {host} here")
    with server:
        assert dial(server).ping().wait(10)


def test_warns_beyond_loopback(market, dial):
    """Listening for other machines causes a warning, and the URL works."""
    server = LocalServer(market, host="0.0.0.0")
    with pytest.warns(RuntimeWarning, match="other machines"):
        server.start()
    with server:
        assert server.url == f"ws://127.0.0.1:{server.port}/"
        dial(server)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs a system with both")
@pytest.mark.filterwarnings("ignore:the local server listens:RuntimeWarning")
def test_listens_for_ipv6_and_ipv4(market, dial):
    """With the host `::`, the URL and both loopback addresses work."""
    with LocalServer(market, host="::") as server:
        assert server.url == f"ws://127.0.0.1:{server.port}/"
        dial(server)
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, server.port), 10).close()


def test_waits_time_out(market):
    """A condition that doesn't hold in time raises TimeoutError."""
    with LocalServer(market) as server:
        with pytest.raises(TimeoutError):
            server.wait_connected(1, timeout=0.05)
        with pytest.raises(TimeoutError):
            server.wait_finished(timeout=0.05)


def test_failing_source(dial):
    """The error of a source ends the market and is raised by `wait_finished()`, but the server stays up."""

    class Broken:
        pairs = frozenset({"BTC:USDC"})
        wait_for = 1
        paced = True

        def play(self, clock):
            raise ArithmeticError("out of ticks")
            yield

    with LocalServer(Broken()) as server:
        peer = dial(server)
        with pytest.raises(ArithmeticError, match="out of ticks"):
            server.wait_finished()
        assert peer.ping().wait(10)


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("ticks.jsonl", "a str"),
        (None, "a NoneType"),
        ([{"pair": "BTC:USDC"}], "a list"),
        (SimulatedMarket, "the class SimulatedMarket"),
    ],
)
def test_rejects_other_objects_than_sources(source, given):
    """An object that isn't a source is an error at construction."""
    with pytest.raises(ConfigurationError) as caught:
        LocalServer(source)
    expected = "a Tape, a SimulatedMarket, an ExchangeMarket or another source, as in LocalServer(Tape('ticks.jsonl'))"
    assert str(caught.value) == f"source is {given}; expected {expected}"


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys": "demo"},
        {"keys": {""}},
        {"form": "round"},
        {"port": 70_000},
        {"queue_bytes": 0},
        {"slow_client_timeout": 0},
        {"idle_limit": -1.0},
        {"max_connections": 0},
        {"max_connections_per_address": 0},
        {"store_age": 0},
        {"store_age": timedelta(seconds=-1)},
        {"store_age": "7d"},
        {"store_age": float("inf")},
        {"store_bytes": 999_999},
        {"store_bytes": 2e9},
        {"keys": {"alice": "a-secret"}},
        {"ping_interval": float("nan")},
    ],
)
def test_rejects_invalid_arguments(market, arguments):
    """An invalid argument is an error at construction."""
    with pytest.raises(ConfigurationError):
        LocalServer(market, **arguments)


def test_serves_many_clients(make_ticks):
    """300 clients receive the same ticks."""

    async def listen(url):
        async with connect_async(url + "streaming/demo/BTC:USDC", proxy=None, open_timeout=50) as peer:
            return [await peer.recv() for _ in range(3)]

    async def listen_all(url):
        return await asyncio.gather(*(listen(url) for _ in range(300)))

    with LocalServer(Tape(make_ticks(3), speed=None, wait_for=300)) as server:
        received = asyncio.run(listen_all(server.url))
        assert len(set(map(tuple, received))) == 1
        assert (server.stats.connections_total, server.stats.ticks_sent) == (300, 900)


def test_works_within_an_event_loop(market):
    """The server can be used while an event loop is running in the caller's thread."""

    async def main():
        with LocalServer(market) as server, connect(server.url + "streaming/demo/BTC:USDC", proxy=None) as peer:
            return peer.recv(timeout=10)

    assert "BTC:USDC" in asyncio.run(main())


def test_closes_clients_accepted_during_stop() -> None:
    """No socket leaks when many clients connect during the stop."""
    for _ in range(20):
        server = LocalServer(SimulatedMarket(), close_timeout=0.1).start()
        clients: list[socket.socket] = []
        first_connected = threading.Event()

        def connect_many(
            port: int = server.port, clients: list[socket.socket] = clients, event: threading.Event = first_connected
        ) -> None:
            with contextlib.suppress(OSError):
                while len(clients) < 200:
                    # Connecting while the port closes may hang, so don't wait long then.
                    timeout = 0.1 if clients else 10.0
                    clients.append(socket.create_connection(("127.0.0.1", port), timeout))
                    event.set()

        connecting = threading.Thread(target=connect_many)
        connecting.start()
        assert first_connected.wait(10)
        server.stop()
        connecting.join()
        for client in clients:
            client.close()
        del server
        # An unclosed socket warns when it is collected, and warnings are errors here.
        gc.collect()
