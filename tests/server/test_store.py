"""The tick store: order, limits, files, batches and survival of SIGKILL."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection, connect

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.server.recording import Recording
from finx_streamer.server.store import TapePart, TickStore, fields_of
from finx_streamer.server.ticks import day_start, exact_time
from tests.support.effort import examples
from tests.support.program import Program, program_command, program_environment, run_program

DAY = "2022-07-02"
START = exact_time(DAY, "00:00:00")
FIELDS = ("pair", "date", "time", "exchange", "price")


def tick(time: str, price: str = "1", pair: str = "BTC:USDC", exchange: str = "BINANCE", date: str = DAY) -> Any:
    return {"pair": pair, "date": date, "time": time, "exchange": exchange, "price": price}


def read(store: TickStore, pair: str = "BTC:USDC", **changes: Any) -> list[dict[str, str]]:
    """A day's ticks, except those at midnight."""
    query = {"day": DAY, "after": START, "exchange": None, "limit": 10**9} | changes
    return [json.loads(text) for text in store.history(pair, **query)]


@pytest.fixture
def store() -> Iterator[TickStore]:
    """A store in memory."""
    found = TickStore()
    with found.opened():
        yield found
    found.close()


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    """The path of a store file."""
    return tmp_path / "ticks.db"


def write(path: Path | None, ticks: list[Any], limit: int | None = None) -> TickStore:
    found = TickStore(path, limit)
    with found.opened():
        found.write([fields_of(each) for each in ticks])
    return found


TIMES = st.builds(
    "{:02}:{:02}:{:02}{}{}".format,
    st.sampled_from([0, 12, 23]),
    st.sampled_from([0, 30, 59]),
    st.integers(0, 60),
    st.one_of(
        st.just(""), st.from_regex(r"\.[05]{1,12}", fullmatch=True), st.from_regex(r"\.[0-9]{1,3}", fullmatch=True)
    ),
    st.sampled_from(["", "Z"]),
)
TICKS = st.lists(
    st.builds(
        tick,
        TIMES,
        st.sampled_from(["1", "9.2E-7", "21865.010000000002"]),
        st.sampled_from(["BTC:USDC", "ETH:USDC"]),
        st.one_of(st.sampled_from(["BINANCE", "COINBASE"]), st.text(min_size=1, max_size=3)),
        st.sampled_from([DAY, "2022-07-03", "2016-12-31", "0001-01-01", "9999-12-31"]),
    ),
    max_size=40,
)


def exact_decimal(tick: dict[str, str]) -> Decimal:
    """The time of a tick as a number, parsed independently."""
    hours, minutes, seconds = tick["time"].rstrip("Z").split(":")
    return Decimal(day_start(tick["date"]) + int(hours) * 3_600 + int(minutes) * 60) + Decimal(seconds)


@given(TICKS, TIMES, st.sampled_from([None, "BINANCE", "NONE"]), st.integers(1, 40))
@example([tick("23:59:60.5Z"), tick("00:00:00.2", date="2022-07-03")], "00:00:00", None, 5)
@example([tick("12:00:00.1"), tick("12:00:00.10Z"), tick("12:00:00.100")], "12:00:00", None, 2)
@example(
    [tick("12:00:00", exchange="\ud800"), tick("12:00:00", exchange='"\0\n\\'), tick("12:00:00")], "00:00", None, 9
)
@examples(150)
def test_history_and_snap_match_a_search_of_all_ticks(
    ticks: list[dict[str, str]], time: str, exchange: str | None, limit: int
) -> None:
    """For any ticks, times and exchanges, both return the same ticks as a linear search, unchanged and in order."""
    if time.count(":") == 1:
        time += ":00"
    with filled_store(ticks) as store:
        asked = exact_decimal(tick(time))
        mine = [each for each in ticks if each["pair"] == "BTC:USDC" and exchange in {None, each["exchange"]}]
        ordered = sorted(mine, key=exact_decimal)
        end = day_start(DAY) + 86_400
        expected = [each for each in ordered if asked < exact_decimal(each) < end][:limit]
        assert read(store, after=exact_time(DAY, time), exchange=exchange, limit=limit) == expected
        last = [each for each in ordered if exact_decimal(each) <= asked][-1:]
        found = store.snap("BTC:USDC", exact_time(DAY, time), exchange)
        assert ([] if found is None else [json.loads(found)]) == last


