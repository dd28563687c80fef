"""Files that an archive doesn't expect: errors that say what is wrong, and never a hang or a crash."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason='needs the extra: pip install "finx-streamer[archive]"')

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from finx_streamer.archive import Archive, ArchiveWriter
from finx_streamer.archive import journal as journals
from finx_streamer.archive.layout import HOUR_NS, Layout, Sealed
from finx_streamer.archive.sealing import seal
from finx_streamer.archive.tail import read_tails
from tests.support.market import PAIR

pytestmark = pytest.mark.timeout(60)

HOUR = 600_000
TICK = (PAIR, "2022-07-02", "15:30:55.817Z", "OKX", "1.5")
READ: dict[str, Callable[[Archive], Any]] = {
    "ticks": lambda archive: list(archive.ticks()),
    "entries": lambda archive: list(archive.entries()),
    "coverage": lambda archive: archive.coverage(PAIR),
    "sql": lambda archive: archive.sql("select count(*) from gaps"),
    "to_arrow": lambda archive: archive.to_arrow(),
}


def record(path: Path) -> int:
    """Record a tick. Return the hour."""
    with ArchiveWriter(path) as writer:
        writer.put_backfilled([TICK], HOUR * HOUR_NS)
    return Layout(path).journals()[-1]


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    """A sealed hour."""
    hour = record(tmp_path)
    seal(Layout(tmp_path), hour)
    return Sealed(hour, Layout(tmp_path).sealed(hour))


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("name", ["ticks", "events"])
def test_a_file_that_cannot_be_opened_ends_reading(tmp_path: Path, sealed: Sealed, read: str, name: str) -> None:
    """It isn't looked for again and again, as one that was merged meanwhile."""
    path: Path = getattr(sealed, name)
    path.unlink()
    path.symlink_to("/nonexistent")
    if (read, name) == ("coverage", "events"):
        READ[read](Archive(tmp_path))  # it doesn't need them
        return
    with pytest.raises((OSError, duckdb.Error), match="hour="):
        READ[read](Archive(tmp_path))
    assert not Archive(tmp_path).verify().ok


@pytest.mark.parametrize("metadata", [{}, {b"finx_streamer": b"abcde"}, {b"finx_streamer": b"\xff"}])
def test_a_parquet_file_of_another_program(tmp_path: Path, sealed: Sealed, metadata: dict[bytes, bytes]) -> None:
    """Reading says which file it is. A writer goes on, and so does reading in recorded order."""
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(metadata), sealed.ticks)
    for read in READ.values():
        if read is not READ["entries"]:
            with pytest.raises(ValueError, match="parquet: has no metadata of an archive"):
                read(Archive(tmp_path))
    damage = [each for each in Archive(tmp_path).entries() if not isinstance(each, dict) and each.kind == "gap"]
    assert "is damaged" in damage[0].fields["why"]
    assert not Archive(tmp_path).verify().ok
    assert read_tails(Layout(tmp_path), [PAIR]) == {}
    record(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no lines",
        b'{"at":1}\n',
        b"[1]\n",
        b'{"at":1,"ticks":1,"bytes":-27}\n',
        b'{"at":1,"ticks":-1,"bytes":4}\nabc\n',
        b'{"at":1,"ticks":1,"bytes":3}\nabc\n',
        b'{"at":1,"ticks":10000000000,"bytes":4}\nabc\n',
        b'{"at":"1","ticks":1,"bytes":4}\nabc\n',
        b'{"at":"1","kind":"gap"}\n',
        b'{"at":-1,"kind":"gap"}\n',
        b'{"at":99999999999999999999,"kind":"gap"}\n',
        b'{"at":1,"kind":5}\n',
        b'{"at":1,"kind":"gap","symbol":[]}\n',
        b'{"at":1,"kind":' + b"[" * 100_000,
    ],
)
def test_a_block_of_another_program_is_damage(tmp_path: Path, text: bytes) -> None:
    """The rest is read, and `verify` reports it."""
    hour = record(tmp_path)
    with open(Layout(tmp_path).journal(hour), "ab") as file:
        file.write(journals.pack(text, 1, HOUR * HOUR_NS, HOUR * HOUR_NS))
    for read in READ.values():
        read(Archive(tmp_path))
    (found,) = Archive(tmp_path).ticks()
    assert found["price"] == 1.5
    assert not Archive(tmp_path).verify().ok
    assert list(read_tails(Layout(tmp_path), [PAIR])) == [PAIR]
    record(tmp_path)
    seal(Layout(tmp_path), hour)
    assert len(list(Archive(tmp_path).ticks())) == 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"at":1,"kind":"seal","hour":99999999999}',
        b'{"at":1,"kind":"hour","previous":[1]}',
        b'{"at":1,"kind":"open","last_ns":"x"}',
        b'{"at":1,"kind":"open","last_ns":99999999999999999999999999999}',
        b'{"at":1,"kind":"gap","symbol":"BTC:USDC","since":"0001-01-01T00:00:00+14:00","until":"9999-12-31"}',
        b'{"at":1,"kind":"state","symbol":"BTC:USDC","state":[]}',
        b'{"at":1,"kind":"missing","symbol":"BTC:USDC","since":5}',
    ],
)
def test_odd_events_are_harmless(tmp_path: Path, line: bytes) -> None:
    """They may be of another version."""
    hour = record(tmp_path)
    with open(Layout(tmp_path).journal(hour), "ab") as file:
        file.write(journals.pack(line + b"\n", 1, HOUR * HOUR_NS, HOUR * HOUR_NS))
    for read in READ.values():
        read(Archive(tmp_path))
    Archive(tmp_path).verify()
    record(tmp_path)


