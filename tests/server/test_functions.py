"""Function calls by an independent client: answers, errors, order, floods and faults on demand."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.server.functions import CallError, encode_history, prepare, read_call
from tests.support.effort import examples

Dial = Callable[..., ClientConnection]
KEY = "a-secret-key"
DAY = "2022-07-02"


def tick(number: int, pair: str = "BTC:USDC", exchange: str = "BINANCE", **others: str) -> dict[str, str]:
    """The tick of the n-th second after noon; its price is its number."""
    time = f"{12 + number // 3_600:02}:{number // 60 % 60:02}:{number % 60:02}.500Z"
    return {"pair": pair, "date": DAY, "time": time, "exchange": exchange, "price": str(number)} | others


def request(name: str, **arguments: Any) -> str:
    return json.dumps({"APIKey": KEY, "functionName": name, **arguments})


def call(peer: ClientConnection, name: str, **arguments: Any) -> Any:
    """Call a function and return its answer."""
    peer.send(request(name, **arguments))
    return json.loads(peer.recv(timeout=30))


def history(peer: ClientConnection, time: str = "00:00", pair: str = "BTC:USDC", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = call(peer, "tickHistory", pair=pair, date=DAY, time=time, **more)
    return found


def prices(answer: dict[str, Any]) -> list[int]:
    return sorted(int(each["price"]) for each in answer.values())


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A market that never starts, and a store with ticks of two pairs."""
    with LocalServer(Tape([tick(0)], wait_for=99), keys={KEY, "other-key"}) as server:
        server.import_ticks([tick(number, exchange="FTX" if number % 3 else "BINANCE") for number in range(1_500)])
        server.import_ticks([tick(number, "ETH:BTC") for number in range(10)])
        yield server


@pytest.fixture
def peer(server: LocalServer, dial: Dial) -> ClientConnection:
    """A function connection."""
    return dial(server, f"streamer/{KEY}")


@pytest.mark.parametrize("path", ["streamer", "streaming"])
def test_both_prefixes_serve_functions(server: LocalServer, dial: Dial, path: str) -> None:
    """Functions are served under either prefix, over one connection."""
    peer = dial(server, f"{path}/{KEY}")
    assert call(peer, "authenticate") == {"isAuth": True}
    assert call(peer, "keepAlive") == {"keepAlive": True}
    assert call(peer, "tickSnap", pair="ETH:BTC", date=DAY, time="13:00") == tick(9, "ETH:BTC")
    assert server.stats.calls == 2 + 1


@pytest.mark.parametrize(
    ("time", "first"),
    [
        ("00:00", 0),
        ("12:00", 0),
        ("12:00Z", 0),
        ("12:01", 60),
        ("12:00:01", 1),
        ("12:00:00.5", 1),
        ("12:00:00.500000000000Z", 1),
        ("12:00:00.499999999999", 0),
        ("12:00:00.500000000001", 1),
        ("12:00:60", 60),
        ("12:20", 1_200),
        ("23:59:59.999Z", None),
        ("23:59:60", None),
    ],
)
def test_history_starts_after_the_time(peer: ClientConnection, time: str, first: int | None) -> None:
    """The answer has the first 1,000 ticks strictly after the time, in any time format."""
    expected = [] if first is None else list(range(first, min(first + 1_000, 1_500)))
    answer = history(peer, time)
    assert prices(answer) == expected
    assert list(answer) == [str(number) for number in range(len(expected))]


def test_history_ends_with_the_day(server: LocalServer, peer: ClientConnection) -> None:
    """Ticks of other days aren't included."""
    server.import_ticks([tick(0, date="2022-07-01"), tick(0, date="2022-07-03", time="00:00:00.000Z")])
    assert len(history(peer, "12:20")) == 300
    assert call(peer, "tickHistory", pair="BTC:USDC", date="2022-07-04", time="00:00") == {}


