"""What is written comes back: from the journal, from sealed hours, from merged days, and after crashes."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason='needs the extra: pip install "finx-streamer[archive]"')

from hypothesis import given, settings
from hypothesis import strategies as st

from finx_streamer import ConfigurationError
from finx_streamer.archive import Archive, ArchiveWriter
from finx_streamer.archive.journal import Entry
from finx_streamer.archive.layout import HOUR_NS, Layout
from finx_streamer.archive.sealing import merge_days, seal

FIELDS = ("pair", "date", "time", "exchange", "price")
#: In the future, so that the writer uses the hours that the tests name.
HOUR = 600_000
TIMES = st.builds(
    "{:02}:{:02}:{:02}{}{}".format,
    st.integers(0, 23),
    st.integers(0, 59),
    st.integers(0, 59),
    st.sampled_from(["", ".", ".1", ".12", ".817", ".8170", ".000001", ".1234567", ".123456789"]),
    st.sampled_from(["Z", "Z", "Z", ""]),
)
TICKS = st.fixed_dictionaries(
    {
        "pair": st.sampled_from(["BTC:USDC", "ETH:BTC", "币安人生:USDT", "币:USDC"]),
        "date": st.sampled_from(["2026-08-01", "2024-02-29", "1970-01-01", "1969-12-31", "9998-12-31"]),
        "time": TIMES | st.just("23:59:60.5Z"),
        "exchange": st.sampled_from(["BINANCE", "OKX", "", "币", 'a"b\\c\n']),
        "price": st.sampled_from(["1.0", "58001.03000000", "21865.010000000002", "9.2E-7", "-5", "1.", "0" * 50]),
    }
)


def frame(payload: bytes) -> bytes:
    """A text frame of a server."""
    size = len(payload)
    return b"\x81" + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")) + payload


def message(tick: dict[str, str], number: int | None = None, flat: bool = False, ascii_only: bool = False) -> bytes:
    """A tick on the wire."""
    content: dict[str, Any] = {"results": "streaming", "resultData": tick}
    if flat:
        content = {"pair": tick["pair"], "unixDate": 1, "UTCDate": f"{tick['date']}T{tick['time']}"}
        content |= {"exchange": tick["exchange"], "price": tick["price"]}
    if number is not None:
        content["id"] = number
    return json.dumps(content, separators=(",", ":"), ensure_ascii=ascii_only).encode()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true, which another process makes true."""
    limit = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def record(root: Path, frames: list[bytes], chunk: int = 3) -> None:
    """Record frames now."""
    with ArchiveWriter(root, on_problem=pytest.fail) as writer:
        for at in range(0, len(frames), chunk):
            writer.put_frames(time.time_ns(), b"".join(frames[at : at + chunk]))


def seal_all(root: Path) -> None:
    """Seal what is recorded."""
    layout = Layout(root)
    for hour in layout.find()[1]:
        seal(layout, hour)


