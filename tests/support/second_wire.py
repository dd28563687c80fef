"""A service that speaks FinX's second wire, written on `websockets` alone: it shares no code with our server.

By default it behaves as FinX documents it: it confirms nothing, and knows no `unsubscribe`. With `confirms=True` it
behaves like our server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from tests.support.peers import PATIENCE

Tick = Mapping[str, str]


def flat(tick: Tick) -> str:
    """A tick as the second wire sends it."""
    moment = datetime.fromisoformat(f"{tick['date']}T{tick['time']}")
    return json.dumps(
        {
            "pair": tick["pair"],
            "unixDate": int(moment.timestamp()),
            "UTCDate": f"{tick['date']}T{tick['time']}",
            "exchange": tick["exchange"],
            "price": tick["price"],
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )


class SecondWire:
    """The service, on a thread of its own. Every published tick goes into its history, too.

    Args:
        confirms: Whether it confirms subscriptions that ask for it, names the pair in errors, and knows `unsubscribe`.
        pairs: The pairs that exist. None: any.
        ignored: Pairs whose subscription it ignores silently.
        delay: Seconds that a call of tick history takes, as over a slow line.
    """

    def __init__(
        self,
        *,
        confirms: bool = False,
        pairs: Iterable[str] | None = None,
        ignored: Iterable[str] = (),
        delay: float = 0.0,
    ) -> None:
        self.confirms, self.delay = confirms, delay
        self.pairs = None if pairs is None else set(pairs)
        self.ignored = set(ignored)
        #: The contracts that `listDeribitContracts` returns, and their newest tickers.
        self.contracts: list[str] = []
        self.tickers: dict[str, dict[str, str]] = {}
        self.history: dict[str, list[Tick]] = {}
        #: Each request, in order, without the key.
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        #: Whether new connections are refused.
        self.refusing = False
        self._subscriptions: dict[ServerConnection, set[str]] = {}
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE)
        self._loop.close()

    # For tests, on any thread.

    def publish(self, *ticks: Tick) -> None:
        """Store ticks, and send them to their subscribers."""
        self.run(lambda: [self._publish(tick) for tick in ticks])

    def send(self, message: str | bytes) -> None:
        """Send a message to every connection that has a subscription."""
        self.run(lambda: broadcast([each for each, symbols in self._subscriptions.items() if symbols], message))

    def drop(self) -> int:
        """Reset all connections with subscriptions, and return how many there were."""

        def drop() -> int:
            dropped = [each for each, symbols in self._subscriptions.items() if symbols]
            for connection in dropped:
                self._subscriptions.pop(connection)
                connection.transport.abort()
            return len(dropped)

        return int(self.run(drop))

    def go_silent(self) -> None:
        """Send nothing more on the connections with subscriptions, not even answers to pings, and leave them open."""

        def silence() -> None:
            for connection in [each for each, symbols in self._subscriptions.items() if symbols]:
                self._subscriptions.pop(connection)
                connection.transport.pause_reading()

        self.run(silence)

    def read(self, on: bool) -> None:
        """Stop or go on reading from the connections with subscriptions. Ticks are sent meanwhile."""

        def change() -> None:
            for connection in [each for each, symbols in self._subscriptions.items() if symbols]:
                (connection.transport.resume_reading if on else connection.transport.pause_reading)()

        self.run(change)

    def wait_subscribed(self, count: int = 1) -> None:
        """Wait until this many subscriptions are in force."""
        self.wait_for(lambda: self.subscribed >= count)

    @property
    def subscribed(self) -> int:
        """How many subscriptions are in force."""
        return sum(map(len, list(self._subscriptions.values())))

    def asked(self, function: str) -> Counter[str]:
        """How often a function was called, by symbol."""
        requests = [each for each in list(self.requests) if each["functionName"] == function]
        return Counter(str(each.get("pair") or each.get("instrumentName") or "") for each in requests)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for something that requests make true."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), self.requests[-20:]

    def run(self, action: Callable[[], Any]) -> Any:
        """Run an action on the service's thread, and return its result."""

        async def act() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(PATIENCE)

    # On its thread.

    async def _serve(self) -> None:
        async with serve(
            self._handle, "127.0.0.1", 0, compression=None, process_request=self._admit, close_timeout=0.2
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.url = f"ws://127.0.0.1:{port}/"
            self._ready.set()
            await self._end.wait()

    def _admit(self, connection: ServerConnection, request: Any) -> Any:
        self.paths.append(request.path)
        return connection.respond(503, "away") if self.refusing else None

    async def _handle(self, connection: ServerConnection) -> None:
        self._subscriptions[connection] = set()
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                request = json.loads(message)
                assert request.pop("APIKey")
                for answer in await self._answer(connection, request):
                    await connection.send(answer)
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
        self._subscriptions.pop(connection, None)

    async def _answer(self, connection: ServerConnection, request: dict[str, Any]) -> list[str]:
        match request["functionName"]:
            case "getSpotRates":
                return self._subscribe(connection, request, "pair", self.pairs)
            case "getDeribitContractStream":
                return self._subscribe(connection, request, "instrumentName", set(self.contracts))
            case "unsubscribe" if self.confirms:
                symbol = str(request.get("pair") or request.get("instrumentName"))
                self._subscriptions[connection].discard(symbol)
                return [json.dumps({"unsubscribed": symbol})]
            case "keepAlive":
                return ['{"keepAlive":true}']
            case "listDeribitContracts":
                return [json.dumps(self.contracts)]
            case "tickHistory":
                await asyncio.sleep(self.delay)
                return [json.dumps(self._history(request))]
            case "tickSnap":
                return [json.dumps(self._snap(request))]
        return [json.dumps({"error": f"unknown function {request['functionName']}"})]

    def _subscribe(
        self, connection: ServerConnection, request: dict[str, Any], name: str, known: set[str] | None
    ) -> list[str]:
        symbol = request[name]
        if symbol in self.ignored or (known is not None and symbol not in known):
            return [json.dumps({"error": f"unknown {symbol}", name: symbol})] if self.confirms else []
        if connection in self._subscriptions:
            self._subscriptions[connection].add(symbol)
        answers = [json.dumps({"subscribed": symbol})] if self.confirms and "resume" in request else []
        return answers + ([json.dumps(self.tickers[symbol])] if symbol in self.tickers else [])

    def _publish(self, tick: Tick) -> None:
        self.history.setdefault(tick["pair"], []).append(tick)
        receivers = [each for each, symbols in self._subscriptions.items() if tick["pair"] in symbols]
        broadcast(receivers, flat(tick))

    def _history(self, request: dict[str, Any]) -> dict[str, Tick]:
        after = _moment(request)
        midnight = after.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        found = [each for each in self._sorted(request) if after < _moment(each) < midnight][:1_000]
        random.shuffle(found)
        return {str(number): each for number, each in enumerate(found)}

    def _snap(self, request: dict[str, Any]) -> Tick:
        found = [each for each in self._sorted(request) if _moment(each) <= _moment(request)]
        return found[-1] if found else {"error": "no tick"}

    def _sorted(self, request: dict[str, Any]) -> list[Tick]:
        return sorted(self.history.get(request["pair"], []), key=_moment)


def _moment(tick: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(f"{tick['date']}T{tick['time'].removesuffix('Z')}+00:00")
