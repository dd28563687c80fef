"""From the network side to the callbacks: order, the overflow policies, errors in callbacks, and the inline mode."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import Any

import pytest

from finx_streamer import (
    CallbackError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    SlowConsumer,
    State,
    Tick,
    TicksDropped,
)
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, frame, stay, tick, ticks


class Gate:
    """A tick callback that is stuck in its first call until it is opened."""

    def __init__(self, seen: Seen) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self._seen = seen

    def __call__(self, tick: Tick) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE)
        self._seen.on_tick(tick)


def in_two_parts(gate: Gate, first: bytes, second: bytes) -> Any:
    """A script that sends the second part once the gate has been reached."""

    def script(caller: Caller) -> None:
        caller.welcome(first)
        assert gate.entered.wait(PATIENCE)
        caller.send(second)
        caller.wait_until_left()

    return script


def test_callbacks_run_one_at_a_time_on_one_thread(seen: Seen) -> None:
    """Whatever happens, one thread calls back, so callbacks need no locks."""
    threads: set[str] = set()
    pairs = [f"P{number}:USD" for number in range(5)]

    def note(*_: object) -> None:
        threads.add(threading.current_thread().name)

    common = {"date": "2022-07-02", "time": "15:30:55Z", "exchange": "X", "price": "1"}
    tape = Tape([{"pair": pair} | common for pair in pairs * 20], speed=None, wait_for=5)
    with LocalServer(tape, keys={"demo"}) as server:
        listener = seen.listener(server.url, *pairs, name="one")
        for register in (listener.on_tick, listener.on_state, listener.on_error, listener.on_notice):
            register(note)
        with listener:
            seen.wait_ticks(100)
            server.send_message("garbage")
            seen.wait_errors(5)
    assert {"one-callbacks"} == threads


def test_events_keep_their_place_between_the_ticks(seen: Seen, dispatch: str) -> None:
    """What travels beside the ticks is told where it happened."""
    order: list[object] = []
    sent = [tick(1), frame("bad"), tick(2), frame('{"a":1}'), tick(3), frame('{"error":"e"}'), tick(4)]
    with Peer(stay(*sent)) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        listener.on_state(lambda symbol, state: order.append(state))
        listener.on_tick(lambda tick: order.append(int(tick["price"])))
        listener.on_error(lambda error: order.append(type(error).__name__))
        listener.on_notice(lambda notice: order.append("notice"))
        with listener:
            seen.wait_ticks(4)
    expected = [State.CONNECTING, State.STREAMING, 1, "DecodeError", 2, "notice", 3, "ServerError", 4, State.STOPPED]
    assert expected == order


def test_a_callback_that_raises_costs_nothing_but_an_error(seen: Seen, dispatch: str) -> None:
    """It is told as CallbackError with callback, argument and cause; the other callbacks and the stream go on."""

    def broken(tick: Tick) -> None:
        raise ZeroDivisionError(f"at {int(tick['price'])}")

    with Peer(stay(ticks(1, 3))) as peer:
        listener = seen.listener(peer.url, on_tick=broken, dispatch=dispatch)
        listener.on_tick(seen.on_tick)
        with listener:
            seen.wait_ticks(3)
            assert listener.stats.callback_errors == 3
            assert State.STREAMING is listener.state
    errors = seen.of_type(CallbackError)
    assert [(broken, tick) for tick in seen.ticks] == [(error.callback, error.argument) for error in errors]
    assert [str(error.__cause__) for error in errors] == ["at 1", "at 2", "at 3"]
    assert all(isinstance(error.__cause__, ZeroDivisionError) and error.symbol == PAIR for error in errors)


def test_callbacks_of_every_event_may_raise(seen: Seen, dispatch: str) -> None:
    """on_notice and on_state that raise are CallbackErrors as well."""

    def broken(*_: object) -> None:
        raise ValueError("broken")

    with (
        Peer(stay(frame('{"a":1}'), tick(1))) as peer,
        seen.listener(peer.url, on_notice=broken, on_state=broken, dispatch=dispatch),
    ):
        seen.wait_ticks(1)
    assert [getattr(error.argument, "message", error.argument) for error in seen.of_type(CallbackError)[:3]] == [
        State.CONNECTING,
        State.STREAMING,
        {"a": 1},
    ]


def test_on_error_that_raises_is_logged(seen: Seen, dispatch: str, caplog: pytest.LogCaptureFixture) -> None:
    """An error in on_error goes to the log and not to on_error, and the stream goes on."""

    def broken(error: FinxStreamerError) -> None:
        raise RuntimeError("on_error is broken")

    with (
        caplog.at_level(logging.ERROR, "finx_streamer"),
        Peer(stay(frame("bad"), tick(1))) as peer,
    ):
        listener = seen.listener(peer.url, on_error=broken, dispatch=dispatch)
        listener.on_error(seen.on_error)
        with listener:
            seen.wait_ticks(1)
    assert [DecodeError] == [type(error) for error in seen.errors]
    assert "on_error is broken" in caplog.text


def test_errors_without_on_error_are_logged(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """With nobody registered for errors, each is logged, with the traceback where a callback raised."""

    def broken(tick: Tick) -> None:
        raise ZeroDivisionError("my fault")

    with (
        caplog.at_level(logging.ERROR, "finx_streamer"),
        Peer(stay(frame("bad"), tick(1))) as peer,
    ):
        listener = seen.listener(peer.url, on_error=None, on_tick=broken)
        listener.on_tick(seen.on_tick)
        with listener:
            seen.wait_ticks(1)
    assert "not JSON" in caplog.text
    assert "in broken" in caplog.text


def test_block_is_the_default_and_loses_nothing(seen: Seen) -> None:
    """A callback that is stuck, and a queue of ten: when it goes on, every tick comes, in order."""
    gate = Gate(seen)
    with Peer(stay(ticks(1, 5_000))) as peer, seen.listener(peer.url, on_tick=gate, queue_size=10) as listener:
        assert gate.entered.wait(PATIENCE)
        gate.open.set()
        seen.wait_ticks(5_000)
        assert listener.stats.queue_peak <= 12
    assert list(range(1, 5_001)) == seen.prices
    assert seen.of_type(TicksDropped) == []


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_queues_work(seen: Seen, size: int) -> None:
    """A queue of one is slow and loses nothing: no wake-up is missed in 2,000 stops and starts."""
    sent = ticks(1, 1_000), frame("bad"), ticks(1_001, 2_000)
    with Peer(stay(*sent)) as peer, seen.listener(peer.url, queue_size=size):
        seen.wait_ticks(2_000)
    assert list(range(1, 2_001)) == seen.prices


def test_drop_oldest_keeps_the_newest_and_says_what_is_gone(seen: Seen) -> None:
    """With the queue full the oldest give way; delivered and dropped add up, in reports and in the counters."""
    gate, total = Gate(seen), 3_000
    with Peer(in_two_parts(gate, tick(1), ticks(2, total))) as peer:
        listener = seen.listener(peer.url, on_tick=gate, queue_size=100, overflow="drop_oldest").start()
        assert gate.entered.wait(PATIENCE)
        while listener.stats.ticks < total:
            time.sleep(0.005)  # counters call nobody back
        gate.open.set()
        seen.wait_for(lambda: total in seen.prices)
        assert listener.stop()
    assert [1, *range(total - 99, total + 1)] == seen.prices
    assert total - 101 == sum(error.count for error in seen.of_type(TicksDropped))
    assert total - 101 == listener.stats.streams[PAIR].dropped
    assert {PAIR} == {error.symbol for error in seen.of_type(TicksDropped)}


def test_latest_keeps_one_tick_a_pair(seen: Seen) -> None:
    """A callback that is stuck finds the newest tick of each pair, and is told of the rest."""
    gate, pairs = Gate(seen), ["BTC:USDC", "ETH:USDC"]

    def script(caller: Caller) -> None:
        pair = "BTC:USDC" if b"BTC" in caller.read_request() else "ETH:USDC"
        caller.welcome(tick(1, pair))
        assert gate.entered.wait(PATIENCE)
        caller.send(ticks(2, 1_000, pair))
        caller.wait_until_left()

    with Peer(script) as peer:
        listener = seen.listener(peer.url, *pairs, on_tick=gate, overflow="latest").start()
        assert gate.entered.wait(PATIENCE)
        while listener.stats.ticks < 2_000:
            time.sleep(0.005)  # counters call nobody back
        gate.open.set()
        seen.wait_for(lambda: seen.prices.count(1_000) == 2)
        assert listener.stop()
    dropped = sum(error.count for error in seen.of_type(TicksDropped))
    assert len(seen.ticks) + dropped == 2_000
    assert dropped == listener.stats.dropped
    assert len(seen.ticks) <= 4


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_drops_are_told_once_a_second(seen: Seen, overflow: str) -> None:
    """However often ticks are dropped, a pair has one report a second, and one at the end."""
    told: list[float] = []
    batches = 50

    def note(error: FinxStreamerError) -> None:
        if isinstance(error, TicksDropped):
            told.append(time.monotonic())
        seen.on_error(error)

    def script(caller: Caller) -> None:
        caller.welcome()
        for number in range(batches):
            caller.send(ticks(100 * number, 100 * number + 99))
            time.sleep(0.05)  # the market's own pace
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, on_error=note, queue_size=5, overflow=overflow):
        seen.wait_for(lambda: 100 * batches - 1 in seen.prices)
    drops = seen.of_type(TicksDropped)
    assert 100 * batches == len(seen.ticks) + sum(error.count for error in drops)
    assert len(drops) >= 3
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(told[:-1]))
    # The queue is full for a moment, again and again, which is not to stay full.
    assert seen.of_type(SlowConsumer) == []


def test_a_slow_consumer_is_told_once(seen: Seen) -> None:
    """A queue that stays nearly full is reported once, though nothing is lost."""
    release = threading.Event()

    def slow(tick: Tick) -> None:
        if not release.is_set():
            time.sleep(0.005)  # a slow callback
        seen.on_tick(tick)

    with Peer(stay(ticks(1, 3_000))) as peer, seen.listener(peer.url, on_tick=slow, queue_size=20):
        seen.wait_for(lambda: seen.of_type(SlowConsumer))
        seen.wait_ticks(len(seen.ticks) + 200)
        release.set()
        seen.wait_ticks(3_000)
    assert len(seen.of_type(SlowConsumer)) == 1
    assert list(range(1, 3_001)) == seen.prices
    error = seen.of_type(SlowConsumer)[0]
    assert error.size == 20


def test_errors_are_told_while_ticks_are_dropped(seen: Seen) -> None:
    """Ticks alone are ever dropped: errors and notices among them arrive, all of them."""
    gate = Gate(seen)
    mixed = b"".join(tick(number) + frame(f"bad {number}") for number in range(2, 52))
    settings = {"on_tick": gate, "queue_size": 2, "overflow": "drop_oldest"}
    with Peer(in_two_parts(gate, tick(1), mixed)) as peer, seen.listener(peer.url, **settings):
        gate.open.set()
        seen.wait_for(lambda: len(seen.of_type(DecodeError)) == 50)


# Inline.


def test_inline_runs_callbacks_on_the_network_thread(seen: Seen) -> None:
    """With dispatch="inline" there is no callback thread."""
    threads: set[str] = set()

    def note(tick: Tick) -> None:
        threads.add(threading.current_thread().name)
        seen.on_tick(tick)

    with Peer(stay(ticks(1, 100))) as peer, seen.listener(peer.url, on_tick=note, dispatch="inline", name="in"):
        seen.wait_ticks(100)
        assert "in-callbacks" not in [thread.name for thread in threading.enumerate()]
    assert {"in-network"} == threads
    assert list(range(1, 101)) == seen.prices


def test_inline_stop_in_a_callback_is_the_last_call(seen: Seen) -> None:
    """stop() in an inline callback returns, and nothing is called after it."""

    def once(tick: Tick) -> None:
        assert listener.stop()
        seen.on_tick(tick)

    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=once, dispatch="inline")
        assert listener.start().join(PATIENCE)
    assert seen.prices == [1]
    assert State.STOPPED is listener.state


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_wants_to_exit_ends_the_listener(seen: Seen, dispatch: str, error: type) -> None:
    """SystemExit and KeyboardInterrupt in a callback are no callback errors: join() raises them."""

    def leave(tick: Tick) -> None:
        raise error("enough")

    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=leave, dispatch=dispatch).start()
        with pytest.raises(error, match="enough"):
            listener.join(PATIENCE)
    assert State.FAILED is listener.state


def test_a_crash_within_is_told_by_join(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """An exception on the network thread that nobody foresaw ends the listener loudly, and not in silence."""

    def crash() -> None:
        raise MemoryError("a bug")

    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url).start()
        seen.wait_ticks(1)
        # Not public: there is no known way to bring this about from outside.
        listener._run.streams.loop.post(crash)  # type: ignore[union-attr]
        with pytest.raises(MemoryError, match="a bug"):
            listener.join(PATIENCE)
    assert State.FAILED is listener.state
    assert "the network thread crashed: MemoryError" in caplog.text


def test_a_failure_is_told_before_the_end(seen: Seen, dispatch: str) -> None:
    """What ends the listener reaches on_error and on_state before join returns."""
    listener = seen.listener("ws://127.0.0.1:9/", api_key=lambda: None, dispatch=dispatch).start()
    with pytest.raises(ConnectionFailed):
        listener.join(PATIENCE)
    assert len(seen.errors) == 1
    assert seen.states[-1] == (PAIR, State.FAILED)
