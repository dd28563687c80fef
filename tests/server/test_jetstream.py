"""Gateways: servers of a NATS JetStream stream. NATS is a real server, and the clients are real listeners."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')
import nats
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from finx_streamer import (
    ConfigurationError,
    ConnectionFailed,
    Endpoint,
    FinxStreamerError,
    FunctionClient,
    Gap,
    Notice,
    State,
    StreamListener,
)
from finx_streamer.jetstream.subjects import LOST, greeks_subject, tick_subject
from finx_streamer.server import JetStreamMarket, LocalServer, ServerStats
from tests.support.cli import running, wait_until
from tests.support.contracts import request
from tests.support.nats import NatsCluster, NatsServer
from tests.support.peers import PATIENCE
from tests.support.raw_client import TIMEOUT
from tests.support.switch import Switch

Dial = Callable[..., ClientConnection]
PAIR, OTHER = "BTC:USDC", "ETH:USDC"
MIDNIGHT = datetime(2026, 11, 29, tzinfo=UTC)
CONTRACT = "BTC-27DEC41-100000-C"


def tick(number: int, pair: str = PAIR) -> dict[str, str]:
    """Ticks are a millisecond apart, and their price is their number."""
    day, time = (MIDNIGHT + timedelta(milliseconds=number)).isoformat("T", "milliseconds")[:23].split("T")
    return {"pair": pair, "date": day, "time": f"{time}Z", "exchange": "MINE", "price": str(number)}


def encoded(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Log:
    """A JetStream stream, and what publishers do with it."""

    def __init__(self, server: NatsServer, **settings: Any) -> None:
        self.server = server
        self._numbers, self._message_ids = itertools.count(1), itertools.count(1)
        #: The prices of the first pair's ticks.
        self.prices: list[int] = []
        self.create(**settings)

    def do(self, request: Callable[[Any], Awaitable[Any]], limit: float = PATIENCE) -> Any:
        """Make a request to JetStream, and return the answer."""

        async def done() -> Any:
            async with await nats.connect(self.server.url, allow_reconnect=False) as client:
                return await request(client.jetstream(publish_async_max_pending=1_000))

        return asyncio.run(asyncio.wait_for(done(), limit))

    def create(self, **settings: Any) -> None:
        config = StreamConfig(name="FINX", subjects=["finx.v1.>"], description=uuid4().hex, **settings)
        self.do(lambda jetstream: jetstream.add_stream(config))

    def publish(self, count: int, pair: str = PAIR) -> None:
        """Publish further ticks."""
        numbers = list(itertools.islice(self._numbers, count))
        subject = tick_subject("MINE", pair)
        self.send((subject, encoded(tick(number, pair))) for number in numbers)
        if pair == PAIR:
            self.prices += numbers

    def publish_fast(self, count: int) -> None:
        """Publish further ticks, without waiting for each acknowledgement."""
        end, subject = self.end + count, tick_subject("MINE", PAIR)

        async def publish(jetstream: Any) -> None:
            client = jetstream._nc
            for done, number in enumerate(itertools.islice(self._numbers, count)):
                await client.publish(subject, encoded(tick(number)))
                if not done % 2_000:
                    await client.flush()
            await client.flush()
            while (await jetstream.stream_info("FINX")).state.last_seq < end:
                await asyncio.sleep(0.1)

        self.do(publish, limit=300.0)

    def send(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish messages. While a cluster looks for a leader, try again."""
        numbered = [(*message, {"Nats-Msg-Id": str(next(self._message_ids))}) for message in messages]

        async def send(jetstream: Any) -> None:
            sent = [
                await jetstream.publish_async(subject, payload, headers=headers)
                for subject, payload, headers in numbered
            ]
            await asyncio.gather(*sent)

        while True:
            with contextlib.suppress(NoStreamResponseError, ServiceUnavailableError, TimeoutError):
                self.do(send)
                return

    @property
    def end(self) -> int:
        return int(self.do(lambda jetstream: jetstream.stream_info("FINX")).state.last_seq)


