"""The functions, asked by an independent client: answers, errors, order, floods and faults on demand."""

from __future__ import annotations

import contextlib
import json
import random
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
from finx_streamer.server.functions import CallError, numbered, prepare, read_call, refusal
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


def ask(peer: ClientConnection, name: str, **arguments: Any) -> Any:
    """One call and its answer."""
    peer.send(request(name, **arguments))
    return json.loads(peer.recv(timeout=30))


def history(peer: ClientConnection, time: str = "00:00", pair: str = "BTC:USDC", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = ask(peer, "tickHistory", pair=pair, date=DAY, time=time, **more)
    return found


def prices(answer: dict[str, Any]) -> list[int]:
    return sorted(int(each["price"]) for each in answer.values())


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A market that never begins, and a store of two pairs' ticks."""
    with LocalServer(Tape([tick(0)], wait_for=99), keys={KEY, "other-key"}) as found:
        found.import_ticks([tick(number, exchange="FTX" if number % 3 else "BINANCE") for number in range(1_500)])
        found.import_ticks([tick(number, "ETH:BTC") for number in range(10)])
        yield found


@pytest.fixture
def peer(server: LocalServer, dial: Dial) -> ClientConnection:
    """A function connection."""
    return dial(server, f"streamer/{KEY}")


@pytest.mark.parametrize("path", ["streamer", "streaming"])
def test_both_paths_answer(server: LocalServer, dial: Dial, path: str) -> None:
    """Functions are served under either prefix, over one connection."""
    peer = dial(server, f"{path}/{KEY}")
    assert ask(peer, "authenticate") == {"isAuth": True}
    assert ask(peer, "keepAlive") == {"keepAlive": True}
    assert tick(9, "ETH:BTC") == ask(peer, "tickSnap", pair="ETH:BTC", date=DAY, time="13:00")
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
def test_history_begins_after_the_time(peer: ClientConnection, time: str, first: int | None) -> None:
    """The answer holds the first 1,000 ticks strictly after the time, whatever its form."""
    expected = [] if first is None else list(range(first, min(first + 1_000, 1_500)))
    answer = history(peer, time)
    assert expected == prices(answer)
    assert [str(number) for number in range(len(expected))] == list(answer)


def test_history_ends_with_the_day(server: LocalServer, peer: ClientConnection) -> None:
    """Other days' ticks are other calls'."""
    server.import_ticks([tick(0, date="2022-07-01"), tick(0, date="2022-07-03", time="00:00:00.000Z")])
    assert len(history(peer, "12:20")) == 300
    assert ask(peer, "tickHistory", pair="BTC:USDC", date="2022-07-04", time="00:00") == {}


def test_history_is_shuffled(peer: ClientConnection) -> None:
    """Neither in order nor in the same disorder twice: nobody can rely on any."""
    once, twice = ([each["price"] for each in history(peer).values()] for _ in range(2))
    assert sorted(once) == sorted(twice)
    assert once != twice
    assert once != sorted(once, key=int)


@pytest.mark.parametrize("exchange", ["BINANCE", "FTX", "NONE"])
def test_a_network_s_own_series(peer: ClientConnection, exchange: str) -> None:
    """With `exchange` both tick functions look at its ticks only."""
    own = [n for n in range(1_500) if exchange == ("FTX" if n % 3 else "BINANCE")]
    assert own[:1_000] == prices(history(peer, exchange=exchange))
    snap = ask(peer, "tickSnap", pair="BTC:USDC", date=DAY, time="12:10", exchange=exchange)
    last = [number for number in own if number < 600][-1:]
    assert last == ([] if "error" in snap else [int(snap["price"])])


@pytest.mark.parametrize(
    ("date", "time", "price"), [(DAY, "12:00:00.5", "0"), (DAY, "12:00:59", "58"), ("2022-07-09", "00:00", "1499")]
)
def test_snap_is_the_last_at_or_before(peer: ClientConnection, date: str, time: str, price: str) -> None:
    """The time itself counts, and so do the days before."""
    assert price == ask(peer, "tickSnap", pair="BTC:USDC", date=date, time=time)["price"]


def test_snap_before_the_first_tick(peer: ClientConnection) -> None:
    """There is nothing to be told, and that is an error."""
    answer = ask(peer, "tickSnap", pair="BTC:USDC", date=DAY, time="12:00:00.4")
    assert answer == {"error": "tickSnap: there is no tick at or before that time"}


def test_reference_data(peer: ClientConnection) -> None:
    """An asset or a pair has facts, those of the stored ticks among them."""
    assert {
        "securityId": "BTC",
        "kind": "asset",
        "pairs": ["BTC:USDC", "ETH:BTC"],
        "exchanges": ["BINANCE", "FTX"],
        "firstTick": tick(0),
        "lastTick": tick(1_499, exchange="FTX"),
    } == ask(peer, "referenceData", securityId="BTC")
    assert {
        "securityId": "ETH:BTC",
        "kind": "pair",
        "pairs": ["ETH:BTC"],
        "exchanges": ["BINANCE"],
        "firstTick": tick(0, "ETH:BTC"),
        "lastTick": tick(9, "ETH:BTC"),
    } == ask(peer, "referenceData", securityId="ETH:BTC")


def test_reference_data_of_what_was_never_traded(dial: Dial) -> None:
    """A pair that the source may yet play is known, and has no ticks."""
    with LocalServer(Tape([tick(0)], wait_for=99)) as server:
        facts = ask(dial(server, "streamer/k"), "referenceData", securityId="USDC") | {"securityId": ""}
        expected = {"kind": "asset", "pairs": ["BTC:USDC"], "exchanges": [], "firstTick": None, "lastTick": None}
        assert {"securityId": "", **expected} == facts
        assert history(dial(server, "streamer/k")) == {}


GOOD: dict[str, Any] = {"pair": "BTC:USDC", "date": DAY, "time": "00:00"}


@pytest.mark.parametrize("name", ["tickHistory", "tickSnap"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pair": None}, "pair is no text"),
        ({"pair": 7}, "pair is no text"),
        ({"pair": ""}, "pair is empty"),
        ({"pair": "btc-usdc"}, "pair 'btc-usdc' is malformed; expected BASE:QUOTE"),
        ({"pair": "DOGE:USDC"}, "pair 'DOGE:USDC' is not known here"),
        ({"pair": f"{KEY}:USD"}, "pair is malformed"),
        ({"pair": KEY.upper()}, "pair is malformed"),
        ({"date": "2022-02-30"}, "date '2022-02-30' is malformed; expected YYYY-MM-DD, a day that exists"),
        ({"date": "2022-7-2"}, "date '2022-7-2' is malformed"),
        ({"date": KEY}, "date is malformed"),
        ({"date": 20220702}, "date is no text"),
        ({"time": "24:00"}, "time '24:00' is malformed; expected HH:MM, HH:MM:SS or HH:MM:SS.fff"),
        ({"time": "12"}, "time '12' is malformed"),
        ({"time": "12:00:00."}, "time '12:00:00.' is malformed"),
        ({"time": "12:00.5"}, "time '12:00.5' is malformed"),
        ({"time": "12:60"}, "time '12:60' is malformed"),
        ({"time": "12:00:61"}, "time '12:00:61' is malformed"),
        ({"time": "\u0661\u0662:\u0660\u0660"}, "time is malformed"),
        ({"time": " 12:00"}, "time is malformed"),
        ({"time": "12:00ZZ"}, "time '12:00ZZ' is malformed"),
        ({"time": []}, "time is no text"),
        ({"exchange": ""}, "exchange is empty"),
        ({"exchange": 1}, "exchange is no text"),
    ],
)
def test_arguments_that_are_wrong(peer: ClientConnection, name: str, arguments: dict[str, Any], says: str) -> None:
    """The error names the function and the argument, and no key; the connection lives on."""
    answer = ask(peer, name, **(GOOD | arguments))
    assert list(answer) == ["error"]
    assert answer["error"].startswith(f"{name}: {says}")
    assert KEY not in answer["error"].lower()
    assert ask(peer, "keepAlive") == {"keepAlive": True}


@pytest.mark.parametrize(("name", "missing"), [("tickSnap", x) for x in GOOD] + [("referenceData", "securityId")])
def test_arguments_that_are_missing(peer: ClientConnection, name: str, missing: str) -> None:
    """What is missing is named."""
    arguments = {key: value for key, value in GOOD.items() if key != missing}
    assert {"error": f"{name}: {missing} is missing"} == ask(peer, name, **arguments)


def test_a_security_that_is_not_known(peer: ClientConnection) -> None:
    """The error says what may be asked for."""
    assert "securityId 'XYZ' is not known here" in ask(peer, "referenceData", securityId="XYZ")["error"]
    assert "securityId is not known here" in ask(peer, "referenceData", securityId="<b>")["error"]


@pytest.mark.parametrize("name", ["greeksHistory", "GreeksHistory", "greeks"])
def test_greeks_are_to_come(peer: ClientConnection, name: str) -> None:
    """Greeks history is a future release's."""
    assert ask(peer, name) == {"error": "Greeks history is scheduled for a future release"}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 9_000, "not JSON"),
        ("[1]", "a message is a text frame with a JSON object"),
        (b"{}", "a message is a text frame with a JSON object"),
        ("{}", "functionName is missing"),
        (f'{{"APIKey":"{KEY}"}}', "functionName is missing"),
        ('{"functionName":"keepAlive"}', "APIKey is missing; each call carries the API key"),
        ('{"functionName":"keepAlive","APIKey":"other"}', "APIKey is not accepted; each call carries the API key"),
        ('{"functionName":"keepAlive","APIKey":["a-secret-key"]}', "APIKey is not accepted"),
        (f'{{"functionName":"nope","APIKey":"{KEY}"}}', "function 'nope' is not available; there are authenticate, "),
        (f'{{"functionName":"x_{KEY}","APIKey":"{KEY}"}}', "function of that name is not available"),
        (f'{{"functionName":["{KEY}"],"APIKey":"{KEY}"}}', "function of that name is not available"),
        (f'{{"functionName":"\\u0000","APIKey":"{KEY}"}}', "function of that name is not available"),
    ],
)
def test_messages_that_are_no_calls(peer: ClientConnection, message: str | bytes, says: str) -> None:
    """Each has an error that says what was wrong, no key in it, and the connection lives on."""
    peer.send(message)
    answer = json.loads(peer.recv(timeout=20))
    assert answer["error"].startswith(says)
    assert KEY not in answer["error"]
    assert ask(peer, "keepAlive") == {"keepAlive": True}


