"""Calls that fail: errors from the server, lost connections, retries, timeouts and refused keys."""

from __future__ import annotations

import json
import threading

import pytest

from finx_streamer import (
    AuthenticationError,
    CallTimeout,
    ConnectionFailed,
    DecodeError,
    FunctionClient,
    FunctionError,
    ReconnectPolicy,
)
from tests.support.calls import ClientFactory, answer, answer_one, call_echo, wait_until
from tests.support.peers import BINARY, PATIENCE, QUICK, Caller, Peer, Script, close_frame, frame, free_port, refuse

# Answers.


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame("[1]"), "a list"),
        (frame("nonsense"), "not JSON"),
        (frame("null"), "null"),
        (frame(b"\x00\x01", BINARY), "binary"),
        (frame("[" * 200_000), "not JSON|nested"),
    ],
)
def test_an_answer_must_be_an_object(make_client: ClientFactory, sent: bytes, reason: str) -> None:
    """Any other answer raises DecodeError and closes the connection."""
    with Peer(answer(lambda request: sent), answer()) as peer, make_client(peer) as client:
        with pytest.raises(DecodeError, match=reason):
            call_echo(client, 1)
        assert call_echo(client, 2) == 2
        assert peer.accepted == 2


@pytest.mark.parametrize(
    "sent",
    ['{"error":"no such thing"}', '{"errors":"no such thing"}', '{"results":"error","resultData":"no such thing"}'],
)
def test_an_error_from_the_server_keeps_the_connection(make_client: ClientFactory, sent: str) -> None:
    """The exception names the function, its arguments and the server's message."""
    with Peer(answer(lambda request: frame(sent))) as peer, make_client(peer) as client:
        for _ in range(2):
            with pytest.raises(FunctionError, match=r"^echo\(number=1\): no such thing$") as caught:
                call_echo(client, 1)
        assert type(caught.value) is FunctionError
        assert peer.accepted == 1


# Lost connections and retries.

LOSSES: dict[str, Script] = {
    "no welcome": lambda caller: caller.leave(),
    "left": lambda caller: (caller.welcome(), caller.read_frame(), caller.leave()),  # type: ignore[func-returns-value]
    "reset": lambda caller: (caller.welcome(), caller.read_frame(), caller.reset()),  # type: ignore[func-returns-value]
    "restart": lambda caller: (caller.welcome(close_frame(1012)), caller.wait_until_left()),  # type: ignore[func-returns-value]
    "busy": refuse("503 Busy"),
    "half an answer": lambda caller: (  # type: ignore[func-returns-value]
        caller.welcome(),
        caller.read_frame(),
        caller.send(frame('{"echo":1}', announced=500)),
        caller.leave(),
    ),
    "bad frame": lambda caller: (caller.welcome(frame("{}", rsv=4)), caller.wait_until_left()),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_call_is_retried_on_a_new_connection(make_client: ClientFactory, loss: Script) -> None:
    """An unanswered call can be sent again, because functions only read."""
    with Peer(loss, loss, answer()) as peer, make_client(peer) as client:
        assert call_echo(client, 5) == 5
        assert peer.accepted == 3


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_without_a_policy_a_call_is_not_retried(make_client: ClientFactory, loss: Script) -> None:
    """With `reconnect=None`, the first failure is raised."""
    with Peer(loss) as peer, make_client(peer, reconnect=None) as client:
        with pytest.raises(ConnectionFailed) as caught:
            call_echo(client, 5)
        assert (caught.value.attempt, caught.value.will_retry) == (1, False)
        assert peer.accepted == 1


def test_each_call_has_its_own_attempts(make_client: ClientFactory) -> None:
    """The policy's `attempts` limits each call, not the client."""
    policy = ReconnectPolicy(initial=0.01, attempts=3)
    with Peer(refuse("503 Busy")) as peer, make_client(peer, reconnect=policy) as client:
        for accepted in (3, 6):
            with pytest.raises(ConnectionFailed, match="attempt 3, no further attempt"):
                call_echo(client, 1)
            assert peer.accepted == accepted


def test_a_long_backoff_is_shortened_to_the_time_left(make_client: ClientFactory) -> None:
    """If the policy's wait is longer than the time left, the call is still retried within its timeout."""
    policy = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)
    with Peer(refuse("503 Busy"), answer()) as peer:
        assert call_echo(make_client(peer, reconnect=policy, timeout=2.0), 1) == 1


def test_a_long_retry_after_ends_the_call(make_client: ClientFactory) -> None:
    """If the server asks for a longer wait than the time left, the call fails at once."""
    with (
        Peer(refuse("503 Busy", "Retry-After: 3600\r\n")) as peer,
        pytest.raises(ConnectionFailed, match="503"),
    ):
        call_echo(make_client(peer), 1)


