"""Connecting to one of several addresses (RFC 8305), with real sockets. `getaddrinfo` is the only thing replaced."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import FunctionClient, ReconnectPolicy
from finx_streamer.connection.attempt import Attempt
from finx_streamer.connection.race import Address, race, take_turns
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PATIENCE, Caller, Peer, Seen, free_port, leave_after, raw_tick, stay, tick
from tests.support.proxying import Proxying

pytestmark = pytest.mark.usefixtures("no_proxy_variables")

#: No resolver knows this name.
NAME = "ticks.example"
#: Long enough that a test which waits for it fails: seconds.
LONG = 3_600.0
NO_RETRY = ReconnectPolicy(initial=LONG, maximum=LONG, jitter=False)

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


def address(host: str, port: int) -> Address:
    """The address of a TCP port."""
    return Address(*socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)[0])


@pytest.fixture
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy in the environment."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Nowhere:
    """An address whose connections never open, because the system drops their SYNs: its backlog is full."""

    def __init__(self, family: int, host: str) -> None:
        self._listening = socket.socket(family)
        self._listening.bind((host, 0))
        self._listening.listen(0)
        self.address = address(host, self._listening.getsockname()[1])
        self._fillers = [socket.socket(family) for _ in range(4)]
        for filler in self._fillers:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(self.address.where)

    def close(self) -> None:
        """Close its sockets."""
        for sock in (self._listening, *self._fillers):
            sock.close()


@pytest.fixture
def nowhere() -> Iterator[Callable[..., Address]]:
    """Makes addresses that go nowhere. `family` is IPv6 by default."""
    made: list[Nowhere] = []

    def make(family: int = V6) -> Address:
        try:
            made.append(Nowhere(family, "::1" if family == V6 else "127.0.0.1"))
        except OSError:
            pytest.skip("this system has no IPv6")
        return made[-1].address

    yield make
    for one in made:
        one.close()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """The addresses of `NAME`, for the test to fill."""
    addresses: list[Address] = []
    lookup = socket.getaddrinfo

    def resolve(host: str, *arguments: Any) -> Any:
        return list(addresses) if host == NAME else lookup(host, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return addresses


class Connects:
    """Records each call of `socket.connect` to an address of interest."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: list[tuple[str, int]] = []
        self._calls: SimpleQueue[None] = SimpleQueue()

    def note(self, sock: socket.socket, where: Any) -> None:
        self.sockets.append(sock)
        self.addresses.append(where[:2])
        self._calls.put(None)

    def wait(self) -> None:
        """Wait for one more call."""
        self._calls.get(timeout=PATIENCE)


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch, nowhere: Callable[..., Address]) -> Connects:
    """The calls of `socket.connect`, except those that fill a backlog."""
    calls = Connects()

    def noting(sock: socket.socket, where: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            calls.note(sock, where)
        super(socket.socket, sock).connect(where)

    monkeypatch.setattr(socket.socket, "connect", noting, raising=False)
    return calls


ADDRESSES = st.lists(st.builds(Address, st.sampled_from([V4, V6]), st.just(1), st.just(6), st.just(""), st.integers()))


@given(ADDRESSES, st.sampled_from([None, V4, V6]))
def test_families_take_turns(addresses: list[Address], first: int | None) -> None:
    """No address is lost, each family keeps its order, and the families alternate while both have addresses left."""
    ordered = take_turns(addresses, first)
    for family in (V4, V6):
        assert [one for one in ordered if one.family == family] == [one for one in addresses if one.family == family]
    both = 2 * min(sum(one.family == family for one in addresses) for family in (V4, V6))
    assert all(one.family != other.family for one, other in itertools.pairwise(ordered[:both]))
    begins = first if any(one.family == first for one in addresses) else addresses[0].family if addresses else None
    assert [one.family for one in ordered[:1]] == ([begins] if addresses else [])


def test_an_address_that_goes_nowhere_delays_little(
    seen: Seen, nowhere: Callable[..., Address], resolver: list[Address], connects: Connects
) -> None:
    """The other family wins without waiting for the first, and the next connection starts with it."""
    with Peer(leave_after(tick(1)), stay(tick(2))) as peer:
        resolver += [nowhere(), address("127.0.0.1", peer.port)]
        with seen.listener(f"ws://{NAME}/", allow_insecure=True, connect_timeout=LONG):
            seen.wait_ticks(2)
    first, second = (one.where[:2] for one in resolver)
    assert connects.addresses == [first, second, second]


def test_a_family_that_stops_working_costs_little(
    seen: Seen, nowhere: Callable[..., Address], resolver: list[Address], connects: Connects
) -> None:
    """The family that last worked goes first. If it goes nowhere now, the other addresses follow."""
    with Peer(stay(tick(2))) as other:
        v4, v6, works = nowhere(V4), nowhere(), address("127.0.0.1", other.port)

        def move(caller: Caller) -> None:
            resolver[:] = [v6, v4, works]
            leave_after(tick(1))(caller)

        with Peer(move) as peer:
            resolver.append(address("127.0.0.1", peer.port))
            with seen.listener(f"ws://{NAME}/", allow_insecure=True, connect_timeout=LONG):
                seen.wait_ticks(2)
    assert connects.addresses[1:] == [one.where[:2] for one in (v4, v6, works)]


def test_all_connections_share_what_works(
    seen: Seen, nowhere: Callable[..., Address], resolver: list[Address], connects: Connects
) -> None:
    """What one stream has found out, the next one of the same listener uses."""

    def welcome(caller: Caller) -> None:
        caller.read_request()
        stay(tick(1, caller.path.rpartition("/")[2]))(caller)

    with Peer(welcome) as peer:
        resolver += [nowhere(), address("127.0.0.1", peer.port)]
        with seen.listener(f"ws://{NAME}/", allow_insecure=True, connect_timeout=LONG) as listener:
            seen.wait_ticks(1)
            listener.add("ETH:USDC")
            seen.wait_ticks(2)
    assert [where[0] for where in connects.addresses] == ["::1", "127.0.0.1", "127.0.0.1"]


def test_function_calls_race_as_well(nowhere: Callable[..., Address], resolver: list[Address]) -> None:
    """A call doesn't wait for the address that goes nowhere."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server:
        resolver += [nowhere(), address("127.0.0.1", server.port)]
        with FunctionClient(
            "demo", f"ws://{NAME}/", allow_insecure=True, timeout=PATIENCE, connect_timeout=LONG
        ) as client:
            assert client.authenticate()


def test_the_addresses_of_a_proxy_race(
    seen: Seen, nowhere: Callable[..., Address], resolver: list[Address], connects: Connects
) -> None:
    """The addresses of a proxy are tried like those of a server."""
    with Peer(leave_after(tick(1)), stay(tick(2))) as peer, Peer(Proxying()) as proxy:
        resolver += [nowhere(), address("127.0.0.1", proxy.port)]
        url = f"http://{NAME}:{proxy.port}"
        with seen.listener(peer.url, proxy=url, allow_insecure=True, connect_timeout=LONG):
            seen.wait_ticks(2)
    first, second = (one.where[:2] for one in resolver)
    assert [where for where in connects.addresses if where[1] != peer.port] == [first, second, second]


def test_socks5_starts_with_the_family_that_last_worked(seen: Seen, resolver: list[Address]) -> None:
    """With socks5 we resolve the server's name: an address that the proxy can't reach is asked for once."""
    proxying = Proxying()
    with Peer(leave_after(tick(1)), stay(tick(2))) as peer, Peer(proxying) as proxy:
        resolver += [address("::1", peer.port), address("127.0.0.1", peer.port)]
        url = f"socks5://127.0.0.1:{proxy.port}"
        with seen.listener(f"ws://{NAME}:{peer.port}/", proxy=url, allow_insecure=True):
            seen.wait_ticks(2)
    assert proxying.asked == [f"::1:{peer.port}", f"127.0.0.1:{peer.port}", f"127.0.0.1:{peer.port}"]


def in_thread(addresses: list[Address]) -> tuple[socket.socket, int]:
    """The result of a race that runs on a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(race, addresses, Attempt(), lambda: PATIENCE).result(PATIENCE)


def test_a_failure_starts_the_next_address_at_once(
    monkeypatch: pytest.MonkeyPatch, nowhere: Callable[..., Address], connects: Connects
) -> None:
    """After a refusal, the next address doesn't wait for its time, also while an earlier one is still connecting."""
    monkeypatch.setattr("finx_streamer.connection.race.HEAD_START", 0.0)
    refused = address("127.0.0.1", free_port())
    with Peer(stay()) as peer:
        addresses = [nowhere(), refused, address("127.0.0.1", peer.port)]
        sock, family = in_thread(addresses)
        with sock:
            assert sock.getpeername() == ("127.0.0.1", peer.port)
    assert family == V4
    assert connects.addresses == [one.where[:2] for one in addresses]


def test_the_losers_are_closed(nowhere: Callable[..., Address], connects: Connects) -> None:
    """Only the winner stays open."""
    with Peer(stay()) as peer:
        sock, _ = in_thread([nowhere(), nowhere(V4), address("127.0.0.1", peer.port)])
        with sock:
            assert [one.fileno() >= 0 for one in connects.sockets] == [False, False, True]


def test_a_refusal_says_more_than_a_timeout(
    seen: Seen, nowhere: Callable[..., Address], resolver: list[Address]
) -> None:
    """If one address is refused and the other one goes nowhere, the error is the refusal."""
    resolver += [nowhere(), address("127.0.0.1", free_port())]
    with seen.listener(f"ws://{NAME}/", allow_insecure=True, connect_timeout=0.6, reconnect=NO_RETRY):
        seen.wait_errors(1)
    assert "connection refused" in str(seen.errors[0])


def test_stop_ends_a_race(
    seen: Seen, nowhere: Callable[..., Address], resolver: list[Address], connects: Connects
) -> None:
    """stop() interrupts every connection in progress."""
    resolver += [nowhere(), nowhere(V4)]
    listener = seen.listener(f"ws://{NAME}/", allow_insecure=True, connect_timeout=LONG).start()
    connects.wait()
    connects.wait()
    worker = next(one for one in threading.enumerate() if one.name.startswith(f"{listener.name}-handshake"))
    assert listener.stop()
    worker.join(PATIENCE)
    assert not worker.is_alive()
    assert [sock.fileno() for sock in connects.sockets] == [-1, -1]
    assert seen.errors == []