@given(
    st.one_of(
        st.text(), st.dictionaries(st.sampled_from(["functionName", "APIKey", "pair"]), st.text()).map(json.dumps)
    )
)
def test_any_message_is_a_call_or_a_refusal(message: str) -> None:
    """Nothing else is raised, and a refusal is JSON."""
    for strict in (True, False):
        error = None
        try:
            call = read_call(message, KEY, lambda key: True, strict=strict)
            if call is not None:
                prepare(call, frozenset())
        except CallError as caught:
            error = caught
        if error is not None:
            assert list(json.loads(refusal(error))) == ["error"]


def test_a_call_does_not_show_its_key() -> None:
    """A key is not printed by accident."""
    call = read_call(request("tickSnap", pair=KEY), KEY, {KEY}.__contains__)
    assert KEY not in repr(call)


@given(st.lists(st.integers(0, 3)), st.randoms(use_true_random=False))
def test_numbers_count_over_a_shuffled_list(numbers: list[int], chance: random.Random) -> None:
    """Every tick is there, as often as it was, under the numbers from 0."""
    answer = json.loads(numbered([f'{{"price":"{number}"}}' for number in numbers], chance))
    assert [str(number) for number in range(len(numbers))] == list(answer)
    assert sorted(numbers) == prices(answer)


