"""Streams that resume exactly, by the IDs of the log. The peer is the client of `websockets`."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from finx_streamer.server import LocalServer, Tape
from finx_streamer.server.store import TapePart, TickStore
from finx_streamer.server.tick_log import Position
from tests.support.contracts import ask, request
from tests.support.effort import examples
from tests.support.raw_client import TIMEOUT

Dial = Callable[..., ClientConnection]
PAIR, OTHER = "BTC:USDC", "ETH:USDC"
LOG = re.compile(r"[0-9A-Za-z_-]{1,64}:[0-9]+")


def tick(number: int, pair: str = PAIR) -> dict[str, str]:
    """Ticks differ in their price only, so nothing but the ID tells them apart in time."""
    return {"pair": pair, "date": "2026-11-29", "time": "23:59:59.999Z", "exchange": "MINE", "price": str(number)}


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A market of two pairs that plays only what the test emits."""
    with served() as server:
        yield server


def served(**settings: Any) -> LocalServer:
    return LocalServer(Tape([tick(0), tick(0, OTHER)], wait_for=10**6), keys={"demo"}, **settings)


class Stream:
    """A stream that asks to resume."""

    def __init__(self, dial: Dial, server: LocalServer, resume: str | None = "ask", pair: str = PAIR) -> None:
        headers = {} if resume is None else {"FinX-Resume": resume}
        self.peer = dial(server, f"streaming/demo/{pair}", additional_headers=headers)
        assert self.peer.response is not None
        self.log = self.peer.response.headers.get("FinX-Log")
        self.refused = self.peer.response.headers.get("FinX-Resume") == "no"
        server.wait_until(lambda stats: stats.symbols.get(pair, 0) > 0)

    def read(self, count: int) -> list[tuple[int, int]]:
        """Receive ticks, and return their IDs and prices."""
        messages = [json.loads(self.peer.recv(timeout=TIMEOUT)) for _ in range(count)]
        return [(message["id"], int(message["resultData"]["price"])) for message in messages]

    @property
    def name(self) -> str:
        assert self.log is not None
        assert LOG.fullmatch(self.log)
        return str(self.log.partition(":")[0])

    def close(self, server: LocalServer) -> None:
        before = server.stats.connections
        self.peer.close()
        server.wait_until(lambda stats: stats.connections < before)


def test_only_clients_that_ask_get_ids(server: LocalServer, dial: Dial) -> None:
    """The ID is next to the keys of the message, in each of the wire's forms."""
    asking, plain = Stream(dial, server), Stream(dial, server, resume=None)
    flat = dial(server, "streamer/demo")
    answer = ask(flat, "getSpotRates", pair=PAIR, resume="ask")
    assert (asking.log, plain.log, asking.refused) == (answer["log"], None, False)
    server.emit(tick(1))
    enveloped = {"results": "streaming", "resultData": tick(1)}
    assert json.loads(asking.peer.recv(timeout=TIMEOUT)) == enveloped | {"id": 1}
    assert json.loads(plain.peer.recv(timeout=TIMEOUT)) == enveloped
    assert json.loads(flat.recv(timeout=TIMEOUT))["id"] == 1


def test_ids_increase_across_pairs(server: LocalServer, dial: Dial) -> None:
    stream, other = Stream(dial, server), Stream(dial, server, pair=OTHER)
    server.emit(tick(1), tick(1, OTHER), tick(2), tick(2))
    assert stream.read(3) == [(1, 1), (3, 2), (4, 2)]
    assert other.read(1) == [(2, 1)]
    assert Stream(dial, server).log == f"{stream.name}:4"


def test_a_stream_resumes_after_its_position(server: LocalServer, dial: Dial) -> None:
    """Missed ticks come in the order of their IDs, equal ones too, then live ones. Those of other pairs don't come."""
    stream = Stream(dial, server)
    server.emit(tick(1), tick(1))
    assert stream.read(2) == [(1, 1), (2, 1)]
    stream.close(server)
    server.emit(tick(1), tick(7, OTHER), tick(0), tick(1))
    resumed = Stream(dial, server, f"{stream.name}:2")
    assert (resumed.log, resumed.refused) == (f"{stream.name}:6", False)
    server.emit(tick(9))
    assert resumed.read(4) == [(3, 1), (5, 0), (6, 1), (7, 9)]


def test_a_fresh_stream_begins_where_its_handshake_says(server: LocalServer, dial: Dial) -> None:
    """What the server published before is not sent."""
    server.emit(tick(1))
    stream = Stream(dial, server)
    server.emit(tick(2))
    assert stream.log == f"{stream.name}:1"
    assert stream.read(1) == [(2, 2)]


