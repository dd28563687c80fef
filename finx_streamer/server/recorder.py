"""`Recorder`: writes ticks to the store in batches, and queries it, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar, cast

import attrs

from ..clock import monotonic
from .contract_table import point_of
from .contracts import ContractTicker
from .recording import Recording
from .store import Row, TapePart, TickStore, fields_of
from .ticks import Tick

log = logging.getLogger("finx_streamer.server")
_Result = TypeVar("_Result")

#: The most ticks per batch. A query waits until all earlier ticks are stored, so large batches would delay it.
_MAX_BATCH = 1_024
#: The most imported ticks per transaction, so that other work gets a turn.
_IMPORT_BATCH = 1_000
#: Seconds between two checks of the store: whether its file is still there or, after a failure, whether it works again.
_CHECK_INTERVAL = 1.0
#: Seconds between two steps of removing ticks, so that other work gets a turn.
_STEP_INTERVAL = 0.02


class StoreFailed(OSError):
    """The store can't be written now. The text says why."""


@attrs.frozen
class Batch:
    """Ticks and contract tickers to store. `part` is the ticks' place in a tape, if they are one's.

    `logged` is the first one's ID in the log, if they are played, and `until` the last one that a gateway's batch
    covers. `done` receives the number of ticks.
    """

    rows: list[Row]
    part: TapePart | None = None
    tickers: list[ContractTicker] = attrs.field(factory=list)
    done: Future[int] | None = None
    logged: int | None = None
    until: int = 0

    @property
    def size(self) -> int:
        return len(self.rows) + len(self.tickers)


@attrs.frozen
class _QueryJob:
    """A query to run once all earlier ticks are stored. `settle` receives the result or the error."""

    query: Callable[[TickStore], object]
    settle: Callable[[object, BaseException | None], None]


