"""Who is connected, and the one place where a tick goes out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from .connection import Connection
from .protocol import Kind, frame
from .recorder import Recorder
from .stats import Counters
from .ticks import Tick


class Hub:
    """The connections of one run of the server. Lives in the server's thread.

    `encode` makes a tick's message; `recorder` stores the tick; `notify` is called after whatever somebody
    may be waiting for.
    """

    def __init__(
        self,
        counters: Counters,
        encode: Callable[[Tick], str],
        recorder: Recorder,
        notify: Callable[[], None],
        max_connections: int,
    ) -> None:
        #: Those that were let in and have not left, and how many there are of each key. Counted from the moment they
        #: are let in: many that knock at once would all find room otherwise.
        self.admitted: set[Connection] = set()
        self.keys: Counter[str] = Counter()
        #: Those of them whose handshake is done.
        self.connections: set[Connection] = set()
        #: All that have a TCP connection.
        self.transports: set[Connection] = set()
        #: How many streams there are of each symbol.
        self.symbols: dict[str, int] = {}
        #: Set whenever something changes that the player may be waiting for.
        self.changed = asyncio.Event()
        self.max_connections = max_connections
        self.recorder = recorder
        self._counters = counters
        self._encode = encode
        self._record = recorder.add
        self._notify = notify
        self._listeners: dict[str, tuple[Connection, ...]] = {}
        self._pending: list[Connection] = []

    @property
    def streams(self) -> int:
        """How many streams are connected, of ticks and of Greeks."""
        return sum(self.symbols.values())

    @property
    def listening(self) -> bool:
        """Whether anybody takes ticks."""
        return bool(self._listeners)

    @property
    def full(self) -> bool:
        """Whether some client has no room for more."""
        return any(connection.full for connection in self.connections)

    def emit(self, tick: Tick, *, patient: bool = False) -> None:
        """Let one tick go out to all who are connected; `flush()` ends a batch of them. All ticks come by here."""
        self._counters.ticks_played += 1
        self._record(tick)
        listeners = self._listeners.get(tick["pair"])
        if not listeners:
            return
        data = frame(self._encode(tick))
        self._counters.ticks_sent += len(listeners)
        for connection in listeners:
            if not connection.queued:
                self._pending.append(connection)
            connection.offer(data, patient=patient)

    def flush(self) -> None:
        """Send what was emitted."""
        pending, self._pending = self._pending, []
        for connection in pending:
            connection.flush()
        self._notify()

    def admit(self, connection: Connection) -> None:
        """It is let in: it has a route, and its handshake goes on. One whose client is gone already is not counted."""
        if connection.route is not None and connection in self.transports:
            self.admitted.add(connection)
            self.keys[connection.route.key] += 1

    def join(self, connection: Connection) -> None:
        """A handshake is done."""
        self.connections.add(connection)
        self._counters.connections_total += 1
        self._enlist(connection, 1)
        self._tell()

    def opened(self, connection: Connection) -> None:
        """See `Watcher`. Beyond the limit, and some room for handshakes, TCP connections are not even listened to."""
        self.transports.add(connection)
        if len(self.transports) > 2 * self.max_connections + 64:
            connection.transport.abort()

    def leave(self, connection: Connection) -> None:
        """See `Watcher`."""
        if connection in self.admitted and connection.route is not None:
            self.admitted.discard(connection)
            self._release(connection.route.key)
        if connection in self.connections:
            self.connections.discard(connection)
            self._enlist(connection, -1)
            self._tell()

    def lost(self, connection: Connection) -> None:
        """See `Watcher`."""
        self.transports.discard(connection)
        self._tell()

    def slow(self, connection: Connection) -> None:
        """See `Watcher`."""
        self._counters.slow_clients += 1

    def has_room(self) -> None:
        """See `Watcher`."""
        self.changed.set()

    def _release(self, key: str) -> None:
        self.keys[key] -= 1
        if not self.keys[key]:
            del self.keys[key]

    def _enlist(self, connection: Connection, by: int) -> None:
        route = connection.route
        if route is None or route.kind is Kind.FUNCTIONS:
            return
        count = self.symbols.pop(route.symbol, 0) + by
        if count:
            self.symbols[route.symbol] = count
        if route.kind is Kind.TICKS:
            self._list_listeners(route.symbol)

    def _list_listeners(self, symbol: str) -> None:
        # A new tuple each time: `emit` may be going through the old one, and must not pay for the care.
        listeners = tuple(each for each in self.connections if each.route is not None and each.route.symbol == symbol)
        self._listeners.pop(symbol, None)
        if listeners:
            self._listeners[symbol] = listeners

    def _tell(self) -> None:
        self.changed.set()
        self._notify()
