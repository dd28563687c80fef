"""Finding out what is in the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from nats.aio.client import Client

from finx_streamer.jetstream.logged import Logged
from finx_streamer.jetstream.message import Message
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
