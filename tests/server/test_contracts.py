"""Contracts: their names, their tickers in tapes and streams, and the five-minute matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from finx_streamer.config.symbols import Option
from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.server.contract_table import point_of
from finx_streamer.server.contracts import KEYS, parse_instrument, parse_ticker, plain
from finx_streamer.server.store import TickStore
from tests.support.contracts import BEGIN, CALL, FUTURE, MONTH, PERPETUAL, PUT, ask, ticker

Dial = Callable[..., ClientConnection]
Receive = Callable[..., list[Any]]
RECORDED = Path(__file__).resolve().parents[2].parent / "shared/data/greeks/deribit_ticker.jsonl"
TICK = {"pair": "BTC:USDC", "date": "2022-08-06", "time": "04:31:40.000Z", "exchange": "BINANCE", "price": "1"}
#: 04:30 and 04:35 on that day, in milliseconds.
POINT, NEXT = 1_659_760_200_000, 1_659_760_500_000

needs_recorded = pytest.mark.skipif(not RECORDED.exists(), reason=f"{RECORDED} is missing")


def enveloped(values: dict[str, str]) -> dict[str, Any]:
    """The message of a stream of Greeks."""
    return {"results": "streaming", "resultData": {**values, "exchange": "DERIBIT"}}


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A market that plays only what the test emits."""
    later = ticker("BTC-30SEP22-20000-C")
    tape = Tape([TICK, *map(ticker, (CALL, PUT, FUTURE, PERPETUAL, "ETH-26AUG22-1500-P")), later], wait_for=10**6)
    with LocalServer(tape) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "base", "kind", "expiry", "strike", "month"),
    [
        (CALL, "BTC", "call", "2022-08-26", 20_000.0, MONTH),
        ("ETH-7OCT22-1250-P", "ETH", "put", "2022-10-07", 1_250.0, "ETHV2202210"),
        ("XRP_USDC-30JUN23-0d525-C", "USDC", "call", "2023-06-30", 0.525, "XRP_USDCM3202306"),
        ("ETH-19AUG22", "ETH", "future", "2022-08-19", None, None),
        ("SOL-PERPETUAL", "SOL", "perpetual", None, None, None),
        ("BTC_USDC-PERPETUAL", "USDC", "perpetual", None, None, None),
    ],
)
def test_parses_names(
    name: str, base: str, kind: str, expiry: str | None, strike: float | None, month: str | None
) -> None:
    """Deribit's names say all that is needed. Expiries are at 08:00 UTC."""
    found = parse_instrument(name)
    moment = None if expiry is None else int(datetime.fromisoformat(f"{expiry}T08:00Z").timestamp())
    expected = (name, base, kind, moment, strike, month)
    assert (found.name, found.base, found.kind, found.expiry, found.strike, found.month) == expected


@pytest.mark.parametrize(
    "name",
    ["", "BTC", "BTC-", "btc-PERPETUAL", "BTC-31JUN22", "BTC-0AUG22", "BTC-26AUG2022", "BTC-26AUG22-20000",
     "BTC-26AUG22-20000-X", "BTC-26AUG22--5-C", "BTC-26AUG22-1d-C", "BTC-٣AUG22", "BTC-PERPETUAL\n", "BTC:USDC"],
)  # fmt: skip
def test_rejects_other_names(name: str) -> None:
    """The error doesn't quote the name, which may be a misplaced key."""
    with pytest.raises(ConfigurationError, match="not a contract; expected a name such as BTC-26AUG22-20000-C"):
        parse_instrument(name)


@given(st.dates(datetime(2000, 1, 1).date(), datetime(2099, 12, 31).date()), st.integers(1, 10**9))
def test_months_are_options_of_the_client(day: Any, strike: int) -> None:
    """The stream of a month has a name that the client accepts."""
    months = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
    name = f"BTC-{day.day}{months[day.month - 1]}{day.year % 100:02}-{strike}-C"
    month = Option.parse(str(parse_instrument(name).month))
    assert (month.underlying, month.year, month.month) == ("BTC", day.year, day.month)


