"""Delivery to callbacks: order, overflow policies, errors in callbacks, and inline dispatch."""

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
from finx_streamer.connection import relief
from finx_streamer.delivery import dispatcher
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, frame, stay, tick, ticks
from tests.support.turns import TURNS


class Gate:
    """A tick callback that blocks until it is opened."""

    def __init__(self, seen: Seen) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self._seen = seen

    def __call__(self, tick: Tick) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE)
        self._seen.on_tick(tick)


def in_two_parts(gate: Gate, first: bytes, second: bytes) -> Any:
    """Return a script that sends the second part once the callback blocks."""

    def script(caller: Caller) -> None:
        caller.welcome(first)
        assert gate.entered.wait(PATIENCE)
        caller.send(second)
        caller.wait_until_left()

    return script


def test_callbacks_run_one_at_a_time_on_one_thread(seen: Seen) -> None:
    """All callbacks run on the same thread, so they need no locks."""
    threads: set[str] = set()
    pairs = [f"P{number}:USD" for number in range(5)]

    def record(*_: object) -> None:
        threads.add(threading.current_thread().name)

    common = {"date": "2022-07-02", "time": "15:30:55Z", "exchange": "X", "price": "1"}
    tape = Tape([{"pair": pair} | common for pair in pairs * 20], speed=None, wait_for=5)
    with LocalServer(tape, keys={"demo"}) as server:
        listener = seen.listener(server.url, *pairs, name="one")
        for register in (listener.on_tick, listener.on_state, listener.on_error, listener.on_notice):
            register(record)
        with listener:
            seen.wait_ticks(100)
            server.send_message("garbage")
            seen.wait_errors(5)
    assert threads == {"one-callbacks"}


def test_events_keep_their_place_between_the_ticks(seen: Seen, dispatch: str) -> None:
    """Errors, notices and states are delivered in order with the ticks."""
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
    assert order == expected


def test_a_callback_that_raises_does_not_stop_the_stream(seen: Seen, dispatch: str) -> None:
    """Each exception causes a CallbackError, and the other callbacks still get every tick."""

    def broken(tick: Tick) -> None:
        raise ZeroDivisionError(f"at {int(tick['price'])}")

    with Peer(stay(ticks(1, 3))) as peer:
        listener = seen.listener(peer.url, on_tick=broken, dispatch=dispatch)
        listener.on_tick(seen.on_tick)
        with listener:
            seen.wait_ticks(3)
            assert listener.stats.callback_errors == 3
            assert listener.state is State.STREAMING
    errors = seen.of_type(CallbackError)
    assert [(error.callback, error.argument) for error in errors] == [(broken, tick) for tick in seen.ticks]
    assert [str(error.__cause__) for error in errors] == ["at 1", "at 2", "at 3"]
    assert all(isinstance(error.__cause__, ZeroDivisionError) and error.symbol == PAIR for error in errors)


def test_a_callback_may_change_the_callbacks(seen: Seen, dispatch: str) -> None:
    """From the next tick on, even if that was read together with this one. None waits for another read."""
    later: list[int] = []
    begun = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        assert begun.wait(PATIENCE)
        caller.send(ticks(2, 10))
        caller.wait_until_left()

    def first(tick: Tick) -> None:
        begun.set()
        if int(tick["price"]) == 5:
            listener.on_tick(lambda tick: later.append(int(tick["price"])))
        if int(tick["price"]) == 8:
            listener.remove_callback(first)

    with Peer(script) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        listener.on_tick(first)
        with listener:
            seen.wait_ticks(10)
            seen.wait_for(lambda: later[-1:] == [10])
    assert later == [6, 7, 8, 9, 10]


def test_callbacks_of_every_event_may_raise(seen: Seen, dispatch: str) -> None:
    """Exceptions in on_notice and on_state cause a CallbackError, too."""

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
    """The exception isn't passed to on_error, and the stream continues."""

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
    assert [type(error) for error in seen.errors] == [DecodeError]
    assert "on_error is broken" in caplog.text


