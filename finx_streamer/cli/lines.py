"""Ticks as lines, JSON or CSV, for pipes and files."""

from __future__ import annotations

import csv
import json
import os
import select
import threading
import unicodedata
from collections.abc import Callable
from typing import Any

from .. import FinxStreamerError, Gap, Notice, StreamListener, Tick
from ..errors import make_printable
from .text import brief, filled, say

CSV_HEADER = "pair,date,time,exchange,price,timestamp,received_ns,backfilled\n"

#: What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@")
_LIMIT = 10_000

_encode = json.JSONEncoder(separators=(",", ":")).encode


def json_line(tick: Tick) -> str:
    """A tick as one line of JSON. Pure ASCII, so nothing in it can act on a terminal."""
    return _encode({**tick, "timestamp": tick["timestamp"].isoformat()}) + "\n"


class _Echo:
    """A file that returns what is written to it, which makes `csv.writer` a function from a row to a line."""

    def write(self, line: str) -> str:
        return line


_row: Callable[[Any], Any] = csv.writer(_Echo(), lineterminator="\n").writerow


def csv_line(tick: Tick) -> str:
    """A tick as one line of CSV. All but the exchange is of a form that was checked when it was received."""
    line: str = _row(
        (
            tick["pair"],
            tick["date"],
            tick["time"],
            safe_cell(tick["exchange"]),
            tick["price"],
            tick["timestamp"].isoformat(),
            tick["received_ns"],
            "true" if tick["backfilled"] else "false",
        )
    )
    return line


def safe_cell(text: str) -> str:
    """The text as a spreadsheet may open it: an apostrophe before what would be a formula or a control character.

    Control characters are escaped as well, so that a line stays one line; and so are semicolons, at which many a
    spreadsheet splits a line whatever is quoted, so that a formula could begin behind one.
    """
    # A spreadsheet may strip blanks, and takes a full-width equals sign for the plain one.
    first = unicodedata.normalize("NFKC", text.lstrip()[:1])
    prefix = "'" if first.startswith(_FORMULA) or not text[:1].isprintable() else ""
    return prefix + make_printable(text).replace(";", r"\x3b")


class Lines:
    """A view that writes each tick as a line to a file descriptor.

    Lines are formatted on the callback side and written by the caller's thread: each at once while the reader keeps
    up, many in one piece when they come faster. A reader that stops makes the callbacks wait, and so, in the end, the
    server; it cannot make Ctrl-C wait, which strikes the thread that writes.
    """

    def __init__(self, form: Callable[[Tick], str], fd: int, header: str = "") -> None:
        self._form = form
        self._fd = fd
        self._pending = [header] if header else []
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._writing = False

    def on_tick(self, tick: Tick) -> None:
        line = self._form(tick)
        with self._changed:
            while len(self._pending) >= _LIMIT and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._pending.append(line)
                self._changed.notify_all()

    def on_error(self, error: FinxStreamerError) -> None:
        say(brief(str(error)))

    def on_notice(self, notice: Notice) -> None:
        say(brief(f"notice: {_encode(notice.message)}"))

    def on_gap(self, gap: Gap) -> None:
        say(filled(gap))

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def turn(self, listener: StreamListener, seconds: float) -> None:
        """Write what there is; wait for something to write, if there is nothing. Raises `BrokenPipeError`."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._woken, seconds)
            self._woken = False
        if not self._write() and self._reader_is_gone():
            raise BrokenPipeError

    def finish(self, listener: StreamListener, interrupted: bool) -> None:
        """Write the rest, unless the interrupt struck a write: then nobody knows how much of a line is out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not (interrupted and self._writing):
            self._write()

    def _write(self) -> bool:
        with self._changed:
            lines, self._pending = self._pending, []
            self._changed.notify_all()
        data = memoryview("".join(lines).encode())
        while data:
            self._writing = True
            data = data[os.write(self._fd, data) :]
        self._writing = False
        return bool(lines)

    def _reader_is_gone(self) -> bool:
        """Whether a pipe has lost its reader. A quiet market would not show it: nothing is written."""
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