@needs_recorded
def test_plays_recorded_deribit_messages(dial: Dial, receive: Receive) -> None:
    """They become the vendor's 31 keys with the same numbers, as strings."""
    messages = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    tape = Tape(RECORDED, speed=None, wait_for=1)
    names = {message["params"]["data"]["instrument_name"] for message in messages}
    assert (tape.contracts, tape.pairs) == (names, frozenset())
    with LocalServer(tape) as server:
        month = str(parse_instrument("BTC-24SEP21-32000-C").month)
        got = receive(dial(server, f"streaming/greeks/demo/{month}"), 21)
    wanted = [each["params"]["data"] for each in messages if "BTC-24SEP21" in each["params"]["channel"]]
    for message, data in zip(got, wanted, strict=True):
        values = message["resultData"]
        assert list(values) == [*KEYS, "exchange"]
        source = {**data, **data["greeks"], **data["stats"]}
        assert values["redis_key"] == values["instrument_name"] == data["instrument_name"]
        for key in set(KEYS) - {"redis_key"}:
            if source[key] is None:
                assert values[key] == ""
            elif isinstance(source[key], str):
                assert values[key] == source[key]
            else:
                assert Decimal(values[key]) == Decimal(str(source[key]))
                assert "e" not in values[key].casefold()


@given(st.floats(1e-30, 1e20) | st.floats(-1e20, -1e-30) | st.integers(-(10**20), 10**20))
def test_numbers_are_written_plainly(number: float) -> None:
    """Without an exponent and without trailing zeros, and with the same value."""
    text = repr(number)
    assert Decimal(plain(text)) == Decimal(text)
    assert plain(plain(text)) == plain(text)
    assert "e" not in plain(text)
    assert not plain(text).endswith((".", ".0"))


def test_strings_of_the_vendor_stay_as_they_are() -> None:
    """Byte for byte, as those of ticks."""
    values = ticker(mark_price="0.10", gamma="1e-05", last_price="", vega="13.62974", state="strange \ud800")
    assert parse_ticker(values).values == values
    assert parse_ticker({**values, "exchange": "DERIBIT", "more": [1]}).values == values
    assert parse_ticker({**values, "vega": 5.0, "rho": None}).values == {**values, "vega": "5", "rho": ""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instrument_name": 5}, "'instrument_name' must be a non-empty string"),
        ({"instrument_name": "BTC"}, "'instrument_name' is not a contract"),
        ({"timestamp": ""}, "'timestamp' must be a whole number of milliseconds"),
        ({"timestamp": "1e12"}, "'timestamp' must be a whole number of milliseconds"),
        ({"timestamp": "9" * 14 + "9"}, "'timestamp' must be a whole number of milliseconds"),
        ({"delta": "NaN"}, "'delta' must be a decimal number or empty"),
        ({"delta": True}, "'delta' must be a string or a number"),
        ({"state": []}, "'state' must be a string or a number"),
        ({"params": 5}, "'params' must be an object with the 'data' of a ticker"),
        ({"params": {"data": {"greeks": 5}}}, "'greeks' and 'stats' must be objects"),
    ],
)
def test_rejects_malformed_tickers(changes: dict[str, Any], message: str) -> None:
    """The error names the key, and the line of the tape."""
    with pytest.raises(ConfigurationError, match=f"^tick 2 of the tape: {message}"):
        Tape([TICK, {**ticker(), **changes}])


def test_tape_paces_and_shifts_tickers_like_ticks() -> None:
    """`timestamp` counts, and is shifted. A loop repeats both."""
    played = [TICK, ticker(timestamp=BEGIN), ticker(timestamp=BEGIN + 500)]
    tape = Tape(played, shift=True, loop=True, max_pause=2.0)
    found = []
    for due, each in tape.play(lambda: 1_700_000_000.0):
        found.append((round(due, 3), each["time"] if isinstance(each, dict) else each.values["timestamp"]))
        if len(found) == 6:
            break
    assert [due for due, _ in found] == [0.0, 0.724, 1.224, 3.224, 3.948, 4.448]
    assert found[0][1] == "22:13:20.000Z"
    stamps = [int(stamp) for _, stamp in (found[1], found[2], found[4])]
    assert stamps == pytest.approx([1_700_000_000_724, 1_700_000_001_224, 1_700_000_003_948], abs=1)