def test_history_is_shuffled(peer: ClientConnection) -> None:
    """The order is random, and differs from call to call."""
    # Two of a thousand orders are the same now and then.
    orders = [[each["price"] for each in history(peer).values()] for _ in range(4)]
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) > 1
    assert orders[0] != sorted(orders[0], key=int)


@pytest.mark.parametrize("exchange", ["BINANCE", "FTX", "NONE"])
def test_series_of_one_exchange(peer: ClientConnection, exchange: str) -> None:
    """With `exchange`, both tick functions use only its ticks."""
    own = [n for n in range(1_500) if exchange == ("FTX" if n % 3 else "BINANCE")]
    assert prices(history(peer, exchange=exchange)) == own[:1_000]
    snap = call(peer, "tickSnap", pair="BTC:USDC", date=DAY, time="12:10", exchange=exchange)
    last = [number for number in own if number < 600][-1:]
    assert ([] if "error" in snap else [int(snap["price"])]) == last


@pytest.mark.parametrize(
    ("date", "time", "price"), [(DAY, "12:00:00.5", "0"), (DAY, "12:00:59", "58"), ("2022-07-09", "00:00", "1499")]
)
def test_snap_is_the_last_tick_at_or_before(peer: ClientConnection, date: str, time: str, price: str) -> None:
    """A snap includes the time itself and earlier days."""
    assert call(peer, "tickSnap", pair="BTC:USDC", date=date, time=time)["price"] == price


def test_snap_before_the_first_tick(peer: ClientConnection) -> None:
    """A snap before the first tick is an error."""
    answer = call(peer, "tickSnap", pair="BTC:USDC", date=DAY, time="12:00:00.4")
    assert answer == {"error": "tickSnap: there is no tick at or before that time"}


def test_reference_data(peer: ClientConnection) -> None:
    """Assets and pairs have reference data, including their first and last tick."""
    assert call(peer, "referenceData", securityId="BTC") == {
        "securityId": "BTC",
        "kind": "asset",
        "pairs": ["BTC:USDC", "ETH:BTC"],
        "exchanges": ["BINANCE", "FTX"],
        "firstTick": tick(0),
        "lastTick": tick(1_499, exchange="FTX"),
    }
    assert call(peer, "referenceData", securityId="ETH:BTC") == {
        "securityId": "ETH:BTC",
        "kind": "pair",
        "pairs": ["ETH:BTC"],
        "exchanges": ["BINANCE"],
        "firstTick": tick(0, "ETH:BTC"),
        "lastTick": tick(9, "ETH:BTC"),
    }


def test_reference_data_without_ticks(dial: Dial) -> None:
    """A pair that the source may play is known, even without ticks."""
    with LocalServer(Tape([tick(0)], wait_for=99)) as server:
        assert call(dial(server, "streamer/k"), "referenceData", securityId="USDC") == {
            "securityId": "USDC",
            "kind": "asset",
            "pairs": ["BTC:USDC"],
            "exchanges": [],
            "firstTick": None,
            "lastTick": None,
        }
        assert history(dial(server, "streamer/k")) == {}


GOOD: dict[str, Any] = {"pair": "BTC:USDC", "date": DAY, "time": "00:00"}


