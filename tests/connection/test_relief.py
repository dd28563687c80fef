"""`RelievedLoop`: two threads take turns at one loop. The callbacks are played by the tests."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import attrs
import pytest

from finx_streamer.connection import relief
from finx_streamer.connection.relief import ReliefTiming, RelievedLoop
from finx_streamer.values import NEVER
from tests.support.peers import PATIENCE
from tests.support.turns import TURNS


class Calls:
    """Callbacks: any thread adds them, the callback thread runs them."""

    def __init__(self) -> None:
        self.abandoned = False
        self.loop: RelievedLoop
        self.waiting: deque[Callable[[], None]] = deque()
        self.threads: set[str] = set()
        self.ended: list[BaseException | None] = []
        self.last = threading.Event()

    def add(self, call: Callable[[], None]) -> None:
        """On the thread that drives the loop."""
        self.waiting.append(call)
        self.loop.call_soon()

    def run(self) -> None:
        self.threads.add(threading.current_thread().name)
        while self.waiting and not self.abandoned:
            self.waiting.popleft()()

    def run_last(self) -> None:
        self.run()
        self.last.set()

    def flush(self) -> None:
        if self.waiting:
            self.loop.wake_calls()

    def taken_over(self) -> None:
        pass


@pytest.fixture
def calls() -> Calls:
    """The callbacks of the loop."""
    return Calls()


@contextlib.contextmanager
def running(calls: Calls, on_stop: Callable[[], None] = lambda: None) -> Iterator[RelievedLoop]:
    """A loop that runs, and that is stopped at the end."""
    loop = calls.loop = RelievedLoop("loop", on_stop, calls.ended.append, calls)
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()
        loop.join(PATIENCE)
        assert not loop.alive


def do(loop: RelievedLoop, command: Callable[[], None]) -> None:
    """Run a command on the loop, and wait for it."""
    done = threading.Event()
    assert loop.post(lambda: (command(), done.set())[0])
    assert done.wait(PATIENCE)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_callback_thread_drives_while_calls_are_short(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and calls run on one thread, and the relief sleeps."""
    monkeypatch.setattr(relief, "TIMING", TURNS["never relieved"])
    drivers = set()
    with running(calls) as loop:
        for _ in range(100):
            do(loop, lambda: (drivers.add(threading.current_thread().name), calls.add(lambda: None))[0])
    assert drivers == calls.threads == {"loop-callbacks"}
    assert calls.ended == [None]


def test_the_relief_drives_while_a_call_lasts(calls: Calls) -> None:
    """Commands run meanwhile, deadlines too. Then the callback thread drives again."""
    gate, inside, due = threading.Event(), threading.Event(), threading.Event()
    drivers: list[str] = []

    @attrs.define(eq=False)
    class Alarm:
        deadline: float
        scheduled: float = NEVER

        def wake(self, now: float) -> None:
            self.deadline = NEVER
            due.set()

    with running(calls) as loop:
        do(loop, lambda: calls.add(lambda: (inside.set(), gate.wait(PATIENCE))[0]))
        assert inside.wait(PATIENCE)
        do(loop, lambda: drivers.append(threading.current_thread().name))
        do(loop, lambda: loop.schedule(Alarm(loop.now)))
        assert due.wait(PATIENCE)
        do(loop, lambda: calls.add(lambda: None))
        gate.set()
        wait_until(lambda: loop._idle or not loop.relieved)
        while drivers[-1] != "loop-callbacks":
            do(loop, lambda: drivers.append(threading.current_thread().name))
    assert drivers[0] == "loop-relief"
    assert calls.threads == {"loop-callbacks"}


