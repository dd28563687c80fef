"""Threads, descriptors, memory and processes: nothing leaks, nothing hangs, and shortages are survived."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from finx_streamer import ConnectionFailed, FinxStreamerError, FunctionClient, ReconnectPolicy
from finx_streamer.connection.loop import EventLoop
from finx_streamer.delivery.dispatcher import ThreadDelivery
from finx_streamer.delivery.iteration import Iterations
from finx_streamer.delivery.queues import BlockQueue, DropOldestQueue, LatestQueue
from finx_streamer.functions.call_pool import CallPool
from finx_streamer.functions.call_scheduler import CallScheduler
from finx_streamer.run import Run
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.calls import threads_of, wait_until
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, refuse, stay, tick, ticks
from tests.support.program import Program

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def market() -> Any:
    """A server whose ticks don't end."""
    with LocalServer(SimulatedMarket([PAIR], rate=200.0, seed=1), keys={"demo"}) as server:
        yield server


# Nothing grows.


@linux_only
@pytest.mark.parametrize("lives", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_lives_from_five_threads_leave_nothing(market: LocalServer, lives: int) -> None:
    """After a warm-up, listeners started and stopped by five threads leave no thread, no descriptor and no memory."""
    with Program("lives", "leaks", market.url, lives) as program:
        descriptors, threads, memory = map(int, program.read_line().split())
        assert program.wait() == (0, "", "")
    assert (descriptors, threads) == (0, 0)
    assert memory <= 2 * 1024 * 1024


@linux_only
def test_reconnects_leave_nothing(seen: Seen) -> None:
    """After 300 reconnects, a stream has as many descriptors and threads as before."""

    def cut(caller: Caller) -> None:
        caller.welcome(tick(caller.number))
        if caller.number < 300:
            caller.reset()
        else:
            caller.wait_until_left()

    def ours() -> set[str]:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith(listener.name)]
        for thread in threads:
            # It has handed over its connection, and may need a moment to end.
            if "handshake" in thread.name:
                thread.join(PATIENCE)
        return {thread.name for thread in threads if thread.is_alive()}

    policy = ReconnectPolicy(initial=0.0)
    with Peer(cut) as peer, seen.listener(peer.url, reconnect=policy) as listener:
        seen.wait_for(lambda: 300 in seen.prices, 3 * PATIENCE)
        assert ours() == {f"{listener.name}-callbacks", f"{listener.name}-relief"}
        # The peer's closed sockets keep their numbers, so count only connected ones.
        mine = [fd for fd in os.listdir("/proc/self/fd") if _connects_to(fd, peer.port)]
        assert len(mine) == 1


def _connects_to(fd: str, port: int) -> bool:
    """Whether a descriptor of this process is a socket connected to this port."""
    try:
        sock = socket.socket(fileno=os.dup(int(fd)))
    except OSError:
        return False
    with sock:
        try:
            return bool(sock.getpeername()[1] == port)
        except (OSError, IndexError, TypeError):
            return False


# Exits.


#: Programs and their exit codes.
EXITS = {
    "running": 0,
    "inline": 0,
    "not_kept": 0,
    "sys_exit": 7,
    "exception": 1,
    "full_queue": 0,
    "stuck_inline_callback": 0,
    "backoff": 0,
    "loop_in_thread": 0,
}


@pytest.mark.parametrize(("name", "code"), EXITS.items())
def test_the_interpreter_exits_with_a_running_listener(market: LocalServer, name: str, code: int) -> None:
    """A script exits at its end, with its own exit code, and without an unexpected error."""
    with Program("endings", name, market.url) as program:
        assert program.read_line() == "FLOWS"
        assert program.process.wait(PATIENCE) == code
        _, output, errors = program.wait()
    assert output == ""
    # What a listener has to report is printed if no logging is set up.
    expected = {"exception": "ZeroDivisionError\n", "stuck_inline_callback": " wait are dropped\n"}
    assert errors.endswith(expected[name]) if name in expected else errors == ""


