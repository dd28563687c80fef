"""Threads, descriptors, memory, processes: nothing grows, nothing hangs, and what runs out is told and survived."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from finx_streamer import ConnectionFailed, ReconnectPolicy
from finx_streamer.delivery.iteration import Iterations
from finx_streamer.delivery.queues import BlockQueue, DropOldestQueue, LatestQueue
from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.streaming.streams import Network
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, stay, tick, ticks

ROOT = Path(__file__).resolve().parents[2]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
#: A script's own preface: a listener that prints FLOWS at its first tick, with the settings of the test.
PREFACE = r"""
import os, resource, signal, sys, threading, time
from finx_streamer import ConnectionFailed, ReconnectPolicy, StreamListener
flows = threading.Event()
quick = ReconnectPolicy(initial=0.02, factor=1.0, jitter=False)
def say(tick):
    if not flows.is_set():
        # In one piece, and before anything else that is printed.
        os.write(1, b"FLOWS\n")
        flows.set()
def make(**settings):
    defaults = dict(api_key="demo", endpoint=sys.argv[1], on_tick=say, reconnect=quick)
    return StreamListener("BTC:USDC", **defaults | settings)
"""


class Running:
    """A script in a process of its own, whose lines are read one after another. It is killed when its time is over."""

    def __init__(self, body: str, url: str, *options: str) -> None:
        source = PREFACE + textwrap.dedent(body)
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", source, url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._killer = threading.Timer(2 * PATIENCE, self.process.kill)

    def __enter__(self) -> Running:
        self._killer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._killer.cancel()
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        return line.rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what else it printed and complained of."""
        output, complaints = self.process.communicate(timeout=2 * PATIENCE)
        return self.process.returncode, output, complaints


@pytest.fixture
def market() -> Any:
    """A server with ticks that do not end."""
    with LocalServer(SimulatedMarket([PAIR], rate=200.0, seed=1), keys={"demo"}) as server:
        yield server


# Nothing grows.


@linux_only
def test_500_lives_from_five_threads_leave_nothing(market: LocalServer) -> None:
    """After a warm-up, 500 listeners started and stopped by five threads at once leave as many threads and descriptors
    as there were, and at most 2 MiB of memory."""
    body = """
        import gc
        from concurrent.futures import ThreadPoolExecutor
        def live(number):
            # As far as the handshake, as far as a tick, in the midst of a backoff; by both ways of dispatch.
            begun = threading.Event()
            listener = make(
                endpoint=sys.argv[1] if number % 3 else "ws://127.0.0.1:9/",
                on_tick=lambda tick: begun.set(),
                on_error=lambda error: begun.set(),
                dispatch="inline" if number % 2 else "thread",
            ).start()
            if number % 5:
                assert begun.wait(20)
            assert listener.stop(20, drain=number % 7 == 0)
        def measure():
            gc.collect()
            pages = int(open("/proc/self/statm").read().split()[1])
            return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * resource.getpagesize()
        def round(lives):
            with ThreadPoolExecutor(5) as pool:
                list(pool.map(live, range(lives)))
        round(500)
        before = measure()
        round(500)
        after = measure()
        print(after[0] - before[0], after[1] - before[1], after[2] - before[2], flush=True)
    """
    with Running(body, market.url) as script:
        fds, threads, memory = map(int, script.line().split())
        assert script.end() == (0, "", "")
    assert (fds, threads) == (0, 0)
    assert memory <= 2 * 1024 * 1024


