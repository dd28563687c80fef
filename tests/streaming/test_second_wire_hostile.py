"""A hostile or odd server on FinX's second wire: nothing crashes, hangs, leaks the key or ends another stream."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

import pytest

from finx_streamer import DecodeError, Endpoint, ServerError, State, StreamListener, StreamNotFound
from tests.support.market import OTHER, PAIR, prices, tick
from tests.support.peers import PATIENCE, Caller, Peer, Seen, frame, stay
from tests.support.second_wire import SecondWire, flat
from tests.support.secrets import KEY, assert_clean


def endpoint(url: str) -> Endpoint:
    return Endpoint(url, wire="subscribe")


def listen(peer: Peer, seen: Seen, **settings: Any) -> StreamListener:
    return seen.listener(endpoint(peer.url), PAIR, OTHER, **settings)


def ticks(*numbers: int, pair: str = PAIR) -> bytes:
    return b"".join(frame(flat(tick(number, pair))) for number in numbers)


def text(**message: object) -> bytes:
    return frame(json.dumps(message))


ODD_VALUES = (None, 5, 1.5, True, [], {}, [PAIR], {"pair": PAIR}, "", "X:Y", "\ud800", "x" * 10_000)
ODD_MESSAGES = [
    *({name: value} for name in ("subscribed", "unsubscribed", "pair", "error") for value in ODD_VALUES),
    *({"pair": value, "error": "no"} for value in ODD_VALUES),
    *({"results": "streaming", "resultData": value} for value in ODD_VALUES),
    {"subscribed": OTHER, "error": "limit reached"},
    {"unsubscribed": OTHER, "unsubscribed ": OTHER},
]


def test_odd_messages_end_nothing(seen: Seen, dispatch: str) -> None:
    """The streams go on, on the same connection."""
    odd = b"".join(text(**message) for message in ODD_MESSAGES)
    with Peer(stay(ticks(1), odd, ticks(2), ticks(2, pair=OTHER))) as peer, listen(peer, seen, dispatch=dispatch):
        seen.wait_ticks(3)
        assert prices(seen) == [1, 2]
        assert prices(seen, OTHER) == [2]
        assert peer.accepted == 1


@pytest.mark.parametrize(
    "message",
    [
        {"subscribed": False},
        {"subscribed": "SOL:USDC"},
        {"subscribed": [PAIR]},
        {"unsubscribed": "SOL:USDC"},
        {"subscribed": None, "reason": "limit reached"},
    ],
)
def test_confirmations_of_nothing_are_notices(seen: Seen, message: dict[str, Any]) -> None:
    """No message is dropped silently."""
    with Peer(stay(text(**message), ticks(1))) as peer, listen(peer, seen):
        seen.wait_ticks(1)
        assert [(notice.symbol, notice.message) for notice in seen.notices] == [(None, message)]


def test_an_error_with_a_confirmation_is_an_error(seen: Seen) -> None:
    """It reports what went wrong."""
    with Peer(stay(text(subscribed=PAIR, error="limit reached"), ticks(1))) as peer, listen(peer, seen):
        seen.wait_ticks(1)
        assert [error.message for error in seen.of_type(ServerError)] == ["limit reached"]


@pytest.mark.parametrize("name", ["subscribed", "unsubscribed"])
def test_a_tick_with_a_confirmation_is_a_tick(seen: Seen, name: str) -> None:
    """It isn't lost."""
    odd = frame(json.dumps({**json.loads(flat(tick(1))), name: OTHER}))
    with Peer(stay(odd, ticks(2))) as peer, listen(peer, seen):
        seen.wait_ticks(2)
        assert prices(seen) == [1, 2]


def test_a_server_that_denies_all_subscriptions_gets_few_requests(seen: Seen) -> None:
    """One request for each denial that it sends: no flood, and ticks go on."""

    def deny(caller: Caller) -> None:
        caller.welcome(ticks(1))
        for _ in range(200):
            caller.send(text(unsubscribed=PAIR), text(unsubscribed=OTHER), text(unsubscribed="SOL:USDC"))
        caller.send(ticks(2))
        while True:
            opcode, payload = caller.read_frame()
            if opcode == 1:
                requests.append(json.loads(payload)["pair"])

    requests: list[str] = []
    with Peer(deny) as peer, listen(peer, seen):
        seen.wait_ticks(2)
    assert prices(seen) == [1, 2]
    assert len(requests) <= 2 * 201


def test_a_refusal_of_another_pair_ends_only_that(seen: Seen) -> None:
    """A pair that isn't streamed, or was refused before, is the listener's error."""
    refusals = [text(error="no", pair=name) for name in (OTHER, OTHER, "SOL:USDC")]
    with Peer(stay(ticks(1), *refusals, ticks(2))) as peer, listen(peer, seen) as listener:
        seen.wait_ticks(2)
        assert [error.symbol for error in seen.of_type(StreamNotFound)] == [OTHER]
        assert [error.symbol for error in seen.of_type(ServerError)] == [None, None]
        assert listener.stats.streams[PAIR].state is State.STREAMING


