"""`Resumer`: where a client's stream starts in the log, and what it missed from there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from functools import partial
from typing import cast

import attrs

from .connection import TRY_AGAIN, Connection
from .hub import Hub
from .log_store import LogStore
from .protocol import Wire, unavailable
from .recorder import Recorder, StoreFailed
from .resuming import ASK, PAGE, Start
from .settings import Settings
from .source import as_log
from .stats import Counters
from .store import TickStore
from .tick_log import LogPage, Position

#: Seconds to wait until a gateway can resume after a position that another one was able to send, and between two looks.
_LONGEST_WAIT, _LOOK_EVERY = 2.0, 0.05


@attrs.frozen
class Resumer:
    """Resumes streams, on the server's thread."""

    _settings: Settings
    _recorder: Recorder
    _hub: Hub
    _counters: Counters

    async def find_start(self, symbol: str, wanted: object) -> Start | None:
        """Where a client that can resume starts. None while there is no log.

        Raises `HandshakeRefused` (503) if the position will probably be known soon.
        """
        recorder = self._recorder
        log = recorder.log
        if log is None or not self._settings.resumable:
            return None
        position = Position.parse(wanted) if isinstance(wanted, str) and wanted != ASK else None
        if position is not None:
            try:
                newest, page = await self._find_page(symbol, position)
            except (StoreFailed, sqlite3.Error):
                return None
            if page is not None:
                return Start(Position(log, newest), page)
        # What was published meanwhile may not be in the log.
        return Start(Position(log, recorder.newest), LogPage([], recorder.newest), refused=wanted != ASK)

    async def _find_page(self, symbol: str, position: Position) -> tuple[int, LogPage | None]:
        """The newest ID, and the first ticks after a position. None if the log doesn't hold them all."""
        recorder, loop = self._recorder, asyncio.get_running_loop()
        deadline = loop.time() + _LONGEST_WAIT
        while True:
            # Before the query, because it may come true meanwhile.
            is_expected, newest = self._is_expected(position), recorder.newest
            # The query waits until everything up to `newest` is stored.
            page = await recorder.query(partial(_resume, symbol, position, newest))
            if page is not None or not is_expected:
                return newest, page
            if loop.time() >= deadline:
                raise unavailable("this server hasn't read the log up to that position yet")
            await asyncio.sleep(_LOOK_EVERY)

    def _is_expected(self, position: Position) -> bool:
        log_source = as_log(self._settings.source)
        if log_source is None:
            return False
        if position.log != self._recorder.log:
            # The client is going to compare with history.
            return cast(LogStore, self._recorder.store).is_refilling
        return log_source.expects(position.number)

    async def resume(self, client: Connection, symbol: str, wire: Wire, start: Start) -> None:
        """Send what the client missed from the log, and then what was published meanwhile."""
        if start.newest.log != self._recorder.log:
            client.begin_close(TRY_AGAIN, "the log has changed")
            return
        gate = self._hub.hold(client, symbol, wire)
        if gate is None:
            return
        page: LogPage | None = start.page
        while page is not None:
            self._counters.ticks_sent += len(page.ticks)
            for number, tick in page.ticks:
                client.enqueue(self._hub.encode_logged(json.loads(tick), number, wire), can_wait=True)
            client.flush()
            with contextlib.suppress(ConnectionError):
                await client.drain()
            if client not in self._hub.connections:
                return
            if page.until >= gate.until:
                self._hub.release(gate)
                return
            try:
                page = await self._recorder.query(partial(_read, symbol, page.until, gate.until))
            except (StoreFailed, sqlite3.Error):
                page = None
        # The client connects again, and is refused the position.
        client.begin_close(TRY_AGAIN, "the log no longer holds what was missed")


def _resume(symbol: str, position: Position, newest: int, store: TickStore) -> LogPage | None:
    return store.resume(symbol, position, newest, PAGE)


def _read(symbol: str, after: int, until: int, store: TickStore) -> LogPage | None:
    return store.read_log(symbol, after, until, PAGE)
