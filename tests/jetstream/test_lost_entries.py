"""NATS loses what it has acknowledged, as a cluster may after two of three nodes failed at once. It's sent again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer import PublishError, StreamListener
from finx_streamer.jetstream import JetStreamPublisher, sender
from finx_streamer.jetstream.subjects import LOST
from finx_streamer.server import LocalServer
from tests.support.nats import NatsServer
from tests.support.peers import QUICK
from tests.support.publishing import Script, ask, check_log, ticks_now, wait_for

PAIR = "BTC:USDC"


@pytest.fixture
def source() -> Script:
    return Script(PAIR)


@pytest.fixture
def server(source: Script) -> Iterator[LocalServer]:
    with LocalServer(source) as server:
        yield server


@pytest.mark.parametrize("later", [0, 30])
def test_lost_entries_are_sent_again(
    later: int,
    nats_server: NatsServer,
    source: Script,
    server: LocalServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By each publisher, and each tick is stored once. `later`: how many new entries have the numbers of lost ones."""
    monkeypatch.setattr(sender, "_VERIFY_AFTER", 0.5)
    errors: list[PublishError] = []
    with ExitStack() as stack:
        publishers = []
        for number in range(2):
            publisher = stack.enter_context(JetStreamPublisher(nats_server.url, on_error=errors.append))
            listener = StreamListener(PAIR, endpoint=server.url, api_key="demo", parse_price=str, reconnect=QUICK)
            publisher.attach(listener)
            stack.enter_context(listener)
            server.wait_connected(number + 1)
            publishers.append(publisher)
        source.send(ticks_now(50))
        check_log(nats_server.url, source)
        kept = ask(nats_server.url, lambda client: client.jetstream().stream_info("FINX")).state.last_seq
        nats_server.kill()
        shutil.copytree(nats_server.folder / "jetstream", tmp_path / "backup")
        nats_server.start()
        source.send(ticks_now(20, first=50))
        check_log(nats_server.url, source)
        wait_for(lambda: not any(each.stats.in_flight or each.stats.waiting for each in publishers))
        nats_server.kill()
        shutil.rmtree(nats_server.folder / "jetstream")
        shutil.copytree(tmp_path / "backup", nats_server.folder / "jetstream")
        if later:
            source.send(ticks_now(later, first=100))
        nats_server.start()
        wait_for(lambda: any("lost what it had acknowledged after entry" in error.reason for error in errors))
        check_log(nats_server.url, source)
    assert {error.lost for error in errors} == {0}
    mark = ask(nats_server.url, lambda client: client.jetstream().get_last_msg("FINX", LOST))
    assert 50 <= json.loads(mark.data)["after"] <= kept + 1


def test_expired_entries_are_not_lost(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    errors: list[PublishError] = []
    with JetStreamPublisher(nats_server.url, on_error=errors.append) as publisher:
        listener = StreamListener(PAIR, endpoint=server.url, api_key="demo", parse_price=str, reconnect=QUICK)
        publisher.attach(listener)
        with listener:
            server.wait_connected()
            source.send(ticks_now(50))
            wait_for(lambda: publisher.stats.published == 50)
            ask(nats_server.url, lambda client: client.jetstream().purge_stream("FINX"))
            nats_server.restart()
            wait_for(lambda: any("accepts ticks again" in error.reason for error in errors))
            source.send(ticks_now(1, first=50))
            wait_for(lambda: publisher.stats.published == 51)
    assert not any("had acknowledged" in error.reason for error in errors)
