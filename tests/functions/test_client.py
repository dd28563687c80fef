"""`FunctionClient` with the local server, and with servers that misbehave."""

from __future__ import annotations

import inspect
import io
import json
import logging
import random
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trustme
import websocket

from finx_streamer import (
    AuthenticationError,
    CallTimeout,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    FunctionClient,
    FunctionError,
    NotAvailable,
    Pair,
    StreamListener,
    Tick,
)
from finx_streamer.config.api_key import KeySource
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support import market
from tests.support.calls import answer
from tests.support.peers import PATIENCE, QUICK, Peer, Script, Seen, close_frame, frame, refuse
from tests.support.secrets import KEY, assert_clean, give_key
from tests.support.tls import client_context, server_context

WireTick = dict[str, str]


def wire(moment: datetime, price: object = 1, exchange: str = "BINANCE", pair: str = "BTC:USDC") -> WireTick:
    """A tick in the form of the wire."""
    time = moment.time().isoformat("microseconds")
    return {
        "pair": pair,
        "date": moment.date().isoformat(),
        "time": f"{time}Z",
        "exchange": exchange,
        "price": str(price),
    }


NOON = datetime(2022, 7, 2, 12, tzinfo=UTC)
#: 2,500 ticks, two a second, across midnight, from two exchanges alternately.
TICKS = [
    wire(NOON + timedelta(hours=11, minutes=50, milliseconds=500 * n + n % 7), n, "BINANCE" if n % 2 else "FTX")
    for n in range(2_500)
]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server with these ticks, which accepts the key `demo`."""
    with LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={"demo"}) as running:
        running.import_ticks(TICKS)
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[FunctionClient]:
    """A client of that server."""
    with FunctionClient("demo", server.url, timeout=PATIENCE, reconnect=QUICK) as one:
        yield one


def prices(ticks: list[Tick]) -> list[int]:
    """The ticks' prices."""
    return [int(tick["price"]) for tick in ticks]


# Functions and their results.


class HastyClient(FunctionClient):
    """The client of the command line."""

    _fail_fast = True


def test_a_hasty_client_still_retries_after_its_first_connection() -> None:
    """A server that was there may come back."""
    with (
        LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={KEY}) as server,
        HastyClient(KEY, server.url, timeout=1.0) as client,
    ):
        assert client.authenticate()
        server.stop()
        with pytest.raises((CallTimeout, ConnectionFailed)) as caught:
            client.tick_snap("BTC:USDC")
    assert isinstance(caught.value, CallTimeout) or caught.value.attempt > 1


def test_a_hasty_client_gives_up_on_a_server_that_is_not_there() -> None:
    """The first refused connection is its error."""
    with LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={KEY}) as server:
        url = server.url
    with HastyClient(KEY, url, timeout=3_600.0) as client, pytest.raises(ConnectionFailed) as caught:
        client.tick_snap("BTC:USDC")
    assert caught.value.attempt == 1


def test_authenticate_accepts_a_valid_key(client: FunctionClient) -> None:
    """authenticate() returns True if the server accepts the key."""
    assert client.authenticate() is True


@pytest.mark.parametrize(
    "script",
    [
        refuse("401 No"),
        refuse("403 No"),
        answer(lambda request: frame('{"isAuth":false}')),
        answer(lambda request: frame("{}")),
        answer(lambda request: close_frame(1008)),
    ],
    ids=["401", "403", "false", "empty", "1008"],
)
def test_a_refused_key_does_not_authenticate(script: Script) -> None:
    """authenticate() returns False for every form of refusal."""
    with Peer(script) as peer, FunctionClient("demo", peer.url, timeout=PATIENCE) as client:
        assert client.authenticate() is False


def test_authenticate_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, the error says where the client looks for one."""
    monkeypatch.delenv("FINX_API_KEY", raising=False)
    with (
        FunctionClient(endpoint="ws://127.0.0.1:1/") as client,
        pytest.raises(AuthenticationError, match="FINX_API_KEY"),
    ):
        client.authenticate()


def test_a_snap_is_a_tick(client: FunctionClient) -> None:
    """A snap has the wire's fields unchanged and those that the client adds, with `backfilled` set."""
    tick = client.tick_snap("BTC:USDC", NOON + timedelta(hours=11, minutes=50, seconds=1))
    assert {name: tick[name] for name in TICKS[1]} == TICKS[1] | {"price": 1.0}  # type: ignore[literal-required]
    assert (tick["timestamp"], tick["backfilled"]) == (NOON + timedelta(hours=11, minutes=50, milliseconds=501), True)
    assert tick["received_ns"] > 0