@pytest.fixture
def log(nats_server: NatsServer) -> Log:
    return Log(nats_server)


@contextlib.contextmanager
def gateway(log: Log, market: JetStreamMarket | None = None, **settings: Any) -> Iterator[LocalServer]:
    """A server of the log that has read all of it."""
    with LocalServer(market or JetStreamMarket(log.server.url), **settings) as server:
        wait_for(server, lambda stats: stats.log.newest >= log.end and stats.log.filling_done)
        yield server


def wait_for(server: LocalServer, condition: Callable[[Any], bool]) -> ServerStats:
    return server.wait_until(condition, timeout=PATIENCE)


class Listener:
    """A real listener, and what it has received."""

    def __init__(self, url: str, wire: Any = "url", pair: str = PAIR, **settings: Any) -> None:
        self.prices: list[int] = []
        self.gaps: list[Gap] = []
        self.notices: list[Notice] = []
        self.errors: list[Exception] = []
        self._changed = threading.Condition()
        self.listener = StreamListener(
            pair,
            api_key="demo",
            endpoint=Endpoint(url, wire=wire),
            on_tick=self._on_tick,
            on_gap=self._add_to(self.gaps),
            on_notice=self._add_to(self.notices),
            on_error=self._add_to(self.errors),
            **settings,
        )

    def __enter__(self) -> Listener:
        self.listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.stop()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), (len(self.prices), self.gaps, self.errors)

    def _on_tick(self, tick: Any) -> None:
        self.prices.append(int(tick["price"]))
        self._notify()

    def _add_to(self, found: list[Any]) -> Callable[[Any], None]:
        def add(each: Any) -> None:
            found.append(each)
            self._notify()

        return add

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Stream:
    """A stream that asks to resume."""

    def __init__(self, dial: Dial, server: LocalServer, resume: str = "ask") -> None:
        self.peer = dial(server, f"streaming/demo/{PAIR}", additional_headers={"FinX-Resume": resume})
        assert self.peer.response is not None
        self.log, _, self.newest = self.peer.response.headers["FinX-Log"].partition(":")
        self.refused = self.peer.response.headers.get("FinX-Resume") == "no"

    def read(self, count: int) -> list[tuple[int, int]]:
        """Receive ticks, and return their IDs and prices."""
        messages = [json.loads(self.peer.recv(timeout=TIMEOUT)) for _ in range(count)]
        return [(message["id"], int(message["resultData"]["price"])) for message in messages]


WIRES = pytest.mark.parametrize("wire", ["url", "subscribe"])


@WIRES
def test_any_gateway_resumes_what_another_began(log: Log, wire: str) -> None:
    """By ID: no listener asks for history. Between the ticks are messages of other kinds."""
    log.publish(50)
    with contextlib.ExitStack() as stack:
        gateways = [stack.enter_context(gateway(log)) for _ in range(3)]
        switch = stack.enter_context(Switch(gateways[0].url))
        client = stack.enter_context(Listener(switch.url, wire))
        gateways[0].wait_connected()
        log.prices.clear()
        for server in [*gateways[1:], gateways[0], gateways[2]]:
            log.publish(20)
            log.publish(3, OTHER)
            client.wait(lambda: len(client.prices) == len(log.prices))
            switch.turn(None)
            log.publish(30)
            log.send([("finx.v1.other", b"?")])
            switch.turn(server.url)
            server.wait_connected()
        log.publish(5)
        client.wait(lambda: len(client.prices) == len(log.prices))
        assert client.prices == log.prices
        assert [gap.filled for gap in client.gaps] == [True] * 4
        assert [server.stats.calls for server in gateways] == [0, 0, 0]