def test_mixed_tape_is_stored_once(tmp_path: Path, receive: Receive, dial: Dial) -> None:
    """Contracts between the ticks don't disturb the count of stored ticks, in a file with both."""
    path = tmp_path / "tape.jsonl"
    ticks = [{**TICK, "price": str(number)} for number in range(50)]
    lines = [line for number, tick in enumerate(ticks) for line in (tick, ticker(timestamp=BEGIN + number))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with LocalServer(Tape(path, speed=None), store=tmp_path / "ticks.db") as server:
        peer = dial(server)
        assert [each["resultData"] for each in receive(peer, 50)] == ticks
        server.wait_until(lambda stats: stats.ticks_stored == 50)
        assert server.import_ticks(path) == 0
        assert server.stats.ticks_stored == 50
        assert (server.stats.ticks_played, server.stats.greeks_played) == (50, 50)


@pytest.mark.parametrize("prefix", ["streaming", "streamer"])
def test_stream_of_a_month(server: LocalServer, dial: Dial, receive: Receive, prefix: str) -> None:
    """All options of that underlying and month, in the envelope: no futures and no other months."""
    peer = dial(server, f"{prefix}/greeks/demo/{MONTH}")
    server.wait_connected()
    names = (CALL, FUTURE, PERPETUAL, "ETH-26AUG22-1500-P", "BTC-30SEP22-20000-C", PUT)
    server.emit(*map(ticker, names))
    assert receive(peer, 2) == [enveloped(ticker(CALL)), enveloped(ticker(PUT))]
    assert server.stats.symbols == {MONTH: 1}


@pytest.mark.parametrize("name", [CALL, FUTURE, PERPETUAL])
def test_stream_of_one_contract(server: LocalServer, dial: Dial, receive: Receive, name: str) -> None:
    """A contract's own name selects it, whatever its kind."""
    peer = dial(server, f"streaming/greeks/demo/{name}")
    server.wait_connected()
    server.emit(*map(ticker, (PUT, CALL, FUTURE, PERPETUAL)))
    assert receive(peer) == [enveloped(ticker(name))]


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        ("BTCU1202109", "unknown option BTCU1202109: no contract that is listed expires in that month"),
        ("BTC-1JAN99-5-C", "unknown contract BTC-1JAN99-5-C"),
        ("BTC-XYZ", "not a contract"),
        ("BTCN2202208", "does not agree"),
    ],
)
def test_refuses_unknown_contracts(server: LocalServer, dial: Dial, symbol: str, message: str) -> None:
    """With 404 and a reason."""
    with pytest.raises(InvalidStatus) as caught:
        dial(server, f"streaming/greeks/demo/{symbol}")
    assert caught.value.response.status_code == 404
    assert message in json.loads(caught.value.response.body or b"")["error"]


@pytest.mark.parametrize("symbol", [MONTH, CALL, PERPETUAL])
def test_without_options_there_is_the_placeholder(dial: Dial, receive: Receive, symbol: str) -> None:
    """The seed's only message, and the stream counts."""
    with LocalServer(SimulatedMarket(limit=0)) as server:
        peer = dial(server, f"streaming/greeks/demo/{symbol}")
        assert receive(peer) == [{"feature": "scheduled for future release"}]
        assert server.stats.symbols == {symbol: 1}
        assert ask(peer, "listDeribitContracts") == []


def test_new_subscribers_get_the_newest_tickers(server: LocalServer, dial: Dial, receive: Receive) -> None:
    """At once, after the answer, on both wires; nothing if there was none."""
    server.emit(ticker(CALL, BEGIN), ticker(CALL, BEGIN + 1), ticker(PUT, BEGIN + 2), ticker(FUTURE))
    peer = dial(server, "streamer/demo")
    assert ask(peer, "getDeribitContractStream", instrumentName=CALL, resume="ask") == {"subscribed": CALL}
    assert receive(peer) == [ticker(CALL, BEGIN + 1)]
    assert ask(peer, "getDeribitContractStream", instrumentName=FUTURE) == ticker(FUTURE)
    assert ask(peer, "getDeribitContractStream", instrumentName=PERPETUAL, resume=1) == {"subscribed": PERPETUAL}
    # Subscribing again sends no second snapshot.
    assert ask(peer, "getDeribitContractStream", instrumentName=CALL, resume=1) == {"subscribed": CALL}
    assert ask(peer, "keepAlive") == {"keepAlive": True}
    month = dial(server, f"streaming/greeks/demo/{MONTH}")
    assert receive(month, 2) == [enveloped(ticker(CALL, BEGIN + 1)), enveloped(ticker(PUT, BEGIN + 2))]


def test_month_and_contract_on_one_connection(server: LocalServer, dial: Dial, receive: Receive) -> None:
    """They are two subscriptions, each in its wire's form."""
    peer = dial(server, f"streaming/greeks/demo/{MONTH}")
    assert ask(peer, "getDeribitContractStream", instrumentName=CALL, resume=1) == {"subscribed": CALL}
    server.emit(ticker(CALL), ticker(PUT))
    assert receive(peer, 3) == [ticker(CALL), enveloped(ticker(CALL)), enveloped(ticker(PUT))]