def test_a_snap_without_a_time_is_the_latest_tick(client: FunctionClient) -> None:
    """tick_snap() also accepts a `Pair`."""
    assert client.tick_snap(Pair("BTC", "USDC"))["price"] == 2_499


@pytest.mark.parametrize(
    "at",
    [
        datetime(2022, 7, 3, tzinfo=UTC),
        datetime(2022, 7, 3, 2, tzinfo=timezone(timedelta(hours=2))),
        date(2022, 7, 3),
        "2022-07-03",
        "2022-07-03T00:00:00Z",
        "2022-07-03T00:00",
        "2022-07-02T19:00:00-05:00",
    ],
)
def test_times_can_be_given_in_many_forms(client: FunctionClient, at: Any) -> None:
    """All of these mean the same moment, because a string without an offset is in UTC."""
    assert client.tick_snap("BTC:USDC", at)["price"] == 1_199


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (datetime(2022, 7, 3), "has no time zone"),
        ("tomorrow", "expected an aware datetime"),
        (1_656_775_855, "expected an aware datetime"),
        ("1969-12-31", "from 1970"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "to 9998"),
    ],
)
def test_invalid_times_are_refused(client: FunctionClient, at: Any, message: str) -> None:
    """A naive datetime is refused too, because elsewhere it means local time."""
    with pytest.raises(ConfigurationError, match=message):
        client.tick_snap("BTC:USDC", at)


def test_history_is_complete_and_sorted(client: FunctionClient) -> None:
    """Pages of 1,000 unordered ticks from two days give the whole tape in order."""
    found = client.tick_history("BTC:USDC", NOON, NOON + timedelta(days=1))
    times = [tick["timestamp"] for tick in found]
    assert times == sorted(times)
    assert Counter(prices(found)) == Counter(range(2_500))
    assert all(tick["backfilled"] for tick in found)


@pytest.mark.parametrize("count", [1, 2])
def test_history_has_one_tick_at_midnight(count: int) -> None:
    """If several equal ticks are at exactly midnight, history has one, because the wire doesn't reveal their number."""
    midnight = datetime(2022, 7, 3, tzinfo=UTC)
    with LocalServer(SimulatedMarket(rate=0.001), keys={"demo"}) as server:
        server.import_ticks([wire(NOON, 1), *[wire(midnight, 2)] * count, wire(midnight + timedelta(seconds=1), 3)])
        with FunctionClient("demo", server.url) as client:
            assert prices(client.tick_history("BTC:USDC", NOON, midnight + timedelta(hours=1))) == [1, 2, 3]
            assert prices(client.tick_history("BTC:USDC", midnight, midnight + timedelta(hours=1))) == [2, 3]


def test_history_is_half_open(client: FunctionClient) -> None:
    """History includes the start and excludes the end."""
    first, last = NOON + timedelta(hours=11, minutes=50), NOON + timedelta(hours=11, minutes=50, milliseconds=1)
    assert prices(client.tick_history("BTC:USDC", first, last)) == [0]


def test_history_without_an_end_lasts_until_now(client: FunctionClient) -> None:
    """Years without ticks are skipped."""
    assert len(client.tick_history("BTC:USDC", date(2015, 1, 1))) == 2_500


def test_history_can_be_limited_to_an_exchange(client: FunctionClient) -> None:
    """With `exchange`, only that exchange's ticks are returned, and none for an unknown one."""
    found = client.tick_history("BTC:USDC", "2022-07-02", "2022-07-04", exchange="FTX")
    assert set(prices(found)) == set(range(0, 2_500, 2))
    assert client.tick_history("BTC:USDC", "2022-07-02", "2022-07-04", exchange="NOWHERE") == []


