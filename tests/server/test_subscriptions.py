"""The second wire: streams that a client asks for by message, many on one connection."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.server.protocol import encode_flat
from tests.support.contracts import CALL, FUTURE, MONTH, PERPETUAL, PUT, ask, request, ticker
from tests.support.effort import examples
from tests.support.raw_client import TIMEOUT, masked_frame, open_websocket

Dial = Callable[..., ClientConnection]
Receive = Callable[..., list[Any]]
PAIR, OTHER = "BTC:USDC", "ETH:USDC"


def tick(number: int = 0, pair: str = PAIR) -> dict[str, str]:
    time = f"15:{number // 60:02}:{number % 60:02}.817Z"
    return {"pair": pair, "date": "2022-07-02", "time": time, "exchange": "BINANCE", "price": str(number)}


def flat(number: int = 0, pair: str = PAIR) -> dict[str, Any]:
    """The message of that tick on the second wire."""
    time = f"2022-07-02T15:{number // 60:02}:{number % 60:02}.817Z"
    return {
        "pair": pair,
        "unixDate": 1_656_774_000 + number,
        "UTCDate": time,
        "exchange": "BINANCE",
        "price": str(number),
    }


def subscribe(peer: ClientConnection, symbol: str) -> None:
    """Subscribe to a pair or a contract, and wait for the answer."""
    if ":" in symbol:
        answer = ask(peer, "getSpotRates", pair=symbol, resume=None)
    else:
        answer = ask(peer, "getDeribitContractStream", instrumentName=symbol, resume=None)
    assert answer == {"subscribed": symbol}


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A market of two pairs and four contracts that plays only what the test emits."""
    source = Tape([tick(), tick(pair=OTHER), *map(ticker, (CALL, PUT, FUTURE, PERPETUAL))], wait_for=10**6)
    with LocalServer(source, keys={"demo", "other"}) as server:
        yield server


@pytest.fixture(params=["streaming", "streamer"])
def peer(server: LocalServer, dial: Dial, request: pytest.FixtureRequest) -> ClientConnection:
    """A connection of the second wire, with either prefix."""
    return dial(server, f"{request.param}/demo")


def test_flat_ticks_of_any_number_of_pairs(server: LocalServer, peer: ClientConnection, receive: Receive) -> None:
    """One connection carries several pairs, and only these."""
    subscribe(peer, PAIR)
    server.emit(tick(1), tick(2, OTHER), tick(3))
    assert receive(peer, 2) == [flat(1), flat(3)]
    subscribe(peer, OTHER)
    server.emit(tick(4), tick(5, OTHER))
    assert receive(peer, 2) == [flat(4), flat(5, OTHER)]


def test_both_wires_side_by_side(server: LocalServer, peer: ClientConnection, dial: Dial, receive: Receive) -> None:
    """Each wire has its own form of a tick, whatever the prefix."""
    first = [dial(server, f"{prefix}/demo/{PAIR}") for prefix in ("streaming", "streamer")]
    subscribe(peer, PAIR)
    server.wait_connected(3)
    server.emit(tick(7))
    for stream in first:
        assert receive(stream) == [{"results": "streaming", "resultData": tick(7)}]
    assert peer.recv(timeout=TIMEOUT) == json.dumps(flat(7), separators=(",", ":"))
    assert server.stats.symbols == {PAIR: 3}


def test_the_setting_form_concerns_the_first_wire(dial: Dial, receive: Receive) -> None:
    """With `form="flat"`, both wires have the same ticks."""
    with LocalServer(SimulatedMarket(limit=0), form="flat") as server:
        both = [dial(server), dial(server, "streamer/demo")]
        subscribe(both[1], PAIR)
        server.wait_connected(2)
        server.emit(tick(1))
        assert [receive(each) for each in both] == [[flat(1)], [flat(1)]]