@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_no_hole_and_no_repeat_while_the_market_moves(dial: Dial, wire: str) -> None:
    """Also if more ticks arrive during the catch-up than may wait for the client."""
    count, stopped = 3_000, threading.Event()
    with served(queue_bytes=4_096, store_batch=64) as server:
        first = Stream(dial, server)
        server.emit(*(tick(number) for number in range(1, count)))

        def emit() -> None:
            number = count
            while not stopped.is_set():
                server.emit(tick(number), tick(number + 1))
                number += 2

        market = threading.Thread(target=emit)
        market.start()
        try:
            if wire == "url":
                peer = dial(server, f"streaming/demo/{PAIR}", additional_headers={"FinX-Resume": f"{first.name}:0"})
            else:
                peer = dial(server, "streamer/demo")
                answer = ask(peer, "getSpotRates", pair=PAIR, resume=f"{first.name}:0")
                assert answer["subscribed"] == PAIR
                assert "resume" not in answer
            got = [json.loads(peer.recv(timeout=TIMEOUT))["id"] for _ in range(2 * count)]
        finally:
            stopped.set()
            market.join()
        assert got == list(range(1, 2 * count + 1))


@pytest.mark.parametrize(
    "position",
    [
        "{log}:99",
        "unknown:1",
        "{log}",
        "{log}:-1",
        "{log}:1.5",
        "<script>:1",
        "{log}:" + "9" * 19,
        "x" * 200 + ":1",
        "",
    ],
)
def test_a_position_that_it_does_not_know(server: LocalServer, dial: Dial, position: str) -> None:
    """An ID from the future, another log's, and garbage, which is never echoed."""
    log = Stream(dial, server).name
    server.emit(tick(1))
    stream = Stream(dial, server, position.format(log=log))
    assert (stream.refused, stream.log) == (True, f"{log}:1")
    assert stream.peer.response is not None
    assert "script" not in str(stream.peer.response.headers)
    server.emit(tick(2))
    assert stream.read(1) == [(2, 2)]


@pytest.mark.parametrize("position", [5, ["ask"], {}, "nonsense", "{log}:99"])
def test_a_subscription_with_such_a_position(server: LocalServer, dial: Dial, position: object) -> None:
    log = Stream(dial, server).name
    server.emit(tick(1))
    peer = dial(server, "streamer/demo")
    wanted = position.format(log=log) if isinstance(position, str) else position
    assert ask(peer, "getSpotRates", pair=PAIR, resume=wanted) == {
        "subscribed": PAIR,
        "log": f"{log}:1",
        "resume": "no",
    }


def test_imported_ticks_are_not_part_of_the_log(server: LocalServer, dial: Dial) -> None:
    """They were never sent. In the store they lie between those that were."""
    log = Stream(dial, server).name
    server.emit(tick(1))
    server.wait_until(lambda stats: stats.ticks_stored == 1)
    server.import_ticks([tick(number) for number in range(100, 200)])
    server.emit(tick(2))
    assert Stream(dial, server, f"{log}:0").read(2) == [(1, 1), (2, 2)]


def test_removed_ticks_end_the_log(dial: Dial) -> None:
    """A position before the oldest tick in the store is refused; a newer one is not."""
    with served(store_limit=10) as server:
        log = Stream(dial, server).name
        server.emit(*(tick(number) for number in range(1, 31)))
        server.wait_until(lambda stats: stats.ticks_stored == 10)
        assert Stream(dial, server, f"{log}:19").refused
        resumed = Stream(dial, server, f"{log}:20")
        assert not resumed.refused
        assert resumed.read(10) == [(number, number) for number in range(21, 31)]


def test_the_limit_overtakes_a_client(dial: Dial) -> None:
    """The client, which can't know, is asked to try again. Then its position is refused."""
    with served(store_limit=2_000, send_buffer=4_096, store_batch=64) as server:
        log = Stream(dial, server).name
        server.emit(*(tick(number) for number in range(1, 2_001)))
        peer = dial(server, f"streaming/demo/{PAIR}", lazy=True, additional_headers={"FinX-Resume": f"{log}:0"})
        # The first page fills the buffers, and the client doesn't read.
        server.wait_until(lambda stats: stats.ticks_sent >= 1_000)
        for _ in range(4):
            server.emit(*(tick(number) for number in range(1_000)))
        server.wait_until(lambda stats: stats.ticks_played == 6_000 and stats.ticks_stored == 2_000)
        ids: list[int] = []
        with contextlib.suppress(ConnectionClosed):
            ids.extend(json.loads(message)["id"] for message in peer)
        assert peer.close_code == 1013
        assert ids == list(range(1, len(ids) + 1))
        assert len(ids) < 2_000
        assert Stream(dial, server, f"{log}:{ids[-1]}").refused


