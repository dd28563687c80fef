"""The log of played ticks in the store: which ID each tick was sent with. See "Resuming a stream" in docs/protocol.md.

IDs are consecutive, and so are the rows of a batch. So a log needs one entry for all batches in a row, and no column.
In a log that several servers share, IDs have holes, and each tick is in the row of the same ID.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from array import array
from collections import OrderedDict
from itertools import chain, pairwise

import attrs

SCHEMA = (
    # `newest` is the newest ID that was committed.
    "CREATE TABLE IF NOT EXISTS log (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, newest INTEGER NOT NULL)",
    # The ticks with the IDs from `first` on are in the rows from `row` on.
    "CREATE TABLE IF NOT EXISTS log_part (first INTEGER PRIMARY KEY, row INTEGER NOT NULL, count INTEGER NOT NULL)",
)
#: Positions in this many logs are still understood.
_KEPT_LOGS = 1_000
#: How many rows a block has, how many blocks are kept, and the most that one call reads from the database.
_BLOCK, _KEPT_BLOCKS, _MOST_UNREAD = 4_096, 64, 16
#: How the names of shared logs begin.
_SHARED = "js"
_POSITION = re.compile(r"([0-9A-Za-z_-]{1,64}):([0-9]{1,18})", re.ASCII)


@attrs.frozen
class Position:
    """A place in a log: the newest tick that a client has received."""

    log: str
    number: int

    def __str__(self) -> str:
        return f"{self.log}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Parse what a client sends. None if it is malformed."""
        found = _POSITION.fullmatch(text)
        return cls(found[1], int(found[2])) if found else None


@attrs.frozen
class LogPage:
    """Some ticks of a pair: their IDs, and themselves as JSON. `until`: the ID up to which there are no others."""

    ticks: list[tuple[int, str]]
    until: int


def open_log(connection: sqlite3.Connection, current: Position) -> Position:
    """Continue the `current` log if it is the last one, else begin one. Returns its newest tick.

    If another process had the file, it may have sent ticks that it never stored. Their IDs will be assigned again, so
    the log gets another name. The current one was written by us, and only the file was closed in between.
    """
    last = last_log(connection)
    # An old copy of the file may lack the newest ticks.
    if last.log and last.log == current.log and last.number <= current.number:
        return current
    return begin_log(connection, Position(secrets.token_hex(8), last.number))


def last_log(connection: sqlite3.Connection) -> Position:
    """Return the newest tick of the last log. The name is empty if there was none."""
    found = connection.execute("SELECT name, newest FROM log ORDER BY number DESC LIMIT 1").fetchone()
    return Position(*(found or ("", 0)))


def begin_log(connection: sqlite3.Connection, begun: Position) -> Position:
    """Begin a log after a number, and return that."""
    (number,) = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM log").fetchone()
    connection.execute("INSERT INTO log VALUES (?, ?, ?)", (number, begun.log, begun.number))
    connection.execute("DELETE FROM log WHERE number <= ?", (number - _KEPT_LOGS,))
    return begun


def shared_name(text: str) -> str:
    """The name of a log that is not this server's own. The text identifies it everywhere."""
    return f"{_SHARED}{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def is_shared(name: str) -> bool:
    """Whether a log is not a server's own one, whose name is a hexadecimal number."""
    return name.startswith(_SHARED)


def note_newest(connection: sqlite3.Connection, newest: int) -> None:
    """Note the newest ID of the current log. Its tick may not be stored, and the oldest ones are removed."""
    connection.execute("UPDATE log SET newest = ? WHERE number = (SELECT max(number) FROM log)", (newest,))


def add_part(connection: sqlite3.Connection, first: int, row: int, count: int) -> None:
    """Note that the ticks with the IDs from `first` on are in the rows from `row` on."""
    extended = connection.execute(
        "UPDATE log_part SET count = count + ? WHERE first = (SELECT max(first) FROM log_part) "
        "AND first + count = ? AND row + count = ?",
        (count, first, row),
    ).rowcount
    if not extended:
        connection.execute("INSERT INTO log_part VALUES (?, ?, ?)", (first, row, count))


def add_span(connection: sqlite3.Connection, first: int, last: int) -> None:
    """Note that a shared log's ticks with these IDs are in the rows of the same IDs. What adjoins becomes one part."""
    begin, end = connection.execute(
        "SELECT min(first), max(first + count - 1) FROM log_part WHERE first <= ? AND first + count >= ?",
        (last + 1, first),
    ).fetchone()
    if begin is not None:
        first, last = min(begin, first), max(end, last)
    connection.execute("DELETE FROM log_part WHERE first BETWEEN ? AND ?", (first, last))
    connection.execute("INSERT INTO log_part VALUES (?, ?, ?)", (first, first, last - first + 1))


def hole_below(connection: sqlite3.Connection, newest: int) -> tuple[int, int]:
    """Return the first and last ID of what is missing below the part that ends at `newest`; from 1, without another."""
    last = _oldest(connection, newest)
    (end,) = connection.execute(
        "SELECT coalesce(max(first + count - 1), 0) FROM log_part WHERE first <= ?", (last,)
    ).fetchone()
    return end + 1, last


