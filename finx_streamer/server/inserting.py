"""Insert ticks into the table `tick`, many per statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

#: The numbers of ticks per INSERT statement. Each statement releases the GIL and has to reacquire it from a busy event
#: loop, so one statement per tick would be slower by orders of magnitude.
_SIZES = (512, 64, 8, 1)
_COLUMNS = "pair, exchange, second, fraction, date, time, price"


def _statements(columns: str, values: str, conflict: str = "") -> dict[int, str]:
    return {size: f"INSERT {conflict} INTO tick ({columns}) VALUES {','.join([values] * size)}" for size in _SIZES}


_PLAIN = _statements(_COLUMNS, "(?,?,?,?,?,?,?)")
_WITH_ID = _statements(f"id, {_COLUMNS}", "(?,?,?,?,?,?,?,?)", "OR IGNORE")


def insert_ticks(connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]], *, with_id: bool = False) -> int:
    """Insert the column values of ticks. Returns how many rows that added.

    With `with_id`, each row begins with its ID, and one that is stored already is skipped.
    """
    statements = _WITH_ID if with_id else _PLAIN
    start = added = 0
    for size in _SIZES:
        while len(rows) - start >= size:
            parameters = [value for values in rows[start : start + size] for value in values]
            added += connection.execute(statements[size], parameters).rowcount
            start += size
    return added
