"""The tables of ticks in a store, their version, and why a store can't be opened."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ..errors import ConfigurationError
from .files import access_error

#: Identifies our files: "FinX" in ASCII. Source: O.
APPLICATION_ID = 0x46696E58
#: The version of the tables below.
VERSION = 2

_TICKS = """
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
#: The tapes whose first ticks are stored: how many there are, and the ID of the first one. New in version 2.
_TAPES = """
CREATE TABLE tape (
    digest TEXT PRIMARY KEY, length INTEGER NOT NULL, stored INTEGER NOT NULL, first_id INTEGER NOT NULL
) WITHOUT ROWID
"""


def prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    """Create the tables in a new database, or add those that a database of an earlier version lacks.

    Raises `ConfigurationError` if it is not a tick store, or of a later version.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not objects and application in {0, APPLICATION_ID}:
        for statement in (*_TICKS.split(";"), _TAPES):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    elif application != APPLICATION_ID:
        raise ConfigurationError(f"the store {path} is another program's database; use another file")
    elif version == 1:
        connection.execute(_TAPES)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    elif version != VERSION:
        raise ConfigurationError(
            f"the store {path} has version {version}; expected version {VERSION}; use another file"
        )


def opening_error(error: sqlite3.Error, path: Path | None) -> Exception:
    """Translate an SQLite error into one that says what to do."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return ConfigurationError(f"the store {path} is in use by another server or program; close it there first")
    if name.startswith("SQLITE_NOTADB"):
        return ConfigurationError(f"the store {path} is not an SQLite database; use another file")
    if path is not None and (code := access_error(path)):
        return OSError(code, os.strerror(code), str(path))
    return ConfigurationError(f"cannot open the store {path}: {error}")