@pytest.mark.parametrize("name", ["tickHistory", "tickSnap"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pair": None}, "pair must be a non-empty string"),
        ({"pair": 7}, "pair must be a non-empty string"),
        ({"pair": ""}, "pair must be a non-empty string"),
        ({"pair": "btc-usdc"}, "pair 'btc-usdc' is malformed; expected BASE:QUOTE"),
        ({"pair": "DOGE:USDC"}, "pair 'DOGE:USDC' is unknown; expected a pair"),
        ({"pair": "DOGEUSDC"}, "pair 'DOGEUSDC' is malformed; expected BASE:QUOTE, did you mean DOGE:USDC?"),
        ({"pair": "币安人生:USDT"}, "pair '币安人生:USDT' is unknown; expected a pair"),
        ({"pair": "$TRUMP:US%C"}, "pair is malformed; expected BASE:QUOTE, as in BTC:USDC"),
        ({"pair": f"{KEY}USDC"}, "pair is malformed; expected BASE:QUOTE, as in BTC:USDC"),
        ({"pair": f"{KEY}:USD"}, "pair is malformed"),
        ({"pair": KEY.upper()}, "pair is malformed"),
        ({"date": "2022-02-30"}, "date '2022-02-30' is malformed; expected an existing day as YYYY-MM-DD"),
        ({"date": "2022-7-2"}, "date '2022-7-2' is malformed"),
        ({"date": KEY}, "date is malformed"),
        ({"date": 20220702}, "date must be a non-empty string"),
        ({"time": "24:00"}, "time '24:00' is malformed; expected HH:MM, HH:MM:SS or HH:MM:SS.fff"),
        ({"time": "12"}, "time '12' is malformed"),
        ({"time": "12:00:00."}, "time '12:00:00.' is malformed"),
        ({"time": "12:00.5"}, "time '12:00.5' is malformed"),
        ({"time": "12:60"}, "time '12:60' is malformed"),
        ({"time": "12:00:61"}, "time '12:00:61' is malformed"),
        ({"time": "\u0661\u0662:\u0660\u0660"}, "time '\u0661\u0662:\u0660\u0660' is malformed"),
        ({"time": " 12:00"}, "time is malformed"),
        ({"time": "12:00ZZ"}, "time '12:00ZZ' is malformed"),
        ({"time": []}, "time must be a non-empty string"),
        ({"exchange": ""}, "exchange must be a non-empty string"),
        ({"exchange": 1}, "exchange must be a non-empty string"),
    ],
)
def test_invalid_argument_is_named(peer: ClientConnection, name: str, arguments: dict[str, Any], message: str) -> None:
    """The error names the function and the argument but no key, and the connection stays open."""
    answer = call(peer, name, **(GOOD | arguments))
    assert list(answer) == ["error"]
    assert answer["error"].startswith(f"{name}: {message}")
    assert KEY not in answer["error"].lower()
    assert call(peer, "keepAlive") == {"keepAlive": True}


@pytest.mark.parametrize(("name", "missing"), [("tickSnap", x) for x in GOOD] + [("referenceData", "securityId")])
def test_missing_argument_is_named(peer: ClientConnection, name: str, missing: str) -> None:
    """The error names the missing argument."""
    arguments = {key: value for key, value in GOOD.items() if key != missing}
    assert call(peer, name, **arguments) == {"error": f"{name}: {missing} is missing"}


def test_unknown_security(peer: ClientConnection) -> None:
    """The error says which securities are valid, and quotes only plausible ones."""
    assert (
        "securityId 'XYZ' is unknown; expected an asset or a pair"
        in call(peer, "referenceData", securityId="XYZ")["error"]
    )
    assert "securityId is unknown" in call(peer, "referenceData", securityId="<b>")["error"]


@pytest.mark.parametrize("name", ["greeksHistory", "GreeksHistory", "greeks"])
def test_greeks_history_is_unavailable(peer: ClientConnection, name: str) -> None:
    """Greeks history is announced for a future release."""
    assert call(peer, name) == {"error": "Greeks history is scheduled for a future release"}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("", "the message is not JSON"),
        ("{", "the message is not JSON"),
        ("[" * 9_000, "the message is not JSON"),
        ("[1]", "a message must be a text frame with a JSON object"),
        (b"{}", "a message must be a text frame with a JSON object"),
        ("{}", "functionName is missing"),
        (f'{{"APIKey":"{KEY}"}}', "functionName is missing"),
        ('{"functionName":"keepAlive"}', "APIKey is missing; every call must contain the API key"),
        (
            '{"functionName":"keepAlive","APIKey":"other"}',
            "APIKey is not accepted; every call must contain the API key",
        ),
        ('{"functionName":"keepAlive","APIKey":["a-secret-key"]}', "APIKey is not accepted"),
        (f'{{"functionName":"nope","APIKey":"{KEY}"}}', "unknown function 'nope'; expected one of authenticate, "),
        (f'{{"functionName":"x_{KEY}","APIKey":"{KEY}"}}', "unknown function; expected one of"),
        (f'{{"functionName":["{KEY}"],"APIKey":"{KEY}"}}', "unknown function; expected one of"),
        (f'{{"functionName":"\\u0000","APIKey":"{KEY}"}}', "unknown function; expected one of"),
    ],
)
def test_malformed_messages(peer: ClientConnection, message: str | bytes, error: str) -> None:
    """The error says what is wrong but contains no key, and the connection stays open."""
    peer.send(message)
    answer = json.loads(peer.recv(timeout=20))
    assert answer["error"].startswith(error)
    assert KEY not in answer["error"]
    assert call(peer, "keepAlive") == {"keepAlive": True}