@pytest.mark.parametrize("dispatch_", ["thread", "inline"])
def test_the_interpreter_exits_during_a_gap(dispatch_: str) -> None:
    """History that doesn't answer doesn't delay the exit."""
    server = LocalServer(SimulatedMarket([PAIR], rate=200.0, seed=1), keys={"demo"}, resumable=False)
    server.stall_functions(None)
    with server, Program("endings", "gap", server.url, dispatch_) as program:
        assert program.read_line() == "FLOWS"
        server.drop_connections(only="streams")
        assert program.read_line() == "GAP"
        server.wait_until(lambda stats: stats.calls > 0)
        program.process.send_signal(signal.SIGUSR1)
        assert program.process.wait(PATIENCE) == 0
        assert program.wait() == (0, "", "")


def test_a_fork_in_a_callback_is_reported_in_the_child(market: LocalServer) -> None:
    """In a child that a callback forked, the listener says what is wrong, stop() returns, and the exit works."""
    with Program("forks", "fork_in_callback", market.url, options=["-W", "ignore::DeprecationWarning"]) as program:
        lines = [program.read_line(), program.read_line()]
        assert program.wait() == (0, "", "")
    assert [lines[0].split()[0], lines[1]] == ["CHILD", "PARENT 0"]
    assert "before a fork" in lines[0]
    assert "create a new StreamListener" in lines[0]


@pytest.mark.parametrize("dispatch", ["thread", "inline"])
@pytest.mark.parametrize("how", ["return", "exit"])
def test_a_child_that_returns_to_the_listener_takes_nothing_from_the_parent(how: str, dispatch: str) -> None:
    """A callback forks, and both processes return from it. Only the parent reads on, and keeps its connection."""

    def script(caller: Caller) -> None:
        caller.welcome()
        for number in range(1, 101):
            caller.send(tick(number))
            time.sleep(0.005)  # one read each
        caller.wait_until_left()

    options = ["-W", "ignore::DeprecationWarning"]
    with (
        Peer(script) as peer,
        Program("forks", "return_in_callback", peer.url, how, dispatch, options=options) as program,
    ):
        assert program.wait() == (0, "0 100 0\n", "")


# A pause of the whole process.


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
@pytest.mark.parametrize("lost", [True, False], ids=["given up by the server", "kept by the server"])
def test_a_suspended_process_continues(lost: bool) -> None:
    """After a pause longer than all timeouts, the stream continues, with at most one reconnect and without a loss."""
    tape = SimulatedMarket([PAIR], rate=100.0, seed=1)
    with LocalServer(tape, keys={"demo"}, resumable=False) as server:
        with Program("suspended", "suspended", server.url) as program:
            assert [program.read_line(), program.read_line()] == ["FLOWS", "READY"]
            first = server.stats.connections_total
            program.process.send_signal(signal.SIGSTOP)
            if lost:
                server.drop_connections()
            time.sleep(1.5)  # the pause itself
            program.process.send_signal(signal.SIGCONT)
            program.process.send_signal(signal.SIGUSR1)
            errors, reconnects = map(int, program.read_line().split())
            assert program.wait() == (0, "", "")
        # A second connection asks tick history for the pause.
        assert server.stats.connections_total - first <= 2 * lost
    assert errors <= 1
    assert reconnects == int(lost)


# Shortages.


@linux_only
def test_descriptors_run_out_while_reconnecting(market: LocalServer) -> None:
    """Without free descriptors, attempts fail with a `ConnectionFailed` that says so, and a later one succeeds."""
    with Program("scarcity", "no_descriptors", market.url) as program:
        assert [program.read_line(), program.read_line()] == ["FLOWS", "NONE LEFT"]
        market.drop_connections()
        text = program.read_line()
        assert "too many open files" in text
        assert text.endswith(" True")
        assert program.read_line() == "FLOWS"
        assert program.read_line() == "streaming 1"
        assert program.wait() == (0, "", "")


