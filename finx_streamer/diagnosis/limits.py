"""Bound the steps of `doctor`: some calls of the system, such as DNS, have no timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

#: Seconds. No step waits longer.
LIMIT = 5.0

_T = TypeVar("_T")


def within(limit: float, step: Callable[[], _T]) -> _T:
    """Return the result of a step, or raise `TimeoutError`. A step that takes longer is left behind on its thread."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(step())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="finx-streamer-doctor", daemon=True).start()
    return outcome.result(limit)


def timed(step: Callable[[], _T]) -> tuple[_T, float]:
    """Return the result of a step, and how many milliseconds it took."""
    start = time.perf_counter()
    result = step()
    return result, (time.perf_counter() - start) * 1_000
