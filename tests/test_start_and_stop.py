"""How a listener starts and stops: from any thread, inside callbacks, at any moment, and completely."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from finx_streamer import (
    ConfigurationError,
    ReconnectPolicy,
    State,
    StreamListener,
    StreamNotFound,
    Tick,
    TicksDropped,
    stop_all,
)
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, frame, free_port, hang, refuse, stay, tick, ticks
from tests.support.program import run_program

SLOW = ReconnectPolicy(initial=30.0, maximum=30.0, jitter=False)
#: The bound for fast operations, in seconds, on a busy machine.
AT_ONCE = 4.0


def test_start_returns_the_listener_and_is_idempotent(seen: Seen, dispatch: str) -> None:
    """start() can be chained, and does nothing while the listener runs."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        assert listener.start() is listener
        seen.wait_ticks(1)
        assert listener.start() is listener
        assert listener.state is State.STREAMING
        assert listener.stop()
        assert peer.accepted == 1


def test_start_does_not_wait_for_the_server(seen: Seen) -> None:
    """start() returns while the handshake hangs."""
    with Peer(hang) as peer:
        listener = seen.listener(peer.url).start()
        assert listener.state in (State.IDLE, State.CONNECTING)
        peer.wait_accepted(1)
        assert listener.state is State.CONNECTING
        assert listener.stop()


def test_a_stopped_listener_can_be_started_again(seen: Seen, dispatch: str) -> None:
    """start() works again after stop() and after a failure."""
    with Peer(stay(tick(1)), refuse("404 Not Found"), stay(tick(2))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(1)
        assert listener.stop()
        assert listener.state is State.STOPPED
        with pytest.raises(StreamNotFound):
            listener.start().join(PATIENCE)
        with listener:
            seen.wait_ticks(2)
    assert seen.prices == [1, 2]


def test_stop_is_idempotent(seen: Seen, dispatch: str) -> None:
    """stop() can be called any number of times."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(1)
        assert [listener.stop(timeout=timeout) for timeout in (5.0, 5.0, 0.0, 5.0)] == [True] * 4
        assert listener.join(0.0)
    assert [state for _, state in seen.states] == [State.CONNECTING, State.STREAMING, State.STOPPED]


@pytest.mark.parametrize("drain", [True, False])
def test_no_callback_runs_after_stop(seen: Seen, dispatch: str, drain: bool) -> None:
    """Once stop() has returned, no callback is called, however fast ticks arrive."""

    def flood(caller: Caller) -> None:
        caller.welcome()
        number = 0
        while True:
            caller.send(ticks(number, number + 99))
            number += 100

    with Peer(flood) as peer:
        for _ in range(5):
            fresh = Seen()
            listener = fresh.listener(peer.url, dispatch=dispatch, queue_size=50).start()
            fresh.wait_ticks(500)
            assert listener.stop(drain=drain)
            count, states = len(fresh.ticks), list(fresh.states)
            assert listener.join(PATIENCE)
            threading.Event().wait(0.05)
            assert (len(fresh.ticks), fresh.states) == (count, states)
            assert fresh.prices == list(range(count))


def gated(seen: Seen) -> tuple[Callable[[Tick], None], threading.Event, threading.Event]:
    """A callback whose first call blocks, an event that is set when it does, and the event that releases it."""
    entered, free = threading.Event(), threading.Event()

    def callback(tick: Tick) -> None:
        entered.set()
        assert free.wait(PATIENCE)
        seen.on_tick(tick)

    return callback, entered, free


@pytest.mark.parametrize(("drain", "expected"), [(True, list(range(1, 101))), (False, [1])])
def test_drain_decides_about_received_ticks(seen: Seen, drain: bool, expected: list[int]) -> None:
    """With drain, stop() delivers the ticks in the queue before it returns. Without, it discards them."""
    callback, entered, free = gated(seen)
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=callback).start()
        assert entered.wait(PATIENCE)
        while listener.stats.messages < 100:
            time.sleep(0.005)  # counters have no event
        stopped: list[bool] = []
        stopper = threading.Thread(target=lambda: stopped.append(listener.stop(PATIENCE, drain)))
        stopper.start()
        while listener.state is not State.STOPPED:
            time.sleep(0.005)  # stop() has no event for its start
        # Right after that, stop() drains or discards the queue. The callback returns later.
        time.sleep(0.3)
        free.set()
        stopper.join(PATIENCE)
    assert stopped == [True]
    assert seen.prices == expected


@pytest.mark.parametrize("how", ["drain runs out", "no drain", "exception", "in a callback", "stop_all"])
def test_discarded_ticks_are_counted_and_reported(seen: Seen, dispatch: str, how: str) -> None:
    """After the end, each tick that was received was either handed to the callback or dropped."""
    entered, slow = threading.Event(), threading.Event()

    def callback(tick: Tick) -> None:
        seen.on_tick(tick)
        if how == "in a callback":
            listener.stop()
        elif len(seen.ticks) > 5:
            entered.set()
            slow.wait(0.02)

    with Peer(stay(ticks(1, 500))) as peer:
        listener = seen.listener(peer.url, on_tick=callback, dispatch=dispatch)
        listener.start()  # the callback needs the name
        if how == "in a callback":
            assert listener.join(PATIENCE)
        else:
            assert entered.wait(PATIENCE)
        if how == "drain runs out":
            assert listener.stop(timeout=1.0)
        elif how == "no drain":
            assert listener.stop(drain=False)
        elif how == "exception":
            with pytest.raises(ZeroDivisionError), listener:
                raise ZeroDivisionError
        elif how == "stop_all":
            assert stop_all()
        stats = listener.stats
    reports = seen.of_type(TicksDropped)
    assert stats.ticks == len(seen.ticks)
    assert stats.ticks < 500
    assert stats.ticks + stats.dropped == stats.messages == 500
    assert [(error.symbol, error.count, error.at_end) for error in reports] == [(PAIR, stats.dropped, True)]
    assert "the listener ended before your callbacks had handled them" in str(reports[0])


def test_discarded_ticks_are_logged_without_on_error(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """Like every error for which there is no callback."""
    callback, entered, free = gated(seen)
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=callback, on_error=None).start()
        assert entered.wait(PATIENCE)
        while listener.stats.messages < 100:
            time.sleep(0.005)  # counters have no event
        assert not listener.stop(timeout=0.1, drain=False)
        assert "99 ticks that wait are dropped" in caplog.text
        free.set()
        assert listener.join(PATIENCE)
    assert listener.stats.dropped == 99
    assert "BTC:USDC: 99 ticks dropped: the listener ended" in caplog.text


def test_no_callback_runs_after_a_stop_that_ran_out_of_time(seen: Seen) -> None:
    """`on_error` doesn't get the report then. The log does."""
    callback, entered, free = gated(seen)
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=callback).start()
        assert entered.wait(PATIENCE)
        assert not listener.stop(timeout=0.1)
        free.set()
        assert listener.join(PATIENCE)
    assert seen.errors == []
    assert listener.stats.ticks + listener.stats.dropped == listener.stats.messages