def test_a_slow_client_holds_one_page(dial: Dial) -> None:
    """The next one is read when the client has taken the last one, however much it missed."""
    count = 20_000
    with served(send_buffer=4_096, queue_bytes=4_096) as server:
        log = Stream(dial, server).name
        server.emit(*(tick(number) for number in range(1, count + 1)))
        peer = dial(server, f"streaming/demo/{PAIR}", lazy=True, additional_headers={"FinX-Resume": f"{log}:0"})
        for number in range(1, count + 1):
            assert json.loads(peer.recv(timeout=TIMEOUT))["id"] == number
            # The rest of a page, and what the sockets and the peer's own buffers hold.
            assert server.stats.ticks_sent - number < 5_000


def test_a_server_without_a_store_has_no_log(dial: Dial) -> None:
    with served(store_limit=0) as server:
        stream = Stream(dial, server, "a:1")
        assert (stream.log, stream.refused) == (None, False)
        server.emit(tick(1))
        assert "id" not in json.loads(stream.peer.recv(timeout=TIMEOUT))


@pytest.mark.parametrize("in_file", [False, True])
def test_a_log_continues_after_a_clean_restart(dial: Dial, tmp_path: Path, in_file: bool) -> None:
    """With a file, also in another server, under another name."""
    store = tmp_path / "ticks.db" if in_file else None
    server = served(store=store)
    with server:
        log = Stream(dial, server).name
        server.emit(tick(1), tick(2))
    with served(store=store) if in_file else server as again:
        again.emit(tick(3))
        stream = Stream(dial, again, f"{log}:1")
        assert (stream.name == log, stream.refused) == (not in_file, False)
        assert stream.read(2) == [(2, 2), (3, 3)]


_KILLED = """
import asyncio, os, sys
from tests.server.test_resuming import served, tick
server = served(store=sys.argv[1], store_batch_seconds=3600.0).start()
server.emit(*(tick(number) for number in range(1, 11)))
# A query waits until they are stored.
query = server._state.recorder.query(lambda store: store.count)
asyncio.run_coroutine_threadsafe(query, server._thread.service.loop).result()
server.emit(*(tick(number) for number in range(11, 16)))
print(server._state.recorder.log, server._state.recorder.newest, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_server_begins_another_log(dial: Dial, tmp_path: Path) -> None:
    """Between sending and storing it was killed. IDs are assigned again, and each log's clients get what they lack."""
    store = tmp_path / "ticks.db"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(store)], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    old, newest = done.stdout.splitlines()[-1].split()
    assert (done.returncode, newest) == (-9, "15"), done.stderr
    with served(store=store) as server:
        server.emit(tick(77))
        fresh = Stream(dial, server)
        assert fresh.name != old
        # The client received 12 ticks, of which the store has 10. The eleventh ID belongs to another tick now.
        ahead = Stream(dial, server, f"{old}:12")
        assert (ahead.refused, ahead.read(1)) == (False, [(11, 77)])
        behind = Stream(dial, server, f"{old}:8")
        assert (behind.refused, behind.read(3)) == (False, [(9, 9), (10, 10), (11, 77)])


def test_a_store_that_fails(dial: Dial, tmp_path: Path) -> None:
    """Meanwhile nothing can be resumed. Afterwards, everything that was kept can be."""
    store = tmp_path / "ticks.db"
    with served(store=store) as server:
        log = Stream(dial, server).name
        server.emit(tick(1))
        server.wait_until(lambda stats: stats.ticks_stored == 1)
        moved = store.rename(tmp_path / "moved.db")
        server.wait_until(lambda stats: stats.store_error is not None)
        assert Stream(dial, server, f"{log}:0").log is None
        moved.rename(store)
        server.emit(tick(2))
        server.wait_until(lambda stats: stats.store_error is None)
        stream = Stream(dial, server, f"{log}:1")
        assert (stream.refused, stream.read(1)) == (False, [(2, 2)])