def test_the_client_filters_exchanges_itself() -> None:
    """If the server ignores the exchange, the client filters its pages and still reads all of them."""

    def history(request: dict[str, Any]) -> bytes:
        if request["functionName"] == "tickSnap":
            return frame(json.dumps(TICKS[-1]))
        time = request["time"] if request["time"] != "00:00:00.000" else "00:00:00"
        later = [tick for tick in TICKS if tick["date"] == request["date"] and tick["time"] > time][:1_000]
        random.shuffle(later)
        return frame(json.dumps(dict(enumerate(later))))

    with Peer(answer(history)) as peer, FunctionClient("demo", peer.url, timeout=PATIENCE) as client:
        found = client.tick_history("BTC:USDC", "2022-07-02", "2022-07-04", exchange="FTX")
    assert set(prices(found)) == set(range(0, 2_500, 2))


def test_history_is_lazy(client: FunctionClient, server: LocalServer) -> None:
    """While a page is used, one more is requested. The client stays usable if the iterator is dropped."""
    before = server.stats.calls
    ticks = client.iter_tick_history("BTC:USDC", NOON, NOON + timedelta(days=1))
    assert server.stats.calls == before
    next(ticks)
    server.wait_until(lambda stats: stats.calls == before + 2)
    for _ in range(900):
        next(ticks)
    assert server.stats.calls == before + 2
    del ticks
    assert client.authenticate()


@pytest.mark.parametrize(
    "arguments",
    [
        ("BTC-USDC", "2022-07-02"),
        (7, "2022-07-02"),
        ("BTCN2202207", "2022-07-02"),
        ("BTC:USDC", "2022-07-02", "2022-07-01"),
        ("BTC:USDC", "2022-07-02", None, ""),
        ("BTC:USDC", "2022-07-02", None, 5),
        ("BTC:USDC", "2022-07-02", None, None, "yes"),
    ],
)
def test_history_refuses_bad_arguments_at_once(client: FunctionClient, arguments: tuple[Any, ...]) -> None:
    """iter_tick_history() checks its arguments when it is called, not at the first tick."""
    with pytest.raises(ConfigurationError):
        client.iter_tick_history(*arguments)


def test_real_trades_are_returned_unchanged(shared_data: Path) -> None:
    """Recorded trades come back with the same text, and equal ones as often as they were recorded."""
    lines = [json.loads(line) for line in (shared_data / "tape-small.jsonl").read_text().splitlines()]
    recorded = [line.get("resultData", line) for line in lines]
    fields = ("pair", "date", "time", "exchange", "price")
    with LocalServer(SimulatedMarket(rate=0.001), keys={"demo"}) as server:
        server.import_ticks(recorded)
        with FunctionClient("demo", server.url, timeout=PATIENCE, parse_price=str) as client:
            found = []
            for pair in sorted({tick["pair"] for tick in recorded}):
                found += client.tick_history(pair, "2021-01-01", "2025-01-01")
    expected = Counter(tuple(tick[field] for field in fields) for tick in recorded)
    assert Counter(tuple(tick[field] for field in fields) for tick in found) == expected  # type: ignore[literal-required]


def test_reference_data_describes_a_security(client: FunctionClient) -> None:
    """reference_data() returns the server's object."""
    assert client.reference_data("BTC")["securityId"] == "BTC"


def test_greeks_history_is_not_available(client: FunctionClient) -> None:
    """The error announces it for a future release."""
    with pytest.raises(NotAvailable, match="future release"):
        client.greeks_history("BTCN2202207", start="2022-07-02")


def test_any_function_can_be_called(client: FunctionClient) -> None:
    """call() uses the names of the wire."""
    assert client.call("keepAlive") == {"keepAlive": True}
    assert "19" in client.call("tickSnap", pair="BTC:USDC", date="2022-07-03", time="00:00")["price"]


@pytest.mark.parametrize("endpoint", ["production", "beta", "demo", "ws://localhost:8080/"])
def test_an_endpoint_is_not_a_key(endpoint: str) -> None:
    """The key comes first, but `FunctionClient("demo")` reads as if the endpoint did."""
    with pytest.raises(ConfigurationError, match=r"^api_key: .* [Pp]ass (it|the URL) as endpoint=$"):
        FunctionClient(endpoint)


