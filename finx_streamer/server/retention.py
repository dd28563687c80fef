"""How long the store keeps what it has stored: bounds by age and by size."""

from __future__ import annotations

import sqlite3
import time

import attrs

#: Up to which row IDs ticks and contract tickers had been stored at a time, in seconds since 1970.
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS stored_by (second INTEGER PRIMARY KEY, tick INTEGER NOT NULL, ticker INTEGER NOT NULL)",
)
#: The most ticks to remove in one step. It takes about as long as writing as many.
STEP = 2_048
#: Contract tickers are ten times as long.
_TICKER_STEP = STEP // 10
#: The size bound can't be less than the schema and a few steps.
SMALLEST_SIZE = 1_000_000

_NEWEST = "SELECT coalesce((SELECT max(id) FROM tick), 0), coalesce((SELECT max(id) FROM ticker), 0)"
_NOTE = (
    f"INSERT INTO stored_by SELECT ?, * FROM ({_NEWEST}) WHERE true "
    "ON CONFLICT (second) DO UPDATE SET tick = excluded.tick, ticker = excluded.ticker"
)
#: The next tickers to remove. The newest one stays, so that no ID is assigned again.
_REMOVE_TICKERS = (
    "DELETE FROM ticker WHERE id IN (SELECT id FROM ticker WHERE id <= ? AND id < (SELECT max(id) FROM ticker) "
    f"ORDER BY id LIMIT {_TICKER_STEP})"
)


@attrs.frozen
class Retention:
    """The bounds of a store: by age in seconds, and by size in bytes. None: no bound."""

    age: float | None = None
    size: int | None = None

    @property
    def is_bounded(self) -> bool:
        return self.age is not None or self.size is not None

    def note(self, connection: sqlite3.Connection) -> None:
        """Remember that everything up to the newest row is stored by now."""
        # At most a thousand notes for the whole age, or one for ten minutes.
        grid = 600 if self.age is None else max(1, int(self.age / 1_000))
        connection.execute(_NOTE, ((int(time.time()) // grid + 1) * grid,))

    def find_excess(self, connection: sqlite3.Connection) -> tuple[int, int] | None:
        """The last tick and the last ticker that are too old or too much; None if there are none."""
        found: tuple[int | None, int | None] = (None, None)
        if self.age is not None:
            query = "SELECT max(tick), max(ticker) FROM stored_by WHERE second <= ?"
            found = connection.execute(query, (time.time() - self.age,)).fetchone()
        if found[0] is None and self.size is not None and used_bytes(connection) > self.size:
            query = "SELECT tick, ticker FROM stored_by ORDER BY tick, ticker, second LIMIT 1"
            found = connection.execute(query).fetchone() or found
        tick, ticker = found
        return None if tick is None or ticker is None else (tick, ticker)


def remove_tickers(connection: sqlite3.Connection, last: int) -> bool:
    """Remove the oldest contract tickers up to `last`, in a step. Returns whether more of them remain."""
    return connection.execute(_REMOVE_TICKERS, (last,)).rowcount == _TICKER_STEP


def forget(connection: sqlite3.Connection, tick: int, ticker: int) -> None:
    """Remove the notes of what has been removed."""
    connection.execute("DELETE FROM stored_by WHERE tick <= ? AND ticker <= ?", (tick, ticker))


def used_bytes(connection: sqlite3.Connection) -> int:
    """The size of the database's pages that hold something. The file keeps the others, and reuses them."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
