"""The client of `shared`: cut off from a service with slow history, it fills the gaps of all pairs."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import child

sys.path.insert(0, str(Path(__file__).parents[2]))

from finx_streamer import Endpoint, GapNotFilled, StreamListener
from tests.support.market import tick
from tests.support.second_wire import SecondWire

#: Ticks of each pair before, during and after the outage.
_BEFORE, _MISSED, _AFTER = 1, 2, 1


def main(pairs: int, delay: float) -> None:
    """Run the service, too: it has nothing to do but answer."""
    names = [f"P{number}:USD" for number in range(pairs)]
    changed = threading.Condition()
    gaps, got, errors = list[object](), list[object](), list[object]()

    def keep(entries: list[object], entry: object) -> None:
        with changed:
            entries.append(entry)
            changed.notify_all()

    def wait(entries: list[object], count: int) -> None:
        with changed:
            changed.wait_for(lambda: len(entries) >= count)

    with SecondWire(confirms=True, delay=delay) as service:
        listener = StreamListener(
            *names,
            api_key="bench",
            endpoint=Endpoint(service.url, wire="subscribe"),
            on_tick=lambda tick: keep(got, tick),
            on_gap=lambda gap: keep(gaps, gap),
            on_error=lambda error: keep(errors, error),
            backfill=True,
        )
        with listener:
            service.wait_subscribed(pairs)
            service.publish(*(tick(1, name) for name in names))
            wait(got, pairs)
            service.refusing = True
            service.drop()
            service.publish(*(tick(number, name) for number in (2, 3) for name in names))
            start = time.perf_counter()
            service.refusing = False
            service.wait_subscribed(pairs)
            subscribed_after = time.perf_counter() - start
            service.publish(*(tick(4, name) for name in names))
            wait(gaps, pairs)
            seconds = time.perf_counter() - start
            wait(got, pairs * (_BEFORE + _MISSED + _AFTER))
        unfilled = sum(isinstance(error, GapNotFilled) for error in errors)
        child.report(
            seconds=seconds,
            subscribed_after=subscribed_after,
            unfilled=unfilled,
            calls=service.asked("tickHistory").total(),
        )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
