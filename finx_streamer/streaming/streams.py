"""All streams of one run of a listener: one event loop, which owns their connections and never runs user code.

With inline dispatch, callbacks run on this thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..connection.attempt import ConnectionConfig
from ..connection.handshakes import Handshakes
from ..connection.loop import EventLoop
from ..errors import ConnectionFailed
from ..wire.decoder import Decoder
from .backfill import Backfiller
from .interfaces import Delivery, History
from .resequencer import Allowance, Resequencer
from .session import Session
from .stream import Stream
from .stream_connection import StreamConnection

#: When one connection has reached the server, the others retry at this rate per second.
_RETRIES_PER_SECOND = 100


class Streams:
    """`start`, `add`, `remove`, `resume_reading`, `stop` and `join` are for any thread; the rest is for the loop's own.

    Args:
        delivery: Where ticks and events go.
        exchanges: Keep only the ticks of these; None keeps all.
        name: Of the listener; the thread's name starts with it.
        on_end: Called last on the loop's thread, with the error that ended the streams, if there is one.
        max_held: How many ticks may be held back while gaps are filled, all streams together.
        history: Opens a source of history for gaps; None fills no gaps.
    """

    def __init__(
        self,
        delivery: Delivery,
        exchanges: frozenset[str] | None,
        name: str,
        on_end: Callable[[BaseException | None], None],
        max_held: int,
        history: Callable[[], History] | None,
    ) -> None:
        self.delivery = delivery
        self.loop = EventLoop(f"{name}-network", self._close, self._end, delivery.flush)
        self.handshakes = Handshakes(self.loop, name)
        #: Connections that aren't read, because there is no room.
        self.paused: list[StreamConnection] = []
        self._exchanges = exchanges
        self._on_end = on_end
        self._allowance = Allowance(max_held)
        self._backfiller = Backfiller(history, self.loop.post, name) if history is not None else None
        self._connections: dict[str, StreamConnection] = {}
        self._failure: ConnectionFailed | None = None
        self._stopping = False
        self.start, self.join = self.loop.start, self.loop.join

    # From any thread.

    @property
    def alive(self) -> bool:
        """Whether the network thread runs and isn't the calling one."""
        return self.loop.alive

    def add(self, symbol: str, decoder: Decoder, session: Session, config: ConnectionConfig) -> StreamConnection:
        """Connect, and deliver what the stream gets."""
        connection = StreamConnection(self, session, config, Stream(symbol, decoder, self))
        self.loop.post(lambda: self._add(connection))
        return connection

    def remove(self, symbol: str) -> None:
        """Close a stream. What it holds back is delivered first."""
        self.loop.post(lambda: self._remove(symbol))

    def resume_reading(self) -> None:
        """There is room again."""
        self.loop.post(self.resume)

    def stop(self, drain: bool = False) -> None:
        """End. `drain`: first deliver what has been read."""
        self.loop.post(lambda: self._stop(drain))

    # On the loop's thread.

    def new_resequencer(self, stream: Stream) -> Resequencer:
        """Make the resequencer of a stream."""
        return Resequencer(
            stream.symbol,
            self.delivery,
            stream.counters,
            self._allowance,
            self._exchanges,
            self._backfiller,
            stream,
        )

    def retry_others(self, now: float) -> None:
        """A connection has reached the server, so the others retry soon, but not all at once."""
        span = max(1.0, len(self._connections) / _RETRIES_PER_SECOND)
        for connection in self._connections.values():
            connection.retry_by(now + random.uniform(0.0, span))

    def resume(self) -> None:
        """Deliver what waits for room, then read again."""
        for connection in self._connections.values():
            if not connection.stream.resequencer.is_live:
                connection.stream.resequencer.drain()
        paused, self.paused = self.paused, []
        for connection in paused:
            connection.resume()

    def fail(self, error: ConnectionFailed) -> None:
        """End all streams: an error that can't be retried must not go unnoticed."""
        if not self._stopping:
            self._failure = error
            self._stop(drain=True)

    def _add(self, connection: StreamConnection) -> None:
        self._connections[connection.stream.symbol] = connection
        connection.start()

    def _remove(self, symbol: str) -> None:
        connection = self._connections.pop(symbol, None)
        if connection is not None:
            connection.stream.resequencer.end("the stream was removed")
            connection.stop()
            self.loop.unschedule(connection)
            self.loop.unschedule(connection.stream)

    def _stop(self, drain: bool) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.loop.end()
        for connection in list(self._connections.values()):
            if drain:
                connection.deliver_rest()
                connection.stream.resequencer.end("the listener was stopped")
            connection.stop()

    def _close(self) -> None:
        """Release everything. After a crash of the loop, connections may still be open."""
        for connection in self._connections.values():
            connection.disconnect()
        if self._backfiller is not None:
            self._backfiller.close()
        self.handshakes.close()

    def _end(self, crash: BaseException | None) -> None:
        self._on_end(crash or self._failure)