def test_threads_run_out_while_reconnecting(market: LocalServer) -> None:
    """If no thread can be started, attempts fail with `ConnectionFailed`, and a later one succeeds."""
    with Program("scarcity", "no_threads", market.url) as program:
        assert [program.read_line(), program.read_line()] == ["FLOWS", "NONE LEFT"]
        market.drop_connections()
        assert program.read_line() == "{('ConnectionFailed', \"can't start new thread\", True)}"
        assert program.read_line() == "FLOWS"
        assert program.wait() == (0, "", "")


def test_memory_runs_out_in_an_attempt(seen: Seen) -> None:
    """A MemoryError during an attempt becomes a `ConnectionFailed`, and the next attempt works."""
    keys = iter([lambda: str(bytearray(sys.maxsize)), lambda: "demo"])
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=lambda: next(keys)()):
        seen.wait_ticks(1)
    (error,) = seen.errors
    assert type(error) is ConnectionFailed
    assert isinstance(error.__cause__, MemoryError)


@linux_only
def test_memory_runs_out_while_a_message_is_read() -> None:
    """A message that doesn't fit into memory costs its connection, and the listener continues."""
    go_on = threading.Event()

    def huge(caller: Caller) -> None:
        caller.welcome(tick(1))
        assert go_on.wait(PATIENCE)
        caller.send(b"\x81\x7f" + (400 << 20).to_bytes(8, "big"))
        chunk = b" " * (1 << 20)
        for _ in range(400):
            caller.send(chunk)
        caller.wait_until_left()

    with Peer(huge, stay(tick(2))) as peer, Program("scarcity", "no_memory", peer.url) as program:
        assert [program.read_line(), program.read_line()] == ["FLOWS", "LITTLE LEFT"]
        go_on.set()
        assert program.read_line() == "FLOWS"
        kind, _, reason = program.read_line().partition(" ")
        assert (kind, "memory" in reason.lower()) == ("ConnectionFailed", True), reason
        assert program.wait() == (0, "", "")


# Signal handlers.


def interrupt_within(codes: set[CodeType], line: int, handler: Any) -> tuple[Any, list[float]]:
    """A trace function that simulates a signal: it calls `handler` at the n-th line executed in these functions."""
    passed = itertools.count()
    took: list[float] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in codes:
            return None
        if event == "line" and next(passed) == line and not took:
            begun = time.monotonic()
            handler()
            took.append(time.monotonic() - begun)
        return trace

    return trace, took


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "latest"])
@pytest.mark.parametrize("line", range(4))
def test_a_signal_handler_can_stop_during_stats(seen: Seen, overflow: str, line: int) -> None:
    """stop() in a signal handler doesn't wait for the interrupted count of queued ticks."""
    kinds = {"block": BlockQueue, "drop_oldest": DropOldestQueue, "latest": LatestQueue}
    results: list[bool] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, overflow=overflow, queue_size=8).start()
        seen.wait_ticks(1)
        codes = {kinds[overflow].depths.__code__, ThreadDelivery.depths.__code__, ThreadDelivery.depth.__code__}
        trace, took = interrupt_within(codes, line, lambda: results.append(listener.stop(PATIENCE)))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in range(4):
                assert listener.stats
        finally:
            sys.settrace(before)
        assert results == [True]
        assert took[0] < PATIENCE / 2


@pytest.mark.parametrize("line", range(4))
def test_a_signal_handler_can_stop_as_a_loop_starts(seen: Seen, line: int) -> None:
    """stop() in a signal handler doesn't wait for the interrupted start of a loop, and the loop ends."""
    results: list[bool] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url).start()
        seen.wait_ticks(1)
        trace, took = interrupt_within(
            {Iterations.open.__code__}, line, lambda: results.append(listener.stop(PATIENCE))
        )
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in listener:
                pass
        finally:
            sys.settrace(before)
        assert results == [True]
        assert took[0] < PATIENCE / 2


