"""`endpoint=[url1, url2]`: after a loss or a failed attempt, a connection tries the next server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailed,
    Endpoint,
    FunctionClient,
    GapNotFilled,
    ReconnectPolicy,
    StreamListener,
    StreamNotFound,
)
from finx_streamer.config.servers import Servers
from finx_streamer.server import LocalServer
from tests.support.effort import examples
from tests.support.market import OTHER, PAIR, Market, prices, send, tick
from tests.support.peers import PATIENCE, QUICK, Caller, Peer, Seen, frame, free_port, hang, refuse

A, B, C = (Endpoint(f"ws://127.0.0.1:{port}/") for port in (1001, 1002, 1003))
WIRES = pytest.mark.parametrize("wire", ["url", "subscribe"])
Wire = Literal["url", "subscribe"]


def new_server(port: int = 0, **settings: Any) -> LocalServer:
    return LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2, port=port, **settings)


@pytest.fixture
def servers() -> Iterator[list[LocalServer]]:
    """Two servers with logs of their own."""
    with ExitStack() as stack:
        yield [stack.enter_context(new_server()) for _ in range(2)]


def endpoints(servers: list[LocalServer], wire: Wire = "url") -> list[str | Endpoint]:
    return [Endpoint(server.url, wire=wire) for server in servers]


def send_all(servers: list[LocalServer], *numbers: int) -> None:
    """Both servers get the same ticks."""
    for server in servers:
        send(server, *numbers)


# Streams.


@WIRES
def test_a_killed_server_costs_no_tick(servers: list[LocalServer], seen: Seen, wire: Wire) -> None:
    """The stream goes on at the other server, whose history has what was missed."""
    first, second = servers
    with seen.listener(endpoints(servers, wire), PAIR, OTHER, backfill=True) as listener:
        first.wait_connected(2)
        send_all(servers, 1, 2)
        seen.wait_ticks(2)
        # Before its clients can notice that it is gone.
        send(second, 3)
        first.stop()
        send(second, 4)
        second.wait_connected(2)
        send(second, 5)
        seen.wait_for(lambda: 5 in prices(seen))
        assert prices(seen) == [1, 2, 3, 4, 5]
        assert [(gap.symbol, gap.filled, gap.ticks) for gap in seen.gaps] == [(PAIR, True, 2)]
        assert listener.stats.streams[PAIR].reconnects == 1
    assert seen.of_type(GapNotFilled) == []
    where = f"127.0.0.1:{first.port}"
    assert all(where in str(error) for error in seen.of_type(ConnectionFailed)), seen


@WIRES
def test_it_goes_back_when_the_other_one_ends(servers: list[LocalServer], seen: Seen, wire: Wire) -> None:
    """The servers take turns, with the position in one log sent to the other: nothing is lost, nothing comes twice."""
    first, second = servers
    with seen.listener(endpoints(servers, wire), backfill=True):
        first.wait_connected(1)
        for number in range(1, 12, 2):
            here, there = (first, second) if first.stats.streams else (second, first)
            send_all(servers, number)
            seen.wait_for(lambda number=number: number in prices(seen))  # type: ignore[misc]
            here.drop_connections()
            send_all(servers, number + 1)
            there.wait_connected(1)
            seen.wait_for(lambda number=number: number + 1 in prices(seen))  # type: ignore[misc]
        assert prices(seen) == list(range(1, 13))


@WIRES
def test_both_are_down_and_then_the_second_one_is_up(seen: Seen, wire: Wire) -> None:
    ports = [free_port(), free_port()]
    listener = seen.listener([Endpoint(f"ws://127.0.0.1:{port}/", wire=wire) for port in ports], backfill=True)
    with listener:
        seen.wait_errors(4)
        errors = seen.of_type(ConnectionFailed)
        assert [f"127.0.0.1:{ports[number % 2]}: " in errors[number].reason for number in range(4)] == [True] * 4
        with new_server(ports[1]) as second:
            second.wait_connected(1)
            send(second, 1)
            seen.wait_ticks(1)


def test_the_servers_are_tried_in_order(seen: Seen) -> None:
    """Each once per round. The waits grow with the rounds."""
    policy = ReconnectPolicy(initial=0.01, factor=2.0, jitter=False, attempts=7)
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(refuse("500 Oops"))) for _ in range(3)]
        listener = seen.listener([peer.url for peer in peers], reconnect=policy).start()
        with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{peers[0].port}: the server answered 500"):
            listener.join(PATIENCE)
        assert [peer.accepted for peer in peers] == [3, 2, 2]
    waits = [error.retry_in for error in seen.of_type(ConnectionFailed)]
    assert waits == [0.01, 0.01, 0.01, 0.02, 0.02, 0.02, None]


@pytest.mark.parametrize("status", [429, 503])
def test_only_the_server_that_asked_to_wait_is_waited_for(servers: list[LocalServer], seen: Seen, status: int) -> None:
    first, second = servers
    first.refuse_next(None, status, retry_after=3600)
    with seen.listener(endpoints(servers)):
        for number in range(1, 4):
            second.wait_connected(1)
            send(second, number)
            seen.wait_ticks(number)
            second.drop_connections()
            seen.wait_errors(number + 1)
    # It wasn't asked again.
    assert first.stats.refused == 1


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (404, StreamNotFound)])
def test_a_refusal_that_another_server_would_repeat_ends_the_stream(
    servers: list[LocalServer], seen: Seen, status: int, kind: type[ConnectionFailed]
) -> None:
    servers[0].refuse_next(1, status)
    listener = seen.listener(endpoints(servers)).start()
    with pytest.raises(kind, match=f"127.0.0.1:{servers[0].port}"):
        listener.join(PATIENCE)
    assert servers[1].stats.connections_total == 0


@WIRES
def test_a_redirect_at_one_server_does_not_keep_the_next_from_being_tried(seen: Seen, wire: Wire) -> None:
    """If all servers send one, it's an error, as with a single server."""
    with Peer(refuse("302 Found")) as first, Peer(refuse("302 Found")) as second, new_server() as server:
        both = [Endpoint(each.url, wire=wire) for each in (first, second)]
        all_three = [*both, *endpoints([server], wire)]
        with seen.listener(all_three):
            server.wait_connected(1)
        with FunctionClient(endpoint=all_three, api_key="demo", reconnect=QUICK) as client:
            client.authenticate()
        listener = seen.listener(both).start()
        with pytest.raises(ConnectionFailed, match="302"):
            listener.join(PATIENCE)
        with FunctionClient(endpoint=both, api_key="demo", reconnect=QUICK) as client, pytest.raises(ConnectionFailed):
            client.authenticate()
    assert (first.accepted, second.accepted) == (4, 4)


