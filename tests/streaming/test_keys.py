"""Keys over real sockets: when a listener asks for one, and what it does after a refusal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from finx_streamer import AuthenticationError, ConnectionFailed, State
from finx_streamer.server import LocalServer, Tape
from finx_streamer.streaming import session
from tests.support.peers import (
    PATIENCE,
    Caller,
    Peer,
    Script,
    Seen,
    close_frame,
    leave_after,
    raw_tick,
    refuse,
    stay,
    tick,
)


def key_source(*outcomes: str | BaseException) -> Callable[[], str]:
    """A key callable that returns or raises these, one per call."""
    remaining = iter(outcomes)

    def key() -> str:
        outcome = next(remaining)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return key


def test_the_callable_is_called_for_every_attempt(seen: Seen) -> None:
    """Each attempt uses the key that the callable returns for it."""
    with (
        Peer(leave_after(tick(1)), leave_after(tick(2)), stay(tick(3))) as peer,
        seen.listener(peer.url, api_key=key_source("first", "second", "third")),
    ):
        seen.wait_ticks(3)
        paths = [request.split()[1] for request in peer.requests]
    assert paths == [b"/streaming/%s/BTC:USDC" % key for key in (b"first", b"second", b"third")]


def test_a_revoked_key_is_replaced(seen: Seen) -> None:
    """After close code 1008, the listener continues if the callable returns another key."""
    with LocalServer(Tape([raw_tick(n) for n in range(2)], speed=None), keys={"old", "new"}) as server:
        keys = ["old"]
        with seen.listener(server.url, api_key=lambda: keys[-1]) as listener:
            server.wait_connected()
            keys.append("new")
            assert server.revoke_key("old") == 1
            seen.wait_for(lambda: [s for _, s in seen.states].count(State.STREAMING) == 2)
            assert listener.state is State.STREAMING
    assert [(e.close_code, e.will_retry) for e in seen.of_type(AuthenticationError)] == [(1008, True)]


@pytest.mark.parametrize("script", [stay(close_frame(1008)), refuse("401 Unauthorized")])
def test_a_refused_key_is_not_tried_again(seen: Seen, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the callable returns no other key, within a few seconds after a revocation, the listener fails."""
    monkeypatch.setattr(session, "NEW_KEY_TIMEOUT", 0.3)
    with Peer(script) as peer:
        listener = seen.listener(peer.url, api_key=lambda: "demo").start()
        with pytest.raises(AuthenticationError):
            listener.join(PATIENCE)
        assert peer.accepted == 1


def test_a_key_refused_in_the_handshake_is_replaced(seen: Seen) -> None:
    """After status 401 for the old key, the listener tries the new one."""
    with Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer:
        with seen.listener(peer.url, api_key=key_source("old", "new")):
            seen.wait_ticks(1)
        assert b"/streaming/new/" in peer.requests[1]


def test_a_refusal_is_reported_even_if_the_callable_fails(seen: Seen) -> None:
    """Status 401 is reported as AuthenticationError, even if the callable raises when it is asked for another key."""
    key = key_source("old", OSError("vault sealed"), "new")
    with Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer, seen.listener(peer.url, api_key=key):
        seen.wait_ticks(1)
    assert [(error.status, error.will_retry) for error in seen.of_type(AuthenticationError)] == [(401, True)]


def test_a_callable_that_raises_is_called_again(seen: Seen) -> None:
    """The reported error has the callable's exception as its cause."""
    key = key_source(OSError("vault sealed"), "demo")
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=key):
        seen.wait_ticks(1)
    assert [type(error.__cause__) for error in seen.errors] == [OSError]
    assert seen.of_type(ConnectionFailed)[0].will_retry


def test_a_callable_that_raises_system_exit_fails_its_attempt(seen: Seen) -> None:
    """SystemExit in the callable fails the attempt at once, not at the deadline."""
    key = key_source(SystemExit(1), "demo")
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=key, connect_timeout=3_600.0):
        seen.wait_ticks(1)
    assert "SystemExit" in str(seen.errors[0])


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("cause", [SystemExit(1), KeyboardInterrupt()])
def test_a_callable_that_raises_after_a_refusal_fails_its_attempt(seen: Seen, cause: BaseException) -> None:
    """The refusal is reported at once, not a timeout at the deadline, and the next attempt asks for a key again."""
    key = key_source("old", cause, "new")
    with (
        Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer,
        seen.listener(peer.url, api_key=key, connect_timeout=3_600.0),
    ):
        seen.wait_ticks(1)
    (refusal,) = seen.errors
    assert (type(refusal), refusal.status, refusal.will_retry) == (AuthenticationError, 401, True)


@pytest.mark.parametrize("key", [lambda: None, lambda: "", lambda: 7, lambda: "white space"])
def test_a_callable_that_returns_no_key_ends_the_listener(seen: Seen, key: Any) -> None:
    """If the callable returns something that can't be a key, the listener fails without connecting."""
    with Peer(stay()) as peer:
        listener = seen.listener(peer.url, api_key=key).start()
        with pytest.raises(AuthenticationError):
            listener.join(PATIENCE)
        assert peer.accepted == 0


def test_the_environment_is_read_for_every_attempt(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without api_key, each attempt reads FINX_API_KEY when it starts."""
    monkeypatch.setenv("FINX_API_KEY", "morning")
    release = threading.Event()

    def first(caller: Caller) -> None:
        caller.welcome(tick(1))
        release.wait(PATIENCE)

    with Peer(lambda caller: (first(caller), caller.leave()), stay(tick(2))) as peer:
        with seen.listener(peer.url, api_key=None):
            seen.wait_ticks(1)
            monkeypatch.setenv("FINX_API_KEY", "evening")
            release.set()
            seen.wait_ticks(2)
        assert [request.split(b"/")[2] for request in peer.requests] == [b"morning", b"evening"]
