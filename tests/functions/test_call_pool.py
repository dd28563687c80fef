"""The connections that function calls share: who gets which answer, and what becomes of them when something fails."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finx_streamer import (
    AuthenticationError,
    CallTimeout,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FunctionClient,
    FunctionError,
    ReconnectPolicy,
)
from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.connection.attempt import ConnectionConfig
from finx_streamer.functions.call_pool import CallPool
from finx_streamer.functions.call_scheduler import PoolSettings
from tests.support.calls import answer, answer_calls, echo
from tests.support.peers import (
    BINARY,
    CLOSE,
    PATIENCE,
    PING,
    PONG,
    QUICK,
    Caller,
    Peer,
    Script,
    close_frame,
    frame,
    free_port,
    refuse,
)


def keeper_threads(name: str) -> list[str]:
    """The threads of a client that live."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(name)]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what gives no sign of itself."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def client() -> Iterator[Callable[..., FunctionClient]]:
    """Makes clients, and looks that none leaves anything behind."""
    made: list[FunctionClient] = []

    def make(peer: Peer, **settings: Any) -> FunctionClient:
        defaults = {"api_key": "demo", "endpoint": peer.url, "timeout": PATIENCE, "reconnect": QUICK}
        made.append(FunctionClient(**{**defaults, "name": f"client-of-a-test-{len(made)}", **settings}))
        return made[-1]

    yield make
    for one in made:
        one.close()
    until(lambda: not keeper_threads("client-of-a-test"))


def number(client: FunctionClient, value: int) -> Any:
    """What the server says to a number: the same, if the answer is this call's."""
    return client.call("echo", number=value)["echo"]


# One after another.


def test_a_connection_is_used_again(client: Callable[..., FunctionClient]) -> None:
    """Calls one after another use one connection, at the path for functions."""
    with Peer(answer()) as peer, client(peer) as calls:
        assert list(range(20)) == [number(calls, value) for value in range(20)]
        assert peer.accepted == 1
        assert peer.requests[0].split(b"\r\n")[0] == b"GET /streamer/demo HTTP/1.1"


def test_a_request_is_what_finx_documents(client: Callable[..., FunctionClient]) -> None:
    """The function's name, its arguments and the key, in one JSON object."""
    seen: list[dict[str, Any]] = []

    def note(request: dict[str, Any]) -> bytes:
        seen.append(request)
        return frame("{}")

    with Peer(answer(note)) as peer, client(peer) as calls:
        assert calls.call("referenceData", securityId="BTC") == {}
    assert seen == [{"functionName": "referenceData", "securityId": "BTC", "APIKey": "demo"}]


@pytest.mark.parametrize("glued", [True, False], ids=["glued", "apart"])
def test_pings_between_calls_and_within_are_answered(client: Callable[..., FunctionClient], glued: bool) -> None:
    """The server finds a live client, whether a call waits or the connection is idle."""
    pongs: list[bytes] = []
    idle = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.read_frame()
        caller.send(frame(b"within", PING), *([frame('{"echo":1}')] if glued else []))
        pongs.append(caller.read_frame()[1])
        if not glued:
            caller.send(frame('{"echo":1}'))
        assert idle.wait(PATIENCE)
        for _ in range(3):
            caller.send(frame(b"idle", PING))
            opcode, payload = caller.read_frame()
            assert opcode == PONG
            pongs.append(payload)
        answer_calls(caller)

    with Peer(script) as peer, client(peer) as calls:
        assert number(calls, 1) == 1
        idle.set()
        until(lambda: len(pongs) == 4)
        assert number(calls, 2) == 2
        assert peer.accepted == 1
    assert pongs == [b"within"] + [b"idle"] * 3


def test_a_large_answer_in_pieces(client: Callable[..., FunctionClient]) -> None:
    """An answer of a megabyte, in fragments with a ping between, arrives whole."""
    text = json.dumps({"echo": "x" * 1_000_000})

    def pieces(request: dict[str, Any]) -> bytes:
        return frame(text[:10], fin=False) + frame(b"", PING) + frame(text[10:], 0)

    with Peer(answer(pieces)) as peer, client(peer) as calls:
        assert number(calls, 0) == "x" * 1_000_000


