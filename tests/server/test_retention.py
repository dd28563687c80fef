"""The bounds of the tick store by age and by size."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.server.contracts import ContractTicker, parse_played
from finx_streamer.server.retention import STEP, Retention, used_bytes
from finx_streamer.server.store import TickStore
from tests.support.contracts import ticker

BEGIN = 1_800_000_000
AGE = 1_000


def rows(first: int, count: int) -> list[Any]:
    """Ticks with consecutive numbers as their prices. Their own times have nothing to do with when they are stored."""
    return [
        ("BTC:USDC", "2022-07-02", f"12:{n * 7 % 60:02}:{n * 13 % 60:02}Z", "BINANCE", str(n))
        for n in range(first, first + count)
    ]


def prices(store: TickStore) -> list[int]:
    """The numbers of the ticks in a store, in the order in which they were stored."""
    return [int(price) for (price,) in store._database.execute("SELECT price FROM tick ORDER BY id")]


def tickers(first: int, count: int) -> list[ContractTicker]:
    """Tickers of one contract, one per five minutes."""
    played = parse_played(ticker())
    assert isinstance(played, ContractTicker)
    return [played.at(BEGIN + number * 300) for number in range(first, first + count)]


def count_tickers(store: TickStore) -> int:
    return int(store._database.execute("SELECT count(*) FROM ticker").fetchone()[0])


def remove_all(store: TickStore) -> int:
    """Remove everything beyond the bounds. Returns the number of steps."""
    steps = 0
    while store.remove_excess():
        steps += 1
    return steps


@contextlib.contextmanager
def opened(path: Path | None = None, **bounds: Any) -> Iterator[TickStore]:
    store = TickStore(path, None, Retention(**bounds))
    with store.opened():
        yield store
    store.close()


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 5), st.booleans()), max_size=12))
@example([(0, 1, False), (1_002, 1, False)])
@example([(0, 3, False), (1_500, 0, True), (0, 2, False), (1_500, 0, False)])
def test_ticks_are_kept_for_their_age(events: list[tuple[int, int, bool]]) -> None:
    """For any pauses, batches and restarts: none is removed too early, and each one at most two seconds late.

    Only the newest one stays.
    """
    with tempfile.TemporaryDirectory() as folder, time_machine.travel(BEGIN, tick=False) as clock:
        path = Path(folder) / "ticks.db"
        stored: list[int] = []
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(opened(path, age=AGE))
            for pause, count, restarts in events:
                clock.shift(pause)
                if count:
                    store.write(rows(len(stored), count))
                    stored += [int(time.time())] * count
                if restarts:
                    stack.close()
                    store = stack.enter_context(opened(path, age=AGE))
                remove_all(store)
                kept = prices(store)
                now = int(time.time())
                young = [n for n, when in enumerate(stored) if now - when < AGE]
                old = [n for n, when in enumerate(stored[:-1]) if now - when > AGE + 2]
                assert kept == list(range(len(stored)))[len(stored) - len(kept) :]
                assert set(young) <= set(kept)
                assert not set(old) & set(kept)
                assert store.count == len(kept)


def test_times_of_ticks_do_not_matter(tmp_path: Path) -> None:
    """A tick from the future doesn't keep those after it, and one from the past isn't removed at once."""
    with time_machine.travel(BEGIN, tick=False) as clock, opened(tmp_path / "ticks.db", age=AGE) as store:
        store.write([("BTC:USDC", "9999-12-31", "12:00:00Z", "BINANCE", "0")])
        store.write([("BTC:USDC", "0001-01-01", "12:00:00Z", "BINANCE", "1")])
        assert remove_all(store) == 0
        clock.shift(AGE + 2)
        store.write(rows(2, 1))
        remove_all(store)
        assert prices(store) == [2]


def test_ticks_of_a_run_without_a_bound_count_from_the_first_run_with_one(tmp_path: Path) -> None:
    """The store doesn't know when they were stored."""
    path = tmp_path / "ticks.db"
    with time_machine.travel(BEGIN, tick=False) as clock:
        with opened(path) as store:
            store.write(rows(0, 5))
            store.write([], tickers=tickers(0, 5))
        clock.shift(10 * AGE)
        with opened(path, age=timedelta(seconds=AGE)) as store:
            assert (remove_all(store), store.count, count_tickers(store)) == (0, 5, 5)
            clock.shift(AGE + 2)
            assert (remove_all(store), store.count, count_tickers(store)) == (1, 1, 1)


def test_contract_tickers_have_the_same_age(tmp_path: Path) -> None:
    """With or without ticks among them. The newest one stays."""
    with time_machine.travel(BEGIN, tick=False) as clock, opened(tmp_path / "ticks.db", age=AGE) as store:
        store.write([], tickers=tickers(0, 10))
        clock.shift(AGE / 2)
        store.write(rows(0, 3), tickers=tickers(10, 10))
        clock.shift(AGE / 2 + 2)
        remove_all(store)
        assert (count_tickers(store), prices(store)) == (10, [0, 1, 2])
        clock.shift(AGE)
        remove_all(store)
        assert (count_tickers(store), prices(store)) == (1, [2])


