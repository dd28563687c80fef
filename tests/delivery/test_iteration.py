"""`for tick in listener`."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

from finx_streamer import ConfigurationError, ConnectionFailed, State, StreamListener, StreamNotFound, Tick
from finx_streamer.delivery.iteration import TickBuffer
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, close_frame, refuse, stay, tick, ticks


def test_iteration_starts_the_listener_and_stops_it_at_the_end(seen: Seen, dispatch: str) -> None:
    """A loop starts a listener that isn't running, and stops it when the loop is left."""
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        got = []
        for received in listener:
            got.append(int(received["price"]))
            if len(got) == 50:
                break
        gc.collect()
        assert listener.state is State.STOPPED
        assert listener.join(PATIENCE)
    assert got == list(range(1, 51))


def test_iteration_does_not_stop_a_running_listener(seen: Seen, dispatch: str) -> None:
    """Inside `with`, leaving the loop stops nothing, and a second loop gets more ticks."""
    ended = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        for number in itertools.count(1):
            # A loop gets only ticks that arrive after it began.
            caller.send(tick(number))
            if ended.wait(0.01):
                return

    with Peer(script) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        for _ in range(2):
            for _ in listener:
                break
            assert listener.state is not State.STOPPED
        seen.wait_ticks(3)
        ended.set()