@linux_only
def test_reconnects_leave_nothing(seen: Seen) -> None:
    """A stream that is cut 300 times has the descriptors and the threads that it began with."""

    def cut(caller: Caller) -> None:
        caller.welcome(tick(caller.number))
        if caller.number < 300:
            caller.reset()
        else:
            caller.wait_until_left()

    def ours() -> set[str]:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith(listener.name)]
        for thread in threads:
            # It has handed its connection over, and may need a moment to end.
            if "handshake" in thread.name:
                thread.join(PATIENCE)
        return {thread.name for thread in threads if thread.is_alive()}

    policy = ReconnectPolicy(initial=0.0)
    with Peer(cut) as peer, seen.listener(peer.url, reconnect=policy) as listener:
        seen.wait_for(lambda: 300 in seen.prices, 3 * PATIENCE)
        assert {f"{listener.name}-callbacks", f"{listener.name}-network"} == ours()
        # Its own, and the peer's, which keeps the number of each that it closed.
        mine = [fd for fd in os.listdir("/proc/self/fd") if _connects_to(fd, peer.port)]
        assert len(mine) == 1


def _connects_to(fd: str, port: int) -> bool:
    """Whether a descriptor of this process is a socket that is connected to a port of this machine."""
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


EXITS = {
    "running": ("listener = make().start(); flows.wait()", 0),
    "inline": ("listener = make(dispatch='inline').start(); flows.wait()", 0),
    "no reference kept": ("make().start(); flows.wait()", 0),
    "sys.exit": ("listener = make().start(); flows.wait(); sys.exit(7)", 7),
    "an exception": ("listener = make().start(); flows.wait(); 1 / 0", 1),
    "a full queue": (
        "listener = make(queue_size=1, on_tick=lambda tick: (say(tick), time.sleep(0.05))).start(); flows.wait()",
        0,
    ),
    "a stuck inline callback": (
        "listener = make(dispatch='inline', on_tick=lambda t: (say(t), time.sleep(60))).start(); flows.wait()",
        0,
    ),
    "a backoff": ("listener = make().start(); flows.wait(); failed = make(endpoint='ws://127.0.0.1:9/').start()", 0),
    "within a thread that loops": (
        "listener = make()\nthreading.Thread(target=lambda: list(listener), daemon=True).start(); flows.wait()",
        0,
    ),
}


@pytest.mark.parametrize(("body", "code"), EXITS.values(), ids=EXITS)
def test_the_interpreter_exits_with_a_listener_running(market: LocalServer, body: str, code: int) -> None:
    """A script that comes to its end does so at once, in silence, with its own exit code."""
    with Running(body, market.url) as script:
        assert script.line() == "FLOWS"
        assert script.process.wait(PATIENCE) == code
        _, output, complaints = script.end()
    assert output == ""
    assert (complaints == "") or (code == 1 and complaints.endswith("ZeroDivisionError: division by zero\n"))


@pytest.mark.parametrize("dispatch_", ["thread", "inline"])
def test_the_interpreter_exits_in_the_midst_of_a_gap(dispatch_: str) -> None:
    """History that does not answer holds no exit up."""
    body = f"""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        states = []
        listener = make(dispatch={dispatch_!r}, on_state=lambda symbol, state: states.append(state.value)).start()
        flows.wait()
        while states.count("streaming") < 2:
            time.sleep(0.01)
        print("GAP", flush=True)
        signal.sigwait([signal.SIGUSR1])
    """
    server = LocalServer(SimulatedMarket([PAIR], rate=200.0, seed=1), keys={"demo"})
    server.stall_functions(None)
    with server, Running(body, server.url) as script:
        assert script.line() == "FLOWS"
        server.drop_connections(only="streams")
        assert script.line() == "GAP"
        server.wait_until(lambda stats: stats.calls > 0)
        script.process.send_signal(signal.SIGUSR1)
        assert script.process.wait(PATIENCE) == 0
        assert script.end() == (0, "", "")


