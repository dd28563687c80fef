"""Fetch tick history for gaps, on a few worker threads and no faster than the loop's thread takes it."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import attrs

from ..clock import monotonic
from ..config.reconnect import is_fatal
from ..errors import CallTimeout, ConnectionFailed, DecodeError, FinxStreamerError
from ..values import Tick
from .delivered_window import earlier
from .interfaces import History

logger = logging.getLogger("finx_streamer")

#: Further jobs wait for a free worker.
MAX_CONCURRENT_FETCHES = 4
#: A job that follows history ends after a round of this many pages: then it is close to now.
_SHORT_ROUND = 2
#: How many ticks that can't be read a job keeps until a page is taken.
_MAX_BAD = 10_000
#: How many pages a job may fetch before the first one is taken.
_PAGES_AHEAD = 2
#: Give up after this many consecutive days without a tick: a wrong tick time may lie years away.
_MAX_EMPTY_DAYS = 400
#: How many seconds `close` waits for the workers. They end as soon as their call is interrupted.
_CLOSE_TIMEOUT = 1.0


@attrs.define(eq=False)
class Job:
    """One fetch. On the loop's thread, `on_start` is called when its turn comes, or when history doesn't work.

    `on_page` gets each page, and `on_end` the reason if the fetch failed, or None.

    Reading a long history takes a while, and further ticks come meanwhile. With an `overlap`, the job follows history:
    it goes on, from that long before the last tick, until there is little left. `on_restart` gets each time from which
    it does so.
    """

    pair: str
    start: datetime
    end: datetime | None
    on_start: Callable[[], None]
    on_page: Callable[[list[Tick]], None]
    on_end: Callable[[str | None], None]
    overlap: timedelta | None = None
    on_restart: Callable[[datetime], None] = lambda start: None
    cancelled: bool = False
    #: Whether `on_start` was called. Only for the loop's thread.
    started: bool = False
    #: The source, while pages are fetched from it.
    history: History | None = None
    #: The errors of the ticks that can't be read. The worker appends to it before it posts their page.
    bad: list[DecodeError] = attrs.field(factory=list)
    #: Whether a further fetch may work, although this one failed.
    temporary: bool = False
    #: How many more pages may be handed over.
    room: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(_PAGES_AHEAD))
    #: How many pages were handed over and not acknowledged. Only for the loop's thread.
    _unacknowledged: int = 0

    def cancel(self) -> None:
        """Stop fetching. A call in progress is interrupted, and neither callback is called from now on."""
        self.cancelled = True
        self.room.release()
        history = self.history
        if history is not None:
            # Not close(): a handshake that hangs in name resolution must not block the loop's thread.
            history.interrupt()

    def begin(self) -> None:
        """Report the start, once, unless the job was cancelled meanwhile."""
        if not (self.cancelled or self.started):
            self.started = True
            self.on_start()

    def hand_over(self, page: list[Tick]) -> None:
        """Pass a page on, unless the job was cancelled meanwhile."""
        if not self.cancelled:
            self._unacknowledged += 1
            self.on_page(page)

    def acknowledge(self) -> None:
        """Let the job fetch as many pages as it has handed over."""
        if self._unacknowledged:
            self.room.release(self._unacknowledged)
            self._unacknowledged = 0

    def restart(self, start: datetime) -> None:
        """Report that history continues at this time, unless the job was cancelled meanwhile."""
        if not self.cancelled:
            self.on_restart(start)

    def note_bad(self, error: DecodeError) -> None:
        """Keep the error of a tick that can't be read, if there is room."""
        if len(self.bad) < _MAX_BAD:
            self.bad.append(error)

    def take_bad(self) -> list[DecodeError]:
        """Return the errors since the last call. The worker adds to them meanwhile."""
        count = len(self.bad)
        taken = self.bad[:count]
        del self.bad[:count]
        return taken

    def finish(self, reason: str | None) -> None:
        """Report the end, unless the job was cancelled meanwhile."""
        if not self.cancelled:
            self.on_end(reason)


