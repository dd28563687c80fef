"""`finx-streamer serve --from`: a gateway as its operators run it, with a real NATS server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')
import nats

from finx_streamer.jetstream.subjects import tick_subject
from tests.support.cli import TICKS, run, running
from tests.support.nats import NatsServer


def do(server: NatsServer, request: Callable[[Any], Awaitable[Any]]) -> None:
    async def done() -> None:
        async with await nats.connect(server.url, allow_reconnect=False) as client:
            await request(client.jetstream())

    asyncio.run(done())


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    """The URL of a NATS server that has a stream of a few ticks."""

    async def publish(jetstream: Any) -> None:
        await jetstream.add_stream(name="FINX", subjects=["finx.v1.>"])
        for tick in TICKS:
            await jetstream.publish(tick_subject(tick["exchange"], tick["pair"]), json.dumps(tick).encode())

    do(nats_server, publish)
    return nats_server.url


def test_it_says_where_its_store_begins(url: str, nats_server: NatsServer) -> None:
    """And when NATS goes away and comes back. Ctrl-C ends it."""
    with running("serve", "--from", url, "--since", "24h", "--port", "0") as command:
        endpoint = command.stdout.readline().split()[-1]
        assert command.stdout.readline() == "pairs:   BTC:USDC\n"
        lines = [command.stderr.readline(), command.stderr.readline()]
        assert lines == [
            "finx-streamer: NATS: connected; the log is at 3\n",
            "finx-streamer: the store is filled; it begins at 1 (2022-07-02 15:30:55 UTC), "
            "after reading 3 earlier entries\n",
        ]
        history = run(
            "history",
            "BTC:USDC",
            "--start",
            "2022-07-02",
            "--end",
            "2022-07-03",
            "--endpoint",
            endpoint,
            FINX_API_KEY="demo",
        )
        assert len(history.stdout.splitlines()) == len(TICKS)
        nats_server.kill()
        while "NATS: away" not in (line := command.stderr.readline()):
            assert line
        nats_server.start()
        while "NATS: connected" not in (line := command.stderr.readline()):
            assert line
        command.send_signal()
        assert command.finish()[0] == 0


def test_a_deleted_stream_ends_it(url: str, nats_server: NatsServer) -> None:
    """So that a supervisor starts it again."""
    with running("serve", "--from", url, "--port", "0") as command:
        assert command.stdout.readline()

        async def replace(jetstream: Any) -> None:
            await jetstream.delete_stream("FINX")
            # A publisher gives each stream that it creates a description of its own.
            await jetstream.add_stream(name="FINX", subjects=["finx.v1.>"], description="another one")

        do(nats_server, replace)
        code, _, err = command.finish()
    assert code == 1
    assert "created again" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "1h"], "--since can only be used with"),
        (["--from", "nats://127.0.0.1", "--live"], "--live can't be used with --from"),
        (["--from", "nats://127.0.0.1", "--rate", "5"], "--rate can't be used with --from"),
        (["--from", "nats://127.0.0.1", "--since", "soon"], "--since"),
        (["--from", "nats://a:b@127.0.0.1"], "must not contain a user"),
        (["--from", "http://127.0.0.1"], "expected nats://"),
        (["--from", "nats://127.0.0.1", "--stream", "a.b"], "stream"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    result = run("serve", *arguments)
    assert result.returncode == 2
    assert says in result.stderr
