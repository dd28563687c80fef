"""`Hub`: the registry of connections, and the single place from which ticks are sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from .connection import Connection
from .protocol import Kind, encode_frame, tick_encoder
from .recorder import Recorder
from .settings import Settings
from .stats import Counters
from .ticks import Tick


class Hub:
    """The connections of one run of the server. Runs on the server's thread.

    `notify` is called after each change that `LocalServer.wait_until()` may wait for.
    """

    def __init__(self, settings: Settings, counters: Counters, recorder: Recorder, notify: Callable[[], None]) -> None:
        #: Connections that count against the limits. They count from their admission, before the handshake completes,
        #: so that simultaneous handshakes can't exceed a limit.
        self.admitted: set[Connection] = set()
        self.admitted_per_key: Counter[str] = Counter()
        #: Admitted connections whose handshake is complete.
        self.connections: set[Connection] = set()
        #: All TCP connections.
        self.transports: set[Connection] = set()
        self.streams_per_symbol: dict[str, int] = {}
        #: Set after each change that the player may wait for.
        self.changed = asyncio.Event()
        self.recorder = recorder
        self._counters = counters
        self._encode = tick_encoder(settings.form)
        self._max_transports = 2 * settings.max_connections + 64
        self._record = recorder.add
        self._notify = notify
        self._subscribers: dict[str, tuple[Connection, ...]] = {}
        self._unflushed: list[Connection] = []

    @property
    def streams(self) -> int:
        """The number of connected streams, of ticks and Greeks."""
        return sum(self.streams_per_symbol.values())

    @property
    def has_subscribers(self) -> bool:
        """Whether any tick stream is connected."""
        return bool(self._subscribers)

    @property
    def is_backed_up(self) -> bool:
        """Whether any client's queue is full."""
        return any(connection.is_full for connection in self.connections)

    def publish(self, tick: Tick, position: int | None = None, *, can_wait: bool = False) -> None:
        """Store a tick and queue it for its subscribers. Call `flush()` after a batch.

        `position` is the tick's position in the tape, if it is one of a tape's.
        """
        self._counters.ticks_played += 1
        self._record(tick, position)
        subscribers = self._subscribers.get(tick["pair"])
        if not subscribers:
            return
        data = encode_frame(self._encode(tick))
        self._counters.ticks_sent += len(subscribers)
        for connection in subscribers:
            if not connection.queued_bytes:
                self._unflushed.append(connection)
            connection.enqueue(data, can_wait=can_wait)

    def flush(self) -> None:
        """Send the queued ticks."""
        unflushed, self._unflushed = self._unflushed, []
        for connection in unflushed:
            connection.flush()
        self._notify()

    def admit(self, connection: Connection) -> None:
        """Count a connection against the limits, unless its client has already left."""
        if connection.route is not None and connection in self.transports:
            self.admitted.add(connection)
            self.admitted_per_key[connection.route.key] += 1

    def register(self, connection: Connection) -> None:
        """Add a connection whose handshake is complete."""
        self.connections.add(connection)
        self._counters.connections_total += 1
        self._count_stream(connection, 1)
        self._signal_change()

    def on_opened(self, connection: Connection) -> None:
        """See `Observer`. Abort TCP connections far beyond the limit without a handshake."""
        self.transports.add(connection)
        if len(self.transports) > self._max_transports:
            connection.transport.abort()

    def on_closing(self, connection: Connection) -> None:
        """See `Observer`."""
        if connection in self.admitted and connection.route is not None:
            self.admitted.discard(connection)
            self._release_key(connection.route.key)
        if connection in self.connections:
            self.connections.discard(connection)
            self._count_stream(connection, -1)
            self._signal_change()

    def on_lost(self, connection: Connection) -> None:
        """See `Observer`."""
        self.transports.discard(connection)
        self._signal_change()

    def on_too_slow(self, connection: Connection) -> None:
        """See `Observer`."""
        self._counters.slow_clients += 1

    def on_room(self) -> None:
        """See `Observer`."""
        self.changed.set()

    def _release_key(self, key: str) -> None:
        self.admitted_per_key[key] -= 1
        if not self.admitted_per_key[key]:
            del self.admitted_per_key[key]

    def _count_stream(self, connection: Connection, change: int) -> None:
        route = connection.route
        if route is None or route.kind is Kind.FUNCTIONS:
            return
        count = self.streams_per_symbol.pop(route.symbol, 0) + change
        if count:
            self.streams_per_symbol[route.symbol] = count
        if route.kind is Kind.TICKS:
            self._update_subscribers(route.symbol)

    def _update_subscribers(self, symbol: str) -> None:
        # A new tuple each time, because publish() may be iterating over the old one.
        subscribers = tuple(each for each in self.connections if each.route is not None and each.route.symbol == symbol)
        self._subscribers.pop(symbol, None)
        if subscribers:
            self._subscribers[symbol] = subscribers

    def _signal_change(self) -> None:
        self.changed.set()
        self._notify()
