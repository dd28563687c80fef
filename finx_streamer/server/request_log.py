"""`RequestLog`: one line of JSON for each handshake, page and ended connection. It never contains a key."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .connection import Connection
from .protocol import Kind, Wire

log = logging.getLogger("finx_streamer.server")

#: The target that means standard output.
STANDARD_OUTPUT = "-"
#: The most lines that wait for a slow disk. Further ones are dropped.
_ROOM = 8_192
#: The most lines per write.
_BATCH = 512
#: Seconds that `close()` waits for a slow disk.
_CLOSE_TIMEOUT = 2.0

_Entry = Mapping[str, Any]


class RequestLog:
    """Appends lines to a file, or to standard output, on a thread of its own. Only `close()` waits for the disk.

    Lines beyond the room and lines that can't be written are dropped. A line says how many, once lines can be written.
    Raises `OSError` if the file can't be opened.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._entries: queue.Queue[_Entry | None] = queue.Queue(_ROOM)
        self._descriptor = self._open()
        self._reopening, self._closing = threading.Event(), threading.Event()
        #: Lines dropped for want of room, lines that couldn't be written, and how many of both a line has reported.
        self._crowded = self._unwritten = self._reported = 0
        self._has_failed = False
        #: Whether the last line in the file is incomplete.
        self._is_torn = False
        self._thread = threading.Thread(target=self._run, name="finx-request-log", daemon=True)
        self._thread.start()

    def add_request(self, connection: Connection) -> None:
        """Log how a request was answered. The status is None if it wasn't, or wasn't a request at all."""
        if connection.page is not None:
            answer = {"event": "page", **_peer(connection), "page": connection.page.path}
        else:
            answer = {"event": "handshake", **_peer(connection), **_target(connection)}
        self.add({**answer, "status": connection.status})

    def add_end(self, connection: Connection, seconds: float) -> None:
        """Log the end of a connection. `seconds` have passed since its handshake."""
        outcome = {
            "seconds": round(seconds, 3),
            "messages": connection.messages_sent,
            "code": connection.first_close_code,
        }
        self.add({"event": "end", **_peer(connection), **_target(connection), **outcome})

    def reopen(self) -> None:
        """Continue in a new file of the same name, after the earlier one was renamed."""
        self._reopening.set()
        self._wake()

    def close(self) -> None:
        """Write the waiting lines, and close the file."""
        self._closing.set()
        self._wake()
        self._thread.join(_CLOSE_TIMEOUT)

    def add(self, entry: _Entry) -> None:
        """Add a line to those that are waiting. If there is no room, drop it."""
        try:
            self._entries.put_nowait({"time": time.time(), **entry})
        except queue.Full:
            self._crowded += 1

    def _wake(self) -> None:
        # If the queue is full, the thread is awake.
        with contextlib.suppress(queue.Full):
            self._entries.put_nowait(None)

    def _open(self) -> int:
        if self._target == STANDARD_OUTPUT:
            return os.dup(1)
        # Only for the owner, because addresses are personal data.
        return os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._entries.empty()):
            entries = [self._entries.get()]
            with contextlib.suppress(queue.Empty):
                while len(entries) < _BATCH:
                    entries.append(self._entries.get_nowait())
            if self._reopening.is_set():
                self._reopening.clear()
                self._reopen()
            self._write_and_report([encode_line(entry) for entry in entries if entry is not None])
        os.close(self._descriptor)

    def _reopen(self) -> None:
        try:
            opened = self._open()
        except OSError as error:
            log.error("cannot open the request log %s: %s; the earlier file stays in use", self._target, error.strerror)
            return
        os.close(self._descriptor)
        self._descriptor, self._is_torn = opened, False

    def _write_and_report(self, lines: list[bytes]) -> None:
        """Write lines, after one that says how many were dropped before them, if any."""
        dropped = self._crowded + self._unwritten - self._reported
        report = [encode_line({"time": time.time(), "event": "dropped", "lines": dropped})] if dropped else []
        written = self._write(report + lines)
        if written and report:
            self._reported += dropped
        self._unwritten += len(lines) - max(0, written - len(report))

    def _write(self, lines: list[bytes]) -> int:
        """Write lines. Return how many are complete."""
        data = b"".join([b"\n"] * self._is_torn + lines)
        size, breaks = 0, int(self._is_torn)
        try:
            while size < len(data):
                size += os.write(self._descriptor, data[size:])
        except OSError as error:
            if not self._has_failed:
                reason = error.strerror
                log.error("cannot write the request log %s: %s; lines are dropped until it works", self._target, reason)
            self._has_failed = True
        else:
            self._has_failed = False
        if size:
            self._is_torn = not data[:size].endswith(b"\n")
        return max(0, data[:size].count(b"\n") - breaks)


def encode_line(entry: _Entry) -> bytes:
    """One line of JSON, in ASCII. `time` is in seconds since 1970, and written as ISO text."""
    moment = datetime.fromtimestamp(entry["time"], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    # json escapes the other control characters.
    return json.dumps({**entry, "time": moment}).replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def _peer(connection: Connection) -> dict[str, Any]:
    address = connection.address
    return {"address": None, "port": None} if address is None else {"address": address.host, "port": address.port}


def _target(connection: Connection) -> dict[str, Any]:
    """What a client asked for, without anything that may contain a key."""
    route = connection.route
    if route is None:
        kind = wire = None
    else:
        kind = route.kind.value
        wire = (Wire.SUBSCRIBE if route.kind is Kind.FUNCTIONS else Wire.URL).value
    return {"kind": kind, "symbol": connection.listed_symbol, "wire": wire, "key": connection.key_number}
