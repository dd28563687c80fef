"""`JetStreamPublisher` with real NATS servers: each tick is in the log once, or its loss is reported."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from nats.js.api import DiscardPolicy, StreamConfig

from finx_streamer import ConfigurationError, Gap, PublishError, State, StreamListener
from finx_streamer.jetstream import JetStreamPublisher, waiting
from finx_streamer.jetstream.subjects import SETTLED
from finx_streamer.server import LocalServer
from tests.support.nats import NatsServer
from tests.support.peers import PATIENCE, QUICK
from tests.support.program import run_program
from tests.support.publishing import Script, ask, check_log, logged, prices, read_log, ticks_now, wait_for

PAIR, OTHER = "BTC:USDC", "ETH:USDC"
DAY = timedelta(days=1)


def new_listener(server: LocalServer, *pairs: str, **settings: Any) -> StreamListener:
    defaults: dict[str, Any] = {"parse_price": str, "reconnect": QUICK, "keep": 0}
    return StreamListener(*(pairs or (PAIR,)), endpoint=server.url, api_key="demo", **defaults | settings)


@contextmanager
def publishing(
    url: str, server: LocalServer, *pairs: str, errors: list[PublishError] | None = None, **settings: Any
) -> Iterator[JetStreamPublisher]:
    """Publish all that the server sends, from its next tick on."""
    found: list[PublishError] = [] if errors is None else errors
    streams = server.stats.streams + len(pairs or (PAIR,))
    with JetStreamPublisher(url, on_error=found.append, **settings) as publisher:
        listener = new_listener(server, *pairs)
        publisher.attach(listener)
        with listener:
            server.wait_until(lambda stats: stats.streams >= streams)
            yield publisher
            assert found == [] or errors is not None


@pytest.fixture
def source() -> Script:
    return Script(PAIR, OTHER)


@pytest.fixture
def server(source: Script) -> Iterator[LocalServer]:
    with LocalServer(source) as server:
        yield server


def test_each_tick_is_logged_as_it_was_sent(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """In order, on a subject of its own, with the price in the sender's own text."""
    ticks = ticks_now(3, exchange="X.Y *") + ticks_now(2, OTHER)
    ticks[0]["price"] = "21865.010000000002"
    with publishing(nats_server.url, server, PAIR, OTHER) as publisher:
        source.send(ticks)
        wait_for(lambda: publisher.stats.published == 5)
        log = read_log(nats_server.url)
        assert [tick for tick in log if tick["pair"] == PAIR] == ticks[:3]
        assert [tick for tick in log if tick["pair"] == OTHER] == ticks[3:]
        assert list(log[0]) == ["pair", "date", "time", "exchange", "price"]
        info = ask(nats_server.url, lambda client: client.jetstream().stream_info("FINX", subjects_filter=">"))
        assert info.state.subjects == {"finx.v1.ticks.X%2EY%20%2A.BTC.USDC": 3, "finx.v1.ticks.MINE.ETH.USDC": 2}
        assert publisher.stats.exchanges == {"X.Y *": 3, "MINE": 2}
    assert (publisher.stats.lost, publisher.stats.in_flight, publisher.stats.waiting) == (0, 0, 0)