def test_emit_checks_contracts(server: LocalServer) -> None:
    """Only those of the source, and all or nothing."""
    with pytest.raises(ConfigurationError, match=r"^emit\(\): the source does not play BTC-1JAN99; expected one of"):
        server.emit(ticker(CALL), ticker("BTC-1JAN99"))
    assert server.stats.greeks_played == 0


def test_lists_contracts(server: LocalServer, dial: Dial) -> None:
    """Sorted by name."""
    peer = dial(server, "streamer/demo")
    names = [CALL, PUT, FUTURE, PERPETUAL, "BTC-30SEP22-20000-C", "ETH-26AUG22-1500-P"]
    assert ask(peer, "listDeribitContracts") == sorted(names)


def matrix(peer: ClientConnection, at: str, base: str = "BTC") -> Any:
    return ask(peer, "getFiveMinMatrix", baseInstrument=base, fiveMinuteDateTime=at)


def test_matrix(server: LocalServer, dial: Dial) -> None:
    """Of each contract of the coin, the last ticker at or before the point. Expired ones are left out."""
    expired = "BTC-6AUG22"  # at 08:00 of that day
    early = [ticker(CALL, POINT - 1), ticker(CALL, POINT), ticker(CALL, POINT + 1)]
    others = [ticker(PUT, POINT - 3 * 300_000), ticker("ETH-26AUG22-1500-P", POINT), ticker(PERPETUAL, NEXT + 1)]
    server.emit(*early, *others)
    server.import_ticks([ticker(expired, POINT - 5), ticker("BTC_USDC-PERPETUAL", POINT)])
    peer = dial(server, "streamer/demo")
    assert matrix(peer, "2022-08-06T04:30") == [
        ticker(CALL, POINT),
        ticker(PUT, POINT - 900_000),
        ticker(expired, POINT - 5),
    ]
    assert matrix(peer, "2022-08-06T04:35")[0] == ticker(CALL, POINT + 1)
    assert matrix(peer, "2022-08-06T08:05")[0] == ticker(CALL, POINT + 1)
    assert [each["instrument_name"] for each in matrix(peer, "2022-08-06T08:05")] == [CALL, PUT, PERPETUAL]
    newest = [
        ticker(CALL, POINT + 1),
        ticker(PUT, POINT - 900_000),
        ticker(expired, POINT - 5),
        ticker(PERPETUAL, NEXT + 1),
    ]
    assert matrix(peer, "latest") == newest
    assert matrix(peer, "2022-08-06T04:30", "USDC") == [ticker("BTC_USDC-PERPETUAL", POINT)]
    assert matrix(peer, "latest", "SOL") == matrix(peer, "2022-08-06T00:00") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "baseInstrument is missing"),
        ({"baseInstrument": "DOGE"}, "baseInstrument 'DOGE' is unknown; expected one of BTC, ETH, SOL, USDC"),
        ({"baseInstrument": "BTC"}, "fiveMinuteDateTime is missing"),
        *(
            ({"baseInstrument": "BTC", "fiveMinuteDateTime": at}, "expected 'latest' or a point in UTC whose minutes")
            for at in ("now", "2022-08-04T04:03", "2022-08-04T24:05", "2022-02-30T04:05", "2022-08-04T04:05:00")
        ),
    ],
)
def test_matrix_explains_its_arguments(server: LocalServer, dial: Dial, arguments: Any, message: str) -> None:
    """An error names the argument and what was expected."""
    error = ask(dial(server, "streamer/demo"), "getFiveMinMatrix", **arguments)["error"]
    assert error.startswith("getFiveMinMatrix: ")
    assert message in error


def test_matrix_survives_a_restart(tmp_path: Path, dial: Dial) -> None:
    """It is in the store's file."""
    for _ in range(2):
        with LocalServer(Tape([ticker()], speed=None, wait_for=0), store=tmp_path / "ticks.db") as server:
            peer = dial(server, f"streaming/greeks/demo/{MONTH}")
            peer.recv(timeout=10)
    with LocalServer(SimulatedMarket(limit=0), store=tmp_path / "ticks.db") as server:
        assert matrix(dial(server, "streamer/demo"), "latest") == [ticker()]


names = st.sampled_from([CALL, PUT, FUTURE, PERPETUAL])
entries = st.lists(st.tuples(names, st.integers(0, 40)), min_size=1, max_size=60)


