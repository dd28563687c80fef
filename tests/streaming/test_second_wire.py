"""FinX's second wire: many streams on one connection, against a service that is written without our server."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import pytest

from finx_streamer import (
    DecodeError,
    Endpoint,
    GapNotFilled,
    ServerError,
    StaleStream,
    State,
    StreamNotFound,
)
from tests.support.market import OTHER, PAIR, prices, tick
from tests.support.peers import Seen
from tests.support.second_wire import SecondWire, flat


@pytest.fixture(params=[False, True], ids=["as FinX", "as our server"])
def confirms(request: pytest.FixtureRequest) -> bool:
    """Whether the service confirms subscriptions."""
    return bool(request.param)


def endpoint(service: SecondWire, **settings: Any) -> Endpoint:
    return Endpoint(service.url, wire="subscribe", **settings)


def test_streams_share_one_connection(confirms: bool, seen: Seen, dispatch: str) -> None:
    """Its path is the prefix and the key. Ticks of all pairs arrive in the order in which they were sent."""
    with (
        SecondWire(confirms=confirms) as service,
        seen.listener(endpoint(service), PAIR, OTHER, dispatch=dispatch) as listener,
    ):
        service.wait_subscribed(2)
        sent = [tick(number, (PAIR, OTHER)[number % 3 == 0]) for number in range(1, 50)]
        service.publish(*sent)
        seen.wait_ticks(49)
        assert [(each["pair"], int(each["price"]) - 19_200) for each in seen.ticks] == [
            (each["pair"], number) for number, each in enumerate(sent, 1)
        ]
        assert {name: each.state for name, each in listener.stats.streams.items()} == {
            PAIR: State.STREAMING,
            OTHER: State.STREAMING,
        }
        assert service.paths == ["/streamer/demo"]
        assert service.asked("getSpotRates") == {PAIR: 1, OTHER: 1}
    assert seen.errors == []


def test_the_prefix_can_be_chosen(seen: Seen) -> None:
    """FinX's first description of this wire had `streaming`."""
    with SecondWire() as service, seen.listener(endpoint(service, prefix="streaming")):
        service.wait_subscribed(1)
        assert service.paths == ["/streaming/demo"]


def test_a_stream_is_streaming_once_something_of_it_arrives(seen: Seen) -> None:
    """Until then, nothing shows that the server accepted it."""
    with SecondWire() as service, seen.listener(endpoint(service), PAIR, OTHER) as listener:
        service.wait_subscribed(2)
        service.publish(tick(1))
        seen.wait_ticks(1)
        states = {name: each.state for name, each in listener.stats.streams.items()}
        assert states == {PAIR: State.STREAMING, OTHER: State.CONNECTING}
        assert listener.state is State.CONNECTING


def test_a_confirmation_is_enough(seen: Seen) -> None:
    """A quiet pair is streaming, too."""
    with SecondWire(confirms=True) as service, seen.listener(endpoint(service)) as listener:
        seen.wait_for(lambda: (PAIR, State.STREAMING) in seen.states)
        assert listener.state is State.STREAMING
        assert listener.stats.connection_errors == 0
        assert seen.notices == []


def test_gaps_of_all_streams_are_filled(confirms: bool, seen: Seen, dispatch: str) -> None:
    """After one reconnect, each has its own gap and its own missed ticks."""
    with (
        SecondWire(confirms=confirms) as service,
        seen.listener(endpoint(service), PAIR, OTHER, backfill=True, dispatch=dispatch) as listener,
    ):
        service.wait_subscribed(2)
        service.publish(tick(1), tick(1, OTHER))
        seen.wait_ticks(2)
        service.refusing = True
        service.drop()
        seen.wait_for(lambda: (PAIR, State.RECONNECTING) in seen.states and (OTHER, State.RECONNECTING) in seen.states)
        service.publish(tick(2), tick(3, OTHER), tick(4, OTHER))
        service.refusing = False
        service.wait_subscribed(2)
        service.publish(tick(5), tick(5, OTHER))
        seen.wait_ticks(7)
        seen.wait_for(lambda: len(seen.gaps) == 2)
        assert prices(seen) == [1, 2, 5]
        assert prices(seen, OTHER) == [1, 3, 4, 5]
        assert {gap.symbol: (gap.filled, gap.ticks) for gap in seen.gaps} == {PAIR: (True, 1), OTHER: (True, 2)}
        stats = listener.stats
        assert (stats.reconnects, stats.streams[PAIR].reconnects) == (1, 1)
        assert stats.connection_errors == stats.streams[OTHER].connection_errors > 0
    assert seen.of_type(GapNotFilled) == []