@contextlib.contextmanager
def filled_store(ticks: list[dict[str, str]]) -> Iterator[TickStore]:
    """A store in memory that has these ticks."""
    store = TickStore()
    with store.opened():
        assert store.write([fields_of(each) for each in ticks]) == len(ticks)
        yield store
    store.close()


def test_real_ticks_are_returned_unchanged(shared_data: Path) -> None:
    """Every recorded trade, equal ones included, is returned in order of time."""
    lines = [json.loads(line) for line in (shared_data / "tape-small.jsonl").read_text().splitlines()]
    odd = map(json.loads, (shared_data / "odd.jsonl").read_text().splitlines())
    lines += [each["line"] for each in odd if "line" in each]
    lines = [{field: line[field] for field in FIELDS} for line in lines]
    with filled_store(lines) as store:
        assert store.count == len(lines)
        for pair, day in {(line["pair"], line["date"]) for line in lines}:
            expected = sorted((x for x in lines if (x["pair"], x["date"]) == (pair, day)), key=exact_decimal)
            assert read(store, pair, day=day, after=exact_time(day, "00:00:00")) == expected


def test_history_is_a_range_of_an_index(store: TickStore) -> None:
    """History reads no other ticks and needs no sorting."""
    plan = store._database.execute(
        "EXPLAIN QUERY PLAN SELECT id, price FROM tick WHERE pair = 1 AND exchange = 2 "
        "AND (second, fraction) > (3, '5') AND second < 9 ORDER BY second, fraction, id LIMIT 1000"
    ).fetchall()
    assert [step[-1] for step in plan] == [
        "SEARCH tick USING INDEX tick_by_time (pair=? AND (second,fraction)>(?,?) AND second<?)"
    ]


def test_limit_removes_the_oldest_ticks() -> None:
    """Beyond its limit, a store removes the ticks stored first."""
    store = TickStore(None, 3)
    with store.opened():
        for number in range(9, 0, -1):
            store.write([fields_of(tick(f"12:00:0{number}", str(number)))])
        assert [each["price"] for each in read(store)] == ["1", "2", "3"]
        assert store.count == 3
        store.write([fields_of(tick("12:00:00", str(number))) for number in range(100)])
        assert [each["price"] for each in read(store)] == ["97", "98", "99"]
    store.close()


def test_skips_invalid_ticks(store: TickStore) -> None:
    """Invalid ticks of a custom source are skipped, and the rest of the batch is stored."""
    rows: list[Any] = [fields_of(tick("12:00:00"))]
    for place, value in itertools.product(range(5), ['1"', None, [], "", "\ud800", "25:00:00", 7]):
        row = list(rows[0])
        row[place] = value
        if place != 3 or value in (None, [], "", 7):
            rows.append(tuple(row))
    assert store.write(rows) == 1
    assert read(store) == [tick("12:00:00")]


def test_file_keeps_its_ticks(store_file: Path) -> None:
    """The next store on a file has its ticks and their number."""
    write(store_file, [tick("12:00:00", exchange="\ud800"), tick("12:00:01")])
    again = write(store_file, [tick("12:00:02", exchange="\ud800")])
    assert again.count == 3
    with again.opened():
        assert [each["exchange"] for each in read(again)] == ["\ud800", "BINANCE", "\ud800"]
        assert again.pairs == {"BTC:USDC"}
    assert os.listdir(store_file.parent) == [store_file.name]