@examples(25)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["", "0", "00", "01", "1", "123456789012"])), max_size=30),
    st.integers(0, 41),
    st.booleans(),
)
def test_shuffled_answers_sorted_again_are_the_range(moments: list[tuple[int, str]], after: int, snap: bool) -> None:
    """Over the wire: history is the multiset that lies after the time, snap the last one not after it."""
    ticks = [
        tick(0, time=f"12:00:{second:02}{f'.{fraction}' if fraction else ''}Z", price=str(number))
        for number, (second, fraction) in enumerate(moments)
    ]
    begin = Decimal(after) + Decimal("0.01")
    order = sorted(enumerate(ticks), key=lambda each: Decimal(each[1]["time"][6:-1]))
    with LocalServer(Tape([tick(0)], wait_for=99)) as server, connect(f"{server.url}streamer/k", proxy=None) as peer:
        server.import_ticks(ticks)
        time = f"12:00:{after:02}.010"
        if snap:
            answer = ask(peer, "tickSnap", pair="BTC:USDC", date=DAY, time=time)
            last = [each for _, each in order if Decimal(each["time"][6:-1]) <= begin][-1:]
            assert last == ([] if "error" in answer else [answer])
        else:
            expected = [number for number, each in order if Decimal(each["time"][6:-1]) > begin]
            assert sorted(expected) == prices(history(peer, time))


