"""Write an archive: a bounded queue, a thread that writes, one that syncs, and one that seals.

`put_…` never waits. If the disk doesn't keep up, entries are dropped, counted, and noted in the ledger as soon as there
is room.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..connection.wakeup import Wakeup
from .journal import MAX_BYTES, MAX_ENTRIES, JournalFile, compressor, entry_line, pack, repair, ticks_lines
from .layout import HOUR_NS, Layout, iso_time, lock, sync_directory
from .sealing import metadata_of, remove_leftovers

#: The header of a text frame from a server. Within JSON, 0x81 is the later byte of a character, after one above 0x7f.
_HEADER = re.compile(rb"\x81(?:~[\x00-\x1f].|(?<![\x80-\xff]\x81)[\x00-\x7d])", re.DOTALL)
#: How long entries are gathered for a block, in seconds, and the bytes that end it earlier.
_GATHER, _ENOUGH = 0.25, 4 << 20
_SYNC_EVERY = 1.0
#: The pause before another attempt to write, in seconds.
_RETRY = 1.0
#: The longest sleep at rest, in seconds: a finished hour is sealed within that time.
_REST = 60.0
#: Drops are reported at most this often, in seconds.
_REPORT_EVERY = 1.0
_SEAL = f"import sys; from {__package__}.sealing import main; main(*sys.argv[1:])"
_log = logging.getLogger("finx_streamer")

#: What waits to be written: the received time, the kind, and raw frames, a line, or lines of ticks with their number.
_Item = tuple[int, str, bytes, int]


class ArchiveWriter:
    """Records into a directory, of which it is the only writer::

        from finx_streamer.archive import Archive, ArchiveWriter

        with ArchiveWriter("ticks/") as writer:
            writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])
        print(list(Archive("ticks/").ticks()))

    Opening repairs what a crash left: it cuts off the journal's torn tail, and seals hours that have ended. All methods
    are thread-safe. `put_…` never wait.

    Args:
        path (str | os.PathLike[str]): The directory. It's created if it doesn't exist.
        on_problem (Callable[[str], object] | None): Called with each problem, on one of the writer's threads: a disk
            that is full or gone, dropped entries, a torn tail, an hour that can't be sealed. None: they are logged.
        queue_bytes (int): How much may wait to be written. Beyond that, entries are dropped.

    Raises:
        ConfigurationError: Another process records into the directory.
        OSError: The directory can't be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_problem: Callable[[str], object] | None = None,
        queue_bytes: int = 64 << 20,
    ) -> None:
        self._layout = layout = Layout(Path(path))
        self._on_problem = on_problem or (lambda message: _log.error("%s", message))
        self._queue_bytes = queue_bytes
        (layout.root / "journal").mkdir(parents=True, exist_ok=True)
        self._lock_file = lock(layout.root)
        self._lock = threading.Lock()
        self._items: deque[_Item] = deque()
        self._queued = 0
        self._taken = 0
        self._dropped: _Dropped | None = None
        self._wakeup = Wakeup()
        self._closing = False
        self._closed = False
        self._flushed = threading.Condition()
        self._wanted = self._done = 0
        self._zstd = compressor()
        self._block: list[bytes] = []
        self._block_entries = self._block_bytes = 0
        self._block_first = self._block_last = 0
        self._unreported, self._report_at = 0, 0.0
        self._deadline = 0.0
        self._unsynced = False
        self._failing = False
        self._to_seal: deque[int] = deque()
        self._seal_wakeup = Wakeup()
        self._sealing: subprocess.Popen[bytes] | None = None
        try:
            self._open()
        except BaseException:
            self._lock_file.close()
            raise
        names = {"writer": self._write, "sync": self._sync, "seal": self._seal}
        self._stop_sync = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"finx-archive-{name}", daemon=True) for name, run in names.items()
        ]
        for thread in self._threads:
            thread.start()

    def put_frames(self, received_ns: int, frames: bytes, backfilled: bool = False) -> None:
        """Record ticks as they were read from a socket.

        Args:
            received_ns (int): When they were received, in nanoseconds since 1970.
            frames (bytes): Whole unmasked text frames, each a tick of any pair, without line feeds.
            backfilled (bool): Whether they were missed before.
        """
        self._put((received_ns, "backfilled" if backfilled else "frames", frames, 0))

    def put_payloads(self, received_ns: int, payloads: list[bytes], backfilled: bool = False) -> None:
        """Record ticks by their messages.

        Args:
            received_ns (int): When they were received, in nanoseconds since 1970.
            payloads (list[bytes]): The texts of messages, each a tick of any pair.
            backfilled (bool): Whether they were missed before.
        """
        # Outside of strings, JSON takes a space for a line feed. Within them, it has none.
        lines = b"".join(b"\n" + payload.replace(b"\n", b" ") for payload in payloads)
        self._put((received_ns, "line", ticks_lines(received_ns, len(payloads), lines, backfilled), len(payloads)))

    def put_message(self, received_ns: int, payload: bytes, symbol: str | None) -> None:
        """Record a message that isn't a tick: Greeks, a notice, or one that can't be read.

        Args:
            received_ns (int): When it was received, in nanoseconds since 1970.
            payload (bytes): The text of the message.
            symbol (str | None): Its stream, if that is known.
        """
        self._put((received_ns, "line", _message(received_ns, payload, symbol), 1))

    def put_backfilled(self, ticks: Iterable[tuple[str, str, str, str, str]], received_ns: int | None = None) -> None:
        """Record ticks that were fetched from history.

        Args:
            ticks (Iterable[tuple[str, str, str, str, str]]): Pair, date, time, exchange and price, as they were sent.
            received_ns (int | None): When they were received, in nanoseconds since 1970. None: now.
        """
        names = ("pair", "date", "time", "exchange", "price")
        lines = [_wire_line(dict(zip(names, tick, strict=True))) for tick in ticks]
        at = time.time_ns() if received_ns is None else received_ns
        for start in range(0, len(lines), MAX_ENTRIES):
            part = lines[start : start + MAX_ENTRIES]
            self._put((at, "line", ticks_lines(at, len(part), b"\n" + b"\n".join(part), backfilled=True), len(part)))

    def put_event(
        self, kind: str, fields: Mapping[str, Any], symbol: str | None = None, received_ns: int | None = None
    ) -> None:
        """Record an event.

        Args:
            kind (str): "start", "stop", "state", "gap", "error" or a kind of your own.
            fields (Mapping[str, Any]): Values that JSON has, and datetimes. `archive.coverage` reads a state's `state`,
                and a gap's `since`, `until` (datetimes), `filled` and `why`.
            symbol (str | None): The stream that it concerns. None: all of them.
            received_ns (int | None): When it happened, in nanoseconds since 1970. None: now.
        """
        at = time.time_ns() if received_ns is None else received_ns
        values = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in fields.items()
            if name not in ("at", "kind", "symbol")
        }
        self._put((at, "line", entry_line(at, kind, symbol, values), 1))

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until everything put so far is on disk.

        Args:
            timeout (float): Seconds.

        Raises:
            TimeoutError: The disk is too slow, full or gone.
        """
        with self._flushed:
            self._wanted += 1
            wanted = self._wanted
            self._wakeup.wake()
            if not self._flushed.wait_for(lambda: self._done >= wanted or self._closed, timeout):
                raise TimeoutError(f"flush: the disk took longer than {timeout} s")
        self._sync_now()

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits, and release the directory. What the disk doesn't take in time is reported as dropped.

        Args:
            timeout (float): Seconds.
        """
        if self._closed:
            return
        self.put_event("close", {})
        self._deadline = time.monotonic() + timeout
        self._closing = True
        self._wakeup.wake()
        self._threads[0].join(timeout + _RETRY)
        self._closed = True
        self._stop_sync.set()
        self._seal_wakeup.wake()
        if (sealing := self._sealing) is not None:
            sealing.terminate()  # the next writer seals this hour
        for thread in self._threads[1:]:
            thread.join(timeout)
        with self._flushed:
            self._flushed.notify_all()
        self._journal.close()
        self._lock_file.close()

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """How many chunks, messages and events were dropped since the last one that was recorded."""
        return self._dropped.count if self._dropped is not None else 0

    def _put(self, item: _Item) -> None:
        size = len(item[2]) + 100
        with self._lock:
            if self._closing:
                return
            if self._queued + size > self._queue_bytes:
                self._drop(item)
                return
            self._note_dropped()
            before = self._queued
            self._items.append(item)
            self._queued += size
        if not before or before < _ENOUGH <= self._queued:
            self._wakeup.wake()

    def _drop(self, item: _Item) -> None:
        if self._dropped is None:
            self._dropped = _Dropped(item[0])
            self._wakeup.wake()
        self._dropped.count += 1
        self._dropped.entries += item[3] or item[2].count(b'"price"')
        self._dropped.until = item[0]

    def _note_dropped(self) -> None:
        """Put what was dropped into the queue, which has room for that again."""
        if (dropped := self._dropped) is not None:
            self._dropped = None
            line = entry_line(dropped.until, "gap", None, dropped.fields)
            self._items.append((dropped.until, "line", line, 1))
            self._queued += len(line) + 100
            self._unreported += dropped.entries

    def _open(self) -> None:
        layout = self._layout
        self._problems: deque[str] = deque()
        for day in layout.root.glob("date=*"):
            remove_leftovers(day)
        for spilled in layout.root.glob(".spill*"):
            shutil.rmtree(spilled, ignore_errors=True)
        sealed, journals = layout.find()
        for path in (layout.root / "journal").iterdir():
            if path not in map(layout.journal, journals):
                path.unlink()  # it is sealed
        self._hour = layout.next_hour(time.time_ns())
        last_ns, cut = None, 0
        for hour in journals:
            found = repair(layout.journal(hour))
            last_ns, cut = found.last_ns or last_ns, cut + found.cut
            if hour < self._hour:
                self._to_seal.append(hour)
        if cut:
            self._problems.append(f"{layout.root}: cut off {cut:,} bytes that a crash left at the end of the journal")
        self._journal = JournalFile(layout.journal(self._hour))
        self._journal_is_new = True
        if last_ns is None and sealed:
            last_ns = metadata_of(sealed[-1].ticks)["last_ns"]
        self.put_event("open", {"last_ns": last_ns, "cut": cut})

    # The writer's thread

    def _write(self) -> None:
        while True:
            self._rest()
            wanted = self._wanted
            closing = self._closing
            with self._lock:
                items, self._items = self._items, deque()
                self._note_dropped()
            for item in items:
                self._add(item)
            self._end_block()
            self._report()
            if wanted > self._done:
                with self._flushed:
                    self._done = wanted
                    self._flushed.notify_all()
            if closing and not self._items:
                return
            self._rotate(time.time_ns() // HOUR_NS)

    def _report(self) -> None:
        while self._problems:
            self._on_problem(self._problems.popleft())
        if self._unreported and (self._closing or time.monotonic() >= self._report_at):
            count, self._unreported = self._unreported, 0
            self._report_at = time.monotonic() + _REPORT_EVERY
            self._on_problem(f"{self._layout.root}: {count:,} entries were not recorded, because the queue was full")

    def _rest(self) -> None:
        """Wait for entries, then for enough of them."""
        if self._closing or self._wanted > self._done:
            return
        if not self._items:
            self._wakeup.wait(_REST)
        if self._queued < _ENOUGH and not self._closing and self._wanted == self._done:
            self._wakeup.wait(_GATHER)

    def _add(self, item: _Item) -> None:
        received_ns, kind, data, count = item
        self._rotate(received_ns // HOUR_NS)
        size = len(data) + 100
        if kind != "line":
            payloads = _HEADER.split(data)  # faster than `subn`
            lines, count = b"\n".join(payloads), len(payloads) - 1
            # A line feed is rare: it's part of a header, or white space in a message. Counting is slow.
            if not payloads[0] and (b"\n" not in data or lines.count(b"\n") == count):
                data = ticks_lines(received_ns, count, lines, kind == "backfilled")
            else:
                messages = [_message(received_ns, payload, None) for payload in _payloads(data)]
                data, count = b"".join(messages), len(messages)
        if not self._block:
            self._block_first = received_ns
        self._block_last = received_ns
        self._block.append(data)
        self._block_entries += count
        self._block_bytes += len(data)
        self._taken += size
        if self._block_entries >= MAX_ENTRIES or self._block_bytes >= MAX_BYTES:
            self._end_block()

    def _end_block(self) -> None:
        if self._block:
            block = pack(b"".join(self._block), self._block_entries, self._block_first, self._block_last, self._zstd)
            self._append(block)
            self._block, self._block_entries, self._block_bytes = [], 0, 0
        with self._lock:
            self._queued -= self._taken
            self._taken = 0

    def _append(self, block: bytes) -> None:
        while True:
            try:
                self._journal.append([block])
                self._unsynced = True
                if self._journal_is_new:
                    sync_directory(self._journal.path.parent)
                    self._journal_is_new = False
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._on_problem(f"{self._journal.path}: can't write: {error.strerror or error}; trying again")
                if self._closing and time.monotonic() > self._deadline - _RETRY:
                    self._on_problem(f"{self._journal.path}: {self._block_entries:,} entries were not recorded")
                    return
                self._wakeup.wait(min(_RETRY, 0.1) if self._closing else _RETRY)
            else:
                if self._failing:
                    self._failing = False
                    self._on_problem(f"{self._journal.path}: recording goes on")
                return

    def _rotate(self, hour: int) -> None:
        """Begin the journal of a later hour. An earlier hour stays in this one."""
        if hour <= self._hour:
            return
        self._end_block()
        finished, self._hour = self._hour, hour
        self._sync_now()
        old, self._journal = self._journal, JournalFile(self._layout.journal(hour))
        self._journal_is_new = True
        old.close()
        if old.path.exists():
            self._to_seal.append(finished)
            self._seal_wakeup.wake()

    # The other threads

    def _sync(self) -> None:
        while not self._stop_sync.wait(_SYNC_EVERY):
            self._sync_now()
        self._sync_now()

    def _sync_now(self) -> None:
        if self._unsynced:
            self._unsynced = False
            try:
                if (file := self._journal.duplicate()) is not None:
                    try:
                        os.fsync(file)
                    finally:
                        os.close(file)
            except OSError as error:
                self._problems.append(f"{self._journal.path}: can't sync: {error.strerror or error}")

    def _seal(self) -> None:
        while not self._closed:
            if not self._to_seal:
                self._seal_wakeup.wait()
                continue
            hour = self._to_seal.popleft()
            command = [sys.executable, "-c", _SEAL, str(self._layout.root.absolute()), str(hour)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._sealing = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            _, errors = self._sealing.communicate()
            if self._sealing.returncode == 0:
                self.put_event("seal", {"hour": hour})
            elif not self._closed:
                reason = errors.decode(errors="replace").strip().rpartition("\n")[2]
                self._on_problem(f"{self._layout.journal(hour)}: can't be sealed, stays as it is: {reason}")
            self._sealing = None


class _Dropped:
    """What was dropped since a time."""

    def __init__(self, since: int) -> None:
        self.since = self.until = since
        self.count = self.entries = 0

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the event."""
        times = {"since": iso_time(self.since), "until": iso_time(self.until + 999)}
        return {**times, "filled": False, "entries": self.entries, "why": "the disk was too slow, full or gone"}


def _payloads(chunk: bytes) -> Iterator[bytes]:
    """Return the payloads of frames, by their lengths."""
    at = 0
    while at < len(chunk):
        length, start = chunk[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(chunk[start : start + 2], "big"), start + 2
        at = start + length
        yield chunk[start:at]


def _message(at: int, payload: bytes, symbol: str | None) -> bytes:
    return entry_line(at, "message", symbol, {"text": payload.decode("utf-8", "surrogateescape")})


def _wire_line(tick: dict[str, str]) -> bytes:
    return json.dumps({"results": "streaming", "resultData": tick}, separators=(",", ":")).encode()
