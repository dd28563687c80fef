"""Filling gaps under unusual conditions: users' own objects, odd ticks, odd servers, odd moments."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from finx_streamer import ConnectionFailed, GapNotFilled, ReconnectPolicy, State
from finx_streamer.server import LocalServer
from finx_streamer.streaming import resequencer as resequencer_module
from finx_streamer.values import Tick
from tests.support.market import OTHER, PAIR, Market, begin, outage, prices, send, tick, wait_held
from tests.support.peers import PING, PONG, TEXT, Caller, Peer, Script, Seen, frame, stay


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2, resumable=False) as server:
        yield server


# Users change ticks and parse prices.


@pytest.mark.parametrize("change", [dict.clear, lambda tick: tick.update(timestamp="", price="", exchange="")])
def test_a_callback_may_change_its_tick(
    server: LocalServer, seen: Seen, dispatch: str, change: Callable[[Tick], None]
) -> None:
    """Changes to a delivered tick neither end the listener nor make a tick arrive twice."""
    got: list[int] = []

    def keep(each: Tick) -> None:
        got.append(int(each["price"]) - 19_200)
        change(each)
        seen.on_tick(each)

    with seen.listener(server.url, backfill=True, dispatch=dispatch, on_tick=keep) as listener:
        server.wait_connected(1)
        for number in range(1, 11):
            send(server, number)
            seen.wait_ticks(number)
        send(server, *range(11, 60))
        seen.wait_ticks(59)
        assert listener.stats.ticks == 59
        with outage(server, seen):
            send(server, 60, 61)
        send(server, 62)
        seen.wait_ticks(62)
        assert listener.state is State.STREAMING
    assert got == list(range(1, 63))
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 2)]


@attrs.define
class Price:
    """Comparable, but not hashable, like most mutable classes."""

    text: str

    def __int__(self) -> int:
        return int(float(self.text))


def test_unhashable_prices_end_no_listener(server: LocalServer, seen: Seen, dispatch: str) -> None:
    """They can't be counted, so the gap is not filled, and no tick is delivered twice."""
    with seen.listener(server.url, backfill=True, parse_price=Price, dispatch=dispatch) as listener:
        server.wait_connected(1)
        for number in (1, 4, 7):
            send(server, number)
            seen.wait_for(lambda number=number: number in prices(seen))  # type: ignore[misc]
            with outage(server, seen):
                send(server, number + 1)
            send(server, number + 2)
            seen.wait_for(lambda number=number: number + 2 in prices(seen))  # type: ignore[misc]
        assert listener.state is State.STREAMING
    assert prices(seen) == [1, 3, 4, 6, 7, 9]
    assert [gap.filled for gap in seen.gaps] == [False] * 3


# Odd ticks.


@pytest.mark.parametrize(("date", "time"), [("0001-01-01", "00:00:00.000Z"), ("9999-12-31", "23:59:59.999Z")])
def test_times_at_the_ends_of_the_calendar_end_no_listener(
    server: LocalServer, seen: Seen, date: str, time: str
) -> None:
    """Dates from which no time can be subtracted, or to which none can be added."""
    odd = {**tick(1), "date": date, "time": time}
    with seen.listener(server.url, backfill=True) as listener:
        server.wait_connected(1)
        server.emit(odd, odd, odd, odd, odd)
        seen.wait_ticks(5)
        with outage(server, seen):
            pass
        server.emit(odd)
        seen.wait_ticks(6)
        send(server, 2)
        seen.wait_ticks(7)
        assert listener.state is State.STREAMING


def test_a_gap_with_a_bad_tick_is_filled_with_the_others(seen: Seen) -> None:
    """The gap says that a tick is missing."""
    known = [tick(1), {**tick(2), "price": "NaN"}, tick(3), tick(4)]
    streams = iter([tick(1), tick(4)])

    def script(caller: Caller) -> None:
        caller.welcome()
        if "/streamer/" not in caller.path:
            sent = next(streams)
            caller.send(frame(json.dumps({"results": "streaming", "resultData": sent})))
            if sent == tick(1):
                caller.leave()
                return
        while True:
            opcode, payload = caller.read_frame()
            if opcode == PING:
                caller.send(frame(payload, PONG))
            elif opcode == TEXT:
                caller.send(frame(json.dumps(answer(json.loads(payload), known))))

    with Peer(script) as peer, seen.listener(peer.url, backfill=True):
        seen.wait_ticks(3)
        seen.wait_for(lambda: seen.of_type(GapNotFilled))
    assert prices(seen) == [1, 3, 4]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(False, 1)]
    assert "1 tick of history can't be read (price 'NaN' is not a decimal number)" in str(seen.of_type(GapNotFilled)[0])