def test_many_short_calls_in_one_turn_count_together(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relief takes over between two callbacks, too: what counts is the time since the poll."""
    monkeypatch.setattr(relief, "TIMING", ReliefTiming(grace=0.05, short_look=0.001))
    begun, commanded = [], threading.Event()

    def short(number: int) -> None:
        begun.append(number)
        time.sleep(0.002)

    with running(calls) as loop:
        do(loop, lambda: calls.waiting.extend(lambda number=number: short(number) for number in range(1_000)))
        do(loop, loop.call_soon)
        assert loop.post(commanded.set)
        assert commanded.wait(PATIENCE)
        assert len(begun) < 1_000
        calls.abandoned = True


def test_what_was_deferred_before_a_takeover_runs(calls: Calls) -> None:
    """The relief doesn't wait for a socket first, and goes on with the rest of the turn."""
    gate, ran = threading.Event(), threading.Event()
    near, far = socket.socketpair()

    class Owner:
        def on_readable(self) -> None:
            near.recv(1)
            loop.defer(ran.set)
            calls.add(lambda: (gate.wait(PATIENCE), None)[1])

        def on_writable(self) -> None:
            pass

    with near, far, running(calls) as loop:
        do(loop, lambda: loop.watch(near.fileno(), Owner(), loop.poller.READ, 0))
        far.send(b"x")
        assert ran.wait(PATIENCE)
        gate.set()


def test_the_loop_ends_while_a_call_hangs(calls: Calls) -> None:
    """Everything is released then. The callback thread ends after the call."""
    gate, inside, stopped = threading.Event(), threading.Event(), threading.Event()
    with running(calls, stopped.set) as loop:
        do(loop, lambda: calls.add(lambda: (inside.set(), gate.wait(PATIENCE))[0]))
        assert inside.wait(PATIENCE)
        loop.stop()
        assert stopped.wait(PATIENCE)
        wait_until(lambda: calls.ended == [None])
        assert not calls.last.is_set()
        assert not loop.post(lambda: None)
        gate.set()
        assert calls.last.wait(PATIENCE)
    assert calls.ended == [None]


@pytest.mark.parametrize("relieved", [False, True])
def test_a_crash_on_either_thread_ends_the_loop(calls: Calls, relieved: bool) -> None:
    """It is passed on, once, and what was waiting still runs."""
    gate, inside = threading.Event(), threading.Event()
    crash, ran = MemoryError("a bug"), []

    def fail() -> None:
        calls.add(lambda: ran.append(1))
        raise crash

    with running(calls) as loop:
        if relieved:
            do(loop, lambda: calls.add(lambda: (inside.set(), gate.wait(PATIENCE))[0]))
            assert inside.wait(PATIENCE)
            wait_until(lambda: loop.relieved)
        loop.post(fail)
        wait_until(lambda: calls.ended == [crash])
        gate.set()
        assert calls.last.wait(PATIENCE)
    assert (calls.ended, ran) == ([crash], [1])


def test_abandoned_calls_do_not_keep_the_callback_thread(calls: Calls) -> None:
    """It ends while the relief still drives."""
    gate, inside = threading.Event(), threading.Event()
    with running(calls) as loop:
        do(loop, lambda: calls.add(lambda: (inside.set(), gate.wait(PATIENCE))[0]))
        assert inside.wait(PATIENCE)
        wait_until(lambda: loop.relieved)
        calls.abandoned = True
        gate.set()
        loop.wake_calls()
        assert calls.last.wait(PATIENCE)
        assert calls.ended == []


def test_the_relief_drives_to_the_end_once_calls_are_abandoned(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it was about to hand back when the callback thread ended."""
    monkeypatch.setattr(relief, "TIMING", TURNS["changing hands"])
    gate, inside, drivers = threading.Event(), threading.Event(), []

    def abandon() -> None:
        drivers.append(threading.current_thread().name)
        calls.abandoned = True
        loop.wake_calls()
        assert calls.last.wait(PATIENCE)

    with running(calls) as loop:
        do(loop, lambda: calls.add(lambda: (inside.set(), gate.wait(PATIENCE))[0]))
        assert inside.wait(PATIENCE)
        wait_until(lambda: loop.relieved)
        gate.set()
        wait_until(lambda: loop._idle)
        do(loop, lambda: None)  # the next turn begins while the callback thread waits
        do(loop, abandon)
    assert drivers == ["loop-relief"]
    assert calls.ended == [None]


def test_the_loop_ends_once(calls: Calls) -> None:
    """Even if the relief was about to take over when the callback thread ended it."""
    gate, inside, tries = threading.Event(), threading.Event(), threading.Event()
    with running(calls) as loop:

        class Lock:
            """The relief comes late."""

            def __init__(self) -> None:
                self._acquire, self.release = loop._lock.acquire, loop._lock.release

            def acquire(self, blocking: bool) -> bool:
                if threading.current_thread() is loop._relief:
                    tries.set()
                    assert calls.last.wait(PATIENCE)
                return self._acquire(blocking)

        loop._lock = Lock()  # type: ignore[assignment]
        do(loop, lambda: calls.add(lambda: (inside.set(), gate.wait(PATIENCE))[0]))
        assert inside.wait(PATIENCE)
        assert tries.wait(PATIENCE)
        loop.stop()
        gate.set()
    assert calls.ended == [None]


def test_the_relief_sleeps_when_nothing_is_called(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops looking after a while, and a call wakes it."""
    monkeypatch.setattr(relief, "TIMING", ReliefTiming(short_look=0.005, long_look=0.02, careful_for=0.0))
    with running(calls) as loop:
        for _ in range(2):
            wait_until(lambda: loop._wake_at == loop._calls_begun + 1)
            do(loop, lambda: calls.add(lambda: None))
            wait_until(lambda: loop._wake_at == loop._calls_begun + 1)


def test_a_relief_that_can_not_be_started_leaves_nothing(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have no thread left for either of them."""
    start, allowed = threading.Thread.start, iter([True, False])

    def scarce(thread: threading.Thread) -> None:
        if thread.name.startswith("loop-") and not next(allowed):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    loop = calls.loop = RelievedLoop("loop", lambda: None, calls.ended.append, calls)
    with pytest.raises(RuntimeError, match="new thread"):
        loop.start()
    loop.join(PATIENCE)
    assert not loop.alive
    assert not loop.post(lambda: None)


@pytest.mark.parametrize("turns", [*TURNS, "changing hands, but not at once"])
def test_one_thread_drives_at_a_time(calls: Calls, turns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the loop does excludes everything else, nothing is lost, and calls keep their order."""
    timing = TURNS.get(turns, attrs.evolve(TURNS["changing hands"], grace=0.001, holds=(0.002,)))
    monkeypatch.setattr(relief, "TIMING", timing)
    rng, driving, mistakes, called, drivers = random.Random(1), threading.Lock(), [], [], set()
    count = 2_000

    def command(number: int) -> None:
        if not driving.acquire(blocking=False):
            mistakes.append(f"two threads drive at {number}")
            return
        drivers.add(threading.current_thread().name)
        pause = rng.choice((0.0, 0.0, 0.0, 0.0001, 0.002))
        calls.add(lambda: (called.append(number), time.sleep(pause) if pause else None)[0])
        if number % 3 == 0:
            loop.defer(lambda: None)
        driving.release()

    with running(calls) as loop:
        for number in range(count):
            assert loop.post(lambda number=number: command(number))
            if number % 50 == 0:
                time.sleep(0.001)  # let the callback thread run out of work
        wait_until(lambda: len(called) == count)
    assert mistakes == []
    assert called == list(range(count))
    assert calls.threads == {"loop-callbacks"}
    if timing.grace < 1.0:
        assert "loop-relief" in drivers
