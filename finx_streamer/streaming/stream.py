"""One stream: decodes the messages of a symbol and passes them to its resequencer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..config.redaction import redact
from ..connection.loop import NEVER
from ..connection.websocket import Binary, Connection
from ..errors import DecodeError
from ..values import Event, State, Tick
from ..wire.decoder import LONGEST_NOTICE, Decoder, Message
from .counters import Counters

if TYPE_CHECKING:
    from .stream_connection import StreamConnection
    from .streams import Streams


class Stream:
    """What belongs to one symbol, on a connection that may carry others. Lives on the loop's thread.

    Args:
        symbol: The pair or option, as in its `str`.
        decoder: Turns its messages into ticks, notices and errors.
        owner: The streams of the listener.
    """

    __slots__ = ("_owner", "connection", "counters", "decoder", "got_tick", "resequencer", "scheduled", "symbol")

    connection: StreamConnection

    def __init__(self, symbol: str, decoder: Decoder, owner: Streams) -> None:
        self.symbol = symbol
        self.decoder = decoder
        self.counters = Counters()
        self.resequencer = owner.new_resequencer(self)
        #: Whether the last read brought a tick that the user wants.
        self.got_tick = False
        #: For the loop: see `Timed`.
        self.scheduled = NEVER
        self._owner = owner

    @property
    def state(self) -> State:
        """For any thread."""
        return self.connection.session.state

    @property
    def reconnects(self) -> int:
        """For any thread."""
        return self.connection.session.reconnects

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