# Odd servers.


def answer(request: dict[str, Any], ticks: list[dict[str, str]]) -> dict[str, Any]:
    """What a correct server answers from these ticks."""
    at = (request["date"], request["time"])
    if request["functionName"] == "tickSnap":
        return max(ticks, key=lambda each: (each["date"], each["time"]))
    return {str(n): each for n, each in enumerate(ticks) if at[0] == each["date"] and at[1] < each["time"]}


def deaf(*connections: list[dict[str, str]], known: list[dict[str, str]]) -> Callable[[Caller], None]:
    """A server that answers no pings.

    The nth stream gets the nth list of ticks; all but the last are closed then. History has the `known` ticks.
    """
    streams = iter(connections)
    count = Counter[str]()

    def script(caller: Caller) -> None:
        caller.welcome()
        if "/streamer/" in caller.path:
            while True:
                opcode, payload = caller.read_frame()
                if opcode == 1:
                    caller.send(frame(json.dumps(answer(json.loads(payload), known))))
        count["streams"] += 1
        for each in next(streams):
            caller.send(frame(json.dumps({"results": "streaming", "resultData": each})))
        if count["streams"] < len(connections):
            caller.leave()
            return
        caller.wait_until_left()

    return script


@pytest.mark.parametrize("live", [[3], [3, 4, 150], []], ids=["one", "several", "none"])
def test_a_server_that_answers_no_pings(seen: Seen, live: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for a pong is bounded: the live ticks are delivered, and the doubt is reported."""
    monkeypatch.setattr(resequencer_module, "HOLD_TIMEOUT", 2.0)
    known = [tick(number) for number in [1, 2, *live]]
    with (
        Peer(deaf([tick(1)], [tick(number) for number in live], known=known)) as peer,
        seen.listener(peer.url, backfill=True, ping_interval=None),
    ):
        seen.wait_for(lambda: seen.gaps)
        seen.wait_for(lambda: prices(seen)[-1:] == (live[-1:] or prices(seen)[-1:]))
        seen.wait_for(lambda: any(isinstance(error, GapNotFilled) for error in seen.errors))
    assert prices(seen) == [1, 2, *live]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(False, 1)]


# Gaps in a row.


def test_an_outage_right_after_an_unfilled_gap(server: LocalServer, seen: Seen) -> None:
    """Without a live tick between them, ticks missed in the second outage are found or reported."""
    server.fail_functions(1)
    with seen.listener(server.url, backfill=True):
        begin(server, seen)
        with outage(server, seen):
            pass
        seen.wait_for(lambda: seen.gaps)
        assert [gap.filled for gap in seen.gaps] == [False]
        with outage(server, seen):
            send(server, 2)
        send(server, 3)
        seen.wait_for(lambda: 3 in prices(seen))
    assert prices(seen) == [1, 2, 3]
    assert [gap.filled for gap in seen.gaps] == [False, True]


def test_an_outage_soon_after_an_unfilled_gap(server: LocalServer, seen: Seen) -> None:
    """After a live tick, the ticks of the unfilled gap are not delivered any more."""
    server.fail_functions(1)
    with seen.listener(server.url, backfill=True):
        begin(server, seen)
        with outage(server, seen):
            send(server, 2)
        seen.wait_for(lambda: seen.gaps)
        send(server, 3)
        seen.wait_ticks(2)
        with outage(server, seen):
            send(server, 4)
        send(server, 5)
        seen.wait_ticks(4)
    assert prices(seen) == [1, 3, 4, 5]
    assert [gap.filled for gap in seen.gaps] == [False, True]


def test_repeated_outages_do_not_hold_ticks_forever(
    server: LocalServer, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each outage restarts the fetch, but not the timeout after which live ticks are delivered."""
    monkeypatch.setattr(resequencer_module, "HOLD_TIMEOUT", 1.0)
    server.stall_functions(None)
    with seen.listener(server.url, backfill=True) as listener:
        begin(server, seen)
        for number in itertools.count(2):
            with outage(server, seen):
                pass
            send(server, number)
            if seen.gaps:
                break
        seen.wait_for(lambda: prices(seen) == list(range(1, number + 1)))
        assert listener.stats.held == 0
    assert {gap.filled for gap in seen.gaps} == {False}
    assert len(seen.gaps) == sum(isinstance(error, GapNotFilled) for error in seen.errors)


# Little room.


def test_a_burst_with_one_time_is_read_without_room(server: LocalServer, seen: Seen, dispatch: str) -> None:
    """The pong behind more equal ticks than there is room for is read, and no tick is doubled."""
    server.stall_functions(None)
    with seen.listener(server.url, backfill=True, queue_size=1, dispatch=dispatch):
        begin(server, seen)
        with outage(server, seen):
            send(server, 2)
        send(server, *[3] * 900)
        server.wait_until(lambda stats: stats.calls >= 1)
        server.stall_functions(0)
        server.resume()
        seen.wait_ticks(902)
        send(server, 4)
        seen.wait_for(lambda: prices(seen)[-1] == 4)
    assert prices(seen) == [1, 2, *[3] * 900, 4]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 1)]


