"""Read an archive in recorded order, a part of bounded size at a time.

A sealed hour is sorted by pair, so each of its parts has rows from everywhere in the file. If there are more than a
few, all rows are first distributed over temporary files, one for each part.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import attrs
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from . import columns
from .columns import EVENTS, TICKS
from .journal import gap_line
from .layout import HOUR_NS, ORDINAL_BITS, Layout, Sealed
from .sealing import Journal

#: How many entries are sorted at once.
_SLAB = 1 << 19
#: For temporary files.
_PACKED = ipc.IpcWriteOptions(compression="lz4")
#: How often a file may be read for its parts.
_MOST_READS = 2


def recorded(layout: Layout, low: int, high: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Return ticks and events that were received from `low` to before `high`, in nanoseconds since 1970.

    Damage becomes a gap among the events.
    """
    done = -1
    while True:
        sealed, journals = layout.find()
        try:
            for file in sealed:
                if file.last > done:
                    yield from _sealed(file, done + 1, low, high)
                    done = file.last
            for hour in (hour for hour in journals if hour > done):
                for ticks, events in Journal(layout.journal(hour), hour).tables():
                    done = hour
                    yield _received(ticks, low, high), _received(events, low, high)
            return
        except FileNotFoundError:
            # A file that was sealed or merged meanwhile has another name.
            if layout.find() == (sealed, journals):
                raise


def _sealed(file: Sealed, first: int, low: int, high: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    with _Rows.open(file.ticks, TICKS, file.hour) as ticks, _Rows.open(file.events, EVENTS, file.hour) as events:
        yield from ((TICKS.empty_table(), rows.take_damage()) for rows in (ticks, events) if rows.damage)
        for hour in range(max(file.hour, first), file.last + 1):
            start, end = hour << ORDINAL_BITS, (hour + 1) << ORDINAL_BITS
            slabs = range(start, max(ticks.last_before(end), events.last_before(end)) + 1, _SLAB)
            with tempfile.TemporaryDirectory(prefix="finx-archive-", ignore_cleanup_errors=True) as folder:
                for rows in (ticks, events):
                    rows.folder = Path(folder, rows.path.name) if len(slabs) > _MOST_READS else None
                    rows.distribute(start, end, low, high)
                for at in slabs:
                    found = [rows.read(at, min(at + _SLAB, end), low, high) for rows in (ticks, events)]
                    damage = [rows.take_damage() for rows in (ticks, events)]
                    yield found[0], pa.concat_tables([*damage, found[1]])


@attrs.frozen
class _Group:
    """A row group: its number, ordinals and times."""

    number: int
    first: int
    last: int
    first_ns: int
    last_ns: int


class _Rows:
    """The rows of a sealed file. Row groups that can't be read are left out, and reported once."""

    def __init__(self, path: Path, schema: pa.Schema, file: pq.ParquetFile | None) -> None:
        self.path, self._schema, self._file = path, schema, file
        self._groups = [] if file is None else [_group(file, number) for number in range(file.num_row_groups)]
        #: Lines of damage that wasn't reported yet.
        self.damage: list[tuple[int, bytes]] = []
        #: Where the rows of an hour are, by their slabs. None: in the file.
        self.folder: Path | None = None

    @classmethod
    def open(cls, path: Path, schema: pa.Schema, hour: int) -> _Rows:
        """Open a file. Raises FileNotFoundError."""
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            if not file.schema_arrow.equals(schema):
                raise pa.ArrowInvalid("it isn't a file of an archive")
            return cls(path, schema, file)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException, AttributeError) as error:
            rows = cls(path, schema, None)
            rows._note_damage(hour * HOUR_NS, hour * HOUR_NS, error)
            return rows

    def last_before(self, end: int) -> int:
        """Return the last ordinal before this one, or a higher one if a row group has both. -1 without any."""
        return max((min(group.last, end - 1) for group in self._groups if group.first < end), default=-1)

    def read(self, start: int, end: int, low: int, high: int) -> pa.Table:
        """Return the rows with ordinals before `end`, received before `high`, in order."""
        if self.folder is not None:
            parts = _take_parts(self.folder / str(start))
        else:
            parts = list(self._read_groups(start, end, low, high))
        return _sorted(pa.concat_tables(parts)).cast(self._schema) if parts else self._schema.empty_table()

    def distribute(self, start: int, end: int, low: int, high: int) -> None:
        """Write the rows of an hour to files in `folder`, if that is set. `read` then takes them from there."""
        if self.folder is None:
            return
        self.folder.mkdir()
        for table in self._read_groups(start, end, low, high):
            table = _sorted(table).combine_chunks()
            ordinals = columns.integers(table["ordinal"].chunk(0)) if len(table) else []
            done = 0
            while done < len(ordinals):
                slab = start + (ordinals[done] - start) // _SLAB * _SLAB
                until = bisect_left(ordinals, slab + _SLAB, done)
                with (
                    open(self.folder / str(slab), "ab") as file,
                    ipc.new_stream(file, table.schema, options=_PACKED) as out,
                ):
                    out.write_table(table.slice(done, until - done))
                done = until

    def _read_groups(self, start: int, end: int, low: int, high: int) -> Iterator[pa.Table]:
        for group in tuple(self._groups):
            if group.last < start or group.first >= end or group.last_ns < low or group.first_ns >= high:
                continue
            try:
                assert self._file is not None
                table = self._file.read_row_group(group.number, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                self._groups.remove(group)
                self._note_damage(group.first_ns, group.last_ns, error)
                continue
            ordinals = table["ordinal"]
            within = pc.and_(pc.greater_equal(ordinals, start), pc.less(ordinals, end))
            yield _received(table.filter(within), low, high)

    def take_damage(self) -> pa.Table:
        """Return what couldn't be read since the last call, as events."""
        rows, self.damage = self.damage, []
        values = [
            [0] * len(rows),
            [at for at, _ in rows],
            ["gap"] * len(rows),
            [None] * len(rows),
            [line for _, line in rows],
        ]
        return pa.table(values, schema=EVENTS)

    def _note_damage(self, since: int, until: int, error: Exception) -> None:
        why = f"{self.path} is damaged: {str(error).strip()[:200]}"
        self.damage.append((since, gap_line(since, since, until, why, damaged=True)[:-1]))

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _sorted(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table["ordinal"]))


def _take_parts(path: Path) -> list[pa.Table]:
    """Read the tables in a file, and remove it."""
    parts: list[pa.Table] = []
    if path.exists():
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                parts.append(ipc.open_stream(file).read_all())
        path.unlink()
    return parts


def _group(file: pq.ParquetFile, number: int) -> _Group:
    metadata = file.metadata.row_group(number)
    places = {metadata.column(index).path_in_schema: index for index in range(metadata.num_columns)}
    ordinal, received = (metadata.column(places[name]).statistics for name in ("ordinal", "received_ns"))
    return _Group(number, ordinal.min, ordinal.max, received.min, received.max)


def _received(table: pa.Table, low: int, high: int) -> pa.Table:
    received = table["received_ns"]
    return table.filter(pc.and_(pc.greater_equal(received, low), pc.less(received, high)))
