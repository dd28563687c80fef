"""The tick store: what goes in comes out, in order of time, from files that can be trusted and killed."""

from __future__ import annotations

import itertools
import json
import os
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
from finx_streamer.server.store import TickStore, fields_of
from finx_streamer.server.ticks import midnight, moment
from tests.support.effort import examples

DAY = "2022-07-02"
START = moment(DAY, "00:00:00")
FIELDS = ("pair", "date", "time", "exchange", "price")


def tick(time: str, price: str = "1", pair: str = "BTC:USDC", exchange: str = "BINANCE", date: str = DAY) -> Any:
    return {"pair": pair, "date": date, "time": time, "exchange": exchange, "price": price}


def read(store: TickStore, pair: str = "BTC:USDC", **narrowed: Any) -> list[dict[str, str]]:
    """A day's ticks, less those of its very first moment, which cannot be asked for."""
    asked = {"day": DAY, "after": START, "exchange": None, "most": 10**9} | narrowed
    return [json.loads(text) for text in store.history(pair, **asked)]


@pytest.fixture
def store() -> Iterator[TickStore]:
    """A store in memory."""
    found = TickStore()
    with found.opened():
        yield found
    found.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "ticks.db"


def kept(path: Path | None, ticks: list[Any], limit: int | None = None) -> TickStore:
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


def exact(time: dict[str, str]) -> Decimal:
    """A tick's time as a number, by a way of its own."""
    hours, minutes, seconds = time["time"].rstrip("Z").split(":")
    return Decimal(midnight(time["date"]) + int(hours) * 3_600 + int(minutes) * 60) + Decimal(seconds)


@given(TICKS, TIMES, st.sampled_from([None, "BINANCE", "NONE"]), st.integers(1, 40))
@example([tick("23:59:60.5Z"), tick("00:00:00.2", date="2022-07-03")], "00:00:00", None, 5)
@example([tick("12:00:00.1"), tick("12:00:00.10Z"), tick("12:00:00.100")], "12:00:00", None, 2)
@example(
    [tick("12:00:00", exchange="\ud800"), tick("12:00:00", exchange='"\0\n\\'), tick("12:00:00")], "00:00", None, 9
)
@examples(150)
def test_history_and_snap_are_what_a_search_of_all_ticks_finds(
    ticks: list[dict[str, str]], time: str, exchange: str | None, most: int
) -> None:
    """For any ticks, times and networks: the same ticks, byte for byte, in order of exact time and then of arrival."""
    if time.count(":") == 1:
        time += ":00"
    with LocalStore(ticks) as store:
        asked = exact(tick(time))
        mine = [each for each in ticks if each["pair"] == "BTC:USDC" and exchange in {None, each["exchange"]}]
        ordered = sorted(mine, key=exact)
        end = midnight(DAY) + 86_400
        expected = [each for each in ordered if asked < exact(each) < end][:most]
        assert expected == read(store, after=moment(DAY, time), exchange=exchange, most=most)
        last = [each for each in ordered if exact(each) <= asked][-1:]
        found = store.snap("BTC:USDC", moment(DAY, time), exchange)
        assert last == ([] if found is None else [json.loads(found)])


class LocalStore:
    """A store in memory that holds some ticks."""

    def __init__(self, ticks: list[dict[str, str]]) -> None:
        self._ticks = ticks
        self._store = TickStore()

    def __enter__(self) -> TickStore:
        with self._store.opened():
            assert len(self._ticks) == self._store.write([fields_of(each) for each in self._ticks])
        self._users = self._store.opened()
        self._users.__enter__()
        return self._store

    def __exit__(self, *error: object) -> None:
        self._users.__exit__(None, None, None)
        self._store.close()


