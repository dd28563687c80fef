"""The streams of a listener over real sockets, on a loop that the test turns itself: one read per turn."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

from finx_streamer import Endpoint, Pair, StreamListener, Tick
from finx_streamer.delivery.callbacks import CallbackRunner, Callbacks
from finx_streamer.delivery.dispatcher import InlineDelivery
from finx_streamer.delivery.iteration import Iterations
from finx_streamer.streaming.counters import Counters
from finx_streamer.streaming.settings import StreamSettings
from finx_streamer.streaming.stream import Stream
from finx_streamer.streaming.stream_connection import StreamConnection
from finx_streamer.streaming.streams import Streams
from tests.support.peers import Caller, Peer

_T = TypeVar("_T")


class Driven:
    """Opens one connection per pair, or one for all pairs of the second wire.

    Args:
        pairs: The pairs.
        wire: As in `Endpoint`.
        headers: What the server adds to its answer to each handshake.
        context: The server's TLS context.
        ssl_context: The client's.
        backfill: Whether gaps would be filled.
        settings: Of `StreamSettings`.
    """

    def __init__(
        self,
        *pairs: str,
        wire: Any = "url",
        headers: tuple[str, ...] = (),
        context: ssl.SSLContext | None = None,
        ssl_context: ssl.SSLContext | None = None,
        backfill: bool = True,
        **settings: Any,
    ) -> None:
        self.events: list[object] = []
        self.ticks: list[Tick] = []
        self._callers: SimpleQueue[Caller] = SimpleQueue()
        self._headers = headers
        self._peer = Peer(self._welcome, context=context)
        callbacks, counters = Callbacks(), dict[str, Counters]()
        callbacks.add("tick", self._on_tick)
        for event in ("error", "notice", "gap"):
            callbacks.add(event, self.events.append)
        callbacks.add("state", lambda *change: self.events.append(change))
        self.iterations = Iterations(10, False, lambda: self.streams.resume_reading())
        delivery = InlineDelivery(
            CallbackRunner(callbacks, counters), self.iterations, lambda: None, lambda _error: None
        )
        url = self._peer.url.replace("127.0.0.1", "localhost")
        endpoint = Endpoint(url if context else self._peer.url, wire=wire)
        listener = StreamListener(*pairs, endpoint=endpoint, api_key="demo", ssl_context=ssl_context)
        common = StreamSettings(
            connection=listener._settings.connection, name="driven", max_held=100, reconnect=None, **settings
        )
        #: Called with each tick, as `on_tick`.
        self.on_tick: Callable[[Tick], None] = lambda _tick: None
        self.streams = Streams(delivery, common, lambda _error: None, (lambda: NotImplemented) if backfill else None)
        self.stream: dict[str, Stream] = {}
        for pair in pairs:
            self.stream[pair] = self.streams.add(Pair.parse(pair))
            counters[pair] = self.stream[pair].counters
        self.connection: StreamConnection = self.stream[pairs[0]].connection  # type: ignore[assignment]

    def _on_tick(self, tick: Tick) -> None:
        self.ticks.append({**tick})
        self.on_tick(tick)

    def _welcome(self, caller: Caller) -> None:
        caller.send(caller.acceptance(*self._headers))
        self._callers.put(caller)
        caller.wait_until_left()

    def __enter__(self) -> Self:
        self._peer.__enter__()
        self.turn_until(lambda: self.connection.websocket is not None)
        self.caller = self._callers.get()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self.streams.loop._close()
        self._peer.__exit__(kind, error, trace)

    @property
    def is_open(self) -> bool:
        return self.connection.websocket is not None

    def of(self, kind: type[_T]) -> list[_T]:
        """The events of a type."""
        return [event for event in self.events if isinstance(event, kind)]

    def turn_until(self, done: Callable[[], bool]) -> None:
        """Turn the loop until something is the case."""
        while not done():
            self.streams.loop._turn()

    def send(self, *data: bytes) -> None:
        """Send it in one call, and turn the loop until it is read."""
        self.caller.send(*data)
        until = self.connection.counters.bytes + sum(map(len, data))
        self.turn_until(lambda: not self.is_open or self.connection.counters.bytes >= until)

    def end(self) -> None:
        """Stop, as a listener does."""
        self.streams._stop()