@given(
    st.one_of(
        st.text(), st.dictionaries(st.sampled_from(["functionName", "APIKey", "pair"]), st.text()).map(json.dumps)
    )
)
def test_any_message_is_a_call_or_an_error(message: str) -> None:
    """A message raises nothing but a CallError."""
    for strict in (True, False):
        with contextlib.suppress(CallError):
            parsed = read_call(message, KEY, lambda key: True, strict=strict)
            if parsed is not None:
                prepare(parsed, frozenset())


def test_call_repr_hides_the_key() -> None:
    """The repr of a call contains no key."""
    parsed = read_call(request("tickSnap", pair=KEY), KEY, {KEY}.__contains__)
    assert KEY not in repr(parsed)


@given(st.lists(st.integers(0, 3)))
def test_encoded_history_has_every_tick(numbers: list[int]) -> None:
    """Every tick occurs as often as in the input, numbered from 0."""
    answer = json.loads(encode_history([f'{{"price":"{number}","exchange":"100 %s"}}' for number in numbers]))
    assert list(answer) == [str(number) for number in range(len(numbers))]
    assert prices(answer) == sorted(numbers)


@examples(25)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["", "0", "00", "01", "1", "123456789012"])), max_size=30),
    st.integers(0, 41),
    st.booleans(),
)
def test_answers_match_a_search_of_all_ticks(moments: list[tuple[int, str]], after: int, snap: bool) -> None:
    """Over the wire, history has all ticks after the time, and a snap is the last tick not after it."""
    ticks = [
        tick(0, time=f"12:00:{second:02}{f'.{fraction}' if fraction else ''}Z", price=str(number))
        for number, (second, fraction) in enumerate(moments)
    ]
    asked = Decimal(after) + Decimal("0.01")
    order = sorted(enumerate(ticks), key=lambda each: Decimal(each[1]["time"][6:-1]))
    with LocalServer(Tape([tick(0)], wait_for=99)) as server, connect(f"{server.url}streamer/k", proxy=None) as peer:
        server.import_ticks(ticks)
        time = f"12:00:{after:02}.010"
        if snap:
            answer = call(peer, "tickSnap", pair="BTC:USDC", date=DAY, time=time)
            last = [each for _, each in order if Decimal(each["time"][6:-1]) <= asked][-1:]
            assert ([] if "error" in answer else [answer]) == last
        else:
            expected = [number for number, each in order if Decimal(each["time"][6:-1]) > asked]
            assert prices(history(peer, time)) == sorted(expected)


def test_answer_includes_every_tick_sent_before(dial: Dial) -> None:
    """A tick that a client has received is in the history at once."""
    ticks = [tick(number) for number in range(3_000)]
    with LocalServer(Tape(ticks, speed=None, loop=True), store_batch_seconds=60.0, close_timeout=0.1) as server:
        stream, functions = dial(server, f"streaming/{KEY}/BTC:USDC"), dial(server, f"streamer/{KEY}")
        for _ in range(30):
            price = json.loads(stream.recv(timeout=20))["resultData"]["price"]
            before = f"{tick(int(price) - 1)['time']}" if int(price) else "00:00"
            assert int(price) in prices(history(functions, before))


