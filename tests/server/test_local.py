"""A server's life, seen by an independent client and from other threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape

HANDSHAKE = (
    b"GET /streaming/demo/BTC:USDC HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def market():
    return SimulatedMarket(rate=200.0, seed=1)


def test_a_script_can_use_it(make_ticks, dial, receive):
    """Within a `with` clients connect and get the tape's ticks, enveloped and untouched."""
    ticks = make_ticks(3)
    with LocalServer(Tape(ticks, speed=None), keys={"demo"}) as server:
        assert f"ws://127.0.0.1:{server.port}/" == server.url
        peer = dial(server)
        assert [{"results": "streaming", "resultData": tick} for tick in ticks] == receive(peer, 3)


def test_the_message_on_the_wire_is_the_documented_one(dial):
    """The text is the example of FinX's first description to the letter, less its spaces."""
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
        assert expected == dial(server).recv(timeout=10)


def test_the_flat_form(make_ticks, dial, receive):
    """On request ticks have the vendor's later form."""
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


def test_nothing_is_compressed(market, dial):
    """An offer of permessage-deflate is not taken up."""
    with LocalServer(market) as server:
        peer = dial(server, compression="deflate")
        assert "Sec-WebSocket-Extensions" not in peer.response.headers


@pytest.mark.parametrize(
    "path", ["streamer/demo/BTC:USDC", "streaming/demo/BTC%3AUSDC", "streaming/%64emo/BTC:USDC?x=1"]
)
def test_paths_that_mean_the_same(market, dial, receive, path):
    """The later prefix and percent-encoding are understood."""
    with LocalServer(market, keys={"demo"}) as server:
        assert receive(dial(server, path))[0]["resultData"]["pair"] == "BTC:USDC"


def test_each_gets_its_own_pair(make_ticks, dial, receive):
    """Streams of two pairs from one tape hold nothing of each other."""
    ticks = [tick for pair in zip(make_ticks(50), make_ticks(50, "ETH:USDC"), strict=True) for tick in pair]
    with LocalServer(Tape(ticks, speed=None, wait_for=3)) as server:
        peers = {pair: dial(server, f"streaming/k/{pair}") for pair in ("BTC:USDC", "ETH:USDC")}
        twin = dial(server, "streaming/k/BTC:USDC")
        for pair, peer in [*peers.items(), ("BTC:USDC", twin)]:
            assert [tick for tick in ticks if tick["pair"] == pair] == [
                message["resultData"] for message in receive(peer, 50)
            ]


def test_a_tape_waits_for_its_streams(make_ticks, dial, receive):
    """Nothing is played before `wait_for` streams are connected, and everybody gets the first tick."""
    with LocalServer(Tape(make_ticks(2), wait_for=2, speed=None)) as server:
        first = dial(server)
        first.send('{"functionName":"keepAlive","APIKey":"k"}')
        assert receive(first) == [{"keepAlive": True}]
        assert not server.stats.started
        second = dial(server)
        server.wait_connected(2)
        server.wait_finished()
        assert receive(first, 2) == receive(second, 2)


def test_function_connections_start_no_tape(make_ticks, dial, receive):
    """`wait_for` counts streams only."""
    with LocalServer(Tape(make_ticks(2))) as server:
        peer = dial(server, "streamer/demo")
        peer.send('{"functionName":"authenticate","APIKey":"demo"}')
        assert receive(peer) == [{"isAuth": True}]
        assert (server.stats.connections, server.stats.streams, server.stats.started) == (1, 0, False)


def test_connections_stay_open_at_the_end_of_a_tape(make_ticks, dial, receive):
    """After the last tick the market is quiet, not closed."""
    with LocalServer(Tape(make_ticks(2), speed=None)) as server:
        peer = dial(server)
        server.wait_finished()
        assert len(receive(peer, 2)) == 2
        assert peer.ping().wait(10)
        assert (server.stats.streams, server.stats.ticks_played, server.stats.ticks_sent) == (1, 2, 2)


def test_who_is_not_connected_misses_what_passes(make_ticks, dial, receive):
    """A market plays on one clock: who comes later gets what comes later."""
    with LocalServer(Tape(make_ticks(300), speed=100.0)) as server:
        first = dial(server)
        assert receive(first)[0]["resultData"]["price"] == "1"
        server.wait_until(lambda stats: stats.ticks_played >= 20)
        late = receive(dial(server))[0]["resultData"]["price"]
        assert int(late) > 20


def test_a_paced_tape_takes_its_time(make_ticks, dial, receive):
    """A tape of two seconds at ten times the speed takes a fifth of a second at least."""
    with LocalServer(Tape(make_ticks(3), speed=10.0)) as server:
        peer = dial(server)
        receive(peer)
        begun = time.monotonic()
        receive(peer, 2)
        assert time.monotonic() - begun > 0.15


