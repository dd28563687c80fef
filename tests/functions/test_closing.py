"""How function clients end: close(), garbage collection, the end of the process, forks and Ctrl-C."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finx_streamer import CallTimeout, ConfigurationError, FunctionClient, FunctionError, ReconnectPolicy
from tests.support.calls import ClientFactory, answer, answer_one, call_echo, threads_of, wait_until
from tests.support.peers import CLOSE, PATIENCE, Caller, Peer, Script, frame, refuse
from tests.support.program import run_program


def start_calls(client: FunctionClient, count: int) -> tuple[list[threading.Thread], list[FunctionError]]:
    """Start calls that will fail, each in its own thread. Return the threads, and the list that gets the errors."""
    errors: list[FunctionError] = []

    def ask() -> None:
        try:
            call_echo(client, 1)
        except FunctionError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, errors


def test_close_interrupts_calls_in_flight(make_client: ClientFactory) -> None:
    """Calls that wait for an answer or for a connection fail at once."""
    received = threading.Semaphore(0)

    def ignore(request: dict[str, Any]) -> bytes:
        received.release()
        return b""

    with Peer(answer(ignore)) as peer:
        client = make_client(peer, connections=2, timeout=PATIENCE * 10)
        threads, errors = start_calls(client, 4)
        for _ in range(2):
            assert received.acquire(timeout=PATIENCE)
        client.close()
        for thread in threads:
            thread.join(PATIENCE)
    assert [type(error) for error in errors] == [FunctionError] * 4
    assert all("clos" in str(error) for error in errors)


@pytest.mark.parametrize("script", [lambda caller: caller.wait_until_left(), refuse("503 Busy")], ids=["mute", "busy"])
def test_close_interrupts_connecting(make_client: ClientFactory, script: Script) -> None:
    """close() ends a handshake, or the wait before the next one."""
    policy = ReconnectPolicy(initial=60.0, maximum=60.0, jitter=False)
    with Peer(script) as peer:
        client = make_client(peer, reconnect=policy, timeout=PATIENCE * 10)
        (thread,), errors = start_calls(client, 1)
        peer.wait_accepted(1)
        client.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert [error.message for error in errors] == ["the client was closed"]


def test_closing_is_not_a_refusal_of_snaps(make_client: ClientFactory, caplog: pytest.LogCaptureFixture) -> None:
    """History that is closed while it waits for a snap blames the client, not the server."""
    snap_requested = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome()
        while b"tickHistory" in caller.read_frame()[1]:
            caller.send(frame("{}"))
        snap_requested.set()
        caller.wait_until_left()

    with Peer(script) as peer, make_client(peer) as client, ThreadPoolExecutor(1) as thread:
        found = thread.submit(client.tick_history, "BTC:USDC", "2022-07-02", "2022-07-04")
        assert snap_requested.wait(PATIENCE)
        client.close()
        with pytest.raises(FunctionError, match="closed"):
            found.result(PATIENCE)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_closed_client_refuses_calls(make_client: ClientFactory) -> None:
    """close() can be called twice, and a call after it raises an error."""
    with Peer(answer()) as peer:
        client = make_client(peer)
        assert call_echo(client, 1) == 1
        client.close()
        client.close()
        with pytest.raises(FunctionError, match="the client is closed"):
            call_echo(client, 1)
        assert "closed" in repr(client)
        assert peer.accepted == 1


def test_close_sends_a_close_frame(make_client: ClientFactory) -> None:
    """The server gets a WebSocket close, not only the end of TCP."""
    opcodes: list[int] = []

    def script(caller: Caller) -> None:
        answer_one(caller)
        opcodes.append(caller.read_frame()[0])

    with Peer(script) as peer:
        client = make_client(peer)
        call_echo(client, 1)
        client.close()
        wait_until(lambda: bool(opcodes))
    assert opcodes == [CLOSE]


def test_an_unreferenced_client_closes_itself() -> None:
    """Without close(), the thread and the connections end when the client is garbage-collected."""
    with Peer(answer()) as peer:
        client = FunctionClient("demo", peer.url, name="unreferenced")
        assert call_echo(client, 1) == 1
        assert threads_of("unreferenced")
        del client
        gc.collect()
        wait_until(lambda: not threads_of("unreferenced"))


def test_history_keeps_its_client_open() -> None:
    """A client that only its iterator refers to goes on, and closes itself afterwards."""

    def page(request: dict[str, Any]) -> bytes:
        gc.collect()
        tick = {
            "pair": request["pair"],
            "date": "2022-07-02",
            "time": "15:00:00.5Z",
            "exchange": "BINANCE",
            "price": "1",
        }
        return frame(json.dumps({"0": tick}))

    with Peer(answer(page)) as peer:
        found = FunctionClient("demo", peer.url, name="unreferenced").iter_tick_history(
            "BTC:USDC", "2022-07-02T15:00", "2022-07-02T16:00"
        )
        assert [tick["price"] for tick in found] == [1.0]
        del found
        wait_until(lambda: not threads_of("unreferenced"))


def test_clients_leave_no_file_open(make_client: ClientFactory) -> None:
    """Clients whose calls succeeded and failed leave no file descriptors behind."""
    with Peer(answer(count=1)) as peer:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            client = make_client(peer, reconnect=None)
            call_echo(client, 1)
            with pytest.raises(CallTimeout):
                client._calls.call("echo", {"number": 2}, 0.05)
            client.close()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 25)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# Processes.


def test_a_process_ends_with_an_open_client() -> None:
    """A process with an open client ends at once and prints nothing."""
    with Peer(answer()) as peer:
        result = run_program("calls", "end_with_an_open_client", peer.url, options=["-W", "error"])
    assert (result.returncode, result.stdout, result.stderr) == (0, "{'echo': 1}\n", "")


def test_a_forked_child_cannot_use_the_client() -> None:
    """Calls in a forked child raise an error, and the parent's connection stays usable."""
    with Peer(answer()) as peer:
        result = run_program("calls", "call_in_a_forked_child", peer.url)
        assert peer.accepted == 1
    first, second = result.stdout.splitlines()
    assert "before a fork" in first
    assert second == "{'echo': 3}"


