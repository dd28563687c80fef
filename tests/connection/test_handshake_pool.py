"""The handshake pool: its limit, and handshakes that hang or are cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.connection.attempt import Attempt, ConnectionConfig
from finx_streamer.connection.handshake_pool import MAX_CONCURRENT, Handshake, HandshakePool
from finx_streamer.connection.loop import EventLoop
from finx_streamer.connection.websocket import Connection
from finx_streamer.errors import ConnectionFailed
from tests.support.peers import PATIENCE, Caller, Peer, stay


class Requester:
    """Records the outcomes of its handshakes, and closes the connections."""

    def __init__(self) -> None:
        self.outcomes: SimpleQueue[Connection | ConnectionFailed] = SimpleQueue()

    def handshake_ended(self, handshake: Handshake, outcome: Connection | ConnectionFailed) -> None:
        if isinstance(outcome, Connection):
            outcome.disconnect()
        self.outcomes.put(outcome)


class Pool:
    """A handshake pool with its own event loop."""

    def __init__(self) -> None:
        self.requester = Requester()
        self.loop = EventLoop("pool-of-a-test", lambda: self.handshakes.close(), lambda crash: None)
        self.handshakes = HandshakePool(self.loop, "pool-of-a-test")
        self.loop.start()

    def request(self, url: str, key: Callable[[], str] | str = "demo", timeout: float = PATIENCE) -> Handshake:
        """Request a handshake."""
        config = ConnectionConfig(Endpoint(url), None, KeySource.from_argument(key), timeout, Any)  # type: ignore[arg-type]
        handshake = Handshake(config, Attempt(), self.requester)
        self.loop.post(lambda: self.handshakes.request(handshake))
        return handshake

    def outcome(self) -> Connection | ConnectionFailed:
        """The next outcome."""
        return self.requester.outcomes.get(timeout=PATIENCE)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A running pool. Checks that its loop ends."""
    one = Pool()
    yield one
    one.loop.stop()
    one.loop.join(PATIENCE)
    assert not one.loop.alive


def test_a_handshake_opens_a_connection(pool: Pool) -> None:
    """The requester gets the open connection."""
    with Peer(stay()) as peer:
        pool.request(peer.url)
        assert isinstance(pool.outcome(), Connection)


def test_the_number_of_concurrent_handshakes_is_limited(pool: Pool) -> None:
    """Further handshakes wait, and their timeouts start only when they do."""
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


def test_a_hanging_key_callable_fails_its_handshake(pool: Pool) -> None:
    """A hanging callable can't be interrupted, so its handshake fails at the timeout and frees its place."""
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
    """A handshake that is cancelled while its key callable runs doesn't connect afterwards."""
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
        for worker in list(pool.handshakes._workers):
            worker.join(PATIENCE)
        assert pool.requester.outcomes.empty()
        assert peer.accepted == 1


def test_a_cancelled_request_never_starts(pool: Pool) -> None:
    """A request that is cancelled in the queue leaves it."""
    with Peer(lambda caller: caller.wait_until_left()) as peer:
        running = [pool.request(peer.url) for _ in range(MAX_CONCURRENT)]
        peer.wait_accepted(MAX_CONCURRENT)
        waiting = pool.request(peer.url)
        for handshake in (waiting, *running):
            pool.loop.post(lambda handshake=handshake: pool.handshakes.cancel(handshake))  # type: ignore[misc]
        pool.request(peer.url)
        peer.wait_accepted(MAX_CONCURRENT + 1)
        assert waiting.pool is None


def test_cancelling_many_handshakes_starts_no_other(pool: Pool) -> None:
    """Those that would be next are about to be cancelled, too."""
    with Peer(lambda caller: caller.wait_until_left()) as peer:
        handshakes = [pool.request(peer.url) for _ in range(10 * MAX_CONCURRENT)]
        peer.wait_accepted(MAX_CONCURRENT)

        def cancel_all() -> None:
            for handshake in handshakes:
                pool.handshakes.cancel(handshake)

        pool.loop.post(cancel_all)
        pool.request(peer.url)
        peer.wait_accepted(MAX_CONCURRENT + 1)
        pool.loop.stop()
        pool.loop.join(PATIENCE)
        assert peer.accepted == MAX_CONCURRENT + 1
