"""Greeks from the local server: the same on both wires."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import pytest

from finx_streamer import DecodeError, Endpoint, Greeks, State, StreamListener, StreamNotFound
from finx_streamer.server import LocalServer, Tape
from tests.support.contracts import BEGIN, CALL, FUTURE, MONTH, PERPETUAL, PUT, ticker
from tests.support.peers import PAIR, PATIENCE, QUICK, Caller, Peer, Seen, frame
from tests.support.secrets import KEY, assert_clean

TICK = {"pair": PAIR, "date": "2022-08-06", "time": "04:31:40.000Z", "exchange": "BINANCE", "price": "1"}
LATER = "BTC-30SEP22-20000-C"


class Values:
    """Keeps Greeks, and lets a test wait for them."""

    def __init__(self) -> None:
        self.all: list[Greeks] = []
        self._changed = threading.Condition()

    def __call__(self, greeks: Greeks) -> None:
        with self._changed:
            self.all.append(greeks)
            self._changed.notify_all()

    def wait(self, count: int) -> list[tuple[str, str, float | None]]:
        """Wait for this many. Return the symbol, the contract and the mark price of all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, PATIENCE), self.all
        return [(each["symbol"], each["instrument"], each["mark_price"]) for each in self.all]


@pytest.fixture
def values() -> Values:
    return Values()


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A market that plays only what the test emits."""
    with LocalServer(
        Tape([TICK, *map(ticker, (CALL, PUT, FUTURE, PERPETUAL, LATER))], wait_for=10**6), keys={"demo"}
    ) as server:
        yield server


@pytest.fixture(params=["url", "subscribe"])
def wire(request: pytest.FixtureRequest) -> Any:
    """Each of the two wires."""
    return request.param


def emit(server: LocalServer, number: int, *names: str) -> None:
    """Send a ticker of each contract. Its mark price is the number."""
    server.emit(*(ticker(name, BEGIN + number, mark_price=str(number)) for name in names))


def wait_streams(server: LocalServer, count: int) -> None:
    """Wait until this many symbols are requested."""
    server.wait_until(lambda stats: sum(stats.symbols.values()) == count)


#: How many symbols the server counts for a month of two options.
MONTHS = {"url": 1, "subscribe": 2}


def test_months_contracts_and_pairs(server: LocalServer, seen: Seen, values: Values, wire: Any, dispatch: str) -> None:
    """Each symbol gets its own messages. Futures and perpetuals have no Greeks."""
    symbols = (MONTH, FUTURE, PERPETUAL, PAIR)
    endpoint = Endpoint(server.url, wire=wire)
    with seen.listener(endpoint, *symbols, on_greeks=values, dispatch=dispatch) as listener:
        wait_streams(server, MONTHS[wire] + 3)
        emit(server, 1, CALL, LATER)
        emit(server, 2, FUTURE)
        emit(server, 3, PUT, PERPETUAL)
        server.emit(TICK)
        seen.wait_ticks(1)
        found = values.wait(4)
        assert sorted(found) == sorted(
            [(MONTH, CALL, 1.0), (FUTURE, FUTURE, 2.0), (MONTH, PUT, 3.0), (PERPETUAL, PERPETUAL, 3.0)]
        )
        assert {each["exchange"] for each in values.all} == {"DERIBIT"}
        assert {each["delta"] for each in values.all} == {None}
        assert set(listener.greeks()) == {CALL, PUT, FUTURE, PERPETUAL}
    assert seen.errors == []


def test_a_contract_of_a_month_has_two_messages(server: LocalServer, seen: Seen, values: Values, wire: Any) -> None:
    """They differ in their symbol. On a shared connection, it is requested once."""
    with seen.listener(Endpoint(server.url, wire=wire), MONTH, CALL, on_greeks=values):
        wait_streams(server, 2)
        emit(server, 1, CALL)
        assert sorted(values.wait(2)) == [(CALL, CALL, 1.0), (MONTH, CALL, 1.0)]
    assert seen.errors == []


def test_added_and_removed_symbols(server: LocalServer, seen: Seen, values: Values, wire: Any) -> None:
    """Removed ones deliver nothing more, and can come back."""
    with seen.listener(Endpoint(server.url, wire=wire), PERPETUAL, on_greeks=values) as listener:
        wait_streams(server, 1)
        listener.add(MONTH)
        wait_streams(server, 1 + MONTHS[wire])
        emit(server, 1, CALL)
        values.wait(1)
        listener.remove(MONTH)
        wait_streams(server, 1)
        emit(server, 2, CALL, PERPETUAL)
        assert values.wait(2)[1:] == [(PERPETUAL, PERPETUAL, 2.0)]
        listener.add(MONTH)
        wait_streams(server, 1 + MONTHS[wire])
        emit(server, 3, CALL)
        # A new subscriber also gets the newest ticker.
        while (MONTH, CALL, 3.0) not in values.wait(3):
            assert not listener.join(0.01)
    assert seen.errors == []


def test_unknown_contracts_end_alone(server: LocalServer, seen: Seen, values: Values, wire: Any) -> None:
    """So do months without contracts."""
    unknown = ("ETH-PERPETUAL", "BTC-26AUG22-1-C", "ETHQ2202208")
    with seen.listener(Endpoint(server.url, wire=wire), MONTH, *unknown, on_greeks=values) as listener:
        seen.wait_for(lambda: {(symbol, State.FAILED) for symbol in unknown} <= set(seen.states))
        wait_streams(server, MONTHS[wire])
        emit(server, 1, CALL)
        assert values.wait(1) == [(MONTH, CALL, 1.0)]
        assert listener.state is State.STREAMING
    assert {error.symbol for error in seen.of_type(StreamNotFound)} == set(unknown)


def test_gaps_are_reported_and_not_filled(server: LocalServer, seen: Seen, values: Values, wire: Any) -> None:
    """FinX keeps no history of Greeks."""
    settings: dict[str, Any] = {"on_greeks": values, "backfill": True}
    with seen.listener(Endpoint(server.url, wire=wire), MONTH, **settings):
        wait_streams(server, MONTHS[wire])
        emit(server, 1, CALL)
        values.wait(1)
        server.drop_connections()
        wait_streams(server, MONTHS[wire])
        emit(server, 2, CALL)
        seen.wait_for(lambda: seen.gaps)
        gap = seen.gaps[0]
        assert (gap.symbol, gap.filled, gap.ticks) == (MONTH, False, 0)
    assert seen.errors == [error for error in seen.errors if getattr(error, "will_retry", False)]


def test_a_loop_yields_greeks(server: LocalServer, wire: Any) -> None:
    """If there is no pair."""
    listener = StreamListener(MONTH, endpoint=Endpoint(server.url, wire=wire), api_key="demo", reconnect=QUICK)
    emitter = threading.Thread(target=lambda: (wait_streams(server, MONTHS[wire]), emit(server, 1, CALL, PUT)))
    emitter.start()
    found = {each["instrument"] for each in islice(cast("Any", listener), 2)}
    emitter.join()
    assert found == {CALL, PUT}


def test_the_key_in_a_ticker_is_hidden(seen: Seen, values: Values, wire: Any) -> None:
    """A server may echo it anywhere, also where a number belongs."""
    echoes = [ticker(CALL, state=KEY), {**ticker(CALL), KEY: "1"}, ticker(CALL, delta=KEY), {**ticker(KEY)}]

    def script(caller: Caller) -> None:
        caller.welcome()
        if wire == "subscribe":
            caller.send(frame(json.dumps([CALL, KEY])))
        caller.send(*(frame(json.dumps(each)) for each in echoes))
        caller.wait_until_left()

    with (
        Peer(script) as peer,
        seen.listener(Endpoint(peer.url, wire=wire), CALL, api_key=KEY, on_greeks=values) as listener,
    ):
        values.wait(2)
        # A ticker that no stream wants is a notice on a shared connection.
        seen.wait_for(lambda: len(seen.errors) + len(seen.notices) == 2)
        for text in (repr(values.all), repr(listener.greeks()), repr(seen.errors), *map(str, seen.errors), repr(seen)):
            assert_clean(text, "greeks")
    assert {type(error) for error in seen.errors} == {DecodeError}