def test_a_frozen_server_is_left(seen: Seen) -> None:
    """A server that accepts connections and doesn't answer costs one `connect_timeout`."""
    with Peer(hang) as frozen, new_server() as server:
        with seen.listener([frozen.url, server.url], connect_timeout=0.2):
            server.wait_connected(1)
        assert frozen.accepted == 1


def test_a_new_stream_begins_at_the_server_that_answers(servers: list[LocalServer], seen: Seen) -> None:
    first, second = servers
    with seen.listener(endpoints(servers)) as listener:
        first.wait_connected(1)
        port = first.port
        first.stop()
        second.wait_connected(1)
        with new_server(port) as again:
            listener.add(OTHER)
            second.wait_connected(2)
            assert again.stats.connections_total == 0


# Function calls.


def test_a_call_goes_to_the_next_server(servers: list[LocalServer]) -> None:
    """Also a client that doesn't wait for a server to come up tries all of them. The next call goes there at once."""
    send_all(servers, 1)
    dead = f"ws://127.0.0.1:{free_port()}/"
    with FunctionClient("demo", [dead, servers[1].url], reconnect=QUICK) as client:
        assert client.tick_snap(PAIR, "2022-07-03")["exchange"] == "BINANCE"
    with FunctionClient("demo", endpoints(servers), reconnect=QUICK) as client:
        assert client.authenticate()
        servers[0].stop()
        assert client.tick_snap(PAIR, "2022-07-03")["price"] == 19_201.5
        assert servers[1].stats.calls == 2