def test_numbers_of_numpy_can_be_sent() -> None:
    """Arguments often come out of a table."""
    numpy = pytest.importorskip("numpy")

    def repeat(request: dict[str, Any]) -> bytes:
        return frame(json.dumps({"n": request["n"], "x": request["x"]}))

    with Peer(answer(repeat)) as peer, FunctionClient(KEY, peer.url, timeout=numpy.float32(10)) as client:
        assert client.call("matrix", n=numpy.int64(5), x=[numpy.float32(0.5)]) == {"n": 5, "x": [0.5]}


@pytest.mark.parametrize("arguments", [{"APIKey": KEY}, {"functionName": "x"}, {"when": NOON}, {"x": float("nan")}])
def test_call_refuses_reserved_and_unsendable_arguments(client: FunctionClient, arguments: dict[str, Any]) -> None:
    """The client adds the key and the function's name itself, and only JSON values can be sent."""
    with pytest.raises(ConfigurationError) as caught:
        client.call("echo", **arguments)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["", None, 5])
def test_names_must_be_nonempty_strings(client: FunctionClient, name: Any) -> None:
    """Functions and securities have names."""
    with pytest.raises(ConfigurationError, match="function_name"):
        client.call(name)
    with pytest.raises(ConfigurationError, match="security_id"):
        client.reference_data(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.tick_snap("BTC:USDC", "1999-01-01"), "no tick at or before"),
        (lambda client: client.tick_snap("XRP:USDC"), "XRP:USDC"),
        (lambda client: client.tick_history("XRP:USDC", "2022-07-02"), "XRP:USDC"),
        (lambda client: client.call("makeCoffee"), "makeCoffee"),
    ],
)
def test_errors_name_the_call(client: FunctionClient, call: Callable[[FunctionClient], Any], message: str) -> None:
    """An error has the function's name and the server's message, but not the key."""
    with pytest.raises(FunctionError, match=message) as caught:
        call(client)
    assert caught.value.function in str(caught.value)
    assert "demo" not in str(caught.value)


@pytest.mark.parametrize(("parse", "expected"), [(Decimal, Decimal("2499")), (str, "2499"), (float, 2499.0)])
def test_parse_price_parses_prices(server: LocalServer, parse: Callable[[str], Any], expected: Any) -> None:
    """Prices in history have the type that `parse_price` returns."""
    with FunctionClient("demo", server.url, parse_price=parse) as client:
        price = client.tick_snap("BTC:USDC")["price"]
    assert (type(price), price) == (type(expected), expected)


def test_an_error_in_parse_price_is_a_decode_error(server: LocalServer) -> None:
    """The callable's exception is the cause, also while a key ends with the name of a field ("time")."""
    KeySource.from_argument("any-time")

    def broken(text: str) -> float:
        raise ArithmeticError("mine")

    with FunctionClient("demo", server.url, parse_price=broken) as client:
        with pytest.raises(DecodeError, match="parse_price refused") as caught:
            client.tick_snap("BTC:USDC")
        assert isinstance(caught.value.__cause__, ArithmeticError)


@pytest.mark.parametrize(
    "sent",
    [
        {"0": 5},
        {"0": TICKS[0], "1": {**TICKS[0], "pair": "ETH:USDC"}},
        {"0": None},
        {"results": [TICKS[0]]},
    ],
)
def test_an_answer_with_anything_but_ticks_of_the_pair_is_an_error(sent: dict[str, Any]) -> None:
    """It may be the answer to another call."""
    with (
        Peer(answer(lambda request: frame(json.dumps(sent)))) as peer,
        FunctionClient("demo", peer.url) as client,
        pytest.raises(DecodeError, match="BTC:USDC"),
    ):
        client.tick_history("BTC:USDC", "2022-07-02", "2022-07-03")


#: 300 ticks, of which one is bad.
BAD_TICKS: dict[str, dict[str, str]] = {
    "price": {**TICKS[100], "price": "NaN"},
    "date": {**TICKS[100], "date": "2022-02-30"},
    "missing": {name: value for name, value in TICKS[100].items() if name != "exchange"},
    "key": {**TICKS[100], "price": KEY},
}


