"""Write an archive: a bounded queue, and a thread that writes and syncs.

`put_…` never waits. If the disk doesn't keep up, entries are dropped, counted, and noted in the ledger as soon as there
is room. What hangs with the disk is only that thread: other threads seal and report.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ..clock import monotonic
from ..connection.wakeup import Wakeup
from ..errors import ConfigurationError
from .journal import (
    FIELDS,
    MAX_BYTES,
    MAX_ENTRIES,
    JournalFile,
    compressor,
    entry_line,
    frame_payloads,
    gap_line,
    message_line,
    pack,
    tick_line,
    tick_runs,
)
from .layout import HOUR_NS, Layout, iso_time, lock
from .opening import Found, prepare
from .reporting import Reports, WriterState
from .sealer import Sealer

#: The header of a text frame from a server. Within JSON, 0x81 is the later byte of a character, after one above 0x7f.
_HEADER = re.compile(rb"\x81(?:~[\x00-\x1f].|(?<![\x80-\xff]\x81)[\x00-\x7d])", re.DOTALL)
#: How long entries are gathered for a block, in seconds, and the bytes that end it earlier.
_GATHER, _ENOUGH = 0.25, 4 << 20
#: Written entries are synced after this time: with `_GATHER`, within a second.
_SYNC_AFTER = 0.7
#: The pause before another attempt to write, in seconds.
_RETRY = 1.0
#: The longest sleep at rest, in seconds: a finished hour is sealed within that time.
_REST = 60.0
#: A clock that is set by more than this (in ns) gets an event.
_JUMP_NS = 2_000_000_000
#: How long an hour lasts while the clock is behind it, in seconds.
_LONG_HOUR = 7_200.0

#: The room that only events may use, in bytes: `coverage` needs them.
_EVENT_ROOM = 1 << 20

#: What waits to be written: the received time, the kind, and raw frames, a line, or lines of ticks with their number.
_Item = tuple[int, str, bytes, int]


class ArchiveWriter:
    """Records into a directory, of which it is the only writer::

        from finx_streamer.archive import Archive, ArchiveWriter

        with ArchiveWriter("ticks/") as writer:
            writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])
        print(list(Archive("ticks/").ticks()))

    Opening repairs what a crash left: it cuts off the journal's torn tail, and seals hours that have ended. All methods
    are thread-safe. `put_…` never wait. In a forked child, they do nothing.

    Args:
        path (str | os.PathLike[str]): The directory. It's created if it doesn't exist.
        on_problem (Callable[[str], object] | None): Called with each problem, on a thread of its own: a disk that is
            full or gone, dropped entries, a torn tail, an hour that can't be sealed. None: they are logged.
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
        self._queue_bytes = queue_bytes
        (layout.root / "journal").mkdir(parents=True, exist_ok=True)
        self._lock_file = lock(layout.root)
        try:
            found = prepare(layout, time.time_ns())
        except BaseException:
            self._lock_file.close()
            raise
        self._reports = Reports(str(layout.root), on_problem)
        self._lock = threading.Lock()
        self._items: deque[_Item] = deque()
        self._queued = 0
        self._taken = 0
        self._dropped: _Dropped | None = None
        self._wakeup = Wakeup()
        self._closing = False
        self._deadline = 0.0
        self._flushed = threading.Condition()
        self._wanted = self._done = 0
        self._start(found)
        _writers.add(self)

    def _start(self, found: Found) -> None:
        if found.cut:
            self._reports.put(f"cut off {found.cut:,} bytes that a crash left at the end of the journal")
        self._zstd = compressor()
        self._block: list[bytes] = []
        self._block_entries = self._block_bytes = 0
        self._block_first = self._block_last = 0
        self._failing = False
        #: How many entries `close` left behind.
        self._given_up = 0
        self._unsynced = False
        self._synced = monotonic()
        #: When the last entry was received that is on disk, and the first one of this journal (None: there is none).
        self._synced_ns = time.time_ns()
        self._journal_ns: int | None = None
        self._clock = _Clock()
        self._hour = found.hour
        self._hour_began = monotonic()
        #: The last hour before this one. None: it is noted already, or there is none.
        self._previous = found.previous
        self._journal = JournalFile(self._layout.journal(found.hour))
        self._sealer = Sealer(
            self._layout, self._reports, on_sealed=lambda hour: self.put_event("seal", {"hour": hour})
        )
        for hour in found.to_seal:
            self._sealer.put(hour)
        self.put_event("open", {"last_ns": found.last_ns, "cut": found.cut})
        self._thread = threading.Thread(target=self._run, name="finx-archive-writer", daemon=True)
        self._thread.start()

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
        self._put_ticks(received_ns, [payload.replace(b"\n", b" ") for payload in payloads], backfilled)

    def put_message(self, received_ns: int, payload: bytes, symbol: str | None) -> None:
        """Record a message that isn't a tick: Greeks, a notice, or one that can't be read.

        Args:
            received_ns (int): When it was received, in nanoseconds since 1970.
            payload (bytes): The text of the message.
            symbol (str | None): Its stream, if that is known.
        """
        self._put((received_ns, "line", message_line(received_ns, payload, symbol), 1))

    def put_backfilled(self, ticks: Iterable[tuple[str, str, str, str, str]], received_ns: int | None = None) -> None:
        """Record ticks that were fetched from history.

        Args:
            ticks (Iterable[tuple[str, str, str, str, str]]): Pair, date, time, exchange and price, as they were sent.
            received_ns (int | None): When they were received, in nanoseconds since 1970. None: now.
        """
        lines = [tick_line(dict(zip(FIELDS, tick, strict=True))) for tick in ticks]
        self._put_ticks(time.time_ns() if received_ns is None else received_ns, lines, True)

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
        self._put((at, "line", entry_line(at, kind, symbol, values), 1), _EVENT_ROOM)

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
            if not self._flushed.wait_for(lambda: self._done >= wanted or not self._thread.is_alive(), timeout):
                raise TimeoutError(f"flush: the disk took longer than {timeout} s")

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits, and release the directory. What the disk doesn't take in time is reported as dropped.

        Args:
            timeout (float): Seconds.
        """
        if self._closing:
            return
        self.put_event("close", {})
        end = monotonic() + timeout
        self._deadline = end - timeout / 5
        self._closing = True
        self._wakeup.wake()
        self._sealer.close()
        self._thread.join(max(end - monotonic(), 0.1))
        if self._thread.is_alive():
            # The thread releases the directory when the disk lets it go.
            self._reports.put("the disk hangs; what waited to be written is not recorded")
        self._reports.close()

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """How many chunks, messages and events were dropped since the last one that was recorded."""
        return dropped.count if (dropped := self._dropped) is not None else 0

    def state(self) -> WriterState:
        """How it keeps up. For this package's metrics."""
        lost = self._reports.dropped + self._given_up
        return WriterState(self._queued, self._queue_bytes, lost, is_writable=not self._failing)

    def _put_ticks(self, at: int, lines: list[bytes], backfilled: bool) -> None:
        for part, count in tick_runs(at, lines, backfilled):
            self._put((at, "line", part, count))

    def _put(self, item: _Item, extra: int = 0) -> None:
        size = len(item[2]) + 100
        with self._lock:
            if self._closing:
                return
            if self._queued + size > self._queue_bytes + extra:
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
        entries = item[3] or item[2].count(b'"price"')
        self._dropped.count += 1
        self._dropped.entries += entries
        self._dropped.until = item[0]
        self._reports.count_dropped(entries)

    def _note_dropped(self) -> None:
        """Put what was dropped into the queue, which has room for that again."""
        if (dropped := self._dropped) is not None:
            self._dropped = None
            self._put_gap(dropped.since, dropped.until, "the disk was too slow, full or gone", dropped.entries)

    def _put_gap(self, since: int, until: int, why: str, entries: int | None = None) -> None:
        """Put a gap of all streams into the ledger, however full the queue is."""
        line = gap_line(until, since, until, why, **({} if entries is None else {"entries": entries}))
        self._items.append((until, "line", line, 1))
        self._queued += len(line) + 100

    # Everything below runs on the writer's thread.

    def _run(self) -> None:
        try:
            self._write()
        finally:
            self._journal.close()
            self._lock_file.close()
            if self._given_up:
                self._reports.put(f"{self._given_up:,} entries are not recorded, because the disk is full or gone")
            with self._flushed:
                self._done = self._wanted
                self._flushed.notify_all()

    def _write(self) -> None:
        while True:
            self._rest()
            wanted, closing = self._wanted, self._closing
            now = time.time_ns()
            if (jump := self._clock.jump(now)) is not None:
                self.put_event("clock", {"since": iso_time(jump), "until": iso_time(now)}, received_ns=now)
            with self._lock:
                items, self._items = self._items, deque()
                self._note_dropped()
            for item in items:
                try:
                    self._add(item)
                except (ValueError, LookupError) as error:
                    self._reports.put(f"can't record {item[2][:100]!r}…: {error!r}")
            self._end_block()
            self._sync(at_once=wanted > self._done or closing)
            if wanted > self._done:
                with self._flushed:
                    self._done = wanted
                    self._flushed.notify_all()
            if closing and not self._items:
                return
            self._rotate(time.time_ns() // HOUR_NS)

    def _rest(self) -> None:
        """Wait for entries, then for enough of them."""
        if not self._items and not self._is_urgent():
            self._wakeup.wait(max(self._synced + _SYNC_AFTER - monotonic(), 0.0) if self._unsynced else _REST)
        if self._items and self._queued < _ENOUGH and not self._is_urgent():
            self._wakeup.wait(_GATHER)

    def _is_urgent(self) -> bool:
        return self._closing or self._wanted > self._done

    def _add(self, item: _Item) -> None:
        received_ns, kind, data, count = item
        self._taken += len(data) + 100
        self._rotate(received_ns // HOUR_NS)
        if self._previous is not None:
            line = entry_line(received_ns, "hour", None, {"previous": self._previous})
            self._previous = None
            self._add_lines(received_ns, line, 1)
        if kind != "line":
            before, *payloads = _HEADER.split(data)  # faster than `subn`
            # A line feed is rare: it's part of a header, or white space in a message.
            if before or (b"\n" in data and any(b"\n" in payload for payload in payloads)):
                for payload in frame_payloads(data):
                    self._add_lines(received_ns, message_line(received_ns, payload, None), 1)
            else:
                for part, count in tick_runs(received_ns, payloads, kind == "backfilled"):
                    self._add_lines(received_ns, part, count)
        else:
            self._add_lines(received_ns, data, count)

    def _add_lines(self, received_ns: int, lines: bytes, count: int) -> None:
        if self._block_entries + count > MAX_ENTRIES:
            self._end_block()
        if not self._block:
            self._block_first = received_ns
        self._block_last = received_ns
        self._block.append(lines)
        self._block_entries += count
        self._block_bytes += len(lines)
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
        """Write a block. If that fails, try again until it succeeds, or until `close` has waited long enough."""
        while not (self._closing and monotonic() > self._deadline):
            try:
                if self._failing:
                    self._lock_again()
                shrunk = self._journal.append(block)
            except (OSError, ConfigurationError) as error:
                self._fail("write", error)
                self._wakeup.wait(0.1 if self._closing else _RETRY)
                continue
            if self._failing:
                self._failing = False
                self._reports.put("recording continues")
            if shrunk:
                with self._lock:
                    since = self._synced_ns if self._journal_ns is None else self._journal_ns
                    self._put_gap(since, self._block_last, "the journal was removed while recording")
            if self._journal_ns is None or shrunk:
                self._journal_ns = self._block_first
            self._unsynced = True
            return
        self._given_up += self._block_entries

    def _fail(self, what: str, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            reason = error.strerror if isinstance(error, OSError) else None
            self._reports.put(f"can't {what} {self._journal.path.name}: {reason or error}; trying again")

    def _lock_again(self) -> None:
        """Lock the directory that came back, unless it is the same."""
        with open(self._layout.root / "lock", "rb") as present:
            same = os.path.samestat(os.fstat(present.fileno()), os.fstat(self._lock_file.fileno()))
        if not same:
            new = lock(self._layout.root)
            self._lock_file.close()
            self._lock_file = new

    def _sync(self, at_once: bool) -> None:
        if not self._unsynced:
            self._synced = monotonic()
        elif at_once or monotonic() >= self._synced + _SYNC_AFTER:
            try:
                self._journal.sync()
            except OSError as error:
                self._fail("sync", error)
                with self._lock:
                    self._put_gap(self._synced_ns, self._block_last, "the disk failed")
            self._unsynced = False
            self._synced, self._synced_ns = monotonic(), self._block_last

    def _rotate(self, hour: int) -> None:
        """Begin the journal of a later hour. An earlier hour stays in this one, which may then last two."""
        if hour <= self._hour:
            if hour == self._hour or monotonic() < self._hour_began + _LONG_HOUR:
                return
            hour = self._hour + 1
        self._end_block()
        self._sync(at_once=True)
        self._journal.close()
        if self._journal_ns is not None or os.path.exists(self._journal.path):  # never raises
            self._previous = self._hour
            self._sealer.put(self._hour)
        self._hour, self._hour_began = hour, monotonic()
        self._journal, self._journal_ns = JournalFile(self._layout.journal(hour)), None


class _Clock:
    """Notices when the computer's clock is set."""

    def __init__(self) -> None:
        self._offset = self._measure(time.time_ns())

    def jump(self, now: int) -> int | None:
        """Return what the time would be if the clock hadn't been set since the last call. None if it hasn't."""
        before, self._offset = self._offset, self._measure(now)
        return now - self._offset + before if abs(self._offset - before) > _JUMP_NS else None

    @staticmethod
    def _measure(now: int) -> int:
        return now - int(monotonic() * 1e9)


class _Dropped:
    """What was dropped since a time."""

    def __init__(self, since: int) -> None:
        self.since = self.until = since
        self.count = self.entries = 0


_writers: WeakSet[ArchiveWriter] = WeakSet()


def _leave_to_the_parent() -> None:
    """In a forked child: release the files of the parent's writers, which have no threads here."""
    for writer in list(_writers):
        writer._closing = True
        writer._lock = threading.Lock()
        writer._journal.close()
        writer._lock_file.close()
    _writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