def test_an_answer_knows_every_tick_that_was_sent(dial: Dial) -> None:
    """Whoever has received a tick finds it in the history, with nothing to wait for."""
    ticks = [tick(number) for number in range(3_000)]
    with LocalServer(Tape(ticks, speed=None, loop=True), store_batch_seconds=60.0) as server:
        stream, functions = dial(server, f"streaming/{KEY}/BTC:USDC"), dial(server, f"streamer/{KEY}")
        for _ in range(30):
            price = json.loads(stream.recv(timeout=20))["resultData"]["price"]
            before = f"{tick(int(price) - 1)['time']}" if int(price) else "00:00"
            assert int(price) in prices(history(functions, before))


def test_streams_answer_calls_too(server: LocalServer, dial: Dial) -> None:
    """A call over a stream is answered there; objects without a function stay ignored."""
    peer = dial(server, f"streaming/{KEY}/BTC:USDC")
    peer.send('{"message":"message"}')
    peer.send(json.dumps({"message": {"pair": "BTC:USDC"}, "APIKey": KEY}))
    assert len(history(peer)) == 1_000
    assert "pair is missing" in ask(peer, "tickSnap")["error"]


def test_answers_come_in_the_order_of_the_calls(peer: ClientConnection) -> None:
    """Whether a call needs the store or not, its answer waits for its turn."""
    for second in range(50):
        peer.send(request("tickSnap", pair="BTC:USDC", date=DAY, time=f"12:00:{second:02}.9"))
        peer.send(request("keepAlive"))
    answers = [json.loads(peer.recv(timeout=20)) for _ in range(100)]
    assert [str(second) for second in range(50)] == [answer["price"] for answer in answers[::2]]
    assert answers[1::2] == [{"keepAlive": True}] * 50


def test_many_clients_at_once(server: LocalServer, dial: Dial) -> None:
    """Each gets its own answers."""
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


