"""The connections that function calls share: each call gets its own answer, and idle connections stay usable."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finx_streamer import CallTimeout, FunctionError
from finx_streamer.config.api_key import KeySource
from finx_streamer.config.endpoint import Endpoint
from finx_streamer.connection.attempt import ConnectionConfig
from finx_streamer.functions.call_pool import CallPool
from finx_streamer.functions.call_scheduler import PoolSettings
from tests.support.calls import ClientFactory, answer, answer_calls, answer_one, call_echo, echo, wait_until
from tests.support.peers import CLOSE, PATIENCE, PING, PONG, QUICK, TEXT, Caller, Peer, frame

# One call after another.


def test_calls_reuse_one_connection(make_client: ClientFactory) -> None:
    """Calls that follow each other use one connection, at the path for functions."""
    with Peer(answer()) as peer, make_client(peer) as client:
        assert [call_echo(client, number) for number in range(20)] == list(range(20))
        assert peer.accepted == 1
        assert peer.requests[0].split(b"\r\n")[0] == b"GET /streamer/demo HTTP/1.1"


def test_a_request_has_the_documented_form(make_client: ClientFactory) -> None:
    """A request is one JSON object with the function's name, its arguments and the key."""
    requests: list[dict[str, Any]] = []

    def record(request: dict[str, Any]) -> bytes:
        requests.append(request)
        return frame("{}")

    with Peer(answer(record)) as peer, make_client(peer) as client:
        assert client.call("referenceData", securityId="BTC") == {}
    assert requests == [{"functionName": "referenceData", "securityId": "BTC", "APIKey": "demo"}]


@pytest.mark.parametrize("glued", [True, False], ids=["glued", "apart"])
def test_pings_are_answered(make_client: ClientFactory, glued: bool) -> None:
    """The client answers pings while a call waits and while the connection is idle."""
    pongs: list[bytes] = []
    idle = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        caller.read_frame()
        caller.send(frame(b"during", PING), *([frame('{"echo":1}')] if glued else []))
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

    with Peer(script) as peer, make_client(peer) as client:
        assert call_echo(client, 1) == 1
        idle.set()
        wait_until(lambda: len(pongs) == 4)
        assert call_echo(client, 2) == 2
        assert peer.accepted == 1
    assert pongs == [b"during"] + [b"idle"] * 3


def test_a_large_answer_can_arrive_in_fragments(make_client: ClientFactory) -> None:
    """An answer of a megabyte, in fragments with a ping between them, arrives complete."""
    text = json.dumps({"echo": "x" * 1_000_000})

    def fragments(request: dict[str, Any]) -> bytes:
        return frame(text[:10], fin=False) + frame(b"", PING) + frame(text[10:], 0)

    with Peer(answer(fragments)) as peer, make_client(peer) as client:
        assert call_echo(client, 0) == "x" * 1_000_000


def test_a_large_request_is_sent_completely(make_client: ClientFactory) -> None:
    """A request that exceeds the system's socket buffers is sent in parts."""
    with Peer(answer(lambda request: frame(json.dumps({"size": len(request["text"])})))) as peer:
        assert make_client(peer).call("long", text="y" * 900_000) == {"size": 900_000}


# Many calls at once.


def test_threads_get_their_own_answers(make_client: ClientFactory) -> None:
    """Eight threads share three connections without mixing up answers."""
    wrong: list[object] = []

    def work(first: int) -> None:
        wrong.extend(number for number in range(first, first + 150) if call_echo(client, number) != number)

    with Peer(answer()) as peer, make_client(peer, connections=3) as client:
        threads = [threading.Thread(target=work, args=(1_000 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert wrong == []
        assert 1 <= peer.accepted <= 3


def test_calls_wait_while_all_connections_are_busy(make_client: ClientFactory) -> None:
    """The client never opens more connections than `connections`."""
    release = threading.Event()

    def slow(request: dict[str, Any]) -> bytes:
        assert release.wait(PATIENCE)
        return echo(request)

    with Peer(answer(slow)) as peer, make_client(peer, connections=1) as client:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda n=n: answers.append(call_echo(client, n))) for n in range(4)]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        release.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(answers) == [0, 1, 2, 3]
        assert peer.accepted == 1


def test_waiting_for_a_connection_counts_towards_the_timeout(make_client: ClientFactory) -> None:
    """A call that gets no connection within its timeout raises CallTimeout."""
    with Peer(answer(count=0)) as peer, make_client(peer, connections=1) as client:
        client._timeout = 0.3
        messages: list[str] = []

        def ask() -> None:
            with pytest.raises(CallTimeout) as caught:
                call_echo(client, 1)
            messages.append(caught.value.message)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(messages) == 2


def test_a_call_that_waited_has_its_whole_timeout_for_the_answer(make_client: ClientFactory) -> None:
    """Busy connections aren't taken for silent ones."""

    def slow(request: dict[str, Any]) -> bytes:
        time.sleep(0.9)
        return echo(request)

    with Peer(answer(slow)) as peer, make_client(peer, timeout=1.6, connections=1) as client:
        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(lambda number: call_echo(client, number), (1, 2))) == [1, 2]
        assert peer.accepted == 1


