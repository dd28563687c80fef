"""Reconnects of streams over real sockets: lost connections, refusals, and streams that hang."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from finx_streamer import (
    AuthenticationError,
    ConnectionFailed,
    ProtocolError,
    RateLimited,
    ReconnectPolicy,
    State,
    StreamNotFound,
)
from finx_streamer.connection.handshake_pool import MAX_CONCURRENT
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support import market
from tests.support.peers import (
    PAIR,
    PATIENCE,
    PONG,
    Caller,
    Peer,
    Script,
    Seen,
    close_frame,
    frame,
    free_port,
    hang,
    leave_after,
    raw_tick,
    refuse,
    stay,
    tick,
    ticks,
)

NEVER_AGAIN = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)


# One stream.


def test_connecting_is_retried_until_the_server_appears(seen: Seen) -> None:
    """Each refused connection is reported with the number of the attempt."""
    port = free_port()
    with seen.listener(f"ws://127.0.0.1:{port}/"):
        seen.wait_errors(3)
        with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}, port=port):
            seen.wait_ticks(1)
    assert [error.attempt for error in seen.errors[:3]] == [1, 2, 3]
    assert all(error.will_retry and error.retry_in == 0.01 for error in seen.of_type(ConnectionFailed)[:3])
    states = [state for _, state in seen.states]
    assert (states[:2], states[-1]) == ([State.CONNECTING, State.STREAMING], State.STOPPED)


def test_a_lost_connection_is_replaced(seen: Seen) -> None:
    """The stream continues on a new connection and reports the loss, however the connection was lost."""
    scripts = [
        leave_after(tick(0)),
        stay(tick(1), close_frame(1000)),
        stay(tick(2), close_frame(1011, b"oops")),
        stay(tick(3), frame("x", rsv=7)),
        lambda caller: (caller.welcome(tick(4)), caller.read_frame(), caller.reset()),
        stay(tick(5)),
    ]
    with Peer(*scripts) as peer, seen.listener(peer.url, ping_interval=0.05) as listener:
        seen.wait_ticks(6)
        assert listener.stats.reconnects == 5
        assert listener.state is State.STREAMING
    assert seen.prices == list(range(6))
    assert [type(error) for error in seen.errors] == [*[ConnectionFailed] * 3, ProtocolError, ConnectionFailed]
    assert [error.close_code for error in seen.of_type(ConnectionFailed)] == [None, 1000, 1011, None]
    assert all(error.will_retry for error in seen.of_type(ConnectionFailed))


def test_an_unanswered_handshake_is_retried(seen: Seen) -> None:
    """A hanging handshake fails after connect_timeout."""
    with Peer(hang, hang, stay(tick(7))) as peer, seen.listener(peer.url, connect_timeout=0.5):
        seen.wait_ticks(1)
    assert [(error.attempt, error.will_retry) for error in seen.of_type(ConnectionFailed)] == [(1, True), (2, True)]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_overrides_the_policy(seen: Seen, form: str) -> None:
    """After status 429, the wait is the one that the server asks for, as seconds or as a date."""
    later = 3_600 if form == "seconds" else datetime.now(UTC) + timedelta(hours=1)
    with LocalServer(Tape([raw_tick(1)]), keys={"demo"}) as server:
        server.refuse_next(1, 429, retry_after=later)
        listener = seen.listener(server.url).start()
        seen.wait_errors(1)
        assert listener.state is State.CONNECTING
        assert listener.stop()
    assert [type(error) for error in seen.errors] == [RateLimited]
    assert seen.of_type(RateLimited)[0].will_retry
    assert 3_500 < seen.of_type(RateLimited)[0].retry_in <= 3_601


def test_a_short_retry_after_is_respected(seen: Seen) -> None:
    """The client waits the second that the server asks for, although the policy would retry sooner."""
    times: list[float] = []

    def busy(caller: Caller) -> None:
        caller.read_request()
        times.append(time.monotonic())
        caller.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n")

    def ready(caller: Caller) -> None:
        times.append(time.monotonic())
        stay(tick(1))(caller)

    with Peer(busy, ready) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (refuse("401 Unauthorized"), AuthenticationError),
        (refuse("403 Forbidden"), AuthenticationError),
        (refuse("404 Not Found"), StreamNotFound),
        (stay(close_frame(1008, b"revoked")), AuthenticationError),
        (refuse("302 Found", "Location: wss://elsewhere.example/\r\n"), ConnectionFailed),
        (refuse("200 OK"), ProtocolError),
    ],
)
def test_a_fatal_error_ends_the_listener(seen: Seen, script: Script, kind: type[ConnectionFailed]) -> None:
    """After an error that a retry can't fix, such as a bad key, the state is FAILED and join() raises the error."""
    with Peer(script) as peer:
        listener = seen.listener(peer.url).start()
        with pytest.raises(kind) as caught:
            listener.join(PATIENCE)
        assert peer.accepted == 1
    assert listener.state is State.FAILED
    assert seen.errors == [caught.value]
    assert (caught.value.attempt, caught.value.will_retry, caught.value.retry_in) == (1, False, None)
    assert seen.states[-1] == (PAIR, State.FAILED)