def test_a_client_that_floods_is_bounded(dial: Dial) -> None:
    """Who calls and never reads is read no more: a few answers are made, others are served meanwhile, then it goes."""
    with LocalServer(
        Tape([tick(0)], wait_for=99), send_buffer=8_192, slow_client_timeout=1.0, close_timeout=0.1
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
        # Each answer is of 110 KB, and some fit into what the kernels hold.
        assert server.stats.calls < 100
        server.wait_until(lambda stats: stats.connections == 1)
        assert ask(other, "keepAlive") == {"keepAlive": True}


def test_a_client_that_hangs_up_amid_its_calls(server: LocalServer, dial: Dial) -> None:
    """The server forgets it."""
    for _ in range(20):
        peer = dial(server, f"streamer/{KEY}")
        for _ in range(20):
            peer.send(request("tickHistory", **GOOD))
        peer.socket.shutdown(socket.SHUT_RDWR)
    server.wait_until(lambda stats: stats.connections == 0)
    assert len(history(dial(server, f"streamer/{KEY}"))) == 1_000


# Faults on demand


def test_failing_functions(server: LocalServer, peer: ClientConnection) -> None:
    """The next calls get the error, keepAlive does not, and then all is well."""
    server.fail_functions(2, "try later")
    assert ask(peer, "keepAlive") == {"keepAlive": True}
    assert [history(peer), ask(peer, "authenticate")] == [{"error": "try later"}] * 2
    assert len(history(peer)) == 1_000
    server.fail_functions(None, function="tickHistory")
    assert ask(peer, "authenticate") == {"isAuth": True}
    assert [history(peer) for _ in range(3)] == [{"error": "failed on demand"}] * 3
    server.fail_functions(0)
    assert len(history(peer)) == 1_000
    server.fail_functions(1, function="keepAlive")
    assert ask(peer, "keepAlive") == {"error": "failed on demand"}


def test_faults_of_functions_spare_streams(server: LocalServer, dial: Dial) -> None:
    """They hit function connections alone."""
    server.fail_functions(None)
    assert ask(dial(server, f"streaming/{KEY}/BTC:USDC"), "authenticate") == {"isAuth": True}


def test_stalled_functions(server: LocalServer, peer: ClientConnection, dial: Dial) -> None:
    """A stalled call is answered late, at `resume()`; calls of others are not held up."""
    server.stall_functions(1)
    peer.send(request("tickHistory", **GOOD))
    server.wait_until(lambda stats: stats.calls == 1)
    assert len(history(dial(server, f"streamer/{KEY}"))) == 1_000
    with pytest.raises(TimeoutError):
        peer.recv(timeout=0.1)
    server.resume()
    assert len(json.loads(peer.recv(timeout=20))) == 1_000


def test_a_stalled_client_may_leave_and_the_server_stop(server: LocalServer, dial: Dial) -> None:
    """A call without an answer keeps nobody."""
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
def test_dropped_functions(server: LocalServer, peer: ClientConnection, dial: Dial, reset: bool) -> None:
    """The connection ends at the call, without an answer."""
    server.drop_functions(1, reset=reset)
    peer.send(request("authenticate"))
    with pytest.raises(ConnectionClosed) as caught:
        peer.recv(timeout=20)
    assert caught.value.rcvd is None
    assert ask(dial(server, f"streamer/{KEY}"), "authenticate") == {"isAuth": True}


def test_faults_for_one_kind_of_connection(server: LocalServer, peer: ClientConnection, dial: Dial) -> None:
    """`only` narrows a fault to streams or to functions."""
    stream = dial(server, f"streaming/{KEY}/BTC:USDC")
    assert server.send_message("hello", only="streams") == 1
    assert stream.recv(timeout=20) == "hello"
    assert server.go_silent(only="functions") == 1
    assert server.resume() == 1
    assert server.close_connections(symbol="BTC:USDC", only="functions") == 0
    assert server.drop_connections(only="streams") == 1
    assert ask(peer, "keepAlive") == {"keepAlive": True}
    assert server.close_connections(only="functions") == 1
    with pytest.raises(ConfigurationError, match="only"):
        server.go_silent(only="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["fail_functions", "stall_functions", "drop_functions"])
def test_counts_that_make_no_sense(server: LocalServer, method: str) -> None:
    """A negative count is an error."""
    with pytest.raises(ConfigurationError, match="count is -1"):
        getattr(server, method)(-1)


def test_an_import_beside_a_busy_market(dial: Dial, tmp_path: Any) -> None:
    """While a tape of 60,000 ticks is imported, calls are answered and ticks go out."""
    tape = tmp_path / "tape.jsonl"
    tape.write_text("".join(json.dumps(tick(n % 40_000, "ETH:BTC")) + "\n" for n in range(60_000)))
    with LocalServer(SimulatedMarket(["BTC:USDC"], rate=2_000.0)) as server:
        stream, functions = dial(server, f"streaming/{KEY}/BTC:USDC"), dial(server, f"streamer/{KEY}")
        done: list[int] = []
        importing = threading.Thread(target=lambda: done.append(server.import_ticks(tape)))
        importing.start()
        served = 0
        while importing.is_alive():
            assert ask(functions, "keepAlive") == {"keepAlive": True}
            stream.recv(timeout=20)
            served += 1
        assert done == [60_000]
        assert served > 1
        assert len(history(functions, pair="ETH:BTC")) == 1_000