def test_a_call_that_cannot_be_sent_says_how_long_it_waited(make_pool: Callable[..., CallPool]) -> None:
    """The connection that it waited for isn't late, and stays."""
    release = threading.Event()

    def slow(request: dict[str, Any]) -> bytes:
        assert release.wait(PATIENCE)
        return echo(request)

    with Peer(answer(slow)) as peer, ThreadPoolExecutor(2) as threads:
        pool = make_pool(peer)
        answers = [threads.submit(pool.call, "echo", {"number": number}, PATIENCE) for number in (1, 2)]
        wait_until(lambda: pool.connections == 2)
        with pytest.raises(CallTimeout, match=r"waited 0\.2 s for a connection \(all connections are busy\)"):
            pool.call("echo", {"number": 3}, 0.2)
        release.set()
        assert [each.result(PATIENCE).message for each in answers] == [{"echo": 1}, {"echo": 2}]
        assert peer.accepted == 2


def test_a_handshake_outlives_the_call_that_it_was_for(make_client: ClientFactory) -> None:
    """The next call gets the connection."""
    release = threading.Event()

    def script(caller: Caller) -> None:
        assert release.wait(PATIENCE)
        answer()(caller)

    with Peer(script) as peer, make_client(peer, timeout=0.2, connections=1) as client:
        with pytest.raises(CallTimeout, match=r"waited 0\.2 s for a connection \(still connecting\)"):
            call_echo(client, 1)
        release.set()
        client._timeout = PATIENCE
        assert call_echo(client, 2) == 2
        assert peer.accepted == 1


def test_waiting_calls_are_served_in_order(make_client: ClientFactory) -> None:
    """Threads that call without a break don't keep the only connection from other threads."""
    stop = threading.Event()

    def call_without_a_break() -> None:
        while not stop.is_set():
            call_echo(client, 0)

    with Peer(answer()) as peer, make_client(peer, connections=1) as client:
        threads = [threading.Thread(target=call_without_a_break) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert [call_echo(client, number) for number in range(1, 100)] == list(range(1, 100))
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)


# Connections that are no longer safe to use.


def test_late_answers_are_discarded(make_client: ClientFactory) -> None:
    """The connection of a call that timed out is closed, because the late answer could be taken for the next one."""
    late = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        request = json.loads(caller.read_frame()[1])
        assert late.wait(PATIENCE)
        caller.send(echo(request))

    with Peer(script, answer()) as peer, make_client(peer, timeout=0.2, connections=1) as client:
        with pytest.raises(CallTimeout, match=r"echo\(number=1\): no answer within 0.2 s") as caught:
            call_echo(client, 1)
        late.set()
        client._timeout = PATIENCE
        assert call_echo(client, 2) == 2
        assert (caught.value.function, caught.value.arguments) == ("echo", {"number": 1})
        assert peer.accepted == 2


@pytest.mark.parametrize("sent", ['{"echo":7}', "not asked for", '{"error":"go away"}'])
def test_an_unexpected_message_closes_an_idle_connection(make_client: ClientFactory, sent: str) -> None:
    """An unexpected message could be taken for the next answer."""
    more = threading.Event()

    def script(caller: Caller) -> None:
        answer_one(caller)
        assert more.wait(PATIENCE)
        caller.send(frame(sent))
        caller.wait_until_left()

    with Peer(script, answer()) as peer, make_client(peer, connections=1) as client:
        assert call_echo(client, 1) == 1
        more.set()
        wait_until(lambda: client._calls.connections == 0)
        assert call_echo(client, 2) == 2


def test_a_second_answer_closes_the_connection(make_client: ClientFactory) -> None:
    """If two messages answer one call, the first counts, and the connection isn't used again."""
    with Peer(answer(lambda request: echo(request) + frame('{"echo":99}'))) as peer, make_client(peer) as client:
        assert [call_echo(client, number) for number in (1, 2, 3)] == [1, 2, 3]
        assert peer.accepted == 3


