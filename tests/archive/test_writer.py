"""What the writer does when disks hang, fill up or disappear, when clocks are set, and when processes fork."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason='needs the extra: pip install "finx-streamer[archive]"')

from finx_streamer.archive import Archive, ArchiveWriter
from finx_streamer.archive.journal import FIELDS, MAX_ENTRIES, Entry, read_blocks
from finx_streamer.archive.layout import HOUR_NS, Layout, time_of
from finx_streamer.archive.sealing import merge_days, seal
from tests.support.peers import frame

PAIR = "BTC:USDC"
DAY = 24 * HOUR_NS


def tick(number: int) -> tuple[str, str, str, str, str]:
    """A tick whose price is its number."""
    return PAIR, "2026-08-01", "00:00:00Z", "OKX", str(number)


def numbers(root: Path) -> list[int]:
    """The numbers of the ticks, in recorded order."""
    return [int(each["price"]) for each in Archive(root).entries(parse_price=int) if isinstance(each, dict)]


def events(root: Path, kind: str) -> list[Entry]:
    """The events of a kind."""
    return [each for each in Archive(root).entries() if isinstance(each, Entry) and each.kind == kind]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for what another thread makes true."""
    limit = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


class Clock:
    """The computer's clock, which can be set."""

    def __init__(self, real: Callable[[], int]) -> None:
        self._real = real
        self.offset = 0

    def __call__(self) -> int:
        return self._real() + self.offset


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace `time.time_ns`."""
    found = Clock(time.time_ns)
    monkeypatch.setattr(time, "time_ns", found)
    return found


@pytest.mark.parametrize("jumps", [(DAY,), (-DAY,), (DAY, -DAY), (-DAY, DAY), (HOUR_NS, -2 * HOUR_NS, 3 * DAY)])
def test_a_clock_that_is_set_costs_no_tick(tmp_path: Path, clock: Clock, jumps: tuple[int, ...]) -> None:
    """Ticks stay in order, the time that may be wrong isn't called complete, and no hour is sealed twice."""
    start = datetime.now(UTC)
    with ArchiveWriter(tmp_path, on_problem=pytest.fail) as writer:
        writer.put_event("state", {"state": "streaming"}, PAIR)
        for number, jump in enumerate((0, *jumps)):
            clock.offset += jump
            for part in range(3):
                writer.put_backfilled([tick(3 * number + part)])
                writer.flush()
    assert numbers(tmp_path) == list(range(3 * (len(jumps) + 1)))
    assert len(events(tmp_path, "clock")) == len(jumps)
    hours = [entry.fields["previous"] for entry in events(tmp_path, "hour")]
    assert hours == sorted(set(hours))
    assert not Archive(tmp_path).verify().missing
    complete = [part for part in Archive(tmp_path).coverage(PAIR) if part.complete]
    assert all(part.end - part.start < datetime.now(UTC) - start for part in complete)