def test_two_publishers_act_as_one(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """With equal ticks, late ticks, several exchanges, and one that joins in the middle of a millisecond."""
    rng = random.Random(17)
    with publishing(nats_server.url, server, PAIR, OTHER) as first:
        repeated = ticks_now(2)
        source.send(repeated)
        wait_for(lambda: first.stats.published == 2)
        with publishing(nats_server.url, server, PAIR, OTHER) as second:
            source.send(repeated * 2)
            sent: list[dict[str, str]] = []
            for number in range(100):
                new = ticks_now(5, rng.choice((PAIR, OTHER)), rng.choice("ABC"), number)
                sent += new
                source.send(rng.sample(new, 5) + rng.choices(sent, k=5))
            check_log(nats_server.url, source)
            wait_for(lambda: second.stats.in_flight == 0, lambda: (first.stats, second.stats))
            assert first.stats.published + second.stats.published == source.sent.total()
            assert second.stats.duplicates + second.stats.skipped > 0


def test_a_publisher_that_starts_again_gets_what_was_missed(
    nats_server: NatsServer, source: Script, server: LocalServer
) -> None:
    """From the source's history, with nothing twice, whether or not another one has run meanwhile."""
    for number in range(3):
        with publishing(nats_server.url, server) as publisher:
            source.send(ticks_now(50) * 2)
            wait_for(lambda: publisher.stats.waiting + publisher.stats.in_flight == 0)
        source.send(ticks_now(50, first=1_000 * number) * 2)
    with publishing(nats_server.url, server):
        check_log(nats_server.url, source)


def test_a_pair_that_is_added_begins_where_the_log_ends(
    nats_server: NatsServer, source: Script, server: LocalServer
) -> None:
    with publishing(nats_server.url, server, OTHER) as publisher:
        source.send(ticks_now(1, OTHER))
        wait_for(lambda: publisher.stats.published == 1)
    source.send(ticks_now(2, OTHER, first=1))
    with JetStreamPublisher(nats_server.url) as publisher:
        listener = new_listener(server, PAIR)
        publisher.attach(listener)
        with listener:
            listener.add(OTHER)
            wait_for(lambda: publisher.stats.published == 2)
            check_log(nats_server.url, source)


@pytest.mark.parametrize("window", [120.0, 1.0])
def test_an_outage_of_nats(window: float, nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """Shorter or longer than NATS remembers IDs. What was in flight isn't stored twice."""
    errors: list[PublishError] = []
    settings = {"errors": errors, "duplicate_window": timedelta(seconds=window)}
    with (
        publishing(nats_server.url, server, **settings) as first,
        publishing(nats_server.url, server, **settings) as second,
    ):
        source.send(ticks_now(100))
        wait_for(lambda: first.stats.published + second.stats.published == 100)
        # Ticks of the time in which a publisher joins are looked for in the log anyway.
        wait_for(lambda: not any(each.stats.in_flight or each.stats.waiting for each in (first, second)))
        checked = first.stats.checked + second.stats.checked
        nats_server.pause()
        source.send(ticks_now(100, first=100) * 2)
        wait_for(lambda: first.stats.in_flight + second.stats.in_flight > 0)
        nats_server.kill()
        wait_for(lambda: not first.stats.connected and not second.stats.connected)
        source.send(ticks_now(100, first=200) * 2)
        time.sleep(window if window < 10 else 0)  # NATS forgets
        nats_server.start()
        wait_for(lambda: first.stats.connected and second.stats.connected)
        check_log(nats_server.url, source)
    assert {error.lost for error in errors} == {0}
    assert sorted({error.reason for error in errors if "connection" not in error.reason}) != []
    assert first.stats.lost == second.stats.lost == 0
    # How many of them are skipped depends on which publisher is back first.
    assert (first.stats.checked + second.stats.checked > checked) is (window < 10)
    if window < 10:
        # Before anything was sent again, NATS had settled what became of it.
        assert ask(nats_server.url, lambda client: client.jetstream().get_last_msg("FINX", SETTLED)).seq


@pytest.mark.parametrize("filled", [True, False])
def test_an_outage_of_the_source(filled: bool, nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """A publisher that has missed ticks, and perhaps can't get them, takes none from the other one."""
    gaps: list[Gap] = []
    with LocalServer(source) as other, publishing(nats_server.url, other) as steady:
        source.send(ticks_now(1))
        wait_for(lambda: steady.stats.published == 1)
        with JetStreamPublisher(nats_server.url) as publisher:
            listener = new_listener(server, backfill=filled, on_gap=gaps.append)
            publisher.attach(listener)
            with listener:
                server.wait_until(lambda stats: stats.streams == 1)
                ticks = ticks_now(10)
                source.send(ticks)
                server.refuse_next(None, 503)
                server.drop_connections()
                source.send(ticks * 2)
                server.refuse_next(0, 503)
                wait_for(lambda: listener.state is State.STREAMING)
                server.wait_until(lambda stats: stats.streams == 1)
                source.send(ticks + ticks_now(10, first=10))
                wait_for(lambda: any(gap.filled is filled for gap in gaps))
                check_log(nats_server.url, source)
                wait_for(lambda: publisher.stats.waiting + publisher.stats.in_flight == 0)
        check_log(nats_server.url, source)


def test_back_pressure_reaches_the_source(
    nats_server: NatsServer, source: Script, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full queue makes the callback wait. Nothing is lost."""
    with publishing(nats_server.url, server, max_waiting=10, max_in_flight=5) as publisher:
        source.send(ticks_now(5_000))
        check_log(nats_server.url, source)
        assert publisher.stats.lost == 0


def test_waiting_is_bounded_and_the_loss_is_reported(
    nats_server: NatsServer, source: Script, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once at its beginning and once at its end, with the number of ticks."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.2)
    errors: list[PublishError] = []
    with publishing(nats_server.url, server, max_waiting=20, max_in_flight=10, errors=errors) as publisher:
        source.send(ticks_now(1))
        wait_for(lambda: publisher.stats.published == 1)
        nats_server.kill()
        source.send(ticks_now(1_000, first=1))
        wait_for(lambda: any("from now on" in error.reason for error in errors))
        assert publisher.stats.waiting <= 20
        wait_for(lambda: not publisher.stats.connected)
        nats_server.start()
        wait_for(lambda: any(error.lost for error in errors))
        source.send(ticks_now(1, first=1_001))
        wait_for(lambda: prices(read_log(nats_server.url))[-1] == "1001")
        lost = [error.lost for error in errors if error.lost]
        assert sum(lost) == publisher.stats.lost == source.sent.total() - logged(nats_server.url).total() > 900
        assert logged(nats_server.url) <= source.sent
        assert len(lost) == sum("from now on" in error.reason for error in errors)


def test_ticks_wait_while_the_disk_is_full(tmp_path: Path, source: Script, server: LocalServer) -> None:
    """A limit of NATS stands for it. That is reported, and nothing is lost once there is room."""
    errors: list[PublishError] = []
    with (
        NatsServer(tmp_path, jetstream="max_file_store: 1MB") as nats_server,
        publishing(nats_server.url, server, errors=errors) as publisher,
    ):
        source.send(ticks_now(8_000))
        wait_for(lambda: any("its disk may be full" in error.reason for error in errors))
        assert not publisher.stats.connected
        ask(nats_server.url, lambda client: client.jetstream().purge_stream("FINX"))
        wait_for(lambda: publisher.stats.published == 8_000)
        wait_for(lambda: publisher.stats.connected)
    assert {error.lost for error in errors} == {0}


def test_a_stream_that_is_full_makes_ticks_wait(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """With discard=new, NATS refuses them. They are sent once there is room."""
    config = StreamConfig(name="FINX", subjects=["finx.v1.>"], max_msgs=5, discard=DiscardPolicy.NEW)
    ask(nats_server.url, lambda client: client.jetstream().add_stream(config))
    errors: list[PublishError] = []
    with publishing(nats_server.url, server, errors=errors) as publisher:
        source.send(ticks_now(8))
        wait_for(lambda: errors)
        assert "10077" in errors[0].reason
        assert "nats stream edit" in errors[0].reason
        config.max_msgs = 10
        ask(nats_server.url, lambda client: client.jetstream().update_stream(config))
        check_log(nats_server.url, source)
        wait_for(lambda: len(errors) == 2)
        assert (errors[1].reason, publisher.stats.lost) == ("NATS accepts ticks again", 0)


def test_history_waits_as_long_as_it_takes(
    nats_server: NatsServer, source: Script, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that starts again while NATS takes nothing has a full queue, and drops nothing."""
    monkeypatch.setattr(waiting, "PATIENCE", 0.05)
    config = StreamConfig(name="FINX", subjects=["finx.v1.>"], max_msgs=5, discard=DiscardPolicy.NEW)
    ask(nats_server.url, lambda client: client.jetstream().add_stream(config))
    with publishing(nats_server.url, server) as publisher:
        source.send(ticks_now(3))
        wait_for(lambda: publisher.stats.published == 3)
    source.send(ticks_now(500, first=3))
    with publishing(nats_server.url, server, max_waiting=20, max_in_flight=10, errors=[]) as publisher:
        wait_for(lambda: publisher.stats.waiting >= 20)
        time.sleep(0.3)
        config.max_msgs = 1_000
        ask(nats_server.url, lambda client: client.jetstream().update_stream(config))
        check_log(nats_server.url, source)
        assert publisher.stats.lost == 0


def test_a_tick_that_nats_refuses_is_lost_and_the_rest_continues(
    nats_server: NatsServer, source: Script, server: LocalServer
) -> None:
    config = StreamConfig(name="FINX", subjects=["finx.v1.>"], max_msg_size=200)
    ask(nats_server.url, lambda client: client.jetstream().add_stream(config))
    errors: list[PublishError] = []
    with publishing(nats_server.url, server, errors=errors) as publisher:
        good, bad = ticks_now(2)
        source.send([{**bad, "price": "1" * 300}, good])
        wait_for(lambda: errors)
        wait_for(lambda: publisher.stats.published == 1)
        assert read_log(nats_server.url) == [good]
        assert (errors[0].lost, publisher.stats.lost) == (1, 1)
        assert "maximum" in errors[0].reason


def test_foreign_messages_do_no_harm(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """Neither where the log ends, nor where it's compared."""

    async def publish(client: Any) -> None:
        for subject in ("finx.v1.ticks.MINE.BTC.USDC", "finx.v1.x", "finx.v1.ticks.A.B"):
            for payload in (b"", b"\xff", b"[]", b'{"pair":1}', b'{"date":"","time":""}', b'{"date":5,"time":6}'):
                await client.publish(subject, payload)
        await client.flush()

    with publishing(nats_server.url, server) as publisher:
        source.send(ticks_now(2))
        wait_for(lambda: publisher.stats.published == 2)
    ask(nats_server.url, publish)
    source.send(ticks_now(2, first=2))
    with publishing(nats_server.url, server) as publisher:
        source.send(ticks_now(2, first=4))
        wait_for(lambda: publisher.stats.published == 4, lambda: publisher.stats)
        ask(nats_server.url, publish)
        source.send(ticks_now(2, first=6))
        wait_for(lambda: publisher.stats.published == 6)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"parse_price": float}, "parse_price=str"),
        ({"overflow": "latest"}, "overflow='block'"),
        ({"record": "ticks"}, "without record"),
    ],
)
def test_a_listener_that_changes_ticks_is_refused(settings: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with JetStreamPublisher("nats://127.0.0.1:1", on_error=lambda error: None) as publisher:
        listener = StreamListener(PAIR, endpoint="ws://127.0.0.1:1", api_key="demo", **{"parse_price": str} | settings)
        with pytest.raises(ConfigurationError, match=problem):
            publisher.attach(listener)


def test_a_listener_that_runs_is_refused(server: LocalServer) -> None:
    with (
        JetStreamPublisher("nats://127.0.0.1:1", on_error=lambda error: None) as publisher,
        new_listener(server) as listener,
        pytest.raises(ConfigurationError, match="before you start it"),
    ):
        publisher.attach(listener)


def test_a_start_waits_for_nats(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """A publisher that starts while NATS is away waits, and reports it once."""
    nats_server.kill()
    errors: list[PublishError] = []
    with JetStreamPublisher(nats_server.url, on_error=errors.append) as publisher:
        listener = new_listener(server)
        publisher.attach(listener)
        thread = threading.Thread(target=listener.start)
        thread.start()
        assert not publisher.connect(timeout=0.5)
        wait_for(lambda: errors)
        nats_server.start()
        thread.join(20)
        assert publisher.connect(timeout=20)
        server.wait_until(lambda stats: stats.streams == 1)
        source.send(ticks_now(1))
        wait_for(lambda: publisher.stats.published == 1)
        listener.stop()
        assert ["can't be reached" in error.reason for error in errors] == [True, False]


def test_without_on_error_problems_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "finx_streamer"), JetStreamPublisher("nats://127.0.0.1:1"):
        wait_for(lambda: caplog.records)
    assert "publishing: NATS at nats://127.0.0.1:1 can't be reached" in caplog.text


def test_an_on_error_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: PublishError) -> None:
        raise RuntimeError("broken")

    with JetStreamPublisher("nats://127.0.0.1:1", on_error=fail):
        wait_for(lambda: "on_error failed" in caplog.text)


def test_the_end_reports_what_is_lost(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    errors: list[PublishError] = []
    with publishing(nats_server.url, server, errors=errors) as publisher:
        source.send(ticks_now(1))
        wait_for(lambda: publisher.stats.published == 1)
        nats_server.kill()
        source.send(ticks_now(3, first=1))
        wait_for(lambda: publisher.stats.waiting + publisher.stats.in_flight == 3)
        assert publisher.close(timeout=0.1) is False
        assert publisher.close() is False
        assert (errors[-1].lost, publisher.stats.lost) == (3, 3)
        with pytest.raises(ConfigurationError, match="closed"):
            publisher.connect()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"stream": ""}, "stream"),
        ({"stream": "a.b"}, "stream"),
        ({"max_age": 5}, "max_age"),
        ({"max_bytes": "1GB"}, "max_bytes"),
        ({"replicas": 0}, "replicas"),
        ({"duplicate_window": timedelta(0)}, "duplicate_window"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"on_error": 5}, "on_error"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        JetStreamPublisher("nats://127.0.0.1:1", **arguments)


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"exchange": ""}, "a name is empty"),
        ({"pair": "BTC"}, "a name is empty"),
        ({"exchange": "币" * 500}, "its names are too long"),
        ({"price": "1" * (1_048_576 - 130)}, "max_payload"),
        ({"price": "1" * 3_000_000}, "max_payload"),
        ({"exchange": "币" * 256, "pair": f"{'币' * 32}:{'币' * 32}"}, None),
        ({"date": "0000-00-00"}, None),
    ],
)
def test_a_tick_that_nats_does_not_accept_is_lost_alone(
    nats_server: NatsServer, fields: dict[str, str], lost: str | None
) -> None:
    """It's reported, and the others go on."""
    errors: list[PublishError] = []
    first, odd, last = ({**each, "backfilled": False, "received_ns": time.time_ns()} for each in ticks_now(3))
    with JetStreamPublisher(nats_server.url, on_error=errors.append) as publisher:
        feed: Any = publisher.new_feed()
        for tick in (first, odd | fields, last):
            feed.on_tick(tick)
        assert publisher.close()
        assert (publisher.stats.published, publisher.stats.lost) == ((3, 0) if lost is None else (2, 1))
    assert [error.lost for error in errors] == [1] * (lost is not None)
    assert all(str(lost) in error.reason for error in errors)