@pytest.mark.parametrize(
    "part",
    [frame('{"echo":7}')[:5], frame('{"ec', fin=False), frame(b"12345", PING)[:4]],
    ids=["half", "fragment", "ping"],
)
@pytest.mark.parametrize("when", ["with the answer", "later"])
def test_part_of_a_message_closes_an_idle_connection(make_client: ClientFactory, part: bytes, when: str) -> None:
    """The rest of the message could arrive as the next call's answer."""
    sent = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        reply = echo(json.loads(caller.read_frame()[1]))
        caller.send(reply + part if when == "with the answer" else reply)
        if when == "later":
            caller.send(part)
        sent.set()
        caller.wait_until_left()

    with Peer(script, answer()) as peer, make_client(peer, connections=1) as client:
        assert call_echo(client, 1) == 1
        assert sent.wait(PATIENCE)
        assert call_echo(client, 2) == 2
        assert peer.accepted == 2


def test_a_closed_idle_connection_is_replaced(make_client: ClientFactory) -> None:
    """A call succeeds without a retry, because the closed connection is dropped before it."""
    closed = threading.Event()

    def script(caller: Caller) -> None:
        answer_one(caller)
        caller.leave()
        closed.set()

    with Peer(script, answer()) as peer, make_client(peer, reconnect=None) as client:
        assert call_echo(client, 1) == 1
        assert closed.wait(PATIENCE)
        assert call_echo(client, 2) == 2


def test_history_is_requested_again_on_a_new_connection(make_client: ClientFactory) -> None:
    """A connection that was forgotten on the way doesn't fail the fetch. Other calls are made once."""
    with Peer(answer(count=1), answer(count=1), answer(lambda request: frame("{}"))) as peer:
        client = make_client(peer, timeout=0.4, reconnect=None)
        assert call_echo(client, 1) == 1
        with pytest.raises(CallTimeout):
            client.tick_snap("BTC:USDC", "2022-07-02")
        assert call_echo(client, 2) == 2
        assert client.tick_history("BTC:USDC", "2022-07-02T01:00", "2022-07-02T02:00") == []
        assert peer.accepted == 3


def test_history_fails_after_two_silent_connections(make_client: ClientFactory) -> None:
    """The error says that both were silent."""
    with Peer(answer(count=0)) as peer, make_client(peer, timeout=0.2) as client:
        with pytest.raises(CallTimeout, match="silent; before that: the server was silent on another connection"):
            client.tick_history("BTC:USDC", "2022-07-02T01:00", "2022-07-02T02:00")
        assert peer.accepted == 2


# Pings and keepalives.


