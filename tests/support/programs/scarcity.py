"""Scripts in which threads, descriptors or memory run out while a listener reconnects."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import resource
import sys
import threading

from finx_streamer import ConnectionFailed, FinxStreamerError, FunctionClient, ReconnectPolicy, StreamListener, Tick
from tests.support.programs.common import NOWHERE, PAIR, flows, make, run, url

PATIENCE = 20.0


class Errors:
    """Collects a listener's errors."""

    def __init__(self) -> None:
        self.seen: list[FinxStreamerError] = []
        self._changed = threading.Condition()

    def add(self, error: FinxStreamerError) -> None:
        with self._changed:
            self.seen.append(error)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, PATIENCE)


def wait_for_next_tick() -> None:
    flows.clear()
    assert flows.wait(PATIENCE)


def no_descriptors() -> None:
    """Allow no more descriptors until ten attempts have failed."""
    errors = Errors()
    listener = make(on_error=errors.add).start()
    flows.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    print("NONE LEFT", flush=True)
    errors.wait(10)
    assert {type(error) for error in errors.seen} == {ConnectionFailed}, errors.seen
    last = errors.seen[-1]
    print(last.reason, last.will_retry, flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_for_next_tick()
    print(listener.state.value, listener.stats.reconnects, flush=True)
    assert listener.stop()


def no_threads() -> None:
    """Let no thread start until ten attempts have failed."""
    start_thread, allowed = threading.Thread.start, threading.Event()

    def start(thread: threading.Thread) -> None:
        if not allowed.is_set():
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    threading.Thread.start = start
    allowed.set()
    errors = Errors()
    listener = make(on_error=errors.add).start()
    flows.wait()
    allowed.clear()
    print("NONE LEFT", flush=True)
    errors.wait(10)
    print({(type(error).__name__, error.reason, error.will_retry) for error in errors.seen[1:]}, flush=True)
    allowed.set()
    wait_for_next_tick()
    assert listener.stop()


def no_memory() -> None:
    """Leave too little memory for the next message."""
    errors = Errors()

    def on_error(error: FinxStreamerError) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        errors.add(error)

    later = ReconnectPolicy(initial=0.3, factor=1.0, jitter=False)
    listener = make(on_error=on_error, max_message_size=1 << 30, backfill=False, reconnect=later).start()
    flows.wait()
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (48 << 20), resource.RLIM_INFINITY))
    print("LITTLE LEFT", flush=True)
    wait_for_next_tick()
    first = errors.seen[0]
    print(type(first).__name__, first.reason, first.will_retry, flush=True)
    assert listener.stop()


def few_descriptors() -> None:
    """Print each error and tick. The arguments after the URL: how many descriptors to leave, and from which attempt on.

    The key is requested before each attempt. That is when the descriptors are taken. After two more errors they are
    returned.
    """
    left, first = int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken: list[int] = []
    attempts = errors = 0
    done = threading.Event()

    def api_key() -> str:
        nonlocal attempts
        attempts += 1
        if attempts >= first and errors < first + 2:
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                for _ in range(left):
                    os.close(taken.pop())
        return "demo"

    def on_error(error: FinxStreamerError) -> None:
        nonlocal errors
        errors += 1
        os.write(1, f"{error}\n".encode())
        if errors == first + 2:
            while taken:
                os.close(taken.pop())

    def on_tick(_: Tick) -> None:
        os.write(1, b"tick\n")
        if errors >= first + 2:
            done.set()

    policy = ReconnectPolicy(initial=0.01, factor=1.0, jitter=False)
    settings = {"on_tick": on_tick, "on_error": on_error, "reconnect": policy, "dispatch": "inline"}
    with StreamListener(PAIR, api_key=api_key, endpoint=url(), backfill=False, **settings) as listener:
        while not done.wait(0.1):
            if listener.state.ended:
                sys.exit(3)


def no_thread_at_start() -> None:
    """Start a listener, allowing as many new threads as the argument in place of the URL says."""
    start_thread, allowed = threading.Thread.start, [int(sys.argv[2])]

    def start(thread: threading.Thread) -> None:
        if not allowed[0]:
            raise RuntimeError("can't start new thread")
        allowed[0] -= 1
        start_thread(thread)

    threading.Thread.start = start
    listener = StreamListener(PAIR, api_key="some-key", endpoint=NOWHERE)
    try:
        listener.start()
    except RuntimeError as error:
        print(error, listener.join(5), threading.active_count())


def failed_starts() -> None:
    """Start listeners and clients when no thread can be started. Print how many descriptors stay open."""
    listeners = [StreamListener(PAIR, api_key="some-key", endpoint=NOWHERE) for _ in range(5)]
    gc.disable()
    before = len(os.listdir("/proc/self/fd"))
    _thread.start_new_thread, start_new_thread = no_thread, _thread.start_new_thread
    for listener in listeners:
        with contextlib.suppress(RuntimeError):
            listener.start()
    for _ in range(5):
        with contextlib.suppress(ConnectionFailed):
            FunctionClient("some-key", NOWHERE).authenticate()
    print(len(os.listdir("/proc/self/fd")) - before, flush=True)
    _thread.start_new_thread = start_new_thread
    threading.Thread.start = no_memory_for_a_thread
    try:
        listeners[0].start()
    except MemoryError:
        print("MemoryError")
    print(len(os.listdir("/proc/self/fd")) - before, flush=True)


def no_thread(*arguments: object) -> None:
    raise RuntimeError("can't start new thread")


def no_memory_for_a_thread(thread: threading.Thread) -> None:
    raise MemoryError


def no_descriptors_for_a_call() -> None:
    """Make the first call of a client without a free descriptor."""
    client = FunctionClient("demo", url())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        client.authenticate()
    except ConnectionFailed as error:
        print(error.reason, flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(client.authenticate())
    client.close()


if __name__ == "__main__":
    run(globals())
