"""`TickStore`: every tick that was played, in SQLite, in order of time. No thread and no event loop in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from ..errors import ConfigurationError
from .ticks import Moment, check_price, check_series, midnight, moment

#: How many ticks a store in memory holds where nothing else is said. About 150 MB.
MEMORY_LIMIT = 1_000_000
#: "FinX" in ASCII: marks a file as ours. Source: O.
APPLICATION_ID = 0x46696E58
#: The version of the schema below.
SCHEMA_VERSION = 1

#: A tick as it waits for being stored: its five wire strings.
Row = tuple[str, str, str, str, str]
#: A tick's wire strings, in the order of `Row`.
fields_of = itemgetter("pair", "date", "time", "exchange", "price")

_SCHEMA = """
CREATE TABLE pair (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE exchange (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE series (pair INTEGER NOT NULL, exchange INTEGER NOT NULL, PRIMARY KEY (pair, exchange)) WITHOUT ROWID;
CREATE TABLE tick (
    id INTEGER PRIMARY KEY,
    pair INTEGER NOT NULL, exchange INTEGER NOT NULL, second INTEGER NOT NULL, fraction TEXT NOT NULL,
    date TEXT NOT NULL, time TEXT NOT NULL, price TEXT NOT NULL
);
CREATE INDEX tick_by_time ON tick (pair, second, fraction, id, exchange);
"""
_COLUMNS = 7
#: How many ticks go into one statement. Python lets go of the interpreter once a statement, and has to win it back
#: from a busy event loop each time: a statement a tick would be slower by orders of magnitude.
_CHUNKS = (512, 64, 8, 1)
_INSERTS = {
    size: "INSERT INTO tick (pair, exchange, second, fraction, date, time, price) VALUES "
    + ",".join(["(?,?,?,?,?,?,?)"] * size)
    for size in _CHUNKS
}
# The texts hold nothing that JSON would have to escape: `_values` sees to that.
_WIRE = (
    """'{"pair":"' || pair.name || '","date":"' || tick.date || '","time":"' || tick.time"""
    """ || '","exchange":"' || exchange.name || '","price":"' || tick.price || '"}'"""
)
_JOINED = "tick JOIN pair ON pair.id = tick.pair JOIN exchange ON exchange.id = tick.exchange"
_FORWARD = "ORDER BY tick.second, tick.fraction, tick.id"
_BACKWARD = "ORDER BY tick.second DESC, tick.fraction DESC, tick.id DESC"


class TickStore:
    """Ticks in an SQLite database, in a file or in memory.

    The five wire strings of a tick come back as they came; ticks of equal time keep the order in which they were
    stored, and equal ticks are all kept. Times compare exactly, whatever the number of their digits.

    `limit` bounds the number of ticks; those that were stored first go first. `None`: 1,000,000 in memory, no bound in
    a file. With 0 nothing is stored.

    A file has one user at a time: opening it a second time, in this process or another, is an error. It is open only
    within `opened()`; what is in memory stays until `close()`. All methods may be called from any thread, and wait
    for each other.

    Raises `ConfigurationError` for a file that is not such a database, or is in use, and `OSError` where the system
    refuses it.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ConfigurationError(f"store_limit is {limit!r}; expected a number of ticks, or None for the default")
        self._path = None if path is None else Path(os.path.abspath(path))
        self._limit = MEMORY_LIMIT if limit is None and path is None else limit
        self._connection: sqlite3.Connection | None = None
        self._users = 0
        self._lock = threading.RLock()
        self._pairs: dict[str, int] = {}
        self._exchanges: dict[str, int] = {}
        #: The numbers of a pair and an exchange that there are ticks of.
        self._series: dict[tuple[str, str], tuple[int, int]] = {}
        self._first = self._last = 0

    def __repr__(self) -> str:
        return f"<TickStore {self._path or 'in memory'}, {self.held} ticks>"

    @property
    def held(self) -> int:
        """How many ticks there are."""
        return self._last - self._first

    @property
    def keeps(self) -> bool:
        """Whether anything is stored at all."""
        return self._limit != 0

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that ticks were ever stored of."""
        return frozenset(self._pairs)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the database open within. Any number of users within this process's one store share it."""
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
        """Close the database. What was in memory is gone."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def write(self, rows: Sequence[Row]) -> int:
        """Store ticks in one transaction. Returns how many; those that are no ticks are left out.

        Only a source of one's own can play what is no tick.
        """
        with self._lock, self._transaction() as connection:
            found = [value for value in map(self._values, rows) if value is not None]
            start = 0
            for size in _CHUNKS:
                while len(found) - start >= size:
                    parameters = [value for values in found[start : start + size] for value in values]
                    connection.execute(_INSERTS[size], parameters)
                    start += size
            self._last += len(found)
            self._shorten(connection)
        return len(found)

    def history(self, pair: str, day: str, after: Moment, exchange: str | None, most: int) -> list[str]:
        """The first ticks of a pair on a UTC day strictly after a time, in order; each as the text of a JSON object."""
        where, values = self._chosen(pair, exchange)
        text = self._text(
            f"SELECT group_concat(wire, char(10)) FROM (SELECT {_WIRE} AS wire FROM {_JOINED} WHERE {where} "
            f"AND (tick.second, tick.fraction) > (?, ?) AND tick.second < ? {_FORWARD} LIMIT ?)",
            (*values, *after, midnight(day) + 86_400, most),
        )
        # A JSON text has no line break of its own.
        return text.split("\n") if text else []

    def snap(self, pair: str, at: Moment, exchange: str | None) -> str | None:
        """The last tick of a pair at a time or before it, as the text of a JSON object. None: there is none."""
        where, values = self._chosen(pair, exchange)
        return self._text(
            f"SELECT {_WIRE} FROM {_JOINED} WHERE {where} "
            f"AND (tick.second, tick.fraction) <= (?, ?) {_BACKWARD} LIMIT 1",
            (*values, *at),
        )

    def exchanges(self, pairs: Sequence[str]) -> list[str]:
        """The exchanges that ticks of these pairs were ever stored from, in alphabetical order."""
        text = self._text(
            "SELECT group_concat('\"' || name || '\"') FROM exchange WHERE id IN "
            f"(SELECT exchange FROM series WHERE pair IN ({self._ids(pairs)}))",
            (),
        )
        return sorted(json.loads(f"[{text or ''}]"))

    def ends(self, pairs: Sequence[str]) -> tuple[str | None, str | None]:
        """The first and the last tick of all these pairs by time, each as the text of a JSON object."""
        first, last = (
            self._text(
                f"SELECT {_WIRE} FROM {_JOINED} WHERE tick.id IN (SELECT (SELECT id FROM tick WHERE pair = asked.id "
                f"{order} LIMIT 1) FROM pair AS asked WHERE asked.id IN ({self._ids(pairs)})) {order} LIMIT 1",
                (),
            )
            for order in (_FORWARD, _BACKWARD)
        )
        return first, last

    def _text(self, statement: str, values: Sequence[object]) -> str | None:
        """The one value of a statement. One row, so that the interpreter is let go of once only."""
        with self._lock:
            assert self._connection is not None, "the store is not open"
            row = self._connection.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def _chosen(self, pair: str, exchange: str | None) -> tuple[str, tuple[int, ...]]:
        """A condition for the ticks of a pair, or of its series of one exchange. What is unknown has the number 0."""
        known = self._pairs.get(pair, 0)
        if exchange is None:
            return "tick.pair = ?", (known,)
        return "tick.pair = ? AND tick.exchange = ?", (known, self._exchanges.get(exchange, 0))

    def _ids(self, pairs: Sequence[str]) -> str:
        return ",".join(str(self._pairs[pair]) for pair in pairs if pair in self._pairs)

    def _values(self, row: Row) -> tuple[object, ...] | None:
        """What a tick's columns hold. None if it is no tick."""
        pair, date, time, exchange, price = row
        try:
            numbers = self._series.get((pair, exchange)) or self._new_series(pair, exchange)
            check_price(price)
            return *numbers, *moment(date, time), date, time, price
        except (ValueError, TypeError):
            return None

    def _new_series(self, pair: str, exchange: str) -> tuple[int, int]:
        check_series(pair, exchange)
        numbers = (
            self._pairs.get(pair) or self._number("pair", self._pairs, pair),
            self._exchanges.get(exchange) or self._number("exchange", self._exchanges, exchange),
        )
        self._database.execute("INSERT INTO series VALUES (?, ?)", numbers)
        self._series[pair, exchange] = numbers
        return numbers

    def _number(self, table: str, known: dict[str, int], name: str) -> int:
        statement = f"INSERT INTO {table} (name) VALUES (?)"
        number = self._database.execute(statement, (_encoded(name),)).lastrowid
        assert number is not None
        known[name] = number
        return number

    def _shorten(self, connection: sqlite3.Connection) -> None:
        if self._limit is not None and self.held > self._limit:
            self._first = self._last - self._limit
            connection.execute("DELETE FROM tick WHERE id <= ?", (self._first,))

    @property
    def _database(self) -> sqlite3.Connection:
        assert self._connection is not None, "the store is not open"
        return self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._database
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
                self._read_names(connection)
            raise

    def _open(self) -> None:
        place = ":memory:" if self._path is None else str(self._path)
        try:
            # The lock of this object is what keeps threads apart.
            connection = sqlite3.connect(place, timeout=1.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._explained(error) from None
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            raise self._explained(error) from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Exclusive: nobody else gets in while we live, and the system undoes the lock when the process is killed.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        self._check_schema(connection)
        connection.execute("COMMIT")
        # What is committed outlives the process from then on; a loss of power may take the last moments.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16384")
        self._read_names(connection)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not objects and application in {0, APPLICATION_ID}:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif application != APPLICATION_ID:
            raise ConfigurationError(f"the store {self._path} is a database of something else; use another file")
        elif version != SCHEMA_VERSION:
            raise ConfigurationError(
                f"the store {self._path} has version {version}, and this is version {SCHEMA_VERSION}; use another file"
            )

    def _read_names(self, connection: sqlite3.Connection) -> None:
        """Take over what the database knows, when it was opened or a transaction was undone."""
        pairs, exchanges = (
            {number: _decoded(name) for number, name in connection.execute(f"SELECT id, name FROM {table}")}
            for table in ("pair", "exchange")
        )
        self._pairs = {name: number for number, name in pairs.items()}
        self._exchanges = {name: number for number, name in exchanges.items()}
        series = connection.execute("SELECT pair, exchange FROM series")
        self._series = {(pairs[pair], exchanges[exchange]): (pair, exchange) for pair, exchange in series}
        # Numbers have no holes: the oldest ticks alone are ever removed, and they are the first.
        ends = "SELECT (SELECT min(id) FROM tick), (SELECT max(id) FROM tick)"
        first, last = connection.execute(ends).fetchone()
        self._first, self._last = (0, 0) if last is None else (first - 1, last)

    def _explained(self, error: sqlite3.Error) -> Exception:
        """What SQLite said about a file, in words that help."""
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return ConfigurationError(
                f"the store {self._path} is in use by another server or program; close that first"
            )
        if name.startswith("SQLITE_NOTADB"):
            return ConfigurationError(f"the store {self._path} is no SQLite database; use another file")
        if self._path is not None and (number := _refusal(self._path)):
            return OSError(number, os.strerror(number), str(self._path))
        return ConfigurationError(f"cannot use the store {self._path}: {error}")


def _refusal(path: Path) -> int:
    """Why the system would not let us write the file, as an error number; 0 if it would.

    The file is not opened for that: closing it again would undo SQLite's locks of this process.
    """
    if path.is_dir():
        return errno.EISDIR
    if not path.parent.exists():
        return errno.ENOENT
    if not path.parent.is_dir():
        return errno.ENOTDIR
    return 0 if os.access(path if path.exists() else path.parent, os.W_OK) else errno.EACCES


def _encoded(name: str) -> str:
    """A name as it stands within the quotes of a JSON text, all ASCII: SQLite takes no lone surrogates."""
    return json.dumps(name)[1:-1]


def _decoded(text: str) -> str:
    return str(json.loads(f'"{text}"'))