def test_what_follows_the_last_refusal_keeps_its_order(seen: Seen, dispatch: str) -> None:
    """The listener's end reads what is left. It must not overtake what was read before."""
    sent = [text(error="no", pair=PAIR), text(error="no", pair=OTHER), *(text(number=number) for number in range(200))]
    with Peer(stay(*sent)) as peer:
        listener = listen(peer, seen, dispatch=dispatch).start()
        with pytest.raises(StreamNotFound):
            listener.join(PATIENCE)
    numbers = [notice.message["number"] for notice in seen.notices]
    assert numbers == sorted(numbers)


def test_a_removed_pair_that_was_refused_stays_refused(seen: Seen) -> None:
    """Its state doesn't change to stopped, as on the first wire."""
    with (
        Peer(stay(ticks(1), text(error="no", pair=OTHER))) as peer,
        listen(peer, seen) as listener,
    ):
        seen.wait_for(lambda: (OTHER, State.FAILED) in seen.states)
        listener.remove(OTHER)
        listener.add("SOL:USDC")
        seen.wait_for(lambda: ("SOL:USDC", State.CONNECTING) in seen.states)
        assert (OTHER, State.STOPPED) not in seen.states


def test_a_late_error_about_unsubscribe_refuses_nothing(seen: Seen) -> None:
    """The pair was removed and added again meanwhile. The error names it."""
    with SecondWire() as service, seen.listener(endpoint(service.url), PAIR, OTHER) as listener:
        service.wait_subscribed(2)
        service.publish(tick(1), tick(1, OTHER))
        seen.wait_ticks(2)
        listener.remove(OTHER)
        listener.add(OTHER)
        service.wait_for(lambda: service.asked("unsubscribe") == {OTHER: 1})
        service.send(json.dumps({"error": "unknown function unsubscribe", "pair": OTHER}))
        service.publish(tick(2, OTHER))
        seen.wait_ticks(3)
        assert prices(seen, OTHER) == [1, 2]
    assert seen.errors == []


FLOODS = {
    "confirmations": text(subscribed=PAIR),
    "notices": text(keepAlive=True),
    "other pairs": frame(flat(tick(1, "SOL:USDC"))),
    "errors": text(error="no"),
    "lists": frame("[" + "1," * 2_000 + "1]"),
    "depth": frame('{"pair":"BTC:USDC","a":' + "[" * 20_000 + "]" * 20_000 + "}"),
    "no JSON": frame('{"pair":"BTC:USDC"' + " " * 10_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_stop_works_during_a_flood(seen: Seen, flood: bytes, dispatch: str) -> None:
    """Memory stays bounded, because a full queue stops reading."""

    def send_endlessly(caller: Caller) -> None:
        caller.welcome(ticks(1))
        while True:
            caller.send(flood * max(1, 60_000 // len(flood)))

    with Peer(send_endlessly) as peer:
        listener = listen(peer, seen, dispatch=dispatch, queue_size=100).start()
        seen.wait_ticks(1)
        if flood != FLOODS["confirmations"]:
            seen.wait_for(lambda: seen.errors or seen.notices)
        assert listener.stats.queue_depth < 20_000
        assert listener.stop(timeout=PATIENCE)


def test_the_key_is_in_no_error_or_log(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """The server echoes it in every field."""
    messages: list[dict[str, Any]] = [
        {"subscribed": KEY},
        {"unsubscribed": KEY},
        {"error": KEY},
        {"error": {KEY: KEY}},
        {"error": f"unknown function unsubscribe {KEY}"},
        {"pair": KEY},
        {"pair": KEY, "price": KEY, "exchange": KEY},
        {"pair": PAIR, "UTCDate": KEY, "exchange": "X", "price": "1"},
        {"pair": PAIR, "UTCDate": "2022-07-02T15:30:55.0Z", "exchange": "X", "price": KEY},
        {"pair": PAIR, KEY: KEY},
        {"results": KEY, "resultData": {"pair": KEY}},
        {"results": "streaming", "resultData": {"pair": KEY, "error": KEY}},
        {KEY: KEY, "APIKey": KEY},
        {"pair": OTHER, "error": KEY, KEY: KEY},
    ]
    sent = [text(**message) for message in messages] + [frame(KEY), frame(KEY.encode(), 0x2), frame(f'["{KEY}"]')]
    sent += [frame(json.dumps({"pair": PAIR})[:-1] + KEY)]
    with (
        caplog.at_level(logging.DEBUG),
        Peer(stay(*sent, ticks(1))) as peer,
        listen(peer, seen, api_key=KEY) as listener,
    ):
        seen.wait_ticks(1)
        assert_clean(repr(listener.stats), "stats")
    assert len(seen.of_type(StreamNotFound)) == 1
    assert seen.of_type(DecodeError)
    for error in seen.errors:
        assert_clean("".join(traceback.format_exception(error)) + repr(error.__dict__), "error")
    for notice in seen.notices:
        assert_clean(repr(notice), "notice")
    assert_clean(caplog.text, "log")