def interrupted(history: Script, back: Script) -> Script:
    """A peer whose first stream sends tick 1 and ends. Later streams follow `back`, and calls follow `history`."""
    first = threading.Event()

    def script(caller: Caller) -> None:
        if "/streamer/" in caller.read_request().decode():
            history(caller)
            return
        caller.welcome()
        if first.is_set():
            back(caller)
            return
        first.set()
        caller.send(frame(json.dumps({"results": "streaming", "resultData": tick(1)})))
        caller.leave()

    return script


@pytest.mark.parametrize("backfill", [False, True])
def test_notices_take_no_room(seen: Seen, backfill: bool) -> None:
    """More notices than there is room for ticks, before the first tick after an outage, don't block the stream."""

    def back(caller: Caller) -> None:
        if backfill:
            seen.wait_for(lambda: seen.gaps)
        caller.send(frame('{"keepAlive":true}') * 100)
        seen.wait_for(lambda: len(seen.notices) == 100)
        caller.send(frame(json.dumps({"results": "streaming", "resultData": tick(2)})))
        caller.wait_until_left()

    script = interrupted(lambda caller: caller.refuse("404 Not Found"), back)
    with Peer(script) as peer, seen.listener(peer.url, backfill=backfill, queue_size=4):
        seen.wait_ticks(2)
    assert prices(seen) == [1, 2]
    assert [gap.filled for gap in seen.gaps] == [False]