@pytest.mark.parametrize("added_later", [False, True])
def test_an_unknown_pair_ends_only_its_own_stream(seen: Seen, dispatch: str, added_later: bool) -> None:
    """The others go on, and so does the listener."""
    server = LocalServer(SimulatedMarket([PAIR, "ETH:USDC"], rate=None, wait_for=1), keys={"demo"})
    symbols = [PAIR] if added_later else ["NO:SUCH", PAIR]
    with server, seen.listener(server.url, *symbols, dispatch=dispatch) as listener:
        seen.wait_ticks(1)
        if added_later:
            listener.add("NO:SUCH")
        seen.wait_for(lambda: ("NO:SUCH", State.FAILED) in seen.states)
        seen.wait_ticks(len(seen.ticks) + 100)
        listener.add("ETH:USDC")
        seen.wait_for(lambda: any(tick["pair"] == "ETH:USDC" for tick in seen.ticks))
        stats = listener.stats
        assert (listener.state, stats.streams["NO:SUCH"].state) == (State.STREAMING, State.FAILED)
        assert not listener.join(0.0)
    assert [(type(error), error.symbol) for error in seen.errors] == [(StreamNotFound, "NO:SUCH")]


def test_the_listener_ends_when_no_stream_is_left(seen: Seen) -> None:
    """Each unknown pair is reported. `join` raises the last one's error."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server:
        listener = seen.listener(server.url, "NO:SUCH", "NOR:THIS").start()
        with pytest.raises(StreamNotFound) as caught:
            listener.join(PATIENCE)
    assert listener.state is State.FAILED
    assert sorted(str(error.symbol) for error in seen.errors) == ["NO:SUCH", "NOR:THIS"]
    assert caught.value == seen.errors[-1]


def test_the_listener_ends_when_only_unknown_pairs_are_left(seen: Seen) -> None:
    """Because the last other pair was removed."""
    with LocalServer(SimulatedMarket([PAIR], rate=100.0), keys={"demo"}) as server:
        listener = seen.listener(server.url, PAIR, "NO:SUCH").start()
        seen.wait_for(lambda: ("NO:SUCH", State.FAILED) in seen.states)
        listener.remove(PAIR)
        with pytest.raises(StreamNotFound):
            listener.join(PATIENCE)
    assert listener.state is State.FAILED


def test_a_refused_key_ends_all_streams(seen: Seen) -> None:
    """All of them have the same key."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server:
        listener = seen.listener(server.url, PAIR).start()
        seen.wait_ticks(1)
        server.refuse_next(1, 401)
        listener.add("ETH:USDC")
        with pytest.raises(AuthenticationError) as caught:
            listener.join(PATIENCE)
    assert caught.value.symbol == "ETH:USDC"
    assert dict(seen.states) == {PAIR: State.STOPPED, "ETH:USDC": State.FAILED}


def test_stats_and_repr_say_why_there_is_no_connection(seen: Seen) -> None:
    """A stream that was never connected is connecting. The reason disappears with the next connection."""
    go_on = threading.Event()

    def later(caller: Caller) -> None:
        assert go_on.wait(PATIENCE)
        caller.welcome(tick(1))
        caller.wait_until_left()

    with Peer(refuse("503 Later"), later) as peer:
        listener = seen.listener(peer.url)
        assert listener.stats.last_error is None
        listener.start()
        seen.wait_errors(1)
        stats = listener.stats
        assert (stats.connection_errors, stats.streams[PAIR].connection_errors) == (1, 1)
        assert stats.last_error is stats.streams[PAIR].last_error is seen.errors[0]
        assert listener.state is State.CONNECTING
        assert f" connecting ({seen.errors[0].reason}): BTC:USDC at " in repr(listener)
        go_on.set()
        seen.wait_ticks(1)
        assert " streaming: BTC:USDC at " in repr(listener)
        assert listener.stats.last_error is seen.errors[0]
        assert listener.stop()


def test_attempts_limits_the_failures_in_a_row(seen: Seen) -> None:
    """With `attempts=3`, the third failure in a row ends the listener and says that no attempt follows."""
    policy = ReconnectPolicy(initial=0.01, jitter=False, attempts=3)
    listener = seen.listener(f"ws://127.0.0.1:{free_port()}/", reconnect=policy).start()
    with pytest.raises(ConnectionFailed, match="connection refused"):
        listener.join(PATIENCE)
    assert [(e.attempt, e.will_retry) for e in seen.of_type(ConnectionFailed)] == [(1, True), (2, True), (3, False)]
    assert listener.state is State.FAILED