def test_a_block_that_would_fill_the_memory_is_damage(tmp_path: Path) -> None:
    """Its size isn't believed."""
    hour = record(tmp_path)
    packed = zstandard.ZstdCompressor(1).compressobj(size=1 << 40).compress(bytes(10 << 20))
    head = journals._HEAD.pack(journals._MAGIC, journals._HEAD.size - 8, len(packed), 1, 1, 1, 0)[:-4]
    with open(Layout(tmp_path).journal(hour), "ab") as file:
        file.write(head + struct.pack("<I", zlib.crc32(head)) + packed)
    for read in READ.values():
        read(Archive(tmp_path))
    record(tmp_path)


def test_no_hour_is_later_than_23(tmp_path: Path) -> None:
    """It would be taken for one of the next day, whose journal would be removed."""
    hour = record(tmp_path)
    before = Layout(tmp_path).sealed(hour - 24)
    before.parent.mkdir()
    (before.parent / f"hour={hour % 24 + 24}.parquet").touch()
    record(tmp_path)
    assert len(list(Archive(tmp_path).ticks())) == 2


def test_directories_of_other_programs(tmp_path: Path) -> None:
    """Jupyter makes such a directory in any other."""
    (tmp_path / "date=2026-08-01" / ".ipynb_checkpoints").mkdir(parents=True)
    record(tmp_path)
    assert (tmp_path / "date=2026-08-01" / ".ipynb_checkpoints").is_dir()


def test_a_path_is_no_pattern(tmp_path: Path) -> None:
    """DuckDB takes some characters for wildcards."""
    path = tmp_path / "ticks[1]*?'"
    seal(Layout(path), record(path))
    for read in READ.values():
        read(Archive(path))
    assert len(list(Archive(path).ticks())) == 1
    assert list(read_tails(Layout(path), [PAIR])) == [PAIR]


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("ends", [False, True], ids=["a tick follows", "no tick follows"])
def test_an_id_belongs_to_the_log_before_it(tmp_path: Path, is_sealed: bool, ends: bool) -> None:
    """A new log may have no tick yet. A server with that log would skip ticks if it got the old ID."""
    tick = b'{"results":"streaming","resultData":{"pair":"%b","date":"2022-07-02","time":"15:30:55Z","exchange":"OKX",'
    tick = tick % PAIR.encode() + b'"price":"1.5"},"id":%d}'
    with ArchiveWriter(tmp_path) as writer:
        writer.put_event("log", {"log": "a"}, PAIR, HOUR * HOUR_NS)
        writer.put_payloads(HOUR * HOUR_NS, [tick % 70])
        writer.put_event("log", {"log": "b"}, PAIR, HOUR * HOUR_NS)
        if not ends:
            writer.put_payloads(HOUR * HOUR_NS, [tick % 5])
    layout = Layout(tmp_path)
    if is_sealed:
        seal(layout, layout.journals()[-1])
    tail = read_tails(layout, [PAIR])[PAIR]
    assert (tail.log, tail.number) == (("a", 70) if ends else ("b", 5))


def test_a_foreign_file_in_the_place_of_an_hour(tmp_path: Path) -> None:
    """It doesn't cost the journal of that hour."""
    with ArchiveWriter(tmp_path) as writer:
        writer.put_backfilled([(PAIR, "2026-08-01", "00:00:00Z", "OKX", "1")])
    layout = Layout(tmp_path)
    (hour,) = layout.journals()
    layout.sealed(hour).parent.mkdir()
    pq.write_table(pa.table({"a": [1]}), layout.sealed(hour))
    with ArchiveWriter(tmp_path):
        pass
    with pytest.raises(ValueError, match="move it elsewhere"):
        seal(layout, hour)
    layout.sealed(hour).unlink()
    assert [tick["price"] for tick in Archive(tmp_path).ticks()] == [1.0]