def test_concurrent_calls_that_lose_a_server_all_go_to_the_next(servers: list[LocalServer]) -> None:
    first, second = servers
    send_all(servers, 1)
    first.stall_functions(4, function="tickSnap")
    found: list[float] = []
    with FunctionClient("demo", endpoints(servers), reconnect=QUICK) as client:
        threads = [
            threading.Thread(target=lambda: found.append(client.tick_snap(PAIR, "2022-07-03")["price"]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        first.wait_until(lambda stats: stats.calls == 4)
        first.stop()
        for thread in threads:
            thread.join(PATIENCE)
        assert client.authenticate()
    assert found == [19_201.5] * 4
    assert second.stats.calls == 5


@pytest.mark.parametrize("status", [429, 503])
def test_a_call_does_not_wait_for_the_server_that_asked_for_it(servers: list[LocalServer], status: int) -> None:
    servers[0].refuse_next(None, status, retry_after=3600)
    with FunctionClient("demo", endpoints(servers), reconnect=QUICK) as client:
        assert client.authenticate()
    assert servers[0].stats.refused == 1


def test_a_call_that_meets_silence_is_made_at_the_next_server(servers: list[LocalServer]) -> None:
    """History tries once more after a silence."""
    send_all(servers, 1)
    servers[0].stall_functions(None)
    with FunctionClient("demo", endpoints(servers), 0.5, reconnect=QUICK) as client:
        assert len(client.tick_history(PAIR, "2022-07-02")) == 1
    assert (servers[0].stats.calls, servers[1].stats.calls > 0) == (1, True)


def test_the_error_of_a_call_names_the_server() -> None:
    ports = [free_port(), free_port()]
    policy = ReconnectPolicy(initial=0.0, attempts=2)
    with (
        FunctionClient("demo", [f"ws://127.0.0.1:{port}/" for port in ports], reconnect=policy) as client,
        pytest.raises(ConnectionFailed, match=f"127.0.0.1:{ports[1]}"),
    ):
        client.authenticate()


def test_a_gap_is_filled_while_one_server_never_answers(seen: Seen) -> None:
    """History is asked at the server that the stream is connected to."""
    end = threading.Event()

    def begin(caller: Caller) -> None:
        caller.welcome(frame(json.dumps({"results": "streaming", "resultData": tick(1)})))
        end.wait(PATIENCE)
        caller.leave()

    with Peer(begin, hang) as first, new_server(resumable=False) as second:
        with seen.listener([first.url, second.url], backfill=True):
            seen.wait_ticks(1)
            send(second, 1, 2, 3)
            end.set()
            second.wait_connected(1)
            send(second, 4)
            seen.wait_ticks(4)
        assert prices(seen) == [1, 2, 3, 4]
        assert first.accepted == 1


# Arguments.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the list is empty"),
        (["demo"], "'demo' can't be in a list"),
        (["ws://127.0.0.1:1/", "demo"], "'demo' can't be in a list"),
        (["ws://127.0.0.1:1/", Endpoint("ws://127.0.0.1:2/", wire="subscribe")], "different wires"),
        (["production", "wss://ws.finx.io"], "is in the list twice"),
        (["ws://127.0.0.1:1/", "ws://example.com/"], "'ws://example.com/' would send the API key in clear text"),
        (["gamma"], "'gamma' is unknown"),
        ([1], "expected a str or an Endpoint, not int"),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_that_cannot_work_is_refused(given: list[Any], message: str, kind: type) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StreamListener(PAIR, api_key="demo", endpoint=kind(given))
    with pytest.raises(ConfigurationError, match=message):
        FunctionClient("demo", kind(given))


def test_repr_shows_the_servers() -> None:
    urls = ["ws://127.0.0.1:1/", "wss://ws.finx.io/"]
    assert ", ".join(urls) in repr(StreamListener(PAIR, api_key="demo", endpoint=urls))
    with FunctionClient("demo", urls) as client:
        assert ", ".join(urls) in repr(client)


# The order, without a network.


def failure(retry_after: float | None = None) -> ConnectionFailed:
    return ConnectionFailed("no", retry_after=retry_after)


def test_one_server_is_tried_again_and_its_wait_takes_precedence() -> None:
    servers = Servers((A,))
    assert servers.after(A, failure(), 3.0, 100.0) == (A, 3.0)
    assert servers.after(A, failure(1.0), 3.0, 100.0) == (A, 1.0)


def test_if_all_servers_ask_to_wait_the_first_that_is_free_is_tried() -> None:
    servers = Servers((A, B, C))
    assert servers.after(A, failure(50.0), 0.5, 100.0) == (B, 0.5)
    assert servers.after(B, failure(20.0), 0.5, 100.0) == (C, 0.5)
    assert servers.after(C, failure(30.0), 0.5, 100.0) == (B, 20.0)
    assert servers.after(B, failure(), 0.5, 120.0) == (B, 0.5)


@given(st.lists(st.tuples(st.sampled_from([None, 0.0, 1.0, 7.5]), st.floats(0.0, 5.0)), max_size=40))
@examples(200)
def test_a_server_is_never_tried_before_it_is_free(events: list[tuple[float | None, float]]) -> None:
    """And one that is free is tried within a round."""
    servers, endpoint, now = Servers((A, B, C)), A, 1_000.0
    free_at = dict.fromkeys((A, B, C), 0.0)
    for retry_after, drawn in events:
        if retry_after:
            free_at[endpoint] = now + retry_after
        endpoint, wait = servers.after(endpoint, failure(retry_after), drawn, now)
        assert wait >= drawn
        assert now + wait >= free_at[endpoint] - 1e-6
        assert wait <= drawn + 1e-6 or all(free > now + drawn for free in free_at.values())
        now += wait


def test_new_connections_avoid_the_server_that_was_lost() -> None:
    """But four connections that lose the same one don't go round in a circle."""
    servers = Servers((A, B))
    for _ in range(4):
        assert servers.after(A, failure(), 0.0, 0.0)[0] == B
    assert servers.preferred == B