def test_ids_of_lost_ticks_are_not_assigned_again(dial: Dial, tmp_path: Path) -> None:
    """Clients may have received them, so the next run begins after them."""
    store = tmp_path / "ticks.db"
    with served(store=store, store_batch=4) as server:
        log = Stream(dial, server).name
        moved = store.rename(tmp_path / "moved.db")
        server.wait_until(lambda stats: stats.store_error is not None)
        server.emit(*(tick(number) for number in range(1, 11)))
        moved.rename(store)
        server.wait_until(lambda stats: stats.store_error is None)
    with served(store=store) as again:
        assert str(Stream(dial, again).log).endswith(":10")
        assert Stream(dial, again, f"{log}:8").refused
        again.emit(tick(11))
        stream = Stream(dial, again, f"{log}:10")
        assert (stream.refused, stream.read(1)) == (False, [(11, 11)])


def test_a_server_that_stops_while_its_store_fails(dial: Dial, tmp_path: Path) -> None:
    """What was sent will never be stored, so another log begins."""
    store = tmp_path / "ticks.db"
    server = served(store=store)
    with server:
        log = Stream(dial, server).name
        server.emit(tick(1))
        server.wait_until(lambda stats: stats.ticks_stored == 1)
        moved = store.rename(tmp_path / "moved.db")
        store.mkdir()
        server.wait_until(lambda stats: stats.store_error is not None)
        server.emit(tick(2))
    store.rmdir()
    moved.rename(store)
    with server:
        server.emit(tick(3))
        stream = Stream(dial, server, f"{log}:2")
        assert stream.name != log
        # Without its write-ahead log, the file has no tick.
        assert (stream.refused, stream.read(1)) == (False, [(1, 3)])


def test_a_looped_tape(dial: Dial) -> None:
    """From the second round on, its ticks are stored already and not part of the log. A refused client begins live."""
    ticks = [tick(number) | {"time": f"00:00:00.{number:03}Z"} for number in range(100)]
    with LocalServer(Tape(ticks, loop=True, speed=5.0, max_pause=0.0), keys={"demo"}) as server:
        first = Stream(dial, server)
        server.wait_until(lambda stats: stats.ticks_played > len(ticks))
        for position in ["unknown:1", f"{first.name}:1"] * 10:
            stream = Stream(dial, server, position)
            assert stream.refused
            ids = [number for number, _ in stream.read(5)]
            assert ids == list(range(ids[0], ids[0] + 5))
            stream.close(server)


def test_an_unpaced_tape_goes_on_when_its_only_client_has_what_it_missed(dial: Dial) -> None:
    """Without a subscriber it stands still."""
    with LocalServer(Tape([tick(n) for n in range(5_000)], speed=None), keys={"demo"}, queue_bytes=4_096) as server:
        first = Stream(dial, server)
        got = first.read(3)
        first.peer.socket.close()
        resumed = Stream(dial, server, f"{first.name}:3")
        assert [*got, *resumed.read(4_997)] == [(n + 1, n) for n in range(5_000)]


def test_ids_go_to_one_subscription_only_once(server: LocalServer, dial: Dial) -> None:
    """Subscribing again changes nothing, and after `unsubscribe` a position can be given again."""
    peer = dial(server, "streamer/demo")
    log = ask(peer, "getSpotRates", pair=PAIR, resume="ask")["log"].partition(":")[0]
    assert ask(peer, "getSpotRates", pair=PAIR, resume=f"{log}:0") == {"subscribed": PAIR}
    assert ask(peer, "unsubscribe", pair=PAIR) == {"unsubscribed": PAIR}
    server.emit(tick(1))
    assert ask(peer, "getSpotRates", pair=PAIR, resume=f"{log}:0") == {"subscribed": PAIR, "log": f"{log}:1"}
    assert json.loads(peer.recv(timeout=TIMEOUT))["id"] == 1
    # The market's other pair is a subscription of its own.
    peer.send(request("getSpotRates", pair=OTHER))
    server.wait_connected(2)
    server.emit(tick(2, OTHER))
    assert "id" not in json.loads(peer.recv(timeout=TIMEOUT))


_ROW = (PAIR, "2026-11-29", "00:00:00.000Z", "MINE", "1")


def test_a_log_that_could_not_be_closed_goes_on(tmp_path: Path) -> None:
    """Nothing was lost: what failed is written again, with the IDs that clients have."""
    store = TickStore(tmp_path / "ticks.db")

    def fail() -> None:
        with store._transaction() as connection:
            connection.close()
            connection.execute("SELECT 1")

    with store.opened():
        store.write([_ROW], logged=1)
        log = store.log_name
        with pytest.raises(sqlite3.Error):
            fail()
        store.write([_ROW], logged=2)
        assert store.log_name == log


