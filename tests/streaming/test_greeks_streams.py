"""Streams of Greeks on both wires: months, contracts, lists that change, gaps and full queues."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import pytest

from finx_streamer import (
    ConfigurationError,
    DecodeError,
    Endpoint,
    GapNotFilled,
    Greeks,
    State,
    StreamListener,
    StreamNotFound,
    TicksDropped,
)
from finx_streamer.streaming import shared_connection
from tests.support.market import PAIR, tick
from tests.support.peers import Caller, Peer, Seen, frame
from tests.support.second_wire import SecondWire

MONTH, CALL, PUT = "BTCQ2202208", "BTC-26AUG22-20000-C", "BTC-26AUG22-20000-P"
LATER, FUTURE, PERPETUAL = "BTC-30SEP22-20000-C", "BTC-26AUG22", "BTC-PERPETUAL"


def ticker(name: str, number: int = 1) -> dict[str, str]:
    """A contract's ticker. Its mark price is its number."""
    values = {"delta": "0.5"} if name.count("-") == 3 else {"delta": ""}
    return {"instrument_name": name, "timestamp": f"{1_659_760_300_000 + number}", "mark_price": f"{number}", **values}


class GreeksSeen:
    """Records Greeks, and lets a test wait for them."""

    def __init__(self) -> None:
        self.all: list[Greeks] = []
        self._changed = threading.Condition()

    def __call__(self, greeks: Greeks) -> None:
        with self._changed:
            self.all.append(greeks)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, 20.0), self.all

    @property
    def got(self) -> list[tuple[str, str, float | None]]:
        return [(each["symbol"], each["instrument"], each["mark_price"]) for each in self.all]


@pytest.fixture
def greeks() -> GreeksSeen:
    return GreeksSeen()


@pytest.fixture
def service() -> Iterator[SecondWire]:
    """A service with contracts, as FinX documents it: it confirms nothing."""
    with SecondWire() as service:
        service.contracts = [CALL, PUT, LATER, FUTURE, PERPETUAL]
        yield service


def endpoint(service: SecondWire) -> Endpoint:
    return Endpoint(service.url, wire="subscribe")


def test_a_month_is_all_its_options(service: SecondWire, seen: Seen, greeks: GreeksSeen) -> None:
    """The list of contracts says which. Futures, and options of other months, aren't requested."""
    with seen.listener(endpoint(service), MONTH, on_greeks=greeks) as listener:
        service.wait_subscribed(2)
        assert service.asked("getDeribitContractStream") == {CALL: 1, PUT: 1}
        service.send(json.dumps(ticker(CALL, 1)))
        service.send(json.dumps(ticker(PUT, 2)))
        greeks.wait(2)
        assert greeks.got == [(MONTH, CALL, 1.0), (MONTH, PUT, 2.0)]
        assert {name: each["mark_price"] for name, each in listener.greeks().items()} == {CALL: 1.0, PUT: 2.0}
        assert listener.state is State.STREAMING
        assert listener.stats.streams[MONTH].ticks == 2
    assert seen.errors == []


def test_a_contract_has_its_own_name(service: SecondWire, seen: Seen, greeks: GreeksSeen) -> None:
    """Options, futures and perpetuals. A contract that is also in a month is requested once, and delivered to both."""
    with seen.listener(endpoint(service), MONTH, CALL, FUTURE, PERPETUAL, on_greeks=greeks):
        service.wait_subscribed(4)
        for name in (CALL, FUTURE, PERPETUAL):
            service.send(json.dumps(ticker(name)))
        greeks.wait(4)
        assert sorted(greeks.got) == sorted(
            [(MONTH, CALL, 1.0), (CALL, CALL, 1.0), (FUTURE, FUTURE, 1.0), (PERPETUAL, PERPETUAL, 1.0)]
        )
        assert [each["delta"] for each in greeks.all if each["instrument"] == PERPETUAL] == [None]
        assert service.asked("getDeribitContractStream")[CALL] == 1


