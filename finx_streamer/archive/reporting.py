"""Report a writer's problems on a thread of its own, so that a disk that hangs doesn't delay the reports."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import attrs

from ..clock import monotonic
from ..connection.wakeup import Wakeup

#: Drops are reported at most this often, in seconds.
_DROPS_EVERY = 1.0
_log = logging.getLogger("finx_streamer")


@attrs.frozen
class WriterState:
    """How a writer keeps up, for `metrics`."""

    queued_bytes: int
    #: How many bytes may wait.
    limit_bytes: int
    #: How many entries aren't recorded.
    dropped: int
    is_writable: bool


class Reports:
    """Problems on their way to a callback."""

    def __init__(self, name: str, on_problem: Callable[[str], object] | None) -> None:
        self._name = name
        self._on_problem = on_problem or (lambda message: _log.error("%s", message))
        self._problems: deque[str] = deque()
        #: How many entries were dropped so far.
        self.dropped = 0
        self._reported = 0
        self._closed = False
        self._wakeup = Wakeup()
        self._thread = threading.Thread(target=self._run, name="finx-archive-reports", daemon=True)
        self._thread.start()

    def put(self, problem: str) -> None:
        """Report a problem. Never waits."""
        self._problems.append(f"{self._name}: {problem}")
        self._wakeup.wake()

    def count_dropped(self, entries: int) -> None:
        """Report dropped entries soon, together with others. One thread may call this at a time."""
        first = self.dropped == self._reported
        self.dropped += entries
        if first:
            self._wakeup.wake()

    def close(self, timeout: float = 1.0) -> None:
        """Report the rest."""
        self._closed = True
        self._wakeup.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        report_at = 0.0
        while True:
            closed = self._closed
            while self._problems:
                self._report(self._problems.popleft())
            now = monotonic()
            if (count := self.dropped - self._reported) and (closed or now >= report_at):
                self._reported += count
                report_at = now + _DROPS_EVERY
                self._report(f"{self._name}: {count:,} entries are not recorded, because the queue is full")
                count = 0
            if closed:
                return
            self._wakeup.wait(report_at - now if count else None)

    def _report(self, problem: str) -> None:
        try:
            self._on_problem(problem)
        except Exception:
            _log.exception("on_problem failed")
