"""A connection with its session and its streams. With FinX's first wire, the URL names the only stream."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Mapping

from ..clock import monotonic
from ..connection.attempt import ConnectionConfig
from ..connection.channel import WebSocketChannel
from ..connection.failures import translate
from ..connection.loop import SocketOwner
from ..connection.websocket import READ_SIZE, Connection
from ..errors import ConnectionFailed
from ..values import NEVER, NO_BOUND, Event, State
from ..wire.frames import Binary
from ..wire.mixed_pattern import spellings
from ..wire.single_tick import LONGEST
from .counters import ConnectionCounters
from .delivered_window import LONG_RUN
from .lane import Lane, LaneStream
from .log_position import RESUME, LogPosition
from .noted import Noted
from .session import Action, Command, Session
from .stream import Owner, Stream

#: After messages that the tick pattern can't read, twice as many go the other way before it is tried again, up to this.
MESSAGES_WITHOUT_PATTERN = 64


class StreamConnection(WebSocketChannel):
    """Carries out what its session decides (backoff, liveness, key), and reads. Lives on the loop's thread.

    Args:
        owner: All streams of the listener.
        session: Decides when to connect, ping, give up and end.
        config: Where to connect.
    """

    __slots__ = ("_lane", "_marks", "_owner", "_probes", "_starved", "_starved_at", "counters", "session")

    def __init__(self, owner: Owner, session: Session, config: ConnectionConfig) -> None:
        super().__init__(owner.loop, owner.handshakes, config)
        self.session = session
        self.counters = ConnectionCounters()
        self._owner = owner
        #: What reads the open connection, as far as it can.
        self._lane: Lane | None = None
        #: The probes that aren't answered, and the streams that wait for them.
        self._probes: list[tuple[int, Stream]] = []
        #: The streams of the marks that aren't answered. See `send_mark`.
        self._marks: list[Stream] = []
        #: Whether reading is paused because the callbacks are slow, and when it last was.
        self._starved, self._starved_at = False, -NEVER

    @property
    def reconnects(self) -> int:
        """How often it was re-established."""
        return self.session.reconnects

    # For subclasses to define.

    @property
    @abstractmethod
    def symbol(self) -> str | None:
        """Whom the errors of the connection concern. None: all streams."""

    @abstractmethod
    def streams(self) -> Collection[Stream]:
        """Return the streams that haven't ended."""

    @abstractmethod
    def add(self, stream: Stream) -> None:
        """Ask for a stream, now or once the connection is open."""

    @abstractmethod
    def remove(self, stream: Stream) -> None:
        """End a stream. What it held back was delivered."""

    @abstractmethod
    def room(self) -> int:
        """Return how many messages may be read now. At 0 or less, reading pauses."""

    @abstractmethod
    def begin(self, now: float) -> None:
        """The connection is open: ask for the streams, or take note that they were asked for."""

    @abstractmethod
    def find_stream(self, spelling: str) -> Stream | None:
        """Return the stream that has joined, and that gets the ticks of a pair in this spelling."""

    @abstractmethod
    def read_messages(self, websocket: Connection, limit: int) -> int:
        """Read up to `limit` buffered messages and pass them to their streams. Return how many there were."""

    def settle(self) -> None:
        """Do nothing: the streams know their ticks at once. A subclass may collect them."""

    # What the session decides.

    def start(self) -> None:
        self._carry_out(self.session.start(monotonic()))

    def stop(self) -> None:
        """End for good."""
        self._carry_out(self.session.stop(monotonic()))

    def deliver_rest(self) -> None:
        """Deliver what has been read and waits for room: at most one read."""
        if self.websocket is not None:
            self.read_messages(self.websocket, NO_BOUND)

    def retry_by(self, deadline: float) -> None:
        """Try again by then at the latest: another connection has reached the server."""
        if self.session.retry_by(deadline):
            self.loop.schedule(self)

    def stream_fell_silent(self, now: float) -> None:
        """Replace the connection if that is wanted, and every stream on it is silent."""
        timing = self._owner.settings
        if timing.stale_reconnect and self.session.delivers and all(stream.is_silent for stream in self.streams()):
            self._carry_out(self.session.give_up(f"no tick for {timing.stale_after:g} s", now))

    @property
    def deadline(self) -> float:
        return self.session.deadline

    def wake(self, now: float) -> None:
        self._carry_out(self.session.wake(now))

    def _carry_out(self, actions: list[Action]) -> None:
        if State.FAILED in actions:
            # What is held back came before the end.
            for stream in self.streams():
                stream.resequencer.end(_ENDED)
        for action in actions:
            match action:
                case Command.CONNECT:
                    self.config = self.config.at(self.session.server)
                    self.connect()
                case Command.DISCONNECT:
                    self.disconnect()
                case Command.SEND_PING:
                    self.send(Connection.send_ping)
                case Command.SEND_KEEP_ALIVE:
                    self.send(Connection.send_keep_alive)
                case State():
                    self._change_state(action)
                case ConnectionFailed():
                    action.symbol = self.symbol
                    self.counters.count_error(action)
                    self._owner.put_event(Event(action, self.symbol))
        if State.FAILED in actions and self.session.failure is not None:
            self._owner.failed(self.session.failure)
        self.loop.schedule(self)

    def _change_state(self, state: State) -> None:
        if state is State.STREAMING:
            return  # each stream reports it when it has joined
        for stream in list(self.streams()):
            if state.ended:
                stream.end(state, _ENDED, self.session.failure)
            else:
                stream.enter(state)

    # The connection opens and is lost.

    def opened(self, websocket: Connection) -> None:
        now = monotonic()
        self._lane = self.new_lane(websocket)
        self.counters.connected_at = time.time()
        self.counters.bytes += websocket.wire.bytes_received
        self._carry_out(self.session.opened(now))
        self.begin(now)
        self.update_watch()
        # The first frames may have arrived with the answer to the handshake.
        self._deliver(websocket, self.room())
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
            self._lane = None
            self._probes.clear()
            self._marks.clear()
            self._note_starved(False)
            self.counters.connected_at = None
            now = monotonic()
            for stream in self.streams():
                stream.lost(now)

    # Reading.

    def on_readable(self) -> None:
        websocket = self.websocket
        if websocket is None or self.paused:
            return
        if self.room() <= 0:
            self._pause()
        elif size := self.fill(websocket):
            self._received(websocket, size)

    def take(self, data: bytes) -> None:
        """Take what the lane has read: anything but one plain tick."""
        websocket = self.websocket
        assert websocket is not None
        try:
            size = websocket.wire.take(data)
        except (EOFError, MemoryError) as cause:
            self.read_failed(cause)
        else:
            self._received(websocket, size)

    def _received(self, websocket: Connection, size: int) -> None:
        self.loop.read_again = size >= READ_SIZE
        self.counters.bytes += size
        self.session.received()
        self._deliver(websocket, self.room())

    # The lane.

    @property
    def reader(self) -> SocketOwner:
        return self._lane or self

    def new_lane(self, websocket: Connection, noted: Noted | None = None) -> Lane:
        """Make the lane of an open connection. `noted`: the ticks that its streams don't know yet."""
        owner = self._owner
        record = None if owner.tap is None else owner.tap.put_frames
        parse_price, exchanges = owner.settings.parse_price, owner.settings.exchanges
        return Lane(self, websocket, owner.delivery, parse_price, exchanges, noted, record)

    def leave_lane(self, stream: Stream) -> None:
        """From now on, a tick of the stream isn't just delivered."""
        if self._lane is not None:
            for spelling in spellings(stream.symbol):
                self._lane.streams.pop(spelling, None)

    def _update_lane(self, websocket: Connection) -> None:
        """Let the lane read what comes next, if nothing is buffered. It learns from what was read last."""
        lane, wire = self._lane, websocket.wire
        assert lane is not None
        lane.is_straight = websocket.between_messages and websocket.max_message >= LONGEST
        if lane.is_straight:
            spelling = lane.form.learn(wire.buffer)
            stream = None if spelling is None else self.find_stream(spelling)
            if spelling is not None and stream is not None and stream.is_straight:
                lane.streams[spelling] = LaneStream(stream)
            # A burst leaves a large one behind.
            wire.buffer, wire.at = b"", 0

    def resume(self) -> None:
        """Read again, if there is room again."""
        if not self.paused or self.websocket is None:
            return
        self.paused = False
        self._note_starved(False)
        self.session.release(monotonic())
        self._deliver(self.websocket, self.room())
        # TLS may have read ahead, which no poller sees.
        self.on_readable()
        self.loop.schedule(self)

    def _pause(self) -> None:
        """Stop reading. The peer feels it as TCP back-pressure."""
        delivery = self._owner.delivery
        starved = delivery.room() <= 0
        if not self.paused:
            self.paused = True
            if self._lane is not None:
                self._lane.is_straight = False
            self.session.hold()
            self._owner.pause(self)
            self.update_watch()
            self._note_starved(starved)
            if not starved:
                now = monotonic()
                for stream in self.streams():
                    stream.resequencer.reading_paused(now)
        if starved:
            delivery.want_room()
        elif self.room() > 0:
            # The messages weren't ticks, and took no room.
            self.loop.defer(self._owner.resume)

    def _note_starved(self, starved: bool) -> None:
        if self._starved:
            self._starved_at = monotonic()
        self._starved = starved

    @property
    def starved_at(self) -> float:
        """When reading last waited for slow callbacks. Now, if it does."""
        return monotonic() if self._starved else self._starved_at

    def _deliver(self, websocket: Connection, room: int) -> None:
        """Deliver up to `room` messages of what has been read. The rest stays undecoded."""
        try:
            taken = self.read_messages(websocket, room) if room > 0 else 0
        except MemoryError as cause:
            # Only the connection that needs the memory pays for it.
            self.lost(translate(cause))
            return
        if websocket is not self.websocket:
            return  # a callback has ended it
        while self._probes and self._probes[0][0] <= websocket.probe_answered:
            self._probes.pop(0)[1].resequencer.probe_answered(self.loop.now)
        if websocket.ended is not None:
            self.lost(websocket.ended)
        elif taken >= room:
            self._pause()
        else:
            self.update_watch()
            self._update_lane(websocket)

    def send_probe(self, stream: Stream) -> None:
        """Send a ping. Its answer calls the stream's `Resequencer.probe_answered`."""
        if self.websocket is not None:
            self._probes.append((self.websocket.probes_sent + 1, stream))
            self.send(Connection.send_probe)

    def send_mark(self, stream: Stream) -> None:
        """Have the server mark the end of what a stream missed: it answers once it has sent all of it."""
        if self.websocket is not None:
            self._marks.append(stream)
            self.send(Connection.send_keep_alive)

    def take_mark(self, message: bytes | Binary) -> bool:
        """Take the answer to `send_mark`. Return False for any other message."""
        if not self._marks or message != _MARK:
            return False
        self._marks.pop(0).caught_up()
        return True