def test_real_ticks_come_back_byte_for_byte(data: Path) -> None:
    """Every recorded trade, equal ones included, is there again: as many times, and in the order of time."""
    lines = [json.loads(line) for line in (data / "tape-small.jsonl").read_text().splitlines()]
    odd = map(json.loads, (data / "odd.jsonl").read_text().splitlines())
    lines += [each["line"] for each in odd if "line" in each]
    lines = [{field: line[field] for field in FIELDS} for line in lines]
    with LocalStore(lines) as store:
        assert len(lines) == store.held
        for pair, day in {(line["pair"], line["date"]) for line in lines}:
            expected = sorted((x for x in lines if (x["pair"], x["date"]) == (pair, day)), key=exact)
            assert expected == read(store, pair, day=day, after=moment(day, "00:00:00"))


def test_a_days_history_is_a_range_of_an_index(store: TickStore) -> None:
    """The ticks of others are not looked at, and nothing is sorted."""
    plan = store._database.execute(
        "EXPLAIN QUERY PLAN SELECT id, price FROM tick WHERE pair = 1 AND exchange = 2 "
        "AND (second, fraction) > (3, '5') AND second < 9 ORDER BY second, fraction, id LIMIT 1000"
    ).fetchall()
    assert [step[-1] for step in plan] == [
        "SEARCH tick USING INDEX tick_by_time (pair=? AND (second,fraction)>(?,?) AND second<?)"
    ]


def test_the_oldest_go_first() -> None:
    """Beyond its limit a store forgets what it was given first, whatever its time."""
    store = TickStore(None, 3)
    with store.opened():
        for number in range(9, 0, -1):
            store.write([fields_of(tick(f"12:00:0{number}", str(number)))])
        assert [each["price"] for each in read(store)] == ["1", "2", "3"]
        assert store.held == 3
        store.write([fields_of(tick("12:00:00", str(number))) for number in range(100)])
        assert [each["price"] for each in read(store)] == ["97", "98", "99"]
    store.close()


def test_what_is_no_tick_is_left_out(store: TickStore) -> None:
    """A source of one's own may play anything; the rest of its batch is stored."""
    rows: list[Any] = [fields_of(tick("12:00:00"))]
    for place, value in itertools.product(range(5), ['1"', None, [], "", "\ud800", "25:00:00", 7]):
        row = list(rows[0])
        row[place] = value
        if place != 3 or value in (None, [], "", 7):
            rows.append(tuple(row))
    assert store.write(rows) == 1
    assert [tick("12:00:00")] == read(store)


def test_a_file_is_there_again(file: Path) -> None:
    """What was stored, and how many there are, is known to who opens the file next."""
    kept(file, [tick("12:00:00", exchange="\ud800"), tick("12:00:01")])
    again = kept(file, [tick("12:00:02", exchange="\ud800")])
    assert again.held == 3
    with again.opened():
        assert [each["exchange"] for each in read(again)] == ["\ud800", "BINANCE", "\ud800"]
        assert {"BTC:USDC"} == again.pairs
    assert [file.name] == os.listdir(file.parent)


def test_a_limit_holds_for_a_file_only_if_asked(file: Path) -> None:
    """The second user asks for less, and the third sees it."""
    kept(file, [tick("12:00:00")] * 10)
    kept(file, [tick("12:00:01")], limit=4)
    assert kept(file, [tick("12:00:02")]).held == 5


def test_a_file_that_is_no_database(file: Path) -> None:
    """Somebody's text is left alone."""
    file.write_text("these are no ticks\n" * 100)
    with pytest.raises(ConfigurationError, match=r"ticks\.db is no SQLite database; use another file"):
        kept(file, [])
    assert file.read_text().startswith("these are no ticks")


def test_a_database_of_something_else(file: Path) -> None:
    """Nothing is added to a database that is not ours."""
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE tick (x)")
    other.commit()
    other.close()
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="a database of something else"):
        kept(file, [])
    assert before == file.read_bytes()