def test_without_a_policy_there_is_one_connection(seen: Seen) -> None:
    """With `reconnect=None`, the listener ends with its first connection, even after a normal close."""
    with Peer(stay(tick(1), close_frame(1000))) as peer:
        listener = seen.listener(peer.url, reconnect=None).start()
        with pytest.raises(ConnectionFailed, match="normally"):
            listener.join(PATIENCE)
        assert peer.accepted == 1
    assert seen.prices == [1]


def test_a_listener_survives_a_restart_of_the_server(seen: Seen) -> None:
    """After close code 1001, the listener reconnects to the server on the same port."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server, seen.listener(server.url):
        seen.wait_ticks(1)
        server.stop()
        seen.wait_errors(2)
        server.start()
        seen.wait_ticks(2)
    assert seen.of_type(ConnectionFailed)[0].close_code == 1001


# Several streams.


def test_a_connected_stream_ends_the_backoff_of_the_others(seen: Seen) -> None:
    """The streams share a network, so if one connects, the others retry at once."""
    pairs = ("BTC:USDC", "ETH:USDC", "SOL:USDC")
    with (
        LocalServer(market.Market(*pairs), keys={"demo"}) as server,
        seen.listener(server.url, *pairs[:2], reconnect=NEVER_AGAIN) as listener,
    ):
        server.wait_connected(2)
        server.drop_connections()
        seen.wait_for(lambda: {(pair, State.RECONNECTING) for pair in pairs[:2]} <= set(seen.states))
        listener.add(pairs[2])
        server.wait_connected(3)


def test_a_hanging_stream_does_not_delay_the_others(seen: Seen) -> None:
    """The other streams connect while one waits in its handshake."""

    def script(caller: Caller) -> None:
        if "DEAD" in caller.read_request().decode():
            caller.wait_until_left()
        caller.welcome(ticks(1, 100, "LIVE:USD"))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, "DEAD:USD", "LIVE:USD"):
        seen.wait_ticks(100)
    assert seen.errors == []


def test_hanging_handshakes_free_their_places(seen: Seen) -> None:
    """If hanging handshakes fill the pool, waiting handshakes start after connect_timeout."""
    dead = [f"DEAD{number}:USD" for number in range(MAX_CONCURRENT)]

    def script(caller: Caller) -> None:
        if "DEAD" in caller.read_request().decode():
            caller.wait_until_left()
        caller.welcome(tick(1, "LIVE:USD"))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, *dead, "LIVE:USD", connect_timeout=1.0, reconnect=NEVER_AGAIN):
        seen.wait_ticks(1)


def test_removing_hanging_streams_frees_their_places(seen: Seen) -> None:
    """Once its stream is removed, even a handshake that can't be interrupted doesn't take a place in the pool."""
    hung = [f"DEAD{number}:USD" for number in range(MAX_CONCURRENT)]
    release, stuck = threading.Event(), threading.Semaphore(0)

    def key() -> str:
        if not release.is_set():
            stuck.release()
            free.wait(PATIENCE)
        return "demo"

    free = threading.Event()
    with Peer(stay(tick(1, "LIVE:USD"))) as peer:
        try:
            with seen.listener(peer.url, *hung, "LIVE:USD", api_key=key, connect_timeout=3_600.0) as listener:
                for _ in hung:
                    assert stuck.acquire(timeout=PATIENCE)
                release.set()
                listener.remove(*hung)
                seen.wait_ticks(1)
        finally:
            free.set()


def test_reconnects_leave_no_deadlines_behind(seen: Seen) -> None:
    """The loop's heap doesn't grow with each reconnect."""
    pings = threading.Semaphore(0)

    def answer(caller: Caller) -> None:
        caller.welcome()
        while True:
            caller.read_frame()
            caller.send(frame(b"", PONG))
            pings.release()

    bounds = {"ping_interval": 0.3, "connect_timeout": 0.3}
    policy = ReconnectPolicy(initial=0.0)
    with Peer(*[leave_after()] * 40, answer) as peer, seen.listener(peer.url, reconnect=policy, **bounds) as listener:
        for _ in range(4):
            assert pings.acquire(timeout=PATIENCE)
        # Private, because from outside, the heap shows only as a slow leak.
        assert len(listener._run.streams.loop._deadlines) <= 5  # type: ignore[union-attr]


def test_long_intervals_do_not_fill_the_heap(seen: Seen) -> None:
    """Deadlines a day ahead are removed with their connections, not a day later."""
    policy = ReconnectPolicy(initial=0.0)
    with (
        Peer(*[leave_after()] * 150, stay(tick(1))) as peer,
        seen.listener(peer.url, reconnect=policy, ping_interval=86_400.0) as listener,
    ):
        seen.wait_ticks(1)
        assert len(listener._run.streams.loop._deadlines) <= 70  # type: ignore[union-attr]