def test_a_large_request(client: Callable[..., FunctionClient]) -> None:
    """What does not fit into the system's buffers at once is sent all the same."""
    with Peer(answer(lambda request: frame(json.dumps({"size": len(request["text"])})))) as peer:
        assert client(peer).call("long", text="y" * 900_000) == {"size": 900_000}


# Many at once.


def test_threads_get_their_own_answers(client: Callable[..., FunctionClient]) -> None:
    """Eight threads share three connections, and nobody gets what another one asked for."""
    wrong: list[object] = []

    def work(first: int) -> None:
        wrong.extend(value for value in range(first, first + 150) if number(calls, value) != value)

    with Peer(answer()) as peer, client(peer, connections=3) as calls:
        threads = [threading.Thread(target=work, args=(1_000 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert wrong == []
        assert 1 <= peer.accepted <= 3


def test_who_finds_all_connections_busy_waits_for_one(client: Callable[..., FunctionClient]) -> None:
    """There are never more than were allowed."""
    release = threading.Event()

    def slow(request: dict[str, Any]) -> bytes:
        assert release.wait(PATIENCE)
        return echo(request)

    with Peer(answer(slow)) as peer, client(peer, connections=1) as calls:
        got: list[object] = []
        threads = [threading.Thread(target=lambda n=n: got.append(number(calls, n))) for n in range(4)]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        release.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(got) == [0, 1, 2, 3]  # type: ignore[type-var]
        assert peer.accepted == 1


def test_who_waits_for_a_connection_too_long_is_told(client: Callable[..., FunctionClient]) -> None:
    """The time for a call includes the wait for a connection."""
    with Peer(answer(count=0)) as peer, client(peer, connections=1) as calls:
        calls._timeout = 0.3
        outcomes: list[str] = []

        def ask() -> None:
            with pytest.raises(CallTimeout) as caught:
                number(calls, 1)
            outcomes.append(caught.value.message)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(outcomes) == 2


# What goes wrong.


def test_a_late_answer_is_nobody_elses(client: Callable[..., FunctionClient]) -> None:
    """The connection of a call that timed out is dropped, with whatever may still come on it."""
    late = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        request = json.loads(caller.read_frame()[1])
        assert late.wait(PATIENCE)
        caller.send(echo(request))

    with Peer(script, answer()) as peer, client(peer, timeout=0.2, connections=1) as calls:
        with pytest.raises(CallTimeout, match=r"echo\(number=1\): no answer within 0.2 s") as caught:
            number(calls, 1)
        late.set()
        calls._timeout = PATIENCE
        assert number(calls, 2) == 2
        assert (caught.value.function, caught.value.arguments) == ("echo", {"number": 1})
        assert peer.accepted == 2


@pytest.mark.parametrize("sent", ['{"echo":7}', "not asked for", '{"error":"go away"}'])
def test_what_nobody_asked_for_ends_the_connection(client: Callable[..., FunctionClient], sent: str) -> None:
    """A message on an idle connection could be taken for the next answer."""
    more = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.send(echo(json.loads(caller.read_frame()[1])))
        assert more.wait(PATIENCE)
        caller.send(frame(sent))
        caller.wait_until_left()

    with Peer(script, answer()) as peer, client(peer, connections=1) as calls:
        assert number(calls, 1) == 1
        more.set()
        until(lambda: calls._calls.connections == 0)
        assert number(calls, 2) == 2


def test_an_answer_with_another_behind_it_ends_the_connection(client: Callable[..., FunctionClient]) -> None:
    """The first is taken; the connection is not used again."""
    with Peer(answer(lambda request: echo(request) + frame('{"echo":99}'))) as peer, client(peer) as calls:
        assert [number(calls, value) for value in (1, 2, 3)] == [1, 2, 3]
        assert peer.accepted == 3


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
def test_an_answer_that_is_no_object(client: Callable[..., FunctionClient], sent: bytes, reason: str) -> None:
    """It is an error, and the connection is dropped."""
    with Peer(answer(lambda request: sent), answer()) as peer, client(peer) as calls:
        with pytest.raises(DecodeError, match=reason):
            number(calls, 1)
        assert number(calls, 2) == 2
        assert peer.accepted == 2


@pytest.mark.parametrize(
    "said",
    ['{"error":"no such thing"}', '{"errors":"no such thing"}', '{"results":"error","resultData":"no such thing"}'],
)
def test_an_error_of_the_servers(client: Callable[..., FunctionClient], said: str) -> None:
    """It names the function, its arguments and what the server says; the connection lives on."""
    with Peer(answer(lambda request: frame(said))) as peer, client(peer) as calls:
        for _ in range(2):
            with pytest.raises(FunctionError, match=r"^echo\(number=1\): no such thing$") as caught:
                number(calls, 1)
        assert type(caught.value) is FunctionError
        assert peer.accepted == 1


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
def test_a_lost_connection_is_replaced(client: Callable[..., FunctionClient], loss: Script) -> None:
    """All functions only read, so what was not answered is asked again."""
    with Peer(loss, loss, answer()) as peer, client(peer) as calls:
        assert number(calls, 5) == 5
        assert peer.accepted == 3


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_without_a_policy_there_is_one_try(client: Callable[..., FunctionClient], loss: Script) -> None:
    """`reconnect=None`: the failure is the caller's at once."""
    with Peer(loss) as peer, client(peer, reconnect=None) as calls:
        with pytest.raises(ConnectionFailed) as caught:
            number(calls, 5)
        assert (caught.value.attempt, caught.value.will_retry) == (1, False)
        assert peer.accepted == 1


def test_the_policy_bounds_the_tries(client: Callable[..., FunctionClient]) -> None:
    """`attempts` are those of one call."""
    policy = ReconnectPolicy(initial=0.01, attempts=3)
    with Peer(refuse("503 Busy")) as peer, client(peer, reconnect=policy) as calls:
        for tries in (3, 6):
            with pytest.raises(ConnectionFailed, match="attempt 3, no further attempt"):
                number(calls, 1)
            assert tries == peer.accepted


def test_all_the_time_there_is_is_used(client: Callable[..., FunctionClient]) -> None:
    """A wait of the policy's that is longer than the time left is made shorter: the line may be back before."""
    patient = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)
    refused: list[int] = []

    def script(caller: Caller) -> None:
        if not refused:
            refused.append(1)
            caller.refuse("503 Busy")
        answer()(caller)

    with Peer(script) as peer:
        assert number(client(peer, reconnect=patient, timeout=6.0), 1) == 1


def slowly(pieces: int, pause: float) -> Script:
    """Answers so slowly."""

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.read_frame()
        whole = frame(json.dumps({"echo": 1, "more": "x" * pieces * 10}))
        size = len(whole) // pieces + 1
        for at in range(0, len(whole), size):
            caller.send(whole[at : at + size])
            threading.Event().wait(pause)
        caller.wait_until_left()

    return script


def test_a_slow_line_is_no_silence(client: Callable[..., FunctionClient]) -> None:
    """While more of the answer comes, the time for it begins anew."""
    with Peer(slowly(5, 0.8)) as peer:
        assert number(client(peer, timeout=3.0), 1) == 1


def test_a_line_that_is_slow_without_end_is_given_up(client: Callable[..., FunctionClient]) -> None:
    """And the error says how much had come."""
    with Peer(slowly(10_000, 0.01)) as peer, pytest.raises(CallTimeout, match=r"[0-9,]+ bytes had arrived"):
        number(client(peer, timeout=1.5), 1)


def test_a_wait_that_would_be_too_long_is_not_begun(client: Callable[..., FunctionClient]) -> None:
    """A server that asks for an hour, for a call that has seconds, ends the call."""
    with (
        Peer(refuse("503 Busy", "Retry-After: 3600\r\n")) as peer,
        pytest.raises(ConnectionFailed, match="503"),
    ):
        number(client(peer), 1)


def test_nobody_there_is_an_error_within_the_time() -> None:
    """A refused connection is tried again until the call's time is up."""
    with FunctionClient("demo", f"ws://127.0.0.1:{free_port()}/", timeout=0.2, reconnect=QUICK) as calls:
        with pytest.raises(ConnectionFailed, match="refused") as caught:
            number(calls, 1)
        assert caught.value.attempt > 1


def test_a_server_that_does_not_complete_the_handshake(client: Callable[..., FunctionClient]) -> None:
    """The call's time bounds the handshake, too."""
    with Peer(lambda caller: caller.wait_until_left()) as peer, client(peer, timeout=0.2) as calls:
        with pytest.raises(CallTimeout, match="still connecting"):
            number(calls, 1)
        until(lambda: not any(worker.is_alive() for worker in calls._calls._scheduler.handshakes._workers))


def test_a_handshake_has_a_time_of_its_own(client: Callable[..., FunctionClient]) -> None:
    """`connect_timeout` ends one attempt; the next one may do better."""
    slow: Script = lambda caller: caller.wait_until_left()  # noqa: E731
    with Peer(slow, answer()) as peer, client(peer, connect_timeout=0.2) as calls:
        assert number(calls, 1) == 1


def test_a_key_callable_that_hangs_is_a_timeout(client: Callable[..., FunctionClient]) -> None:
    """It runs in a thread of its own, so that nothing it does can hold up the caller."""
    release = threading.Event()

    def hanging() -> str:
        release.wait(PATIENCE)
        return "demo"

    with Peer(answer()) as peer, client(peer, api_key=hanging, timeout=0.1, reconnect=None) as calls:
        with pytest.raises(CallTimeout):
            number(calls, 1)
        release.set()
        until(lambda: not any(worker.is_alive() for worker in calls._calls._scheduler.handshakes._workers))
        calls._timeout = PATIENCE
        assert number(calls, 2) == 2


@pytest.mark.parametrize("status", ["401 No", "403 No"])
def test_a_refused_key_is_fatal(client: Callable[..., FunctionClient], status: str) -> None:
    """Where there is no other key, nothing is tried again."""
    with Peer(refuse(status)) as peer, client(peer) as calls:
        with pytest.raises(AuthenticationError):
            number(calls, 1)
        assert peer.accepted == 1


@pytest.mark.parametrize(
    "refusal",
    [refuse("401 No"), lambda caller: (caller.welcome(close_frame(1008)), caller.wait_until_left())],
    ids=["401", "1008"],
)
def test_a_refused_key_is_replaced(client: Callable[..., FunctionClient], refusal: Script) -> None:
    """A callable is asked again, and its next key is used."""
    keys = iter(["old", "new"])
    with Peer(refusal, answer()) as peer, client(peer, api_key=lambda: next(keys)) as calls:
        assert number(calls, 1) == 1
        assert [request.split(b" ")[1].split(b"/")[-1] for request in peer.requests] == [b"old", b"new"]


def test_the_same_key_is_not_tried_twice(client: Callable[..., FunctionClient]) -> None:
    """A callable that has no other key ends the call."""
    with Peer(refuse("401 No")) as peer, client(peer, api_key=lambda: "demo") as calls:
        with pytest.raises(AuthenticationError):
            number(calls, 1)
        assert peer.accepted == 1


def test_an_idle_connection_that_was_closed_is_not_used(client: Callable[..., FunctionClient]) -> None:
    """Even without a second try a call finds a good connection: the other one is let go before."""
    closed = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.send(echo(json.loads(caller.read_frame()[1])))
        caller.leave()
        closed.set()

    with Peer(script, answer()) as peer, client(peer, reconnect=None) as calls:
        assert number(calls, 1) == 1
        assert closed.wait(PATIENCE)
        assert number(calls, 2) == 2


# Kept alive.


@pytest.fixture
def kept() -> Iterator[Callable[..., CallPool]]:
    """Pools whose idle connections say soon that they are wanted."""
    made: list[CallPool] = []

    def make(peer: Peer, **settings: Any) -> CallPool:
        target = ConnectionConfig(Endpoint(peer.url), None, KeySource.from_argument("demo"), PATIENCE, Any)  # type: ignore[arg-type]
        made.append(CallPool(PoolSettings(target, QUICK, 2, "kept", **settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_an_idle_connection_says_that_it_is_wanted(kept: Callable[..., CallPool]) -> None:
    """FinX's keepAlive goes out after a while, again and again, and its answer is nobody else's."""
    seen: list[dict[str, Any]] = []

    def note(request: dict[str, Any]) -> bytes:
        seen.append(request)
        return frame('{"keepAlive":true}') if request["functionName"] == "keepAlive" else echo(request)

    with Peer(answer(note)) as peer:
        calls = kept(peer, keepalive_interval=0.02)
        assert calls.call("echo", {"number": 1}, PATIENCE).message == {"echo": 1}
        until(lambda: len(seen) >= 4)
        for value in range(50):
            assert {"echo": value} == calls.call("echo", {"number": value}, PATIENCE).message
            time.sleep(0.002)
        calls.close()
    assert seen[1] == {"functionName": "keepAlive", "APIKey": "demo"}


@pytest.mark.parametrize("said", ['{"error":"key expired"}', "nonsense", '{"keepAlive":true}\0'])
def test_a_keep_alive_that_is_refused_ends_the_connection(kept: Callable[..., CallPool], said: str) -> None:
    """The next call makes another one, with the key of then."""
    with Peer(answer(lambda request: frame(said) if "number" not in request else echo(request))) as peer:
        calls = kept(peer, keepalive_interval=0.02)
        assert calls.call("echo", {"number": 1}, PATIENCE).message == {"echo": 1}
        until(lambda: calls.connections == 0)
        assert calls.call("echo", {"number": 2}, PATIENCE).message == {"echo": 2}


def choosy(request: dict[str, Any]) -> bytes:
    """A server that takes the new key alone."""
    return echo(request) if request["APIKey"] == "new" else frame('{"error":"key expired"}')


@pytest.mark.parametrize(("trusted", "connections"), [(0.0, 2), (60.0, 1)], ids=["old", "fresh"])
def test_an_error_where_the_key_may_have_changed(trusted: float, connections: int) -> None:
    """It may be the key of an old connection that has expired: the next call makes a new one, with the key of then."""
    keys = iter(["old", "new"])
    with Peer(answer(choosy)) as peer:
        target = ConnectionConfig(Endpoint(peer.url), None, KeySource.from_argument(lambda: next(keys)), PATIENCE, Any)  # type: ignore[arg-type]
        calls = CallPool(PoolSettings(target, QUICK, 2, "rotating", key_trusted_for=trusted))
        try:
            with pytest.raises(FunctionError, match="key expired"):
                calls.call("echo", {"number": 1}, PATIENCE)
            if connections == 2:
                assert calls.call("echo", {"number": 2}, PATIENCE).message == {"echo": 2}
            assert connections == peer.accepted
            assert calls.connections == 1
        finally:
            calls.close()


@pytest.mark.parametrize(
    "begun",
    [frame('{"echo":7}')[:5], frame('{"ec', fin=False), frame(b"12345", PING)[:4]],
    ids=["half", "part", "ping"],
)
@pytest.mark.parametrize("when", ["with the answer", "later"])
def test_half_a_message_ends_an_idle_connection(client: Callable[..., FunctionClient], begun: bytes, when: str) -> None:
    """Its other half could come as the next call's answer."""
    sent = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        reply = echo(json.loads(caller.read_frame()[1]))
        caller.send(reply + begun if when == "with the answer" else reply)
        if when == "later":
            caller.send(begun)
        sent.set()
        caller.wait_until_left()

    with Peer(script, answer()) as peer, client(peer, connections=1) as calls:
        assert number(calls, 1) == 1
        assert sent.wait(PATIENCE)
        assert number(calls, 2) == 2
        assert peer.accepted == 2


def test_nobody_is_passed_over(client: Callable[..., FunctionClient]) -> None:
    """A thread that asks again and again does not keep the connection from those that wait."""
    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            number(calls, 0)

    with Peer(answer()) as peer, client(peer, connections=1) as calls:
        threads = [threading.Thread(target=hog) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert list(range(1, 100)) == [number(calls, value) for value in range(1, 100)]
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)


def test_an_idle_client_does_not_wake_up(kept: Callable[..., CallPool]) -> None:
    """The thread that keeps connections has nothing to do until one is due."""
    with Peer(answer()) as peer:
        calls = kept(peer)
        calls.call("echo", {"number": 1}, PATIENCE)
        (connection,) = calls._scheduler.connections
        assert connection.deadline - time.monotonic() == pytest.approx(240.0, abs=40.0)


# The end.


def test_closing_interrupts_calls_under_way(client: Callable[..., FunctionClient]) -> None:
    """Those that wait for an answer and those that wait for a connection are told, at once."""
    outcomes: list[BaseException] = []
    asked = threading.Semaphore(0)

    def silent(request: dict[str, Any]) -> bytes:
        asked.release()
        return b""

    def ask() -> None:
        try:
            number(calls, 1)
        except FunctionError as error:
            outcomes.append(error)

    with Peer(answer(silent)) as peer:
        calls = client(peer, connections=2, timeout=PATIENCE * 10)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            assert asked.acquire(timeout=PATIENCE)
        calls.close()
        for thread in threads:
            thread.join(PATIENCE)
    assert [type(error) for error in outcomes] == [FunctionError] * 4
    assert all("clos" in str(error) for error in outcomes)


@pytest.mark.parametrize("script", [lambda caller: caller.wait_until_left(), refuse("503 Busy")], ids=["mute", "busy"])
def test_closing_interrupts_connecting(client: Callable[..., FunctionClient], script: Script) -> None:
    """A handshake under way, and a wait for the next one, end as well."""
    policy = ReconnectPolicy(initial=60.0, maximum=60.0, jitter=False)
    outcomes: list[BaseException] = []

    def ask() -> None:
        try:
            number(calls, 1)
        except FunctionError as error:
            outcomes.append(error)

    with Peer(script) as peer:
        calls = client(peer, reconnect=policy, timeout=PATIENCE * 10)
        thread = threading.Thread(target=ask)
        thread.start()
        peer.wait_accepted(1)
        calls.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert [error.message for error in outcomes] == ["the client was closed"]  # type: ignore[attr-defined]


def test_a_closed_client_says_so(client: Callable[..., FunctionClient]) -> None:
    """Closing twice is fine; calling afterwards is an error."""
    with Peer(answer()) as peer:
        calls = client(peer)
        assert number(calls, 1) == 1
        calls.close()
        calls.close()
        with pytest.raises(FunctionError, match="the client is closed"):
            number(calls, 1)
        assert "closed" in repr(calls)
        assert peer.accepted == 1


def test_closing_says_goodbye(client: Callable[..., FunctionClient]) -> None:
    """The server gets a close frame, and not just the end of TCP."""
    seen: list[int] = []

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.send(echo(json.loads(caller.read_frame()[1])))
        seen.append(caller.read_frame()[0])

    with Peer(script) as peer:
        calls = client(peer)
        number(calls, 1)
        calls.close()
        until(lambda: bool(seen))
    assert seen == [CLOSE]


def test_a_client_that_is_forgotten_ends(client: Callable[..., FunctionClient]) -> None:
    """Nobody has to close it: its thread and its connections go with it."""
    with Peer(answer()) as peer:
        forgotten = FunctionClient("demo", peer.url, name="forgotten")
        assert number(forgotten, 1) == 1
        assert keeper_threads("forgotten")
        del forgotten
        gc.collect()
        until(lambda: not keeper_threads("forgotten"))


def test_no_file_is_left_open(client: Callable[..., FunctionClient]) -> None:
    """Clients that came, failed and went leave no descriptors."""
    with Peer(answer(count=1)) as peer:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            calls = client(peer, reconnect=None)
            number(calls, 1)
            with pytest.raises(CallTimeout):
                calls._calls.call("echo", {"number": 2}, 0.05)
            calls.close()
        until(lambda: len(os.listdir("/proc/self/fd")) <= before + 25)
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def run_program(program: str, peer: Peer) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, that knows the server's address."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, peer.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_interpreter_ends_with_an_open_client() -> None:
    """At once, and without a word."""
    program = (
        "import sys, time\n"
        "from finx_streamer import FunctionClient\n"
        "client = FunctionClient('demo', sys.argv[1])\n"
        "print(client.call('echo', number=1))\n"
    )
    with Peer(answer()) as peer:
        result = run_program(program, peer)
    assert (result.returncode, result.stdout, result.stderr) == (0, "{'echo': 1}\n", "")


def test_a_forked_process_is_told() -> None:
    """It has neither the threads nor a right to the connections; the parent's go on."""
    program = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from finx_streamer import ConfigurationError, FunctionClient\n"
        "client = FunctionClient('demo', sys.argv[1])\n"
        "client.call('echo', number=1)\n"
        "if not os.fork():\n"
        "    try:\n"
        "        client.call('echo', number=2)\n"
        "    except ConfigurationError as error:\n"
        "        print(error, flush=True)\n"
        "    client.close()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(client.call('echo', number=3))\n"
    )
    with Peer(answer()) as peer:
        result = run_program(program, peer)
        assert peer.accepted == 1
    first, second = result.stdout.splitlines()
    assert "before a fork" in first
    assert second == "{'echo': 3}"


@pytest.mark.parametrize("mute", [False, True], ids=["silent", "connecting"])
def test_ctrl_c_interrupts_a_call(client: Callable[..., FunctionClient], mute: bool) -> None:
    """At once, in the main thread; the client can be used afterwards, and no answer is mistaken."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = threading.Event()

    def silent(caller: Caller) -> None:
        if not mute:
            caller.welcome()
            caller.read_frame()
        else:
            caller.read_request()
        asked.set()
        caller.wait_until_left()

    def interrupt() -> None:
        assert asked.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    try:
        with Peer(silent, answer()) as peer, client(peer, connections=1) as calls:
            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                number(calls, 1)
            thread.join(PATIENCE)
            assert number(calls, 2) == 2
    finally:
        signal.signal(signal.SIGINT, earlier)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment_leave_the_client_usable(client: Callable[..., FunctionClient]) -> None:
    """Hundreds of interrupts at random moments of calls lose no place and mix up no answers.

    (Some strike where Python itself can't pass them on, in a weak reference's callback for one: hence the filter.)
    """
    armed = False

    def strike(signum: int, at: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGALRM, strike)
    wrong: list[object] = []
    interrupted = 0
    try:
        with Peer(answer()) as peer, client(peer, connections=2) as calls:
            for value in range(600):
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, 0.00001 + (value % 37) * 0.00002)
                    result = number(calls, value)
                    armed = False
                    wrong += [] if result == value else [(value, result)]
                except KeyboardInterrupt:
                    interrupted += 1
            assert wrong == []
            assert [number(calls, value) for value in (1, 2, 3)] == [1, 2, 3]
            assert len(calls._calls._scheduler.connections) <= 2
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    assert interrupted


def test_check_process_is_fine_here(client: Callable[..., FunctionClient]) -> None:
    """Only another process is refused."""
    with Peer(answer()) as peer:
        client(peer)._calls.check_process()
    assert issubclass(ConfigurationError, ValueError)
