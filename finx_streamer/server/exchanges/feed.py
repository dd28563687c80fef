"""`Feed`: the connection to one exchange: listing, subscription, silence, reconnects and notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from ..contracts import Played
from ..source import Outlet
from .adapter import MALFORMED, Adapter, to_json
from .counters import Counters
from .rest import Rest, RestFailed, decode_json, describe_os_error, is_loopback, retry_after

log = logging.getLogger("finx_streamer.server.exchanges")
_wire_log = logging.getLogger("finx_streamer.server.exchanges.wire")
_wire_log.setLevel(logging.WARNING)

#: Seconds. A connection without any message for so long is dead.
SILENCE = 30.0
_PING_EVERY = 10.0
#: The wait before a reconnect is random up to a limit that doubles with each attempt.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
#: A connection that lasted for so long wasn't one more failed attempt.
_STABLE = 10.0
_OPEN_TIMEOUT, _CLOSE_TIMEOUT = 5.0, 0.5
#: In bytes.
_LONGEST_MESSAGE = 2**20
#: How many ticks may wait for the store before no more are read, and how many messages to read in one turn.
MOST_READY, _TURN = 256, 64
_WARN_EVERY = 60.0


class FeedFailed(Exception):
    """The exchange sent something after which the connection is useless."""


class _Connect(connect):
    """Follows no redirects."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Feed(ABC):
    """One exchange, in the server's event loop. `run` is its task.

    What it reads waits in `ready` until the store has room; `_send` is the only one that publishes, so that the order
    is kept. While too much waits, nothing is read.

    Args:
        adapter: The exchange.
        counters: What to count in.
        tls: For all connections.
        on_listing: Called once the symbols are known, or have changed.
    """

    def __init__(
        self, adapter: Adapter, counters: Counters, tls: ssl.SSLContext, on_listing: Callable[[], None]
    ) -> None:
        self.adapter = adapter
        self.counters = counters
        #: The exchange's symbols, and the pair or contract that each stands for. None until they are known.
        self.symbols: dict[str, str] | None = None
        self._rest = Rest(adapter, tls)
        self._tls = tls
        self._on_listing = on_listing
        self._outlet: Outlet
        self._tasks: asyncio.TaskGroup
        #: What to send. Set `is_ready` after adding to it.
        self.ready: list[Played] = []
        self.is_ready, self._has_room = asyncio.Event(), asyncio.Event()
        self.is_connected = asyncio.Event()
        #: When the last message arrived, on the event loop's clock.
        self._heard = 0.0
        self._was_connected = self._is_away = False
        self._warned: dict[str, float] = {}

    async def run(self, outlet: Outlet) -> None:
        """Send what the exchange sends, until the task is cancelled."""
        self._outlet = outlet
        try:
            async with self._rest, asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._send())
                await self._stay_connected()
        finally:
            self.counters.end_run()

    @abstractmethod
    def wanted(self, listed: dict[str, str]) -> dict[str, str]:
        """The symbols to subscribe to, as in `symbols`. `listed` has the symbol of each listed pair."""

    @abstractmethod
    def affected(self) -> Iterable[str]:
        """The pairs whose clients get a notice when the exchange goes away or comes back."""

    @abstractmethod
    def take(self, message: Any) -> bool:
        """Take a message that may hold market data. Returns whether it does. May raise any of `MALFORMED`."""

    @abstractmethod
    def on_connected(self) -> None:
        """Called before the first message on a connection."""

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be read for now."""
        return len(self.ready) >= MOST_READY

    async def wait_for_room(self) -> None:
        """Wait until more may be read."""
        while self.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    def on_room(self) -> None:
        """Wake up those who wait for room."""
        self._has_room.set()

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, at most once a minute for each kind."""
        now = asyncio.get_running_loop().time()
        if now >= self._warned.get(kind, 0.0):
            self._warned[kind] = now + _WARN_EVERY
            log.warning("%s: %s", self.adapter.name, text)

    def wake_watchers(self) -> None:
        """Wake up those who wait for a change of the stats."""
        self._outlet.notify((), {})

    async def _send(self) -> None:
        while True:
            await self.is_ready.wait()
            self.is_ready.clear()
            ready, self.ready = self.ready, []
            await self._outlet.publish(ready)
            self.on_room()

    async def _stay_connected(self) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._learn_symbols()
                if self.symbols:
                    await self._connect()
                else:
                    # To be asked again, at leisure: it may list a pair one day.
                    await asyncio.sleep(3_600.0)
                    self.symbols = None
                    continue
            except (RestFailed, FeedFailed, OSError, WebSocketException, EOFError, ImportError) as error:
                failure, wait = describe(error), _wanted_wait(error)
            except Exception:
                log.exception("%s: unexpected error; connecting again", self.adapter.name)
                failure, wait = "unexpected error", _LONGEST_WAIT
            self._on_lost(failure)
            attempt = 0 if loop.time() - began >= _STABLE else attempt + 1
            limit = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            await asyncio.sleep(max(wait, random.uniform(0.1, limit)))

    async def _learn_symbols(self, *, again: bool = False) -> None:
        if self.symbols is not None and not again:
            return
        listed: dict[str, str] = {}
        try:
            for path in self.adapter.listing_paths():
                found = self.adapter.symbols(await self._rest.get(path))
                listed.update({pair: symbol for pair, symbol in found.items() if isinstance(symbol, str)})
        except MALFORMED as error:
            raise RestFailed("REST: the listing can't be read") from error
        self.symbols = self.wanted(listed)
        if not self.symbols:
            self.counters.error = "lists nothing of what is wanted"
        self._on_listing()
        self.wake_watchers()

    async def _connect(self) -> None:
        """Subscribe, and read until the connection is lost."""
        url = self.adapter.websocket_url
        connection = _Connect(
            url,
            ssl=self._tls if url.startswith("wss:") else None,
            # No environment has a proxy for this machine in mind.
            proxy=None if is_loopback(url) else True,
            compression=None,
            open_timeout=_OPEN_TIMEOUT,
            close_timeout=_CLOSE_TIMEOUT,
            # Messages tell whether it lives. While the store has no room, pongs aren't read either.
            ping_interval=None,
            max_size=_LONGEST_MESSAGE,
            max_queue=16,
            logger=_wire_log,
        )
        async with connection as peer:
            await self._subscribe(peer, list(self.symbols or ()))
            keeper = self._tasks.create_task(self._keep(peer))
            try:
                await self._read(peer)
            except asyncio.CancelledError:
                # The server stops, and can't wait for a closing handshake.
                peer.transport.abort()
                raise
            finally:
                keeper.cancel()

    async def _subscribe(self, peer: ClientConnection, symbols: Sequence[str]) -> None:
        size = self.adapter.batch
        for start in range(0, len(symbols), size):
            await peer.send(to_json(self.adapter.subscription(symbols[start : start + size])))

    async def _read(self, peer: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        is_new, read, renewed = True, 0, loop.time()
        try:
            async with asyncio.timeout(SILENCE) as silence:
                while True:
                    message = await peer.recv()
                    now = loop.time()
                    # Not for each message, because that takes time.
                    if now > renewed + SILENCE / 30:
                        silence.reschedule(now + SILENCE)
                        renewed = now
                    if is_new:
                        self._on_connected()
                        is_new = False
                    self._heard = now
                    self._handle(message)
                    read += 1
                    if self.is_full:
                        # The store's silence isn't the exchange's.
                        silence.reschedule(None)
                        await self.wait_for_room()
                        silence.reschedule(loop.time() + SILENCE)
                    elif not read % _TURN:
                        await asyncio.sleep(0)
        except TimeoutError:
            raise FeedFailed(f"was silent for {SILENCE:g} s") from None

    def _handle(self, text: str | bytes) -> None:
        if text == "pong":
            return
        try:
            message = decode_json(text if isinstance(text, str) else text.decode())
            if not isinstance(message, dict):
                raise ValueError("not an object")
            problem = None if self.take(message) else self.adapter.problem(message)
        except (*MALFORMED, RecursionError) as error:
            self.warn("message", f"a message was rejected: {type(error).__name__}")
            return
        if problem is not None:
            raise FeedFailed(problem)

    async def _keep(self, peer: ClientConnection) -> None:
        """Ping, and look for new symbols."""
        loop = asyncio.get_running_loop()
        listed = loop.time()
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(_PING_EVERY)
                if self.adapter.ping is not None:
                    await peer.send(self.adapter.ping)
                relist = self.adapter.relist_seconds
                if relist is not None and loop.time() >= listed + relist:
                    listed = loop.time()
                    known = set(self.symbols or ())
                    with contextlib.suppress(RestFailed):
                        await self._learn_symbols(again=True)
                    await self._subscribe(peer, [each for each in self.symbols or () if each not in known])

    def _on_connected(self) -> None:
        self.is_connected.set()
        self.counters.connected, self.counters.error = True, None
        if self._was_connected:
            self.counters.reconnects += 1
        self._was_connected = True
        self.on_connected()
        if self._is_away:
            self._is_away = False
            log.info("%s: back", self.adapter.name)
            self._notify("exchange back")
        self.wake_watchers()

    def _on_lost(self, reason: str) -> None:
        self.is_connected.clear()
        self.counters.connected, self.counters.error = False, reason
        if not self._is_away:
            self._is_away = True
            log.warning("%s: away: %s", self.adapter.name, reason)
            self._notify("exchange away")

    def _notify(self, notice: str) -> None:
        self._outlet.notify(self.affected(), {"notice": notice, "source": self.adapter.name})


def describe(error: Exception) -> str:
    """Say in a few words why a connection failed, without text of the exchange."""
    if isinstance(error, InvalidStatus):
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, ConnectionClosed):
        return "closed the connection" if error.rcvd else "the connection was lost"
    if isinstance(error, OSError):
        return describe_os_error(error)
    return str(error) if isinstance(error, RestFailed | FeedFailed | ImportError) else type(error).__name__


def _wanted_wait(error: Exception) -> float:
    """How long the exchange wants us to wait, in seconds."""
    if isinstance(error, InvalidStatus):
        return retry_after(error.response.headers.get("Retry-After")) or 0.0
    return error.wait if isinstance(error, RestFailed) else 0.0