def test_mixed_subscriptions_on_one_connection(server: LocalServer, dial: Dial, receive: Receive) -> None:
    """A connection has pairs and contracts, asked for by URL and by message, and function calls in between."""
    peer = dial(server, f"streaming/demo/{PAIR}")
    server.wait_connected()
    subscribe(peer, OTHER)
    subscribe(peer, CALL)
    subscribe(peer, PERPETUAL)
    server.emit(tick(1), tick(2, OTHER), ticker(CALL), ticker(PUT), ticker(PERPETUAL))
    enveloped = {"results": "streaming", "resultData": tick(1)}
    assert receive(peer, 4) == [enveloped, flat(2, OTHER), ticker(CALL), ticker(PERPETUAL)]
    assert ask(peer, "keepAlive") == {"keepAlive": True}
    server.emit(tick(3))
    assert receive(peer) == [{"results": "streaming", "resultData": tick(3)}]
    assert server.stats.symbols == {PAIR: 1, OTHER: 1, CALL: 1, PERPETUAL: 1}


def test_only_those_who_ask_get_an_answer(server: LocalServer, peer: ClientConnection, receive: Receive) -> None:
    """The vendor acknowledges nothing, so the next message is the tick."""
    peer.send(request("getSpotRates", pair=PAIR))
    server.wait_connected()
    server.emit(tick(1))
    assert receive(peer) == [flat(1)]
    assert ask(peer, "getSpotRates", pair=OTHER, resume=None) == {"subscribed": OTHER}


def test_subscribing_again_changes_nothing(server: LocalServer, peer: ClientConnection, receive: Receive) -> None:
    """It is answered again, and no tick arrives twice."""
    for _ in range(3):
        subscribe(peer, PAIR)
    peer.send(request("getSpotRates", pair=PAIR))
    server.emit(tick(1), tick(2))
    assert receive(peer, 2) == [flat(1), flat(2)]
    assert server.stats.streams == 1


def test_subscribing_by_message_to_the_stream_of_the_url(server: LocalServer, dial: Dial, receive: Receive) -> None:
    """The stream keeps its form, and ends with unsubscribe. The connection stays."""
    peer = dial(server)
    server.wait_connected()
    subscribe(peer, PAIR)
    server.emit(tick(1))
    assert receive(peer) == [{"results": "streaming", "resultData": tick(1)}]
    assert ask(peer, "unsubscribe", pair=PAIR) == {"unsubscribed": PAIR}
    server.emit(tick(2))
    assert ask(peer, "authenticate") == {"isAuth": True}
    assert (server.stats.streams, server.stats.connections) == (0, 1)


def test_unsubscribe(server: LocalServer, peer: ClientConnection, receive: Receive) -> None:
    """Nothing of the symbol follows the answer, and other symbols go on."""
    for symbol in (PAIR, OTHER, CALL):
        subscribe(peer, symbol)
    assert ask(peer, "unsubscribe", pair=PAIR) == {"unsubscribed": PAIR}
    assert ask(peer, "unsubscribe", instrumentName=CALL) == {"unsubscribed": CALL}
    server.emit(tick(1), ticker(CALL), tick(2, OTHER))
    assert receive(peer) == [flat(2, OTHER)]
    subscribe(peer, PAIR)
    server.emit(tick(3))
    assert receive(peer) == [flat(3)]


@pytest.mark.parametrize("symbol", [PAIR, "XYZ:USDC", CALL, "BTC-1JAN99-5-P"])
def test_unsubscribe_is_idempotent(peer: ClientConnection, symbol: str) -> None:
    """It is answered even if there is no such subscription or symbol."""
    argument = "pair" if ":" in symbol else "instrumentName"
    for _ in range(2):
        assert ask(peer, "unsubscribe", **{argument: symbol}) == {"unsubscribed": symbol}