def test_a_fork_within_a_callback_is_told_in_the_child(market: LocalServer) -> None:
    """In a child that was forked by a callback, the listener says what is wrong, stop() returns, and the exit works."""
    body = """
        child = []
        def fork(tick):
            if not child:
                child.append(os.fork())
                if child[0] == 0:
                    said = "nothing"
                    try:
                        listener.stop()
                        listener.start()
                    except ValueError as error:
                        said = str(error)
                    print("CHILD", said, flush=True)
                    os._exit(0)
                print("PARENT", os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]), flush=True)
        listener = make(on_tick=fork, dispatch="inline").start()
        while not child:
            time.sleep(0.01)
        listener.stop()
    """
    with Running(body, market.url, "-W", "ignore::DeprecationWarning") as script:
        lines = [script.line(), script.line()]
        assert script.end() == (0, "", "")
    assert [lines[0].split()[0], lines[1]] == ["CHILD", "PARENT 0"]
    assert "before a fork" in lines[0]
    assert "make a new one here" in lines[0]


# A pause of the whole process.


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
@pytest.mark.parametrize("lost", [True, False], ids=["given up by the server", "kept by the server"])
def test_a_suspended_process_goes_on(lost: bool) -> None:
    """After a pause many times as long as all bounds, the stream goes on: over the old connection where the server kept
    it, else over one new one. There is no storm of attempts, and no tick is lost."""
    tape = SimulatedMarket([PAIR], rate=100.0, seed=1)
    with LocalServer(tape, keys={"demo"}) as server:
        body = """
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            seen, errors = [], []
            listener = make(on_error=errors.append, ping_interval=0.2, ping_timeout=0.2, connect_timeout=5.0)
            listener.on_tick(lambda tick: seen.append(tick))
            listener.start()
            flows.wait()
            print("READY", flush=True)
            signal.sigwait([signal.SIGUSR1])
            now = len(seen)
            while len(seen) < now + 100:
                time.sleep(0.01)
            print(len(errors), listener.stats.reconnects, flush=True)
            listener.stop()
        """
        with Running(body, server.url) as script:
            assert [script.line(), script.line()] == ["FLOWS", "READY"]
            first = server.stats.connections_total
            script.process.send_signal(signal.SIGSTOP)
            if lost:
                server.drop_connections()
            time.sleep(1.5)  # the pause itself
            script.process.send_signal(signal.SIGCONT)
            script.process.send_signal(signal.SIGUSR1)
            errors, reconnects = map(int, script.line().split())
            assert script.end() == (0, "", "")
        # Another connection asks tick history what passed meanwhile.
        assert server.stats.connections_total - first <= 2 * lost
    assert errors <= 1
    assert int(lost) == reconnects


# What runs out.


@linux_only
def test_descriptors_run_out_while_reconnecting(market: LocalServer) -> None:
    """With no descriptor left an attempt is a `ConnectionFailed` that says so, with a backoff; it recovers."""
    body = """
        errors = []
        told = threading.Condition()
        def on_error(error):
            with told:
                errors.append(error)
                told.notify_all()
        listener = make(on_error=on_error).start()
        flows.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        print("NONE LEFT", flush=True)
        with told:
            assert told.wait_for(lambda: len(errors) >= 10, 20)
            assert {ConnectionFailed} == {type(error) for error in errors}, errors
            print(errors[-1].reason, errors[-1].will_retry, flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        flows.clear()
        assert flows.wait(20)
        print(listener.state.value, listener.stats.reconnects, flush=True)
        assert listener.stop()
    """
    with Running(body, market.url) as script:
        assert [script.line(), script.line()] == ["FLOWS", "NONE LEFT"]
        market.drop_connections()
        text = script.line()
        assert "too many open files" in text
        assert text.endswith(" True")
        assert script.line() == "FLOWS"
        assert script.line() == "streaming 1"
        assert script.end() == (0, "", "")