@pytest.mark.parametrize("limit", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["ticks of one moment", "notices"])
def test_held_entries_are_bounded(seen: Seen, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While history hangs, a stream that can't pause is read up to a bound. Then the gap is given up."""
    message = json.dumps({"results": "streaming", "resultData": tick(2)}) if kind != "notices" else '{"keepAlive":true}'
    monkeypatch.setattr(resequencer_module, "MAX_HELD", limit)
    count = limit + 1

    def back(caller: Caller) -> None:
        caller.send(frame(message) * count)
        caller.wait_until_left()

    with Peer(interrupted(stay(), back)) as peer, seen.listener(peer.url, backfill=True, queue_size=4):
        seen.wait_for(lambda: len(seen.ticks) + len(seen.notices) == count + 1)
        (reason,) = [str(error) for error in seen.errors if isinstance(error, GapNotFilled)]
    assert "more arrived during the gap than can be held" in reason


# In callbacks.


@pytest.mark.parametrize("where", ["tick", "gap", "error", "state"])
@pytest.mark.parametrize("what", ["stop", "remove"])
def test_ending_in_a_callback_of_a_gap(server: LocalServer, seen: Seen, dispatch: str, what: str, where: str) -> None:
    """Stop and remove work in every callback that a gap triggers, and leave no thread behind."""
    done = threading.Event()

    def act(*arguments: Any) -> None:
        if where == "tick" and not arguments[0]["backfilled"]:
            return
        if where == "state" and arguments[1] is not State.RECONNECTING:
            return
        if not done.is_set():
            listener.stop() if what == "stop" else listener.remove(PAIR)
            done.set()

    if where == "error":
        server.fail_functions(None)
    listener = seen.listener(server.url, PAIR, OTHER, backfill=True, dispatch=dispatch)
    with listener:
        begin(server, seen, streams=2)
        server.drop_connections(PAIR)
        getattr(listener, f"on_{where}")(act)
        send(server, 2)
        server.wait_until(lambda stats: PAIR in stats.symbols or done.is_set())
        send(server, 3)
        if where == "state":
            server.drop_connections(PAIR)
        assert done.wait(20)
        if what == "remove":
            server.wait_until(lambda stats: PAIR not in stats.symbols)
            send(server, 1, pair=OTHER)
            seen.wait_for(lambda: prices(seen, OTHER) == [1])
    assert listener.join(5)
    assert [thread.name for thread in threading.enumerate() if listener.name in thread.name] == []


def test_a_restart_during_a_gap(server: LocalServer, seen: Seen) -> None:
    """The new run starts without a gap, and ignores answers to the old one."""
    server.stall_functions(None)
    listener = seen.listener(server.url, backfill=True)
    for calls, number in enumerate((1, 11, 21), 1):
        listener.start()
        server.wait_connected(1)
        send(server, number)
        seen.wait_for(lambda number=number: number in prices(seen))  # type: ignore[misc]
        with outage(server, seen):
            send(server, number + 1)
        send(server, number + 2)
        server.wait_until(lambda stats, calls=calls: stats.calls >= calls)  # type: ignore[misc]
        wait_held(listener, 1)
        assert listener.stop(10.0)
        assert [thread.name for thread in threading.enumerate() if listener.name in thread.name] == []
        # Otherwise the old stream might get the next tick.
        server.wait_until(lambda stats: not stats.streams)
    assert prices(seen) == [1, 3, 11, 13, 21, 23]


def test_held_ticks_come_before_the_end(server: LocalServer, seen: Seen, dispatch: str) -> None:
    """When the attempts are used up during a gap, received ticks are delivered before the final state."""
    order: list[Any] = []
    server.stall_functions(None)
    policy = ReconnectPolicy(initial=0.01, factor=1.0, jitter=False, attempts=3)
    listener = seen.listener(server.url, backfill=True, reconnect=policy, dispatch=dispatch)
    listener.on_tick(lambda each: order.append(int(each["price"]) - 19_200))
    listener.on_state(lambda symbol, state: order.append(state))
    listener.on_gap(lambda gap: order.append(gap.filled))
    with pytest.raises(ConnectionFailed), listener:  # noqa: PT012 (it comes with the last line)
        begin(server, seen)
        server.drop_connections(PAIR)
        server.wait_until(lambda stats: stats.connections_total >= 2 and PAIR in stats.symbols)
        send(server, 3, 4)
        server.wait_until(lambda stats: stats.calls >= 1)
        server.refuse_next(None, 503)
        server.drop_connections(PAIR)
        listener.join(20)
    assert order[-4:] == [False, 3, 4, State.FAILED]


def test_a_hanging_history_handshake_blocks_no_stream(server: LocalServer, seen: Seen) -> None:
    """While the key for history is awaited, the network thread joins no worker."""
    go_on, asked = threading.Event(), threading.Semaphore(0)

    def key() -> str:
        if "history" in threading.current_thread().name:
            asked.release()
            go_on.wait(20)
        return "demo"

    joiners: list[str] = []

    def record(frame: Any, event: str, argument: object) -> None:
        # Record the name of each thread that joins another one.
        if event == "call" and frame.f_code is threading.Thread.join.__code__:
            joiners.append(threading.current_thread().name)

    threading.setprofile(record)
    try:
        with seen.listener(server.url, backfill=True, api_key=key) as listener:
            begin(server, seen)
            for number in (2, 3):
                with outage(server, seen):
                    pass
                send(server, number)
                assert asked.acquire(timeout=20)
            assert [name for name in joiners if name in (f"{listener.name}-callbacks", f"{listener.name}-relief")] == []
            go_on.set()
            seen.wait_ticks(3)
    finally:
        threading.setprofile(None)
    assert prices(seen) == [1, 2, 3]
