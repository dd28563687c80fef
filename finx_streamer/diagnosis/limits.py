"""Bound the steps of `doctor`: some calls of the system, such as DNS, have no timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ..clock import monotonic

#: Seconds. No step waits longer.
LIMIT = 5.0

_T = TypeVar("_T")


class Deadline:
    """The end of one step, by default `LIMIT` seconds after its start. All waits of the step share it."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._end = monotonic() + limit

    @property
    def left(self) -> float:
        """The seconds left, or 0."""
        return max(0.0, self._end - monotonic())

    def run(self, step: Callable[[], _T]) -> _T:
        """Return the result of a step, or raise `TimeoutError`."""
        return self.wait(start(step))

    def wait(self, outcome: Future[_T]) -> _T:
        """Return the result of a step that was started, or raise `TimeoutError`."""
        return outcome.result(self.left)


def start(step: Callable[[], _T]) -> Future[_T]:
    """Run a step on a thread. If it takes too long, it is left behind there."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(step())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="finx-streamer-doctor", daemon=True).start()
    return outcome


def timed(step: Callable[[], _T]) -> tuple[_T, float]:
    """Return the result of a step, and how many milliseconds it took."""
    start = time.perf_counter()
    result = step()
    return result, (time.perf_counter() - start) * 1_000