def test_a_database_of_another_version(file: Path) -> None:
    """A later schema is not guessed at."""
    kept(file, [])
    other = sqlite3.connect(file)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(ConfigurationError, match="version 99, and this is version 1"):
        kept(file, [])


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    """What the system refuses is its own error, and names the file."""
    with pytest.raises(IsADirectoryError):
        kept(tmp_path, [])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        kept(tmp_path / "nowhere" / "ticks.db", [])


def test_a_file_has_one_user(file: Path) -> None:
    """A second server is refused while the first one runs, within a process and beyond; and not any more afterwards."""
    code = (
        "import sys; from finx_streamer.server import LocalServer, SimulatedMarket; "
        "LocalServer(SimulatedMarket(), store=sys.argv[1])"
    )
    with LocalServer(SimulatedMarket(), store=file):
        with pytest.raises(ConfigurationError, match="in use by another"):
            LocalServer(SimulatedMarket(), store=file)
        other = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60)
        assert "in use by another server or program" in other.stderr
    with LocalServer(SimulatedMarket(), store=file):
        pass


def test_a_file_taken_between_making_and_starting(file: Path) -> None:
    """A start that finds the file in use is refused, and works when it is free."""
    late = LocalServer(SimulatedMarket(), store=file)
    with LocalServer(SimulatedMarket(), store=file), pytest.raises(ConfigurationError, match="in use"):
        late.start()
    assert not late.running
    with late:
        assert late.running


@pytest.mark.parametrize("in_file", [False, True])
def test_the_store_lives_as_long_as_the_server_object(file: Path, in_file: bool) -> None:
    """Over stop and start nothing is forgotten, and imports are possible in all states."""
    server = LocalServer(Tape([tick("12:00:00")], speed=None, wait_for=0), store=file if in_file else None)
    assert server.import_ticks([tick("11:00:00")] * 2) == 2
    for life in range(1, 3):
        with server:
            assert server.import_ticks([tick("13:00:00")] * 3) == 3
            assert 2 + 3 * life == server.stats.ticks_stored
    assert server.import_ticks([tick("14:00:00")]) == 1
    assert server.stats.ticks_stored == 9
    if in_file:
        assert kept(file, []).held == 9


def test_a_tape_with_a_mistake_is_not_imported(tmp_path: Path) -> None:
    """It is all or nothing, and the line is named."""
    tape = tmp_path / "tape.jsonl"
    tape.write_text(f"{json.dumps(tick('12:00:00'))}\n" * 3 + "nonsense\n")
    with LocalServer(SimulatedMarket()) as server:
        played = server.stats.ticks_stored
        with pytest.raises(ConfigurationError, match="line 4"):
            server.import_ticks(tape)
        with pytest.raises(ConfigurationError, match="tick 2"):
            server.import_ticks([tick("12:00:00"), {}])
    assert not played


def test_a_limit_of_none_stores_nothing(dial: Callable[..., ClientConnection]) -> None:
    """With 0 the market plays as ever, and an import is of no use."""
    with LocalServer(Tape([tick("12:00:00")] * 500, speed=None), store_limit=0) as server:
        peer = dial(server)
        server.wait_finished()
        assert len([peer.recv(timeout=20) for _ in range(500)]) == 500
        assert server.import_ticks([tick("12:00:00")]) == 0
        assert (server.stats.ticks_played, server.stats.ticks_stored) == (500, 0)


@pytest.mark.parametrize("batch", [1, 2, 3, 100, 8_192])
def test_every_batch_size_stores_everything(dial: Callable[..., ClientConnection], batch: int) -> None:
    """However short the batch, the market goes on, and the ticks are there."""
    ticks = [tick("12:00:00", str(number)) for number in range(1_500)]
    with LocalServer(Tape(ticks, speed=None), store_batch=batch) as server:
        peer = dial(server)
        assert ticks == [json.loads(peer.recv(timeout=20))["resultData"] for _ in ticks]
        server.wait_until(lambda stats: stats.ticks_stored == 1_500)


def test_a_paced_market_waits_for_a_slow_store(dial: Callable[..., ClientConnection]) -> None:
    """A market that is too fast for the store runs late and loses nothing."""
    with LocalServer(SimulatedMarket(rate=1e9, limit=3_000), store_batch=16) as server:
        server.wait_finished()
        server.wait_until(lambda stats: stats.ticks_stored == 3_000)


def test_ticks_are_stored_after_a_while(dial: Callable[..., ClientConnection]) -> None:
    """A batch that doesn't fill is written when its time has come, without anybody asking."""
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
def test_settings_that_are_wrong(arguments: dict[str, Any]) -> None:
    """A wrong setting is an error at once."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        LocalServer(SimulatedMarket(), **arguments)


def test_a_store_that_fails_is_told(
    file: Path, dial: Callable[..., ClientConnection], receive: Callable[..., list[Any]]
) -> None:
    """A full disk, say, ends the storing: streams go on, functions say so, and so does an import."""
    with LocalServer(SimulatedMarket(rate=500.0), store=file) as server:
        # The database itself has a setting for how large it may become.
        with server._recorder.store._lock:
            server._recorder.store._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(OSError, match=r"the tick store failed: .*full"):
            server.import_ticks([tick("12:00:00")] * 10_000)
        peer = dial(server, "streamer/k")
        peer.send('{"functionName":"referenceData","APIKey":"k","securityId":"BTC"}')
        assert "the tick store failed" in receive(peer)[0]["error"]
        assert "resultData" in receive(dial(server))[0]


SERVER = """
import sys
from finx_streamer.server import LocalServer, SimulatedMarket
server = LocalServer(SimulatedMarket(["BTC:USDC"], rate=None, seed=int(sys.argv[3]), wait_for=1), store=sys.argv[1],
                     store_batch=int(sys.argv[2]))
server.start()
print(server.url, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("life", range(4))
def test_a_killed_server_has_lost_no_more_than_a_batch(file: Path, life: int) -> None:
    """SIGKILL in the middle of a burst: the file holds what a client has received, but for less than one batch."""
    batch = (256, 1_000, 8_192, 20_000)[life]
    received: list[Any] = []
    command = [sys.executable, "-c", SERVER, str(file), str(batch), str(life)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with connect(f"{url}streaming/k/BTC:USDC", proxy=None, compression=None) as peer:
            while len(received) < 30_000:
                received.append(json.loads(peer.recv(timeout=20))["resultData"])
            process.kill()
            received += rest_of(peer)
        process.wait()
    store = kept(file, [])
    days = sorted({each["date"] for each in received})
    with store.opened():
        found = [each for day in days for each in read(store, day=day, after=(midnight(day), ""))]
    stored = Counter(map(fields_of, found))
    assert stored.total() == store.held
    assert not Counter(map(fields_of, received[:-batch])) - stored


def rest_of(peer: ClientConnection) -> list[Any]:
    """What still arrives after the server's death."""
    rest: list[Any] = []
    try:
        while True:
            rest.append(json.loads(peer.recv(timeout=5))["resultData"])
    except Exception:
        return rest


def test_a_temporary_store_leaves_nothing_behind() -> None:
    """When a server object is gone, its store is closed: no warning of an open database, no thread, no file."""
    code = (
        "import gc, threading, sys, warnings; warnings.simplefilter('error')\n"
        "from finx_streamer.server import LocalServer, SimulatedMarket\n"
        "for path in (None, sys.argv[1]):\n"
        "    with LocalServer(SimulatedMarket(rate=1e4), store=path) as server:\n"
        "        server.wait_until(lambda stats: stats.ticks_stored > 100)\n"
        "    del server; gc.collect()\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-X", "dev", "-c", code, f"{folder}/ticks.db"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert os.listdir(folder) == ["ticks.db"]