def test_a_tape_without_a_pace_stands_still_without_clients(make_ticks, dial, receive):
    """As fast as the clients take it is not at all when there are none."""
    with LocalServer(Tape(make_ticks(10), speed=None, loop=True)) as server:
        peer = dial(server)
        receive(peer, 25)
        peer.close()
        played = server.wait_until(lambda stats: stats.streams == 0).ticks_played
        assert receive(dial(server))[0]["resultData"]["price"] in {str(n) for n in range(1, 11)}
        assert server.stats.ticks_played > played


def test_greeks_are_a_placeholder(market, dial, receive):
    """A Greeks stream says that it is scheduled for a future release, and stays open."""
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
        ("streaming/" + "k" * 20_000 + "/BTC:USDC", 414),
    ],
)
def test_handshakes_that_are_refused(market, dial, path, status):
    """A wrong key, stream or path has its status, and the key is not repeated."""
    with LocalServer(market, keys={"demo"}) as server:
        with pytest.raises(InvalidStatus) as caught:
            dial(server, path)
        assert status == caught.value.response.status_code
        assert b"wrong" not in caught.value.response.body
        assert server.stats.connections == 0


def test_a_refusal_says_why(market, dial):
    """The body of a refusal is a JSON object with the error."""
    with LocalServer(market) as server:
        with pytest.raises(InvalidStatus) as caught:
            dial(server, "streaming/demo/btc-usdc")
        response = caught.value.response
        assert response.headers["Content-Type"] == "application/json"
        assert "did you mean 'BTC:USDC'?" in json.loads(response.body)["error"]
        assert server.stats.refused == 1


def test_too_many_connections(market, dial):
    """Beyond the limit a handshake is refused with 429 and a Retry-After, until somebody leaves."""
    with LocalServer(market, max_connections=1) as server:
        peer = dial(server)
        with pytest.raises(InvalidStatus) as caught:
            dial(server)
        assert (caught.value.response.status_code, caught.value.response.headers["Retry-After"]) == (429, "1")
        peer.close()
        server.wait_until(lambda stats: stats.connections == 0)
        dial(server)


@pytest.mark.parametrize("path", ["streaming/secret-key-1/BTC:USDC", "streamer/secret-key-1", "streaming/secret-key-1"])
def test_messages_are_answered(make_ticks, dial, receive, path):
    """Every message gets its answer, in order, and none repeats the key."""
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


def test_a_long_message_closes_the_connection(make_ticks, dial):
    """A message over the limit is answered with 1009, as RFC 6455 has it."""
    with LocalServer(Tape(make_ticks(1), wait_for=2)) as server:
        peer = dial(server)
        peer.send("x" * 20_000)
        with pytest.raises(ConnectionClosed) as caught:
            peer.recv(timeout=10)
        assert caught.value.rcvd.code == 1009


def test_idle_connections_are_closed_on_request(make_ticks, dial):
    """With an `idle_limit` a connection without keepAlive is closed normally."""
    with LocalServer(Tape(make_ticks(1), wait_for=2), idle_limit=0.1) as server:
        with pytest.raises(ConnectionClosed) as caught:
            dial(server).recv(timeout=10)
        assert caught.value.rcvd.code == 1000


def test_the_server_pings(make_ticks, dial):
    """A client that answers pings is kept; the time it takes is measured by pongs, not by messages."""
    with LocalServer(Tape(make_ticks(1), wait_for=2), ping_interval=0.05, ping_timeout=10.0) as server:
        peer = dial(server)
        with pytest.raises(TimeoutError):
            peer.recv(timeout=0.3)
        assert server.stats.connections == 1


def test_stopping_closes_everything(market, dial, receive):
    """Stopping sends everybody 1001, can be done twice, and leaves no thread and no open port."""
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


def test_stopping_is_bounded_whatever_the_clients_do(market):
    """Clients that say nothing, and clients that never answer a close frame, don't hold it up."""
    server = LocalServer(market, close_timeout=0.2).start()
    with (
        socket.create_connection((server.host, server.port)),
        socket.create_connection((server.host, server.port)) as raw,
    ):
        raw.sendall(HANDSHAKE)
        server.wait_connected()
        begun = time.monotonic()
        server.stop(timeout=20)
        assert not server.running
        assert time.monotonic() - begun < 10


