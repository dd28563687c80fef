"""A source that sends what a test says, and the log that publishers make of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import nats
from nats.js.api import AckPolicy, ConsumerConfig

from finx_streamer.jetstream.subjects import LOST, SETTLED
from finx_streamer.server import Outlet
from tests.support.peers import PATIENCE

#: A tick's pair, date, time, exchange and price.
Fields = tuple[str, str, str, str, str]
FIELDS = ("pair", "date", "time", "exchange", "price")


class Script:
    """A live source of one or more servers. `send` works from any thread, and waits until they have the ticks."""

    def __init__(self, *pairs: str) -> None:
        self.pairs = frozenset(pairs)
        self.sent = Counter[Fields]()
        self._outlets: list[tuple[Outlet, asyncio.AbstractEventLoop]] = []

    async def run(self, outlet: Outlet) -> None:
        found = (outlet, asyncio.get_running_loop())
        self._outlets.append(found)
        try:
            await asyncio.Event().wait()
        finally:
            self._outlets.remove(found)

    def send(self, ticks: Sequence[dict[str, str]]) -> None:
        wait_for(lambda: self._outlets)
        self.sent.update(fields_of(tick) for tick in ticks)
        for outlet, loop in self._outlets:
            asyncio.run_coroutine_threadsafe(outlet.publish(ticks), loop).result(PATIENCE)


def fields_of(tick: Any) -> Fields:
    return tuple(tick[name] for name in FIELDS)  # type: ignore[return-value]


def ticks_now(count: int, pair: str = "BTC:USDC", exchange: str = "MINE", first: int = 0) -> list[dict[str, str]]:
    """Ticks of the present millisecond, whose prices are numbers."""
    date, clock = datetime.now(UTC).isoformat("T", "milliseconds")[:23].split("T")
    fields = {"pair": pair, "date": date, "time": f"{clock}Z", "exchange": exchange}
    return [{**fields, "price": str(first + number)} for number in range(count)]


def wait_for(condition: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Wait for a condition that another thread or process fulfils."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, what()
        time.sleep(0.02)


def ask(url: str, request: Callable[[Any], Any], **options: Any) -> Any:
    """The result of a request to NATS, on a connection of its own."""

    async def asked() -> Any:
        async with await nats.connect(url.split(","), allow_reconnect=False, **options) as client:
            return await request(client)

    return asyncio.run(asyncio.wait_for(asked(), PATIENCE))


def read_log(url: str, stream: str = "FINX", **options: Any) -> list[dict[str, str]]:
    """All payloads of a stream but marks, in order, read with NATS's own client."""

    async def read(client: Any) -> list[dict[str, str]]:
        manager = client.jetstream()
        count = (await manager.stream_info(stream)).state.messages
        subscription = await manager.subscribe(
            "finx.v1.>", ordered_consumer=True, config=ConsumerConfig(ack_policy=AckPolicy.NONE)
        )
        messages = [await subscription.next_msg(timeout=5.0) for _ in range(count)]
        return [json.loads(message.data) for message in messages if message.subject not in (LOST, SETTLED)]

    found: list[dict[str, str]] = ask(url, read, **options)
    return found


def logged(url: str) -> Counter[Fields]:
    """How often each tick is in the log."""
    return Counter(map(fields_of, read_log(url)))


def check_log(url: str, source: Script) -> None:
    """Wait until the log has as many ticks as the source, and compare them."""
    found: Counter[Fields] = Counter()

    def has_all() -> bool:
        nonlocal found
        found = logged(url)
        return found.total() >= source.sent.total()

    wait_for(has_all, lambda: f"missing: {sorted((source.sent - found).elements())[:5]}")
    assert found == source.sent


def prices(ticks: Iterable[dict[str, str]]) -> list[str]:
    return [tick["price"] for tick in ticks]