def test_the_gaps_of_many_pairs_are_filled(seen: Seen) -> None:
    """All are cut off at once. Each gap needs a round trip, and four of them run at once."""
    names = [f"P{number}:USD" for number in range(60)]
    with (
        SecondWire(confirms=True, delay=0.05) as service,
        seen.listener(endpoint(service), *names, backfill=True),
    ):
        service.wait_subscribed(60)
        service.publish(*(tick(1, name) for name in names))
        seen.wait_ticks(60)
        service.refusing = True
        service.drop()
        service.publish(*(tick(number, name) for number in (2, 3) for name in names))
        service.refusing = False
        service.wait_subscribed(60)
        service.publish(*(tick(4, name) for name in names))
        seen.wait_for(lambda: len(seen.gaps) == 60)
        seen.wait_ticks(240)
        assert {name: prices(seen, name) for name in names} == {name: [1, 2, 3, 4] for name in names}
        assert all(gap.filled and gap.ticks == 2 for gap in seen.gaps)
    assert seen.of_type(GapNotFilled) == []


def test_missed_ticks_of_a_quiet_pair_come_without_a_live_one(seen: Seen) -> None:
    """If the server confirms the stream: then it is certain that nothing more is missed."""
    with SecondWire(confirms=True) as service, seen.listener(endpoint(service), backfill=True):
        service.wait_subscribed(1)
        service.publish(tick(1))
        seen.wait_ticks(1)
        service.refusing = True
        service.drop()
        seen.wait_for(lambda: (PAIR, State.RECONNECTING) in seen.states)
        service.publish(tick(2), tick(3))
        service.refusing = False
        seen.wait_ticks(3)
        seen.wait_for(lambda: seen.gaps)
        assert prices(seen) == [1, 2, 3]
        assert (seen.gaps[0].filled, seen.gaps[0].ticks) == (True, 2)


def test_a_refused_pair_ends_alone(seen: Seen) -> None:
    """The server's error names it."""
    with SecondWire(confirms=True, pairs=[PAIR]) as service, seen.listener(endpoint(service), PAIR, OTHER) as listener:
        seen.wait_for(lambda: (OTHER, State.FAILED) in seen.states)
        service.wait_subscribed(1)
        service.publish(tick(1))
        seen.wait_ticks(1)
        assert [(error.symbol, error.reason) for error in seen.of_type(StreamNotFound)] == [(OTHER, f"unknown {OTHER}")]
        assert listener.state is State.STREAMING
        assert listener.stats.streams[OTHER].state is State.FAILED


def test_the_listener_ends_if_all_pairs_are_refused(seen: Seen) -> None:
    """There is nothing left to wait for."""
    with SecondWire(confirms=True, pairs=[]) as service:
        listener = seen.listener(endpoint(service), PAIR, OTHER).start()
        with pytest.raises(StreamNotFound, match="unknown"):
            listener.join(20.0)
        assert len(seen.of_type(StreamNotFound)) == 2


def test_a_silently_refused_pair_is_stale(seen: Seen) -> None:
    """The others aren't affected."""
    with (
        SecondWire(ignored=[OTHER]) as service,
        seen.listener(endpoint(service), PAIR, OTHER, stale_after=0.2, stale_reconnect=True) as listener,
    ):
        service.wait_subscribed(1)
        number = 0
        while not seen.of_type(StaleStream):
            number += 1
            service.publish(tick(number))
            assert not listener.join(0.02)
        assert {error.symbol for error in seen.of_type(StaleStream)} == {OTHER}
        assert listener.stats.reconnects == 0


def test_silent_streams_replace_the_connection(seen: Seen) -> None:
    """If that is wanted, and all of them are silent."""
    settings = {"stale_after": 0.05, "stale_reconnect": True}
    with SecondWire() as service, seen.listener(endpoint(service), PAIR, OTHER, **settings) as listener:
        service.wait_for(lambda: service.asked("getSpotRates") >= Counter({PAIR: 2, OTHER: 2}))
        seen.wait_for(lambda: len(seen.of_type(StaleStream)) >= 2)
        assert listener.stats.connection_errors >= 1


def test_added_pairs_use_the_same_connection(confirms: bool, seen: Seen) -> None:
    """They need no handshake."""
    with SecondWire(confirms=confirms) as service, seen.listener(endpoint(service)) as listener:
        service.wait_subscribed(1)
        listener.add(OTHER)
        service.wait_subscribed(2)
        service.publish(tick(1, OTHER))
        seen.wait_ticks(1)
        assert len(service.paths) == 1
        assert (OTHER, State.STREAMING) in seen.states


def test_removed_pairs_deliver_nothing_more(confirms: bool, seen: Seen) -> None:
    """Whether or not the server stops sending."""
    with SecondWire(confirms=confirms) as service, seen.listener(endpoint(service), PAIR, OTHER) as listener:
        service.wait_subscribed(2)
        service.publish(tick(1, OTHER))
        seen.wait_ticks(1)
        listener.remove(OTHER)
        service.wait_for(lambda: service.asked("unsubscribe") == {OTHER: 1})
        service.publish(tick(2, OTHER), tick(3))
        seen.wait_ticks(2)
        assert prices(seen, OTHER) == [1]
        # Once more: it was requested already where the server doesn't know `unsubscribe`.
        listener.add(OTHER)
        if confirms:
            service.wait_for(lambda: service.asked("getSpotRates")[OTHER] == 2)
        number = 3
        while len(prices(seen, OTHER)) < 2:
            number += 1
            service.publish(tick(number, OTHER))
            assert not listener.join(0.01)
        assert service.asked("getSpotRates")[OTHER] == (2 if confirms else 1)
    assert seen.errors == []
    assert seen.notices == []