@pytest.fixture
def make_pool() -> Iterator[Callable[..., CallPool]]:
    """Creates call pools, and closes them at the end."""
    pools: list[CallPool] = []

    def make(peer: Peer, key: Any = "demo", **settings: Any) -> CallPool:
        config = ConnectionConfig(Endpoint(peer.url), None, KeySource.from_argument(key), PATIENCE, Any)  # type: ignore[arg-type]
        pools.append(CallPool(PoolSettings(config, QUICK, 2, "pool-of-a-test", **settings)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def read_frames(caller: Caller, pongs: int | None = None, stalls: str = "stall") -> None:
    """Answer calls, except of the function `stalls`, and up to `pongs` pings. Without pongs, answer one call only."""
    caller.welcome()
    answered = 0
    while True:
        opcode, payload = caller.read_frame()
        if opcode == CLOSE:
            return
        if opcode == PING and (pongs is None or pongs > 0):
            pongs = pongs and pongs - 1
            caller.send(frame(payload, PONG))
        elif opcode == TEXT and not (pongs == 0 and answered):
            request = json.loads(payload)
            if request["functionName"] != stalls:
                answered += 1
                caller.send(echo(request))


def open_two_connections(pool: CallPool) -> None:
    """Make calls until two connections are idle."""
    with ThreadPoolExecutor(2) as threads:
        while pool.connections < 2:
            for call in [threads.submit(pool.call, "echo", {"number": number}, PATIENCE) for number in (1, 2)]:
                call.result(PATIENCE)


def test_idle_connections_are_pinged(make_pool: Callable[..., CallPool]) -> None:
    """One that answers stays. One that doesn't is closed, and costs no call its timeout."""
    with Peer(lambda caller: read_frames(caller, pongs=5)) as peer:
        pool = make_pool(peer, ping_interval=0.02, pong_timeout=0.3)
        assert pool.call("echo", {"number": 1}, PATIENCE).message == {"echo": 1}
        wait_until(lambda: pool.connections == 0)
        assert pool.call("echo", {"number": 2}, PATIENCE).message == {"echo": 2}
        assert peer.accepted == 2


def test_connections_that_died_together_cost_one_call(make_pool: Callable[..., CallPool]) -> None:
    """After one silent call, the equally idle connections are used only if they answer a ping."""
    gate = threading.Barrier(2)

    def die(caller: Caller) -> None:
        caller.welcome()
        request = json.loads(caller.read_frame()[1])
        gate.wait(PATIENCE)  # both connections are needed
        caller.send(echo(request))
        caller.wait_until_left()

    with Peer(die, die, answer()) as peer, ThreadPoolExecutor(2) as threads:
        pool = make_pool(peer, pong_timeout=PATIENCE)
        both = [threads.submit(pool.call, "echo", {"number": number}, PATIENCE) for number in (1, 2)]
        assert [call.result(PATIENCE).message for call in both] == [{"echo": 1}, {"echo": 2}]
        with pytest.raises(CallTimeout):
            pool.call("echo", {"number": 3}, 0.3)
        assert pool.call("echo", {"number": 4}, PATIENCE).message == {"echo": 4}
        assert peer.accepted == 3


def test_a_slow_function_costs_no_healthy_connection(make_pool: Callable[..., CallPool]) -> None:
    """After one silent call, an equally idle connection that answers a ping is used again."""
    with Peer(read_frames) as peer:
        pool = make_pool(peer)
        open_two_connections(pool)
        accepted = peer.accepted
        with pytest.raises(CallTimeout):
            pool.call("stall", {}, 0.2)
        connections = pool._scheduler.connections  # type: ignore[union-attr]
        wait_until(lambda: all(connection.is_trusted for connection in tuple(connections)))
        assert pool.call("echo", {"number": 3}, PATIENCE).message == {"echo": 3}
        assert peer.accepted == accepted


def test_idle_connections_send_keepalives(make_pool: Callable[..., CallPool]) -> None:
    """FinX's keepAlive is sent at its interval, and its answer is never taken for a call's."""
    requests: list[dict[str, Any]] = []

    def record(request: dict[str, Any]) -> bytes:
        requests.append(request)
        return frame('{"keepAlive":true}') if request["functionName"] == "keepAlive" else echo(request)

    with Peer(answer(record)) as peer:
        pool = make_pool(peer, keepalive_interval=0.02)
        assert pool.call("echo", {"number": 1}, PATIENCE).message == {"echo": 1}
        wait_until(lambda: len(requests) >= 4)
        for number in range(50):
            assert pool.call("echo", {"number": number}, PATIENCE).message == {"echo": number}
            time.sleep(0.002)  # calls at varying moments of the interval
        pool.close()
    assert requests[1] == {"functionName": "keepAlive", "APIKey": "demo"}


@pytest.mark.parametrize("sent", ['{"error":"key expired"}', "nonsense", '{"keepAlive":true}\0'])
def test_a_refused_keepalive_closes_the_connection(make_pool: Callable[..., CallPool], sent: str) -> None:
    """The next call opens a new connection, with the current key."""
    with Peer(answer(lambda request: frame(sent) if "number" not in request else echo(request))) as peer:
        pool = make_pool(peer, keepalive_interval=0.02)
        assert pool.call("echo", {"number": 1}, PATIENCE).message == {"echo": 1}
        wait_until(lambda: pool.connections == 0)
        assert pool.call("echo", {"number": 2}, PATIENCE).message == {"echo": 2}


def test_an_idle_pool_does_not_wake_up(make_pool: Callable[..., CallPool]) -> None:
    """The loop of an idle pool sleeps until the next ping."""
    with Peer(answer()) as peer:
        pool = make_pool(peer)
        pool.call("echo", {"number": 1}, PATIENCE)
        (connection,) = pool._scheduler.connections
        assert connection.deadline - time.monotonic() == pytest.approx(25.0, abs=20.0)


def accept_only_the_new_key(request: dict[str, Any]) -> bytes:
    """A server whose other keys have expired."""
    return echo(request) if request["APIKey"] == "new" else frame('{"error":"key expired"}')


@pytest.mark.parametrize(("trusted_for", "connections"), [(0.0, 2), (60.0, 1)], ids=["old", "fresh"])
def test_an_error_on_an_old_connection_closes_it(
    make_pool: Callable[..., CallPool], trusted_for: float, connections: int
) -> None:
    """The key of an old connection may have expired, so the next call opens a new one with the current key."""
    keys = iter(["old", "new"])
    with Peer(answer(accept_only_the_new_key)) as peer:
        pool = make_pool(peer, lambda: next(keys), key_trusted_for=trusted_for)
        with pytest.raises(FunctionError, match="key expired"):
            pool.call("echo", {"number": 1}, PATIENCE)
        if connections == 2:
            assert pool.call("echo", {"number": 2}, PATIENCE).message == {"echo": 2}
        assert peer.accepted == connections
        assert pool.connections == 1
