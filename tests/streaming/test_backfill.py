"""The workers that fetch history for gaps. A job always ends, even if its history fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from finx_streamer.errors import ConnectionFailed, DecodeError
from finx_streamer.streaming.backfill import MAX_CONCURRENT_FETCHES, Backfiller, Job

START = datetime(2022, 7, 2, tzinfo=UTC)
TIMEOUT = 20.0


class FakeHistory:
    """Returns `pages` pages of one tick each, then raises `fault`. Blocks before the first page if `gate` is given."""

    def __init__(self, pages: int = 0, fault: Exception | None = None, gate: threading.Event | None = None) -> None:
        self.pages, self.fault, self.gate = pages, fault, gate
        self.fetched = self.closed = 0
        self.called = threading.Event()

    def history_pages(
        self,
        pair: str,
        start: datetime,
        end: datetime | None,
        *,
        empty_days: int | None,
        on_bad: Callable[[DecodeError], object],
    ) -> Iterator[list[Any]]:
        self.called.set()
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT)
        for number in range(self.pages):
            self.fetched += 1
            yield [{"pair": pair, "price": number, "timestamp": START}]
        if self.fault is not None:
            raise self.fault

    def interrupt(self) -> None:
        if self.gate is not None:
            self.gate.set()

    def close(self) -> None:
        self.closed += 1


class NetworkThread:
    """Stands in for the network thread: runs posted commands until enough jobs have ended."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._posted: queue.Queue[Callable[[], None]] = queue.Queue()
        self.backfiller = Backfiller(connect, self._post, "test")
        self.ends: list[str | None] = []
        self.pages: list[Any] = []
        self.started: list[Job] = []

    def _post(self, command: Callable[[], None]) -> bool:
        self._posted.put(command)
        return True

    def fetch(self, acknowledge: bool = True) -> Job:
        def take(ticks: list[Any]) -> None:
            self.pages.append(ticks)
            if acknowledge:
                job.acknowledge()

        job = Job("BTC:USDC", START, None, lambda: self.started.append(job), take, self.ends.append)
        self.backfiller.fetch(job)
        return job

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._posted.get(timeout=TIMEOUT)()

    def run_until_ended(self, jobs: int) -> list[str | None]:
        """Return how the jobs ended."""
        self.run_until(lambda: len(self.ends) == jobs)
        self.backfiller.close()
        return self.ends


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "-backfill-" in thread.name]