def test_no_tick_is_missing_after_the_answer(dial: Dial, receive: Receive) -> None:
    """While the market plays, the ticks after each answer are consecutive, and none follows unsubscribe."""
    with LocalServer(SimulatedMarket([PAIR], limit=0)) as server:
        peer, stop = dial(server, "streamer/demo"), threading.Event()

        def play() -> None:
            number = 0
            while not stop.is_set():
                server.emit(*(tick(number + each) for each in range(5)))
                number = (number + 5) % 3_000

        playing = threading.Thread(target=play)
        playing.start()
        try:
            for _ in range(30):
                subscribe(peer, PAIR)
                got = [int(each["price"]) for each in receive(peer, 50)]
                assert [(each - got[0]) % 3_000 for each in got] == list(range(50))
                peer.send(request("unsubscribe", pair=PAIR))
                while receive(peer) != [{"unsubscribed": PAIR}]:
                    pass
                assert ask(peer, "keepAlive") == {"keepAlive": True}
        finally:
            stop.set()
            playing.join()


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        (
            "getSpotRates",
            {"pair": "XYZ:USDC"},
            {"error": "unknown pair XYZ:USDC; expected a pair that this server plays", "pair": "XYZ:USDC"},
        ),
        (
            "getDeribitContractStream",
            {"instrumentName": "BTC-1JAN99"},
            {
                "error": "unknown contract BTC-1JAN99; expected one of listDeribitContracts",
                "instrumentName": "BTC-1JAN99",
            },
        ),
        ("getSpotRates", {}, {"error": "getSpotRates: pair is missing"}),
        ("getSpotRates", {"pair": ["BTC:USDC"]}, {"error": "getSpotRates: pair must be a non-empty string"}),
        (
            "getSpotRates",
            {"pair": "BTC\nUSDC"},
            {"error": "getSpotRates: pair is malformed; expected BASE:QUOTE, as in BTC:USDC"},
        ),
        (
            "getDeribitContractStream",
            {"instrumentName": "BTC 1"},
            {
                "error": "getDeribitContractStream: instrumentName is not a contract; expected a name such as "
                "BTC-26AUG22-20000-C, BTC-26AUG22 or BTC-PERPETUAL"
            },
        ),
        ("unsubscribe", {}, {"error": "unsubscribe: expected either pair or instrumentName"}),
        (
            "unsubscribe",
            {"pair": PAIR, "instrumentName": CALL},
            {"error": "unsubscribe: expected either pair or instrumentName", "instrumentName": CALL},
        ),
    ],
)
def test_errors_name_the_symbol(
    peer: ClientConnection, name: str, arguments: dict[str, Any], answer: dict[str, str]
) -> None:
    """An error says what was expected, and which subscription it is about. The connection stays."""
    assert {**ask(peer, name, **arguments)} == answer
    subscribe(peer, PAIR)


def test_a_server_without_options_says_so(dial: Dial) -> None:
    """No contract is known there."""
    with LocalServer(SimulatedMarket(limit=0)) as server:
        answer = ask(dial(server, "streamer/demo"), "getDeribitContractStream", instrumentName=CALL)
    text = f"unknown contract {CALL}; expected none, because this server has no options"
    assert answer == {"error": text, "instrumentName": CALL}


@pytest.mark.parametrize("argument", ["pair", "instrumentName"])
@pytest.mark.parametrize("function", ["getSpotRates", "getDeribitContractStream", "unsubscribe"])
def test_a_misplaced_key_is_not_quoted(dial: Dial, argument: str, function: str) -> None:
    """Not even one that looks like a symbol."""
    key = "SECRETKEY:12345678" if argument == "pair" else "SECRETKEY-PERPETUAL"
    with LocalServer(SimulatedMarket(limit=0), keys={key}) as server:
        peer = dial(server, f"streamer/{key}")
        answer = ask(peer, function, key=key, **{argument: key})
        assert set(answer) == {"error"}
        assert "SECRET" not in answer["error"]


def test_limits_subscriptions(dial: Dial) -> None:
    """A connection can have 10,000 subscriptions. The error of the next one names the pair."""
    pairs = [f"P{number}:USDC" for number in range(10_001)]
    with LocalServer(SimulatedMarket(pairs, limit=0), queue_bytes=1 << 24) as server:
        peer = dial(server, "streamer/demo")
        for pair in pairs:
            peer.send(request("getSpotRates", pair=pair))
        error = json.loads(peer.recv(timeout=TIMEOUT))
        assert error["pair"] == pairs[-1]
        assert "10,000 subscriptions" in error["error"]
        assert server.stats.streams == 10_000
        subscribe(peer, pairs[0])
        server.emit(tick(1, pairs[-1]), *(tick(number % 3_000, pair) for number, pair in enumerate(pairs[:-1])))
        got = [json.loads(peer.recv(timeout=TIMEOUT))["pair"] for _ in range(10_000)]
        assert got == pairs[:-1]
        assert ask(peer, "unsubscribe", pair=pairs[0]) == {"unsubscribed": pairs[0]}
        subscribe(peer, pairs[-1])
        peer.close()
        server.wait_until(lambda stats: stats.connections == 0)
        assert (server.stats.streams, server.stats.symbols) == (0, {})


