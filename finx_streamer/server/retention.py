"""How long the store keeps what it has stored: bounds by age and by size."""

from __future__ import annotations

import math
import sqlite3
import time
from datetime import timedelta

import attrs

from ..errors import ConfigurationError

#: The last row IDs of ticks and contract tickers that were stored by a time, in seconds since 1970.
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS stored_by (second INTEGER PRIMARY KEY, tick INTEGER NOT NULL, ticker INTEGER NOT NULL)",
)
#: The most ticks to remove in one step, which delays a query by some milliseconds.
STEP = 2_048
#: Contract tickers are ten times as long.
_TICKER_STEP = STEP // 10
#: The least size bound, in bytes.
_SMALLEST = 1_000_000
#: Seconds between two notes without a bound by age.
_GRID = 600

_NOTE = """
INSERT INTO stored_by
SELECT ?, coalesce((SELECT max(id) FROM tick), 0), coalesce((SELECT max(id) FROM ticker), 0) WHERE true
ON CONFLICT (second) DO UPDATE SET tick = excluded.tick, ticker = excluded.ticker
"""
# Whether any of its rows can be removed. The newest ones stay, so that no ID is assigned again.
_REMOVABLE = """
(min(tick, :newest - 1) > :removed
OR min(ticker, (SELECT max(id) - 1 FROM ticker)) >= (SELECT min(id) FROM ticker))
"""
_TOO_OLD = f"SELECT max(tick), max(ticker) FROM stored_by WHERE second <= :second AND {_REMOVABLE}"
_OLDEST = f"SELECT tick, ticker FROM stored_by WHERE {_REMOVABLE} ORDER BY second LIMIT 1"
_FORGET = "DELETE FROM stored_by WHERE tick <= ? AND ticker < (SELECT coalesce(min(id), 1) FROM ticker)"
_REMOVE_TICKERS = f"""
DELETE FROM ticker WHERE id IN (
    SELECT id FROM ticker WHERE id <= ? AND id < (SELECT max(id) FROM ticker) ORDER BY id LIMIT {_TICKER_STEP}
)
"""


def _check_age(_: Retention, __: attrs.Attribute[float | None], age: object) -> None:
    if age is not None and not (isinstance(age, int | float) and 0 < age < math.inf):
        raise ConfigurationError(f"store_age is {age!r}; expected a timedelta or a number of seconds, above 0")


def _check_size(_: Retention, __: attrs.Attribute[int | None], size: object) -> None:
    if size is not None and not (isinstance(size, int) and size >= _SMALLEST):
        raise ConfigurationError(f"store_bytes is {size!r}; expected {_SMALLEST:,} or more")


def _seconds(age: timedelta | float | None) -> float | None:
    return age.total_seconds() if isinstance(age, timedelta) else age


@attrs.frozen
class Retention:
    """The bounds of a store: an age in seconds, and a size in bytes. None: no bound."""

    age: float | None = attrs.field(default=None, converter=_seconds, validator=_check_age)
    size: int | None = attrs.field(default=None, validator=_check_size)

    @property
    def is_bounded(self) -> bool:
        """Whether there is a bound."""
        return self.age is not None or self.size is not None

    def note(self, connection: sqlite3.Connection) -> None:
        """Note that all rows up to the newest one are stored by now. There are at most a thousand notes per age."""
        connection.execute(_NOTE, (self.second_after(time.time()),))

    def second_after(self, when: float) -> int:
        """The second of the note that includes what was stored at a time."""
        grid = _GRID if self.age is None else max(1, int(self.age / 1_000))
        return (int(when) // grid + 1) * grid

    def find_excess(self, connection: sqlite3.Connection, removed: int, newest: int) -> tuple[int, int] | None:
        """The last tick and the last ticker that are too old or too much now; None if nothing is to be removed.

        `removed` is the last tick that was removed, and `newest` the newest one.
        """
        values = {"removed": removed, "newest": newest}
        if self.age is not None:
            tick, ticker = connection.execute(_TOO_OLD, {"second": time.time() - self.age, **values}).fetchone()
            if tick is not None:
                return tick, ticker
        if self.size is not None and used_bytes(connection) > self.size:
            oldest: tuple[int, int] | None = connection.execute(_OLDEST, values).fetchone()
            return oldest
        return None


def remove_tickers(connection: sqlite3.Connection, last: int) -> None:
    """Remove the oldest contract tickers up to `last`, in a step."""
    connection.execute(_REMOVE_TICKERS, (last,))


def forget(connection: sqlite3.Connection, removed: int) -> None:
    """Remove the notes about rows that were removed, of the ticks up to `removed`."""
    connection.execute(_FORGET, (removed,))


def used_bytes(connection: sqlite3.Connection) -> int:
    """The size of the pages that hold something. The file keeps the others, to use them again."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
