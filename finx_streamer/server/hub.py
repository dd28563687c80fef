"""`Hub`: the registry of connections and subscriptions, and the single place from which ticks are sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ..clock import monotonic
from .connection import Connection
from .contracts import ContractTicker, Played, parse_instrument
from .gate import Gate
from .protocol import (
    Wire,
    encode_contract,
    encode_contract_enveloped,
    encode_flat,
    encode_frame,
    tick_encoder,
    to_json,
    with_id,
)
from .recorder import Recorder
from .request_log import RequestLog
from .settings import Settings
from .stats import Counters
from .ticks import Tick

_Encoder = Callable[[Any], str]


@attrs.define
class Audience:
    """The connections that get the same messages of one symbol."""

    encode: _Encoder
    #: Whether each tick has its ID.
    numbered: bool = False
    #: The members, or nothing after a change: they are listed when they are needed, so that joining is cheap.
    connections: tuple[Connection, ...] = attrs.field(default=(), init=False)
    _members: dict[Connection, None] = attrs.field(factory=dict, init=False)

    def add(self, connection: Connection) -> None:
        self._members[connection] = None
        self.connections = ()

    def discard(self, connection: Connection) -> bool:
        """Remove a connection. Returns whether that was the last one."""
        self._members.pop(connection, None)
        self.connections = ()
        return not self._members

    def list_members(self) -> tuple[Connection, ...]:
        self.connections = tuple(self._members)
        return self.connections


class Hub:
    """The connections and subscriptions of one run of the server. Runs on the server's thread.

    `notify` is called after each change that `LocalServer.wait_until()` may wait for.
    """

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        recorder: Recorder,
        notify: Callable[[], None],
        request_log: RequestLog | None = None,
    ) -> None:
        #: Connections that count against the limits. They count from their admission, before the handshake completes,
        #: so that simultaneous handshakes can't exceed a limit.
        self.admitted: set[Connection] = set()
        self.admitted_per_key: Counter[str] = Counter()
        self.admitted_per_network: Counter[str] = Counter()
        #: Admitted connections whose handshake is complete, each with the audiences of its subscriptions by symbol.
        self.connections: dict[Connection, dict[str, Audience | None]] = {}
        #: All TCP connections.
        self.transports: set[Connection] = set()
        #: The number of subscriptions, of ticks and Greeks, and how many each symbol has.
        self.streams = 0
        self.streams_per_symbol: dict[str, int] = {}
        #: Set after each change that the player may wait for.
        self.changed = asyncio.Event()
        self.recorder = recorder
        self._settings = settings
        self._counters = counters
        #: How each wire encodes ticks and contracts.
        self._encoders: dict[Wire, tuple[_Encoder, _Encoder]] = {
            Wire.URL: (tick_encoder(settings.form), encode_contract_enveloped),
            Wire.SUBSCRIBE: (encode_flat, encode_contract),
        }
        self._transports_per_network: Counter[str] = Counter()
        self._max_transports = 2 * settings.max_connections + 64
        self._max_transports_per_network = 2 * settings.max_connections_per_address + 64
        self._request_log = request_log
        self._record = recorder.add
        self._notify = notify
        self._notify_handle: asyncio.Handle | None = None
        #: The audiences of each symbol, one per encoding.
        self._audiences: dict[str, tuple[Audience, ...]] = {}
        #: The streams of each symbol that are being resumed.
        self._gates: dict[str, tuple[Gate, ...]] = {}
        #: The newest ticker of each contract.
        self._newest: dict[str, ContractTicker] = {}
        self._unflushed: list[Connection] = []

    @property
    def has_subscribers(self) -> bool:
        """Whether anyone is subscribed to something that can be played."""
        return bool(self._audiences)

    @property
    def is_backed_up(self) -> bool:
        """Whether any client's queue is full."""
        return any(connection.is_full for connection in self.connections)

    def publish(self, played: Played, position: int | None = None, *, can_wait: bool = False) -> None:
        """Store a tick or a contract's ticker, and queue it for its subscribers. Call `flush()` after a batch.

        `position` is the tick's position in the tape, if it is one of a tape's.
        """
        # Cheaper than isinstance(), for each tick.
        if type(played) is ContractTicker:
            self._publish_contract(played, can_wait)
            return
        self._counters.ticks_played += 1
        number = self._record(played, position)
        audiences = self._audiences.get(played["pair"])
        if audiences is not None:
            for audience in audiences:
                message = audience.encode(played)
                data = encode_frame(with_id(message, number) if audience.numbered else message)
                self._counters.ticks_sent += self._queue(data, audience, can_wait)
        if self._gates:
            for gate in self._gates.get(played["pair"], ()):
                gate.add(self.encode_logged(played, number, gate.wire), number)

    def notify_subscribers(self, symbol: str, notice: Mapping[str, Any]) -> None:
        """Queue a notice for all subscribers of a symbol. Call `flush()` afterwards."""
        data = encode_frame(to_json(notice))
        for audience in self._audiences.get(symbol, ()):
            self._queue(data, audience, can_wait=False)
        for gate in self._gates.get(symbol, ()):
            gate.connection.enqueue(data)
            gate.connection.flush()

    def _publish_contract(self, ticker: ContractTicker, can_wait: bool) -> None:
        self._counters.greeks_played += 1
        self.recorder.add_contract(ticker)
        name, month = ticker.instrument.name, ticker.instrument.month
        if name not in self._newest:
            self._forget_expired()
        self._newest[name] = ticker
        frames: dict[_Encoder, bytes] = {}
        for symbol in (name, month):
            for audience in self._audiences.get(symbol or "", ()):
                data = frames.get(audience.encode) or encode_frame(audience.encode(ticker))
                frames[audience.encode] = data
                self._counters.greeks_sent += self._queue(data, audience, can_wait)

    def _forget_expired(self) -> None:
        """Keep the newest tickers of at most twice as many contracts as are listed."""
        listed = self._settings.contracts
        if len(self._newest) > 2 * len(listed):
            self._newest = {name: ticker for name, ticker in self._newest.items() if name in listed}

    def _queue(self, data: bytes, audience: Audience, can_wait: bool) -> int:
        """Queue a frame for an audience. Returns the number of its connections."""
        connections = audience.connections or audience.list_members()
        for connection in connections:
            if not connection.queued_bytes:
                self._unflushed.append(connection)
            connection.enqueue(data, can_wait=can_wait)
        return len(connections)

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
            self.admitted_per_network[connection.network] += 1

    def register(self, connection: Connection) -> None:
        """Add a connection whose handshake is complete."""
        self.connections[connection] = {}
        connection.opened_at = monotonic()
        self._counters.connections_total += 1
        self._signal_change()

    def encode_logged(self, tick: Tick, number: int, wire: Wire) -> bytes:
        """Encode a tick with its ID in the log."""
        return encode_frame(with_id(self._encoders[wire][0](tick), number))

    def hold(self, connection: Connection, symbol: str, wire: Wire) -> Gate | None:
        """Subscribe a connection to a pair, but let its ticks wait until `release()`. None if it is subscribed."""
        if not self.subscribe(connection, symbol, wire, is_played=False):
            return None
        gate = Gate(connection, symbol, wire, self.recorder.newest, self._settings.queue_bytes)
        self._gates[symbol] = (*self._gates.get(symbol, ()), gate)
        return gate

    def release(self, gate: Gate) -> None:
        """Send the ticks that wait, and from now on everything at once."""
        subscriptions = self.connections.get(gate.connection)
        if subscriptions is None:
            return  # its gates were closed with it
        self._close_gates(gate.connection, gate.symbol)
        self._counters.ticks_sent += gate.release()
        subscriptions[gate.symbol] = audience = self._find_audience(gate.symbol, gate.wire, numbered=True)
        audience.add(gate.connection)
        gate.connection.flush()
        self._signal_change()

    def _close_gates(self, connection: Connection, symbol: str) -> None:
        remaining = tuple(gate for gate in self._gates.get(symbol, ()) if gate.connection is not connection)
        if remaining:
            self._gates[symbol] = remaining
        else:
            self._gates.pop(symbol, None)

    def subscribe(self, connection: Connection, symbol: str, wire: Wire, *, is_played: bool = True) -> bool:
        """Send a connection everything that is published for a symbol from now on. Returns whether that is new.

        Unless the symbol `is_played`, the subscription only counts.
        """
        subscriptions = self.connections.get(connection)
        if subscriptions is None or symbol in subscriptions:
            return False
        subscriptions[symbol] = audience = self._find_audience(symbol, wire) if is_played else None
        if audience is not None:
            audience.add(connection)
        self._count_stream(symbol, 1)
        return True

    def send_newest(self, connection: Connection, symbol: str) -> None:
        """Send a new subscriber the newest tickers of its contracts that are listed."""
        audience = self.connections.get(connection, {}).get(symbol)
        if audience is None or ":" in symbol:
            return
        listed = self._settings.contracts
        names = (
            [symbol] if symbol in listed else sorted(name for name in listed if symbol == parse_instrument(name).month)
        )
        for ticker in filter(None, map(self._newest.get, names)):
            self._counters.greeks_sent += 1
            connection.reply(audience.encode(ticker))

    def unsubscribe(self, connection: Connection, symbol: str) -> None:
        """Send a connection nothing more of a symbol. Does nothing if it isn't subscribed."""
        subscriptions = self.connections.get(connection, {})
        if symbol in subscriptions:
            self._leave(connection, symbol, subscriptions.pop(symbol))

    def on_opened(self, connection: Connection) -> None:
        """See `Observer`. Abort TCP connections far beyond the limits without a handshake."""
        self.transports.add(connection)
        self._transports_per_network[connection.network] += 1
        if (
            len(self.transports) > self._max_transports
            or self._transports_per_network[connection.network] > self._max_transports_per_network
        ):
            connection.transport.abort()

    def on_answered(self, connection: Connection) -> None:
        """See `Observer`."""
        if self._request_log is not None:
            self._request_log.add_request(connection)

    def on_closing(self, connection: Connection) -> None:
        """See `Observer`."""
        if connection in self.admitted and connection.route is not None:
            self.admitted.discard(connection)
            _decrement(self.admitted_per_key, connection.route.key)
            _decrement(self.admitted_per_network, connection.network)
        if connection in self.connections:
            for symbol, audience in self.connections[connection].items():
                self._leave(connection, symbol, audience)
            del self.connections[connection]
            self._signal_change()

    def on_lost(self, connection: Connection) -> None:
        """See `Observer`."""
        self.transports.discard(connection)
        _decrement(self._transports_per_network, connection.network)
        if self._request_log is not None and connection.opened_at is not None:
            self._request_log.add_end(connection, monotonic() - connection.opened_at)
        self._signal_change()

    def on_too_slow(self, connection: Connection) -> None:
        """See `Observer`."""
        self._counters.slow_clients += 1

    def on_room(self) -> None:
        """See `Observer`."""
        self.changed.set()

    def _find_audience(self, symbol: str, wire: Wire, numbered: bool = False) -> Audience:
        """The audience of a symbol on a wire. Wires with the same encoding share one."""
        ticks, contracts = self._encoders[wire]
        encode = ticks if ":" in symbol else contracts
        audiences = self._audiences.get(symbol, ())
        for audience in audiences:
            if audience.encode is encode and audience.numbered is numbered:
                return audience
        # A new tuple, because publish() may be iterating over the old one.
        self._audiences[symbol] = (*audiences, found := Audience(encode, numbered))
        return found

    def _leave(self, connection: Connection, symbol: str, audience: Audience | None) -> None:
        self._count_stream(symbol, -1)
        if self._gates:
            self._close_gates(connection, symbol)
        if audience is not None and audience.discard(connection):
            remaining = tuple(each for each in self._audiences[symbol] if each is not audience)
            if remaining:
                self._audiences[symbol] = remaining
            else:
                del self._audiences[symbol]

    def _count_stream(self, symbol: str, change: int) -> None:
        self.streams += change
        count = self.streams_per_symbol.pop(symbol, 0) + change
        if count:
            self.streams_per_symbol[symbol] = count
        self._signal_change()

    def _signal_change(self) -> None:
        """Let the player and `LocalServer.wait_until()` look. Once for all changes of one turn of the event loop."""
        self.changed.set()
        if self._notify_handle is None:
            self._notify_handle = asyncio.get_running_loop().call_soon(self._notify_change)

    def _notify_change(self) -> None:
        self._notify_handle = None
        self._notify()


def _decrement(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