def test_errors_without_on_error_are_logged(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """The record of a callback's exception has its traceback."""

    def broken(tick: Tick) -> None:
        raise ZeroDivisionError("broken")

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


@pytest.mark.usefixtures("turns")
def test_block_is_the_default_and_loses_nothing(seen: Seen) -> None:
    """After a callback has blocked a queue of ten, every tick is delivered in order."""
    gate = Gate(seen)
    with Peer(stay(ticks(1, 5_000))) as peer, seen.listener(peer.url, on_tick=gate, queue_size=10) as listener:
        assert gate.entered.wait(PATIENCE)
        gate.open.set()
        seen.wait_ticks(5_000)
        assert listener.stats.queue_peak <= 12
    assert seen.prices == list(range(1, 5_001))
    assert seen.of_type(TicksDropped) == []


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_queues_work(seen: Seen, size: int) -> None:
    """No tick is lost and no wake-up is missed while the queue fills up 2,000 times."""
    sent = ticks(1, 1_000), frame("bad"), ticks(1_001, 2_000)
    with Peer(stay(*sent)) as peer, seen.listener(peer.url, queue_size=size):
        seen.wait_ticks(2_000)
    assert seen.prices == list(range(1, 2_001))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_fast_callback_causes_no_drops(seen: Seen, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst that was read at once is decoded only as far as it fits into the queue."""
    monkeypatch.setattr(relief, "TIMING", TURNS["never relieved"])
    with Peer(stay(ticks(1, 2_000))) as peer, seen.listener(peer.url, queue_size=size, overflow="drop_oldest"):
        seen.wait_ticks(2_000)
    assert seen.prices == list(range(1, 2_001))
    assert seen.errors == []


@pytest.mark.usefixtures("turns")
def test_drop_oldest_keeps_the_newest_ticks_and_reports_the_others(seen: Seen) -> None:
    """Delivered and dropped ticks add up to all ticks, in the reports and in the counters."""
    gate, total = Gate(seen), 3_000
    with Peer(in_two_parts(gate, tick(1), ticks(2, total))) as peer:
        listener = seen.listener(peer.url, on_tick=gate, queue_size=100, overflow="drop_oldest").start()
        assert gate.entered.wait(PATIENCE)
        while listener.stats.messages < total:
            time.sleep(0.005)  # no callback runs meanwhile
        gate.open.set()
        seen.wait_for(lambda: total in seen.prices)
        assert listener.stop()
    assert seen.prices == [1, *range(total - 99, total + 1)]
    assert sum(error.count for error in seen.of_type(TicksDropped)) == total - 101
    assert listener.stats.streams[PAIR].dropped == total - 101
    assert {error.symbol for error in seen.of_type(TicksDropped)} == {PAIR}


@pytest.mark.usefixtures("turns")
def test_latest_keeps_one_tick_per_pair(seen: Seen) -> None:
    """After a callback has blocked, it gets the newest tick of each pair, and the others are reported."""
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
        while listener.stats.messages < 2_000:
            time.sleep(0.005)  # no callback runs meanwhile
        gate.open.set()
        seen.wait_for(lambda: seen.prices.count(1_000) == 2)
        assert listener.stop()
    dropped = sum(error.count for error in seen.of_type(TicksDropped))
    assert len(seen.ticks) + dropped == 2_000
    assert listener.stats.dropped == dropped
    assert len(seen.ticks) <= 4


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_drops_are_reported_once_per_second(seen: Seen, overflow: str) -> None:
    """Each pair has at most one report per second, and one at the end."""
    reported: list[float] = []
    batches = 50

    def record(error: FinxStreamerError) -> None:
        if isinstance(error, TicksDropped):
            reported.append(time.monotonic())
        seen.on_error(error)

    def slow(tick: Tick) -> None:
        time.sleep(0.01)  # the relief takes over
        seen.on_tick(tick)

    def script(caller: Caller) -> None:
        caller.welcome()
        for number in range(batches):
            caller.send(ticks(100 * number, 100 * number + 99))
            time.sleep(0.05)  # the pace of the market
        caller.wait_until_left()

    with (
        Peer(script) as peer,
        seen.listener(peer.url, on_tick=slow, on_error=record, queue_size=5, overflow=overflow),
    ):
        seen.wait_for(lambda: 100 * batches - 1 in seen.prices)
    drops = seen.of_type(TicksDropped)
    assert len(seen.ticks) + sum(error.count for error in drops) == 100 * batches
    assert len(drops) >= 3
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(reported[:-1]))
    # The queue is full for moments only.
    assert seen.of_type(SlowConsumer) == []


def test_a_slow_consumer_is_reported_once(seen: Seen) -> None:
    """A queue that stays nearly full causes one report, and no tick is lost."""
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
    assert seen.prices == list(range(1, 3_001))
    error = seen.of_type(SlowConsumer)[0]
    assert error.size == 20


@pytest.mark.usefixtures("turns")
def test_errors_are_never_dropped(seen: Seen) -> None:
    """All errors arrive, even those between dropped ticks."""
    gate = Gate(seen)
    mixed = b"".join(tick(number) + frame(f"bad {number}") for number in range(2, 52))
    settings = {"on_tick": gate, "queue_size": 4, "overflow": "drop_oldest"}
    with Peer(in_two_parts(gate, tick(1), mixed)) as peer, seen.listener(peer.url, **settings):
        gate.open.set()
        seen.wait_for(lambda: len(seen.of_type(DecodeError)) == 50)


# Inline.


def test_inline_runs_callbacks_on_the_network_thread(seen: Seen) -> None:
    """With dispatch="inline", there is no callback thread."""
    threads: set[str] = set()

    def record(tick: Tick) -> None:
        threads.add(threading.current_thread().name)
        seen.on_tick(tick)

    with Peer(stay(ticks(1, 100))) as peer, seen.listener(peer.url, on_tick=record, dispatch="inline", name="in"):
        seen.wait_ticks(100)
        assert "in-callbacks" not in [thread.name for thread in threading.enumerate()]
    assert threads == {"in-network"}
    assert seen.prices == list(range(1, 101))


def test_inline_stop_in_a_callback_is_the_last_call(seen: Seen) -> None:
    """stop() in an inline callback returns, and no callback is called after it."""

    def once(tick: Tick) -> None:
        assert listener.stop()
        seen.on_tick(tick)

    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=once, dispatch="inline")
        assert listener.start().join(PATIENCE)
    assert seen.prices == [1]
    assert listener.state is State.STOPPED


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_callback_ends_the_listener(seen: Seen, dispatch: str, error: type) -> None:
    """SystemExit and KeyboardInterrupt aren't callback errors, and join() raises them."""

    def leave(tick: Tick) -> None:
        raise error("enough")

    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=leave, dispatch=dispatch).start()
        with pytest.raises(error, match="enough"):
            listener.join(PATIENCE)
    assert listener.state is State.FAILED


def test_an_exit_in_a_callback_ends_the_callbacks_while_parse_price_hangs(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relief hangs there, and can't wake the callback thread at its end."""
    monkeypatch.setattr(relief, "TIMING", TURNS["always relieved"])
    started, begun, hangs, free = (threading.Event() for _ in range(4))

    def parse_price(text: str) -> float:
        if text == "2":
            hangs.set()
            assert free.wait(PATIENCE)
        return float(text)

    def leave(tick: Tick) -> None:
        begun.set()
        assert hangs.wait(PATIENCE)
        raise SystemExit

    def script(caller: Caller) -> None:
        caller.welcome()
        assert started.wait(PATIENCE)
        while not (loop.relieved and loop._idle):
            time.sleep(0.005)  # there is no event for it
        caller.send(tick(1))
        assert begun.wait(PATIENCE)
        caller.send(tick(2))
        caller.wait_until_left()

    with Peer(script) as peer:
        settings: Any = {"on_state": lambda *_: time.sleep(0.01), "parse_price": parse_price}
        listener = seen.listener(peer.url, on_tick=leave, **settings).start()
        run: Any = listener._run
        loop = run.streams.loop
        started.set()
        try:
            assert run.ended.wait(PATIENCE)
        finally:
            free.set()
        with pytest.raises(SystemExit):
            listener.join(PATIENCE)


def test_on_error_may_exit_during_the_last_report(seen: Seen, dispatch: str) -> None:
    """The report of discarded ticks comes at the very end. An exit in it must not keep join() waiting."""

    def leave(argument: object) -> None:
        raise SystemExit(type(argument).__name__)

    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=leave, on_error=leave, dispatch=dispatch).start()
        with pytest.raises(SystemExit, match="dict"):
            listener.join(PATIENCE)
    assert listener.stop()
    assert (listener.stats.ticks, listener.stats.dropped) == (1, 99)


def test_a_failing_log_does_not_keep_join_waiting(seen: Seen, dispatch: str, caplog: pytest.LogCaptureFixture) -> None:
    """The logging handlers are the user's, and may raise anything."""

    def refuse(record: logging.LogRecord) -> bool:
        raise OSError("the disk is full")

    def stop(tick: Tick) -> None:
        listener.stop()

    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=stop, dispatch=dispatch)
        listener.remove_callback(seen.on_error)
        caplog.handler.addFilter(refuse)
        try:
            listener.start()
            with pytest.raises(OSError, match="the disk is full"):
                listener.join(PATIENCE)
        finally:
            caplog.handler.removeFilter(refuse)


