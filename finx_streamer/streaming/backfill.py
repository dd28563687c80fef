"""Fetches history for gaps, beside the network thread: on a few threads, page by page, no faster than it is taken."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

import attrs

from ..errors import FinxStreamerError
from ..values import Tick
from .interfaces import History

logger = logging.getLogger("finx_streamer")

#: How many gaps are filled side by side. Others wait for their turn.
SIDE_BY_SIDE = 4
#: How many pages may be fetched before the first of them is taken.
_AHEAD = 2
#: How many days in a row may be asked for in vain: a tick with a wrong time may have named a far year.
_EMPTY_DAYS = 400
#: How long `close` waits for the threads, which end as soon as their call is interrupted.
_PATIENCE = 1.0


@attrs.define(eq=False)
class Job:
    """One fetch. `on_page` and, once, `on_end` (with the reason where it failed) are called in the network thread."""

    pair: str
    start: datetime
    end: datetime | None
    on_page: Callable[[list[Tick]], None]
    on_end: Callable[[str | None], None]
    cancelled: bool = False
    #: Where it is fetched from, while that goes on.
    history: History | None = None
    _room: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(_AHEAD))

    def cancel(self) -> None:
        """Nothing of it is wanted any more. A call that hangs is interrupted."""
        self.cancelled = True
        self._room.release()
        history = self.history
        if history is not None:
            # In the network thread: a handshake that hangs in name resolution must not hold up other streams.
            history.interrupt()

    def taken(self) -> None:
        """A page was taken: the next may come."""
        self._room.release()

    def wait_for_room(self) -> None:
        self._room.acquire()


class Backfiller:
    """The threads and their work. `connect` gives a thread its history; `post` reaches the network thread, and says
    False once that has ended.

    A thread lives as long as there are jobs, and so does its history: what is left of an earlier outage could be a
    connection that has gone silent.
    """

    def __init__(self, connect: Callable[[], History], post: Callable[[Callable[[], None]], bool], name: str) -> None:
        self._connect = connect
        self._post = post
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: dict[threading.Thread, Job | None] = {}
        #: Those that take no further job, and have still to close their history.
        self._leaving: set[threading.Thread] = set()
        self._numbers = itertools.count(1)
        self._closed = False

    def fetch(self, job: Job) -> None:
        """Begin, or wait for one of the threads to be free. For the network thread."""
        with self._lock:
            if self._closed:
                return
            self._waiting.append(job)
            if len(self._running) >= SIDE_BY_SIDE:
                return
            name = f"{self._name}-backfill-{next(self._numbers)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._running[thread] = None
        try:
            thread.start()
        except RuntimeError as cause:
            # No thread to be had: the system's limit, or the interpreter is going down.
            with self._lock:
                del self._running[thread]
                if self._running or job not in self._waiting:
                    return
                self._waiting.remove(job)
            reason = str(cause)
            self._post(lambda: job.on_end(reason))

    def close(self) -> None:
        """End; what is under way is given up. Bounded, and from any thread."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            running, threads = dict(self._running), [*self._running, *self._leaving]
        for job in running.values():
            if job is not None:
                job.cancel()
        patience_ends = time.monotonic() + _PATIENCE
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, patience_ends - time.monotonic()))

    def _work(self) -> None:
        """In a thread of its own, as long as there are jobs."""
        here = threading.current_thread()
        history: History | None = None
        while True:
            with self._lock:
                job = self._waiting.popleft() if self._waiting else None
                self._running[here] = job
                if job is None:
                    del self._running[here]
                    self._leaving.add(here)
                    break
            reason = None
            try:
                history = history or self._connect()
                self._run(job, history)
            except FinxStreamerError as error:
                reason = f"no history ({error})"
            except BaseException as crash:
                # A user's parse_price may raise SystemExit, too; this thread has to tell its end nonetheless.
                logger.exception("unexpected %s while history was fetched", type(crash).__name__)
                reason = f"no history ({type(crash).__name__})"
            if not job.cancelled:
                self._post(lambda job=job, reason=reason: job.on_end(reason))  # type: ignore[misc]
            if history is not None and (job.cancelled or reason is not None):
                history.close()
                history = None
        if history is not None:
            history.close()
        with self._lock:
            self._leaving.discard(here)

    def _run(self, job: Job, history: History) -> None:
        job.history = history
        try:
            if job.cancelled:
                return  # without a word to the server
            for page in history.history_pages(job.pair, job.start, job.end, empty_days=_EMPTY_DAYS):
                job.wait_for_room()
                if job.cancelled or not self._post(lambda page=page: job.on_page(page)):  # type: ignore[misc]
                    break
        finally:
            job.history = None