def test_check_process_accepts_the_own_process(make_client: ClientFactory) -> None:
    """Only a forked child is refused, with a ConfigurationError, which is a ValueError."""
    with Peer(answer()) as peer:
        make_client(peer)._calls.check_process()
    assert issubclass(ConfigurationError, ValueError)


# Interrupts.


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, however the tests were started."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.parametrize("connecting", [False, True], ids=["silent", "connecting"])
def test_ctrl_c_interrupts_a_call(make_client: ClientFactory, connecting: bool) -> None:
    """Ctrl-C in the main thread raises KeyboardInterrupt at once, and later calls get their own answers."""
    received = threading.Event()

    def ignore(caller: Caller) -> None:
        if connecting:
            caller.read_request()
        else:
            caller.welcome()
            caller.read_frame()
        received.set()
        caller.wait_until_left()

    def interrupt() -> None:
        assert received.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    with Peer(ignore, answer()) as peer, make_client(peer, connections=1) as client:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            call_echo(client, 1)
        thread.join(PATIENCE)
        assert call_echo(client, 2) == 2


# Python can't raise an interrupt that arrives in the callback of a weak reference: it only prints it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment_leave_the_client_usable(make_client: ClientFactory) -> None:
    """Hundreds of interrupts at varying moments neither lose a connection's place nor mix up answers."""
    armed = False

    def raise_if_armed(signum: int, at: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, raise_if_armed)
    wrong: list[object] = []
    interrupted = 0
    try:
        with Peer(answer()) as peer, make_client(peer, connections=2) as client:
            for number in range(600):
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, 0.00001 + (number % 37) * 0.00002)
                    echoed = call_echo(client, number)
                    armed = False
                    wrong += [] if echoed == number else [(number, echoed)]
                except KeyboardInterrupt:
                    interrupted += 1
            assert wrong == []
            assert [call_echo(client, number) for number in (1, 2, 3)] == [1, 2, 3]
            assert len(client._calls._scheduler.connections) <= 2
        gc.collect()  # while the filter still ignores what the interrupts have left
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted
