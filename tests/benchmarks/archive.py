"""What the archive costs: bytes per tick, ticks per second written, sealed and read, next to other formats.

    python tests/benchmarks/archive.py [ticks]

The ticks are generated: 20 pairs, prices that walk, 64 KiB chunks as a socket gives them.
"""

from __future__ import annotations

import csv
import gzip
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Options, table

if TYPE_CHECKING:
    import pyarrow

    from finx_streamer.archive import Archive

TITLE = "The archive, next to other formats"
PAIRS = [f"{base}:USDC" for base in ["BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "UNI"]]
PAIRS += [pair.replace("USDC", "USDT") for pair in PAIRS]
CHUNK = 65_536
#: The ticks of the archive that is opened.
LARGE = 100_000_000
#: Per second of the generated market.
RATE = 20_000
_MINUTES = "SELECT pair, {minute}, {first}, max(price), min(price), {last} FROM {ticks} GROUP BY 1, 2"
_FIVE = (
    "SELECT pair, strftime(timestamp, '%Y-%m-%d') AS date, strftime(timestamp, '%H:%M:%S.%gZ') AS time, exchange, "
    "price_text AS price FROM ticks ORDER BY ordinal"
)


def benchmark(options: Options) -> str:
    """Write, seal and read the same ticks in each format; then open a large archive."""
    count = options.archive_ticks
    with tempfile.TemporaryDirectory() as folder:
        return _benchmark(Path(folder), count)


def _benchmark(folder: Path, count: int) -> str:
    from finx_streamer.archive import Archive
    from finx_streamer.archive.layout import Layout
    from finx_streamer.archive.sealing import seal

    root = folder / "archive"
    rows = [("archive: journal", *_recorded(root, count))]
    layout = Layout(root)
    (hour,) = layout.find()[1]
    replays = [_replayed(root, count)]
    sealing, _ = _timed(lambda: seal(layout, hour))
    rows.append(("archive: sealed", _size(root, "*.parquet") / count, count / sealing, *_read(Archive(root), count)))
    replays.append(_replayed(root, count))
    ticks = Archive(root).sql(_FIVE)
    for name, measure in (("CSV.gz", _csv), ("SQLite", _sqlite), ("plain Parquet", _parquet)):
        rows.append((name, *measure(folder, ticks)))
    del ticks
    heads = ("format", "bytes per tick", "written, ticks/s", "read into Python, ticks/s", "minute bars in SQL, s")
    text = table(heads, [(name, f"{b:.1f}", f"{w:,.0f}", f"{r:,.0f}", f"{m:.2f}") for name, b, w, r, m in rows])
    large = _large(folder, root, hour, count)
    return (
        f"{text}\n\n{count:,} ticks of {len(PAIRS)} pairs. The archive also has each tick's ID, time of receipt and "
        "place in the order of arrival; the other formats have the five strings only. A sealed hour is written from "
        f"its journal. A `ReplayListener` with one callback delivers {replays[0]:,.0f} ticks/s from the journal and "
        f"{replays[1]:,.0f} from the sealed hour.\n\n{large}"
    )


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def _size(root: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in root.rglob(pattern))


def _recorded(root: Path, count: int) -> tuple[float, float, float, float]:
    """Record into one hour."""
    from finx_streamer.archive import Archive, ArchiveWriter

    writer = ArchiveWriter(root, queue_bytes=1 << 40)
    now, number, took = time.time_ns(), 0, 0.0
    with writer:
        for part in chunks(count):
            begin = time.perf_counter()
            for chunk in part:
                writer.put_frames(now + number, chunk)
                number += 1
            writer.flush(600)
            took += time.perf_counter() - begin
    return _size(root, "*.zst") / count, count / took, *_read(Archive(root), count)


def _read(archive: Archive, count: int) -> tuple[float, float]:
    took, found = _timed(lambda: sum(1 for _ in archive.ticks()))
    assert found == count
    return count / took, _minute_bars(archive)


def _replayed(root: Path, count: int) -> float:
    """Return how many ticks per second a callback gets."""
    from finx_streamer.archive import ReplayListener

    found = 0

    def on_tick(_: Any) -> None:
        nonlocal found
        found += 1

    def replay() -> None:
        with ReplayListener(root, on_tick=on_tick) as listener:
            listener.join()

    took, _ = _timed(replay)
    assert found == count
    return count / took


def _csv(folder: Path, ticks: pyarrow.Table) -> tuple[float, float, float, float]:
    import duckdb

    path = folder / "ticks.csv.gz"

    def write() -> None:
        with gzip.open(path, "wt", newline="") as file:
            writer = csv.writer(file)
            for batch in ticks.to_batches(8_192):
                writer.writerows(_rows(batch))

    def read() -> int:
        with gzip.open(path, "rt", newline="") as file:
            return sum(1 for _ in csv.reader(file))

    names = "names=['pair', 'date', 'time', 'exchange', 'price'], all_varchar=true"
    source = f"(SELECT *, price::DOUBLE AS price FROM read_csv('{path}', header=false, {names}) )"
    source = source.replace("SELECT *,", "SELECT * EXCLUDE price,")
    with closing(duckdb.connect()) as database:
        return _measured(path, ticks, write, read, lambda: database.sql(_text_query(source)).fetchall())


def _sqlite(folder: Path, ticks: pyarrow.Table) -> tuple[float, float, float, float]:
    path = folder / "ticks.db"
    with closing(sqlite3.connect(path)) as database:

        def write() -> None:
            database.execute("CREATE TABLE ticks (pair TEXT, date TEXT, time TEXT, exchange TEXT, price TEXT)")
            for batch in ticks.to_batches(8_192):
                database.executemany("INSERT INTO ticks VALUES (?, ?, ?, ?, ?)", _rows(batch))
            database.commit()

        # With a single max(), SQLite takes the other columns from that row. Two of them would need a join.
        query = (
            "SELECT pair, date || substr(time, 1, 5), price, max(CAST(price AS REAL)), min(CAST(price AS REAL)) "
            "FROM ticks GROUP BY 1, 2"
        )
        read = database.execute
        return _measured(
            path,
            ticks,
            write,
            lambda: sum(1 for _ in read("SELECT * FROM ticks")),
            lambda: database.execute(query).fetchall(),
        )


def _parquet(folder: Path, ticks: pyarrow.Table) -> tuple[float, float, float, float]:
    import duckdb
    import pyarrow.parquet as pq

    path = folder / "ticks.parquet"

    def read() -> int:
        with pq.ParquetFile(path) as file:
            return sum(1 for batch in file.iter_batches(8_192) for _ in _rows(batch))

    source = f"(SELECT * EXCLUDE price, price::DOUBLE AS price FROM '{path}')"
    with closing(duckdb.connect()) as database:
        return _measured(
            path,
            ticks,
            lambda: pq.write_table(ticks, path),
            read,
            lambda: database.sql(_text_query(source)).fetchall(),
        )


def _text_query(source: str) -> str:
    order = "{}(price, time)".format
    minute = "date || time[:5]"
    return _MINUTES.format(minute=minute, first=order("arg_min"), last=order("arg_max"), ticks=source)


def _rows(batch: Any) -> Iterator[tuple[str, ...]]:
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _measured(
    path: Path, ticks: pyarrow.Table, write: Callable[[], Any], read: Callable[[], int], bars: Callable[[], Any]
) -> tuple[float, float, float, float]:
    writing, reading = _timed(write)[0], _timed(read)
    assert reading[1] == len(ticks)
    result = path.stat().st_size / len(ticks), len(ticks) / writing, len(ticks) / reading[0], _timed(bars)[0]
    path.unlink()
    return result


def _large(folder: Path, root: Path, hour: int, count: int) -> str:
    """Copy the sealed hour to other hours, and measure the archive that they form."""
    from finx_streamer.archive import Archive

    copies = LARGE // count
    if copies < 1 or shutil.disk_usage(folder).free < 3 * LARGE * 12:
        return "There was no room for a large archive."
    making, _ = _timed(lambda: [_copy(root, hour, number) for number in range(1, copies)])
    total = copies * count
    archive = Archive(root)
    first, _ = _timed(lambda: next(archive.ticks()))
    pair, found = _timed(lambda: sum(1 for _ in archive.ticks(PAIRS[0], "2026-08-01T00:01", "2026-08-01T00:02")))
    counting, rows = _timed(lambda: archive.sql("SELECT count(*) AS n FROM ticks")["n"].to_pylist())
    assert rows == [total]
    bars = _minute_bars(archive)
    facts = [
        ("the first tick of `ticks()`", f"{first:.2f} s"),
        (f"one minute of one pair, {found:,} ticks", f"{pair:.2f} s"),
        ("`count(*)` in SQL", f"{counting:.2f} s"),
        ("minute bars of all pairs in SQL", f"{bars:.1f} s"),
        ("size", f"{_size(root, '*.parquet') / 1e9:.2f} GB"),
    ]
    return (
        f"{table((f'{total:,} sealed ticks', 'time'), facts)}\n\nThese are {copies} copies of that sealed hour, "
        f"shifted by an hour each and written with its settings in {making:,.0f} s."
    )


def _minute_bars(archive: Archive) -> float:
    """Return how many seconds they take in SQL."""
    minute = "time_bucket(INTERVAL 1 MINUTE, timestamp)"
    order = "{}(price, ordinal)".format
    query = _MINUTES.format(minute=minute, first=order("arg_min"), last=order("arg_max"), ticks="ticks")
    return _timed(lambda: archive.sql(query))[0]


def _copy(root: Path, hour: int, shift: int) -> None:
    """Write a sealed hour again as a later one."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from finx_streamer.archive import columns
    from finx_streamer.archive.layout import HOUR_NS, ORDINAL_BITS, Layout, Sealed
    from finx_streamer.archive.sealing import _EVENT_OPTIONS, _TICK_OPTIONS, _Writer, metadata_of

    layout = Layout(root)
    source, target = (Sealed(each, layout.sealed(each)) for each in (hour, hour + shift))
    target.ticks.parent.mkdir(exist_ok=True)
    us = shift * HOUR_NS // 1_000
    note = metadata_of(source.ticks)
    note["hours"] = [hour + shift]
    note["counts"] = {pair: [n, first + us, last + us] for pair, (n, first, last) in note["counts"].items()}
    with _Writer(target.events, columns.EVENTS, _EVENT_OPTIONS) as events:
        events.finish({})
    added = {"timestamp": pa.scalar(us, pa.duration("us")), "ordinal": shift << ORDINAL_BITS}
    added["received_ns"] = shift * HOUR_NS
    with _Writer(target.ticks, columns.TICKS, _TICK_OPTIONS) as writer, pq.ParquetFile(source.ticks) as file:
        for group in range(file.num_row_groups):
            ticks = file.read_row_group(group)
            for name, value in added.items():
                place = ticks.schema.get_field_index(name)
                ticks = ticks.set_column(place, name, pc.add(ticks[name], value))
            writer.write(ticks)
        writer.finish(note)


def chunks(count: int) -> Iterator[list[bytes]]:
    """Return the ticks as frames, in chunks, about 100,000 ticks at a time."""
    random.seed(1)
    start = datetime(2026, 8, 1, tzinfo=UTC)
    prices = {pair: random.randrange(100, 6_000_000) for pair in PAIRS}
    found, frames, size = [], [], 0
    for number in range(count):
        pair = random.choice(PAIRS)
        prices[pair] = max(1, prices[pair] + random.randrange(-3, 4))
        when = (start + timedelta(milliseconds=number * 1_000 // RATE)).isoformat(timespec="milliseconds")
        text = (
            f'{{"results":"streaming","resultData":{{"pair":"{pair}","date":"{when[:10]}","time":"{when[11:23]}Z",'
            f'"exchange":"{random.choice(("BINANCE", "COINBASE", "KRAKEN"))}","price":"{prices[pair] / 100:.2f}"}},'
            f'"id":{number + 1}}}'
        ).encode()
        frames.append(b"\x81\x7e" + len(text).to_bytes(2, "big") + text)
        size += len(text) + 4
        if size >= CHUNK:
            found.append(b"".join(frames))
            frames, size = [], 0
            if len(found) >= 250:
                yield found
                found = []
    yield [*found, b"".join(frames)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(_benchmark(Path(directory), int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000))
