"""Seal a finished hour into Parquet, and merge the hours of a day. Runs in a process of its own.

Every step can be repeated after a crash: files get their name when they are complete, and what they replace is removed
afterwards.
"""

from __future__ import annotations

import json
import os
import zlib
from base64 import b85decode, b85encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from . import columns
from .journal import Block, Damage, Entry, Ticks, gap_line, read_blocks
from .layout import ORDINAL_BITS, Layout, Sealed, sealed_in, sealing_lock, sync_directory

#: The kinds of events that `coverage` reads. They are copied into the metadata.
LEDGER = frozenset({"open", "close", "start", "stop", "state", "gap", "missing", "log", "seal", "hour", "clock"})
#: Days up to this size are merged into one file.
_SMALL_DAY = 128 << 20
_ROWS = 1 << 18
_MEMORY = "1GB"
_TICK_OPTIONS: dict[str, Any] = {
    "use_dictionary": ["pair", "exchange", "price_text", "time_text", "digits", "backfilled"],
    "column_encoding": dict.fromkeys(("timestamp", "ordinal", "received_ns", "id"), "DELTA_BINARY_PACKED"),
}
_EVENT_OPTIONS: dict[str, Any] = {
    "use_dictionary": ["kind", "symbol"],
    "column_encoding": dict.fromkeys(("ordinal", "received_ns"), "DELTA_BINARY_PACKED"),
}
_METADATA = b"finx_streamer"
#: In bytes: more would take all memory.
_MOST_METADATA = 1 << 28