def test_an_exit_counts_ticks_that_were_read(seen: Seen, dispatch: str) -> None:
    """SystemExit in a callback drops the ticks of its stream that were read, and counts and reports them."""

    def leave(tick: Tick) -> None:
        if tick["price"] == 3:
            raise SystemExit("enough")

    with Peer(stay(ticks(1, 50))) as peer:
        listener = seen.listener(peer.url, on_tick=leave, dispatch=dispatch).start()
        with pytest.raises(SystemExit, match="enough"):
            listener.join(PATIENCE)
    stats = listener.stats
    assert (stats.ticks, stats.dropped, stats.messages) == (3, 47, 50)
    assert [(error.count, error.at_end) for error in seen.errors if isinstance(error, TicksDropped)] == [(47, True)]


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_the_end_reports_ticks_dropped_just_before(seen: Seen, overflow: str) -> None:
    """`stop` in a callback doesn't lose the report of dropped ticks that wasn't due yet."""
    gate = Gate(seen)

    def stop(tick: Tick) -> None:
        gate(tick)
        listener.stop()

    script = in_two_parts(gate, tick(1), ticks(2, 100) + frame("{}"))
    with Peer(script) as peer:
        listener = seen.listener(peer.url, on_tick=stop, overflow=overflow, queue_size=10).start()
        deadline = time.monotonic() + PATIENCE
        while listener.stats.messages < 101 and time.monotonic() < deadline:
            time.sleep(0.001)
        gate.open.set()
        assert listener.join(PATIENCE)
    reported = sum(error.count for error in seen.errors if isinstance(error, TicksDropped))
    assert (listener.stats.ticks, listener.stats.dropped, reported) == (1, 99, 99)


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_reports_that_a_callback_keeps_waiting_add_up(
    seen: Seen, overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a callback takes, one report per pair waits for it, and the end reports what remains."""
    monkeypatch.setattr(dispatcher, "DROP_REPORT_INTERVAL", 0.001)
    gate, rounds = threading.Event(), 50

    def callback(tick: Tick) -> None:
        seen.on_tick(tick)
        assert gate.wait(PATIENCE)
        listener.stop()

    def script(caller: Caller) -> None:
        caller.welcome()
        for number in range(rounds):
            caller.send(ticks(10 * number, 10 * number + 9))
            time.sleep(0.005)  # some of the reports become due
        caller.wait_until_left()

    with Peer(script) as peer:
        listener = seen.listener(peer.url, on_tick=callback, queue_size=1, overflow=overflow).start()
        while listener.stats.messages < 10 * rounds:
            time.sleep(0.005)  # no callback runs meanwhile
        assert len(listener._run.delivery._urgent) == 1  # type: ignore[union-attr]
        gate.set()
        assert listener.join(PATIENCE)
    reported = sum(error.count for error in seen.of_type(TicksDropped))
    assert len(seen.ticks) + reported == len(seen.ticks) + listener.stats.dropped == 10 * rounds


def test_a_stop_in_a_report_keeps_the_others(seen: Seen) -> None:
    """The end makes up for reports that `stop()` in `on_error` has prevented."""
    gate, pairs, read = Gate(seen), ("A:USD", "B:USD", "C:USD"), threading.Semaphore(0)

    def on_error(error: FinxStreamerError) -> None:
        seen.on_error(error)
        listener.stop()

    def script(caller: Caller) -> None:
        pair = next(pair for pair in pairs if pair.encode() in caller.read_request())
        caller.welcome(*[tick(1, pair)] * (pair == "C:USD"))
        assert gate.entered.wait(PATIENCE)
        if pair == "C:USD":
            assert read.acquire(timeout=PATIENCE)
            caller.send(ticks(2, 5, pair))
        else:
            caller.send(ticks(1, 2, pair))
        caller.wait_until_left()

    with Peer(script) as peer:
        settings: Any = {"on_error": on_error, "queue_size": 4, "overflow": "drop_oldest"}
        listener = seen.listener(peer.url, *pairs, on_tick=gate, **settings).start()
        for messages, command in ((5, read.release), (9, gate.open.set)):
            while listener.stats.messages < messages:
                time.sleep(0.005)  # no callback runs meanwhile
            command()
        assert listener.join(PATIENCE)
    counts = dict.fromkeys(pairs, 0)
    for error in seen.of_type(TicksDropped):
        counts[str(error.symbol)] += error.count
    assert counts == {"A:USD": 2, "B:USD": 2, "C:USD": 4}


def test_join_raises_an_internal_error(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception on the network thread ends the listener and is logged."""

    def crash() -> None:
        raise MemoryError("a bug")

    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url).start()
        seen.wait_ticks(1)
        # Uses internals, because there is no known way to cause this from outside.
        listener._run.streams.loop.post(crash)  # type: ignore[union-attr]
        with pytest.raises(MemoryError, match="a bug"):
            listener.join(PATIENCE)
    assert listener.state is State.FAILED
    assert "the network thread crashed: MemoryError" in caplog.text


def test_a_failure_is_delivered_before_the_end(seen: Seen, dispatch: str) -> None:
    """on_error and on_state get it before join() returns."""
    listener = seen.listener("ws://127.0.0.1:9/", api_key=lambda: None, dispatch=dispatch).start()
    with pytest.raises(ConnectionFailed):
        listener.join(PATIENCE)
    assert len(seen.errors) == 1
    assert seen.states[-1] == (PAIR, State.FAILED)