def test_no_id_is_assigned_twice(tmp_path: Path) -> None:
    """Also after everything has been removed that can be, and the file was opened again."""
    path = tmp_path / "ticks.db"
    with time_machine.travel(BEGIN, tick=False) as clock:
        for run in range(3):
            with opened(path, age=AGE) as store:
                store.write(rows(10 * run, 10), tickers=tickers(10 * run, 10))
                clock.shift(AGE + 2)
                remove_all(store)
                ids = store._database.execute("SELECT (SELECT max(id) FROM tick), (SELECT max(id) FROM ticker)")
                assert ids.fetchall() == [(10 * run + 10,) * 2]
                assert (store.count, prices(store)) == (1, [10 * run + 9])


def test_a_step_is_small(tmp_path: Path) -> None:
    """However much there is to remove, queries wait for one step at most."""
    with time_machine.travel(BEGIN, tick=False) as clock, opened(tmp_path / "ticks.db", age=AGE) as store:
        store.write(rows(0, 3 * STEP), tickers=tickers(0, STEP))
        clock.shift(AGE + 2)
        before = store.count, count_tickers(store)
        while store.remove_excess():
            after = store.count, count_tickers(store)
            assert before[0] - after[0] <= STEP
            assert before[1] - after[1] <= STEP // 10
            before = after
        assert before == (1, 1)


def test_old_notes_are_removed(tmp_path: Path) -> None:
    """There are about a thousand per age, however long the server runs."""
    with time_machine.travel(BEGIN, tick=False) as clock, opened(tmp_path / "ticks.db", age=AGE) as store:
        for number in range(3_000):
            clock.shift(1)
            store.write(rows(number, 1))
        remove_all(store)
        (notes,) = store._database.execute("SELECT count(*) FROM stored_by").fetchone()
        assert AGE - 1 <= notes <= AGE + 2
        assert AGE - 1 <= store.count <= AGE + 2


@pytest.mark.parametrize("in_file", [True, False])
def test_size(tmp_path: Path, in_file: bool) -> None:
    """The oldest ticks and tickers are removed, and their pages are used again. The file doesn't grow beyond that."""
    path = tmp_path / "ticks.db" if in_file else None
    size = 1_500_000
    with opened(path, size=size) as store:
        for number in range(100):
            store.write(rows(number * 500, 500), tickers=tickers(number * 10, 10))
            remove_all(store)
            assert used_bytes(store._database) <= size
        kept = prices(store)
        assert kept == list(range(50_000))[-len(kept) :]
        assert 5_000 < len(kept) < 30_000
        assert 1 < count_tickers(store) < 1_000
        assert store._database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    if path is not None:
        assert path.stat().st_size <= 1.2 * size


def test_a_smaller_size_applies_to_an_existing_file(tmp_path: Path) -> None:
    """In steps, until it is small enough. The newest ticks stay."""
    path = tmp_path / "ticks.db"
    with opened(path) as store:
        for number in range(20):
            store.write(rows(number * 1_000, 1_000))
    with opened(path, size=1_000_000) as store:
        assert remove_all(store) >= 3
        assert used_bytes(store._database) <= 1_000_000
        kept = prices(store)
        assert kept == list(range(20_000))[-len(kept) :]
        assert len(kept) > STEP


def test_a_quiet_server_removes_ticks(tmp_path: Path) -> None:
    """Nothing has to be stored for that. Tick history forgets them."""
    path = tmp_path / "ticks.db"
    with LocalServer(SimulatedMarket(["BTC:USDC"], limit=0), store=path, store_age=timedelta(seconds=1)) as server:
        server.emit(*(dict(zip(("pair", "date", "time", "exchange", "price"), row, strict=True)) for row in rows(0, 9)))
        server.wait_until(lambda stats: stats.ticks_stored == 9)
        server.wait_until(lambda stats: stats.ticks_stored == 1)


def test_a_busy_server_stays_within_its_size(tmp_path: Path) -> None:
    """The file is bounded while the market plays, and so is what it uses beside it."""
    path = tmp_path / "ticks.db"
    market = SimulatedMarket(["BTC:USDC"], rate=20_000.0, limit=60_000, seed=1)
    with LocalServer(market, store=path, store_bytes=1_000_000) as server:
        server.wait_until(lambda stats: stats.finished and 5_000 < stats.ticks_stored < 15_000, 30)
        sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert server.stats.store_error is None
    assert sum(sizes) < 8_000_000
    assert path.stat().st_size < 1_500_000
    with contextlib.closing(sqlite3.connect(path)) as database:
        (last,) = database.execute("SELECT max(id) FROM tick").fetchone()
    assert last == 60_000