def test_limit_of_a_file_applies_to_one_run(store_file: Path) -> None:
    """A limit removes ticks only while it is set."""
    write(store_file, [tick("12:00:00")] * 10)
    write(store_file, [tick("12:00:01")], limit=4)
    assert write(store_file, [tick("12:00:02")]).count == 5


def test_rejects_other_files(store_file: Path) -> None:
    """Another file is an error and isn't changed."""
    store_file.write_text("these are no ticks\n" * 100)
    with pytest.raises(ConfigurationError, match=r"ticks\.db is not an SQLite database; use another file"):
        write(store_file, [])
    assert store_file.read_text().startswith("these are no ticks")


def test_rejects_other_databases(store_file: Path) -> None:
    """Another program's database is an error and isn't changed."""
    other = sqlite3.connect(store_file)
    other.execute("CREATE TABLE tick (x)")
    other.commit()
    other.close()
    before = store_file.read_bytes()
    with pytest.raises(ConfigurationError, match="another program's database"):
        write(store_file, [])
    assert store_file.read_bytes() == before


def test_rejects_other_versions(store_file: Path) -> None:
    """A later schema version is an error."""
    write(store_file, [])
    other = sqlite3.connect(store_file)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(ConfigurationError, match="version 99; expected version 2"):
        write(store_file, [])


def test_inaccessible_path_is_an_os_error(tmp_path: Path) -> None:
    """The system's own error names the path."""
    with pytest.raises(IsADirectoryError):
        write(tmp_path, [])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write(tmp_path / "nowhere" / "ticks.db", [])


def test_file_in_use_is_an_error(store_file: Path) -> None:
    """A second server on a file is refused, in the same process or another, until the first one stops."""
    with LocalServer(SimulatedMarket(), store=store_file):
        # Both wait a second for SQLite's lock, so let them wait at the same time.
        with Program("server/open_store", store_file) as other:
            with pytest.raises(ConfigurationError, match="in use by another"):
                LocalServer(SimulatedMarket(), store=store_file)
            _, _, error = other.wait()
        assert "in use by another server or program" in error
    with LocalServer(SimulatedMarket(), store=store_file):
        pass


def test_file_taken_before_the_start(store_file: Path) -> None:
    """A start fails while the file is in use, and works later."""
    late = LocalServer(SimulatedMarket(), store=store_file)
    with LocalServer(SimulatedMarket(), store=store_file), pytest.raises(ConfigurationError, match="in use"):
        late.start()
    assert not late.running
    with late:
        assert late.running


@pytest.mark.parametrize("in_file", [False, True])
def test_store_persists_across_restarts(store_file: Path, in_file: bool) -> None:
    """Restarts lose no ticks, and imports work in every state."""
    server = LocalServer(Tape([tick("12:00:00")], speed=None, wait_for=0), store=store_file if in_file else None)
    assert server.import_ticks([tick("11:00:00")] * 2) == 2
    for run in range(1, 3):
        with server:
            assert server.import_ticks([tick("13:00:00")] * 3) == 3
            assert server.stats.ticks_stored == 2 + 3 * run
    assert server.import_ticks([tick("14:00:00")]) == 1
    assert server.stats.ticks_stored == 9
    if in_file:
        assert write(store_file, []).count == 9


def test_malformed_tape_is_not_imported(tmp_path: Path) -> None:
    """Nothing is imported, and the error names the line."""
    tape = tmp_path / "tape.jsonl"
    tape.write_text(f"{json.dumps(tick('12:00:00'))}\n" * 3 + "nonsense\n")
    with LocalServer(SimulatedMarket(limit=0)) as server:
        with pytest.raises(ConfigurationError, match="line 4"):
            server.import_ticks(tape)
        with pytest.raises(ConfigurationError, match="tick 2"):
            server.import_ticks([tick("12:00:00"), {}])
        assert server.stats.ticks_stored == 0