def test_the_store_is_filled_backwards_and_history_is_the_log(log: Log) -> None:
    """Also what was published while it was filled. A second start reads only what is new."""
    log.publish(3_000)
    with gateway(log) as server, FunctionClient("demo", server.url) as functions:
        log.publish(100)
        wait_for(server, lambda stats: stats.ticks_stored == 3_100)
        found = list(functions.iter_tick_history(PAIR, MIDNIGHT, MIDNIGHT + timedelta(hours=1)))
        assert [int(tick["price"]) for tick in found] == log.prices
        stats = server.stats.log
        assert stats is not None
        assert (stats.first, stats.filled, stats.store_from) == (1, 3_000, MIDNIGHT)


def test_a_store_file_is_continued(log: Log, tmp_path: Path) -> None:
    """A second start reads only what is new, and resumes what a client began at the first one."""
    log.publish(500)
    with gateway(log, store=tmp_path / "ticks.db") as server:
        assert server.stats.ticks_stored == 500
    log.publish(40)
    with gateway(log, store=tmp_path / "ticks.db") as server, FunctionClient("demo", server.url) as functions:
        stats = server.stats.log
        assert stats is not None
        assert (server.stats.ticks_stored, stats.filled, stats.first) == (540, 40, 1)
        found = list(functions.iter_tick_history(PAIR, MIDNIGHT, MIDNIGHT + timedelta(hours=1)))
        assert [int(tick["price"]) for tick in found] == log.prices


def test_a_store_file_that_is_deleted_is_filled_again(log: Log, dial: Dial, tmp_path: Path) -> None:
    """Without a restart. Meanwhile, live ticks are sent."""
    log.publish(500)
    with gateway(log, store=tmp_path / "ticks.db") as server:
        stream = Stream(dial, server)
        (tmp_path / "ticks.db").unlink()
        wait_for(server, lambda stats: stats.store_error is not None)
        log.publish(3)
        assert [price for _, price in stream.read(3)] == [501, 502, 503]
        wait_for(server, lambda stats: stats.store_error is None and stats.ticks_stored == 503)
        wait_for(server, lambda stats: stats.log.filling_done and stats.log.first == 1)
        assert Stream(dial, server, f"{stream.log}:0").read(503) == [(number, number) for number in range(1, 504)]


def test_filling_ends_at_a_time(log: Log) -> None:
    log.publish(20)
    market = JetStreamMarket(log.server.url, since=datetime.now(UTC))
    log.publish(5)
    with gateway(log, market) as server:
        stats = server.stats.log
        assert stats is not None
        assert (stats.first, server.stats.ticks_stored) == (21, 5)


def test_filling_ends_at_the_limit_of_the_store(log: Log) -> None:
    log.publish(3_000)
    with gateway(log, store_limit=1_500) as server:
        stats = server.stats.log
        assert stats is not None
        assert (stats.first, server.stats.ticks_stored) == (1_501, 1_500)
        log.publish(100)
        assert (
            wait_for(server, lambda stats: stats.log.newest == 3_100 and stats.log.first == 1_601).ticks_stored == 1_500
        )


def test_ids_are_sequence_numbers(log: Log, dial: Dial) -> None:
    """Two gateways give a tick the same ID, and their logs have the same name."""
    log.publish(1)
    with gateway(log) as first, gateway(log) as second:
        streams = [Stream(dial, first), Stream(dial, second)]
        log.send([("finx.v1.other", b"?")])
        log.publish(2)
        assert [stream.read(2) for stream in streams] == [[(3, 2), (4, 3)]] * 2
        assert streams[0].log == streams[1].log


def test_a_position_before_the_beginning_is_refused(log: Log, dial: Dial) -> None:
    log.publish(10)
    with gateway(log, JetStreamMarket(log.server.url, since=datetime.now(UTC))) as server:
        log.publish(5)
        wait_for(server, lambda stats: stats.log.newest == 15)
        name = Stream(dial, server).log
        assert Stream(dial, server, f"{name}:9").refused
        resumed = Stream(dial, server, f"{name}:10")
        assert not resumed.refused
        assert resumed.read(5) == [(number, number) for number in range(11, 16)]


