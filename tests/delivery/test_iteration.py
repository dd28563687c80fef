"""`for tick in listener`: ticks handed to the thread that iterates."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

from finx_streamer import ConfigurationError, ConnectionFailed, State, StreamNotFound, Tick
from finx_streamer.delivery.iteration import TickBuffer
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, close_frame, refuse, stay, tick, ticks


def test_iteration_starts_the_listener_and_stops_what_it_started(seen: Seen, dispatch: str) -> None:
    """A listener that does not run is started by the loop, and stopped when the loop is left."""
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        got = []
        for received in listener:
            got.append(int(received["price"]))
            if len(got) == 50:
                break
        gc.collect()
        assert State.STOPPED is listener.state
        assert listener.join(PATIENCE)
    assert list(range(1, 51)) == got


def test_iteration_leaves_a_listener_running_that_ran_before(seen: Seen, dispatch: str) -> None:
    """Within `with`, leaving the loop stops nothing, and a second loop goes on."""
    ended = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        for number in itertools.count(1):
            # A loop gets what comes after its beginning, whenever that is.
            caller.send(tick(number))
            if ended.wait(0.01):
                return

    with Peer(script) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        for _ in range(2):
            for _ in listener:
                break
            assert State.STOPPED is not listener.state
        seen.wait_ticks(3)
        ended.set()


def test_a_loop_that_wants_the_latest_gets_no_backlog(seen: Seen) -> None:
    """With `overflow="latest"` no more waits for a slow loop than the newest tick and those that were on their way."""
    with Peer(stay(*(tick(number) for number in range(1, 5_001)))) as peer:
        listener = seen.listener(peer.url, overflow="latest", on_tick=None, on_notice=None, on_state=None)
        loop = iter(listener)
        next(loop)
        deadline = time.monotonic() + PATIENCE
        while listener.stats.ticks < 5_000 and time.monotonic() < deadline:
            listener.join(0.01)
        rest = [int(next(loop)["price"])]
        while rest[-1] != 5_000:
            rest.append(int(next(loop)["price"]))
        assert len(rest) <= 4
        loop.close()  # type: ignore[attr-defined]


def test_a_loop_may_change_its_thread(seen: Seen) -> None:
    """stop() between two ticks does not wait for the loop of its own thread, whoever took the first tick."""
    with Peer(stay(ticks(1, 50))) as peer:
        listener = seen.listener(peer.url, queue_size=1)
        loop = iter(listener)
        first = threading.Thread(target=next, args=(loop,))
        first.start()
        first.join(PATIENCE)
        assert next(loop)["price"] == 2
        assert listener.stop(timeout=2.0)
        assert list(loop) == []


def test_a_loop_that_can_not_start_leaves_nothing(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread to give, no buffer is left that would fill up and hold up the next start."""

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
    """In bounded memory, and in both modes, every tick is given out, in order."""
    with Peer(stay(ticks(1, 1_500), close_frame(1000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, queue_size=size, reconnect=None)
        got = []

        def loop() -> None:
            for received in listener:
                got.append(int(received["price"]))
                assert listener.stats.queue_depth <= size + 3

        with pytest.raises(ConnectionFailed, match="normally"):
            loop()
    assert list(range(1, 1_501)) == got == seen.prices


def test_iteration_holds_up_the_sender(seen: Seen, dispatch: str) -> None:
    """A loop that does not take stops the reading: no more is kept than the queue and the buffer hold."""
    with Peer(stay(ticks(1, 5_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch, queue_size=20, on_tick=None)
        loop = iter(listener)
        assert next(loop)["price"] == 1
        # Nobody takes meanwhile: what was read so far is bounded by 20 in the queue and 20 in the loop's buffer.
        assert not listener.join(0.3)
        assert listener.stats.ticks <= 45
        assert list(range(2, 5_001)) == [int(next(loop)["price"]) for _ in range(4_999)]
        assert listener.stop()
        assert list(loop) == []


def test_the_loop_ends_with_the_listener(seen: Seen, dispatch: str) -> None:
    """stop() by another thread ends the loop, and nothing is raised."""
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
    """stop() in the body does not wait for the body: the loop ends after it, and no tick follows."""
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


def test_the_loop_raises_what_ended_the_listener(seen: Seen, dispatch: str) -> None:
    """The loop raises as join() does, after the ticks that came before."""
    with Peer(refuse("404 Not Found")) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        with pytest.raises(StreamNotFound):
            list(listener)
        with pytest.raises(StreamNotFound):
            listener.join(PATIENCE)
    assert State.FAILED is listener.state


def test_two_loops_get_all_ticks_each(seen: Seen, dispatch: str) -> None:
    """Each iteration sees every tick that comes while it lasts."""
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
        while len(listener._run.iterations._buffers) < 2:  # type: ignore[union-attr]
            assert not listener.join(0.01)
        go_on.set()
        ready.wait(PATIENCE)
        assert listener.stop()
        for thread in threads:
            thread.join(PATIENCE)
    assert {0: list(range(1, 501)), 1: list(range(1, 501))} == got


def test_a_loop_in_a_callback_is_an_error(seen: Seen, dispatch: str) -> None:
    """A callback can't iterate: it would wait for itself, for ever."""

    def loop(tick: Tick) -> None:
        for _ in listener:
            pass

    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, on_tick=loop, dispatch=dispatch)
        with listener:
            seen.wait_errors(1)
    assert isinstance(seen.errors[0].__cause__, ConfigurationError)


def test_a_loop_that_comes_as_the_listener_ends_does_not_hang(seen: Seen, dispatch: str) -> None:
    """A loop opened after the last tick was given out, and before the end is told, ends as well."""
    with Peer(stay(tick(1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch).start()
        seen.wait_ticks(1)
        run = listener._run
        assert listener.stop()
        # Not public: the moment in between is too short to be met from outside.
        assert run is not None
        assert run.iterations.open(TickBuffer).take() is None


def test_iterating_again_starts_afresh(seen: Seen, dispatch: str) -> None:
    """A listener that was stopped may be iterated anew."""
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
def test_a_loop_may_be_stopped_in_the_midst_of_taking(seen: Seen, line: int) -> None:
    """A signal handler that stops the listener may run between any two steps of the loop, and need not wait there."""
    stopped: list[bool] = []
    passed = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        """Stands for the handler: at the given one of the lines that are executed within `take`, by the 20th tick."""
        if frame.f_code is not TickBuffer.take.__code__:
            return None
        if event == "line" and next(passed) == 200 + line and not stopped:
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