@given(entries, st.lists(st.integers(1, 60), max_size=5), st.integers(-2, 12))
def test_store_agrees_with_a_list(entries: list[tuple[str, int]], cuts: list[int], point: int) -> None:
    """In any order and batches, the matrix has the last ticker by time, and of equal times the one stored last."""
    tickers = [
        parse_ticker(ticker(name, POINT + minute * 60_000, mark_price=str(number)))
        for number, (name, minute) in enumerate(entries)
    ]
    store = TickStore()
    with store.opened():
        bounds = sorted({0, len(tickers), *(cut for cut in cuts if cut < len(tickers))})
        for begin, end in pairwise(bounds):
            store.write([], None, tickers[begin:end])
        found = json.loads(store.matrix("BTC", POINT // 1_000 + 300 * point))
        newest = json.loads(store.matrix("BTC", None))
    for got, latest in ((found, POINT + 300_000 * point), (newest, 10**15)):
        expected: dict[str, dict[str, str]] = {}
        for each in sorted(tickers, key=lambda each: each.timestamp):
            if each.timestamp <= latest:
                expected[each.instrument.name] = each.values
        assert got == [expected[name] for name in sorted(expected)]


@given(st.integers(0, 10**13))
def test_points_come_at_or_after_the_tickers(timestamp: int) -> None:
    """By less than five minutes."""
    point = point_of(parse_ticker(ticker(timestamp=timestamp)))
    assert point % 300 == 0
    assert 0 <= point * 1_000 - timestamp < 300_000


def test_limits_the_store() -> None:
    """A tenth as many tickers as ticks are kept, and nothing with a limit of 0."""
    store = TickStore(limit=25)
    with store.opened():
        for number in range(6):
            store.write([], None, [parse_ticker(ticker(CALL, POINT + number * 300_000))])
        counts = [len(json.loads(store.matrix("BTC", POINT // 1_000 + 300 * number))) for number in range(6)]
    assert counts == [0, 0, 0, 1, 1, 1]
    with LocalServer(Tape([ticker()], wait_for=99), store_limit=0) as server:
        server.emit(ticker())
        assert server.import_ticks([ticker()]) == 0


class Listing:
    """A market that plays nothing, and lists the contracts that a test names."""

    pairs = frozenset({"BTC:USDC"})
    wait_for = 0
    paced = True

    def __init__(self) -> None:
        self.contracts: frozenset[str] = frozenset()

    def play(self, clock: object) -> Iterator[tuple[float, Any]]:
        return iter(())


def test_contracts_that_are_no_longer_listed(dial: Dial, receive: Receive) -> None:
    """Their tickers aren't sent to new subscribers, and no one can subscribe. Old subscriptions stay, and can end."""
    source = Listing()
    with LocalServer(source) as server:
        names = [f"BTC-26AUG22-{strike}-C" for strike in range(10_000, 10_040)]
        peer = dial(server, "streamer/demo")
        for first in range(0, 40, 10):
            source.contracts = frozenset(names[first : first + 10])
            server.emit(*map(ticker, sorted(source.contracts)))
            answer = ask(peer, "getDeribitContractStream", instrumentName=names[first], resume="ask")
            assert answer == {"subscribed": names[first]}
            assert receive(peer) == [ticker(names[first])]
        month = dial(server, f"streaming/greeks/demo/{MONTH}")
        assert [each["resultData"]["instrument_name"] for each in receive(month, 10)] == names[30:]
        error = ask(peer, "getDeribitContractStream", instrumentName=names[1])
        assert error["instrumentName"] == names[1]
        assert server.stats.streams == 5
        assert ask(peer, "unsubscribe", instrumentName=names[0]) == {"unsubscribed": names[0]}
        assert server.stats.streams == 4


def test_many_contracts_are_stored_in_batches(dial: Dial) -> None:
    """An answer has all tickers that were played before the call."""
    source = Listing()
    source.contracts = frozenset(f"BTC-26AUG22-{strike}-P" for strike in range(10_000, 10_500))
    with LocalServer(source, store_batch=64, store_batch_seconds=60.0) as server:
        peer = dial(server, "streamer/demo")
        server.emit(*map(ticker, sorted(source.contracts)))
        found = matrix(peer, "latest")
    assert [each["instrument_name"] for each in found] == sorted(source.contracts)


def test_emit_explains_malformed_tickers(server: LocalServer) -> None:
    """As a tape does."""
    with pytest.raises(ConfigurationError, match=r"^emit\(\): 'delta' must be a decimal number or empty"):
        server.emit(ticker(delta="high"))