def test_a_position_that_this_gateway_has_not_reached(log: Log, dial: Dial) -> None:
    """Another one was ahead. It waits, and asks the client to come back rather than to look into history."""
    log.publish(10)
    with gateway(log) as server:
        name = Stream(dial, server).log
        with pytest.raises(InvalidStatus) as refused:
            Stream(dial, server, f"{name}:12")
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "1"
        peer = dial(server, "streamer/demo")
        peer.send(request("getSpotRates", pair=PAIR, resume=f"{name}:12"))
        with pytest.raises(ConnectionClosed) as closed:
            peer.recv(timeout=TIMEOUT)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        publisher = threading.Timer(0.3, log.publish, [5])
        publisher.start()
        assert Stream(dial, server, f"{name}:12").read(3) == [(13, 13), (14, 14), (15, 15)]
        publisher.join()


def health(server: LocalServer) -> int:
    try:
        with urllib.request.urlopen(f"{server.url.replace('ws', 'http', 1)}health") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_nats_is_away_at_the_start(log: Log, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are asked to come back: no pair is unknown just because NATS is away."""
    monkeypatch.setattr("finx_streamer.server.service._KNOWN_TIMEOUT", 0.2)
    log.publish(5)
    log.server.kill()
    with LocalServer(JetStreamMarket(log.server.url)) as server:
        for path in (f"streaming/demo/{PAIR}", "streamer/demo"):
            with pytest.raises(InvalidStatus) as refused:
                dial(server, path)
            assert refused.value.response.status_code == 503
        assert health(server) == 503
        with Listener(server.url) as client:
            log.server.start()
            server.wait_connected(timeout=PATIENCE)
            assert health(server) == 200
            log.publish(5)
            client.wait(lambda: client.prices == [6, 7, 8, 9, 10])


@pytest.mark.parametrize("kind", ["no stream", "no JetStream", "password"])
def test_what_cannot_work_is_reported_at_the_start(tmp_path: Path, kind: str) -> None:
    config = "authorization { user: a, password: b }" if kind == "password" else ""
    expected = {"no stream": "no JetStream stream FINX", "no JetStream": "-js", "password": "refuses the credentials"}
    with NatsServer(tmp_path / "nats", jetstream=None if kind == "no JetStream" else "", config=config) as server:
        local = LocalServer(JetStreamMarket(server.url))
        with pytest.raises((ConfigurationError, ConnectionFailed), match=expected[kind]):
            local.start()
        assert not local.running


@pytest.mark.parametrize("kind", ["restart", "pause"])
def test_nats_goes_away_and_comes_back(log: Log, kind: str) -> None:
    """Clients stay connected, get notices, and miss nothing."""
    log.publish(1)
    log.prices.clear()
    with gateway(log) as server, Listener(server.url) as client:
        server.wait_connected()
        log.publish(10)
        client.wait(lambda: len(client.prices) == 10)
        if kind == "restart":
            log.server.kill()
            wait_for(server, lambda stats: not stats.log.connected)
            log.server.start()
        else:
            log.server.pause()
            wait_for(server, lambda stats: not stats.log.connected)
            log.server.resume()
        log.publish(10)
        client.wait(lambda: len(client.prices) == 20)
        assert client.prices == log.prices
        assert [notice.message["notice"] for notice in client.notices] == ["log away", "log back"]
        stats = wait_for(server, lambda stats: stats.log.connected)
        assert (server.stats.connections_total, stats.log.lost, stats.log.reconnects) == (1, 0, 1)


@WIRES
def test_the_log_expired_while_nats_was_away(log: Log, wire: str, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway reports it to its clients, and they report a gap that isn't filled."""
    with Switch(log.server.url) as switch, contextlib.ExitStack() as stack:
        log.publish(10)
        market = JetStreamMarket(switch.url.replace("ws", "nats", 1).rstrip("/"))
        server = stack.enter_context(gateway(log, market))
        client = stack.enter_context(Listener(server.url, wire))
        server.wait_connected()
        log.publish(10)
        client.wait(lambda: len(client.prices) == 10)
        switch.turn(None)
        wait_for(server, lambda stats: not stats.log.connected)
        log.publish(30)
        log.do(lambda jetstream: jetstream.purge_stream("FINX", keep=10))
        switch.turn(log.server.url)
        wait_for(server, lambda stats: stats.log.lost == 20)
        wait_for(server, lambda stats: stats.connections_total > 1 and stats.streams == 1)
        log.publish(5)
        client.wait(lambda: bool(client.gaps) and client.prices[-1:] == log.prices[-1:])
        assert [gap.filled for gap in client.gaps] == [False]
        assert {"notice": "log expired", "source": "FINX", "missing": 20, "pair": PAIR} in [
            notice.message for notice in client.notices
        ]
        assert "20 entries expired" in caplog.text
        assert set(client.prices) <= set(log.prices) - set(range(21, 41))


def test_a_stream_that_was_created_again_ends_the_market(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """Its sequence numbers begin again, so clients' positions mean something else."""
    log.publish(10)
    with gateway(log) as server:
        log.do(lambda jetstream: jetstream.delete_stream("FINX"))
        log.create()
        with pytest.raises(Exception, match="created again"):
            server.wait_finished(timeout=PATIENCE)
        assert health(server) == 503


@contextlib.contextmanager
def losing(log: Log, backup: Path) -> Iterator[None]:
    """Let NATS lose what is acknowledged within the block, as after a crash of several nodes."""
    folder = log.server.folder / "jetstream"
    log.server.kill()
    shutil.copytree(folder, backup)
    log.server.start()
    yield
    log.server.kill()
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    log.server.start()


def recorder_of(server: LocalServer) -> Any:
    return server._settings.source._outlet._recorder


def mark(log: Log, after: int) -> None:
    """What a publisher does when it notices a loss."""
    log.send([(LOST, encoded({"after": after}))])


@WIRES
@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("what", ["fewer", "others", "others and marker"])
def test_nats_lost_entries(
    log: Log, wire: str, what: str, in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers are those of other entries when the gateway is back. No client loses a tick, or gets one twice."""
    monkeypatch.setattr("finx_streamer.server.jetstream._CATCH_UP", 0.5)
    log.publish(10)
    with Switch(log.server.url) as switch, contextlib.ExitStack() as stack:
        market = JetStreamMarket(switch.url.replace("ws", "nats", 1).rstrip("/"))
        server = stack.enter_context(gateway(log, market, store=tmp_path / "ticks.db" if in_file else None))
        client = stack.enter_context(Listener(server.url, wire))
        server.wait_connected()
        with losing(log, tmp_path / "backup"):
            log.publish(10)
            client.wait(lambda: len(client.prices) == 10)
            name = recorder_of(server).log
            switch.turn(None)
            wait_for(server, lambda stats: not stats.log.connected)
        if what == "fewer":
            log.publish(3)
        elif what == "others":
            log.publish(25)
        else:
            mark(log, 10)
            log.send((tick_subject("MINE", PAIR), encoded(tick(number))) for number in range(11, 21))
            log.publish(15)
        switch.turn(log.server.url)
        wait_for(server, lambda stats: stats.log.resets == 1 and stats.log.filling_done)
        wait_for(server, lambda stats: stats.connections_total > 1 and stats.streams == 1)
        log.publish(5)
        client.wait(lambda: bool(client.gaps) and client.prices[-1:] == log.prices[-1:])
        assert client.prices == log.prices[10:]
        assert [gap.filled for gap in client.gaps] == [True]
        lost = {"notice": "log lost entries", "source": "FINX", "after": 10, "pair": PAIR}
        assert lost in [notice.message for notice in client.notices]
        # The name is that of other gateways only after the marker.
        assert recorder_of(server).log != name
        with gateway(log) as other:
            is_known = recorder_of(other).log == recorder_of(server).log
            assert is_known == (what == "others and marker")
            if not is_known:
                mark(log, 10)
                wait_for(server, lambda stats: stats.log.newest == log.end)
                wait_for(other, lambda stats: stats.log.newest == log.end)
                wait_until(lambda: recorder_of(other).log == recorder_of(server).log, "the names agree")
        assert market.log_stats.foreign == 0
    assert market.log_stats.resets == 1


@pytest.mark.parametrize("count", [3, 25])
def test_nats_lost_entries_of_a_store_file(log: Log, count: int, tmp_path: Path) -> None:
    """While the gateway was stopped. The file is filled again."""
    log.publish(10)
    with losing(log, tmp_path / "backup"):
        log.publish(10)
        with gateway(log, store=tmp_path / "ticks.db") as server:
            assert server.stats.ticks_stored == 20
            name = recorder_of(server).log
    del log.prices[10:]
    log.publish(count)
    for resets in (1, 0):
        with gateway(log, store=tmp_path / "ticks.db") as server, FunctionClient("demo", server.url) as functions:
            assert server.stats.log is not None
            assert server.stats.log.resets == resets
            found = functions.iter_tick_history(PAIR, MIDNIGHT, MIDNIGHT + timedelta(hours=1))
            assert [int(each["price"]) for each in found] == log.prices
            assert recorder_of(server).log != name


def test_a_marker_of_lost_entries(log: Log, dial: Dial) -> None:
    """Clients stay connected, and get a notice. Earlier positions are refused. The marker is no foreign message."""
    log.publish(10)
    with gateway(log) as first, gateway(log) as second:
        stream = Stream(dial, first)
        mark(log, 8)
        assert json.loads(stream.peer.recv(timeout=TIMEOUT)) == {
            "notice": "log lost entries",
            "source": "FINX",
            "after": 8,
            "pair": PAIR,
        }
        log.publish(1)
        assert stream.read(1) == [(12, 11)]
        for server in (first, second):
            wait_for(server, lambda stats: stats.log.newest == 12)
            assert Stream(dial, server, f"{stream.log}:10").refused
        name = Stream(dial, first).log
        assert Stream(dial, second, f"{name}:9").read(2) == [(10, 10), (12, 11)]
        with gateway(log) as third:
            assert Stream(dial, third, f"{name}:9").read(2) == [(10, 10), (12, 11)]
        stats = first.stats.log
        assert stats is not None
        assert (stats.foreign, stats.resets, first.stats.connections_total) == (0, 0, 3)


def test_a_marker_of_lost_entries_that_were_read(log: Log) -> None:
    """Without a reconnect in between. What the store has is another tick than the log's."""
    log.publish(10)
    with gateway(log) as server, FunctionClient("demo", server.url) as functions:
        log.publish(5)
        wait_for(server, lambda stats: stats.ticks_stored == 15)
        store = recorder_of(server).store
        with store._lock:
            store._database.execute("UPDATE tick SET price = '0' WHERE id BETWEEN 9 AND 12")
        mark(log, 8)
        wait_for(server, lambda stats: stats.log.resets == 1 and stats.log.filling_done)
        found = functions.iter_tick_history(PAIR, MIDNIGHT, MIDNIGHT + timedelta(hours=1))
        assert [int(each["price"]) for each in found] == log.prices


def test_history_waits_until_the_store_is_filled_again(log: Log, dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no client takes it for complete. Meanwhile, earlier positions get 503."""
    log.publish(10)
    with gateway(log) as server, FunctionClient("demo", server.url) as functions:
        name = Stream(dial, server).log
        monkeypatch.setattr("finx_streamer.server.outlets.LogOutlet.end_refilling", lambda outlet: None)
        recorder_of(server).store.is_refilling = True
        with pytest.raises(InvalidStatus) as refused:
            Stream(dial, server, f"{name[:18]}-1_0:5")
        assert refused.value.response.status_code == 503
        with pytest.raises(FinxStreamerError, match="incomplete here"):
            list(functions.iter_tick_history(PAIR, MIDNIGHT, MIDNIGHT + timedelta(hours=1)))
        monkeypatch.undo()
        wait_until(lambda: not recorder_of(server).store.is_refilling, "it's complete")
        assert Stream(dial, server, f"{name[:18]}-1_0:5").refused


def test_foreign_messages_are_skipped(log: Log, dial: Dial, caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, and logged once a minute, without their text."""
    subject = tick_subject("MINE", PAIR)
    foreign = [
        (subject, b"secret"),
        (subject, b"\xff\xfe"),
        (subject, b"[" * 100_000),
        (subject, encoded(tick(1, OTHER))),
        (subject, encoded(tick(1) | {"exchange": "OTHER"})),
        (subject, encoded(tick(1) | {"time": "25:00:00Z"})),
        (subject, encoded(tick(1) | {"price": "1e"})),
        (subject, encoded([])),
        ("finx.v1.ticks.MINE.BTC", encoded(tick(1))),
        ("finx.v1.ticks.MINE.a b.c".replace(" ", "%20"), encoded(tick(1, "a b:c"))),
        (greeks_subject("DERIBIT", CONTRACT), encoded({"instrument_name": "BTC-PERPETUAL", "timestamp": "1"})),
        (greeks_subject("DERIBIT", "x"), b"{}"),
        (greeks_subject("DERIBIT", CONTRACT), b"null"),
    ]
    log.publish(1)
    with gateway(log) as server:
        stream = Stream(dial, server)
        log.send(foreign)
        # In an uncommon form, but valid.
        log.send([(subject, json.dumps(tick(7) | {"price": "7E0"}).encode())])
        assert json.loads(stream.peer.recv(timeout=TIMEOUT))["resultData"]["price"] == "7E0"
        assert server.stats.log is not None
        assert wait_for(server, lambda stats: stats.log.newest == len(foreign) + 2).log.foreign == len(foreign)
    assert len([record for record in caplog.records if "isn't a tick" in record.message]) == 1
    assert "secret" not in caplog.text
    with gateway(log) as server:
        assert server.stats.ticks_stored == 2


def test_which_pairs_it_serves(log: Log, dial: Dial) -> None:
    """Those in the stream, and new ones as they appear; or only those that were asked for."""
    log.publish(1, "币安人生:USDT")
    chosen = JetStreamMarket(log.server.url, pairs=[PAIR])
    with gateway(log) as server, gateway(log, chosen) as other:
        assert server._settings.source.pairs == {"币安人生:USDT"}
        log.publish(1)
        log.publish(1, OTHER)
        wait_for(server, lambda stats: stats.ticks_stored == 3)
        wait_for(other, lambda stats: stats.log.newest == 3 and stats.ticks_stored == 1)
        assert server._settings.source.pairs == {"币安人生:USDT", PAIR, OTHER}
        assert other._settings.source.pairs == {PAIR}
        with pytest.raises(InvalidStatus):
            dial(other, f"streaming/demo/{OTHER}")


def ticker(name: str, second: int) -> tuple[str, bytes]:
    timestamp = int(MIDNIGHT.timestamp() + second) * 1_000
    values = {"instrument_name": name, "timestamp": str(timestamp), "mark_price": str(second)}
    return greeks_subject("DERIBIT", name), encoded(values)


def test_greeks(log: Log, dial: Dial) -> None:
    """Contracts that have expired aren't listed. Earlier tickers are filled in, for the matrix."""
    log.send([ticker(CONTRACT, 0), ticker(CONTRACT, 300), ticker("BTC-26AUG22-20000-C", 0)])
    with gateway(log) as server, FunctionClient("demo", server.url) as functions:
        assert functions.list_contracts() == [CONTRACT]
        assert server.stats.log is not None
        assert server.stats.log.first == 1
        peer = dial(server, f"streaming/greeks/demo/{CONTRACT}")
        log.send([ticker(CONTRACT, 301), ticker("BTC-PERPETUAL", 301)])
        assert json.loads(peer.recv(timeout=TIMEOUT))["resultData"]["mark_price"] == "301"
        wait_for(server, lambda stats: stats.greeks_played == 2)
        assert sorted(functions.list_contracts()) == sorted([CONTRACT, "BTC-PERPETUAL"])
        points = {0: [(CONTRACT, 0.0)], 300: [(CONTRACT, 300.0)], 600: [(CONTRACT, 301.0), ("BTC-PERPETUAL", 301.0)]}
        for second, expected in points.items():
            matrix = functions.five_minute_matrix("BTC", at=MIDNIGHT + timedelta(seconds=second))
            assert [(row["symbol"], row["mark_price"]) for row in matrix] == expected


def test_nothing_else_can_be_put_into_the_log(log: Log) -> None:
    with gateway(log) as server:
        for put in (server.emit, lambda each: server.import_ticks([each])):
            with pytest.raises(ConfigurationError, match="gateway"):
                put(tick(1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"stream": "a.b"},
        {"stream": ""},
        {"pairs": "BTC:USDC"},
        {"pairs": ["x"]},
        {"since": 5},
        {"since": datetime(2026, 1, 1)},
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        JetStreamMarket("nats://127.0.0.1", **arguments)


def test_a_cluster_loses_the_node_that_a_gateway_is_connected_to(nats_cluster: NatsCluster) -> None:
    """It goes on at another one, and its clients notice nothing but notices."""
    log = Log(nats_cluster.nodes[0], num_replicas=3)
    log.publish(1)
    with LocalServer(JetStreamMarket(nats_cluster.url)) as server, Listener(server.url) as client:
        server.wait_connected(timeout=PATIENCE)
        for index in range(3):
            log.publish(10)
            nats_cluster.nodes[index].kill()
            log.server = nats_cluster.nodes[(index + 1) % 3]
            log.publish(10)
            nats_cluster.nodes[index].start()
            nats_cluster.wait_ready()
        wait_for(server, lambda stats: stats.log.newest == 61)
        client.wait(lambda: client.prices[-1:] == log.prices[-1:])
        assert client.prices == log.prices[1:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_gateway_resumes_after_many_ticks(log: Log) -> None:
    """On one connection. The gateways are processes of their own, as users run them.

    A million of them takes a minute: FINX_RESUME_TICKS=1000000, with pytest's option -o faulthandler_timeout=0.
    """
    count, missed = int(os.environ.get("FINX_RESUME_TICKS", "100000")), 20_000
    log.publish(1)
    with contextlib.ExitStack() as stack:
        urls = []
        for _ in range(2):
            command = stack.enter_context(running("serve", "--from", log.server.url, "--port", "0"))
            urls.append(command.stdout.readline().split()[-1])
        switch = stack.enter_context(Switch(urls[0]))
        received = itertools.count(1)
        expected = itertools.count(2)
        wrong: list[Any] = []
        gaps: list[Gap] = []
        done = threading.Event()

        def on_tick(tick: Any) -> None:
            if tick["price"] != str(next(expected)):
                wrong.append(tick)
            if next(received) in (count, count + missed):
                done.set()

        listener = StreamListener(
            PAIR, api_key="demo", endpoint=switch.url, parse_price=str, on_tick=on_tick, on_gap=gaps.append
        )
        stack.enter_context(listener)
        wait_until(lambda: listener.stats.state is State.STREAMING, "the stream has begun")
        log.publish_fast(count)
        assert done.wait(300.0)
        assert (gaps, listener.stats.reconnects) == ([], 0)
        done.clear()
        switch.turn(None)
        log.publish_fast(missed)
        switch.turn(urls[1])
        assert done.wait(PATIENCE)
        assert not wrong
        assert [gap.filled for gap in gaps] == [True]