def texts(root: Path, in_order: bool = True) -> list[tuple[Any, ...]]:
    """The strings of all ticks, in recorded order or by time."""
    archive = Archive(root)
    found = archive.entries(parse_price=str) if in_order else archive.ticks(parse_price=str)
    return [tuple(tick[name] for name in FIELDS) for tick in found if isinstance(tick, dict)]  # type: ignore[literal-required]


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(TICKS, st.none() | st.integers(1, 10**18 - 1), st.booleans(), st.booleans())))
def test_the_five_strings_come_back(rows: list[tuple[dict[str, str], int | None, bool, bool]]) -> None:
    """Byte for byte and in recorded order, also those that the fast path can't read; sealed or not; and by time."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        record(root, [frame(message(*row)) for row in rows])
        expected = [tuple(tick[name] for name in FIELDS) for tick, *_ in rows]
        assert texts(root) == expected
        by_time = texts(root, in_order=False)
        assert sorted(by_time) == sorted(expected)
        everything = list(Archive(root).entries(parse_price=str))
        seal_all(root)
        assert texts(root) == expected
        assert texts(root, in_order=False) == by_time
        assert list(Archive(root).entries(parse_price=str)) == everything
        times = [tick["timestamp"] for tick in Archive(root).ticks(parse_price=str)]
        assert times == sorted(times)
        numbers = Archive(root).sql("select id from ticks order by ordinal")["id"].to_pylist()
        assert numbers == [number for _, number, *_ in rows]
        assert Archive(root).verify().ok


def test_recorded_trades_take_few_bytes(shared_data: Path, tmp_path: Path) -> None:
    """At most 12 bytes per sealed tick, with IDs and the times of receipt."""
    with gzip.open(shared_data / "tape.jsonl.gz", "rt") as file:
        ticks = [json.loads(line) for line in file]
    with ArchiveWriter(tmp_path) as writer:
        start = time.time_ns()
        for number, tick in enumerate(ticks, 1):
            writer.put_frames(start + number * 100_003, frame(message(tick, number)))
    seal_all(tmp_path)
    assert texts(tmp_path) == [tuple(tick[name] for name in FIELDS) for tick in ticks]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) <= 12 * len(ticks)


def test_a_message_that_is_no_tick_is_kept_as_it_is(tmp_path: Path) -> None:
    """Notices, Greeks, text that isn't JSON or UTF-8, and lines among the ticks that the client would refuse."""
    tick = {"pair": "BTC:USDC", "date": "2026-08-01", "time": "00:00:00Z", "exchange": "OKX", "price": "1"}
    odd = [b"{}", b"[1]", b"\xff\xfe", json.dumps(tick | {"price": "x"}).encode(), b'{"a":\n1}']
    with ArchiveWriter(tmp_path) as writer:
        for payload in odd:
            writer.put_message(1, payload, "BTC:USDC")
        writer.put_frames(2, b"".join(frame(payload) for payload in [message(tick), *odd, message(tick)]))
    for _ in range(2):
        found = [each for each in Archive(tmp_path).entries() if isinstance(each, dict) or each.kind == "message"]
        kept = [None if isinstance(e, dict) else e.fields["text"].encode("utf-8", "surrogateescape") for e in found]
        # The line feed within one of them makes all of that chunk messages.
        assert kept == [*odd, message(tick), *odd, message(tick)]
        seal_all(tmp_path)


def test_views_of_sql(tmp_path: Path) -> None:
    """Ticks, Greeks and gaps, sealed or not, and the tables made of ticks."""
    tick = {"pair": "BTC:USDC", "date": "2026-08-01", "time": "00:00:00.5Z", "exchange": "OKX", "price": "1.50"}
    greeks = {"instrument_name": "BTC-26AUG22-20000-C", "timestamp": "1659760300724", "delta": "0.83341", "bid_iv": ""}
    with ArchiveWriter(tmp_path) as writer:
        writer.put_frames(7, frame(message(tick)))
        writer.put_backfilled([tuple(tick[name] for name in FIELDS)], 8)  # type: ignore[list-item]
        writer.put_message(9, json.dumps(greeks).encode(), "BTCN2202207")
        writer.put_message(9, b"no JSON", None)
        writer.put_event(
            "gap", {"since": "2026-08-01T00:00:00Z", "filled": True, "ticks": 1, "why": "it's"}, "BTC:USDC"
        )
    for _ in range(2):
        archive = Archive(tmp_path)
        (row, second) = archive.sql("select * from ticks order by ordinal").to_pylist()
        assert (row["price"], row["price_text"], row["backfilled"], second["backfilled"]) == (1.5, "1.50", False, True)
        assert archive.sql("select delta, bid_iv, symbol from greeks").to_pylist() == [
            {"delta": 0.83341, "bid_iv": None, "symbol": "BTCN2202207"}
        ]
        (gap,) = archive.sql("select * from gaps").to_pylist()
        assert (gap["filled"], gap["ticks"], gap["why"], gap["until"]) == (True, 1, "it's", None)
        assert archive.to_pandas("BTC:USDC")["price"].tolist() == [1.5, 1.5]
        assert archive.to_polars(end="2026-08-01")["price"].to_list() == []
        assert len(list(archive.ticks("ETH:USDC"))) == 0
        seal_all(tmp_path)


