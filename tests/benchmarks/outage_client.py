"""The client of `reconnects`: a listener that runs until standard input is closed."""

from __future__ import annotations

import json
import sys
import time

import child
import ticks

from finx_streamer import StreamListener


def main(port: int, pairs: int, dispatch: str, timeout: float) -> None:
    """Listen, then stop and report how long that took."""
    errors: list[object] = []
    listener = StreamListener(
        *map(ticks.pair, range(pairs)),
        api_key="bench",
        endpoint=f"ws://127.0.0.1:{port}/",
        on_tick=child.fail,
        on_error=errors.append,
        dispatch=dispatch,
    )
    before = child.threads()
    listener.start()
    sys.stdin.read()
    start = time.perf_counter()
    stopped = listener.stop(timeout=timeout)
    elapsed = time.perf_counter() - start
    child.report(stop_seconds=elapsed, stopped=stopped, threads_left=child.threads() - before, errors=len(errors))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