def test_hours_last_longer_while_the_clock_is_behind(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a clock that jumped ahead and came back doesn't leave everything in one journal."""
    monkeypatch.setattr("finx_streamer.archive.writer._LONG_HOUR", 0.0)
    clock.offset = DAY
    ahead = clock() // HOUR_NS
    with ArchiveWriter(tmp_path, on_problem=pytest.fail) as writer:
        clock.offset = 0
        for number in range(5):
            writer.put_backfilled([tick(number)])
            writer.flush()
        wait_for(lambda: Layout(tmp_path).sealed(ahead).exists())
    assert numbers(tmp_path) == list(range(5))
    assert Layout(tmp_path).next_hour(clock()) > ahead + 1


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that hangs in fsync until the event is set."""
    free = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: free.wait(60))
    yield free
    free.set()


def test_a_disk_that_hangs_delays_no_caller(tmp_path: Path, hanging: threading.Event) -> None:
    """Entries wait in the bounded queue, drops are reported at once, and `flush` and `close` end in time."""
    problems: list[str] = []
    writer = ArchiveWriter(tmp_path, on_problem=problems.append, queue_bytes=100_000)
    with pytest.raises(TimeoutError):
        writer.flush(0.2)
    for number in range(5_000):
        writer.put_backfilled([tick(number)])
    wait_for(lambda: any("queue is full" in problem for problem in problems))
    assert writer.dropped
    assert writer._queued <= 100_000
    begin = time.monotonic()
    writer.close(timeout=0.5)
    assert time.monotonic() - begin < 10
    assert any("hangs" in problem for problem in problems)
    hanging.set()
    wait_for(lambda: not writer._thread.is_alive())
    ArchiveWriter(tmp_path).close()


def test_a_disk_that_hangs_for_a_while_leaves_a_gap(tmp_path: Path, hanging: threading.Event) -> None:
    """Recording goes on by itself, and the ledger has what was dropped."""
    with ArchiveWriter(tmp_path, on_problem=lambda _: None, queue_bytes=100_000) as writer:
        with pytest.raises(TimeoutError):
            writer.flush(0.1)
        for number in range(3_000):
            writer.put_backfilled([tick(number)])
        hanging.set()
        writer.flush()
        writer.put_backfilled([tick(-1)])
    (gap,) = events(tmp_path, "gap")
    found = numbers(tmp_path)
    assert found == [*range(len(found) - 1), -1]
    assert len(found) - 1 + gap.fields["entries"] == 3_000


def test_a_failed_sync_leaves_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, the kernel may have dropped what was written."""
    problems: list[str] = []
    real, failures = os.fsync, [OSError(5, "Input/output error")]

    def fail(file: int) -> None:
        if failures:
            raise failures.pop()
        real(file)

    with ArchiveWriter(tmp_path, on_problem=problems.append) as writer:
        writer.flush()
        monkeypatch.setattr(os, "fsync", fail)
        writer.put_backfilled([tick(0)])
        writer.flush()
        writer.put_backfilled([tick(1)])
    assert numbers(tmp_path) == [0, 1]
    assert [gap.fields["why"] for gap in events(tmp_path, "gap")] == ["the disk failed"]
    assert len(problems) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the directory of an open file")
@pytest.mark.parametrize("back", ["the same", "empty"])
def test_a_directory_that_disappears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: str) -> None:
    """It is reported once. When it is back, recording goes on; blocks that are gone are a gap."""
    monkeypatch.setattr("finx_streamer.archive.writer._RETRY", 0.05)
    root, away = tmp_path / "ticks", tmp_path / "away"
    problems: list[str] = []
    with ArchiveWriter(root, on_problem=problems.append) as writer:
        writer.put_backfilled([tick(0)])
        writer.flush()
        root.rename(away)
        writer.put_backfilled([tick(1)])
        wait_for(lambda: problems)
        with pytest.raises(TimeoutError):
            writer.flush(0.2)
        if back == "empty":
            (root / "journal").mkdir(parents=True)
            (root / "lock").touch()
        else:
            away.rename(root)
        writer.flush()
        with pytest.raises(Exception, match="another process records"):
            ArchiveWriter(root)
    assert len(problems) == 2
    assert numbers(root) == ([1] if back == "empty" else [0, 1])
    assert len(events(root, "gap")) == (back == "empty")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_leaves_the_directory_to_its_parent(tmp_path: Path) -> None:
    """It doesn't write, doesn't hang, and doesn't keep the lock when the parent has closed."""
    writer = ArchiveWriter(tmp_path)
    writer.put_backfilled([tick(0)])
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            writer.put_backfilled([tick(1)])
            writer.flush(1)
            writer.close()
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(read, 1) == b"x"
        writer.close()
        ArchiveWriter(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    assert numbers(tmp_path) == [0]


def test_an_archive_can_be_pickled(tmp_path: Path) -> None:
    """For `multiprocessing`."""
    with ArchiveWriter(tmp_path) as writer:
        writer.put_backfilled([tick(0)])
    copy = pickle.loads(pickle.dumps(Archive(tmp_path)))
    assert len(list(copy.ticks())) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root on Linux, to mount a small file system")
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.timeout(180)
def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While recording, sealing and merging: nothing is lost, and all goes on when there is room."""
    monkeypatch.setattr("finx_streamer.archive.writer._RETRY", 0.05)
    monkeypatch.setattr("finx_streamer.archive.sealer._RETRY", 0.2)
    root = small_disk / "ticks"
    problems: list[str] = []
    start = time.time_ns() // HOUR_NS + 24 - time.time_ns() // HOUR_NS % 24
    layout = Layout(root)
    with ArchiveWriter(root, on_problem=problems.append) as writer:
        for number in range(300):
            writer.put_backfilled([tick(number)], start * HOUR_NS)
        writer.flush()
        fill(small_disk)
        for number in range(300, 600):
            text = os.urandom(2_000).hex()
            writer.put_event("noise", {"text": text}, received_ns=start * HOUR_NS)
            writer.put_backfilled([tick(number)], start * HOUR_NS)
        wait_for(lambda: any("trying again" in problem for problem in problems))
        with pytest.raises(TimeoutError):
            writer.flush(0.3)
        os.truncate(small_disk / "filler", 1 << 20)
        writer.flush()
        assert numbers(root) == list(range(600))
        os.truncate(small_disk / "filler", 0)
        fill(small_disk)
        writer.put_backfilled([tick(600)], (start + 1) * HOUR_NS)
        wait_for(lambda: any("can't seal" in problem for problem in problems))
        os.truncate(small_disk / "filler", 0)
        writer.flush()
        wait_for(lambda: not layout.journal(start).exists())
        for number, hour in ((601, start + 25), (602, start + 26)):
            writer.put_backfilled([tick(number)], hour * HOUR_NS)
        wait_for(lambda: (layout.sealed(start).parent / "day.parquet").exists())
    assert numbers(root) == list(range(603))
    assert Archive(root).verify().ok, Archive(root).verify()


def fill(disk: Path) -> None:
    """Use all space."""
    with open(disk / "filler", "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))


@pytest.mark.parametrize("merged", [False, True])
def test_verify_notices_a_deleted_file(tmp_path: Path, merged: bool) -> None:
    """A sealed hour, a merged day or a journal, whoever sealed it. `coverage` doesn't call its time complete."""
    layout = Layout(tmp_path)
    start = time.time_ns() // HOUR_NS + 24 - time.time_ns() // HOUR_NS % 24
    with ArchiveWriter(tmp_path) as writer:
        for hour in (start, start + 1, start + 25, start + 26):
            writer.put_event("state", {"state": "streaming"}, PAIR, hour * HOUR_NS)
            writer.put_backfilled([tick(hour)], hour * HOUR_NS)
    for hour in layout.find()[1]:
        seal(layout, hour)
    if merged:
        merge_days(layout, layout.sealed(start + 25).parent)
    assert Archive(tmp_path).verify().ok
    for found in layout.find()[0][1:-1] if not merged else layout.find()[0][:1]:
        kept = tmp_path / "kept"
        shutil.copy(found.ticks, kept)
        found.ticks.unlink()
        verification = Archive(tmp_path).verify()
        assert len(verification.missing) == 1
        parts = Archive(tmp_path).coverage(PAIR)
        assert merged or any(part.why == "the file of an hour is missing" for part in parts)
        lost = time_of(found.hour * HOUR_NS + 1_000)
        assert not any(part.complete and part.start <= lost < part.end for part in parts)
        kept.rename(found.ticks)
    assert Archive(tmp_path).verify().ok


def test_files_of_strangers_stay(tmp_path: Path) -> None:
    """Names that aren't the archive's are neither read nor removed."""
    with ArchiveWriter(tmp_path) as writer:
        writer.put_backfilled([tick(0)])
    names = ("journal/.DS_Store", "journal/copy of x.jsonl.zst", "date=x/hour=01.parquet")
    others = [tmp_path / name for name in names]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with ArchiveWriter(tmp_path) as writer:
        writer.put_backfilled([tick(1)])
    assert numbers(tmp_path) == [0, 1]
    assert Archive(tmp_path).verify().ok
    assert all(path.read_text() == "x" for path in others)


def test_a_callback_that_fails_does_not_end_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged."""
    monkeypatch.setattr("finx_streamer.archive.writer._RETRY", 0.05)
    (tmp_path / "ticks").mkdir()

    def fail(_: str) -> Any:
        raise ValueError("x")

    with ArchiveWriter(tmp_path / "ticks", on_problem=fail) as writer:
        writer.put_frames(1, b"no frame")
        writer.put_backfilled([tick(0)])
        writer.flush()
    assert numbers(tmp_path / "ticks") == [0]


def test_readers_while_hours_are_sealed(tmp_path: Path) -> None:
    """Each reader sees a prefix of what was put, without holes."""
    start = time.time_ns() // HOUR_NS + 1
    done = threading.Event()
    seen: list[list[int]] = []

    def read() -> None:
        while not done.is_set():
            seen.append(numbers(tmp_path))
            seen.append([int(each["price"]) for each in Archive(tmp_path).ticks(parse_price=int)])

    with ArchiveWriter(tmp_path, on_problem=pytest.fail) as writer:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for each in readers:
            each.start()
        for number in range(15):
            writer.put_backfilled([tick(number)], (start + number // 5) * HOUR_NS)
            writer.flush()
        wait_for(lambda: not Layout(tmp_path).find()[1][:-1])
        done.set()
        for each in readers:
            each.join()
    assert seen
    assert all(found == list(range(len(found))) for found in seen)


def test_events_have_room_in_a_full_queue(tmp_path: Path, hanging: threading.Event) -> None:
    """Without them, the ledger could call time complete in which the stream was away."""
    with ArchiveWriter(tmp_path, on_problem=lambda _: None, queue_bytes=100_000) as writer:
        writer.put_event("state", {"state": "streaming"}, PAIR)
        with pytest.raises(TimeoutError):
            writer.flush(0.1)
        for number in range(3_000):
            writer.put_backfilled([tick(number)])
        writer.put_event("state", {"state": "reconnecting"}, PAIR)
        writer.put_backfilled([tick(-1)])
        hanging.set()
        writer.flush()
    assert [each.fields["state"] for each in events(tmp_path, "state")] == ["streaming", "reconnecting"]
    assert len(events(tmp_path, "gap")) == 2


@pytest.mark.parametrize("size", [1, 300, 999, 1_000, 1_001, 2_500])
@pytest.mark.parametrize("how", ["frames", "payloads", "backfilled"])
def test_a_block_has_a_thousand_entries_at_most(tmp_path: Path, size: int, how: str) -> None:
    """A crash costs one block."""
    rows = [tick(number) for number in range(3 * size)]
    messages = [
        json.dumps({"results": "streaming", "resultData": dict(zip(FIELDS, row, strict=True))}).encode() for row in rows
    ]
    with ArchiveWriter(tmp_path) as writer:
        for at in range(0, len(rows), size):
            part = messages[at : at + size]
            match how:
                case "frames":
                    writer.put_frames(time.time_ns(), b"".join(map(frame, part)))
                case "payloads":
                    writer.put_payloads(time.time_ns(), part)
                case _:
                    writer.put_backfilled(rows[at : at + size])
    blocks: list[Any] = []
    for hour in Layout(tmp_path).journals():
        with open(Layout(tmp_path).journal(hour), "rb") as file:
            blocks += read_blocks(file)
    assert max(block.entries for block in blocks) <= MAX_ENTRIES
    assert numbers(tmp_path) == list(range(3 * size))