def test_the_log_of_another_file(tmp_path: Path) -> None:
    """Nothing is known about its rows, even if the IDs go on."""
    path = tmp_path / "ticks.db"
    store = TickStore(path)
    with store.opened():
        store.write([_ROW, _ROW], logged=1)
        assert store.read_log(PAIR, 0, 2, 9) is not None
        path.unlink()
        with pytest.raises(OSError, match="deleted"):
            store.check_file()
        store.write([(OTHER, *_ROW[1:]), _ROW], logged=3)
        page = store.read_log(OTHER, 2, 4, 9)
        assert page is not None
        assert [number for number, _ in page.ticks] == [3]


def test_what_the_log_lacks_cannot_be_read() -> None:
    """An invalid tick may be played while a client gets what it missed."""
    store = TickStore()
    with store.opened():
        store.write([_ROW], logged=1)
        store.write([(*_ROW[:4], "not a price")], logged=2)
        page = store.read_log(PAIR, 0, 2, 9)
        assert page is not None
        assert page.until == 1
        assert store.read_log(PAIR, 1, 2, 9) is None


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["played", "imported", "lost", "invalid", "repeated", "closed", "killed"]), st.integers(1, 5)
    ),
    max_size=20,
)


@examples(200)
@given(_ACTIONS, st.sampled_from([None, 7]), st.data())
def test_the_log_is_exact(actions: list[tuple[str, int]], limit: int | None, data: st.DataObject) -> None:
    """Any mix of batches: a position is accepted exactly if all later ticks are there, and they are what is read."""
    with tempfile.TemporaryDirectory() as folder:
        store = TickStore(Path(folder, "ticks.db"), limit=limit)
        sent: dict[int, tuple[str, str]] = {}
        rows: list[int | None] = []
        newest = committed = 0
        #: The newest ID that was sent, and the newest one that was committed, of each log.
        logs: dict[str, tuple[int, int]] = {}
        for action, count in actions:
            with store.opened():
                batch = [(data.draw(st.sampled_from([PAIR, OTHER])), str(len(rows) + n)) for n in range(count)]
                ticks = [(pair, "2026-11-29", "00:00:00.000Z", "MINE", price) for pair, price in batch]
                if action == "killed":
                    store.abandon_log()
                    newest = committed
                elif action == "closed":
                    # As the recorder does after ticks were lost.
                    store.write((), logged=newest + 1)
                    committed = newest
                elif action == "imported":
                    store.write(ticks)
                    rows += [None] * count
                else:
                    if action == "invalid":
                        ticks = [(*ticks[0][:4], "not a price"), *ticks[1:]]
                    if action == "repeated":
                        part, known = TapePart(str(newest), count, 0), data.draw(st.integers(1, count))
                        store.write(ticks[:known], part)
                        rows += [None] * known
                        store.write(ticks, part, logged=newest + 1)
                        rows += range(newest + known + 1, newest + count + 1)
                    elif action != "lost":
                        store.write(ticks, logged=newest + 1)
                    for number, each in enumerate(batch, newest + 1):
                        sent[number] = each
                    if action == "played":
                        rows += range(newest + 1, newest + count + 1)
                    elif action == "invalid":
                        rows += [None] * (count - 1)
                    newest += count
                    committed = committed if action == "lost" else newest
                if store.log_name:
                    logs[store.log_name] = newest, committed
        with store.opened():
            newest = committed if not store.log_name else newest
            logs[store.log_name] = newest, committed
            held = set(filter(None, rows[-limit:] if limit else rows))
            for name, (last, known) in logs.items():
                for number in range(last + 1):
                    begin = number if name == store.log_name else min(number, known)
                    wanted = all(later in held for later in range(begin + 1, newest + 1))
                    page = store.resume(PAIR, Position(name, number), newest, 2)
                    assert (page is not None) == wanted
                    if page is None:
                        continue
                    got = page.ticks
                    while page.until < newest:
                        until, page = page.until, store.read_log(PAIR, page.until, newest, 2)
                        assert page is not None
                        assert page.until > until
                        got += page.ticks
                    # Only up to an ID, although more was read before.
                    until = data.draw(st.integers(begin, newest))
                    page = store.read_log(PAIR, begin, until, 9)
                    assert page is not None
                    assert page.ticks == [each for each in got if each[0] <= page.until][:9]
                    assert page.until <= until
                    expected = [(n, sent[n][1]) for n in range(begin + 1, newest + 1) if sent[n][0] == PAIR]
                    assert [(n, json.loads(text)["price"]) for n, text in got] == expected