@pytest.mark.parametrize("fault", [ValueError("bad luck"), ConnectionFailed("no way")], ids=repr)
def test_jobs_end_if_no_history_can_be_created(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Each job ends with the reason. An unexpected error is logged, too."""

    def refuse() -> FakeHistory:
        raise fault

    network = NetworkThread(refuse)
    for _ in range(2 * MAX_CONCURRENT_FETCHES):
        network.fetch()
    reason = str(fault) if isinstance(fault, ConnectionFailed) else "ValueError"
    assert network.run_until_ended(2 * MAX_CONCURRENT_FETCHES) == [f"no history ({reason})"] * 8
    assert bool(caplog.records) == isinstance(fault, ValueError)


def test_a_failing_history_delivers_its_pages_first() -> None:
    """The job ends with the reason after the pages, and the history is closed."""
    history = FakeHistory(3, RuntimeError())
    network = NetworkThread(lambda: history)
    network.fetch()
    assert network.run_until_ended(1) == ["no history (RuntimeError)"]
    assert [page[0]["price"] for page in network.pages] == [0, 1, 2]
    assert history.closed == 1


def test_each_history_is_closed_once() -> None:
    """A worker keeps its history while there are jobs, and closes it after its last one."""
    histories = [FakeHistory(1) for _ in range(20)]
    unused = list(histories)
    network = NetworkThread(unused.pop)
    for _ in range(20):
        network.fetch()
    assert network.run_until_ended(20) == [None] * 20
    assert len(network.pages) == 20
    assert [history.closed for history in histories] == [0] * len(unused) + [1] * (20 - len(unused))


def test_few_jobs_run_at_once() -> None:
    """Further jobs wait for a free worker."""
    gate = threading.Event()
    network = NetworkThread(lambda: FakeHistory(1, gate=gate))
    for _ in range(3 * MAX_CONCURRENT_FETCHES):
        network.fetch()
    assert len(workers()) == MAX_CONCURRENT_FETCHES
    gate.set()
    assert network.run_until_ended(3 * MAX_CONCURRENT_FETCHES) == [None] * (3 * MAX_CONCURRENT_FETCHES)


def test_each_job_starts_once() -> None:
    """When its turn comes, and not before: its time limit starts then."""
    gate = threading.Event()
    network = NetworkThread(lambda: FakeHistory(1, gate=gate))
    jobs = [network.fetch() for _ in range(3 * MAX_CONCURRENT_FETCHES)]
    network.run_until(lambda: len(network.started) == MAX_CONCURRENT_FETCHES)
    assert {id(job) for job in network.started} == {id(job) for job in jobs[:MAX_CONCURRENT_FETCHES]}
    gate.set()
    network.run_until_ended(len(jobs))
    assert [sum(job is each for each in network.started) for job in jobs] == [1] * len(jobs)


def test_without_history_all_jobs_start() -> None:
    """Otherwise each would wait until those before it have failed, one after the other."""
    gate = threading.Event()
    network = NetworkThread(lambda: FakeHistory(0, ConnectionFailed("no way"), gate))
    jobs = [network.fetch() for _ in range(3 * MAX_CONCURRENT_FETCHES)]
    gate.set()
    network.run_until(lambda: bool(network.ends))
    ended = len(network.ends)
    network.run_until(lambda: len(network.started) == len(jobs))
    assert ended == 1
    network.run_until_ended(len(jobs))


def test_pages_are_fetched_no_faster_than_they_are_taken() -> None:
    """At most two pages are waiting, and one more is ready to be handed over."""
    history = FakeHistory(10)
    network = NetworkThread(lambda: history)
    job = network.fetch(acknowledge=False)
    network.run_until(lambda: len(network.pages) == 2)
    assert history.fetched <= 3
    job.acknowledge()
    network.run_until(lambda: len(network.pages) == 4)
    assert history.fetched <= 5
    job.cancel()
    network.backfiller.close()
    assert network.ends == []


def test_a_cancelled_job_is_interrupted() -> None:
    """Its call ends, its history is closed, and `on_end` isn't called. The next job gets another history."""
    histories = [FakeHistory(1), FakeHistory(1, gate=threading.Event())]
    unused = list(histories)
    network = NetworkThread(unused.pop)
    job = network.fetch()
    assert histories[1].called.wait(TIMEOUT)
    job.cancel()
    network.fetch()
    assert network.run_until_ended(1) == [None]
    assert [history.closed for history in histories] == [1, 1]


def test_close_ends_the_workers() -> None:
    """Calls in progress are interrupted, and later jobs are not started."""
    network = NetworkThread(lambda: FakeHistory(1, gate=threading.Event()))
    for _ in range(2 * MAX_CONCURRENT_FETCHES):
        network.fetch()
    network.backfiller.close()
    network.fetch()
    assert workers() == []


def test_a_job_ends_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the system's."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    network = NetworkThread(FakeHistory)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    network.fetch()
    assert network.run_until_ended(1) == ["can't start new thread"]


def test_a_running_worker_takes_the_job_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job waits for it, and succeeds."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gate = threading.Event()
    network = NetworkThread(lambda: FakeHistory(1, gate=gate))
    network.fetch()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    network.fetch()
    gate.set()
    assert network.run_until_ended(2) == [None, None]


def test_a_job_that_is_cancelled_early_makes_no_call() -> None:
    """The worker has just connected then."""
    history = FakeHistory(1)
    connecting, cancelled = threading.Event(), threading.Event()

    def connect() -> FakeHistory:
        connecting.set()
        assert cancelled.wait(TIMEOUT)
        return history

    network = NetworkThread(connect)
    job = network.fetch()
    assert connecting.wait(TIMEOUT)
    job.cancel()
    cancelled.set()
    network.backfiller.close()
    assert (history.called.is_set(), history.closed) == (False, 1)
