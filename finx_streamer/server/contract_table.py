"""The tables of contract tickers in the store: of each contract, the last ticker before each five-minute point."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .contracts import ContractTicker
from .protocol import encode_contract

#: Seconds between two points of the matrix. Source: D.
POINT_SECONDS = 300
#: `point` is in seconds, `timestamp` in milliseconds since 1970.
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS contract (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, base TEXT NOT NULL, "
    "expiry INTEGER)",
    "CREATE TABLE IF NOT EXISTS ticker (id INTEGER PRIMARY KEY, contract INTEGER NOT NULL, point INTEGER NOT NULL, "
    "timestamp INTEGER NOT NULL, text TEXT NOT NULL, UNIQUE (contract, point))",
)

_ADD_CONTRACT = "INSERT INTO contract (name, base, expiry) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
# A ticker that arrives late doesn't replace a newer one.
_ADD_TICKER = """
INSERT INTO ticker (contract, point, timestamp, text) SELECT id, ?, ?, ? FROM contract WHERE name = ?
ON CONFLICT (contract, point) DO UPDATE SET timestamp = excluded.timestamp, text = excluded.text
WHERE excluded.timestamp >= timestamp
"""
_REMOVE_OLDEST = "DELETE FROM ticker WHERE id <= (SELECT max(id) FROM ticker) - ?"
# A contract is in the matrix until it expires. Without a point, the newest ticker of the coin says what time it is.
_MATRIX = """
WITH mine AS (SELECT id, name, expiry FROM contract WHERE base = ?),
instant AS (
    SELECT coalesce(?, (SELECT max(timestamp) / 1000 FROM ticker WHERE contract IN (SELECT id FROM mine))) AS second
)
SELECT '[' || group_concat(text) || ']' FROM (
    SELECT (
        SELECT text FROM ticker WHERE contract = mine.id AND (? IS NULL OR point <= ?) ORDER BY point DESC LIMIT 1
    ) AS text
    FROM mine, instant WHERE expiry IS NULL OR expiry >= second ORDER BY name
)
"""


def point_of(ticker: ContractTicker) -> int:
    """The five-minute point at which this ticker may be the last one, in seconds since 1970."""
    return -(-ticker.timestamp // (POINT_SECONDS * 1_000)) * POINT_SECONDS


def write(connection: sqlite3.Connection, tickers: Sequence[ContractTicker], limit: int | None) -> None:
    """Store tickers within a transaction. `limit` is the store's limit, in ticks."""
    instruments = {ticker.instrument for ticker in tickers}
    connection.executemany(_ADD_CONTRACT, [(each.name, each.base, each.expiry) for each in instruments])
    connection.executemany(
        _ADD_TICKER,
        [(point_of(each), each.timestamp, encode_contract(each), each.instrument.name) for each in tickers],
    )
    if limit is not None:
        connection.execute(_REMOVE_OLDEST, (-(-limit // 10),))


def matrix_query(base: str, point: int | None) -> tuple[str, tuple[object, ...]]:
    """The statement, and its values, for the JSON array of a coin's tickers at a point; None: of the newest tickers."""
    return _MATRIX, (base, point, point, point)