def test_limit_zero_stores_nothing(dial: Callable[..., ClientConnection]) -> None:
    """With a limit of 0, the market plays as usual."""
    with LocalServer(Tape([tick("12:00:00")] * 500, speed=None), store_limit=0) as server:
        peer = dial(server)
        server.wait_finished()
        assert len([peer.recv(timeout=20) for _ in range(500)]) == 500
        assert server.import_ticks([tick("12:00:00")]) == 0
        assert (server.stats.ticks_played, server.stats.ticks_stored) == (500, 0)


@pytest.mark.parametrize("batch", [1, 2, 3, 100, 8_192])
def test_every_batch_size_stores_all_ticks(dial: Callable[..., ClientConnection], batch: int) -> None:
    """Small batches neither stop the market nor lose ticks."""
    ticks = [tick("12:00:00", str(number)) for number in range(1_500)]
    with LocalServer(Tape(ticks, speed=None), store_batch=batch) as server:
        peer = dial(server)
        assert [json.loads(peer.recv(timeout=20))["resultData"] for _ in ticks] == ticks
        server.wait_until(lambda stats: stats.ticks_stored == 1_500)


def test_paced_market_waits_for_the_store(dial: Callable[..., ClientConnection]) -> None:
    """A market that outpaces the store runs late and loses nothing."""
    with LocalServer(SimulatedMarket(rate=1e9, limit=3_000), store_batch=16) as server:
        server.wait_finished()
        server.wait_until(lambda stats: stats.ticks_stored == 3_000)