_ENDED = "the stream has ended"
#: The answer to keepAlive. Source: D.
_MARK = b'{"keepAlive":true}'


class UrlConnection(StreamConnection):
    """A connection whose URL names its only stream. Source: S."""

    __slots__ = ("stream",)

    def __init__(self, owner: Owner, session: Session, config: ConnectionConfig, stream: Stream) -> None:
        super().__init__(owner, session, config)
        self.stream = stream

    @property
    def symbol(self) -> str:
        return self.stream.symbol

    def streams(self) -> Collection[Stream]:
        return (self.stream,)

    def room(self) -> int:
        return self.stream.resequencer.room()

    def find_stream(self, spelling: str) -> Stream | None:
        return self.stream if spelling in spellings(self.stream.symbol) else None

    def handshake_headers(self) -> Mapping[str, str]:
        request = self.stream.resume_request()
        return {} if request is None else {RESUME: request}

    def add(self, stream: Stream) -> None:
        self.start()

    def remove(self, stream: Stream) -> None:
        self.stop()
        self.loop.unschedule(self)

    def begin(self, now: float) -> None:
        if self.session.delivers:
            self.stream.requested(now)
            assert self.websocket is not None
            headers = self.websocket.response_headers
            self.stream.joined(now, LogPosition.from_headers(headers) if self.stream.resequencer.fills_gaps else None)

    def read_messages(self, websocket: Connection, limit: int) -> int:
        stream, wire, taken = self.stream, websocket.wire, 0
        counters, session, tap = stream.counters, self.session, self._owner.tap
        text = str(wire.buffer, "latin-1")
        # How many messages go the other way before the tick pattern is tried again.
        without_pattern = 1
        while taken < limit:
            if websocket.before_message:
                start, most = wire.at, limit - taken
                ticks, at = stream.decoder.match_ticks(text, wire.at, most, wire.received_ns)
                while len(ticks) > 1 and not stream.are_alike:
                    most = len(ticks) // 2
                    ticks, at = stream.decoder.match_ticks(text, wire.at, most, wire.received_ns)
                wire.at = at
                if ticks:
                    without_pattern = 1
                    taken += len(ticks)
                    counters.messages += len(ticks)
                    if session.delivers:
                        is_long = len(ticks) >= LONG_RUN
                        keys = stream.decoder.later_keys(text, start, at) if is_long else None
                        if tap is None:
                            stream.put_ticks(ticks, keys)
                        else:
                            tap.put_run(stream, ticks, keys, wire.buffer[start:at], wire.received_ns)
                        if stream.log:
                            stream.received(stream.decoder.number)
                if wire.at == len(text):
                    break
                if len(ticks) == most:
                    continue
            # Something other than a tick of the usual form, or an incomplete frame.
            messages = websocket.messages(min(limit - taken, 1 if self._marks else without_pattern))
            if not messages:
                break
            without_pattern = min(2 * without_pattern, MESSAGES_WITHOUT_PATTERN)
            taken += len(messages)
            counters.messages += len(messages)
            if session.delivers and not self.take_mark(messages[0]):
                stream.put_messages(messages, wire.received_ns)
        return taken
