"""Keys over real sockets: when a listener asks for one, and what it does after a refusal."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from finx_streamer import (
    AuthenticationError,
    ConnectionFailed,
    State,
)
from finx_streamer.server import LocalServer, Tape
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


def test_the_key_is_asked_for_at_every_attempt(seen: Seen) -> None:
    """A callable gives each attempt its key."""
    keys = iter(["first", "second", "third"])
    with (
        Peer(leave_after(tick(1)), leave_after(tick(2)), stay(tick(3))) as peer,
        seen.listener(peer.url, api_key=lambda: next(keys)),
    ):
        seen.wait_ticks(3)
        paths = [request.split()[1] for request in peer.requests]
    assert paths == [b"/streaming/%s/BTC:USDC" % key for key in (b"first", b"second", b"third")]


def test_a_revoked_key_is_replaced(seen: Seen) -> None:
    """Close 1008 is not the end where the callable has another key."""
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
def test_a_callable_that_has_no_other_key_ends_the_listener(seen: Seen, script: Script) -> None:
    """A refused key is not offered again."""
    with Peer(script) as peer:
        listener = seen.listener(peer.url, api_key=lambda: "demo").start()
        with pytest.raises(AuthenticationError):
            listener.join(PATIENCE)
        assert peer.accepted == 1


def test_a_key_that_rotated_meanwhile_is_tried(seen: Seen) -> None:
    """401 for the old key is followed by an attempt with the new one."""
    keys = iter(["old", "new"])
    with Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer:
        with seen.listener(peer.url, api_key=lambda: next(keys)):
            seen.wait_ticks(1)
        assert b"/streaming/new/" in peer.requests[1]


def test_a_refusal_is_told_though_the_callable_fails(seen: Seen) -> None:
    """401 is reported as what it is, even where asking for another key raises."""
    answers = iter(["old", OSError("vault sealed"), "new"])

    def key() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer, seen.listener(peer.url, api_key=key):
        seen.wait_ticks(1)
    assert [(error.status, error.will_retry) for error in seen.of_type(AuthenticationError)] == [(401, True)]


def test_a_callable_that_raises_is_asked_again(seen: Seen) -> None:
    """A vault that is out of reach is reported with the cause, and asked again."""
    answers = iter([OSError("vault sealed"), "demo"])

    def key() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=key):
        seen.wait_ticks(1)
    assert [type(error.__cause__) for error in seen.errors] == [OSError]
    assert seen.of_type(ConnectionFailed)[0].will_retry


def test_a_callable_that_wants_to_exit_blocks_no_place(seen: Seen) -> None:
    """SystemExit in the key callable is a failed attempt like any other, at once and not at the deadline."""
    answers = iter([SystemExit(1), "demo"])

    def key() -> str:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=key, connect_timeout=3_600.0):
        seen.wait_ticks(1)
    assert "SystemExit" in str(seen.errors[0])


@pytest.mark.parametrize("key", [lambda: None, lambda: "", lambda: 7, lambda: "white space"])
def test_a_callable_without_a_usable_key_ends_the_listener(seen: Seen, key: Any) -> None:
    """No key, and one that can't be one, is an AuthenticationError and no connection is made."""
    with Peer(stay()) as peer:
        listener = seen.listener(peer.url, api_key=key).start()
        with pytest.raises(AuthenticationError):
            listener.join(PATIENCE)
        assert peer.accepted == 0


def test_the_environment_is_read_at_every_attempt(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without api_key, FINX_API_KEY is read when an attempt begins."""
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
