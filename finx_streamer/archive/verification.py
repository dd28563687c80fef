"""Check every block and file of an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa
import pyarrow.parquet as pq

from .coverage import Coverage, Ledger
from .layout import ORDINAL_BITS, Layout, Sealed
from .sealing import Journal, metadata_of


@attrs.frozen
class Checked:
    """A file that was checked.

    Attributes:
        path (Path): The file.
        ticks (int): How many ticks it has, as far as it can be read.
        entries (int): How many other entries.
        size (int): Its size in bytes.
        problems (list[str]): What is damaged or missing.
        notes (list[str]): What isn't a problem, such as a block that is just being written.
    """

    path: Path
    ticks: int
    entries: int
    size: int
    problems: list[str]
    notes: list[str]


@attrs.frozen
class Verification:
    """The result of `Archive.verify`.

    Attributes:
        files (list[Checked]): Every file.
        missing (list[str]): Files that should exist.
        gaps (dict[str, list[Coverage]]): For each pair, the intervals that aren't complete.
        ticks (int): How many ticks the archive has.
    """

    files: list[Checked]
    missing: list[str]
    gaps: dict[str, list[Coverage]]

    @property
    def ticks(self) -> int:
        """How many ticks the archive has."""
        return sum(each.ticks for each in self.files)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.missing and not any(self.gaps.values()) and not any(each.problems for each in self.files)


def verify(layout: Layout, read_ledger: Callable[[], Ledger]) -> Verification:
    """Check an archive."""
    sealed, journals = layout.find()
    files: list[Checked] = []
    pairs: set[str] = set()
    for each in sealed:
        note, checked = _check_sealed(each)
        files.append(checked)
        pairs.update(note.get("counts", ()))
    for hour in journals:
        files.append(_check_journal(Journal(layout.journal(hour), hour), layout.journal(hour), pairs))
    missing: list[str] = []
    gaps: dict[str, list[Coverage]] = {}
    if not any("metadata" in problem for each in files for problem in each.problems):
        ledger = read_ledger()
        missing = [str(layout.sealed(hour)) for hour in ledger.missing]
        pairs.update(entry.symbol for entry in ledger.entries if entry.symbol is not None)
        found = {pair: ledger.coverage(pair) for pair in sorted(pairs)}
        gaps = {pair: [part for part in parts if not part.complete] for pair, parts in found.items()}
    return Verification(files, missing, {pair: parts for pair, parts in gaps.items() if parts})


def _check_journal(journal: Journal, path: Path, pairs: set[str]) -> Checked:
    count = others = 0
    for ticks, events in journal.tables():
        count += len(ticks)
        others += len(events)
        pairs.update(ticks["pair"].unique().to_pylist())
    problems: list[str] = []
    notes: list[str] = []
    for damage in journal.damage:
        text = f"{damage.end - damage.start:,} bytes at {damage.start:,} are damaged"
        (notes if damage.torn else problems).append(text + (", or just being written" if damage.torn else ""))
    noted = journal.entries
    if count + others != noted:
        problems.append(f"has {count + others:,} entries; its blocks say {noted:,}")
    return Checked(path, count, others, path.stat().st_size if path.exists() else 0, problems, notes)


def _check_sealed(sealed: Sealed) -> tuple[dict[str, Any], Checked]:
    problems: list[str] = []
    note: dict[str, Any] = {}
    count = others = 0
    try:
        note = metadata_of(sealed.ticks)
        counts: dict[str, int] = {}
        for pair, rows in _runs(sealed.ticks, problems):
            counts[pair] = counts.get(pair, 0) + rows
        count = sum(counts.values())
        expected = {pair: found[0] for pair, found in note["counts"].items()}
        if counts != expected:
            problems.append(f"has {count:,} ticks; its metadata says {sum(expected.values()):,}")
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        problems.append(f"can't be read{'' if note else ', nor its metadata'}: {_first_line(error)}")
    try:
        with pq.ParquetFile(sealed.events, page_checksum_verification=True) as file:
            others = sum(len(file.read_row_group(number)) for number in range(file.num_row_groups))
    except (OSError, ValueError, pa.ArrowException) as error:
        problems.append(f"{sealed.events.name} can't be read: {_first_line(error)}")
    else:
        if note and not problems and count + others != note["entries"]:
            problems.append(f"has {count + others:,} entries; its metadata says {note['entries']:,}")
    sizes = [path.stat().st_size for path in (sealed.ticks, sealed.events) if path.exists()]
    return note, Checked(sealed.ticks, count, others, sum(sizes), problems, [])


def _runs(path: Path, problems: list[str]) -> Iterator[tuple[str, int]]:
    """Return how many ticks of which pair follow each other, and check the order."""
    last: tuple[Any, ...] = ()
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            if len(table):
                first, end, ordered = _order(table)
                # A merged day is sorted hour by hour.
                in_same_hour = bool(last) and first[0] >> ORDINAL_BITS == last[0] >> ORDINAL_BITS
                if not ordered or (in_same_hour and first[1:] < last[1:]):
                    problems.append(f"row group {number} isn't in order")
                last = end
            for entry in table["pair"].value_counts().to_pylist():
                yield entry["values"], entry["counts"]


def _order(table: pa.Table) -> tuple[tuple[Any, ...], tuple[Any, ...], bool]:
    keys = table.select(["pair", "timestamp", "ordinal"])
    rows = [keys.slice(at, 1).to_pylist()[0] for at in (0, len(keys) - 1)]
    first, last = ((row["ordinal"], row["pair"], row["timestamp"]) for row in rows)
    ascending = [(name, "ascending") for name in ("pair", "timestamp", "ordinal")]
    return first, last, bool(keys.sort_by(ascending).equals(keys))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