@pytest.fixture(params=list(BAD_TICKS))
def peer_with_bad_tick(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A server whose history has the bad tick; its tick snap has the last good one."""
    sent = {str(n): BAD_TICKS[request.param] if n == 100 else each for n, each in enumerate(TICKS[:300])}

    def handle(asked: dict[str, Any]) -> bytes:
        return frame(json.dumps(sent if asked["functionName"] == "tickHistory" else TICKS[299]))

    with Peer(answer(handle)) as peer:
        yield peer


def test_a_bad_tick_is_left_out_of_history(peer_with_bad_tick: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """The other ticks are returned. The bad one is counted, and reported in the log without the key."""
    with FunctionClient(KEY, peer_with_bad_tick.url) as client:
        found = client.tick_history("BTC:USDC", "2022-07-02T01:00", "2022-07-03")
        assert [tick["price"] for tick in found] == [n for n in range(300) if n != 100]
        assert client.bad_ticks == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "can't be read (1 so far" in warning
    assert_clean(warning, "bad tick")


def test_a_bad_tick_can_be_raised_or_handled(peer_with_bad_tick: Peer) -> None:
    """A callable gets the error, and may raise one of its own."""
    errors: list[DecodeError] = []
    arguments = ("BTC:USDC", "2022-07-02T01:00", "2022-07-03")
    with FunctionClient("demo", peer_with_bad_tick.url, on_bad=errors.append) as client:
        assert len(client.tick_history(*arguments)) == 299
        assert [type(error) for error in errors] == [DecodeError]
    with FunctionClient("demo", peer_with_bad_tick.url, on_bad="raise") as client, pytest.raises(DecodeError):
        client.tick_history(*arguments)


def test_repeated_warnings_of_bad_ticks_become_rare(caplog: pytest.LogCaptureFixture) -> None:
    """The 1st, 10th and 100th are logged."""
    sent = {str(n): {**each, "price": "NaN"} for n, each in enumerate(TICKS[:300])}
    with Peer(answer(lambda request: frame(json.dumps(sent)))) as peer, FunctionClient("demo", peer.url) as client:
        assert client.tick_history("BTC:USDC", "2022-07-02T01:00", "2022-07-02T23:59") == []
        assert client.bad_ticks == 300
    counts = re.findall(r"\((\d+) so far", caplog.text)
    assert counts == ["1", "10", "100"]


def test_a_bad_snap_is_an_error() -> None:
    """There is nothing else to return."""
    with (
        Peer(answer(lambda request: frame(json.dumps(BAD_TICKS["price"])))) as peer,
        FunctionClient("demo", peer.url) as client,
        pytest.raises(DecodeError, match="'NaN' is not a decimal number"),
    ):
        client.tick_snap("BTC:USDC")


# Faults.


def test_a_failed_function_raises_once(server: LocalServer, client: FunctionClient) -> None:
    """An error from the server is raised and doesn't affect the next call."""
    server.fail_functions(1, "out of order")
    with pytest.raises(FunctionError, match="out of order"):
        client.authenticate()
    assert client.authenticate()


def test_dropped_calls_leave_no_hole_in_history(server: LocalServer, client: FunctionClient) -> None:
    """Calls that the server drops are retried."""
    server.drop_functions(3)
    assert len(client.tick_history("BTC:USDC", NOON, NOON + timedelta(days=1))) == 2_500


def test_a_stalled_call_times_out(server: LocalServer) -> None:
    """Its late answer isn't taken for the next call's."""
    with FunctionClient("demo", server.url, timeout=0.3, connections=1) as client:
        server.stall_functions(1)
        with pytest.raises(CallTimeout):
            client.tick_snap("BTC:USDC", "2022-07-03")
        server.resume()
        client._timeout = PATIENCE
        assert client.reference_data("BTC")["securityId"] == "BTC"


def test_history_survives_a_lost_connection() -> None:
    """If the connection is reset while history is read, the iterator continues without a hole."""
    with LocalServer(SimulatedMarket(rate=0.001), keys={"demo"}) as local:
        local.import_ticks(TICKS)
        with FunctionClient("demo", local.url, timeout=PATIENCE, reconnect=QUICK) as client:
            ticks = client.iter_tick_history("BTC:USDC", NOON, NOON + timedelta(days=1))
            found = [next(ticks)]
            local.drop_connections(reset=True)
            found += ticks
    assert Counter(prices(found)) == Counter(range(2_500))


def test_threads_can_read_history_together(client: FunctionClient) -> None:
    """Each thread gets the complete history of its exchange."""
    found: dict[int, set[int]] = {}

    def read(number: int) -> None:
        exchange = "FTX" if number % 2 else "BINANCE"
        found[number] = set(prices(client.tick_history("BTC:USDC", NOON, NOON + timedelta(days=1), exchange)))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == {number: set(range(1 - number % 2, 2_500, 2)) for number in range(8)}


def test_history_equals_the_live_ticks() -> None:
    """Ticks that a listener received live are in history."""
    tape = [wire(NOON + timedelta(seconds=n), n) for n in range(300)]
    with LocalServer(Tape(tape, speed=None), keys={"demo"}) as server:
        live: list[Tick] = []
        # The loop starts the listener, so it misses no tick.
        for tick in StreamListener("BTC:USDC", api_key="demo", endpoint=server.url):
            live.append(tick)
            if len(live) == 300:
                break
        with FunctionClient("demo", server.url) as client:
            assert prices(client.tick_history("BTC:USDC", NOON, NOON + timedelta(hours=1))) == prices(live)


def test_calls_work_over_tls() -> None:
    """A private certificate authority works through `ssl_context`, and is refused without it."""
    authority = trustme.CA()
    context, trusting = server_context(authority.issue_cert("127.0.0.1")), client_context(authority)
    sizes = [0, 100, 16_000, 49_000, *range(65_300, 65_600, 20), 82_000, 131_050, 300_000]

    def sized(request: dict[str, Any]) -> bytes:
        return frame(json.dumps({"text": "x" * request["size"]}))

    with Peer(answer(sized), context=context) as peer:
        with FunctionClient("demo", peer.url, ssl_context=trusting, timeout=PATIENCE) as client:
            # Sizes around one read's, after which TLS may still hold decrypted bytes.
            assert [len(client.call("sized", size=size)["text"]) for size in sizes] == sizes
            assert peer.accepted == 1
        with FunctionClient("demo", peer.url) as client, pytest.raises(ConnectionFailed, match="certificate"):
            client.authenticate()


# Progress.


def test_progress_is_shown(client: FunctionClient, capfd: pytest.CaptureFixture[str]) -> None:
    """The progress bar goes to stderr and doesn't change the result."""
    found = client.tick_history("BTC:USDC", NOON, NOON + timedelta(days=1), progress=True)
    out, err = capfd.readouterr()
    assert len(found) == 2_500
    assert out == ""
    assert "2,500 ticks" in err
    assert "100%" in err


def test_progress_without_tqdm_is_an_error(client: FunctionClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised at once and says what to install."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ConfigurationError, match=r'pip install "finx-streamer\[progress\]"'):
        client.iter_tick_history("BTC:USDC", NOON, progress=True)


# Arguments.


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": "1"},
        {"timeout": True},
        {"timeout": float("nan")},
        {"connections": 0},
        {"connections": 1.5},
        {"parse_price": "float"},
        {"reconnect": True},
        {"connect_timeout": -1},
        {"ssl_context": True},
        {"allow_insecure": 1},
        {"name": ""},
        {"endpoint": "nowhere"},
        {"endpoint": "ws://example.com/"},
        {"api_key": ""},
        {"api_key": 5},
        {"on_bad": "ignore"},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """The error names the argument, and no frame of the package holds the key."""
    with pytest.raises(ConfigurationError, match="endpoint" if wrong.get("endpoint") else next(iter(wrong))) as caught:
        FunctionClient(**({"api_key": "s3cr3t-of-mine"} | wrong))
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if "finx_streamer" in frame.filename and "tests" not in frame.filename]
    assert "s3cr3t-of-mine" not in str([frame.locals for frame in ours])


def test_the_signature_is_stable() -> None:
    """The parameters have the documented names and order."""
    names = list(inspect.signature(FunctionClient).parameters)
    assert names[:6] == ["api_key", "endpoint", "timeout", "connections", "parse_price", "reconnect"]
    assert names[6:] == ["connect_timeout", "ssl_context", "proxy", "allow_insecure", "name", "on_bad"]


def test_an_unused_client_starts_nothing() -> None:
    """Before the first call, there is no thread and no connection, and the key callable isn't called."""
    before = threading.active_count()
    with FunctionClient(lambda: 1 // 0, "wss://nowhere.invalid/") as client:  # type: ignore[arg-type, return-value]
        assert threading.active_count() == before
        assert re.fullmatch(
            r"<FunctionClient finx-streamer-functions-\d+ 0 connected at wss://nowhere.invalid/>", repr(client)
        )


# The key.


def quoting(request: dict[str, Any]) -> bytes:
    """A server that quotes the key in every answer. The function's name chooses the form."""
    texts = {
        "error": json.dumps({"error": f"bad key {KEY} of {request}"}),
        "nonsense": f"nonsense {KEY}",
        "list": json.dumps([KEY]),
        "fine": json.dumps({"isAuth": True, "APIKey": KEY}),
        "tickHistory": json.dumps({"0": {**TICKS[0], "price": KEY}}),
        "tickSnap": json.dumps({**TICKS[0], "time": KEY, KEY: KEY}),
    }
    if request["functionName"] == "close":
        return close_frame(1011, f"key {KEY}".encode())
    if request["functionName"] == "binary":
        return frame(KEY.encode(), 0x2)
    if request["functionName"] == "silence":
        return b""
    return frame(texts[request["functionName"]])


@pytest.mark.parametrize("callable_key", [False, True], ids=["str", "callable"])
@pytest.mark.parametrize(
    "function", ["error", "nonsense", "list", "fine", "close", "binary", "silence", "tickHistory", "tickSnap"]
)
def test_the_key_does_not_leak(function: str, callable_key: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """It isn't in errors, their causes, the locals of their frames, answers, logs or websocket-client's trace."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root, library = logging.getLogger(), logging.getLogger("websocket")
    level, library_level = root.level, library.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    websocket.enableTrace(True, logging.StreamHandler(log))
    texts: list[str] = []
    try:
        with Peer(answer(quoting)) as peer:
            # No local variable holds the key, because the test also searches the locals of this frame.
            client = FunctionClient(
                give_key if callable_key else KEY, peer.url, timeout=0.5, reconnect=None, on_bad="raise"
            )
            try:
                texts.append(str(ask(client, function)))
            except FinxStreamerError as error:
                found: BaseException | None = error
                while found is not None:
                    shown = traceback.TracebackException.from_exception(found, capture_locals=True)
                    texts += ["".join(shown.format()), repr(found), repr(vars(found)), repr(found.args)]
                    found = found.__cause__ or found.__context__
            else:
                assert function == "fine"
            texts += [repr(client), str([thread.name for thread in threading.enumerate()])]
            client.close()
    finally:
        websocket.enableTrace(False)
        for added in library.handlers[:]:
            library.removeHandler(added)
        library.setLevel(library_level)
        root.removeHandler(handler)
        root.setLevel(level)
    assert len(texts) >= 3
    for text in [*texts, log.getvalue(), *capfd.readouterr()]:
        assert_clean(text, function)


def ask(client: FunctionClient, function: str) -> Any:
    """Call a function, by its method if it has one."""
    if function == "tickHistory":
        return client.tick_history("BTC:USDC", "2022-07-02")
    return client.tick_snap("BTC:USDC") if function == "tickSnap" else client.call(function)


# Calls from callbacks.


@pytest.mark.parametrize("event", ["tick", "error", "notice", "state", "gap"])
def test_a_call_works_inside_any_callback(seen: Seen, dispatch: str, event: str) -> None:
    """A client has its own event loop, so a call doesn't wait for the listener's, not even with inline dispatch."""
    snaps: list[Tick] = []

    def call(*_: object) -> None:
        if not snaps:
            snaps.append(client.tick_snap(market.PAIR))
            called.set()

    called = threading.Event()
    with LocalServer(market.Market(), keys={"demo"}) as server, FunctionClient("demo", server.url) as client:
        callbacks: dict[str, Any] = {f"on_{event}": call}
        market.send(server, 1)
        with seen.listener(server.url, dispatch=dispatch, backfill=True, **callbacks):
            server.wait_connected(1)
            market.send(server, 2)
            server.wait_until(lambda stats: stats.ticks_sent >= 1)
            server.send_message('{"hello":"there"}')
            server.drop_connections()
            server.wait_until(lambda stats: stats.symbols.get(market.PAIR, 0) == 1 and stats.connections_total >= 2)
            server.wait_connected(1)
            market.send(server, 3)
            assert called.wait(PATIENCE)
    assert snaps[0]["pair"] == market.PAIR
