"""`FunctionClient.list_contracts` and `five_minute_matrix`: answers that are JSON arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import CallTimeout, ConfigurationError, DecodeError, FunctionClient, FunctionError
from finx_streamer.config.symbols import Instrument
from finx_streamer.server import LocalServer, Tape
from tests.support.calls import ClientFactory, answer
from tests.support.contracts import BEGIN, CALL, FUTURE, PERPETUAL, PUT, ticker
from tests.support.peers import BINARY, Peer, frame
from tests.support.secrets import KEY, MARK, assert_clean

TICK = {"pair": "BTC:USDC", "date": "2022-08-06", "time": "04:31:40.000Z", "exchange": "BINANCE", "price": "1"}
#: The five-minute point at which the tickers of `BEGIN` are the last ones.
POINT = datetime(2022, 8, 6, 4, 35, tzinfo=UTC)
ETHER = "ETH-26AUG22-1500-P"
Request = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server with a few tickers."""
    with LocalServer(Tape([TICK, *map(ticker, (CALL, PUT, FUTURE, PERPETUAL, ETHER))], wait_for=10**6)) as running:
        running.emit(*(ticker(name, delta="0.83341") for name in (CALL, PUT)), ticker(ETHER), ticker(FUTURE))
        running.emit(ticker(CALL, BEGIN + 300_000, delta="0.9"))
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[FunctionClient]:
    """A client of that server."""
    with FunctionClient("demo", server.url) as client:
        yield client


@contextmanager
def answering(content: Any, requests: list[Request] | None = None, **settings: Any) -> Iterator[FunctionClient]:
    """A client of a server that answers every call with this text, or value as JSON."""
    payload = content if isinstance(content, str | bytes) else json.dumps(content)

    def handle(request: Request) -> bytes:
        if requests is not None:
            requests.append(request)
        return frame(payload, BINARY if isinstance(payload, bytes) else 0x1)

    with Peer(answer(handle)) as peer, FunctionClient(settings.pop("key", "demo"), peer.url, **settings) as client:
        yield client


def test_lists_contracts(client: FunctionClient) -> None:
    """The names come as the server has them, and each is a symbol."""
    names = client.list_contracts()
    assert set(names) == {CALL, PUT, FUTURE, PERPETUAL, ETHER}
    assert [Instrument.parse(name).name for name in names] == names


def test_matrix(client: FunctionClient) -> None:
    """All values are decoded as on a stream; the symbol is the contract."""
    found = {each["instrument"]: each for each in client.five_minute_matrix("BTC", POINT)}
    assert set(found) == {CALL, PUT, FUTURE}
    call = found[CALL]
    assert (call["symbol"], call["kind"], call["strike"], call["delta"], call["vega"]) == (
        CALL,
        "call",
        2e4,
        0.83341,
        None,
    )
    assert call["timestamp"] == datetime(2022, 8, 6, 4, 31, 40, 724_000, UTC)
    assert call["raw"]["delta"] == "0.83341"
    assert found[FUTURE]["delta"] is None
    assert {each["instrument"] for each in client.five_minute_matrix("ETH", POINT)} == {ETHER}


def test_the_latest_matrix(client: FunctionClient) -> None:
    """That is the default."""
    found = {each["instrument"]: each["delta"] for each in client.five_minute_matrix("BTC")}
    assert found[CALL] == 0.9


def test_demo() -> None:
    """The simulated market has contracts and a past."""
    with FunctionClient(endpoint="demo") as client:
        assert len(client.list_contracts()) > 100
        assert len(client.five_minute_matrix("BTC", datetime.now(UTC) - timedelta(minutes=30))) > 50


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[FunctionClient, list[Request]]]:
    """A client, and what its server was asked. The server answers with an empty array."""
    requests: list[Request] = []
    with answering([], requests) as client:
        yield client, requests


