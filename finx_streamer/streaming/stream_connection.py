"""One connection of a listener: a session decides, and this carries out what it decides and reads for its stream."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from ..connection.attempt import ConnectionConfig
from ..connection.channel import WebSocketChannel
from ..connection.failures import translate
from ..connection.handshakes import Handshakes
from ..connection.loop import EventLoop
from ..connection.websocket import READ_SIZE, Connection
from ..errors import ConnectionFailed
from ..values import NO_BOUND, Event
from .interfaces import Delivery
from .session import Action, Announce, Connect, Disconnect, End, Report, SendKeepAlive, SendPing, Session
from .stream import Stream

logger = logging.getLogger("finx_streamer")

#: After a message that the tick pattern can't read, this many go the other way before it is tried again.
_MESSAGES_WITHOUT_PATTERN = 64


class ConnectionOwner(Protocol):
    """All connections of a listener."""

    loop: EventLoop
    handshakes: Handshakes
    delivery: Delivery
    #: Those that aren't read, because there is no room.
    paused: list[StreamConnection]

    def resume(self) -> None:
        """Read again from those that were paused."""

    def retry_others(self, now: float) -> None:
        """A connection has reached the server, so the others may retry soon."""

    def fail(self, error: ConnectionFailed) -> None:
        """An error that can't be retried has ended a connection."""


