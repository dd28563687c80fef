"""One stream: decodes the messages of a symbol and passes them to its resequencer."""

from __future__ import annotations

from typing import Protocol

from ..connection.channel import WebSocketChannel
from ..connection.loop import NEVER, EventLoop
from ..connection.websocket import Connection
from ..errors import DecodeError
from ..values import Event, Tick
from ..wire.decoder import Decoder, Message
from ..wire.frames import Binary
from .counters import Counters
from .resequencer import Resequencer


class StreamOwner(Protocol):
    """All streams of a listener."""

    @property
    def loop(self) -> EventLoop: ...

    def new_resequencer(self, stream: Stream) -> Resequencer: ...

    def resume(self) -> None:
        """Read again from the streams that were paused."""


class Stream:
    """What belongs to one symbol, on a connection that may carry others. Lives on the loop's thread.

    Args:
        symbol: The pair or option, as in its `str`.
        decoder: Turns its messages into ticks, notices and errors.
        owner: All streams of the listener.
    """

    __slots__ = ("_owner", "connection", "counters", "decoder", "got_tick", "resequencer", "scheduled", "symbol")

    #: Set by the connection.
    connection: WebSocketChannel

    def __init__(self, symbol: str, decoder: Decoder, owner: StreamOwner) -> None:
        self.symbol = symbol
        self.decoder = decoder
        self.counters = Counters()
        self.resequencer = owner.new_resequencer(self)
        #: Whether the last read brought a tick that the user wants.
        self.got_tick = False
        #: For the loop: see `Timed`.
        self.scheduled = NEVER
        self._owner = owner

    # The path of a tick.

    def put_ticks(self, ticks: list[Tick]) -> None:
        """Pass on ticks, at least one, in order."""
        if self.resequencer.put_ticks(ticks, self._owner.loop.now):
            self.got_tick = True

    def put_messages(self, messages: list[bytes | Binary], received_ns: int) -> None:
        """Decode messages and pass them on, in order."""
        decode_ticks = self.decoder.decode_ticks
        at, size = 0, len(messages)
        while at < size:
            ticks = decode_ticks(messages, at, received_ns)
            if ticks:
                at += len(ticks)
                self.put_ticks(ticks)
            if at < size:
                # Not a plain tick: it needs the thorough decoder.
                self._put_message(self.decoder.decode(messages[at], received_ns))
                at += 1

    def _put_message(self, message: Message) -> None:
        if type(message) is dict:
            self.put_ticks([message])
            return
        if isinstance(message, DecodeError):
            self.counters.decode_errors += 1
        self.resequencer.put_event(Event(message, self.symbol))  # type: ignore[arg-type]

    # For the loop: the deadlines of a gap.

    @property
    def deadline(self) -> float:
        return self.resequencer.deadline

    def wake(self, now: float) -> None:
        self.resequencer.wake(now)

    # For the resequencer, which is in the middle of a change when it asks.

    def send_probe(self) -> None:
        """Send a ping on the connection. Its answer calls `Resequencer.probe_answered`."""
        self._owner.loop.defer(lambda: self.connection.send(Connection.send_probe))

    def resume_reading(self) -> None:
        """Read again where there was no room."""
        self._owner.loop.defer(self._owner.resume)

    def reschedule(self) -> None:
        """The deadline has changed."""
        self._owner.loop.schedule(self)
