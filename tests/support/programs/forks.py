"""Scripts that fork while a listener runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from finx_streamer import Tick
from tests.support.programs.common import flows, make, run


def exit_code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_refusals(attempts: list[Callable[[], object]]) -> int:
    """How many attempts raise the error about a fork."""
    refusals = 0
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            refusals += "before a fork" in str(error)
    return refusals


def use_in_child() -> None:
    """Print the number of refused calls in the child."""
    listener = make().start()
    flows.wait()
    if (child := os.fork()) == 0:
        refusals = 0
        try:
            assert listener.stop()
            refusals = count_refusals(
                [
                    listener.start,
                    lambda: next(iter(listener)),
                    lambda: listener.add("ETH:USDC"),
                    lambda: listener.remove("BTC:USDC"),
                ]
            )
        finally:
            os._exit(refusals)
    print(exit_code_of(child), flush=True)


def leave_loop_in_child() -> None:
    """Print how many seconds the child needed to leave the loop."""
    child, started = None, time.monotonic()
    for _ in make():
        child = os.fork()
        started = time.monotonic()
        break
    assert child is not None
    if child == 0:
        os._exit(int(time.monotonic() - started))
    print(exit_code_of(child), flush=True)


def fork_in_callback() -> None:
    """Print what start() says in the child, then the child's exit code."""
    children: list[int] = []

    def in_child() -> NoReturn:
        reason = "no error"
        try:
            listener.stop()
            listener.start()
        except ValueError as error:
            reason = str(error)
        print("CHILD", reason, flush=True)
        os._exit(0)

    def fork(_: Tick) -> None:
        if not children:
            children.append(os.fork())
            if children[0] == 0:
                in_child()
            print("PARENT", exit_code_of(children[0]), flush=True)

    listener = make(on_tick=fork, dispatch="inline").start()
    while not children:
        time.sleep(0.01)
    listener.stop()


def return_in_callback() -> None:
    """Print the child's exit code, and how many ticks and reconnects the parent saw."""
    how, dispatch = sys.argv[3:]
    children: list[int] = []
    prices: list[float] = []

    def fork(tick: Tick) -> None:
        prices.append(tick["price"])
        if tick["price"] == 10.0:
            children.append(os.fork())
            if children[0] == 0:
                signal.alarm(5)  # it must not outlive a failed test
                if how == "exit":
                    sys.exit()
                return
        if tick["price"] == 100.0:
            done.set()

    done = threading.Event()
    listener = make(on_tick=fork, dispatch=dispatch, backfill=False).start()
    done.wait(5.0)
    print(exit_code_of(children[0]), len(prices), listener.stats.reconnects, flush=True)
    listener.stop()


if __name__ == "__main__":
    run(globals())