def test_a_dropped_loop_leaves_a_run_that_start_has_joined(seen: Seen, dispatch: str) -> None:
    """The listener belongs to `start` then."""
    with Peer(stay(ticks(1, 10))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        loop = iter(listener)
        next(loop)
        listener.start()
        del loop
        gc.collect()
        assert listener.state is not State.STOPPED
        assert listener.stop()


def test_the_last_of_two_loops_ends_the_run(seen: Seen, dispatch: str) -> None:
    """It doesn't matter which one began."""
    with Peer(stay(ticks(1, 10))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        first = iter(listener)
        next(first)
        second = iter(listener.ticks(timeout=0.2))
        with pytest.raises(TimeoutError):
            list(second)
        del first
        assert listener.state is not State.STOPPED
        second.close()
        assert listener.state is State.STOPPED


def test_a_loop_dropped_on_another_thread_can_be_followed_by_another(seen: Seen, dispatch: str) -> None:
    """The garbage collector doesn't wait for the end of the run. The next loop does."""
    with Peer(stay(ticks(1, 10))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        loops = [iter(listener)]
        assert next(loops[0])["price"] == 1
        dropper = threading.Thread(target=loops.clear)
        dropper.start()
        dropper.join(PATIENCE)
        assert next(iter(listener))["price"] == 1


def test_a_quiet_pair_raises_timeout_error(seen: Seen, dispatch: str) -> None:
    """A loop with a timeout ends when its pair is quiet, and stops the listener that it started."""
    with Peer(stay(ticks(1, 3))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        with pytest.raises(TimeoutError, match=r"no tick came within 0.2 s"):
            list(listener.ticks(timeout=0.2))
        gc.collect()
        assert listener.state is State.STOPPED


@pytest.mark.parametrize("timeout", [0, -1, "5", float("nan")])
def test_refuses_a_wrong_timeout(seen: Seen, timeout: Any) -> None:
    """At once, and not in the loop."""
    with pytest.raises(ConfigurationError, match=r"^timeout: "):
        seen.listener("ws://127.0.0.1:9/").ticks(timeout)


def test_a_slow_loop_over_the_latest_ticks_has_no_backlog(seen: Seen) -> None:
    """With `overflow="latest"`, only the newest tick and those on their way wait for it."""
    begun = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        # Otherwise the loop may begin so late that the last tick is its first: then it would wait for another.
        begun.wait(PATIENCE)
        caller.send(ticks(2, 5_000))
        caller.wait_until_left()

    with Peer(script) as peer:
        listener = seen.listener(peer.url, overflow="latest", on_tick=None, on_notice=None, on_state=None)
        loop = iter(listener)
        assert next(loop)["price"] == 1
        begun.set()
        deadline = time.monotonic() + PATIENCE
        while listener.stats.messages < 5_000 and time.monotonic() < deadline:
            listener.join(0.01)
        rest = [int(next(loop)["price"])]
        while rest[-1] != 5_000:
            rest.append(int(next(loop)["price"]))
        assert len(rest) <= 4
        assert listener.stats.messages == 5_000
        loop.close()  # type: ignore[attr-defined]


def test_a_loop_may_change_its_thread(seen: Seen) -> None:
    """stop() doesn't wait for the loop of its own thread, even if another thread took the first tick."""
    with Peer(stay(ticks(1, 50))) as peer:
        listener = seen.listener(peer.url, queue_size=1)
        loop = iter(listener)
        first = threading.Thread(target=next, args=(loop,))
        first.start()
        first.join(PATIENCE)
        assert next(loop)["price"] == 2
        assert listener.stop(timeout=2.0)
        assert list(loop) == []


def test_a_loop_that_can_not_start_leaves_nothing_behind(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, no buffer remains that would fill up and block the next run."""

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Peer(stay(ticks(1, 50))) as peer:
        listener = seen.listener(peer.url, queue_size=1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError, match="new thread"):
                next(iter(listener))
        listener.start()
        seen.wait_ticks(50)
        assert listener.stop()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_iteration_loses_nothing(seen: Seen, dispatch: str, size: int) -> None:
    """It delivers every tick in order, in bounded memory, in both dispatch modes."""
    with Peer(stay(ticks(1, 1_500), close_frame(1000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, queue_size=size, reconnect=None)
        got = []

        def loop() -> None:
            for received in listener:
                got.append(int(received["price"]))
                assert listener.stats.queue_depth <= size + 3

        with pytest.raises(ConnectionFailed, match="normally"):
            loop()
    assert got == list(range(1, 1_501))
    assert seen.prices == got


def test_a_slow_loop_applies_back_pressure(seen: Seen, dispatch: str) -> None:
    """Reading stops when the queue and the buffer are full."""
    with Peer(stay(ticks(1, 5_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, queue_size=20, on_tick=None)
        loop = iter(listener)
        assert next(loop)["price"] == 1
        # Without taking ticks, at most 20 fit into the queue and 20 into the loop's buffer.
        assert not listener.join(0.3)
        assert listener.stats.ticks <= 45
        assert [int(next(loop)["price"]) for _ in range(4_999)] == list(range(2, 5_001))
        assert listener.stop()
        assert list(loop) == []


def test_the_loop_ends_with_the_listener(seen: Seen, dispatch: str) -> None:
    """stop() on another thread ends the loop without an error."""
    got: list[Tick] = []
    some = threading.Event()

    def loop() -> None:
        for received in listener:
            got.append(received)
            some.set()

    with Peer(stay(ticks(1, 3))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        thread = threading.Thread(target=loop)
        thread.start()
        seen.wait_ticks(3)
        assert listener.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert some.is_set()
    assert [int(received["price"]) for received in got] == [1, 2, 3]


@pytest.mark.parametrize("drain", [True, False])
def test_stop_in_the_loop_ends_it(seen: Seen, dispatch: str, drain: bool) -> None:
    """stop() in the body doesn't wait for the body, and no further tick comes."""
    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, queue_size=5)
        got = []
        for received in listener:
            got.append(int(received["price"]))
            if len(got) == 3:
                assert listener.stop(drain=drain)
        assert listener.join(PATIENCE)
    assert got == [1, 2, 3]


def test_stop_in_a_callback_ends_the_loop(seen: Seen, dispatch: str) -> None:
    """The loop ends when a callback stops the listener."""

    def third(tick: Tick) -> None:
        if tick["price"] == 3:
            listener.stop()

    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        listener.on_tick(third)
        got = [int(received["price"]) for received in listener]
        assert listener.join(PATIENCE)
    assert got == [1, 2, 3][: len(got)]


def test_the_loop_raises_the_error_that_ended_the_listener(seen: Seen, dispatch: str) -> None:
    """It raises the same error as join()."""
    with Peer(refuse("404 Not Found")) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        with pytest.raises(StreamNotFound):
            list(listener)
        with pytest.raises(StreamNotFound):
            listener.join(PATIENCE)
    assert listener.state is State.FAILED


def test_two_loops_each_get_all_ticks(seen: Seen, dispatch: str) -> None:
    """Each iteration gets every tick that arrives while it runs."""
    ready = threading.Barrier(3)
    got: dict[int, list[int]] = {0: [], 1: []}
    go_on = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        assert go_on.wait(PATIENCE)
        caller.send(ticks(1, 500))
        caller.wait_until_left()

    def loop(number: int) -> None:
        for received in listener:
            got[number].append(int(received["price"]))
            if received["price"] == 500:
                ready.wait(PATIENCE)

    with Peer(script) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, queue_size=10).start()
        threads = [threading.Thread(target=loop, args=(number,)) for number in got]
        for thread in threads:
            thread.start()
        seen.wait_for(lambda: (PAIR, State.STREAMING) in seen.states)
        while len(listener._run.iterations._buffers.value) < 2:  # type: ignore[union-attr]
            assert not listener.join(0.01)
        go_on.set()
        ready.wait(PATIENCE)
        assert listener.stop()
        for thread in threads:
            thread.join(PATIENCE)
    assert got == {0: list(range(1, 501)), 1: list(range(1, 501))}


def test_a_loop_in_a_callback_is_an_error(seen: Seen, dispatch: str) -> None:
    """A callback can't iterate, because it would wait for itself forever."""

    def loop(tick: Tick) -> None:
        for _ in listener:
            pass

    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, on_tick=loop, dispatch=dispatch)
        with listener:
            seen.wait_errors(1)
    assert isinstance(seen.errors[0].__cause__, ConfigurationError)


def test_a_loop_opened_as_the_listener_ends_does_not_hang(seen: Seen, dispatch: str) -> None:
    """It ends at once."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(1)
        run = listener._run
        assert listener.stop()
        # Uses internals, because the moment is too short to hit from outside.
        assert run is not None
        assert run.iterations.open(TickBuffer).take() is None


def test_a_stopped_listener_can_be_iterated_again(seen: Seen, dispatch: str) -> None:
    """Each iteration starts a new run."""
    with Peer(stay(ticks(1, 2))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        for _ in range(3):
            got = []
            for received in listener:
                got.append(int(received["price"]))
                if len(got) == 2:
                    break
            assert got == [1, 2]
        assert peer.accepted == 3


@pytest.mark.parametrize("line", range(12))
def test_a_signal_handler_may_stop_the_listener_while_the_loop_takes_a_tick(seen: Seen, line: int) -> None:
    """A handler may run between any two lines of `take`, and stop() doesn't hang there."""
    stopped: list[bool] = []
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        """Play the handler: stop the listener at one of the lines that run within `take`."""
        if frame.f_code is not TickBuffer.take.__code__:
            return None
        if event == "line" and next(lines) == 200 + line and not stopped:
            stopped.append(listener.stop(PATIENCE))
        return trace

    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, queue_size=8)
        before = sys.gettrace()
        sys.settrace(trace)
        begin = time.monotonic()
        try:
            for _ in listener:
                pass
        finally:
            sys.settrace(before)
        assert stopped == [True]
        assert time.monotonic() - begin < PATIENCE


def test_a_loop_may_be_collected_while_callbacks_change(seen: Seen) -> None:
    """The garbage collector drops a loop that is part of a cycle at any moment, even inside on_tick() of its thread."""

    class Collects:
        """A callback whose comparison runs the garbage collector."""

        def __call__(self, tick: Tick) -> None:
            pass

        def __eq__(self, other: object) -> bool:
            gc.collect()
            return self is other

        __hash__ = None  # type: ignore[assignment]

    def leave_in_cycle(listener: StreamListener) -> None:
        loop: Any = iter(listener)
        next(loop)
        loop.itself = loop

    collects = Collects()
    with Peer(stay(ticks(1, 5))) as peer, seen.listener(peer.url, on_tick=collects) as listener:
        leave_in_cycle(listener)
        remover = threading.Thread(target=listener.remove_callback, args=(collects,), daemon=True)
        remover.start()
        remover.join(PATIENCE)
        assert not remover.is_alive()
        assert listener._callbacks.of("tick") == ()