def test_threads_run_out_while_reconnecting(market: LocalServer) -> None:
    """With no thread to be had an attempt is a `ConnectionFailed`, with a backoff; when there are some it recovers."""
    body = """
        begin, allowed = threading.Thread.start, threading.Event()
        allowed.set()
        def start(thread):
            if not allowed.is_set():
                raise RuntimeError("can't start new thread")
            begin(thread)
        threading.Thread.start = start
        errors = []
        listener = make(on_error=errors.append).start()
        flows.wait()
        allowed.clear()
        print("NONE LEFT", flush=True)
        while len(errors) < 10:
            time.sleep(0.01)
        print({(type(error).__name__, error.reason, error.will_retry) for error in errors[1:]}, flush=True)
        allowed.set()
        flows.clear()
        assert flows.wait(20)
        assert listener.stop()
    """
    with Running(body, market.url) as script:
        assert [script.line(), script.line()] == ["FLOWS", "NONE LEFT"]
        market.drop_connections()
        assert script.line() == "{('ConnectionFailed', \"can't start new thread\", True)}"
        assert script.line() == "FLOWS"
        assert script.end() == (0, "", "")


def test_memory_runs_out_in_an_attempt(seen: Seen) -> None:
    """A MemoryError in the midst of an attempt is a `ConnectionFailed` like any other, and the next attempt works."""
    keys = iter([lambda: str(bytearray(sys.maxsize)), lambda: "demo"])
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=lambda: next(keys)()):
        seen.wait_ticks(1)
    (error,) = seen.errors
    assert ConnectionFailed is type(error)
    assert isinstance(error.__cause__, MemoryError)


@linux_only
def test_memory_runs_out_while_a_message_is_read(seen: Seen) -> None:
    """A message for which there is no memory costs its connection, and not the listener."""
    body = """
        later = ReconnectPolicy(initial=0.3, factor=1.0, jitter=False)
        errors = []
        def on_error(error):
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            errors.append(error)
        listener = make(on_error=on_error, max_message_size=1 << 30, backfill=False, reconnect=later).start()
        flows.wait()
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (48 << 20), resource.RLIM_INFINITY))
        print("LITTLE LEFT", flush=True)
        flows.clear()
        assert flows.wait(20)
        print(type(errors[0]).__name__, errors[0].reason, errors[0].will_retry, flush=True)
        assert listener.stop()
    """
    go_on = threading.Event()

    def huge(caller: Caller) -> None:
        caller.welcome(tick(1))
        assert go_on.wait(PATIENCE)
        caller.send(b"\x81\x7f" + (400 << 20).to_bytes(8, "big"))
        chunk = b" " * (1 << 20)
        for _ in range(400):
            caller.send(chunk)
        caller.wait_until_left()

    with Peer(huge, stay(tick(2))) as peer, Running(body, peer.url) as script:
        assert [script.line(), script.line()] == ["FLOWS", "LITTLE LEFT"]
        go_on.set()
        assert script.line() == "FLOWS"
        kind, _, told = script.line().partition(" ")
        assert (kind, "memory" in told.lower()) == ("ConnectionFailed", True), told
        assert script.end() == (0, "", "")


# A signal handler may strike anywhere.


def interrupt_within(codes: set[CodeType], line: int, handler: Any) -> tuple[Any, list[float]]:
    """A trace function that stands for a signal: it calls `handler` once, at the given one of the lines of these."""
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
def test_stop_in_the_midst_of_stats(seen: Seen, overflow: str, line: int) -> None:
    """A handler that stops the listener while its thread counts what waits need not wait for that."""
    kinds = {"block": BlockQueue, "drop_oldest": DropOldestQueue, "latest": LatestQueue}
    results: list[bool] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, overflow=overflow, queue_size=8).start()
        seen.wait_ticks(1)
        codes = {kinds[overflow].depths.__code__, kinds[overflow].depth.__code__}
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
def test_stop_as_a_loop_opens(seen: Seen, line: int) -> None:
    """A handler that stops the listener while its thread begins a loop need not wait for that, and the loop ends."""
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
def test_stop_in_the_midst_of_asking_the_network_side(seen: Seen, dispatch_: str, line: int) -> None:
    """A handler that stops the listener while its thread has just asked for something else need not wait for that."""
    results: list[bool] = []
    with Peer(stay(ticks(1, 100))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch_).start()
        seen.wait_ticks(1)
        trace, took = interrupt_within({Network.post.__code__}, line, lambda: results.append(listener.stop(PATIENCE)))
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