def test_without_pairs_there_is_no_connection(seen: Seen) -> None:
    """It closes with the last pair. The next one opens another."""
    with SecondWire(confirms=True) as service, seen.listener(endpoint(service)) as listener:
        service.wait_subscribed(1)
        listener.remove(PAIR)
        while service.subscribed:
            assert not listener.join(0.01)
        listener.add(OTHER)
        service.wait_subscribed(1)
        service.publish(tick(1, OTHER))
        seen.wait_ticks(1)
        assert len(service.paths) == 2


@pytest.mark.parametrize(
    ("message", "symbol"),
    [
        (json.dumps({"pair": PAIR, "UTCDate": "never", "exchange": "X", "price": "1"}), PAIR),
        (flat(tick(1)).replace('"19201.50"', '"NaN"'), PAIR),
        (flat(tick(1)).replace('"BINANCE"', "5"), PAIR),
        (flat(tick(1))[:-1], PAIR),
        ("[1]", None),
        ("{", None),
        (b"binary", None),
    ],
)
def test_a_malformed_message_concerns_only_its_stream(seen: Seen, message: str | bytes, symbol: str | None) -> None:
    """The streams go on."""
    with SecondWire() as service, seen.listener(endpoint(service), PAIR, OTHER) as listener:
        service.wait_subscribed(2)
        service.publish(tick(1), tick(1, OTHER))
        service.send(message)
        service.publish(tick(2), tick(2, OTHER))
        seen.wait_ticks(4)
        assert [error.symbol for error in seen.of_type(DecodeError)] == [symbol]
        assert (listener.stats.decode_errors, listener.stats.streams[OTHER].decode_errors) == (1, 0)
    assert len(seen.errors) == 1


def test_other_messages_belong_to_the_listener(seen: Seen) -> None:
    """A notice, and an error that names no pair."""
    with SecondWire() as service, seen.listener(endpoint(service), keep_alive=0.01):
        service.wait_subscribed(1)
        seen.wait_for(lambda: seen.notices)
        service.send('{"error":"too many requests"}')
        seen.wait_errors(1)
        assert (seen.notices[0].symbol, seen.notices[0].message) == (None, {"keepAlive": True})
        (error,) = seen.of_type(ServerError)
        assert (error.symbol, error.message) == (None, "too many requests")


@pytest.mark.parametrize("pair", ["币安人生:USDT", "$TRUMP:USDC", "USDC.E:USDT", 'A"B:USDC'])
def test_any_pair_can_be_streamed(seen: Seen, pair: str) -> None:
    """In both spellings of JSON."""
    with SecondWire() as service, seen.listener(endpoint(service), pair):
        service.wait_subscribed(1)
        for number in range(1, 10):
            service.publish(tick(number, pair))
            service.send(json.dumps(json.loads(flat(tick(number, pair)))))
        seen.wait_ticks(18)
        assert prices(seen, pair) == [number for number in range(1, 10) for _ in range(2)]
    assert seen.errors == []


def test_a_full_queue_stops_all_streams_and_loses_nothing(confirms: bool, seen: Seen) -> None:
    """A gap whose recovery waits for an unread answer is filled once the callbacks go on."""
    go_on = threading.Event()
    got: list[Any] = []

    def slow(each: Any) -> None:
        got.append(each)
        if len(got) > 4:
            assert go_on.wait(20.0)

    with SecondWire(confirms=confirms) as service:
        listener = seen.listener(endpoint(service), PAIR, OTHER, backfill=True, queue_size=50, on_tick=slow)
        with listener:
            service.wait_subscribed(2)
            service.publish(tick(1), tick(1, OTHER))
            while len(got) < 2:
                assert not listener.join(0.01)
            service.refusing = True
            service.drop()
            seen.wait_for(lambda: (PAIR, State.RECONNECTING) in seen.states)
            service.publish(*(tick(number) for number in range(2, 200)))
            service.publish(*(tick(number, OTHER) for number in range(2, 200)))
            service.refusing = False
            service.wait_subscribed(2)
            for number in range(200, 2_000):
                service.publish(tick(number), tick(number, OTHER))
            go_on.set()
            while len(got) < 2 * 1_999:
                assert not listener.join(0.01)
    for pair in (PAIR, OTHER):
        assert [int(each["price"]) - 19_200 for each in got if each["pair"] == pair] == list(range(1, 2_000))
    assert seen.of_type(GapNotFilled) == []