def test_a_server_starts_again_on_its_port(make_ticks, dial, receive):
    """A restart keeps the port and plays from the beginning; what was counted stays."""
    server = LocalServer(Tape(make_ticks(2), speed=None))
    for _ in range(2):
        with server:
            port = server.port
            assert [message["resultData"]["price"] for message in receive(dial(server), 2)] == ["1", "2"]
    assert port == server.port
    assert server.stats.connections_total == 2


def test_starting_twice_is_starting_once(market):
    """`start()` returns the server itself, whether it was running or not."""
    with LocalServer(market) as server:
        port = server.port
        assert server is server.start()
        assert port == server.port


def test_a_port_that_is_taken(market):
    """A server that cannot listen says so at its start."""
    with LocalServer(market) as server, pytest.raises(OSError, match="ddress already in use"):
        LocalServer(market, port=server.port).start()


def test_there_is_no_url_before_the_start(market):
    """The port is not known before."""
    with pytest.raises(RuntimeError, match="started"):
        _ = LocalServer(market).url


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_other_names_of_loopback(market, dial, host):
    """Loopback has several names, and none of them is warned of."""
    try:
        server = LocalServer(market, host=host).start()
    except OSError:
        pytest.skip(f"no {host} here")
    with server:
        assert dial(server).ping().wait(10)


def test_a_host_beyond_loopback_is_warned_of(market, dial):
    """Listening for other machines is loud, and the URL can still be connected to."""
    server = LocalServer(market, host="0.0.0.0")
    with pytest.warns(RuntimeWarning, match="other machines"):
        server.start()
    with server:
        assert f"ws://127.0.0.1:{server.port}/" == server.url
        dial(server)


def test_waiting_is_bounded(market):
    """What doesn't happen in time is a TimeoutError."""
    with LocalServer(market) as server:
        with pytest.raises(TimeoutError):
            server.wait_connected(1, timeout=0.05)
        with pytest.raises(TimeoutError):
            server.wait_finished(timeout=0.05)


def test_a_source_that_fails(dial):
    """The error of a source of one's own ends the market, not the server, and is raised to who waits for the end."""

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
def test_what_is_no_source_is_refused(source, given):
    """A file's name is no tape; without the refusal the first client would get a 500."""
    with pytest.raises(ConfigurationError) as caught:
        LocalServer(source)
    expected = "a Tape, a SimulatedMarket or another Source, as in LocalServer(Tape('ticks.jsonl'))"
    assert f"source is {given}; expected {expected}" == str(caught.value)


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
        {"ping_interval": float("nan")},
    ],
)
def test_arguments_that_are_wrong(market, arguments):
    """A wrong argument is an error before anything is started."""
    with pytest.raises(ConfigurationError):
        LocalServer(market, **arguments)


def test_many_clients(market):
    """A few hundred clients get the same ticks."""

    async def listen(url):
        from websockets.asyncio.client import connect as dial_async

        async with dial_async(url + "streaming/demo/BTC:USDC", proxy=None, open_timeout=50) as peer:
            return [await peer.recv() for _ in range(3)]

    async def all_of_them(url):
        return await asyncio.gather(*(listen(url) for _ in range(300)))

    ticks = [
        {"pair": "BTC:USDC", "date": "2022-07-02", "time": "00:00:00Z", "exchange": "FTX", "price": str(n)}
        for n in range(3)
    ]
    with LocalServer(Tape(ticks, wait_for=300)) as server:
        heard = asyncio.run(all_of_them(server.url))
        assert len(set(map(tuple, heard))) == 1
        assert (server.stats.connections_total, server.stats.ticks_sent) == (300, 900)


def test_the_server_is_usable_within_a_loop(market):
    """It has a thread of its own, and so doesn't mind an event loop in the caller's."""

    async def main():
        with LocalServer(market) as server, connect(server.url + "streaming/demo/BTC:USDC", proxy=None) as peer:
            return peer.recv(timeout=10)

    assert "BTC:USDC" in asyncio.run(main())


def test_what_is_accepted_while_it_stops_is_closed() -> None:
    """No socket is forgotten, however many clients connect in the moment of the end."""
    for _ in range(20):
        server = LocalServer(SimulatedMarket(), close_timeout=0.1).start()
        clients: list[socket.socket] = []
        begun = threading.Event()

        def connect(port: int = server.port, clients: list[socket.socket] = clients, begun: Any = begun) -> None:
            with contextlib.suppress(OSError):
                while len(clients) < 200:
                    clients.append(socket.create_connection(("127.0.0.1", port), 1.0))
                    begun.set()

        crowd = threading.Thread(target=connect)
        crowd.start()
        assert begun.wait(10)
        server.stop()
        crowd.join()
        for client in clients:
            client.close()
        del server
        # An unclosed socket warns when it is collected, and warnings are errors here.
        gc.collect()