def test_leaving_a_loop_reports_nothing(seen: Seen, dispatch: str) -> None:
    """You want no more ticks then. They are counted all the same."""
    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, on_tick=None, dispatch=dispatch, queue_size=10)
        for _ in listener:
            break
        assert listener.join(PATIENCE)
    assert seen.errors == []
    assert listener.stats.ticks + listener.stats.dropped == listener.stats.messages


def test_stop_is_bounded_by_its_timeout(seen: Seen, dispatch: str, caplog: pytest.LogCaptureFixture) -> None:
    """If a callback doesn't return within the timeout, stop() returns False, and no callback follows."""
    callback, entered, free = gated(seen)
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=callback, dispatch=dispatch).start()
        assert entered.wait(PATIENCE)
        started = time.monotonic()
        assert not listener.stop(timeout=0.2)
        assert time.monotonic() - started < AT_ONCE
        assert "still running" in caplog.text
        with pytest.raises(ConfigurationError, match="still stopping"):
            listener.start()
        free.set()
        assert listener.join(PATIENCE)
    assert seen.prices == [1]


def test_stop_in_a_callback_is_the_last_call(seen: Seen) -> None:
    """stop() in a callback returns at once, and the callbacks registered after it aren't called."""
    calls: list[str] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, on_tick=lambda tick: calls.append(f"stop {listener.stop()}"))
        listener.on_tick(lambda tick: calls.append("after"))
        listener.start()
        assert listener.join(PATIENCE)
    assert calls == ["stop True"]
    assert listener.state is State.STOPPED