@pytest.mark.parametrize("restarts", [True, False])
def test_a_pair_that_begins_again(restarts: bool, nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """The listener starts again, or the pair is removed and added. History has ticks that were published already."""
    with JetStreamPublisher(nats_server.url) as publisher, new_listener(server, OTHER) as listener:
        listener.stop()
        publisher.attach(listener)
        listener.start()
        listener.add(PAIR)
        for number in range(3):
            server.wait_until(lambda stats: stats.symbols.get(PAIR, 0) == 1)
            source.send(ticks_now(10) * 2)
            wait_for(lambda: publisher.stats.published >= source.sent.total())
            if restarts:
                listener.stop()
                source.send(ticks_now(5, first=100 * number))
                listener.start()
            else:
                listener.remove(PAIR)
                source.send(ticks_now(5, first=100 * number))
                listener.add(PAIR)
        source.send(ticks_now(1, first=1_000))
        check_log(nats_server.url, source)
        listener.stop()


def handled(publisher: JetStreamPublisher) -> int:
    stats = publisher.stats
    return stats.published + stats.duplicates + stats.skipped


def test_a_pair_that_begins_again_while_its_ticks_wait(
    nats_server: NatsServer, source: Script, server: LocalServer
) -> None:
    """What the listener's queue has from before is not counted together with what history has."""
    waits, goes_on = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        waits.set()
        goes_on.wait(PATIENCE)

    with JetStreamPublisher(nats_server.url) as publisher:
        listener = new_listener(server, PAIR, OTHER)
        # First, so that it delays the publisher's callbacks.
        listener.on_tick(wait)
        publisher.attach(listener)
        with listener, publishing(nats_server.url, server, PAIR, OTHER) as other:
            server.wait_until(lambda stats: stats.symbols.get(PAIR, 0) == 2)
            source.send(ticks_now(20))
            assert waits.wait(PATIENCE)
            wait_for(lambda: other.stats.published == 20)
            wait_for(lambda: listener.stats.queue_depth >= 19)
            listener.remove(PAIR)
            server.wait_until(lambda stats: stats.symbols.get(PAIR, 0) == 1)
            listener.add(PAIR)
            goes_on.set()
            server.wait_until(lambda stats: stats.symbols.get(PAIR, 0) == 2)
            source.send(ticks_now(1, first=1_000))
            # 20 from the queue, 20 from history, and the last one.
            wait_for(lambda: handled(publisher) == 41)
            check_log(nats_server.url, source)


def test_a_stream_that_is_deleted_is_reported_and_created_again(
    nats_server: NatsServer, source: Script, server: LocalServer
) -> None:
    errors: list[PublishError] = []
    with publishing(nats_server.url, server, errors=errors) as publisher:
        source.send(ticks_now(3))
        wait_for(lambda: publisher.stats.published == 3)
        ask(nats_server.url, lambda client: client.jetstream().delete_stream("FINX"))
        source.send(ticks_now(2, first=10))
        wait_for(lambda: publisher.stats.published == 5)
    assert {"10", "11"} <= set(prices(read_log(nats_server.url)))
    assert len([error for error in errors if "deleted or lost" in error.reason]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_cannot_publish(nats_server: NatsServer) -> None:
    """Only the process that made the publisher has its thread. That one goes on."""
    ended = run_program("fork_with_publisher", nats_server.url)
    assert (ended.stdout.splitlines(), ended.stderr) == (["the publisher is closed", "True 2"], "")
