"""`LogRecorder`: the recorder of a gateway, whose ticks have numbers from a log that is kept elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from .log_store import LogStore, Span
from .recorder import Batch, Recorder
from .recording import Recording
from .store import TickStore, fields_of
from .ticks import Tick


class LogRecorder(Recorder):
    """Stores ticks under their numbers in the log. See `Recorder`."""

    def __init__(self, store: TickStore, max_unwritten: int, max_delay: float) -> None:
        super().__init__(store, max_unwritten, max_delay)
        #: The newest number that was submitted.
        self._flushed = 0
        #: Whether the log is about to get another name and other numbers.
        self.is_switching = False

    @property
    def log(self) -> str | None:
        """See `Recorder.log`. None while numbers may be those of either log."""
        return None if self.is_switching else super().log

    def start(
        self, loop: asyncio.AbstractEventLoop, on_written: Callable[[], None], tape: Recording | None = None
    ) -> None:
        """See `Recorder.start`. Nothing is covered before `begin`."""
        super().start(loop, on_written, tape)
        self._flushed = self.newest

    def add(self, tick: Tick, position: int | None = None) -> int:
        """Add a tick. Its `position` is its number in the log."""
        assert position is not None
        pending: list[Any] = self._pending
        pending.append((position, *fields_of(tick)))
        self.newest = position
        if len(pending) >= self._batch_size:
            self.flush()
        elif self._timer is None:
            self._flush_later()
        return position

    def advance(self, newest: int) -> None:
        """Note that there is no other tick up to this number."""
        self.newest = newest
        if self._timer is None:
            self._flush_later()

    def begin(self, newest: int) -> None:
        """Continue after this number. What lies between the last one and this is missing."""
        self.flush()
        self.newest = self._flushed = newest

    def _take_pending(self) -> Batch | None:
        if self.newest == self._flushed and not self._pending_tickers:
            return None
        span = Span(self._flushed + 1, self.newest)
        batch = Batch(self._pending, tickers=list(self._pending_tickers.values()), logged=span.first, until=span.last)
        self._pending, self._pending_tickers, self._flushed = [], {}, self.newest
        return batch

    def _store(self, batch: Batch) -> int:
        rows: list[Any] = batch.rows
        assert batch.logged is not None
        return cast(LogStore, self.store).write_span(rows, Span(batch.logged, batch.until), batch.tickers)

    def _skip_lost(self, newest: int) -> None:
        """Do nothing: the hole is filled from the log."""
