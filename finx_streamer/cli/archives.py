"""`finx-streamer verify` and `history --from`: archives on disk."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import duckdb

from ..archive import Archive, Verification
from ..values import Tick
from .terminal import count


class ArchivedHistory:
    """What `write_history` needs of a `FunctionClient`, from an archive. Prices are texts."""

    bad_ticks = 0

    def __init__(self, path: Path) -> None:
        self._archive = Archive(path)

    def iter_tick_history(self, pair: str, start: datetime, end: datetime, exchange: str | None) -> Iterator[Tick]:
        """Return the ticks of an interval."""
        ticks = self._archive.ticks(pair, start, end, parse_price=str)
        return (tick for tick in self._read(ticks) if exchange in (None, tick["exchange"]))

    def _read(self, ticks: Iterator[Tick]) -> Iterator[Tick]:
        try:
            yield from ticks
        except (duckdb.Error, ValueError) as error:
            path = self._archive.path
            reason = str(error).partition("\n")[0]
            raise OSError(f"{path}: can't be read: {reason}; run finx-streamer verify {path}") from error

    def close(self) -> None:
        """Do nothing: there is no connection."""


def verify(path: Path) -> int:
    """Print a table of what was checked. Return the exit code."""
    from rich.console import Console
    from rich.table import Table

    found = Archive(path).verify()
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("ticks", "other", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("problem", overflow="fold")
    for each in found.files:
        row = (str(each.path.relative_to(path)), f"{each.ticks:,}", f"{each.entries:,}", f"{each.size:,}")
        table.add_row(*row, "\n".join([*each.problems, *(f"({note})" for note in each.notes)]))
    for name in found.missing:
        table.add_row(str(Path(name).relative_to(path)), "", "", "", "missing")
    console = Console(width=None if Console().is_terminal else 160, highlight=False, markup=False)
    console.print(table)
    for pair, gaps in found.gaps.items():
        for gap in gaps:
            line = f"{pair}: incomplete {_time(gap.start)} to {_time(gap.end)}: {gap.why}"
            console.print(line, soft_wrap=True)
    console.print(_summary(found), soft_wrap=True)
    return 0 if found.ok else 1


def _summary(found: Verification) -> str:
    damaged = sum(bool(each.problems) for each in found.files)
    parts = [f"{count(found.ticks, 'tick')} in {count(len(found.files), 'file')}"]
    if damaged or found.missing:
        parts.append(f"{damaged} damaged, {len(found.missing)} missing")
    if found.gaps:
        parts.append(f"{count(sum(map(len, found.gaps.values())), 'interval')} incomplete")
    return ": ".join([parts[0], ", ".join(parts[1:]) or "all complete"])


def _time(when: datetime) -> str:
    return when.replace(tzinfo=None).isoformat(" ", "milliseconds") + "Z"
