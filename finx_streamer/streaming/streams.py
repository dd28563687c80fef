"""The streams of one run of a listener, and their connections, on one event loop.

`Streams` owns the loop and the connections. A `StreamConnection` carries out what its session decides, and reads. A
`Stream` decodes the messages of one symbol. With inline dispatch, callbacks run on the loop's thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from ..config.symbols import Symbol
from ..connection.handshake_pool import HandshakePool
from ..errors import ConnectionFailed, StreamNotFound
from ..values import Event, State
from .backfill import Backfiller
from .catch_up import Past
from .interfaces import Delivery, History
from .resequencer import Resequencer
from .session import Session
from .settings import Allowance, StreamSettings
from .shared_connection import SharedConnection
from .stream import Carrier, Stream
from .stream_connection import UrlConnection
from .tap import Tap

#: When one connection has reached the server, the others retry at this rate per second.
_RETRIES_PER_SECOND = 100


class Streams:
    """Opens, pauses, resumes and closes the streams of one run.

    `start`, `add`, `remove`, `resume_reading`, `stop` and `join` are for any thread; the rest is for the loop's own.

    Args:
        delivery: Where ticks and events go.
        settings: What the streams have in common.
        on_end: Called last on the loop's thread, with the error that ended the streams, if there is one.
        history: Opens a source of history for gaps; None fills no gaps.
    """

    def __init__(
        self,
        delivery: Delivery,
        settings: StreamSettings,
        on_end: Callable[[BaseException | None], None],
        history: Callable[[], History] | None,
    ) -> None:
        self.delivery = delivery
        self.settings = settings
        self.loop = delivery.new_loop(settings.name, self._close, self._end)
        self.handshakes = HandshakePool(self.loop, settings.name)
        self.allowance = Allowance(settings.max_held)
        #: Where everything that the streams get is recorded, if that is wanted.
        self.tap = None if settings.recorder is None else Tap(settings.recorder, settings.exchanges)
        #: Connections that aren't read, because there is no room.
        self._paused: list[Carrier] = []
        #: Streams whose ticks are held or queued, and don't go straight to the delivery.
        self.busy: set[Stream] = set()
        self._on_end = on_end
        self._backfiller = Backfiller(history, self.loop.post, settings.name) if history is not None else None
        self._streams: dict[str, Stream] = {}
        #: Where the recording of removed streams ends. What was read from disk when one is added again may be older.
        self._removed: dict[str, Past] = {}
        #: Those whose history comes first, and that aren't opened yet.
        self._ahead: set[Stream] = set()
        #: A dict, to keep the order.
        self._connections: dict[Carrier, None] = {}
        #: The connection of all streams, with FinX's second wire.
        self._shared = SharedConnection(self) if settings.connection.endpoint.wire == "subscribe" else None
        if self._shared is not None:
            self._connections[self._shared] = None
        self._failure: ConnectionFailed | None = None
        self._stopping = False
        self.start, self.join = self.loop.start, self.loop.join

    # From any thread.

    @property
    def alive(self) -> bool:
        """Whether the loop's thread runs and isn't the calling one."""
        return self.loop.alive

    def add(self, symbol: Symbol, past: Past | None = None) -> Stream:
        """Connect, and deliver what the stream gets.

        Args:
            symbol: The pair or contract.
            past: What it delivered before this run: it continues there. None: it begins with the first live tick.
        """
        stream = Stream(symbol, self, past)
        if self._shared is not None:
            stream.connection = self._shared
        else:
            config = attrs.evolve(self.settings.connection, symbol=symbol)
            stream.connection = UrlConnection(self, self.new_session(), config, stream)
        self.loop.post(lambda: self._add(stream))
        return stream

    def remove(self, symbol: str) -> None:
        """Close a stream. What it holds back is delivered first."""
        self.loop.post(lambda: self._remove(symbol))

    def resume_reading(self) -> None:
        """There is room again."""
        self.loop.post(self.resume)

    def stop(self) -> None:
        """End, after what has been read was delivered."""
        self.loop.post(self._stop)

    # On the loop's thread, or before it starts.

    def new_session(self) -> Session:
        """Make the session of a connection."""
        settings = self.settings
        connection = settings.connection
        return Session(
            settings.reconnect, settings.timing, connection.servers, key_can_change=connection.keys.can_change
        )

    def new_resequencer(self, stream: Stream) -> Resequencer:
        """Make the resequencer of a stream."""
        return Resequencer(
            stream.symbol,
            self.delivery,
            stream.counters,
            self.allowance,
            self.settings.exchanges,
            # FinX keeps no history of Greeks.
            self._backfiller if stream.decoder.contract is None else None,
            stream,
            self.settings.lateness,
            self.tap,
        )

    def put_event(self, event: Event) -> None:
        """Deliver an event that needn't come in order with the ticks."""
        if self.tap is not None:
            self.tap.put_event(event)
        self.delivery.put_event(event)

    def retry_others(self, now: float) -> None:
        """A connection has reached the server, so the others retry soon, but not all at once."""
        span = max(1.0, len(self._connections) / _RETRIES_PER_SECOND)
        for connection in self._connections:
            connection.retry_by(now + random.uniform(0.0, span))

    def resume(self) -> None:
        """Deliver what waits for room, then read again."""
        for stream in tuple(self.busy):
            stream.resequencer.drain()
        paused, self._paused = self._paused, []
        for connection in paused:
            connection.resume()

    def pause(self, connection: Carrier) -> None:
        """Take note that a connection isn't read, because there is no room."""
        self._paused.append(connection)

    def failed(self, error: ConnectionFailed) -> None:
        """A stream has ended by an error. An unknown pair ends only its own stream; anything else ends all of them."""
        if not isinstance(error, StreamNotFound) or self._none_is_left():
            self._end_by(error)

    def connect(self, stream: Stream) -> None:
        """Open a stream, unless it was opened: its history comes first."""
        if stream in self._ahead:
            self._ahead.discard(stream)
            stream.connection.add(stream)

    def _add(self, stream: Stream) -> None:
        self._streams[stream.symbol] = stream
        self._connections[stream.connection] = None
        if (past := self._removed.pop(stream.symbol, None)) is not None:
            stream.continue_after(past)
        if stream.begin():
            self._ahead.add(stream)
        else:
            stream.connection.add(stream)

    def _remove(self, symbol: str) -> None:
        stream = self._streams.pop(symbol, None)
        if stream is not None:
            self._ahead.discard(stream)
            if self.tap is not None and (past := stream.past()) is not None:
                self._removed[symbol] = past
            stream.resequencer.end("the stream was removed")
            stream.connection.remove(stream)
            if stream.connection is not self._shared:
                del self._connections[stream.connection]
        failures = [each.failure for each in self._streams.values() if each.failure is not None]
        if failures and self._none_is_left():
            self._end_by(failures[-1])

    def _none_is_left(self) -> bool:
        """Whether each stream has ended."""
        return all(stream.state.ended for stream in self._streams.values())

    def _end_by(self, error: ConnectionFailed) -> None:
        if not self._stopping:
            self._failure = error
            self._stop()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.loop.end()
        for stream in self._ahead:
            stream.end(State.STOPPED, "the listener was stopped")
        for connection in list(self._connections):
            # Even if no callback may run any more: then the delivery counts these ticks as dropped.
            connection.deliver_rest()
            for stream in connection.streams():
                stream.resequencer.end("the listener was stopped")
            connection.stop()

    def _close(self) -> None:
        """Release everything. After a crash of the loop, connections may still be open."""
        for connection in self._connections:
            connection.disconnect()
        if self._backfiller is not None:
            self._backfiller.close()
        self.handshakes.close()

    def _end(self, crash: BaseException | None) -> None:
        self._on_end(crash or self._failure)
