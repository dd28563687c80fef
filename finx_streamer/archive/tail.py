"""What an archive has last of each pair: from there, a recorder that starts again goes on."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import duckdb
import pyarrow as pa

from ..streaming.delivered_window import WINDOW_SIZE
from ..values import Tick
from ..wire.mixed_pattern import spellings
from . import columns
from .journal import Entry, Ticks, read_block, scan
from .layout import Layout, Sealed
from .sealing import connect, metadata_of

#: Later than anything in a sealed file.
_LATER = (1 << 63) - 1


@attrs.define
class Tail:
    """The last ticks of a pair.

    Attributes:
        ticks: In recorded order, with texts as prices.
        log: The log that the last tick's ID belongs to. Empty if it has none.
        number: That ID, or 0.
    """

    ticks: list[Tick] = attrs.field(factory=list)
    log: str = ""
    number: int = 0
    #: Whether the last tick has no ID, or its log was found.
    has_log: bool = False
    #: The place of the last tick in the archive, if it is in a sealed file.
    ordinal: int = _LATER

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to look for any more."""
        return len(self.ticks) >= WINDOW_SIZE and self.has_log

    def prepend(self, ticks: list[Tick], numbers: list[int | None]) -> None:
        """Add earlier ticks."""
        if not ticks:
            return
        if not self.ticks:
            self.number = numbers[-1] or 0
            self.has_log = not self.number
        self.ticks = ticks[max(len(ticks) + len(self.ticks) - WINDOW_SIZE, 0) :] + self.ticks

    def found_log(self, log: str) -> None:
        """Take note of a log that began before the ticks so far."""
        if self.ticks and not self.has_log:
            self.log, self.has_log = log, True


def read_tails(layout: Layout, pairs: Iterable[str]) -> dict[str, Tail]:
    """Return the tail of each pair that was recorded."""
    names = list(pairs)
    while True:
        tails = {pair: Tail() for pair in names}
        sealed, journals = layout.find()
        try:
            for hour in reversed(journals):
                _read_journal(layout.journal(hour), tails)
        except FileNotFoundError:
            if layout.find() == (sealed, journals):
                raise
        for file in reversed(sealed):
            # `Archive.verify` reports what is damaged.
            with suppress(OSError, ValueError, LookupError, pa.ArrowException, duckdb.Error):
                _read_sealed(file, tails)
        if layout.find() == (sealed, journals):
            break
        # A file that was sealed or merged meanwhile has another name.
    return {
        pair: tail if tail.log else attrs.evolve(tail, number=0, has_log=True)
        for pair, tail in tails.items()
        if tail.ticks
    }


def _wanted(tails: dict[str, Tail]) -> dict[str, Tail]:
    return {pair: tail for pair, tail in tails.items() if not tail.is_whole}


def _read_journal(path: Path, tails: dict[str, Tail]) -> None:
    names = {pair: [text.encode("latin-1") for text in spellings(pair)] for pair in tails}
    with open(path, "rb") as file:
        for start in reversed(list(scan(file))):
            wanted = _wanted(tails)
            if not wanted:
                return
            block = read_block(file, start)
            if block is None:
                continue
            present = {pair: tail for pair, tail in wanted.items() if any(name in block.text for name in names[pair])}
            if present:
                for part in reversed(list(_parts(block.parse() or ()))):
                    _take(part, present)


def _parts(entries: Iterable[Ticks | Entry]) -> Iterator[list[Ticks] | Entry]:
    """Return entries with the ticks between them."""
    run: list[Ticks] = []
    for entry in entries:
        if isinstance(entry, Ticks):
            run.append(entry)
            continue
        if run:
            yield run
            run = []
        yield entry
    if run:
        yield run


def _take(part: list[Ticks] | Entry, tails: dict[str, Tail]) -> None:
    if isinstance(part, Entry):
        if part.kind == "log" and part.symbol in tails:
            tails[part.symbol].found_log(str(part.fields["log"]))
        return
    found: dict[str, tuple[list[Tick], list[int | None]]] = {}
    for table, _ in columns.tables(part, 0):
        for batch in table.to_batches():
            for tick, number in zip(columns.ticks_of(batch, str), batch["id"].to_pylist(), strict=True):
                ticks, numbers = found.setdefault(tick["pair"], ([], []))
                ticks.append(tick)
                numbers.append(number)
    for pair, tail in tails.items():
        if pair in found:
            tail.prepend(*found[pair])


def _read_sealed(file: Sealed, tails: dict[str, Tail]) -> None:
    note: dict[str, Any] = metadata_of(file.ticks)
    wanted = _wanted(tails)
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="finx-archive-") as spill, connect(Path(spill)) as database:
        query = (
            "SELECT * FROM (SELECT * FROM read_parquet(?, hive_partitioning=false) WHERE pair = ? "
            "ORDER BY ordinal DESC LIMIT ?) ORDER BY ordinal"
        )
        for pair, tail in wanted.items():
            if pair in note["counts"] and len(tail.ticks) < WINDOW_SIZE:
                found: Any = database.sql(query, params=[glob.escape(str(file.ticks)), pair, WINDOW_SIZE])
                for batch in found.to_arrow_reader(WINDOW_SIZE):
                    if not tail.ticks:
                        tail.ordinal = batch["ordinal"][-1].as_py()
                    tail.prepend(columns.ticks_of(batch, str), batch["id"].to_pylist())
        # A log that began after the last tick isn't that of its ID.
        query = (
            "SELECT line FROM read_parquet(?, hive_partitioning=false) WHERE kind = 'log' AND symbol = ? "
            "AND ordinal < ? ORDER BY ordinal DESC LIMIT 1"
        )
        for pair, tail in wanted.items():
            if tail.ticks and not tail.has_log:
                path = glob.escape(str(file.events))
                for (line,) in database.execute(query, [path, pair, tail.ordinal]).fetchall():
                    _take(Entry.parse(line), {pair: tail})
