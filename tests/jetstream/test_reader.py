"""Reading the log up to an entry that the stream's leader knows: other nodes may lag behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from nats.aio.client import Client

from finx_streamer import ConnectionFailed
from finx_streamer.jetstream import reader
from finx_streamer.jetstream.logged import Logged
from finx_streamer.jetstream.message import Message
from finx_streamer.jetstream.reader import find_last, read_up_to
from tests.support.nats import NatsServer
from tests.support.publishing import ask


def read(server: NatsServer, question: Callable[[Client], Awaitable[Any]]) -> Any:
    """The result of a coroutine that gets a connection, and a stream S with the subjects a, b and c."""

    async def prepared(client: Client) -> Any:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="S", subjects=["a", "b", "c"])
        for number in range(4):
            await jetstream.publish("ab"[number % 2], b"", headers={"Nats-Msg-Id": f"{number}"})
        return await question(client)

    return ask(server.url, prepared)


async def numbers(client: Client, subjects: str, **start: Any) -> list[int]:
    last = await find_last(client, "S", subjects or ">")
    assert last is not None
    return [entry.number async for entry in read_up_to(client, "S", subjects, last.number, **start)]


@pytest.mark.parametrize(
    ("subjects", "start", "expected"),
    [
        ("", {}, [1, 2, 3, 4]),
        ("b", {}, [2, 4]),
        ("", {"after": 2}, [3, 4]),
        ("", {"since": datetime.now(UTC) - timedelta(days=1)}, [1, 2, 3, 4]),
    ],
)
def test_it_reads_up_to_the_end(
    nats_server: NatsServer, subjects: str, start: dict[str, Any], expected: list[int]
) -> None:
    assert read(nats_server, lambda client: numbers(client, subjects, **start)) == expected


def test_there_is_no_last_entry_of_other_subjects(nats_server: NatsServer) -> None:
    assert read(nats_server, lambda client: find_last(client, "S", "c")) is None


def test_nodes_that_lag_behind_are_noticed(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They don't have the last entry, which only the stream's leader surely has."""
    monkeypatch.setattr(reader, "_LAG", 0.1)
    found = []

    async def look(client: Client) -> None:
        async for entry in read_up_to(client, "S", "", 5):
            found.append(entry.number)

    with pytest.raises(ConnectionFailed, match="entry 5 didn't come"):
        read(nats_server, look)
    assert found == [1, 2, 3, 4]


def test_it_reads_on_from_another_node(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same node, a little later, stands for one that doesn't lag behind."""
    monkeypatch.setattr(reader, "_LAG", 0.1)

    async def look(client: Client) -> list[int]:
        async def add() -> None:
            while not found:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.15)
            await client.jetstream().publish("a", b"")

        found: list[int] = []
        adding = asyncio.create_task(add())
        async for entry in read_up_to(client, "S", "", 5):
            found.append(entry.number)
        await adding
        return found

    assert read(nats_server, look) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("valid", "found"), [(60.0, {"1"}), (0.0, {"1", "new"})])
def test_a_look_at_the_log_stays_good_for_a_while(nats_server: NatsServer, valid: float, found: set[str]) -> None:
    def message(name: str) -> Message:
        return Message("b", b"", name, "MINE", f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}", 0, "b")

    async def look(client: Client) -> set[str]:
        logged = Logged(client, "S", valid)
        assert await logged.find([message("1"), message("new")]) == {"1"}
        await client.jetstream().publish("b", b"", headers={"Nats-Msg-Id": "new"})
        return await logged.find([message("1"), message("new")])

    assert read(nats_server, look) == found
