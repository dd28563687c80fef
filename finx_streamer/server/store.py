"""`TickStore`: played and imported ticks in SQLite, indexed by time. Contracts are in `contract_table`."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import attrs

from ..errors import ConfigurationError
from . import contract_table, retention, schema, tick_log
from .contracts import ContractTicker
from .files import Identity, access_error, identify, wal_path
from .inserting import insert_ticks
from .recording import Recording
from .retention import Retention
from .ticks import ExactTime, check_price, check_series, day_start, exact_time

#: The default limit of a store in memory, in ticks. About 150 MB.
MEMORY_LIMIT = 1_000_000

#: A tick to store: its five wire strings.
Row = tuple[str, str, str, str, str]


@attrs.frozen
class TapePart:
    """Where a batch belongs in a tape: the tape's digest and length, and the position of the batch's first tick."""

    digest: str
    length: int
    start: int


#: Converts a tick to a `Row`.
fields_of = itemgetter("pair", "date", "time", "exchange", "price")

# Nothing in these columns needs escaping in JSON: `_column_values` and `_encode_name` ensure it.
_JSON_FROM_TIME = """tick.time || '","exchange":"' || exchange.name || '","price":"' || tick.price"""
_JSON_FROM_DATE = f"""tick.date || '","time":"' || {_JSON_FROM_TIME}"""
JSON = f"""'{{"pair":"' || pair.name || '","date":"' || {_JSON_FROM_DATE} || '"}}'"""
_TABLES_BUT_PAIR = "tick JOIN exchange ON exchange.id = tick.exchange"
TABLES = f"{_TABLES_BUT_PAIR} JOIN pair ON pair.id = tick.pair"
_ASCENDING = "ORDER BY tick.second, tick.fraction, tick.id"
_DESCENDING = "ORDER BY tick.second DESC, tick.fraction DESC, tick.id DESC"


class TickStore:
    """Ticks in an SQLite database, in a file or in memory.

    The five wire strings of a tick are returned unchanged. Ticks of equal time stay in the order in which they were
    stored, and equal ticks are all kept. Times compare exactly, with any number of digits.

    `limit` is the most ticks to keep; beyond it, those stored first are removed. `None`: 1,000,000 in memory, no limit
    in a file. 0: store nothing. Of contract tickers, a tenth as many are kept, because they are ten times as long.
    `bounds` limits the time since the storing and the size, in steps: see `remove_excess()`.

    Only one process can open a file at a time, and only once. The file is open only within `opened()`; ticks in memory
    stay until `close()`. All methods are thread-safe.

    Raises `ConfigurationError` if the file is in use or not a tick store, and `OSError` if the system denies access. A
    method that failed can be called again: it opens the file again if necessary.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, limit: int | None = None, bounds: Retention | None = None
    ) -> None:
        if limit is not None and limit < 0:
            raise ConfigurationError(f"store_limit is {limit!r}; expected 0 ticks or more, or None for the default")
        self._path = None if path is None else Path(os.path.abspath(path))
        self._bounds = Retention() if bounds is None else bounds
        self._limit = MEMORY_LIMIT if limit is None and path is None else limit
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        #: The identity of the open file and of its write-ahead log.
        self._file: Identity | None = None
        self._wal: Identity | None = None
        self._users = 0
        self._lock = threading.RLock()
        #: Row IDs by name. A series is a pair on an exchange.
        self._pair_ids: dict[str, int] = {}
        self._exchange_ids: dict[str, int] = {}
        self._series_ids: dict[tuple[str, str], tuple[int, int]] = {}
        #: Ticks ever added and removed. The rows in the store are `_removed + 1` to `_added`, without gaps.
        self._added = self._removed = 0
        #: The name of the log of played ticks, and the newest ID in it.
        self.log_name, self._newest_logged = "", 0
        self._row_finder = tick_log.RowFinder()

    def __repr__(self) -> str:
        return f"<TickStore {self._path or 'in memory'}, {self.count} ticks>"

    @property
    def count(self) -> int:
        """The number of ticks in the store."""
        return self._added - self._removed

    @property
    def is_enabled(self) -> bool:
        """Whether the store keeps ticks. It doesn't with a limit of 0."""
        return self._limit != 0

    @property
    def pairs(self) -> frozenset[str]:
        """All pairs that ever had a tick in the store."""
        return frozenset(self._pair_ids)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the database open within the `with` block. Blocks may overlap and nest."""
        with self._lock:
            if self._connection is None:
                self._open()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._path is not None:
                    self.close()

    def close(self) -> None:
        """Close the database. Ticks in memory are lost. Does nothing in a forked process, whose parent uses it."""
        if self._pid != os.getpid():
            # The lock may be held by a thread of the parent, and SQLite would delete the parent's log.
            return
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def write(
        self,
        rows: Sequence[Row],
        part: TapePart | None = None,
        tickers: Sequence[ContractTicker] = (),
        logged: int | None = None,
    ) -> int:
        """Store ticks and contract tickers in one transaction. Returns how many ticks were stored.

        Invalid ticks are skipped; only a custom source can play them. Of a `part` of a tape, the ticks that are stored
        already are skipped. `logged` is the ID of the first tick in the log; None for ticks that aren't played.
        """
        self.check_file()
        with self._lock, self._transaction() as connection:
            given = len(rows)
            if part is not None:
                rows = self._skip_stored(connection, rows, part)
            valid = [values for values in map(self._column_values, rows) if values is not None]
            if logged is not None:
                self._newest_logged = logged + given - 1
                tick_log.note_newest(connection, self._newest_logged)
                # Before a tick that is skipped, no client can resume.
                if len(valid) == len(rows) > 0:
                    tick_log.add_part(connection, logged + given - len(rows), self._added + 1, len(rows))
            insert_ticks(connection, valid)
            self._added += len(valid)
            if tickers:
                contract_table.write(connection, tickers, self._limit)
            if self._bounds.is_bounded:
                self._bounds.note(connection)
            self._remove_oldest(connection, 2 * len(valid))
        return len(valid)

    def remove_excess(self) -> bool:
        """Remove a step of what is beyond the bounds. Returns whether there may be more."""
        with self._lock:
            if not self._bounds.is_bounded:
                return False
            with self._transaction() as connection:
                return self._remove_oldest(connection)

    def check_file(self) -> None:
        """Raise `OSError` if the open file was deleted or replaced. The next use opens the file that is there then."""
        with self._lock:
            if self._path is None or self._connection is None:
                return
            found = identify(self._path)
            if found != self._file:
                self._close_moved(self._path)
                raise OSError(f"the file {self._path} was {'deleted' if found is None else 'replaced'}")

    def check_writable(self) -> None:
        """Write something, to find out whether that works. Raises `sqlite3.Error` or `OSError` if it doesn't."""
        self.check_file()
        with self._lock, self._transaction() as connection:
            connection.execute(f"PRAGMA user_version = {schema.VERSION}")

    def describe(self, error: Exception) -> str:
        """What went wrong, in the system's words if SQLite's are vague."""
        if isinstance(error, sqlite3.Error) and self._path is not None and (code := access_error(self._path)):
            return f"{os.strerror(code)}: {self._path}"
        return str(error)

    def find_tape(self, recording: Recording) -> int:
        """Return how many of the first ticks of a recording are stored.

        If it begins with a known one, because ticks were added to the file, it continues that one.
        """
        with self._lock:
            known = dict(self._database.execute("SELECT digest, length FROM tape").fetchall())
        if recording.digest not in known and (beginnings := recording.beginnings(known)):
            with self._lock, self._transaction() as connection:
                connection.execute(
                    "INSERT INTO tape SELECT ?, ?, stored, first_id FROM tape WHERE digest IN "
                    f"({','.join('?' * len(beginnings))}) ORDER BY stored DESC LIMIT 1",
                    (recording.digest, len(recording), *beginnings),
                )
        with self._lock:
            return _stored_of(self._database, recording.digest)

    def history(self, pair: str, day: str, after: ExactTime, exchange: str | None, limit: int) -> list[str]:
        """The first ticks of a pair on a UTC day strictly after a time, in order, as JSON objects."""
        where, values = self._selection(pair, exchange)
        midnight = day_start(day)
        # What the ticks have in common is part of the separator: SQLite takes longest to join texts for each tick.
        common, rest = f'{{"pair":"{_encode_name(pair)}","date":"', _JSON_FROM_DATE
        if after[0] > midnight:
            # Only a leap second, which is earlier, has another date.
            common, rest = f'{common}{day}","time":"', _JSON_FROM_TIME
        text = self._fetch_text(
            f"SELECT group_concat(rest, ?) FROM (SELECT {rest} AS rest FROM {_TABLES_BUT_PAIR} WHERE {where} "
            f"AND (tick.second, tick.fraction) > (?, ?) AND tick.second < ? {_ASCENDING} LIMIT ?)",
            (f'"}}\n{common}', *values, *after, midnight + 86_400, limit),
        )
        # JSON escapes line breaks within a tick.
        return f'{common}{text}"}}'.split("\n") if text else []

    def snap(self, pair: str, at: ExactTime, exchange: str | None) -> str | None:
        """The last tick of a pair at or before a time, as a JSON object; None if there is none."""
        where, values = self._selection(pair, exchange)
        return self._fetch_text(
            f"SELECT {JSON} FROM {TABLES} WHERE {where} "
            f"AND (tick.second, tick.fraction) <= (?, ?) {_DESCENDING} LIMIT 1",
            (*values, *at),
        )

    def exchanges(self, pairs: Sequence[str]) -> list[str]:
        """All exchanges that ever had a tick of these pairs in the store, sorted by name."""
        text = self._fetch_text(
            "SELECT group_concat('\"' || name || '\"') FROM exchange WHERE id IN "
            f"(SELECT exchange FROM series WHERE pair IN ({self._id_list(pairs)}))",
            (),
        )
        return sorted(json.loads(f"[{text or ''}]"))

    def first_and_last(self, pairs: Sequence[str]) -> tuple[str | None, str | None]:
        """The first and the last tick of these pairs by time, as JSON objects."""
        first, last = (
            self._fetch_text(
                f"SELECT {JSON} FROM {TABLES} WHERE tick.id IN (SELECT (SELECT id FROM tick WHERE pair = wanted.id "
                f"{order} LIMIT 1) FROM pair AS wanted WHERE wanted.id IN ({self._id_list(pairs)})) {order} LIMIT 1",
                (),
            )
            for order in (_ASCENDING, _DESCENDING)
        )
        return first, last

    def matrix(self, base: str, point: int | None) -> str:
        """The last ticker of each contract at or before a five-minute point, as a JSON array. See `contract_table`."""
        return self._fetch_text(*contract_table.matrix_query(base, point)) or "[]"

    @property
    def newest_logged(self) -> int:
        """The newest ID in the log."""
        return self._newest_logged

    def abandon_log(self) -> None:
        """Continue with another log after the next opening: ticks were sent that will never be stored."""
        with self._lock:
            self.log_name = ""

    def resume(self, pair: str, position: tick_log.Position, newest: int, limit: int) -> tick_log.LogPage | None:
        """The first ticks of a pair after a position. None if the log doesn't hold them all.

        `newest` is the newest ID of the current log.
        """
        with self._lock:
            number = tick_log.resume_at(self._database, position, tick_log.Position(self.log_name, newest))
            return None if number is None else self.read_log(pair, number, newest, limit)

    def read_log(self, pair: str, after: int, until: int, limit: int) -> tick_log.LogPage | None:
        """The first ticks of a pair with IDs above `after`, up to `until`. None if the log no longer holds them all."""
        if after >= until:
            return tick_log.LogPage([], after)
        with self._lock:
            rows = tick_log.rows_after(self._database, after, until)
            if rows is None:
                return None
            begin, end, number = rows
            wanted, end = self._row_finder.find(self._database, self._pair_ids.get(pair, 0), begin, end)
            if len(wanted) > limit:
                wanted, end = wanted[:limit], wanted[limit - 1]
            text = wanted and self._fetch_text(
                f"SELECT group_concat(tick_json, char(10)) FROM (SELECT {JSON} AS tick_json FROM {TABLES} "
                f"WHERE tick.id IN ({','.join(map(str, wanted))}) ORDER BY tick.id)",
                (),
            )
        ticks = text.split("\n") if text else []
        numbered = [(number + row - begin, tick) for row, tick in zip(wanted, ticks, strict=True)]
        return tick_log.LogPage(numbered, number + end - begin)

    def _fetch_text(self, statement: str, values: Sequence[object]) -> str | None:
        """Fetch the single value of a statement. A single row releases the GIL only once."""
        with self._lock:
            row = self._database.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def _selection(self, pair: str, exchange: str | None) -> tuple[str, tuple[int, ...]]:
        """A WHERE condition and its values for the ticks of a pair, on one exchange or all. Unknown names have ID 0."""
        pair_id = self._pair_ids.get(pair, 0)
        if exchange is None:
            return "tick.pair = ?", (pair_id,)
        return "tick.pair = ? AND tick.exchange = ?", (pair_id, self._exchange_ids.get(exchange, 0))

    def _id_list(self, pairs: Sequence[str]) -> str:
        return ",".join(str(self._pair_ids[pair]) for pair in pairs if pair in self._pair_ids)

    def _column_values(self, row: Row) -> tuple[object, ...] | None:
        """The column values of a tick; None if it is invalid."""
        pair, date, time, exchange, price = row
        try:
            ids = self._series_ids.get((pair, exchange)) or self._add_series(pair, exchange)
            check_price(price)
            return *ids, *exact_time(date, time), date, time, price
        except (ValueError, TypeError):
            return None

    def _add_series(self, pair: str, exchange: str) -> tuple[int, int]:
        check_series(pair, exchange)
        ids = (
            self._pair_ids.get(pair) or self._add_name("pair", self._pair_ids, pair),
            self._exchange_ids.get(exchange) or self._add_name("exchange", self._exchange_ids, exchange),
        )
        self._database.execute("INSERT INTO series VALUES (?, ?)", ids)
        self._series_ids[pair, exchange] = ids
        return ids

    def _add_name(self, table: str, ids: dict[str, int], name: str) -> int:
        statement = f"INSERT INTO {table} (name) VALUES (?)"
        row_id = self._database.execute(statement, (_encode_name(name),)).lastrowid
        assert row_id is not None
        ids[name] = row_id
        return row_id

    def _skip_stored(self, connection: sqlite3.Connection, rows: Sequence[Row], part: TapePart) -> Sequence[Row]:
        """Return the ticks that aren't stored yet, and note that they will be."""
        stored, end = _stored_of(connection, part.digest), part.start + len(rows)
        # After a gap, which a failed store leaves, count nothing: the tape fills the gap when it is played again.
        if part.start <= stored < end:
            connection.execute(
                "INSERT INTO tape VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET stored = excluded.stored",
                (part.digest, part.length, end, self._added + 1),
            )
        return rows[max(0, stored - part.start) :]

    def _remove_oldest(self, connection: sqlite3.Connection, at_most: int = 0) -> bool:
        """Remove the rows beyond the limit and the bounds, in a step. Returns whether more may be beyond the bounds."""
        last = self._removed if self._limit is None else self._added - self._limit
        excess = self._bounds.find_excess(connection, self._removed, self._added)
        if excess is not None:
            # The newest row stays, so that no ID is assigned again.
            last = max(last, min(excess[0], self._added - 1))
            retention.remove_tickers(connection, excess[1])
        last = min(last, self._removed + max(at_most, retention.STEP))
        if last > self._removed:
            self._removed = last
            connection.execute("DELETE FROM tick WHERE id <= ?", (self._removed,))
            tick_log.remove_rows(connection, self._removed)
            # Play these again, and they are stored again.
            connection.execute("DELETE FROM tape WHERE first_id <= ?", (self._removed,))
        if excess is not None:
            retention.forget(connection, self._removed)
        return excess is not None

    @property
    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            assert self._users, "the store is not open"
            self._open()
        assert self._connection is not None
        return self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._database
        before = self._added, self._removed, self._newest_logged
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            self._added, self._removed, self._newest_logged = before
            self._roll_back(connection)
            raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            # On a full disk, SQLite has done it already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._read_names(connection)
        except sqlite3.Error:
            if self._path is not None:
                self.close()

    def _close_moved(self, path: Path) -> None:
        """Close a file that is no longer at its path. Its log must not be applied to the file that took its place."""
        self.close()
        wal = wal_path(path)
        if self._wal is not None and identify(wal) == self._wal:
            wal.unlink(missing_ok=True)

    def _open(self) -> None:
        place = ":memory:" if self._path is None else str(self._path)
        try:
            # Our own lock serializes the threads.
            connection = sqlite3.connect(place, timeout=1.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise schema.opening_error(error, self._path) from None
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            raise schema.opening_error(error, self._path) from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._row_finder.clear()
        if self._path is not None:
            self._file, self._wal = identify(self._path), identify(wal_path(self._path))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # No other process can open the file. The system releases the lock when this process is killed.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        schema.prepare(connection, self._path)
        # Not in a version of their own, so that earlier releases can open the file.
        for statement in (*contract_table.SCHEMA, *tick_log.SCHEMA, *retention.SCHEMA):
            connection.execute(statement)
        log = self._open_log(connection)
        self.log_name, self._newest_logged = log.log, log.number
        if self._bounds.is_bounded:
            self._bounds.note(connection)
        connection.execute("COMMIT")
        # Commits survive a killed process. A power failure may lose the last ones.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16384")
        self._read_names(connection)

    def _open_log(self, connection: sqlite3.Connection) -> tick_log.Position:
        """Continue the log of an open store, or begin one. Returns its newest tick."""
        if tick_log.is_shared(tick_log.last_log(connection).log):
            raise ConfigurationError(f"the store {self._path} is that of a gateway; serve it from NATS, or use another")
        return tick_log.open_log(connection, tick_log.Position(self.log_name, self._newest_logged))

    def _read_names(self, connection: sqlite3.Connection) -> None:
        """Load the names and the range of IDs, after opening or a rollback."""
        pairs, exchanges = (
            {row_id: _decode_name(name) for row_id, name in connection.execute(f"SELECT id, name FROM {table}")}
            for table in ("pair", "exchange")
        )
        self._pair_ids = {name: row_id for row_id, name in pairs.items()}
        self._exchange_ids = {name: row_id for row_id, name in exchanges.items()}
        series = connection.execute("SELECT pair, exchange FROM series")
        self._series_ids = {(pairs[pair], exchanges[exchange]): (pair, exchange) for pair, exchange in series}
        # There are no gaps in the IDs, because only the oldest ticks are removed.
        id_range = "SELECT (SELECT min(id) FROM tick), (SELECT max(id) FROM tick)"
        first, last = connection.execute(id_range).fetchone()
        self._removed, self._added = (0, 0) if last is None else (first - 1, last)


def _stored_of(connection: sqlite3.Connection, digest: str) -> int:
    """How many of a tape's first ticks are stored."""
    row = connection.execute("SELECT stored FROM tape WHERE digest = ?", (digest,)).fetchone()
    return 0 if row is None else int(row[0])


def _encode_name(name: str) -> str:
    """The name as the inside of a JSON string, in ASCII: SQLite doesn't accept lone surrogates."""
    return json.dumps(name)[1:-1]


def _decode_name(text: str) -> str:
    return str(json.loads(f'"{text}"'))
