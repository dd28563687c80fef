"""The handshake pool: how many run at a time, and what happens to those that hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.connection.attempt import Attempt, ConnectionConfig
from finx_streamer.connection.handshakes import MAX_CONCURRENT, Handshake, Handshakes
from finx_streamer.connection.loop import EventLoop
from finx_streamer.connection.websocket import Connection
from finx_streamer.errors import ConnectionFailed
from tests.support.peers import PATIENCE, Caller, Peer, stay


class Requester:
    """Keeps the outcomes of its handshakes, and closes what opened."""

    def __init__(self) -> None:
        self.outcomes: SimpleQueue[Connection | ConnectionFailed] = SimpleQueue()

    def handshake_ended(self, handshake: Handshake, outcome: Connection | ConnectionFailed) -> None:
        if isinstance(outcome, Connection):
            outcome.disconnect()
        self.outcomes.put(outcome)


class Pool:
    """A handshake pool on a loop of its own."""

    def __init__(self) -> None:
        self.requester = Requester()
        self.loop = EventLoop("pool-of-a-test", lambda: self.handshakes.close(), lambda crash: None)
        self.handshakes = Handshakes(self.loop, "pool-of-a-test")
        self.loop.start()

    def request(self, url: str, key: Callable[[], str] | str = "demo", timeout: float = PATIENCE) -> Handshake:
        """Ask for a handshake."""
        config = ConnectionConfig(Endpoint(url), None, KeySource.from_argument(key), timeout, Any)  # type: ignore[arg-type]
        handshake = Handshake(config, Attempt(), self.requester)
        self.loop.post(lambda: self.handshakes.request(handshake))
        return handshake

    def outcome(self) -> Connection | ConnectionFailed:
        """The next outcome."""
        return self.requester.outcomes.get(timeout=PATIENCE)


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.loop.stop()
    made.loop.join(PATIENCE)
    assert not made.loop.alive


def test_a_handshake_opens_a_connection(pool: Pool) -> None:
    """The requester gets it."""
    with Peer(stay()) as peer:
        pool.request(peer.url)
        assert isinstance(pool.outcome(), Connection)


def test_few_handshakes_run_at_a_time(pool: Pool) -> None:
    """The others wait, and their time doesn't run meanwhile."""
    allowed = threading.Event()

    def slow(caller: Caller) -> None:
        assert allowed.wait(PATIENCE)
        stay()(caller)

    with Peer(slow) as peer:
        handshakes = [pool.request(peer.url) for _ in range(MAX_CONCURRENT + 3)]
        peer.wait_accepted(MAX_CONCURRENT)
        assert [handshake.pool is None for handshake in handshakes] == [False] * MAX_CONCURRENT + [True] * 3
        assert {handshake.deadline for handshake in handshakes[-3:]} == {float("inf")}
        allowed.set()
        assert all(isinstance(pool.outcome(), Connection) for _ in handshakes)
        assert peer.accepted == len(handshakes)


def test_a_stuck_handshake_is_given_up(pool: Pool) -> None:
    """A key callable that hangs can't be interrupted. The handshake fails without it, and others can run."""
    free = threading.Event()

    def hang() -> str:
        free.wait(PATIENCE)
        return "demo"

    with Peer(stay()) as peer:
        for _ in range(MAX_CONCURRENT):
            pool.request(peer.url, hang, timeout=0.05)
        errors = [pool.outcome() for _ in range(MAX_CONCURRENT)]
        assert {str(error).partition(" (")[0] for error in errors} == {
            "no connection within 0.05 s: name resolution or the api_key callable hangs"
        }
        pool.request(peer.url)
        assert isinstance(pool.outcome(), Connection)
        free.set()


def test_a_cancelled_handshake_has_no_outcome(pool: Pool) -> None:
    """It doesn't connect any more either."""
    asked, free = threading.Event(), threading.Event()

    def slow_key() -> str:
        asked.set()
        assert free.wait(PATIENCE)
        return "demo"

    with Peer(stay()) as peer:
        cancelled = pool.request(peer.url, slow_key)
        assert asked.wait(PATIENCE)
        pool.loop.post(lambda: pool.handshakes.cancel(cancelled))
        pool.loop.post(free.set)
        pool.request(peer.url)
        assert isinstance(pool.outcome(), Connection)
        while any(worker.is_alive() for worker in pool.handshakes._workers):
            assert pool.loop.alive
        assert pool.requester.outcomes.empty()
        assert peer.accepted == 1


def test_a_cancelled_request_never_starts(pool: Pool) -> None:
    """Its place in the queue is free."""
    with Peer(lambda caller: caller.wait_until_left()) as peer:
        running = [pool.request(peer.url) for _ in range(MAX_CONCURRENT)]
        peer.wait_accepted(MAX_CONCURRENT)
        waiting = pool.request(peer.url)
        for handshake in (waiting, *running):
            pool.loop.post(lambda handshake=handshake: pool.handshakes.cancel(handshake))  # type: ignore[misc]
        pool.request(peer.url)
        peer.wait_accepted(MAX_CONCURRENT + 1)
        assert waiting.pool is None