def test_faults_by_symbol_concern_the_whole_connection(
    server: LocalServer, peer: ClientConnection, dial: Dial, close_frame_of: Callable[[ClientConnection], Any]
) -> None:
    """A connection with subscriptions is a stream of each of its symbols."""
    functions = dial(server, "streamer/demo")
    assert server.send_message('"both"', only="functions") == 2
    assert [json.loads(each.recv(timeout=TIMEOUT)) for each in (peer, functions)] == ["both", "both"]
    subscribe(peer, PAIR)
    subscribe(peer, OTHER)
    assert server.send_message('"stream"', OTHER) == server.send_message('"stream"', only="streams") == 1
    assert [json.loads(peer.recv(timeout=TIMEOUT)) for _ in range(2)] == ["stream", "stream"]
    assert server.go_silent(PAIR) == server.resume() == 1
    assert server.drop_connections(only="functions") == 1
    assert server.close_connections(1012, symbol=PAIR) == 1
    assert close_frame_of(peer).code == 1012
    assert server.stats.streams == 0


def test_silence_holds_messages_back(server: LocalServer, peer: ClientConnection, receive: Receive) -> None:
    """Ticks during the silence arrive afterwards, and so do answers."""
    subscribe(peer, PAIR)
    server.go_silent(PAIR)
    server.emit(tick(1))
    peer.send(request("getSpotRates", pair=OTHER, resume=None))
    assert server.resume() == 1
    assert receive(peer, 2) == [flat(1), {"subscribed": OTHER}]


def test_faults_of_functions_spare_subscribing(server: LocalServer, peer: ClientConnection) -> None:
    """Unless it is named. Subscribing isn't counted as a call either."""
    server.fail_functions(1)
    subscribe(peer, PAIR)
    assert ask(peer, "authenticate") == {"error": "failed on demand"}
    server.fail_functions(1, "no", function="getSpotRates")
    assert ask(peer, "getSpotRates", pair=OTHER, resume="ask") == {"error": "no", "pair": OTHER}
    assert server.stats.calls == 1


def test_slow_clients_are_disconnected(dial: Dial, close_frame_of: Callable[[ClientConnection], Any]) -> None:
    """As on the first wire: 1013 when the queue is full."""
    with LocalServer(SimulatedMarket([PAIR], limit=0), queue_bytes=20_000, send_buffer=4_096) as server:
        peer = dial(server, "streamer/demo", lazy=True)
        subscribe(peer, PAIR)
        while not server.stats.slow_clients:
            server.emit(*(tick(number) for number in range(500)))
        assert close_frame_of(peer).code == 1013
        assert server.stats.streams == 0


def test_idle_connections_are_closed(dial: Dial, close_frame_of: Callable[[ClientConnection], Any]) -> None:
    """Subscribing doesn't keep a connection alive. Only keepAlive does."""
    with LocalServer(SimulatedMarket(limit=0), idle_limit=0.2) as server:
        peer = dial(server, "streamer/demo")
        subscribe(peer, PAIR)
        assert close_frame_of(peer).code == 1000


def test_a_revoked_key_ends_the_connection(
    server: LocalServer, peer: ClientConnection, close_frame_of: Callable[[ClientConnection], Any]
) -> None:
    """With 1008, as on the first wire."""
    subscribe(peer, PAIR)
    server.revoke_key("demo")
    assert close_frame_of(peer).code == 1008


def test_restart_forgets_subscriptions(
    server: LocalServer, peer: ClientConnection, dial: Dial, receive: Receive
) -> None:
    """The client subscribes again on its next connection."""
    subscribe(peer, PAIR)
    server.stop()
    with pytest.raises(ConnectionClosed):
        peer.recv(timeout=TIMEOUT)
    server.start()
    assert server.stats.streams == 0
    again = dial(server, "streamer/demo")
    subscribe(again, PAIR)
    server.emit(tick(5))
    assert receive(again) == [flat(5)]