@pytest.mark.parametrize("event", ["error", "state", "notice"])
def test_stop_in_any_callback(seen: Seen, dispatch: str, event: str) -> None:
    """stop() works in callbacks for every event."""
    with Peer(stay(frame("bad"), frame("{}"), tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, **{f"on_{event}": lambda *_: listener.stop()})
        listener.start()
        assert listener.join(PATIENCE)
    assert seen.ticks == []


def test_stop_in_parse_price_is_the_end(seen: Seen, dispatch: str) -> None:
    """It returns at once, whichever thread reads. join() there would wait for itself."""
    results: list[object] = []

    def parse_price(text: str) -> float:
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            listener.join()
        results.append(listener.stop(PATIENCE))
        return float(text)

    def on_state(symbol: str, state: State) -> None:
        time.sleep(0.01)  # the relief takes over, if it does at all

    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, parse_price=parse_price, on_state=on_state, dispatch=dispatch).start()
        assert listener.join(PATIENCE)
    assert results == [True]
    assert seen.ticks == []


def test_join_in_a_callback_is_an_error(seen: Seen, dispatch: str) -> None:
    """join() in a callback would wait for itself."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, on_tick=lambda tick: listener.join(), dispatch=dispatch)
        with listener:
            seen.wait_errors(1)
    assert isinstance(seen.errors[0].__cause__, ConfigurationError)


def test_start_in_the_last_callback_is_an_error(seen: Seen, dispatch: str) -> None:
    """A listener that is about to end can't start yet, and raises an error."""
    refused: list[object] = []

    def restart(symbol: str, state: State) -> None:
        if state is State.FAILED:
            with pytest.raises(ConfigurationError, match="still stopping"):
                listener.start()
            refused.append(state)

    with Peer(refuse("404 Not Found")) as peer:
        listener = seen.listener(peer.url, on_state=restart, dispatch=dispatch)
        with pytest.raises(StreamNotFound):
            listener.start().join(PATIENCE)
    assert refused == [State.FAILED]


def test_join_has_a_timeout(seen: Seen, dispatch: str) -> None:
    """join(timeout) returns False if the listener still runs."""
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        seen.wait_ticks(1)
        assert not listener.join(0.01)
    assert listener.join(0.0)


@pytest.mark.parametrize("method", ["stop", "join"])
@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5"])
def test_an_invalid_timeout_is_refused(method: str, timeout: Any) -> None:
    """A timeout is a finite number of seconds, 0 or more."""
    with pytest.raises(ConfigurationError, match="timeout"):
        getattr(StreamListener(PAIR), method)(timeout)


def test_stop_interrupts_a_backoff(seen: Seen, dispatch: str) -> None:
    """stop() doesn't wait for the next attempt."""
    listener = seen.listener(f"ws://127.0.0.1:{free_port()}/", reconnect=SLOW, dispatch=dispatch).start()
    seen.wait_errors(1)
    assert listener.state is State.CONNECTING
    started = time.monotonic()
    assert listener.stop()
    assert time.monotonic() - started < AT_ONCE


def test_stop_interrupts_a_hanging_handshake(seen: Seen, dispatch: str) -> None:
    """stop() ends a handshake quickly: the server sees the client leave, and no connection follows."""
    begun, left, may_answer = threading.Event(), threading.Event(), threading.Event()

    def late(caller: Caller) -> None:
        answer = caller.acceptance()
        begun.set()
        assert may_answer.wait(PATIENCE)
        try:
            caller.send(answer, tick(1))
        finally:
            caller.wait_until_left()
            left.set()

    with Peer(late) as peer:
        listener = seen.listener(peer.url, connect_timeout=3_600.0, dispatch=dispatch).start()
        assert begun.wait(PATIENCE)
        start = time.monotonic()
        assert listener.stop()
        assert time.monotonic() - start < AT_ONCE
        may_answer.set()
        assert left.wait(PATIENCE)
        assert peer.accepted == 1
    assert seen.ticks == []
    assert State.STREAMING not in [state for _, state in seen.states]


def test_stop_does_not_wait_for_key_callables(seen: Seen) -> None:
    """stop() is quick although a key callable hangs for each of many streams."""
    free, asked = threading.Event(), threading.Semaphore(0)

    def key() -> str:
        asked.release()
        free.wait(PATIENCE)
        return "demo"

    with Peer(stay()) as peer:
        listener = seen.listener(peer.url, *(f"P{n}:USD" for n in range(8)), api_key=key, connect_timeout=3_600.0)
        listener.start()
        try:
            for _ in range(8):
                assert asked.acquire(timeout=PATIENCE)
            started = time.monotonic()
            assert listener.stop()
            assert time.monotonic() - started < 1.2
        finally:
            free.set()
        assert peer.accepted == 0


