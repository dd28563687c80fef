"""Start and stop many listeners from five threads. Print how many descriptors, threads and bytes remain."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.support.programs.common import NOWHERE, make, run, url

PATIENCE = 20.0


def live(number: int) -> None:
    """One life: until the handshake, the first tick or a backoff, with either dispatch."""
    reached = threading.Event()
    listener = make(
        endpoint=url() if number % 3 else NOWHERE,
        on_tick=lambda tick: reached.set(),
        on_error=lambda error: reached.set(),
        dispatch="inline" if number % 2 else "thread",
    ).start()
    if number % 5:
        assert reached.wait(PATIENCE)
    assert listener.stop(PATIENCE, drain=number % 7 == 0)


def measure() -> tuple[int, int, int]:
    gc.collect()
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * resource.getpagesize()


def leaks() -> None:
    """Measure after two rounds of lives. The argument after the URL: lives per round."""

    def go_round() -> None:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(live, range(int(sys.argv[3]))))

    go_round()
    before = measure()
    go_round()
    print(*(now - earlier for now, earlier in zip(measure(), before, strict=True)), flush=True)


if __name__ == "__main__":
    run(globals())