def test_a_refused_connection_is_retried_until_the_timeout() -> None:
    """When the timeout expires, the call raises the connection's error."""
    with FunctionClient("demo", f"ws://127.0.0.1:{free_port()}/", timeout=0.2, reconnect=QUICK) as client:
        with pytest.raises(ConnectionFailed, match="refused") as caught:
            call_echo(client, 1)
        assert caught.value.attempt > 1


# Slow answers and timeouts.


def answer_slowly(pieces: int, pause: float) -> Script:
    """A script that answers the first call at once, and the second in pieces with a pause after each."""

    def script(caller: Caller) -> None:
        answer_one(caller)
        caller.read_frame()
        whole = frame(json.dumps({"echo": 2, "more": "x" * pieces * 10}))
        size = len(whole) // pieces + 1
        for start in range(0, len(whole), size):
            caller.send(whole[start : start + size])
            threading.Event().wait(pause)
        caller.wait_until_left()

    return script


def test_progress_of_an_answer_restarts_the_timeout(make_client: ClientFactory) -> None:
    """A slow answer doesn't time out while more of it arrives."""
    with Peer(answer_slowly(15, 0.1)) as peer:
        client = make_client(peer)
        assert call_echo(client, 1) == 1
        client._timeout = 1.0
        assert call_echo(client, 2) == 2


def test_an_endless_answer_times_out(make_client: ClientFactory) -> None:
    """The error reports how much of the answer arrived."""
    with Peer(answer_slowly(10_000, 0.01)) as peer:
        client = make_client(peer)
        assert call_echo(client, 1) == 1
        client._timeout = 0.2
        with pytest.raises(CallTimeout, match=r"[0-9,]+ bytes had arrived"):
            call_echo(client, 2)


def test_the_timeout_bounds_the_handshake(make_client: ClientFactory) -> None:
    """If the server doesn't complete the handshake, the call times out and the handshake is cancelled."""
    with Peer(lambda caller: caller.wait_until_left()) as peer, make_client(peer, timeout=0.2) as client:
        with pytest.raises(CallTimeout, match="still connecting"):
            call_echo(client, 1)
        wait_until(lambda: not any(worker.is_alive() for worker in client._calls._scheduler.handshakes._workers))


def test_connect_timeout_ends_one_attempt(make_client: ClientFactory) -> None:
    """After `connect_timeout`, the call tries again with a new connection."""
    with (
        Peer(lambda caller: caller.wait_until_left(), answer()) as peer,
        make_client(peer, connect_timeout=0.2) as client,
    ):
        assert call_echo(client, 1) == 1


# Keys.


def test_a_hanging_key_callable_times_out(make_client: ClientFactory) -> None:
    """The callable runs on a handshake thread, so it can't block the caller."""
    release = threading.Event()

    def hang() -> str:
        release.wait(PATIENCE)
        return "demo"

    with Peer(answer()) as peer, make_client(peer, api_key=hang, timeout=0.1, reconnect=None) as client:
        with pytest.raises(CallTimeout):
            call_echo(client, 1)
        release.set()
        wait_until(lambda: not any(worker.is_alive() for worker in client._calls._scheduler.handshakes._workers))
        client._timeout = PATIENCE
        assert call_echo(client, 2) == 2


@pytest.mark.parametrize("status", ["401 No", "403 No"])
def test_a_refused_key_is_fatal(make_client: ClientFactory, status: str) -> None:
    """Without another key, the call isn't retried."""
    with Peer(refuse(status)) as peer, make_client(peer) as client:
        with pytest.raises(AuthenticationError):
            call_echo(client, 1)
        assert peer.accepted == 1


@pytest.mark.parametrize(
    "refusal",
    [refuse("401 No"), lambda caller: (caller.welcome(close_frame(1008)), caller.wait_until_left())],
    ids=["401", "1008"],
)
def test_a_refused_key_is_replaced(make_client: ClientFactory, refusal: Script) -> None:
    """After a refusal, the callable is asked again, and its next key is used."""
    keys = iter(["old", "new"])
    with Peer(refusal, answer()) as peer, make_client(peer, api_key=lambda: next(keys)) as client:
        assert call_echo(client, 1) == 1
        assert [request.split(b" ")[1].split(b"/")[-1] for request in peer.requests] == [b"old", b"new"]


def test_a_refused_key_is_not_tried_again(make_client: ClientFactory) -> None:
    """If the callable returns the same key again, the call fails."""
    with Peer(refuse("401 No")) as peer, make_client(peer, api_key=lambda: "demo") as client:
        with pytest.raises(AuthenticationError):
            call_echo(client, 1)
        assert peer.accepted == 1