class StreamConnection(WebSocketChannel):
    """A connection with its session (backoff, liveness, key) and the stream that its URL names.

    Args:
        owner: All connections of the listener.
        session: Decides when to connect, ping, give up and end.
        config: Where to connect.
        stream: Gets every message.
    """

    __slots__ = ("_owner", "session", "stream")

    def __init__(self, owner: ConnectionOwner, session: Session, config: ConnectionConfig, stream: Stream) -> None:
        super().__init__(owner.loop, owner.handshakes, config)
        self._owner = owner
        self.session = session
        self.stream = stream
        stream.connection = self

    # What the session decides.

    def start(self) -> None:
        self._carry_out(self.session.start(time.monotonic()))

    def stop(self) -> None:
        """End for good."""
        self._carry_out(self.session.stop(time.monotonic()))

    def deliver_rest(self) -> None:
        """Deliver what has been read and waits for room: at most one read."""
        if self.websocket is not None:
            self._read_messages(self.websocket, NO_BOUND)

    def retry_by(self, deadline: float) -> None:
        """Try again by then at the latest: another connection has reached the server."""
        if self.session.retry_by(deadline):
            self.loop.schedule(self)

    @property
    def deadline(self) -> float:
        return self.session.deadline

    def wake(self, now: float) -> None:
        self._carry_out(self.session.wake(now))

    def _carry_out(self, actions: list[Action]) -> None:
        if actions and isinstance(actions[-1], End) and actions[-1].error is not None:
            # What is held back came before the end.
            self.stream.resequencer.end("the stream has ended")
        for action in actions:
            match action:
                case Connect():
                    self.connect()
                case Disconnect():
                    self.disconnect()
                case SendPing():
                    self.send(Connection.send_ping)
                case SendKeepAlive():
                    self.send(Connection.send_keep_alive)
                case Announce():
                    logger.debug("%s: %s", self.stream.symbol, action.state.value)
                    self._owner.delivery.put_event(Event(action.state, self.stream.symbol))
                case Report():
                    action.error.symbol = self.stream.symbol
                    self._owner.delivery.put_event(Event(action.error, self.stream.symbol))
                case End() if action.error is not None:
                    self._owner.fail(action.error)
        self.loop.schedule(self)

    # The connection opens and is lost.

    def opened(self, websocket: Connection) -> None:
        now, stream = time.monotonic(), self.stream
        stream.counters.connected_at = time.time()
        stream.counters.bytes += websocket.wire.bytes_received
        self._carry_out(self.session.opened(now))
        stream.resequencer.opened(now)
        self.update_watch()
        # The first frames may have arrived with the answer to the handshake.
        self._deliver(websocket, stream.resequencer.room())
        self.on_readable()
        self._owner.retry_others(now)

    def lost(self, error: ConnectionFailed) -> None:
        if self.websocket is not None:
            self.note_refusal(error, self.websocket.key)
        self.disconnect()
        self._carry_out(self.session.lost(error, time.monotonic()))

    def disconnect(self) -> None:
        was_open = self.websocket is not None
        super().disconnect()
        if was_open:
            self.stream.counters.connected_at = None
            self.stream.resequencer.lost(time.monotonic())

    # Reading.

    def on_readable(self) -> None:
        websocket = self.websocket
        if websocket is None or self.paused:
            return
        stream = self.stream
        room = stream.resequencer.room()
        if room <= 0:
            self._pause()
            return
        size = self.fill(websocket)
        if not size:
            return  # half a TLS record, or the end
        loop = self.loop
        loop.read_again = size >= READ_SIZE
        stream.counters.bytes += size
        now = loop.now = time.monotonic()
        stream.got_tick = False
        taken = self._deliver(websocket, room)
        # A stream without ticks lives by its notices.
        if self.session.received(now, stream.got_tick or (taken > 0 and stream.decoder.pair is None)):
            loop.schedule(self)

    def resume(self) -> None:
        """Read again, if there is room again."""
        if not self.paused or self.websocket is None:
            return
        self.paused = False
        self.session.release(time.monotonic())
        self._deliver(self.websocket, self.stream.resequencer.room())
        # TLS may have read ahead, which no poller sees.
        self.on_readable()
        self.loop.schedule(self)

    def _pause(self) -> None:
        """Stop reading. The peer feels it as TCP back-pressure."""
        now, resequencer = time.monotonic(), self.stream.resequencer
        if not self.paused:
            self.paused = True
            self.session.hold(now)
            self._owner.paused.append(self)
            self.update_watch()
            resequencer.reading_paused(now)
        if resequencer.is_live:
            self._owner.delivery.want_room()
        elif resequencer.room() > 0:
            # The messages weren't ticks, and took no room.
            self.loop.defer(self._owner.resume)

    def _deliver(self, websocket: Connection, room: int) -> int:
        """Deliver up to `room` messages of what has been read. Return how many. The rest stays undecoded."""
        try:
            taken = self._read_messages(websocket, room) if room > 0 else 0
        except MemoryError as cause:
            # Only the connection that needs the memory pays for it.
            self.lost(translate(cause))
            return 0
        if websocket is not self.websocket:
            return taken  # a callback has ended it
        if websocket.probe_answered:
            websocket.probe_answered = None
            self.stream.resequencer.probe_answered(self.loop.now)
        if websocket.ended is not None:
            self.lost(websocket.ended)
        elif taken >= room:
            self._pause()
        else:
            self.update_watch()
        return taken

    def _read_messages(self, websocket: Connection, limit: int) -> int:
        """Read up to `limit` buffered messages and pass them to the stream. Return how many there were."""
        stream, wire, taken = self.stream, websocket.wire, 0
        counters, session = stream.counters, self.session
        text = str(wire.buffer, "latin-1")
        while taken < limit:
            if websocket.before_message:
                ticks, wire.at = stream.decoder.match_ticks(text, wire.at, limit - taken, wire.received_ns)
                if ticks:
                    taken += len(ticks)
                    counters.messages += len(ticks)
                    if session.delivers:
                        stream.put_ticks(ticks)
                if wire.at == len(text):
                    break
            # Something other than a tick of the usual form, or an incomplete frame.
            messages = websocket.messages(min(limit - taken, _MESSAGES_WITHOUT_PATTERN))
            if not messages:
                break
            taken += len(messages)
            counters.messages += len(messages)
            if session.delivers:
                stream.put_messages(messages, wire.received_ns)
        return taken
