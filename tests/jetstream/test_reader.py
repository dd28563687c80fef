"""`reading`: the entries of a stream, in order, from a sequence or a time on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')
from nats.aio.client import Client

from finx_streamer import ConfigurationError, ConnectionFailed
from finx_streamer.jetstream import Nats, reader
from finx_streamer.jetstream.connection import connected
from finx_streamer.jetstream.reader import Entry, find_last, read_up_to, reading
from tests.support.nats import NatsServer


def run(server: NatsServer, test: Callable[[Client], Awaitable[None]]) -> None:
    """Run a test with a connection and a stream."""

    async def connect() -> None:
        async with connected(Nats(urls=server.url), "test") as client:
            await client.jetstream().add_stream(name="S", subjects=["s.>"])
            await test(client)

    asyncio.run(asyncio.wait_for(connect(), 40.0))


async def store(client: Client, count: int, subject: str = "s.a", first: int = 0) -> None:
    for number in range(first, first + count):
        await client.publish(subject, str(number).encode(), headers={"Nats-Msg-Id": f"{subject}{number}"})
    await client.jetstream().stream_info("S")


async def numbers(client: Client, **where: Any) -> list[int]:
    """The sequence numbers up to the last one."""
    last = await find_last(client, "S", "s.a")
    assert last is not None
    return [entry.number async for entry in read_up_to(client, "S", "s.a", last.number, **where)]


def test_it_reads_from_a_number_on_and_only_what_is_wanted(nats_server: NatsServer) -> None:
    async def test(client: Client) -> None:
        await store(client, 3)
        await store(client, 3, "s.b")
        await store(client, 3, first=3)
        assert await numbers(client) == [1, 2, 3, 7, 8, 9]
        assert await numbers(client, after=2) == [3, 7, 8, 9]
        async with reading(client, "S", "s.b") as log:
            [first, *_] = await log.read()
        assert (first.number, first.subject, first.payload, first.message_id) == (4, "s.b", b"0", "s.b0")
        assert abs(first.stored_ns / 1e9 - datetime.now(UTC).timestamp()) < 60

    run(nats_server, test)


def test_it_reads_from_a_time_on(nats_server: NatsServer) -> None:
    async def test(client: Client) -> None:
        await store(client, 3)
        await asyncio.sleep(0.05)
        now = datetime.now(UTC)
        await asyncio.sleep(0.05)
        await store(client, 3, first=3)
        assert await numbers(client, since=now) == [4, 5, 6]
        assert await numbers(client, since=now - timedelta(days=1)) == [1, 2, 3, 4, 5, 6]

    run(nats_server, test)


def test_it_waits_for_more(nats_server: NatsServer) -> None:
    """Also longer than the time after which a silent NATS counts as gone."""

    async def test(client: Client) -> None:
        async with reading(client, "S", "s.a") as log:
            for first in (0, 1):
                task = asyncio.create_task(log.read())
                await asyncio.sleep(4.0 if first else 0.0)
                await store(client, 1, first=first)
                assert [entry.payload for entry in await task] == [str(first).encode()]

    run(nats_server, test)


def test_many_entries_are_read_in_order(nats_server: NatsServer) -> None:
    """More than NATS sends without an answer to its flow control, and while more are stored."""

    async def test(client: Client) -> None:
        await store(client, 30_000)
        storing = asyncio.create_task(store(client, 5_000, first=30_000))
        found = await numbers(client)
        await storing
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= 30_000

    run(nats_server, test)


def test_the_last_entry(nats_server: NatsServer) -> None:
    async def test(client: Client) -> None:
        assert await find_last(client, "S", "s.>") is None
        await store(client, 2)
        last = await find_last(client, "S", "s.*")
        assert last is not None
        assert (last.number, last.subject, last.payload) == (2, "s.a", b"1")

    run(nats_server, test)


def test_an_entry_that_no_node_sends_is_not_awaited_forever(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_LAG", 0.1)

    async def test(client: Client) -> None:
        await store(client, 2)
        with pytest.raises(ConnectionFailed, match="entry 5 didn't come"):
            [_ async for _ in read_up_to(client, "S", "s.a", 5)]

    run(nats_server, test)


def test_it_reads_on_from_another_node(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same node, a little later, stands for one that doesn't lag behind."""
    monkeypatch.setattr(reader, "_LAG", 0.1)

    async def test(client: Client) -> None:
        await store(client, 2)
        found: list[int] = []

        async def add() -> None:
            while not found:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.15)
            await store(client, 1, first=2)

        adding = asyncio.create_task(add())
        async for entry in read_up_to(client, "S", "s.a", 3):
            found.append(entry.number)
        await adding
        assert found == [1, 2, 3]

    run(nats_server, test)


def test_a_server_that_goes_away(nats_server: NatsServer) -> None:
    async def test(client: Client) -> None:
        async with reading(client, "S", "s.a") as log:
            nats_server.kill()
            with pytest.raises(ConnectionFailed, match="connection was lost"):
                await log.read()

    run(nats_server, test)


def test_a_server_that_falls_silent(nats_server: NatsServer) -> None:
    async def test(client: Client) -> None:
        async with reading(client, "S", "s.a") as log:
            nats_server.pause()
            with pytest.raises(ConnectionFailed, match=r"nothing arrived|connection was lost"):
                await log.read()
            nats_server.resume()

    run(nats_server, test)


def test_a_stream_that_does_not_exist(nats_server: NatsServer) -> None:
    async def test(client: Client) -> None:
        with pytest.raises((ConfigurationError, ConnectionFailed), match="stream not found"):
            async with reading(client, "NONE", "s.a"):
                pass

    run(nats_server, test)


@pytest.mark.parametrize(
    "message",
    [
        b"PUB s.\xff\xfe 1\r\nx\r\n",
        b"HPUB s.a 14 15\r\nNATS/1.0 \xff\r\n\r\nx\r\n",
        b"HPUB s.a 1 2\r\nxx\r\n",
        b"HPUB s.a 8 9\r\nNATS/1.0x\r\n",
        b"HPUB s.a 25 26\r\nNATS/1.0\r\nStatus: 100\r\n\r\nx\r\n",
        b"HPUB s.a 40 41\r\nNATS/1.0 100\r\nNats-Last-Consumer: zz\r\n\r\nx\r\n",
    ],
)
def test_a_broken_message_does_not_keep_others_from_being_read(nats_server: NatsServer, message: bytes) -> None:
    async def test(client: Client) -> None:
        await store(client, 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + message + b"PING\r\n")
        assert (await reader.readline()).startswith(b"INFO ")
        assert await reader.readline() == b"PONG\r\n"
        writer.close()
        await store(client, 1, first=1)
        found: list[Entry] = []
        async with reading(client, "S", "s.>") as log:
            while len(found) < 3:
                found += await log.read()
        assert [entry.number for entry in found] == [1, 2, 3]
        assert (found[0].message_id, found[1].message_id, found[2].message_id) == ("s.a0", None, "s.a1")

    run(nats_server, test)