def test_contracts_are_listed_and_expire(
    service: SecondWire, seen: Seen, greeks: GreeksSeen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is requested again and again: new contracts of the month join, and others leave it."""
    monkeypatch.setattr(shared_connection, "_LIST_INTERVAL", 0.02)
    new = "BTC-26AUG22-21000-C"
    with seen.listener(endpoint(service), MONTH, PERPETUAL, on_greeks=greeks) as listener:
        service.wait_subscribed(3)
        service.send(json.dumps(ticker(CALL)))
        greeks.wait(1)
        service.contracts = [PUT, new]
        service.wait_for(lambda: service.asked("getDeribitContractStream")[new] == 1)
        service.wait_for(lambda: service.asked("unsubscribe") == {CALL: 1, PERPETUAL: 1})
        # A contract that isn't listed any more ends alone.
        seen.wait_for(lambda: (PERPETUAL, State.FAILED) in seen.states)
        service.send(json.dumps(ticker(CALL, 5)))
        service.send(json.dumps(ticker(new, 6)))
        greeks.wait(2)
        assert greeks.got == [(MONTH, CALL, 1.0), (MONTH, new, 6.0)]
        assert set(listener.greeks()) == {new}
        assert listener.state is State.STREAMING
    assert [error.symbol for error in seen.of_type(StreamNotFound)] == [PERPETUAL]


def test_an_empty_month_ends(service: SecondWire, seen: Seen) -> None:
    """No contract of it is listed."""
    listener = seen.listener(endpoint(service), "BTCZ2202212").start()
    with pytest.raises(StreamNotFound, match="no option of BTC"):
        listener.join(20.0)


def test_the_list_is_requested_on_every_connection(service: SecondWire, seen: Seen, greeks: GreeksSeen) -> None:
    """What is listed may have changed meanwhile. A gap is reported and not filled, because there is no history."""
    with seen.listener(endpoint(service), MONTH, on_greeks=greeks, backfill=True):
        service.wait_subscribed(2)
        service.send(json.dumps(ticker(CALL, 1)))
        greeks.wait(1)
        service.contracts = [PUT]
        service.drop()
        service.wait_subscribed(1)
        service.send(json.dumps(ticker(PUT, 2)))
        greeks.wait(2)
        seen.wait_for(lambda: seen.gaps)
        assert (seen.gaps[0].symbol, seen.gaps[0].filled, seen.gaps[0].ticks) == (MONTH, False, 0)
        assert service.asked("listDeribitContracts")[""] == 2
    assert seen.of_type(GapNotFilled) == []
    assert service.asked("tickHistory") == {}


def test_a_refused_contract_ends_alone(seen: Seen) -> None:
    """A month goes on without it."""
    with SecondWire(confirms=True) as service:
        service.contracts = [CALL, PUT, PERPETUAL]
        with seen.listener(endpoint(service), MONTH, PERPETUAL, "ETH-PERPETUAL"):
            service.wait_subscribed(3)
            seen.wait_for(lambda: ("ETH-PERPETUAL", State.FAILED) in seen.states)
            service.send(json.dumps({"error": "expired", "instrumentName": CALL}))
            service.send(json.dumps({"error": "expired", "instrumentName": PERPETUAL}))
            seen.wait_for(lambda: (PERPETUAL, State.FAILED) in seen.states)
            assert (MONTH, State.FAILED) not in seen.states
            service.send(json.dumps({"error": "expired", "instrumentName": PUT}))
            seen.wait_for(lambda: (MONTH, State.FAILED) in seen.states)


def test_removed_months_are_unsubscribed(service: SecondWire, seen: Seen, greeks: GreeksSeen) -> None:
    """Except for contracts that another stream has."""
    with seen.listener(endpoint(service), MONTH, CALL, on_greeks=greeks) as listener:
        service.wait_subscribed(2)
        listener.remove(MONTH)
        service.wait_for(lambda: service.asked("unsubscribe") == {PUT: 1})
        service.send(json.dumps(ticker(PUT)))
        service.send(json.dumps(ticker(CALL)))
        greeks.wait(1)
        assert greeks.got == [(CALL, CALL, 1.0)]
        assert set(listener.greeks()) == {CALL}


def test_a_malformed_ticker_costs_its_stream_an_error(service: SecondWire, seen: Seen, greeks: GreeksSeen) -> None:
    """Pairs and other contracts aren't affected."""
    with seen.listener(endpoint(service), PAIR, CALL, on_greeks=greeks) as listener:
        service.wait_subscribed(2)
        service.send(json.dumps({**ticker(CALL), "delta": "x"}))
        service.send(json.dumps(ticker(CALL, 2)))
        service.publish(tick(1))
        greeks.wait(1)
        seen.wait_ticks(1)
        assert [error.symbol for error in seen.of_type(DecodeError)] == [CALL]
        assert listener.stats.streams[CALL].decode_errors == 1


# Callbacks, loops and queues.


def test_callbacks_can_be_narrowed(service: SecondWire, seen: Seen) -> None:
    """To the symbol that was subscribed. Decorators and the constructor do the same."""
    every, narrowed = GreeksSeen(), GreeksSeen()
    with seen.listener(endpoint(service), MONTH, PERPETUAL, on_greeks=every) as listener:
        listener.on_greeks(symbol=PERPETUAL)(narrowed)
        service.wait_subscribed(3)
        service.send(json.dumps(ticker(CALL)))
        service.send(json.dumps(ticker(PERPETUAL)))
        every.wait(2)
        narrowed.wait(1)
    assert narrowed.got == [(PERPETUAL, PERPETUAL, 1.0)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((), {}), "no callback given"),
        ((("BTC-PERPETUAL",), {}), "a symbol is no callback"),
        (((), {"symbol": "BTC:USDC"}), "an option month"),
        (((), {"symbol": "BTC"}), "not a symbol"),
        (((lambda: None,), {}), "can't be called with"),
    ],
)
def test_wrong_registrations_are_refused(arguments: Any, text: str) -> None:
    """The error says what to write."""
    listener = StreamListener(CALL, endpoint="ws://127.0.0.1:9/", api_key="demo")
    with pytest.raises(ConfigurationError, match=text):
        listener.on_greeks(*arguments[0], **arguments[1])


