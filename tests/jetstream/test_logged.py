"""`Logged`: which messages are in the log, read no more often than needed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from nats.aio.client import Client

from finx_streamer.jetstream.logged import Logged
from finx_streamer.jetstream.message import Message
from tests.support.nats import NatsServer
from tests.support.publishing import ask


def message(name: str, age: float = 0.0) -> Message:
    moment = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=age)
    return Message("b", b"", name, "MINE", moment.isoformat(), 0, "b")


@pytest.mark.parametrize(("valid", "found"), [(60.0, {"1"}), (-1.0, {"1", "new"})])
def test_a_look_at_the_log_stays_good_for_a_while(nats_server: NatsServer, valid: float, found: set[str]) -> None:
    """NATS still remembers what is newer."""

    async def look(client: Client) -> set[str]:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="S", subjects=["a", "b"])
        for name, subject in (("0", "a"), ("1", "b"), ("2", "a")):
            await jetstream.publish(subject, b"", headers={"Nats-Msg-Id": name})
        logged = Logged(client, "S", valid)
        assert await logged.find([message("0"), message("1"), message("new")]) == {"1"}
        await jetstream.publish("b", b"", headers={"Nats-Msg-Id": "new"})
        return await logged.find([message("1"), message("new")])

    assert ask(nats_server.url, look) == found


def test_many_checks_while_others_publish(nats_server: NatsServer) -> None:
    """NATS 2.9 says that more is pending than comes. Nothing waits for that."""

    async def look(client: Client) -> int:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="S", subjects=["a", "b"])
        ended = asyncio.Event()

        async def publish() -> int:
            number = 0
            while not ended.is_set():
                await client.publish("ab"[number % 2], b"", headers={"Nats-Msg-Id": str(number)})
                number += 1
                if number % 10 == 0:
                    await asyncio.sleep(0.005)
            return number

        task = asyncio.create_task(publish())
        logged = Logged(client, "S", -1.0)
        for age in range(50):
            assert await logged.find([message("none", age)]) == set()
        ended.set()
        return await task

    assert ask(nats_server.url, look) > 50
