"""The way from the server's event loop into the tick store and back: batches, one thread, no waiting in the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar, cast

import attrs

from .store import Row, TickStore, fields_of
from .ticks import Tick

log = logging.getLogger("finx_streamer.server")
_Result = TypeVar("_Result")

#: A batch of so many ticks is handed over at once: a call waits until what was played before it is stored, and that
#: is then never long.
_HANDY = 1_024
#: How many imported ticks are stored in one go, before others have their turn.
_IMPORTED = 1_000


class StoreFailed(OSError):
    """The store cannot be written any more. The text says why."""


@attrs.frozen
class _Batch:
    """Ticks to be stored. `done` is told how many were, if somebody waits."""

    rows: list[Row]
    done: Future[int] | None = None


@attrs.frozen
class _Question:
    """Something to be asked of the store once all that came before is stored."""

    ask: Callable[[TickStore], object]
    #: Takes the answer, or the error, in the store's thread.
    tell: Callable[[object, BaseException | None], None]


class Recorder:
    """Stores what is played in batches, and answers from the store, in a thread of its own.

    At most `batch` ticks of the player's are on their way into the store at any time, and none waits longer than
    `seconds` before it is written: that is what the death of the process can cost. `has_room()` tells the player when
    to wait.

    `add()`, `ask()`, `has_room()` and `flush()` belong to the event loop's thread; `load()` to any other.
    """

    def __init__(self, store: TickStore, batch: int, seconds: float) -> None:
        self.store = store
        self._batch = batch
        self._seconds = seconds
        #: No more than half of the room, so that the next ones are played while these are written.
        self._enough = max(1, min(_HANDY, batch // 2))
        self._pending: list[Row] = []
        self._given = self._taken = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: queue.SimpleQueue[_Batch | _Question | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._switching = threading.Lock()
        self._failure: StoreFailed | None = None

    def start(self, loop: asyncio.AbstractEventLoop, written: Callable[[], None]) -> None:
        """Begin to work for this loop. `written` is called in it after each batch.

        Raises what opening the store raises.
        """
        ready: Future[None] = Future()
        self._loop = loop
        self._failure = None
        self._given = self._taken = 0
        thread = threading.Thread(target=self._work, args=(written, ready), name="finx-tick-store", daemon=True)
        thread.start()
        try:
            ready.result()
        except BaseException:
            thread.join()
            raise
        with self._switching:
            self._thread = thread

    def stop(self) -> None:
        """Store what is left, and end the thread. The store stays what it is."""
        self.flush()
        with self._switching:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()
        self._loop = None

    @property
    def turn(self) -> int:
        """The most ticks that may be added before `has_room()` is asked again."""
        return self._enough

    def has_room(self, count: int) -> bool:
        """Whether so many ticks may be added now."""
        return self._given - self._taken + len(self._pending) + count <= self._batch or self._failure is not None

    def add(self, tick: Tick) -> None:
        """Take a tick that is being played."""
        pending = self._pending
        pending.append(fields_of(tick))
        if len(pending) >= self._enough:
            self.flush()
        elif self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(self._seconds, self.flush)

    def flush(self) -> None:
        """Hand over what was added so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            rows, self._pending = self._pending, []
            if self.store.keeps:
                self._given += len(rows)
                self._queue.put(_Batch(rows))

    async def ask(self, question: Callable[[TickStore], _Result]) -> _Result:
        """Ask the store for something that takes every tick into account that was added before.

        The question is asked in the store's thread. Raises what it raises, and `StoreFailed`.
        """
        self.flush()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Result] = loop.create_future()

        def settle(result: object, error: BaseException | None) -> None:
            # The asking connection may be gone.
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(cast(_Result, result))

        def tell(result: object, error: BaseException | None) -> None:
            # The loop is closed if the server was stopped meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)

        self._queue.put(_Question(question, tell))
        return await answer

    def load(self, ticks: Iterable[Tick]) -> int:
        """Store ticks now, in the calling thread or between two batches of the running one. Returns how many."""
        count = 0
        if self.store.keeps:
            rows = map(fields_of, ticks)
            # The server may start or stop meanwhile: this keeps the store open all along.
            with self.store.opened():
                while some := list(islice(rows, _IMPORTED)):
                    count += self._load(some)
        return count

    def _load(self, rows: list[Row]) -> int:
        done: Future[int] = Future()
        with self._switching:
            running = self._thread is not None
            if running:
                self._queue.put(_Batch(rows, done))
        if running:
            return done.result()
        try:
            return self.store.write(rows)
        except sqlite3.Error as error:
            raise _failed(error) from None

    def _work(self, written: Callable[[], None], ready: Future[None]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.store.opened())
            except BaseException as error:
                ready.set_exception(error)
                return
            ready.set_result(None)
            while (job := self._queue.get()) is not None:
                if isinstance(job, _Question):
                    self._answer(job)
                else:
                    self._write(job)
                    self._tell(written)

    def _write(self, batch: _Batch) -> None:
        count = 0
        if self._failure is None:
            try:
                count = self.store.write(batch.rows)
            except Exception as error:
                self._fail(error)
        if batch.done is None:
            self._taken += len(batch.rows)
        elif self._failure is None:
            batch.done.set_result(count)
        else:
            batch.done.set_exception(self._failure)

    def _answer(self, question: _Question) -> None:
        if self._failure is not None:
            question.tell(None, self._failure)
            return
        try:
            answer = question.ask(self.store)
        except BaseException as error:
            question.tell(None, error)
        else:
            question.tell(answer, None)

    def _fail(self, error: Exception) -> None:
        """Ticks go out without being stored from now on, and every question is answered with this failure."""
        log.error("the tick store failed, and stores nothing more: %s", error)
        self._failure = _failed(error)

    def _tell(self, written: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(written)


def _failed(error: Exception) -> StoreFailed:
    return StoreFailed(f"the tick store failed: {error}")