@given(st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31)), st.integers(-14, 14))
def test_times_are_floored_to_five_minutes(
    asked: tuple[FunctionClient, list[Request]], moment: datetime, hours: int
) -> None:
    """In UTC, for any offset of the argument, and for text."""
    client, requests = asked
    moment = moment.replace(tzinfo=UTC)
    there = moment.astimezone(timezone(timedelta(hours=hours)))
    for at in (there, there.isoformat()):
        assert client.five_minute_matrix("BTC", at) == []
        point = requests[-1]["fiveMinuteDateTime"]
        floored = datetime.strptime(point, "%Y-%m-%dT%H:%M").replace(tzinfo=UTC)
        assert timedelta(0) <= moment - floored < timedelta(minutes=5)
        assert floored.minute % 5 == 0
        assert len(point) == len("2022-08-04T04:05")


def test_requests(asked: tuple[FunctionClient, list[Request]]) -> None:
    """As the vendor documents them."""
    client, requests = asked
    assert client.list_contracts() == []
    assert requests[-1] == {"APIKey": "demo", "functionName": "listDeribitContracts"}
    client.five_minute_matrix("ETH")
    latest = {"functionName": "getFiveMinMatrix", "baseInstrument": "ETH", "fiveMinuteDateTime": "latest"}
    assert requests[-1] == {"APIKey": "demo", **latest}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "underlying: ''"),
        ((None,), "underlying: None"),
        (("BTC", "now"), "at: 'now'"),
        (("BTC", None), "at: None"),
        (("BTC", datetime(2022, 8, 4)), "no time zone"),
        (("BTC", 1_659_586_000), "at: "),
    ],
)
def test_arguments_are_checked(client: FunctionClient, arguments: tuple[Any, ...], message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match=message):
        client.five_minute_matrix(*arguments)


def test_the_server_refuses_an_underlying(client: FunctionClient) -> None:
    """Its reason is in the error."""
    with pytest.raises(FunctionError, match="DOGE"):
        client.five_minute_matrix("DOGE")


LISTING: Callable[[FunctionClient], Any] = FunctionClient.list_contracts
MATRIX: Callable[[FunctionClient], Any] = lambda client: client.five_minute_matrix("BTC")  # noqa: E731


@pytest.mark.parametrize("call", [LISTING, MATRIX], ids=["list", "matrix"])
@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"error": "no such function"}, FunctionError, "no such function"),
        ({}, DecodeError, "expected a JSON array, not an object"),
        ({"keepAlive": True}, DecodeError, "expected a JSON array, not an object"),
        ("null", DecodeError, "expected a JSON array, not null"),
        ("[1", DecodeError, "not JSON"),
        ("", DecodeError, "not JSON"),
        ("[" * 200 + "]" * 200, DecodeError, "nested more than 100 deep"),
        (b"[]", DecodeError, "a binary message"),
        ([1], DecodeError, "expected tickers|name is not a string"),
        ([None], DecodeError, "expected tickers|name is not a string"),
        ([[CALL]], DecodeError, "expected tickers|name is not a string"),
    ],
)
def test_other_answers_are_errors(call: Any, content: Any, error: type[Exception], message: str) -> None:
    """There is nothing to return."""
    with answering(content) as client, pytest.raises(error, match=message) as caught:
        call(client)
    assert type(caught.value) is error


@pytest.mark.parametrize("entry", [CALL, ticker(ETHER)])
def test_an_answer_to_another_call_is_an_error(entry: Any) -> None:
    """Nothing of it can be trusted, so `on_bad` isn't asked."""
    with answering([ticker(CALL), entry]) as client, pytest.raises(DecodeError, match="expected tickers of BTC"):
        client.five_minute_matrix("BTC")


def test_usdc_contracts_belong_to_both_coins() -> None:
    """The vendor doesn't say in which matrix they are."""
    tickers = [ticker("BTC_USDC-PERPETUAL")]
    with answering(tickers) as client:
        for underlying in ("USDC", "BTC"):
            assert [each["underlying"] for each in client.five_minute_matrix(underlying)] == ["BTC_USDC"]


