"""The streams of one run of a listener, and their connections, on one event loop.

`Streams` owns the loop and the connections. A `StreamConnection` carries out what its session decides, and reads. A
`Stream` decodes the messages of one symbol. With inline dispatch, callbacks run on the loop's thread.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from ..clock import monotonic
from ..connection.attempt import ConnectionConfig
from ..connection.channel import WebSocketChannel
from ..connection.failures import translate
from ..connection.handshake_pool import HandshakePool
from ..connection.loop import EventLoop
from ..connection.websocket import READ_SIZE, Connection
from ..errors import ConnectionFailed, DecodeError, StaleStream, StreamNotFound
from ..values import NEVER, NO_BOUND, Event, State, Tick
from ..wire.decoder import Decoder, Message
from ..wire.frames import Binary
from .backfill import Backfiller
from .counters import Counters
from .interfaces import Delivery, History
from .resequencer import Allowance, Resequencer
from .session import Action, Command, Session

logger = logging.getLogger("finx_streamer")

#: After a message that the tick pattern can't read, this many go the other way before it is tried again.
_MESSAGES_WITHOUT_PATTERN = 64
#: When one connection has reached the server, the others retry at this rate per second.
_RETRIES_PER_SECOND = 100


class Streams:
    """Opens, pauses, resumes and closes the streams of one run.

    `start`, `add`, `remove`, `resume_reading`, `stop` and `join` are for any thread; the rest is for the loop's own.

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
        self.handshakes = HandshakePool(self.loop, name)
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

    def stop(self) -> None:
        """End, after what has been read was delivered."""
        self.loop.post(self._stop)

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

    def failed(self, error: ConnectionFailed) -> None:
        """A session has ended by an error. An unknown pair ends only its own stream; anything else ends all of them."""
        if not isinstance(error, StreamNotFound) or self._none_is_left():
            self._end_by(error)

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
        failures = [each.session.failure for each in self._connections.values() if each.session.failure is not None]
        if failures and self._none_is_left():
            self._end_by(failures[-1])

    def _none_is_left(self) -> bool:
        """Whether each stream has ended."""
        return all(connection.session.state.ended for connection in self._connections.values())

    def _end_by(self, error: ConnectionFailed) -> None:
        if not self._stopping:
            self._failure = error
            self._stop()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.loop.end()
        for connection in list(self._connections.values()):
            # Even if no callback may run any more: then the delivery counts these ticks as dropped.
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


class StreamConnection(WebSocketChannel):
    """A connection with its session (backoff, liveness, key) and the stream that its URL names.

    Args:
        owner: All connections of the listener.
        session: Decides when to connect, ping, give up and end.
        config: Where to connect.
        stream: Gets every message.
    """

    __slots__ = ("_owner", "session", "stream")

    def __init__(self, owner: Streams, session: Session, config: ConnectionConfig, stream: Stream) -> None:
        super().__init__(owner.loop, owner.handshakes, config)
        self._owner = owner
        self.session = session
        self.stream = stream
        stream.connection = self

    # What the session decides.

    def start(self) -> None:
        self._carry_out(self.session.start(monotonic()))

    def stop(self) -> None:
        """End for good."""
        self._carry_out(self.session.stop(monotonic()))

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
        if State.FAILED in actions:
            # What is held back came before the end.
            self.stream.resequencer.end("the stream has ended")
        for action in actions:
            match action:
                case Command.CONNECT:
                    self.connect()
                case Command.DISCONNECT:
                    self.disconnect()
                case Command.SEND_PING:
                    self.send(Connection.send_ping)
                case Command.SEND_KEEP_ALIVE:
                    self.send(Connection.send_keep_alive)
                case State():
                    logger.debug("%s: %s", self.stream.symbol, action.value)
                    self._owner.delivery.put_event(Event(action, self.stream.symbol))
                case ConnectionFailed() | StaleStream():
                    action.symbol = self.stream.symbol
                    self.stream.counters.count_error(action)
                    self._owner.delivery.put_event(Event(action, self.stream.symbol))
        if State.FAILED in actions and self.session.failure is not None:
            self._owner.failed(self.session.failure)
        self.loop.schedule(self)

    # The connection opens and is lost.

    def opened(self, websocket: Connection) -> None:
        now, stream = monotonic(), self.stream
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
        self._carry_out(self.session.lost(error, monotonic()))

    def disconnect(self) -> None:
        was_open = self.websocket is not None
        super().disconnect()
        if was_open:
            self.stream.counters.connected_at = None
            self.stream.resequencer.lost(monotonic())

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
        now = loop.now = monotonic()
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
        self.session.release(monotonic())
        self._deliver(self.websocket, self.stream.resequencer.room())
        # TLS may have read ahead, which no poller sees.
        self.on_readable()
        self.loop.schedule(self)

    def _pause(self) -> None:
        """Stop reading. The peer feels it as TCP back-pressure."""
        now, resequencer = monotonic(), self.stream.resequencer
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


class Stream:
    """Decodes the messages of one symbol and passes them to its resequencer. Lives on the loop's thread.

    Args:
        symbol: The pair or option, as in its `str`.
        decoder: Turns its messages into ticks, notices and errors.
        owner: All streams of the listener.
    """

    __slots__ = ("_owner", "connection", "counters", "decoder", "got_tick", "resequencer", "scheduled", "symbol")

    #: Set by the connection.
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