def test_stop_from_several_threads(seen: Seen, dispatch: str) -> None:
    """stop() returns in all threads, and the listener has ended in each."""
    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(10)
        outcomes: list[tuple[bool, bool]] = []
        stoppers = [
            threading.Thread(target=lambda n=n: outcomes.append((listener.stop(drain=n % 2 == 0), listener.join(0.0))))
            for n in range(6)
        ]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join(PATIENCE)
    assert outcomes == [(True, True)] * 6


def test_start_and_stop_race(seen: Seen, dispatch: str) -> None:
    """stop() while start() runs either ends the listener, or a later stop() does."""

    def stop_at_once(listener: StreamListener, drain: bool) -> None:
        while listener.state is State.IDLE:
            pass
        listener.stop(drain=drain)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Peer(stay(ticks(1, 5))) as peer:
            for number in range(100):
                listener = seen.listener(peer.url, dispatch=dispatch)
                stopper = threading.Thread(target=stop_at_once, args=(listener, number % 4 == 0))
                stopper.start()
                listener.start()
                stopper.join(PATIENCE)
                assert not stopper.is_alive()
                assert listener.stop()
                assert listener.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)


def test_a_drain_delivers_undecoded_ticks() -> None:
    """stop() also delivers messages that were read while the queue was full, and not yet decoded."""
    begun, go_on = threading.Event(), threading.Event()
    seen = Seen()

    def slow(tick: Tick) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    with Peer(stay(ticks(1, 20))) as peer:
        listener = seen.listener(peer.url, queue_size=2, on_tick=slow)
        listener.on_tick(seen.on_tick)
        listener.start()
        assert begun.wait(PATIENCE)
        stopper = threading.Thread(target=listener.stop, args=(PATIENCE,))
        stopper.start()
        go_on.set()
        stopper.join(PATIENCE)
    assert seen.prices == list(range(1, 21))


@pytest.mark.parametrize("allowed", [0, 1])
def test_start_fails_without_threads(allowed: int) -> None:
    """If the system allows no more threads, start() raises and the listener has ended."""
    ended = run_program("scarcity", "no_thread_at_start", allowed)
    assert (ended.stdout, ended.stderr) == ("can't start new thread True 1\n", "")


# Nothing is left behind.


def test_all_threads_have_ended_when_stop_returns(seen: Seen, dispatch: str) -> None:
    """stop() and join() return only after the threads have ended."""
    with LocalServer(SimulatedMarket(seed=1), keys={"demo"}) as server:
        for life in range(60):
            listener = StreamListener("BTC:USDC", api_key="demo", endpoint=server.url, dispatch=dispatch).start()
            assert listener.stop()
            if life % 2:
                assert listener.join()
            names = [thread.name for thread in threading.enumerate()]
            assert [name for name in names if name.startswith(f"{listener.name}-")] == []


def our_threads() -> list[str]:
    """The running threads of all listeners."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("finx-streamer")]


def wait_until_gone() -> None:
    """Wait for the listeners' threads to end."""
    for _ in range(int(PATIENCE / 0.01)):
        if not our_threads():
            return
        time.sleep(0.01)  # the threads aren't known, so they can't be joined


@pytest.mark.parametrize("lives", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_many_lives_leave_nothing_behind(lives: int) -> None:
    """Starts and stops leave no thread and no file descriptor behind, in any stage of a connection."""

    def live(listener: StreamListener, number: int) -> None:
        listener.start()
        if number % 5 == 0:
            seen.wait_ticks(1)
            seen.ticks.clear()
        assert listener.stop(drain=number % 2 == 0)

    seen = Seen()
    with Peer(stay(tick(1))) as peer, Peer(hang) as mute:
        for number in range(10):
            live(seen.listener(peer.url), 5 * number)
        wait_until_gone()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        earlier = peer.accepted
        urls = [peer.url, peer.url, peer.url, mute.url, f"ws://127.0.0.1:{free_port()}/"]
        for number in range(lives):
            url = peer.url if number % 5 == 0 else urls[number % 5]
            seen.ticks.clear()
            live(seen.listener(url, dispatch="inline" if number % 3 else "thread", reconnect=SLOW), number)
        wait_until_gone()
        gc.collect()
        assert our_threads() == []
        # The peers' ends of those connections are still open.
        accepted = peer.accepted - earlier + mute.accepted
        assert len(os.listdir("/proc/self/fd")) <= before + accepted