def test_incomplete_batch_is_stored_in_time(dial: Callable[..., ClientConnection]) -> None:
    """A batch that isn't full is written after `store_batch_seconds`."""
    with LocalServer(Tape([tick("12:00:00")], speed=None), store_batch_seconds=0.01) as server:
        dial(server)
        server.wait_until(lambda stats: stats.ticks_stored == 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"store_batch": 0},
        {"store_batch": 1.5},
        {"store_batch": None},
        {"store_batch_seconds": 0},
        {"store_batch_seconds": None},
        {"store_limit": -1},
    ],
)
def test_rejects_invalid_settings(arguments: dict[str, Any]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        LocalServer(SimulatedMarket(), **arguments)


def test_failing_store_is_reported(
    store_file: Path, dial: Callable[..., ClientConnection], receive: Callable[..., list[Any]]
) -> None:
    """If the disk is full, functions and imports report it, and streams continue."""
    with LocalServer(SimulatedMarket(rate=500.0), store=store_file) as server:
        # SQLite can limit the size of a database.
        with server._state.recorder.store._lock:
            server._state.recorder.store._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(OSError, match=r"the tick store failed: .*full"):
            server.import_ticks([tick("12:00:00")] * 10_000)
        peer = dial(server, "streamer/k")
        peer.send('{"functionName":"referenceData","APIKey":"k","securityId":"BTC"}')
        assert "the tick store failed" in receive(peer)[0]["error"]
        assert "resultData" in receive(dial(server))[0]


@given(st.lists(st.tuples(st.integers(1, 700), st.integers(0, 4), st.sampled_from("ABC")), max_size=8))
@examples(50)
def test_counts_are_right_after_failures(batches: list[tuple[int, int, str]]) -> None:
    """A full database rolls back by itself. The store then counts and knows what the database has."""
    store = TickStore()
    with store.opened():
        for count, room, name in batches:
            (pages,) = store._database.execute("PRAGMA page_count").fetchone()
            store._database.execute(f"PRAGMA max_page_count = {pages + room}")
            rows = [fields_of(tick("12:00:00", str(n), f"{name}:USDC", f"{name}{n % 9}")) for n in range(count)]
            with contextlib.suppress(sqlite3.OperationalError):
                store.write(rows)
            names = {name for (name,) in store._database.execute("SELECT name FROM pair")}
            (stored,) = store._database.execute("SELECT count(*) FROM tick").fetchone()
            assert (store.count, store.pairs) == (stored, names)
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_counts_are_right_after_a_failed_commit(store_file: Path) -> None:
    """SQLite has rolled it back already."""
    assert run_program("server/failing_commit", store_file).stdout == "500 500 BTC:USDC\n"


def in_tmpfs(folder: Path, options: str, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program with a file system in memory mounted at a folder, or skip the test if that isn't allowed."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("needs a user namespace")
    script = 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"'
    command = [*namespace, "sh", "-c", script, options, str(folder), *program_command(program, *arguments)]
    return subprocess.run(command, env=program_environment(), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
@pytest.mark.parametrize("how", ["limit", "full"])
def test_a_store_works_again_after_a_failure(tmp_path: Path, how: str) -> None:
    """While the disk is full, streams go on. When there is room, the ticks played meanwhile are stored, too."""
    program = "server/failing_store"
    if how == "full":
        ended = in_tmpfs(tmp_path, "size=2m", program, how, tmp_path)
    else:
        ended = run_program(program, how, tmp_path)
    assert ended.returncode == 0, ended.stderr
    error, counts = ended.stdout.splitlines()
    assert re.match("the tick store failed: (database or disk is full|disk I/O error)", error)
    played, *stored = map(int, counts.split())
    assert stored == [played] * 3


def test_names_a_read_only_file_system(tmp_path: Path) -> None:
    """The error isn't about permissions."""
    store = tmp_path / "ticks.db"
    ended = in_tmpfs(tmp_path, "ro", "server/open_store", store)
    assert ended.stderr.splitlines()[-1] == f"OSError: [Errno 30] Read-only file system: '{store}'"


def test_ticks_beyond_the_room_in_memory_are_lost(store_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says how many, when the store works again."""
    server = LocalServer(SimulatedMarket(limit=0, pairs=["BTC:USDC"]), store=store_file, store_batch=10)
    with server:
        database = server._state.recorder.store._database
        server.emit(tick("11:00:00"))
        server.wait_until(lambda stats: stats.ticks_stored == 1)
        with server._state.recorder.store._lock:
            database.execute("PRAGMA query_only = 1")
        for n in range(40):
            server.emit(tick("12:00:00", str(n)))
        server.wait_until(lambda stats: stats.store_error is not None)
        with server._state.recorder.store._lock:
            database.execute("PRAGMA query_only = 0")
        server.wait_until(lambda stats: stats.store_error is None)
    (works,) = [text for text in caplog.messages if "works again" in text]
    assert works.endswith("; 30 ticks were lost")
    assert [text for text in caplog.messages if "failed" in text] == [
        "the tick store failed: attempt to write a readonly database. It is tried again every 1 s; streams continue"
    ]
    assert server.stats.ticks_stored == 11
    store = write(store_file, [])
    with store.opened():
        assert prices(store) == [1, *range(10)]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_deleted_or_replaced_file_is_reported(store_file: Path, tmp_path: Path, replaced: bool) -> None:
    """The server says so, and continues with the file that is there, or with a new one."""
    other = tmp_path / "other.db"
    write(other, MANY)
    with LocalServer(SimulatedMarket(["BTC:USDC"], rate=500.0, seed=1), store=store_file) as server:
        server.wait_until(lambda stats: stats.ticks_stored > 100)
        if replaced:
            other.replace(store_file)
        else:
            store_file.unlink()
        failed = server.wait_until(lambda stats: stats.store_error is not None)
        server.wait_until(lambda stats: stats.store_error is None)
        server.wait_until(lambda stats: stats.ticks_stored > 300 * replaced)
    kind = "replaced" if replaced else "deleted"
    assert failed.store_error == f"the tick store failed: the file {store_file} was {kind}"
    store = write(store_file, [])
    with store.opened():
        assert store.count == server.stats.ticks_stored
        assert prices(store) == list(range(300)) * replaced
        assert store._database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_idle_store_notices_that_its_file_was_deleted(store_file: Path) -> None:
    """Without a tick to store, too."""
    with LocalServer(SimulatedMarket(limit=0), store=store_file) as server:
        store_file.unlink()
        server.wait_until(lambda stats: stats.store_error is not None)
        server.wait_until(lambda stats: stats.store_error is None)
        assert store_file.exists()


MANY = [tick(f"12:{n // 60:02}:{n % 60:02}.5Z", str(n)) for n in range(300)]


def prices(store: TickStore) -> list[int]:
    return [int(each["price"]) for each in read(store)]


def write_tape(path: Path, ticks: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in ticks))
    return path


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), max_size=6), st.booleans())
@examples(100)
def test_a_tape_is_stored_once(runs: list[tuple[int, int]], emit: bool) -> None:
    """However often it begins again and wherever a run ends, each of its ticks is stored once. Other ticks are, too."""
    recording, farthest = Recording(MANY[:40]), 0
    store = TickStore()
    with store.opened():
        for length, size in runs:
            for start in range(0, length, 40):  # the rounds of a loop
                end = min(40, length - start)
                for first in range(0, end, size):
                    rows = [fields_of(each) for each in MANY[first : min(end, first + size)]]
                    store.write(rows, TapePart(recording.digest, 40, first))
                    store.write([fields_of(tick("11:00:00", "1000"))] * emit)
                farthest = max(farthest, end)
            assert store.find_tape(recording) == farthest
            assert [price for price in prices(store) if price != 1_000] == list(range(farthest))
    store.close()


@pytest.mark.parametrize("in_file", [False, True])
def test_a_restarted_server_does_not_store_its_tape_again(
    store_file: Path, tmp_path: Path, dial: Callable[..., ClientConnection], in_file: bool
) -> None:
    """It stores the ticks that weren't played before it stopped, whether they are in a file or in memory."""
    ticks: Any = write_tape(tmp_path / "tape.jsonl", MANY) if in_file else MANY
    with LocalServer(Tape(ticks, speed=1_000.0, max_pause=0.002), store=store_file) as server:
        peer = dial(server)
        for _ in range(120):
            peer.recv(timeout=20)
    assert 120 <= write(store_file, []).count < 300
    for _ in range(2):
        with LocalServer(Tape(ticks, speed=1e9, wait_for=0), store=store_file) as server:
            server.wait_finished()
            assert server.stats.ticks_played == 300
    store = write(store_file, [])
    with store.opened():
        assert prices(store) == list(range(300))


def test_a_loop_is_stored_once(dial: Callable[..., ClientConnection]) -> None:
    """Its later rounds repeat the same ticks. Other ticks are stored in between."""
    with LocalServer(Tape(MANY[:7], speed=None, loop=True), close_timeout=0.1) as server:
        peer = dial(server)
        server.emit(tick("11:00:00"), tick("11:00:00"))
        for _ in range(100):
            peer.recv(timeout=20)
        server.wait_until(lambda stats: stats.ticks_stored == 9)
        server.emit(tick("11:00:00"))
        server.wait_until(lambda stats: stats.ticks_stored == 10)
    assert server.stats.ticks_stored == 10


def test_shifted_ticks_are_new_each_time(store_file: Path) -> None:
    """Their times are those of sending."""
    for run in range(1, 3):
        with LocalServer(Tape(MANY[:7], speed=1e9, wait_for=0, shift=True), store=store_file) as server:
            server.wait_finished()
        assert server.stats.ticks_stored == 7 * run


def test_a_tape_that_was_removed_is_stored_again(store_file: Path) -> None:
    """With a limit, what the store has of a tape depends on what came later."""
    for _ in range(2):
        with LocalServer(Tape(MANY, speed=1e9, wait_for=0), store=store_file, store_limit=100) as server:
            server.wait_finished()
        store = write(store_file, [], limit=100)
        with store.opened():
            assert prices(store) == list(range(200, 300))


def test_a_file_is_imported_once(store_file: Path, tmp_path: Path) -> None:
    """Its ticks count, not its name, format or compression. Ticks that aren't in a file are always stored."""
    tape = write_tape(tmp_path / "tape.jsonl", MANY[:200])
    rows = [",".join(each.values()) for each in MANY[:200]]
    (tmp_path / "other").write_bytes(gzip.compress("\n".join([",".join(FIELDS), *rows, ""]).encode()))
    for expected in (200, 0):
        server = LocalServer(SimulatedMarket(limit=0), store=store_file)
        assert [server.import_ticks(tape), server.import_ticks(tmp_path / "other")] == [expected, 0]
        with server:
            assert server.import_ticks(str(tape)) == 0
    write_tape(tape, MANY)  # 100 ticks were added
    assert [server.import_ticks(tape), server.import_ticks(tape)] == [100, 0]
    with LocalServer(Tape(tape, speed=1e9, wait_for=0), store=store_file) as server:
        server.wait_finished()
    assert server.stats.ticks_stored == 300
    assert [server.import_ticks(MANY), server.import_ticks(MANY)] == [300, 300]


def test_an_interrupted_import_continues(store_file: Path, tmp_path: Path) -> None:
    """Each transaction notes how far it came."""
    recording = Recording(write_tape(tmp_path / "tape.jsonl", MANY))
    store = TickStore(store_file)
    with store.opened():
        store.write([fields_of(each) for each in MANY[:120]], TapePart(recording.digest, 300, 0))
    server = LocalServer(SimulatedMarket(limit=0), store=store_file)
    assert server.import_ticks(recording) == 180
    with store.opened():
        assert prices(store) == list(range(300))


def test_opens_a_store_of_the_first_version(store_file: Path, tmp_path: Path) -> None:
    """It lacks the table of tapes."""
    write(store_file, MANY[:3])
    old = sqlite3.connect(store_file)
    old.execute("DROP TABLE tape")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    server = LocalServer(SimulatedMarket(limit=0), store=store_file)
    tape = write_tape(tmp_path / "tape.jsonl", MANY)
    assert [server.import_ticks(tape), server.import_ticks(tape), server.stats.ticks_stored] == [300, 0, 303]


@pytest.mark.parametrize("batch", [256, 1_000, 8_192, 20_000])
def test_killed_server_loses_at_most_one_batch(store_file: Path, batch: int) -> None:
    """After SIGKILL during a burst, the file has all ticks a client received except the last batch."""
    received: list[Any] = []
    with Program("server/serve_unpaced", store_file, batch, batch) as server:
        url = server.read_line()
        with connect(f"{url}streaming/k/BTC:USDC", proxy=None, compression=None) as peer:
            while len(received) < batch + 10_000:
                received.append(json.loads(peer.recv(timeout=20))["resultData"])
            server.process.kill()
            received += receive_rest(peer)
    store = write(store_file, [])
    days = sorted({each["date"] for each in received})
    with store.opened():
        found = [each for day in days for each in read(store, day=day, after=(day_start(day), ""))]
    stored = Counter(map(fields_of, found))
    assert stored.total() == store.count
    assert not Counter(map(fields_of, received[:-batch])) - stored


def receive_rest(peer: ClientConnection) -> list[Any]:
    """Receive what still arrives after the server's death."""
    rest: list[Any] = []
    try:
        while True:
            rest.append(json.loads(peer.recv(timeout=5))["resultData"])
    except Exception:
        return rest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_store_alone(store_file: Path) -> None:
    """It exits without waiting for the parent's lock and without closing the parent's database."""
    ended = run_program("server/fork_with_store", store_file, options=["-W", "ignore::DeprecationWarning"])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_discarded_servers_leave_nothing() -> None:
    """A discarded server leaves no open database, thread or extra file."""
    with tempfile.TemporaryDirectory() as folder:
        process = run_program("server/discard_servers", f"{folder}/ticks.db", options=["-X", "dev"])
        assert (process.returncode, process.stderr) == (0, "")
        assert os.listdir(folder) == ["ticks.db"]
