"""The files of an archive, and the lock of its writer.

    lock                                    held by the writer
    journal/2026-08-01T14.jsonl.zst         an hour that isn't sealed yet
    date=2026-08-01/hour=13.parquet         a sealed hour: its ticks
    date=2026-08-01/hour=13.events.parquet  its other messages and its events
    date=2026-07-31/day.parquet             the hours of a day, merged (and day.events.parquet)

A name that begins with a dot is temporary. Hours are numbered from 1970, and an hour is used once: if the clock goes
back, the writer stays in its hour.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import attrs

from ..errors import ConfigurationError

HOUR_NS = 3_600_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
        return self.root / "journal" / f"{_time_of(hour):%Y-%m-%dT%H}{_JOURNAL}"

    def sealed(self, hour: int) -> Path:
        """The file of an hour's ticks."""
        return self.root / f"date={_time_of(hour):%Y-%m-%d}" / f"hour={_time_of(hour):%H}.parquet"

    def find(self) -> tuple[list[Sealed], list[int]]:
        """Return the sealed files, and the hours that have only a journal."""
        # The journals first: one that is sealed meanwhile is then found twice, not missed.
        journals = [_hour_of(path.name.removesuffix(_JOURNAL)) for path in (self.root / "journal").glob(f"*{_JOURNAL}")]
        sealed = [each for day in sorted(self.root.glob("date=*")) for each in sealed_in(day)]
        return sealed, sorted(hour for hour in journals if not any(each.hour <= hour <= each.last for each in sealed))

    def next_hour(self, now_ns: int) -> int:
        """Return the hour to record in: that of the clock, or a later one that isn't sealed."""
        sealed, journals = self.find()
        return max([now_ns // HOUR_NS, *(each.last + 1 for each in sealed), *journals[-1:]])


def sealed_in(day: Path) -> list[Sealed]:
    """Return the sealed files of a day, without those that were merged into its file."""
    start = _hour_of(day.name.removeprefix("date=") + "T00")
    merged = day / "day.parquet"
    if merged.exists():
        return [Sealed(start, merged)]
    hours = sorted(path for path in day.glob("hour=??.parquet"))
    return [Sealed(start + int(path.name[5:7]), path) for path in hours]


def _time_of(hour: int) -> datetime:
    return _EPOCH + timedelta(hours=hour)


def _hour_of(name: str) -> int:
    return int((datetime.fromisoformat(name + ":00+00:00") - _EPOCH) // timedelta(hours=1))


def iso_time(ns: int) -> str:
    """Return a time in nanoseconds since 1970 as text, in microseconds."""
    return (_EPOCH + timedelta(microseconds=ns // 1_000)).isoformat(timespec="microseconds")


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power loss."""
    if os.name == "nt":  # Windows can't open directories
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def lock(root: Path) -> IO[str]:
    """Lock an archive for writing, until the returned file is closed or the process ends.

    Raises:
        ConfigurationError: Another writer has it.
    """
    file = open(root / "lock", "a+", encoding="ascii")  # noqa: SIM115
    try:
        _lock_file(file)
    except OSError:
        file.seek(1)
        owner = file.read().strip() or "unknown"
        file.close()
        raise ConfigurationError(
            f"{root}: another process records here (pid {owner}); stop it, or record into another directory"
        ) from None
    file.truncate(0)
    file.write(f" {os.getpid()}")
    file.flush()
    return file


def _lock_file(file: IO[str]) -> None:
    if os.name == "nt":  # locks one byte; the pid follows it
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