class Recorder:
    """Stores ticks in batches and runs queries, on a thread of its own.

    At most `max_unwritten` played ticks are waiting to be written, and each waits at most `max_delay` seconds: this is
    the most that a killed process loses. `has_room()` says when the player has to wait.

    While the store can't be written, the market plays on. As many ticks are kept in memory, and written when the store
    works again. Further ones are lost, and the log says how many.

    Call `add()`, `query()`, `has_room()` and `flush()` on the event loop's thread, and `import_ticks()` on any other.
    """

    def __init__(self, store: TickStore, max_unwritten: int, max_delay: float) -> None:
        self.store = store
        self._max_unwritten = max_unwritten
        self._max_delay = max_delay
        #: At most half of the room, so that the market plays on while a batch is written.
        self._batch_size = max(1, min(_MAX_BATCH, max_unwritten // 2))
        self._pending: list[Row] = []
        #: The position of the first pending tick in the tape; None for other ticks.
        self._position: int | None = None
        self._tape: Recording | None = None
        #: The last pending ticker of each contract before each five-minute point.
        self._pending_tickers: dict[tuple[str, int], ContractTicker] = {}
        self._submitted = self._written = 0
        #: The ID of the newest played tick in the log.
        self.newest = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: queue.SimpleQueue[Batch | _QueryJob | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        #: Why the store can't be written now; None if it can.
        self.error: str | None = None
        self._failed_at = self._next_check = 0.0
        #: Failed batches to write again, and the numbers of ticks in them and of those that were lost.
        self._kept: deque[Batch] = deque()
        self._kept_count = self._lost = 0
        #: The ID of the newest tick in a failed batch.
        self._newest_failed = 0

    def start(
        self, loop: asyncio.AbstractEventLoop, on_written: Callable[[], None], tape: Recording | None = None
    ) -> None:
        """Start the thread. `on_written` is called in the loop after each batch. `tape` is played, if it isn't None.

        Raises `ConfigurationError` or `OSError` if the store can't be opened.
        """
        ready: Future[None] = Future()
        self._loop = loop
        self.error = None
        self._submitted = self._written = 0
        thread = threading.Thread(target=self._run, args=(on_written, ready), name="finx-tick-store", daemon=True)
        thread.start()
        try:
            ready.result()
        except BaseException:
            thread.join()
            raise
        with self._thread_lock:
            self._thread = thread
        self.newest = self.store.newest_logged
        self._tape = tape
        if tape is not None:
            self._find_tape(tape)

    def stop(self) -> None:
        """Store the remaining ticks and end the thread."""
        self.flush()
        with self._thread_lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._jobs.put(None)
        if thread is not None:
            thread.join()
        self._loop = None

    @property
    def max_burst(self) -> int:
        """The most ticks to add between two calls of `has_room()`."""
        return self._batch_size

    def has_room(self, count: int) -> bool:
        """Whether `count` ticks can be added now."""
        unwritten = self._submitted - self._written + len(self._pending) + len(self._pending_tickers)
        return unwritten + count <= self._max_unwritten or self.error is not None

    @property
    def log(self) -> str | None:
        """The name of the log; None while nothing is stored, so that no client can resume."""
        return self.store.log_name if self.store.is_enabled and self.error is None else None

    def add(self, tick: Tick, position: int | None = None) -> int:
        """Add a played tick, and return its ID in the log.

        `position` is its position in the tape, if it is one of the tape's.
        """
        pending = self._pending
        if pending and position != (None if self._position is None else self._position + len(pending)):
            self.flush()
            pending = self._pending
        if not pending:
            self._position = position
        pending.append(fields_of(tick))
        self.newest += 1
        if len(pending) >= self._batch_size:
            self.flush()
        elif self._timer is None:
            self._flush_later()
        return self.newest

    def add_contract(self, ticker: ContractTicker) -> None:
        """Add a contract's ticker that was played. Only the last one before each five-minute point is stored."""
        pending, place = self._pending_tickers, (ticker.instrument.name, point_of(ticker))
        if place not in pending or ticker.timestamp >= pending[place].timestamp:
            pending[place] = ticker
        if len(pending) >= self._batch_size:
            self.flush()
        elif self._timer is None:
            self._flush_later()

    def _flush_later(self) -> None:
        if self._loop is not None:
            self._timer = self._loop.call_later(self._max_delay, self.flush)

    def flush(self) -> None:
        """Submit the pending ticks and contract tickers to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._take_pending()
        if batch is not None and self.store.is_enabled:
            self._submitted += batch.size
            self._jobs.put(batch)

    def _take_pending(self) -> Batch | None:
        if not self._pending and not self._pending_tickers:
            return None
        part = _part(self._tape, self._position) if self._pending else None
        logged = self.newest - len(self._pending) + 1
        batch = Batch(self._pending, part, list(self._pending_tickers.values()), logged=logged)
        self._pending, self._pending_tickers = [], {}
        return batch

    async def query(self, query: Callable[[TickStore], _Result]) -> _Result:
        """Run a query on the store's thread, after all ticks added so far are stored.

        Raises `StoreFailed`, and any error that the query raises.
        """
        self.flush()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Result] = loop.create_future()

        def resolve(result: object, error: BaseException | None) -> None:
            # The connection that asked may have ended.
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(cast(_Result, result))

        def settle(result: object, error: BaseException | None) -> None:
            # The loop is closed if the server has stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(resolve, result, error)

        self._jobs.put(_QueryJob(query, settle))
        return await answer

    def import_ticks(self, ticks: Recording, *, once: bool) -> int:
        """Store ticks and contract tickers that aren't played. Returns how many ticks, once they are stored.

        `once` skips the ticks that are stored already, because they were imported or played before.
        """
        count = 0
        if self.store.is_enabled:
            # Keep the store open, because the server may start or stop meanwhile.
            with self.store.opened():
                position = self._find_tape(ticks) if once else 0
                played = ticks.read(skip=position)
                while some := list(islice(played, _IMPORT_BATCH)):
                    rows = [fields_of(each) for each in some if not isinstance(each, ContractTicker)]
                    tickers = [each for each in some if isinstance(each, ContractTicker)]
                    part = _part(ticks, position if once else None)
                    count += self._import_batch(Batch(rows, part, tickers, Future()))
                    position += len(rows)
        return count

    def _import_batch(self, batch: Batch) -> int:
        assert batch.done is not None
        with self._thread_lock:
            running = self._thread is not None
            if running:
                self._jobs.put(batch)
        if running:
            return batch.done.result()
        try:
            return self._store(batch)
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None

    def _find_tape(self, tape: Recording) -> int:
        try:
            return self.store.find_tape(tape)
        except sqlite3.Error as error:
            raise self._failure(error) from None

    def _run(self, on_written: Callable[[], None], ready: Future[None]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.store.opened())
            except BaseException as error:
                ready.set_exception(error)
                return
            ready.set_result(None)
            self._work(on_written)
            if self.error is not None:
                self._check_store()
                self._give_up()

    def _work(self, on_written: Callable[[], None]) -> None:
        """Do the jobs until `stop()`, and check the store in between."""
        self._next_check = monotonic() + _CHECK_INTERVAL
        while True:
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=max(0.0, self._next_check - monotonic()))
                if job is None:
                    return
                if isinstance(job, _QueryJob):
                    self._run_query(job)
                else:
                    self._write(job)
                    self._call_in_loop(on_written)
            if monotonic() >= self._next_check:
                self._next_check = monotonic() + _CHECK_INTERVAL
                self._check_store()
                self._call_in_loop(on_written)

    def _check_store(self) -> None:
        try:
            if self.error is None:
                self.store.check_file()
                if self.store.remove_excess():
                    self._next_check = monotonic() + _STEP_INTERVAL
            else:
                self._recover()
        except Exception as error:
            self._fail(error)

    def _recover(self) -> None:
        """Write what was kept, if the store works again."""
        self.store.check_writable()
        while self._kept:
            batch = self._kept[0]
            self._store(batch)
            self._kept.popleft()
            self._kept_count -= batch.size
        if self._lost:
            self._skip_lost(self._newest_failed)
        log.warning(
            "the tick store works again after %.0f s; %d ticks were lost",
            monotonic() - self._failed_at,
            self._lost,
        )
        self.error, self._lost = None, 0

    def _skip_lost(self, newest: int) -> None:
        """Note that ticks up to this ID aren't stored, so that their IDs aren't assigned again."""
        self.store.write((), logged=newest + 1)

    def _fail(self, error: Exception) -> None:
        reason = str(self._failure(error))
        if self.error is None:
            self._failed_at = monotonic()
        if reason != self.error:
            log.error("%s. It is tried again every %g s; streams continue", reason, _CHECK_INTERVAL)
        self.error = reason

    def _give_up(self) -> None:
        lost = self._lost + self._kept_count
        self._kept.clear()
        self._kept_count = self._lost = 0
        if self.error is not None and lost:
            self.store.abandon_log()
            log.error("%s. The server stops; %d ticks were lost", self.error, lost)

    def _write(self, batch: Batch) -> None:
        count = 0
        if self.error is None:
            try:
                count = self._store(batch)
            except Exception as error:
                self._fail(error)
        if batch.done is None:
            self._written += batch.size
            if self.error is not None:
                self._keep(batch)
        elif self.error is None:
            batch.done.set_result(count)
        else:
            batch.done.set_exception(StoreFailed(self.error))

    def _store(self, batch: Batch) -> int:
        return self.store.write(batch.rows, batch.part, batch.tickers, batch.logged)

    def _keep(self, batch: Batch) -> None:
        """Keep a batch that can't be written, if there is room."""
        assert batch.logged is not None
        self._newest_failed = batch.logged + len(batch.rows) - 1
        if self._kept_count + batch.size <= self._max_unwritten:
            self._kept.append(batch)
            self._kept_count += batch.size
        else:
            self._lost += batch.size

    def _run_query(self, job: _QueryJob) -> None:
        try:
            if self.error is not None:
                raise StoreFailed(self.error)
            result = job.query(self.store)
        except BaseException as error:
            job.settle(None, error)
        else:
            job.settle(result, None)

    def _failure(self, error: Exception) -> StoreFailed:
        return StoreFailed(f"the tick store failed: {self.store.describe(error)}")

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            # The loop is closed if the server has stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback)


def _part(tape: Recording | None, position: int | None) -> TapePart | None:
    return None if tape is None or position is None else TapePart(tape.digest, len(tape), position)