BAD = {
    "number": ticker(CALL, delta="NaN"),
    "no name": {"timestamp": "1"},
    "odd name": ticker("BTC-FS-26AUG22_PERP"),
    "no time": {**ticker(CALL), "timestamp": ""},
    "key": ticker(CALL, delta=KEY),
}


@pytest.mark.parametrize("bad", list(BAD.values()), ids=list(BAD))
def test_a_bad_entry_is_left_out(bad: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """It is counted and reported. `on_bad` can raise it, or take it."""
    tickers = [ticker(CALL), bad, ticker(PUT)]
    with answering(tickers, key=KEY) as client:
        assert [each["instrument"] for each in client.five_minute_matrix("BTC")] == [CALL, PUT]
        assert client.bad_ticks == 1
    assert "can't be read (1 so far" in caplog.text
    assert_clean(caplog.text, "log")
    errors: list[DecodeError] = []
    with answering(tickers, on_bad=errors.append) as client:
        assert len(client.five_minute_matrix("BTC")) == 2
    assert [error.symbol for error in errors] == ["getFiveMinMatrix"]
    with answering(tickers, on_bad="raise") as client, pytest.raises(DecodeError, match="not a contract's ticker"):
        client.five_minute_matrix("BTC")


def test_the_key_never_comes_back() -> None:
    """A server may echo it anywhere."""
    with answering([KEY], key=KEY) as client:
        assert MARK not in str(client.list_contracts()).lower()
    with answering([ticker(CALL, note=KEY, state=KEY)], key=KEY) as client:
        [found] = client.five_minute_matrix("BTC")
        assert_clean(str(found), "greeks")
    with answering({"error": f"bad key {KEY}"}, key=KEY) as client, pytest.raises(FunctionError) as caught:
        client.list_contracts()
    assert_clean(str(caught.value), "error")


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([CALL, "", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from([*ticker(), "error"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[FunctionClient, list[Any]]]:
    """A client, and a list with what its server answers."""
    content: list[Any] = [None]
    with (
        Peer(answer(lambda request: frame(json.dumps(content[0])))) as peer,
        FunctionClient("demo", peer.url) as client,
    ):
        yield client, content


@given(_JSON)
def test_any_json_is_an_answer_or_an_error(echo: tuple[FunctionClient, list[Any]], value: Any) -> None:
    """The next call works in any case."""
    client, content = echo
    content[0] = value
    for call in (LISTING, MATRIX):
        with suppress(DecodeError, FunctionError):
            assert isinstance(call(client), list)
    content[0] = [CALL]
    assert client.list_contracts() == [CALL]


def test_a_connection_carries_further_calls(make_client: ClientFactory) -> None:
    """An array is a complete answer, after which the connection stays open."""
    with Peer(answer(lambda request: frame("[ ]\n"))) as peer:
        client = make_client(peer, connections=1)
        for _ in range(3):
            assert client.list_contracts() == client.five_minute_matrix("BTC") == []
        assert peer.accepted == 1


@pytest.mark.parametrize("sent", ["{}", '{"keepAlive":true}', "[1", "7"])
def test_another_form_closes_the_connection(make_client: ClientFactory, sent: str) -> None:
    """It may be the answer to another call, so the next one needs another connection."""
    with Peer(answer(lambda request: frame(sent)), answer(lambda request: frame("[]"))) as peer:
        client = make_client(peer)
        with pytest.raises(DecodeError):
            client.list_contracts()
        assert client.list_contracts() == []
        assert peer.accepted == 2


def test_an_error_keeps_the_connection(make_client: ClientFactory) -> None:
    """It is an answer."""
    with Peer(answer(lambda request: frame('{"error":"no contracts"}'))) as peer:
        client = make_client(peer, connections=1)
        for _ in range(2):
            with pytest.raises(FunctionError, match="no contracts"):
                client.list_contracts()
        assert peer.accepted == 1


def test_silence_is_a_timeout(make_client: ClientFactory) -> None:
    """As with any call."""
    with Peer(answer(count=0)) as peer, pytest.raises(CallTimeout, match="listDeribitContracts"):
        make_client(peer, timeout=0.2).list_contracts()