class Backfiller:
    """Runs jobs on up to `MAX_CONCURRENT_FETCHES` worker threads for gaps, and as many for jobs that follow history.

    Those take long, and a gap must not wait for them: its live ticks are held.

    A worker has its own history connection. Both end when no job waits, because a connection that is left from an
    earlier outage may be dead.
    """

    def __init__(self, connect: Callable[[], History], post: Callable[[Callable[[], None]], bool], name: str) -> None:
        """Create no thread yet.

        Args:
            connect: Returns a history for one worker.
            post: Runs a command on the loop's thread. Returns False if that thread has ended.
            name: Prefix of the workers' thread names.
        """
        self._connect = connect
        self._post = post
        self._name = name
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        #: By whether they follow history.
        self._waiting: dict[bool, deque[Job]] = {False: deque(), True: deque()}
        #: Each worker's job. A worker without one closes its history, and takes no further job.
        self._jobs: dict[threading.Thread, Job | None] = {}
        self._closed = False

    def fetch(self, job: Job) -> None:
        """Start a job, or queue it until a worker is free. Only for the loop's thread."""
        with self._lock:
            if self._closed:
                return
            if self._active_workers(job) >= MAX_CONCURRENT_FETCHES:
                self._waiting_like(job).append(job)
                return
            name = f"{self._name}-backfill-{next(self._numbers)}"
            worker = threading.Thread(target=self._work, args=(job,), name=name, daemon=True)
            self._jobs[worker] = job
        try:
            worker.start()
        except RuntimeError as cause:
            # The system has no more threads, or the interpreter shuts down.
            with self._lock:
                del self._jobs[worker]
                if self._active_workers(job):
                    self._waiting_like(job).append(job)
                    return
            self._post(partial(job.finish, str(cause)))

    def close(self) -> None:
        """Cancel all jobs and end the workers. Bounded, and safe from any thread."""
        with self._lock:
            self._closed = True
            for waiting in self._waiting.values():
                waiting.clear()
            jobs = dict(self._jobs)
        for job in jobs.values():
            if job is not None:
                job.cancel()
        close_by = monotonic() + _CLOSE_TIMEOUT
        for worker in jobs:
            if worker.is_alive():
                worker.join(max(0.0, close_by - monotonic()))

    def _waiting_like(self, job: Job) -> deque[Job]:
        return self._waiting[job.overlap is not None]

    def _active_workers(self, like: Job) -> int:
        """Return how many workers have a job of the same kind."""
        follows = like.overlap is not None
        return sum(job is not None and (job.overlap is not None) is follows for job in self._jobs.values())

    def _work(self, first: Job) -> None:
        """Run a job, and then others until none waits."""
        history: History | None = None
        job: Job | None = first
        waiting = self._waiting_like(first)
        while job is not None:
            reason = None
            self._post(job.begin)
            try:
                history = history or self._connect()
                self._fetch_pages(job, history)
            except FinxStreamerError as error:
                reason = f"no history ({error})"
                job.temporary = isinstance(error, CallTimeout) or (
                    isinstance(error, ConnectionFailed) and not is_fatal(error)
                )
            except BaseException as crash:
                # Even SystemExit, from the user's parse_price: the job must end.
                logger.exception("unexpected %s while history was fetched", type(crash).__name__)
                reason = f"no history ({type(crash).__name__})"
            self._post(partial(job.finish, reason))
            if history is not None and (job.cancelled or reason is not None):
                history.close()
                history = None
            with self._lock:
                # History doesn't work: the jobs that wait must not wait for the whole queue to fail one by one.
                hopeless = [] if reason is None else list(waiting)
                job = waiting.popleft() if waiting else None
                self._jobs[threading.current_thread()] = job
            for other in hopeless:
                self._post(other.begin)
        if history is not None:
            history.close()
        with self._lock:
            del self._jobs[threading.current_thread()]

    def _fetch_pages(self, job: Job, history: History) -> None:
        job.history = history
        try:
            if job.cancelled:
                return  # before any call
            count, reached = self._fetch_round(job, history, job.start)
            fewest = count + 1
            while job.overlap is not None and _SHORT_ROUND < count < fewest:
                assert reached is not None
                start, fewest = max(job.start, earlier(reached, job.overlap)), count
                if not self._post(partial(job.restart, start)):
                    break
                count, reached = self._fetch_round(job, history, start)
        finally:
            job.history = None

    def _fetch_round(self, job: Job, history: History, start: datetime) -> tuple[int, datetime | None]:
        """Fetch to the end of history, or of the job. Return how many pages there were, and the time of the last tick.

        0: the job was cancelled, or the loop has ended.
        """
        count, reached = 0, None
        for page in history.history_pages(job.pair, start, job.end, empty_days=_MAX_EMPTY_DAYS, on_bad=job.note_bad):
            # The loop's thread changes the page.
            count, reached = count + 1, page[-1]["timestamp"]
            job.room.acquire()
            if job.cancelled or not self._post(partial(job.hand_over, page)):
                return 0, None
        return count, reached