def test_a_market_starts_when_enough_is_subscribed(dial: Dial, receive: Receive) -> None:
    """`wait_for` counts subscriptions."""
    ticks = [tick(1), tick(2, OTHER)]
    with LocalServer(Tape(ticks, speed=None, wait_for=2)) as server:
        peer = dial(server, "streamer/demo")
        subscribe(peer, PAIR)
        assert not server.stats.started
        subscribe(peer, OTHER)
        assert receive(peer, 2) == [flat(1), flat(2, OTHER)]


def test_a_flood_of_requests(server: LocalServer) -> None:
    """Requests that arrive in one piece are answered in order."""
    count = 2_000
    frames = b"".join(
        masked_frame(1, request("getSpotRates" if number % 2 else "unsubscribe", pair=PAIR, resume=None).encode())
        for number in range(count)
    )
    with open_websocket(server, "/streamer/demo") as sock:
        sock.sendall(frames)
        expected = b"".join(
            bytes([0x81, len(answer)]) + answer
            for answer in [b'{"unsubscribed":"BTC:USDC"}', b'{"subscribed":"BTC:USDC"}'] * (count // 2)
        )
        got = b""
        while len(got) < len(expected):
            got += sock.recv(65_536)
        assert got == expected


def next_answer(peer: ClientConnection) -> Any:
    """The next message that isn't the newest ticker for a new subscriber."""
    while "instrument_name" in (message := json.loads(peer.recv(timeout=TIMEOUT))):
        pass
    return message


symbols = st.sampled_from([PAIR, OTHER, CALL, MONTH, "XYZ:USDC", "", "a b"]) | st.text(max_size=20)
requests = st.fixed_dictionaries(
    {"functionName": st.sampled_from(["getSpotRates", "getDeribitContractStream", "unsubscribe"])},
    optional={"pair": symbols | st.none(), "instrumentName": symbols | st.integers(), "resume": st.none()},
)


@given(st.lists(requests, max_size=20))
@examples(100)
def test_any_requests_leave_the_subscriptions_that_they_say(sent: list[dict[str, Any]]) -> None:
    """The answers and the stats agree with a model, and exactly the subscribed symbols arrive."""
    known = {PAIR, OTHER, CALL, PUT}
    model: set[str] = set()
    with connect(_shared.server.url + "streamer/demo", proxy=None, compression=None) as peer:
        for each in sent:
            peer.send(json.dumps({"APIKey": "demo", **each}))
            begins = each["functionName"] != "unsubscribe"
            argument = "pair" if each["functionName"] == "getSpotRates" else "instrumentName"
            if begins:
                symbol = each.get(argument)
                right = isinstance(symbol, str) and symbol in known and (":" in symbol) == (argument == "pair")
                if right:
                    model.add(str(symbol))
                if not right or "resume" in each:
                    answer = next_answer(peer)
                    assert ("error" in answer) if not right else answer == {"subscribed": symbol}
            else:
                answer = next_answer(peer)
                assert ("error" in answer) != ("unsubscribed" in answer)
                model.discard(answer.get("unsubscribed"))
        peer.send(request("keepAlive"))
        assert next_answer(peer) == {"keepAlive": True}
        _shared.server.emit(tick(1), tick(2, OTHER), ticker(CALL), ticker(PUT))
        peer.send(request("keepAlive"))
        got = []
        while (message := json.loads(peer.recv(timeout=TIMEOUT))) != {"keepAlive": True}:
            got.append(message.get("pair") or message["instrument_name"])
        assert sorted(got) == sorted(model)


class _Shared:
    """The server of the property test."""

    server: LocalServer


_shared = _Shared()


@pytest.fixture(autouse=True, scope="module")
def _start_shared() -> Iterator[None]:
    source = Tape([tick(), tick(pair=OTHER), ticker(CALL), ticker(PUT)], wait_for=10**6)
    with LocalServer(source) as _shared.server:
        yield


@given(st.fixed_dictionaries({name: st.text() for name in ("pair", "exchange", "price")}))
def test_flat_form_keeps_any_text(values: dict[str, str]) -> None:
    """The later form has the tick's own strings."""
    sent = json.loads(encode_flat({**tick(), **values}))
    assert {name: sent[name] for name in values} == values