class Journal:
    """Reads a journal once, and counts what it contains."""

    def __init__(self, path: Path, hour: int) -> None:
        self._path = path
        self.hour = hour
        self.entries = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.damage: list[Damage] = []
        self._pending: list[Entry] = []

    def read(self) -> Iterator[Ticks | Entry]:
        """Return the entries. Damage becomes an event at its place; a torn tail doesn't."""
        damaged: Damage | None = None
        with open(self._path, "rb") as file:
            for part in read_blocks(file):
                if isinstance(part, Damage):
                    damaged = part
                    self.damage.append(part)
                    continue
                if damaged is not None:
                    self.entries += 1
                    yield self._gap(damaged, part.first_ns)
                    damaged = None
                yield from self._block(part)

    def _gap(self, damaged: Damage, until: int) -> Entry:
        since = until if self.last_ns is None else min(self.last_ns, until)
        why = f"{damaged.end - damaged.start:,} bytes of the journal are damaged"
        return Entry.parse(gap_line(until, since, until, why, damaged=True)[:-1])

    def _block(self, block: Block) -> Iterator[Ticks | Entry]:
        self.first_ns = block.first_ns if self.first_ns is None else self.first_ns
        self.last_ns = block.last_ns
        entries = block.parse()
        if entries is None:
            damage = Damage(block.start, block.end, torn=False)
            self.damage.append(damage)
            self.entries += 1
            yield self._gap(damage, block.last_ns)
        else:
            self.entries += block.entries
            yield from entries

    def tables(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Return the entries as tables."""
        return columns.tables(self.read(), self.hour << ORDINAL_BITS)


def connect(spill: Path) -> duckdb.DuckDBPyConnection:
    """Return a database in memory that sorts on disk what doesn't fit."""
    # Nothing is downloaded. Without the extension `icu`, the time zone is UTC anyway.
    database = duckdb.connect(
        config={
            "memory_limit": _MEMORY,
            "threads": 1,
            "temp_directory": str(spill),
            "autoinstall_known_extensions": False,
        }
    )
    with suppress(duckdb.Error):
        database.execute("SET TimeZone = 'UTC'")
    return database


def metadata_of(path: Path) -> dict[str, Any]:
    """Return what `seal` noted in a file: counts, times, and the ledger.

    Raises:
        OSError: It can't be read.
        ValueError: It isn't a file of an archive.
    """
    try:
        text = (pq.read_metadata(path).metadata or {}).get(_METADATA, b"")
        unpack = zlib.decompressobj()
        found: dict[str, Any] = json.loads(unpack.decompress(b85decode(text), _MOST_METADATA))
        if found.keys() < {"hours", "entries", "first_ns", "last_ns", "counts", "ledger"}:
            raise ValueError("something is missing")
    except (ValueError, AttributeError, RecursionError, zlib.error) as error:
        raise ValueError(f"{path}: has no metadata of an archive ({error}); move it elsewhere") from None
    return found


def contains(path: Path, hour: int) -> bool:
    """Whether a sealed file has an hour. A foreign file has none."""
    try:
        return hour in metadata_of(path)["hours"]
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return False


def seal(layout: Layout, hour: int) -> None:
    """Turn the journal of an hour into a sealed hour, and remove it."""
    source, target = layout.journal(hour), Sealed(hour, layout.sealed(hour))
    if target.ticks.exists() and not contains(target.ticks, hour):
        raise ValueError(f"{target.ticks} exists, and isn't that hour; move it elsewhere")
    if not target.ticks.exists():
        target.ticks.parent.mkdir(exist_ok=True)
        _write_hour(Journal(source, hour), target, layout.root)
        sync_directory(target.ticks.parent)
        sync_directory(layout.root)
    source.unlink(missing_ok=True)
    sync_directory(source.parent)


def _write_hour(journal: Journal, target: Sealed, root: Path) -> None:
    ledger: list[str] = []
    counts: dict[str, list[int]] = {}
    with _Writer(target.events, columns.EVENTS, _EVENT_OPTIONS) as events:

        def batches() -> Iterator[pa.RecordBatch]:
            for ticks, others in journal.tables():
                events.write(others)
                kinds, lines = others["kind"].to_pylist(), others["line"].to_pylist()
                ledger.extend(line for kind, line in zip(kinds, lines, strict=True) if kind in LEDGER)
                _count(counts, ticks)
                yield from ticks.to_batches()

        with (
            connect(root / f".spill-{os.getpid()}") as database,
            _Writer(target.ticks, columns.TICKS, _TICK_OPTIONS) as ticks,
        ):
            entries = pa.RecordBatchReader.from_batches(columns.TICKS, batches())
            database.register("entries", entries)
            query = "SELECT * FROM entries ORDER BY pair, timestamp, ordinal"
            for batch in database.sql(query).to_arrow_reader(_ROWS):
                ticks.write(pa.Table.from_batches([batch]))
            events.finish({})
            ticks.finish(
                {
                    "hours": [journal.hour],
                    "entries": journal.entries,
                    "first_ns": journal.first_ns,
                    "last_ns": journal.last_ns,
                    "counts": counts,
                    "ledger": ledger,
                }
            )


def _count(counts: dict[str, list[int]], ticks: pa.Table) -> None:
    """Add to each pair's number of ticks, and to the first and the last of their times in microseconds."""
    times = pa.table([ticks["pair"], ticks["timestamp"].cast(pa.int64())], ["pair", "us"])
    rows = times.group_by("pair").aggregate([("us", "count"), ("us", "min"), ("us", "max")]).to_pylist()
    for row in rows:
        _add(counts, row["pair"], [row["us_count"], row["us_min"], row["us_max"]])


def _add(counts: dict[str, list[int]], pair: str, more: list[int]) -> None:
    count, first, last = counts.get(pair, [0, more[1], more[2]])
    counts[pair] = [count + more[0], min(first, more[1]), max(last, more[2])]


class _Writer:
    """A Parquet file that gets its name when it is complete and on disk."""

    def __init__(self, path: Path, schema: pa.Schema, options: dict[str, Any]) -> None:
        self._path = path
        self._schema = schema
        self._part = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = pq.ParquetWriter(
            self._part, schema, compression="zstd", compression_level=9, write_page_checksum=True, **options
        )

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if len(table):
            self._file.write_table(table.cast(self._schema), _ROWS)

    def finish(self, metadata: dict[str, Any]) -> None:
        """Give the file its name."""
        note = b85encode(zlib.compress(json.dumps(metadata, separators=(",", ":")).encode(), 9))
        self._file.add_key_value_metadata({_METADATA: note})
        self._file.close()
        with open(self._part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._part, self._path)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        finally:
            self._part.unlink(missing_ok=True)


def merge_days(layout: Layout, before: Path) -> None:
    """Merge the small hours of each day before the one with this name."""
    waiting = {layout.sealed(hour).parent for hour in layout.find()[1]}
    for day in layout.days():
        if day.name < before.name and day not in waiting and not (day / "day.parquet").exists():
            hours = sealed_in(day)
            if len(hours) > 1 and sum(each.ticks.stat().st_size for each in hours) <= _SMALL_DAY:
                _merge(hours, Sealed(hours[0].hour, day / "day.parquet"))
                remove_leftovers(day)


def _merge(hours: list[Sealed], day: Sealed) -> None:
    """Copy hour after hour: each keeps its order."""
    notes = [metadata_of(each.ticks) for each in hours]
    counts: dict[str, list[int]] = {}
    for note in notes:
        for pair, found in note["counts"].items():
            _add(counts, pair, found)
    merged = {
        "hours": [hour for note in notes for hour in note["hours"]],
        "entries": sum(note["entries"] for note in notes),
        "first_ns": next((note["first_ns"] for note in notes if note["first_ns"] is not None), None),
        "last_ns": next((note["last_ns"] for note in reversed(notes) if note["last_ns"] is not None), None),
        "counts": counts,
        "ledger": [line for note in notes for line in note["ledger"]],
    }
    for name, schema, options, metadata in (
        ("events", columns.EVENTS, _EVENT_OPTIONS, {}),
        ("ticks", columns.TICKS, _TICK_OPTIONS, merged),
    ):
        with _Writer(getattr(day, name), schema, options) as writer:
            for each in hours:
                with pq.ParquetFile(getattr(each, name), page_checksum_verification=True) as file:
                    for group in range(file.num_row_groups):
                        writer.write(file.read_row_group(group))
            writer.finish(metadata)
    sync_directory(day.ticks.parent)


def remove_leftovers(day: Path) -> None:
    """Remove what a crash left in a day: temporary files, and hours that are merged."""
    merged = (day / "day.parquet").exists()
    for path in day.iterdir():
        if (path.name.startswith(".") or (merged and path.name.startswith("hour="))) and not path.is_dir():
            path.unlink(missing_ok=True)


def main(root: str, number: str, niceness: str) -> None:
    """Seal an hour, then merge what is complete."""
    with suppress(OSError, AttributeError):
        os.nice(int(niceness))
    pa.set_cpu_count(1)
    layout = Layout(Path(root))
    with sealing_lock(layout.root):
        seal(layout, int(number))
        merge_days(layout, layout.sealed(int(number)).parent)