def test_streams_answer_calls(server: LocalServer, dial: Dial) -> None:
    """Calls on a stream are answered, and objects without a function are ignored."""
    peer = dial(server, f"streaming/{KEY}/BTC:USDC")
    peer.send('{"message":"message"}')
    peer.send(json.dumps({"message": {"pair": "BTC:USDC"}, "APIKey": KEY}))
    assert len(history(peer)) == 1_000
    assert "pair is missing" in call(peer, "tickSnap")["error"]


def test_answers_are_in_order(peer: ClientConnection) -> None:
    """Answers arrive in the order of the calls, with or without the store."""
    for second in range(50):
        peer.send(request("tickSnap", pair="BTC:USDC", date=DAY, time=f"12:00:{second:02}.9"))
        peer.send(request("keepAlive"))
    answers = [json.loads(peer.recv(timeout=20)) for _ in range(100)]
    assert [answer["price"] for answer in answers[::2]] == [str(second) for second in range(50)]
    assert answers[1::2] == [{"keepAlive": True}] * 50


def test_serves_many_clients(server: LocalServer, dial: Dial) -> None:
    """Each client gets its own answers."""
    wrong: list[Any] = []

    def work(number: int) -> None:
        peer = dial(server, f"streamer/{KEY}")
        for second in range(20):
            found = prices(history(peer, f"12:{number:02}:{second:02}"))
            if found != list(range(60 * number + second, 60 * number + second + 1_000))[: len(found)] or not found:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.stats.calls == 400


def test_flooding_client_is_limited(dial: Dial) -> None:
    """A client that calls but never reads gets few answers, delays no one, and is disconnected."""
    with LocalServer(
        Tape([tick(0)], wait_for=99), send_buffer=8_192, slow_client_timeout=0.3, close_timeout=0.1
    ) as server:
        server.import_ticks([tick(number) for number in range(1_000)])
        flooder = dial(server, "streamer/k", lazy=True)

        def flood() -> None:
            with contextlib.suppress(ConnectionClosed, OSError):
                while True:
                    flooder.send(request("tickHistory", **GOOD))

        flooding = threading.Thread(target=flood)
        flooding.start()
        other = dial(server, "streamer/k")
        for _ in range(5):
            assert len(history(other)) == 1_000
        server.wait_until(lambda stats: stats.slow_clients == 1)
        flooding.join()
        # An answer has 110 KB, and the kernels buffer a few of them.
        assert server.stats.calls < 100
        server.wait_until(lambda stats: stats.connections == 1)
        assert call(other, "keepAlive") == {"keepAlive": True}


def test_client_that_leaves_during_its_calls(server: LocalServer, dial: Dial) -> None:
    """The server forgets clients that leave without waiting for their answers."""
    for _ in range(20):
        peer = dial(server, f"streamer/{KEY}")
        for _ in range(20):
            peer.send(request("tickHistory", **GOOD))
        peer.socket.shutdown(socket.SHUT_RDWR)
    server.wait_until(lambda stats: stats.connections == 0)
    assert len(history(dial(server, f"streamer/{KEY}"))) == 1_000


def test_fails_functions(server: LocalServer, peer: ClientConnection) -> None:
    """The next calls get the error, except keepAlive, and later ones succeed."""
    server.fail_functions(2, "try later")
    assert call(peer, "keepAlive") == {"keepAlive": True}
    assert [history(peer), call(peer, "authenticate")] == [{"error": "try later"}] * 2
    assert len(history(peer)) == 1_000
    server.fail_functions(None, function="tickHistory")
    assert call(peer, "authenticate") == {"isAuth": True}
    assert [history(peer) for _ in range(3)] == [{"error": "failed on demand"}] * 3
    server.fail_functions(0)
    assert len(history(peer)) == 1_000
    server.fail_functions(1, function="keepAlive")
    assert call(peer, "keepAlive") == {"error": "failed on demand"}


