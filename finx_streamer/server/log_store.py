"""`LogStore`: the store of a gateway. The row ID of a tick is its number in the log that the gateways share."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from ..errors import ConfigurationError
from . import contract_table, retention, tick_log
from .contract_table import point_of
from .contracts import ContractTicker
from .functions import CallError
from .inserting import insert_ticks
from .log_trail import has_identity
from .store import JSON, TABLES, Row, TickStore
from .ticks import ExactTime, exact_time

#: A tick to store: its number and its five wire strings.
LogRow = tuple[int, str, str, str, str, str]
#: The share of the size bound up to which older ticks are added. They must not be the next ones to be removed.
_FILLED_SHARE = 0.9

_COUNT_SCHEMA = "CREATE TABLE IF NOT EXISTS log_rows (id INTEGER PRIMARY KEY, count INTEGER NOT NULL)"
_SET_COUNT = "INSERT INTO log_rows VALUES (1, ?) ON CONFLICT DO UPDATE SET count = excluded.count"
_NOTE = "INSERT INTO stored_by VALUES (?, ?, 0) ON CONFLICT DO UPDATE SET tick = max(tick, excluded.tick)"
_ID_BEFORE = "SELECT id FROM tick WHERE pair = ? AND (second, fraction) <= (?, ?) ORDER BY second DESC, fraction DESC"


class Span(NamedTuple):
    """Numbers in a log, from the first to the last one."""

    first: int
    last: int


class LogStore(TickStore):
    """The ticks of a log that is kept elsewhere, and has holes.

    Live ticks are stored above, with `write_span`, and earlier ones below, with `fill`. Both say which numbers they
    cover: within these, there are no other ticks. So what is held without a hole ends at the newest number, and only
    its beginning moves.
    """

    _count = 0
    #: The last number that was removed, below which nothing is filled.
    _trimmed = 0
    #: Whether ticks were forgotten and aren't filled again yet, so that history may end too early.
    is_refilling = False

    @property
    def count(self) -> int:
        """The number of ticks in the store."""
        return self._count

    def check_identity(self, identity: str) -> None:
        """Raise `ConfigurationError` if the store has ticks of another stream."""
        if self.log_name and not has_identity(self.log_name, identity):
            raise ConfigurationError(
                f"the store {self._path or 'in memory'} belongs to another JetStream stream, or to an earlier one of "
                "the same name; delete the file or use another one"
            )

    def follow(self, name: str, newest: int, keep: int | None = None) -> None:
        """Continue this log, whose newest number is `newest`. Positions in logs of other names are unknown from now on.

        With `keep`, forget the ticks after that number: the log has lost them, and has others under their numbers.
        """
        with self._lock, self._transaction() as connection:
            if keep is not None:
                self._cut(connection, keep)
            # Before an unread part, history would end for clients that can't resume any more.
            is_cut_off = self.log_name not in {"", name} and newest > self._newest_logged
            connection.execute("DELETE FROM log")
            tick_log.begin_log(connection, tick_log.Position(name, newest))
            self._newest_logged = newest
        self.log_name = name
        self.is_refilling = self.is_refilling or keep is not None or is_cut_off

    def _cut(self, connection: sqlite3.Connection, last: int) -> None:
        # Without a condition, SQLite needn't visit each row.
        where = f" WHERE id > {last}" if last else ""
        self._count -= connection.execute(f"DELETE FROM tick{where}").rowcount
        connection.execute(_SET_COUNT, (self._count,))
        tick_log.cut(connection, last)
        connection.execute("UPDATE stored_by SET tick = min(tick, ?)", (last,))
        self._added, self._removed = min(self._added, last), min(self._removed, last)
        self._trimmed = min(self._trimmed, last)
        self._row_finder.clear()

    def first_after(self, number: int | None) -> tuple[int, str] | None:
        """The number of the first tick after a number, and the tick as JSON; of the newest one with None."""
        with self._lock:
            if number is None:
                number = self._added - 1
            text = self._fetch_text(
                f"SELECT tick.id || ' ' || {JSON} FROM {TABLES} WHERE tick.id > ? ORDER BY tick.id LIMIT 1", (number,)
            )
        if text is None:
            return None
        found, _, tick = text.partition(" ")
        return int(found), tick

    def write_span(self, rows: Sequence[LogRow], span: Span, tickers: Sequence[ContractTicker] = ()) -> int:
        """Store all ticks with these numbers, which are the newest ones. Returns how many were stored."""
        self.check_file()
        with self._lock, self._transaction() as connection:
            added = self._add(connection, rows, span)
            self._added = max(self._added, rows[-1][0] if rows else 0)
            self._newest_logged = span.last
            tick_log.note_newest(connection, span.last)
            if tickers:
                contract_table.write(connection, tickers, self._limit)
            if self._bounds.is_bounded:
                self._bounds.note(connection)
            self._remove_oldest(connection, 2 * len(rows))
            connection.execute(_SET_COUNT, (self._count,))
        return added

    def fill(self, rows: Sequence[LogRow], span: Span, tickers: Sequence[ContractTicker], stored: float) -> bool:
        """Store earlier ticks: all with these numbers, directly below those without a hole.

        `stored` is when the log got the last one, in seconds since 1970. Returns whether there is room for more: no
        tick is stored that would be removed next.
        """
        self.check_file()
        if self._bounds.age is not None and stored < time.time() - self._bounds.age:
            return False
        with self._lock, self._transaction() as connection:
            older = connection.execute(
                "SELECT count(*) FROM (SELECT 1 FROM tick WHERE id < ? LIMIT ?)", (span.first, len(rows) + 1)
            ).fetchone()[0]
            size = self._bounds.size
            if not older and size is not None and retention.used_bytes(connection) > _FILLED_SHARE * size:
                return False
            room = len(rows) if self._limit is None else max(0, self._limit - self._count + older)
            if len(rows) > room:
                if not room:
                    return False
                rows = rows[-room:]
                span = Span(rows[0][0], span.last)
            self._add(connection, rows, span)
            self._added = max(self._added, rows[-1][0] if rows else 0)
            self._removed = min(self._removed, span.first - 1)
            self._row_finder.forget(*span)
            self._add_tickers(connection, tickers)
            if self._bounds.is_bounded:
                connection.execute(_NOTE, (self._bounds.second_after(stored), span.last))
            self._remove_oldest(connection, 2 * len(rows))
            connection.execute(_SET_COUNT, (self._count,))
            return self._limit is None or self._count < self._limit or older > 0

    def hole(self) -> Span | None:
        """The numbers to fill below those without a hole, down to the next ones that are held, or to 1."""
        with self._lock:
            first, last = tick_log.hole_below(self._database, self._newest_logged)
        first = max(first, self._trimmed + 1)
        return Span(first, last) if first <= last else None

    def beginning(self) -> tuple[int, datetime | None]:
        """The first number from which on there is no hole, and the time of the first tick from there."""
        with self._lock:
            _, last = tick_log.hole_below(self._database, self._newest_logged)
            row = self._database.execute("SELECT second FROM tick WHERE id > ? ORDER BY id LIMIT 1", (last,)).fetchone()
        return last + 1, None if row is None else datetime.fromtimestamp(row[0], UTC)

    def history(self, pair: str, day: str, after: ExactTime, exchange: str | None, limit: int) -> list[str]:
        """See `TickStore.history`.

        Raises:
            CallError: The log expired, or isn't read yet, between two of these ticks, or it's being read again.
        """
        with self._lock:
            if self.is_refilling:
                raise CallError("tickHistory: incomplete here: the log is being read again")
            ticks = super().history(pair, day, after, exchange, limit)
            if holes := tick_log.holes(self._database):
                self._check_complete(pair, day, after, ticks, holes)
        return ticks

    def _check_complete(
        self, pair: str, day: str, after: ExactTime, ticks: Sequence[str], holes: Sequence[tuple[int, int]]
    ) -> None:
        """Raise `CallError` if a hole may have ticks of this page. The ticks of a pair are nearly in order of time."""
        if not ticks:
            return
        # The last tick before the page, or else its first one; and its last one.
        times = (after, *(exact_time(each["date"], each["time"]) for each in map(json.loads, (ticks[0], ticks[-1]))))
        pair_id = self._pair_ids.get(pair, 0)
        found = [self._database.execute(f"{_ID_BEFORE} LIMIT 1", (pair_id, *time)).fetchone() for time in times]
        begin, *_, end = (row[0] for row in found if row is not None)
        if any(begin < first and last < end for first, last in holes):
            raise CallError("tickHistory: incomplete here: entries of the log are missing between the ticks asked for")

    def abandon_log(self) -> None:
        """Do nothing: what was sent and never stored is still in the log."""

    def _add(self, connection: sqlite3.Connection, rows: Sequence[LogRow], span: Span) -> int:
        valid = [(row[0], *values) for row in rows if (values := self._column_values(_fields_of(row))) is not None]
        added = insert_ticks(connection, valid, with_id=True)
        self._count += added
        # Before a tick that can't be stored, no client can resume.
        if len(valid) == len(rows) and span.first <= span.last:
            tick_log.add_span(connection, *span)
        return added

    def _add_tickers(self, connection: sqlite3.Connection, tickers: Sequence[ContractTicker]) -> None:
        """Store earlier tickers, of each contract the last one before each five-minute point, if there is room."""
        latest = {(each.instrument.name, point_of(each)): each for each in tickers}
        if latest and self._limit is not None:
            (count,) = connection.execute("SELECT count(*) FROM ticker").fetchone()
            if count + len(latest) > self._limit // 10:
                return
        contract_table.write(connection, list(latest.values()), None)

    def _remove_oldest(self, connection: sqlite3.Connection, at_most: int = 0) -> bool:
        last, step = self._removed, max(at_most, retention.STEP)
        if self._limit is not None and self._count > self._limit:
            last = self._nth_row(connection, self._added, min(step, self._count - self._limit))
        excess = self._bounds.find_excess(connection, self._removed, self._added)
        if excess is not None:
            # The newest row stays.
            last = max(last, self._nth_row(connection, min(excess[0], self._added - 1), step))
            retention.remove_tickers(connection, excess[1])
        if last > self._removed:
            self._removed, self._trimmed = last, max(self._trimmed, last)
            self._count -= connection.execute("DELETE FROM tick WHERE id <= ?", (last,)).rowcount
            tick_log.remove_rows(connection, last)
            connection.execute(_SET_COUNT, (self._count,))
        if excess is not None:
            retention.forget(connection, self._removed)
        return excess is not None

    def _open_log(self, connection: sqlite3.Connection) -> tick_log.Position:
        last = tick_log.last_log(connection)
        (has_ticks,) = connection.execute("SELECT EXISTS (SELECT 1 FROM tick)").fetchone()
        if not tick_log.is_shared(last.log):
            if last.number or has_ticks:
                raise ConfigurationError(f"the store {self._path} has the ticks of another market; use another file")
            connection.execute("DELETE FROM log")
            last = tick_log.Position("", 0)
        connection.execute(_COUNT_SCHEMA)
        if self._users and not last.log:
            # The file was deleted while it was in use. Its successor is filled from the log.
            self._trimmed = 0
            return tick_log.begin_log(connection, tick_log.Position(self.log_name, self._newest_logged))
        return last

    def _read_names(self, connection: sqlite3.Connection) -> None:
        super()._read_names(connection)
        row = connection.execute("SELECT count FROM log_rows").fetchone()
        self._count = 0 if row is None else row[0]

    @staticmethod
    def _nth_row(connection: sqlite3.Connection, last: int, count: int) -> int:
        """The ID of the row up to which there are `count` rows; `last`, if there are fewer up to that one."""
        statement = "SELECT id FROM tick WHERE id <= ? ORDER BY id LIMIT 1 OFFSET ?"
        row = connection.execute(statement, (last, count - 1)).fetchone()
        return last if row is None else int(row[0])


def _fields_of(row: LogRow) -> Row:
    return row[1:]
