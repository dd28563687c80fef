"""The files of an archive, and the lock of its writer.

    lock, sealing.lock                      held by the writer, and by the process that seals
    journal/2026-08-01T14.jsonl.zst         an hour that isn't sealed yet
    date=2026-08-01/hour=13.parquet         a sealed hour: its ticks
    date=2026-08-01/hour=13.events.parquet  its other messages and its events
    date=2026-07-31/day.parquet             the hours of a day, merged (and day.events.parquet)

A name that begins with a dot is temporary. Hours are numbered from 1970, and only increase: if the clock goes back, the
writer stays ahead of it, and each of its hours lasts two until the clock has caught up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import attrs

from ..errors import ConfigurationError

HOUR_NS = 3_600_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_JOURNAL = ".jsonl.zst"
#: Entries are numbered through the whole archive: the hour, then the place in its journal.
ORDINAL_BITS = 36


@attrs.frozen
class Sealed:
    """A sealed hour, or a merged day. `hour` is its first hour."""

    hour: int
    ticks: Path

    @property
    def last(self) -> int:
        """Its last hour."""
        return self.hour + (23 if self.ticks.name == "day.parquet" else 0)

    @property
    def events(self) -> Path:
        """The file of its other entries."""
        return self.ticks.with_suffix(".events.parquet")


@attrs.frozen
class Layout:
    """The paths of an archive."""

    root: Path

    def journal(self, hour: int) -> Path:
        """The journal of an hour."""
        return self.root / "journal" / f"{_begin_of(hour):%Y-%m-%dT%H}{_JOURNAL}"

    def sealed(self, hour: int) -> Path:
        """The file of an hour's ticks."""
        return self.root / f"date={_begin_of(hour):%Y-%m-%d}" / f"hour={_begin_of(hour):%H}.parquet"

    def find(self) -> tuple[list[Sealed], list[int]]:
        """Return the sealed files, and the hours that have only a journal."""
        # The journals first: one that is sealed meanwhile is then found twice, not missed.
        journals = self.journals()
        sealed = [each for day in self.days() for each in sealed_in(day)]
        done = {hour for each in sealed for hour in range(each.hour, each.last + 1)}
        return sealed, [hour for hour in journals if hour not in done]

    def journals(self) -> list[int]:
        """Return the hours that have a journal."""
        paths = (self.root / "journal").glob(f"*{_JOURNAL}")
        return sorted(hour for path in paths if (hour := _hour_of(path.name.removesuffix(_JOURNAL))) is not None)

    def days(self) -> list[Path]:
        """Return the directories of sealed files."""
        return sorted(day for day in self.root.glob("date=*") if _start_of(day) is not None)

    def next_hour(self, now_ns: int) -> int:
        """Return the hour to record in: that of the clock, or a later one that isn't sealed."""
        sealed, journals = self.find()
        return max([now_ns // HOUR_NS, *(each.last + 1 for each in sealed), *journals[-1:]])


def sealed_in(day: Path) -> list[Sealed]:
    """Return the sealed files of a day, without those that were merged into its file."""
    start = _start_of(day)
    assert start is not None
    merged = day / "day.parquet"
    if merged.exists():
        return [Sealed(start, merged)]
    hours = sorted(path for path in day.glob("hour=[0-2][0-9].parquet"))
    return [Sealed(start + int(path.name[5:7]), path) for path in hours if path.name < "hour=24"]


def _begin_of(hour: int) -> datetime:
    return EPOCH + timedelta(hours=hour)


def _hour_of(name: str) -> int | None:
    """Return the number of an hour. None for the name of a stranger's file."""
    try:
        return (datetime.strptime(name + "+0000", "%Y-%m-%dT%H%z") - EPOCH) // timedelta(hours=1)
    except ValueError:
        return None


def _start_of(day: Path) -> int | None:
    return _hour_of(day.name.removeprefix("date=") + "T00")


def time_of(ns: int) -> datetime:
    """Return a time in nanoseconds since 1970 as a datetime."""
    return EPOCH + timedelta(microseconds=ns // 1_000)


def iso_time(ns: int) -> str:
    """Return a time in nanoseconds since 1970 as text, in microseconds."""
    return time_of(ns).isoformat(timespec="microseconds")


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power loss."""
    if os.name == "nt":  # Windows can't open directories
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def lock(root: Path) -> IO[bytes]:
    """Lock an archive for writing, until `unlock` or the end of the process.

    Raises:
        ConfigurationError: Another writer has it.
        OSError: The directory can't be written.
    """
    file = open(root / "lock", "ab+", buffering=0)  # noqa: SIM115
    try:
        _lock_file(file)
    except (BlockingIOError, PermissionError):
        file.seek(1)
        owner = file.read().decode("ascii", "replace").strip() or "unknown"
        file.close()
        raise ConfigurationError(
            f"{root}: another process records here (pid {owner}); stop it, or record into another directory"
        ) from None
    except OSError:
        file.close()
        raise
    with suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f" {os.getpid()}".encode())
    return file


def _lock_file(file: IO[bytes], wait: bool = False) -> None:
    if os.name == "nt":  # locks one byte; the pid follows it
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def sealing_lock(root: Path) -> Iterator[None]:
    """Wait for the sealing process that a killed writer left."""
    with open(root / "sealing.lock", "ab") as file:
        _lock_file(file, wait=True)
        yield