def test_function_faults_do_not_affect_streams(server: LocalServer, dial: Dial) -> None:
    """Faults of functions apply only to function connections."""
    server.fail_functions(None)
    assert call(dial(server, f"streaming/{KEY}/BTC:USDC"), "authenticate") == {"isAuth": True}


def test_stalls_functions(server: LocalServer, peer: ClientConnection, dial: Dial) -> None:
    """A stalled call is answered at `resume()`, and calls of other clients aren't delayed."""
    server.stall_functions(1)
    peer.send(request("tickHistory", **GOOD))
    server.wait_until(lambda stats: stats.calls == 1)
    assert len(history(dial(server, f"streamer/{KEY}"))) == 1_000
    with pytest.raises(TimeoutError):
        peer.recv(timeout=0.1)
    server.resume()
    assert len(json.loads(peer.recv(timeout=20))) == 1_000


def test_stalled_call_delays_no_close_or_stop(server: LocalServer, dial: Dial) -> None:
    """A stalled client can leave, and the server can stop."""
    server.stall_functions(None)
    first, second = dial(server, f"streamer/{KEY}"), dial(server, f"streamer/{KEY}")
    for each in (first, second):
        each.send(request("authenticate"))
    server.wait_until(lambda stats: stats.calls == 2)
    first.close()
    server.wait_until(lambda stats: stats.connections == 1)
    server.stop()
    with pytest.raises(ConnectionClosed):
        second.recv(timeout=20)


@pytest.mark.parametrize("reset", [False, True])
def test_drops_functions(server: LocalServer, peer: ClientConnection, dial: Dial, reset: bool) -> None:
    """The connection ends at the call, without an answer."""
    server.drop_functions(1, reset=reset)
    peer.send(request("authenticate"))
    with pytest.raises(ConnectionClosed) as caught:
        peer.recv(timeout=20)
    assert caught.value.rcvd is None
    assert call(dial(server, f"streamer/{KEY}"), "authenticate") == {"isAuth": True}


def test_faults_for_one_kind_of_connection(server: LocalServer, peer: ClientConnection, dial: Dial) -> None:
    """A fault can be limited to streams or functions."""
    stream = dial(server, f"streaming/{KEY}/BTC:USDC")
    assert server.send_message("hello", only="streams") == 1
    assert stream.recv(timeout=20) == "hello"
    assert server.go_silent(only="functions") == 1
    assert server.resume() == 1
    assert server.close_connections(symbol="BTC:USDC", only="functions") == 0
    assert server.drop_connections(only="streams") == 1
    assert call(peer, "keepAlive") == {"keepAlive": True}
    assert server.close_connections(only="functions") == 1
    with pytest.raises(ConfigurationError, match="only"):
        server.go_silent(only="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["fail_functions", "stall_functions", "drop_functions"])
def test_rejects_negative_counts(server: LocalServer, method: str) -> None:
    """A negative count is an error."""
    with pytest.raises(ConfigurationError, match="count is -1"):
        getattr(server, method)(-1)


def test_serves_during_an_import(dial: Dial, tmp_path: Any) -> None:
    """While a recording is imported, calls are answered and ticks are sent."""
    tape = tmp_path / "tape.jsonl"
    tape.write_text("".join(json.dumps(tick(n, "ETH:BTC")) + "\n" for n in range(20_000)))
    with LocalServer(SimulatedMarket(["BTC:USDC"], rate=2_000.0), close_timeout=0.1) as server:
        stream, functions = dial(server, f"streaming/{KEY}/BTC:USDC"), dial(server, f"streamer/{KEY}")
        done: list[int] = []
        importing = threading.Thread(target=lambda: done.append(server.import_ticks(tape)))
        importing.start()
        served = 0
        while importing.is_alive():
            assert call(functions, "keepAlive") == {"keepAlive": True}
            stream.recv(timeout=20)
            served += 1
        assert done == [20_000]
        assert served > 1
        assert len(history(functions, pair="ETH:BTC")) == 1_000
