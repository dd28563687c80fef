"""The client of `gap`: a listener that is cut off once and fills the gap."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import child
from gap import KEY

sys.path.insert(0, str(Path(__file__).parents[2]))

from finx_streamer import Gap, GapNotFilled, State, StreamListener
from tests.support.market import PAIR


def main(url: str, dispatch: str) -> None:
    """Measure from the second connection to the gap's report, which comes behind its ticks."""
    streaming: list[tuple[float, float]] = []
    errors: list[str] = []
    filled = threading.Event()
    gaps: list[Gap] = []

    def on_state(symbol: str, state: State) -> None:
        if state is State.STREAMING:
            streaming.append((time.perf_counter(), time.process_time()))

    def on_gap(gap: Gap) -> None:
        gaps.append(gap)
        filled.set()

    def on_error(error: Exception) -> None:
        if isinstance(error, GapNotFilled):
            errors.append(str(error))

    def on_tick(tick: object) -> None:
        pass

    callbacks = {"on_tick": on_tick, "on_gap": on_gap, "on_state": on_state, "on_error": on_error}
    with StreamListener(PAIR, api_key=KEY, endpoint=url, backfill=True, dispatch=dispatch, **callbacks):
        if not filled.wait(100.0):
            child.fail("the gap was not filled within 100 s")
        seconds, cpu = time.perf_counter() - streaming[1][0], time.process_time() - streaming[1][1]
        child.report(seconds=seconds, cpu=cpu, ticks=gaps[0].ticks, errors=errors)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