@pytest.mark.timeout(180)
def test_hours_are_sealed_and_days_merged_while_recording(tmp_path: Path) -> None:
    """In another process. A reader that started before reads on. If the clock goes back, the hour stays."""
    tick = {"pair": "BTC:USDC", "date": "2026-08-01", "time": "00:00:00Z", "exchange": "OKX", "price": "1"}
    day = HOUR - HOUR % 24
    problems: list[str] = []
    with ArchiveWriter(tmp_path, on_problem=problems.append) as writer:
        for hour in (day, day + 1, day, day + 2, day + 25, day + 26):
            for _ in range(2):
                writer.put_frames(hour * HOUR_NS, frame(message(tick)) * 2)
        writer.flush()
        reader = Archive(tmp_path).entries()
        first = next(reader)
        wait_for(lambda: not Layout(tmp_path).journal(day + 25).exists())
        wait_for(lambda: (Layout(tmp_path).sealed(day).parent / "day.parquet").exists())
        rest = list(reader)
        assert len(Archive(tmp_path).sql("select * from ticks")) == 24
    assert sum(isinstance(each, dict) for each in [first, *rest]) == 24
    assert not problems
    sealed = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet") if path.name[0] != ".")
    day_name, next_name = (Layout(tmp_path).sealed(hour).parent.name for hour in (day, day + 25))
    wanted = [f"{day_name}/day.events.parquet", f"{day_name}/day.parquet"]
    wanted += [f"{next_name}/hour=01.events.parquet", f"{next_name}/hour=01.parquet"]
    assert [name for name in sealed if name.startswith((day_name, next_name))] == wanted
    received = [each["received_ns"] // HOUR_NS - day for each in Archive(tmp_path).entries() if isinstance(each, dict)]
    assert received == [hour for hour in (0, 1, 0, 2, 25, 26) for _ in range(4)]
    verification = Archive(tmp_path).verify()
    assert verification.ok
    assert verification.ticks == 24


@pytest.fixture
def two_hours(tmp_path: Path) -> tuple[Layout, int]:
    """The journals of two hours of one day, with three ticks each."""
    tick = {"pair": "BTC:USDC", "date": "2026-08-01", "time": "00:00:00Z", "exchange": "OKX", "price": "1"}
    layout = Layout(tmp_path)
    record(tmp_path, [frame(message(tick))] * 3)
    (hour,) = layout.find()[1]
    day = HOUR - HOUR % 24
    shutil.copy(layout.journal(hour), layout.journal(day + 1))
    layout.journal(hour).rename(layout.journal(day))
    return layout, day


@pytest.mark.parametrize("step", ["temporary files", "events only", "journal not removed", "hours not removed"])
def test_a_crash_while_sealing_costs_nothing(two_hours: tuple[Layout, int], step: str) -> None:
    """Between any two steps, a reader sees every tick once, and the next writer removes what was left."""
    layout, day = two_hours
    root = layout.root
    before = texts(root)
    copy = root / "copy"
    shutil.copytree(root / "journal", copy)
    seal(layout, day)
    folder = layout.sealed(day).parent
    if step == "temporary files":
        for path in list(folder.iterdir()):
            path.rename(path.with_name(f".{path.name}.1"))
        shutil.copy(copy / layout.journal(day).name, layout.journal(day))
    elif step == "events only":
        layout.sealed(day).unlink()
        shutil.copy(copy / layout.journal(day).name, layout.journal(day))
    elif step == "journal not removed":
        shutil.copy(copy / layout.journal(day).name, layout.journal(day))
    else:
        seal(layout, day + 1)
        hours = {path.name: path.read_bytes() for path in folder.iterdir()}
        merge_days(layout, folder.with_name("date=9999-01-01"))
        for name, content in hours.items():
            (folder / name).write_bytes(content)
        assert len(hours) == 4
    assert texts(root) == before
    assert len(texts(root, in_order=False)) == 6
    with ArchiveWriter(root) as writer:
        wait_for(lambda: not layout.find()[1][:-1])
        writer.flush()
        assert texts(root) == before
    assert not [path for path in root.rglob(".*") if path.is_file()]
    assert Archive(root).verify().ok


def test_one_writer_and_many_readers(tmp_path: Path) -> None:
    """The error names the process that records."""
    with ArchiveWriter(tmp_path) as writer:
        writer.put_event("start", {})
        writer.flush()
        with pytest.raises(ConfigurationError, match=f"pid {os.getpid()}"):
            ArchiveWriter(tmp_path)
        assert [entry.kind for entry in Archive(tmp_path).entries() if isinstance(entry, Entry)] == ["open", "start"]
    ArchiveWriter(tmp_path).close()


def test_not_an_archive(tmp_path: Path) -> None:
    """A directory that no one recorded into."""
    with pytest.raises(ConfigurationError, match="not an archive"):
        Archive(tmp_path)


def test_a_queue_that_overflows_becomes_a_gap(tmp_path: Path) -> None:
    """What is dropped is counted, reported, and in the ledger."""
    tick = {"pair": "BTC:USDC", "date": "2026-08-01", "time": "00:00:00Z", "exchange": "OKX", "price": "1"}
    chunk = frame(message(tick)) * 10
    problems: list[str] = []
    put = 200
    with ArchiveWriter(tmp_path, on_problem=problems.append, queue_bytes=20 * len(chunk)) as writer:
        writer.put_event("state", {"state": "streaming"}, "BTC:USDC")
        for _ in range(put):
            writer.put_frames(time.time_ns(), chunk)
        writer.flush()
        for _ in range(3):
            writer.put_frames(time.time_ns(), chunk)
    archive = Archive(tmp_path)
    gaps = [each for each in archive.entries() if isinstance(each, Entry) and each.kind == "gap"]
    dropped = sum(gap.fields["entries"] for gap in gaps)
    assert dropped
    assert len(texts(tmp_path)) + dropped == 10 * (put + 3)
    assert problems
    assert not archive.verify().ok
    assert any(not part.complete and "disk" in part.why for part in archive.coverage("BTC:USDC"))


FULL_DISK = """
import resource, sys, time
from finx_streamer.archive import Archive, ArchiveWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
failed = []
with ArchiveWriter(sys.argv[1], on_problem=failed.append) as writer:
    for number in range(100):
        writer.put_event("x", {"number": number, "text": "%x" % (3**1_000 * number)})
    while not failed:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.flush(30)
print(failed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_recording_goes_on_when_the_disk_has_room_again(tmp_path: Path) -> None:
    """A write that fails half-way leaves nothing behind, and is repeated."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "jsonl.zst: File too large; trying again" in done.stdout
    assert "recording continues" in done.stdout
    numbers = [each.fields["number"] for each in Archive(tmp_path).entries() if getattr(each, "kind", "") == "x"]
    assert numbers == list(range(100))


KILLED = """
import json, sys, time
from finx_streamer.archive import ArchiveWriter
from tests.archive.test_archive import frame, message
writer = ArchiveWriter(sys.argv[1])
number = int(sys.argv[2])
print("open", flush=True)
while True:
    for _ in range(10):
        number += 1
        tick = {"pair": "BTC:USDC", "date": "2026-08-01", "time": "00:00:00Z", "exchange": "OKX", "price": str(number)}
        writer.put_frames(time.time_ns(), frame(message(tick)))
    print(number, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_writer_leaves_a_prefix(tmp_path: Path) -> None:
    """SIGKILL at any moment, again and again: what is there is what was put, in order, without holes."""
    last = 0
    for pause in (0.05, 0.3, 0.6, 0.01, 0.9):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
            assert child.stdout is not None
            child.stdout.readline()
            lines: list[str] = []
            thread = threading.Thread(target=lambda: lines.extend(child.stdout or ()))  # noqa: B023
            thread.start()
            time.sleep(pause)
            child.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
            thread.join(20)
        found = [int(price) for *_, price in texts(tmp_path)]
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= last
        last = len(found)
    assert last
    with ArchiveWriter(tmp_path):
        pass
    opened = [each for each in Archive(tmp_path).entries() if isinstance(each, Entry) and each.kind == "open"]
    assert len(opened) == 6
    assert Archive(tmp_path).verify().ok


def test_verify_finds_what_is_damaged_or_missing(two_hours: tuple[Layout, int]) -> None:
    """Any flipped byte of a journal, a flipped byte of a page, a torn file, a file that is gone."""
    layout, day = two_hours
    archive = Archive(layout.root)
    journal = layout.journal(day)
    good = journal.read_bytes()
    for at in range(0, len(good), 7):
        journal.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        verification = archive.verify()
        assert verification.files[0].problems or verification.files[0].notes
    journal.write_bytes(good)
    seal(layout, day)
    assert archive.verify().ok
    path = layout.sealed(day)
    good = path.read_bytes()
    for bad in (good[:100] + bytes([good[100] ^ 1]) + good[101:], good[: len(good) // 2], b""):
        path.write_bytes(bad)
        assert not archive.verify().ok
    path.write_bytes(good)
    assert archive.verify().ok
    with ArchiveWriter(layout.root) as writer:
        writer.put_event("seal", {"hour": day})
    path.unlink()
    assert not archive.verify().ok


def test_damage_that_is_left_out_is_logged(two_hours: tuple[Layout, int], caplog: pytest.LogCaptureFixture) -> None:
    """Fewer ticks never come without a warning."""
    layout, day = two_hours
    journal = layout.journal(day)
    archive = Archive(layout.root)
    list(archive.ticks())
    assert not caplog.records
    data = bytearray(journal.read_bytes())
    data[50] ^= 1
    journal.write_bytes(data + journal.read_bytes())
    archive.sql("select * from ticks")
    assert [str(journal) in record.getMessage() for record in caplog.records] == [True]


def test_commands(two_hours: tuple[Layout, int]) -> None:
    """`verify` and `history --from`."""
    typer = pytest.importorskip("typer.testing")
    from finx_streamer.cli.commands import app

    layout, day = two_hours
    root = str(layout.root)
    run = typer.CliRunner().invoke
    result = run(app, ["history", "BTC:USDC", "--start", "2026-08-01", "--from", root])
    assert [json.loads(line)["price"] for line in result.stdout.splitlines()] == ["1"] * 6
    result = run(app, ["history", "BTC:USDC", "--start", "2026-08-01", "--exchange", "KRAKEN", "--from", root])
    assert (result.exit_code, result.stdout) == (0, "")
    result = run(app, ["verify", root])
    assert (result.exit_code, "all complete" in result.stdout) == (0, True)
    good = layout.journal(day).read_bytes()
    data = bytearray(good)
    data[50] ^= 1
    layout.journal(day).write_bytes(data)
    result = run(app, ["verify", root])
    assert (result.exit_code, "damaged" in result.stdout) == (1, True)
    layout.journal(day).write_bytes(good)
    seal(layout, day)
    sealed = layout.sealed(day)
    sealed.write_bytes(sealed.read_bytes()[:-100])
    result = run(app, ["history", "BTC:USDC", "--start", "2026-08-01", "--from", root])
    assert result.exit_code == 1
    assert "can't be read" in result.stderr
    assert "Traceback" not in result.stderr
    assert run(app, ["verify", str(layout.root / "journal")]).exit_code == 2


def test_a_tape_plays_an_archive(two_hours: tuple[Layout, int]) -> None:
    """In recorded order, with contract tickers, and without notices."""
    from finx_streamer.server import Tape

    layout, _ = two_hours
    ticker = {"instrument_name": "BTC-26AUG22-20000-C", "timestamp": "1659760300724", "delta": "0.83341"}
    with ArchiveWriter(layout.root) as writer:
        writer.put_message(1, b'{"keepAlive":true}', None)
        writer.put_message(1, json.dumps(ticker).encode(), "BTCN2202207")
    tape = Tape(layout.root, speed=None)
    assert (tape.pairs, tape.contracts) == ({"BTC:USDC"}, {"BTC-26AUG22-20000-C"})
    assert len(list(tape.play(time.time))) == 7
