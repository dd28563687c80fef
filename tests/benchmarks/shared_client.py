"""The client of `shared`: reports when all pairs have joined, and the memory after some ticks of each."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time

import child
import ticks

from finx_streamer import Endpoint, State, StreamListener


def main(port: int, pairs: int, count: int) -> None:
    """Listen until `count` ticks have arrived."""
    joined, complete = threading.Event(), threading.Event()
    left, unjoined = count, pairs

    def on_tick(tick: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            complete.set()

    def on_state(symbol: str, state: State) -> None:
        nonlocal unjoined
        unjoined -= state is State.STREAMING
        if not unjoined:
            joined.set()

    listener = StreamListener(
        *map(ticks.pair, range(pairs)),
        api_key="bench",
        endpoint=Endpoint(f"ws://127.0.0.1:{port}/", wire="subscribe"),
        on_tick=on_tick,
        on_state=on_state,
        on_error=child.fail,
        backfill=True,
        reconnect=None,
    )
    start = time.perf_counter()
    listener.start()
    joined.wait()
    joined_after = time.perf_counter() - start
    complete.wait()
    gc.collect()
    child.report(joined_after=joined_after, resident=child.resident(), threads=child.threads())


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