def test_a_loop_over_options_yields_greeks(service: SecondWire) -> None:
    """If there is no pair. With one, it yields ticks."""
    service.tickers = {CALL: ticker(CALL), PUT: ticker(PUT)}
    listener = StreamListener(MONTH, endpoint=endpoint(service), api_key="demo")
    found = [each["instrument"] for each in islice(cast("Any", listener), 2)]
    assert found == [CALL, PUT]


@pytest.mark.parametrize("overflow", ["latest", "drop_oldest"])
def test_slow_callbacks(service: SecondWire, seen: Seen, overflow: str) -> None:
    """The newest of each contract is kept, or the last ones. Every drop is counted and reported."""
    go_on = threading.Event()
    got: list[tuple[str, float | None]] = []

    def slow(greeks: Greeks) -> None:
        assert go_on.wait(20.0)
        got.append((greeks["instrument"], greeks["mark_price"]))

    settings: dict[str, Any] = {"overflow": overflow, "queue_size": 2, "on_greeks": slow}
    with seen.listener(endpoint(service), MONTH, **settings) as listener:
        service.wait_subscribed(2)
        service.send(json.dumps(ticker(CALL, 1)))
        while listener.stats.messages < 1:
            assert not listener.join(0.01)
        for number in range(2, 12):
            service.send(json.dumps(ticker((CALL, PUT)[number % 2], number)))
        while listener.stats.messages < 11:
            assert not listener.join(0.01)
        go_on.set()
        while len(got) < 3 - (listener.stats.dropped > 8):
            assert not listener.join(0.01)
    assert sorted(got[-2:]) == sorted([(CALL, 10.0), (PUT, 11.0)])
    assert len(got) + sum(error.count for error in seen.of_type(TicksDropped)) == 11
    assert {error.symbol for error in seen.of_type(TicksDropped)} == {MONTH}


# The first wire.


def envelope(name: str, number: int = 1) -> bytes:
    return frame(json.dumps({"results": "streaming", "resultData": {**ticker(name, number), "exchange": "DERIBIT"}}))


def test_the_first_wire_has_a_stream_for_each_symbol(seen: Seen, greeks: GreeksSeen) -> None:
    """The server resolves months."""

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.send(envelope(CALL, 1) + envelope(PUT, 2) + envelope(LATER, 3))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, MONTH, on_greeks=greeks):
        greeks.wait(2)
        seen.wait_errors(1)
    assert greeks.got == [(MONTH, CALL, 1.0), (MONTH, PUT, 2.0)]
    assert f"a ticker of {LATER} on the stream of {MONTH}" in str(seen.errors[0])


def test_the_placeholder_is_one_notice(seen: Seen) -> None:
    """Before FinX releases Greeks, the stream stays."""

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.send(frame('{"feature":"scheduled for future release"}'))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, "BTCN2202207") as listener:
        seen.wait_for(lambda: seen.notices)
        assert seen.notices[0].message == {"feature": "scheduled for future release"}
        assert listener.state is State.STREAMING
    assert len(seen.notices) == 1
    assert seen.errors == []