def holes(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    """Return the first and last ID of what is missing between parts."""
    parts = connection.execute("SELECT first, first + count - 1 FROM log_part ORDER BY first").fetchall()
    return [(end + 1, first - 1) for (_, end), (first, _) in pairwise(parts)]


def cut(connection: sqlite3.Connection, last: int) -> None:
    """Forget the parts of a shared log after an ID."""
    connection.execute("DELETE FROM log_part WHERE first > ?", (last,))
    connection.execute("UPDATE log_part SET count = ? + 1 - first WHERE first + count - 1 > ?", (last, last))


def remove_rows(connection: sqlite3.Connection, last_row: int) -> None:
    """Note that the rows up to `last_row` were removed."""
    connection.execute("DELETE FROM log_part WHERE row + count - 1 <= ?", (last_row,))
    connection.execute(
        "UPDATE log_part SET first = first + (? + 1 - row), count = count - (? + 1 - row), row = ? + 1 WHERE row <= ?",
        (last_row, last_row, last_row, last_row),
    )


def resume_at(connection: sqlite3.Connection, position: Position, current: Position) -> int | None:
    """Return the ID after which a client needs every tick. None if the log doesn't hold them all.

    `current` is the newest tick of the current log.
    """
    number = position.number
    if position.log != current.log:
        known = connection.execute("SELECT newest FROM log WHERE name = ?", (position.log,)).fetchone()
        if known is None:
            return None
        number = min(number, known[0])
    return number if _oldest(connection, current.number) <= number <= current.number else None


def _oldest(connection: sqlite3.Connection, newest: int) -> int:
    """Return the smallest ID after which the log holds every tick."""
    oldest = newest
    # There are few parts: only imports, lost ticks and replayed tapes begin one.
    for first, count in connection.execute("SELECT first, count FROM log_part ORDER BY first DESC"):
        if first + count - 1 != oldest:
            break
        oldest = first - 1
    return oldest


def rows_after(connection: sqlite3.Connection, number: int, until: int) -> tuple[int, int, int] | None:
    """Return the first and last row, and the ID of the first one, of the part that begins after `number`.

    None if there is none up to `until`, or the log doesn't hold them.
    """
    part = connection.execute(
        "SELECT first, row, count FROM log_part WHERE first <= ? ORDER BY first DESC LIMIT 1", (number + 1,)
    ).fetchone()
    if part is None or number + 1 > part[0] + part[2] - 1:
        return None
    first, row, count = part
    begin = row + number + 1 - first
    return begin, min(row + count - 1, begin + until - number - 1), number + 1


class RowFinder:
    """Finds the rows of a pair. An index would cost each tick half as much again as storing it does.

    After an outage, many streams read the same part of the log, so the blocks that were read are kept.
    """

    def __init__(self) -> None:
        #: By the block's number: the rows of each pair, and the last row that was read.
        self._blocks: OrderedDict[int, tuple[dict[int, array[int]], int]] = OrderedDict()

    def clear(self) -> None:
        """Forget everything, because the database is another one."""
        self._blocks.clear()

    def forget(self, first: int, last: int) -> None:
        """Forget some rows, because others come in between."""
        for number in range(first // _BLOCK, last // _BLOCK + 1):
            self._blocks.pop(number, None)

    def find(self, connection: sqlite3.Connection, pair: int, begin: int, end: int) -> tuple[list[int], int]:
        """Return the rows of a pair from `begin` on, and the last row that was looked at, at most `end`."""
        unread = [number for number in range(begin // _BLOCK, end // _BLOCK + 1) if number not in self._blocks]
        if len(unread) > _MOST_UNREAD:
            end = unread[_MOST_UNREAD] * _BLOCK - 1
        blocks = [self._read(connection, number, end) for number in range(begin // _BLOCK, end // _BLOCK + 1)]
        rows = chain.from_iterable(block.get(pair, ()) for block in blocks)
        return [row for row in rows if begin <= row <= end], end

    def _read(self, connection: sqlite3.Connection, number: int, end: int) -> dict[int, array[int]]:
        block, read = self._blocks.get(number, ({}, number * _BLOCK - 1))
        end = min(end, (number + 1) * _BLOCK - 1)
        if read < end:
            # A single row, because each one releases the GIL, and has to reacquire it from a busy event loop.
            rows, pairs = connection.execute(
                "SELECT group_concat(id), group_concat(pair) FROM "
                "(SELECT id, pair FROM tick WHERE id BETWEEN ? AND ? ORDER BY id)",
                (read + 1, end),
            ).fetchone()
            if rows is not None:
                for row, each in zip(map(int, rows.split(",")), map(int, pairs.split(",")), strict=True):
                    block.setdefault(each, array("q")).append(row)
            self._blocks[number] = block, end
            if len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return block