@pytest.mark.parametrize("line", range(9))
@pytest.mark.parametrize("dispatch_", ["thread", "inline"])
def test_a_signal_handler_can_stop_during_add_and_remove(seen: Seen, dispatch_: str, line: int) -> None:
    """stop() in a signal handler doesn't wait for the interrupted request to the network thread."""
    results: list[bool] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch_).start()
        seen.wait_ticks(1)
        trace, took = interrupt_within({EventLoop.post.__code__}, line, lambda: results.append(listener.stop(PATIENCE)))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            listener.add("ETH:USDC")
            listener.remove("ETH:USDC")
        finally:
            sys.settrace(before)
        assert results == [True]
        assert took[0] < PATIENCE / 2
        listener.stop()


def code_of(*classes: type) -> set[CodeType]:
    """The code of all methods of these classes."""
    return {method.__code__ for each in classes for method in vars(each).values() if hasattr(method, "__code__")}


def lines_of_start(seen: Seen, handler: Any) -> Iterator[tuple[Any, list[float]]]:
    """Start a listener once for each line that runs in its start. Call the handler with it before that line."""
    for line in itertools.count():
        with Peer(stay(ticks(1, 100))) as peer:
            listener = seen.listener(peer.url)
            codes = code_of(type(listener), Run, EventLoop)
            trace, took = interrupt_within(codes, line, functools.partial(handler, listener))
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                listener.start()
            except KeyboardInterrupt:
                took.append(0.0)
            finally:
                sys.settrace(before)
            if not took:
                assert listener.stop(PATIENCE)
                return
            yield listener, took


def test_a_signal_handler_can_stop_during_start(seen: Seen) -> None:
    """stop() doesn't wait for the start that the handler interrupted, and the listener ends afterwards."""
    count = 0
    for listener, took in lines_of_start(seen, lambda listener: listener.stop(PATIENCE)):
        count += 1
        assert took[0] < PATIENCE / 2
        assert listener.stop(PATIENCE)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(listener.name)]
    assert count > 20


# An interrupt between two statements leaves sockets to the garbage collection, which warns about them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_during_start_leaves_a_usable_listener(seen: Seen) -> None:
    """Wherever it comes, the next start() works, and stop() ends everything."""

    def interrupt(listener: Any) -> None:
        raise KeyboardInterrupt

    count = 0
    for listener, _ in lines_of_start(seen, interrupt):
        count += 1
        listener.start()
        seen.wait_for(lambda running=listener: running.stats.ticks)
        assert listener.stop(PATIENCE)
    gc.collect()  # while the filter applies
    assert count > 20


def test_a_signal_handler_can_close_during_the_first_call() -> None:
    """close() leaves no thread that the interrupted call starts afterwards."""
    codes = code_of(CallPool, CallScheduler, EventLoop)
    for line in itertools.count():
        with Peer(refuse("503 Service Unavailable")) as peer:
            client = FunctionClient("demo", peer.url, name="closed-in-a-call", reconnect=None)
            trace, took = interrupt_within(codes, line, client.close)
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                with pytest.raises(FinxStreamerError):
                    client.authenticate()
            finally:
                sys.settrace(before)
            if not took:
                client.close()
                break
            wait_until(lambda: not threads_of("closed-in-a-call"))
    assert line > 20


@linux_only
def test_a_failed_start_leaves_no_descriptor() -> None:
    """If no thread can be started, each attempt closes what it has opened, and none hangs."""
    with Program("scarcity", "failed_starts", "unused") as program:
        assert program.wait() == (0, "0\nMemoryError\n0\n", "")


@linux_only
def test_descriptors_run_out_at_the_first_call(market: LocalServer) -> None:
    """A function call fails with a `ConnectionFailed` that says so, and works later."""
    with Program("scarcity", "no_descriptors_for_a_call", market.url) as program:
        assert program.wait() == (0, "too many open files\nTrue\n", "")
