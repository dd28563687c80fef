"""The network side: one thread that owns all sockets and sessions of a listener, and never runs user code.

(With `dispatch="inline"` the user lent it this thread for his callbacks.) It waits in one poller, with one heap of
deadlines, and is woken through a socket pair. Handshakes, which block, run in a small pool and hand over what they
opened.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

import attrs

from ..config.redaction import ApiKey
from ..connection.attempt import Attempt, ConnectionConfig
from ..connection.failures import translate
from ..connection.handshake import outcome_of
from ..connection.poller import new_poller
from ..connection.websocket import READ_SIZE, Connection
from ..errors import AuthenticationError, ConnectionFailed, DecodeError
from ..values import NO_BOUND, Event, Tick
from ..wire.decoder import Decoder, Message
from ..wire.frames import Binary
from .backfill import Backfiller
from .counters import Counters
from .interfaces import Delivery, History
from .resequencer import Allowance, Resequencer
from .session import Action, Announce, Connect, Disconnect, End, Report, SendKeepAlive, SendPing, Session

logger = logging.getLogger("finx_streamer")

#: How many handshakes run side by side. More would not be quicker, and would look like an attack to the server.
SIDE_BY_SIDE = 8
#: An attempt that was given up may hang in name resolution, which nothing interrupts. Others take its place, to here.
MOST_WORKERS = 4 * SIDE_BY_SIDE
#: A handshake ends by itself at its deadline, and says what it waited for. Only if it has not, so much later, it counts
#: as stuck.
_GRACE = 0.25
#: How long the end waits for the workers that were cancelled, all in all.
_WORKER_PATIENCE = 0.2
#: A deadline may lie further ahead than a poller can wait.
_LONGEST_WAIT = 3_600.0
#: How many streams a second try again where one has shown that the network is back.
_HURRIED = 100
#: How many spent entries the heap of deadlines may hold, besides some for each stream.
_SPENT_ENTRIES = 64
#: How many messages are read the thorough way before it is worth trying the quick one again.
_LOOK_CLOSER = 64
_NEVER = float("inf")


@attrs.define(eq=False)
class Stream:
    """One symbol: its session, what it reads with, and the connection it has at the moment."""

    symbol: str
    session: Session
    decoder: Decoder
    counters: Counters
    target: ConnectionConfig
    #: Made by the network side, when the stream is added.
    flow: Resequencer = attrs.field(init=False)
    connection: Connection | None = None
    attempt: Attempt | None = None
    refused_key: ApiKey | None = attrs.field(default=None, repr=False)
    next_key: ApiKey | None = attrs.field(default=None, repr=False)
    #: Reading is suspended for want of room.
    paused: bool = False
    #: Whether the last read had something in it that counts against `stale_after`.
    got_tick: bool = False
    #: What the poller watches of the connection.
    watched: int = 0
    #: The earliest deadline of this stream that stands in the heap.
    queued: float = _NEVER


class Network:
    """See the module. `start`, `post`, `add`, `remove`, `stop` and `join` are for any thread; the rest is its own."""

    def __init__(
        self,
        delivery: Delivery,
        exchanges: frozenset[str] | None,
        name: str,
        on_end: Callable[[BaseException | None], None],
        room: int,
        history: Callable[[], History] | None,
    ) -> None:
        """`room`: how many ticks may be held while gaps are filled. `history`: where from; None: they are not."""
        self._delivery = delivery
        self._exchanges = exchanges
        self._on_end = on_end
        self._name = name
        self._streams: dict[str, Stream] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._poller = new_poller()
        self._watched: dict[int, Stream] = {}
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._poller.register(self._woken.fileno(), self._poller.READ)
        self._heap: list[tuple[float, int, Stream]] = []
        self._order = itertools.count(1)
        self._paused: list[Stream] = []
        self._allowance = Allowance(room)
        self._backfiller = Backfiller(history, self.post, name) if history is not None else None
        #: What flows want done at the end of the turn, for whoever asks is in the midst of changing the stream.
        self._afterwards: deque[Callable[[], None]] = deque()
        self._ready: deque[Stream] = deque()
        self._workers: set[threading.Thread] = set()
        #: Those that have handed over, and have still to return.
        self._returning: list[threading.Thread] = []
        self._shaking = 0
        #: The last read filled its buffer, so there is more to read at once.
        self._more = False
        #: When bytes were last read, or deadlines looked at: near enough to now for a timeout, or for a rate.
        self._now = time.monotonic()
        self._failure: ConnectionFailed | None = None
        self._ending = False
        self._closed = False
        #: An entry for each thread that is in `post`; and the waker, until one of them or the end closes it.
        self._posting: deque[None] = deque()
        self._wakers = deque([self._waker])
        self._thread = threading.Thread(target=self._main, name=f"{name}-network", daemon=True)

    # From any thread.

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    def post(self, command: Callable[[], None]) -> bool:
        """Have the network thread do something soon. False, and nothing is done, once it has ended."""
        # Without a lock: a signal handler that strikes in here may stop the listener, and what it waits for posts, too.
        self._posting.append(None)
        try:
            if self._closed:
                return False
            self._inbox.append(command)
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")
            return not self._came_too_late(command)
        finally:
            self._posting.pop()
            if self._closed:
                self._close_waker()

    def add(self, stream: Stream) -> None:
        self.post(lambda: self._add(stream))

    def remove(self, symbol: str) -> None:
        self.post(lambda: self._remove(symbol))

    def resume_reading(self) -> None:
        """There is room again."""
        self.post(self._resume)

    def stop(self, drain: bool = False) -> None:
        """End; with `drain`, hand on first what has been read."""
        self.post(lambda: self._end_all(drain))

    @property
    def alive(self) -> bool:
        """Whether its thread runs, and is not the calling one."""
        return self._thread.is_alive() and threading.current_thread() is not self._thread

    def join(self, timeout: float | None = None) -> None:
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # The loop.

    def _main(self) -> None:
        outcome: BaseException | None = None
        try:
            while not self._ending:
                self._wait()
            outcome = self._failure
        except BaseException as crash:
            outcome = crash
        try:
            self._close()
        finally:
            self._on_end(outcome)

    def _wait(self) -> None:
        timeout: float | None = None
        if self._more:
            timeout, self._more = 0.0, False
        elif self._heap:
            timeout = min(max(0.0, self._heap[0][0] - self._now), _LONGEST_WAIT)
        # What can be read is read before any deadline is looked at: after a pause of the process the answer to a ping
        # lies there, and the peer is not to blame.
        poller = self._poller
        for fd, events in poller.poll(timeout):
            stream = self._watched.get(fd)
            if stream is None:
                # Or it was closed by what was handled just before.
                if fd == self._woken.fileno():
                    self._run_inbox()
                continue
            if events & ~poller.READ:
                self._on_writable(stream)
            if events & ~poller.WRITE and not stream.paused:
                self._on_readable(stream)
        self._now = time.monotonic()
        if self._heap and self._heap[0][0] <= self._now:
            self._due(self._now)
            self._now = time.monotonic()
        for _ in range(len(self._afterwards)):
            if not self._ending:
                self._afterwards.popleft()()
        # What these have asked for in their turn comes after a look at everything else.
        self._more = self._more or bool(self._afterwards)
        if not self._more:
            self._delivery.flush()

    def _due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now and not self._ending:
            deadline, _, stream = heapq.heappop(self._heap)
            # An entry that an earlier one has overtaken is spent: waking for it would queue the next deadline twice.
            if deadline == stream.queued:
                stream.queued = _NEVER
                stream.flow.wake(now)
                self._do(stream, stream.session.wake(now))

    def _run_inbox(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4_096)
        for _ in range(len(self._inbox)):
            if not self._ending:
                self._inbox.popleft()()

    def _end_all(self, drain: bool) -> None:
        self._ending = True
        now = time.monotonic()
        for stream in list(self._streams.values()):
            if drain:
                if stream.connection is not None:
                    # What waited in the buffer for room: at most one read of each connection, whatever the bound.
                    self._take(stream, stream.connection, NO_BOUND)
                stream.flow.end("the listener was stopped")
            self._do(stream, stream.session.stop(now))

    def _close(self) -> None:
        self._closed = True
        for stream in self._streams.values():
            self._disconnect(stream)
        with contextlib.suppress(IndexError):
            while True:
                command = self._inbox.popleft()
                if isinstance(command, _HandOver):
                    command.discard()
        if self._backfiller is not None:
            self._backfiller.close()
        self._poller.close()
        self._close_waker()
        self._woken.close()
        # They were cancelled and end at once, but for one that hangs in name resolution: that one is a daemon.
        patience_ends = time.monotonic() + _WORKER_PATIENCE
        for worker in (*self._workers, *self._returning):
            worker.join(max(0.0, patience_ends - time.monotonic()))

    def _came_too_late(self, command: Callable[[], None]) -> bool:
        """Whether a command that was just posted is left over: the end takes what it finds after it has said so."""
        if not self._closed:
            return False
        try:
            self._inbox.remove(command)
        except ValueError:
            return False
        return True

    def _close_waker(self) -> None:
        """Unless somebody is about to send by it: its number could be another socket's by then, and so he closes it."""
        if not self._posting:
            with contextlib.suppress(IndexError):
                self._wakers.pop().close()

    # Sessions.

    def _add(self, stream: Stream) -> None:
        stream.flow = Resequencer(
            stream.symbol,
            self._delivery,
            stream.counters,
            self._allowance,
            self._exchanges,
            self._backfiller,
            _Host(self, stream),
        )
        self._streams[stream.symbol] = stream
        self._do(stream, stream.session.start(time.monotonic()))

    def _remove(self, symbol: str) -> None:
        stream = self._streams.get(symbol)
        if stream is not None:
            stream.flow.end("the stream was removed")
            self._do(stream, stream.session.stop(time.monotonic()))
            del self._streams[symbol]

    def _do(self, stream: Stream, actions: list[Action]) -> None:
        """Carry out what a session asks for."""
        if actions and isinstance(actions[-1], End) and actions[-1].error is not None:
            # What is held came before the end that is about to be told.
            stream.flow.end("the stream has ended")
        for action in actions:
            match action:
                case Connect():
                    stream.attempt = Attempt(stream.refused_key if action.after_refusal else None, stream.next_key)
                    stream.next_key = None
                    self._ready.append(stream)
                    self._launch()
                case Disconnect():
                    self._disconnect(stream)
                    self._launch()
                case SendPing():
                    self._send(stream, Connection.send_ping)
                case SendKeepAlive():
                    self._send(stream, Connection.send_keep_alive)
                case Announce():
                    logger.debug("%s: %s", stream.symbol, action.state.value)
                    self._delivery.put_event(Event(action.state, stream.symbol))
                case Report():
                    action.error.symbol = stream.symbol
                    self._delivery.put_event(Event(action.error, stream.symbol))
                case End():
                    self._end(action.error)
        self._schedule(stream)

    def _schedule(self, stream: Stream) -> None:
        deadline = min(stream.session.deadline, stream.flow.deadline)
        if deadline < stream.queued:
            stream.queued = deadline
            heapq.heappush(self._heap, (deadline, next(self._order), stream))
            if len(self._heap) > _SPENT_ENTRIES + 4 * len(self._streams):
                self._drop_spent_entries()

    def _drop_spent_entries(self) -> None:
        """Deadlines that earlier ones have overtaken, or whose stream is gone, would stay until their time has come."""
        self._heap = [
            (deadline, order, stream)
            for deadline, order, stream in self._heap
            if deadline == stream.queued and self._streams.get(stream.symbol) is stream
        ]
        heapq.heapify(self._heap)

    def _end(self, error: ConnectionFailed | None) -> None:
        """A session that ends with an error ends them all: what can't be mended must not go unnoticed."""
        if error is not None and not self._ending:
            self._failure = error
            self._end_all(drain=True)

    # Connections come and go.

    def _launch(self) -> None:
        """Begin the handshakes that wait, as far as there are places."""
        while self._ready and self._shaking < SIDE_BY_SIDE and not self._ending:
            stream = self._ready.popleft()
            if len(self._workers) >= MOST_WORKERS:
                stream.attempt = None
                stuck = ConnectionFailed(
                    f"{MOST_WORKERS} earlier attempts still hang in name resolution, or in the api_key callable"
                )
                self._do(stream, stream.session.lost(stuck, time.monotonic()))
                continue
            self._shaking += 1
            stream.session.handshake_started(time.monotonic() + _GRACE)
            self._schedule(stream)
            name = f"{self._name}-handshake-{next(self._order)}"
            worker = threading.Thread(target=self._shake_hands, args=(stream, stream.attempt), name=name, daemon=True)
            self._workers.add(worker)
            try:
                worker.start()
            except RuntimeError as cause:
                # No thread to be had: the system's limit, or the interpreter is going down.
                self._workers.discard(worker)
                self._shaking -= 1
                stream.attempt = None
                self._do(stream, stream.session.lost(ConnectionFailed(str(cause)), time.monotonic()))

    def _shake_hands(self, stream: Stream, attempt: Attempt) -> None:
        """In a worker thread."""
        outcome = outcome_of(stream.target, attempt)
        hand_over = _HandOver(self._take_over, threading.current_thread(), stream, attempt, outcome)
        if not self.post(hand_over):
            hand_over.discard()

    def _take_over(self, hand_over: _HandOver) -> None:
        self._workers.discard(hand_over.worker)
        self._returning = [worker for worker in (*self._returning, hand_over.worker) if worker.is_alive()]
        stream, attempt, outcome = hand_over.stream, hand_over.attempt, hand_over.outcome
        if stream.attempt is not attempt:
            hand_over.discard()
            self._launch()
            return
        stream.attempt = None
        self._shaking -= 1
        now = time.monotonic()
        if isinstance(outcome, ConnectionFailed):
            stream.refused_key = attempt.key if isinstance(outcome, AuthenticationError) else None
            stream.next_key = attempt.next_key
            self._do(stream, stream.session.lost(outcome, now))
        else:
            stream.connection = outcome
            stream.counters.connected_at = time.time()
            stream.counters.bytes += outcome.wire.bytes_received
            self._do(stream, stream.session.opened(now))
            stream.flow.opened(now)
            self._watch(stream)
            # The first frames may have come together with the answer to the handshake.
            self._deliver(stream, outcome, stream.flow.room())
            self._read_ahead(stream)
            self._hurry(now)
        self._launch()

    def _hurry(self, now: float) -> None:
        """One stream has found its server again: the others need not wait for so long, nor come all at once."""
        span = max(1.0, len(self._streams) / _HURRIED)
        for stream in self._streams.values():
            if stream.session.retry_by(now + random.uniform(0.0, span)):
                self._schedule(stream)

    def _disconnect(self, stream: Stream) -> None:
        """Close the connection, or give up the attempt; whichever there is."""
        if stream.attempt is not None:
            if stream in self._ready:
                self._ready.remove(stream)
            else:
                stream.attempt.cancel()
                self._shaking -= 1
            stream.attempt = None
        connection, stream.connection = stream.connection, None
        if connection is not None:
            self._unwatch(stream, connection)
            connection.disconnect()
            stream.counters.connected_at = None
            stream.paused = False
            stream.flow.lost(time.monotonic())

    def _lost(self, stream: Stream, error: ConnectionFailed) -> None:
        if isinstance(error, AuthenticationError) and stream.connection is not None:
            stream.refused_key = stream.connection.key
        self._disconnect(stream)
        self._do(stream, stream.session.lost(error, time.monotonic()))

    # Reading and writing.

    def _on_readable(self, stream: Stream) -> None:
        connection = stream.connection
        if connection is None:
            return
        room = stream.flow.room()
        if room <= 0:
            self._pause(stream)
            return
        try:
            size = connection.wire.fill()
        except (OSError, EOFError, MemoryError) as cause:
            self._lost(stream, translate(cause))
            return
        if not size:
            return  # half a TLS record
        self._more = size >= READ_SIZE
        stream.counters.bytes += size
        now = self._now = time.monotonic()
        stream.got_tick = False
        taken = self._deliver(stream, connection, room)
        # A stream without ticks lives by its notices.
        if stream.session.received(now, stream.got_tick or (taken > 0 and stream.decoder.pair is None)):
            self._schedule(stream)

    def _deliver(self, stream: Stream, connection: Connection, room: int) -> int:
        """Hand on what has been read, as far as there is room: so many messages. The rest waits, undecoded."""
        try:
            taken = self._take(stream, connection, room) if room > 0 else 0
        except MemoryError as cause:
            # The stream that asks for much pays for it, and not the listener.
            self._lost(stream, translate(cause))
            return 0
        if connection is not stream.connection:
            return taken
        if connection.probe_answered:
            connection.probe_answered = None
            stream.flow.probe_answered(self._now)
        if connection.ended is not None:
            self._lost(stream, connection.ended)
        elif taken >= room:
            self._pause(stream)
        else:
            self._watch(stream)
        return taken

    def _take(self, stream: Stream, connection: Connection, limit: int) -> int:
        """Hand on at most so many messages out of a connection's buffer. Returns how many there were."""
        wire, counters, taken = connection.wire, stream.counters, 0
        text = str(wire.buffer, "latin-1")
        while taken < limit:
            if connection.before_message:
                ticks, wire.at = stream.decoder.match_ticks(text, wire.at, limit - taken, wire.received_ns)
                if ticks:
                    taken += len(ticks)
                    counters.messages += len(ticks)
                    if stream.session.delivers:
                        self._put_ticks(stream, ticks)
                if wire.at == len(text):
                    break
            # Something that looks different, or the beginning of a frame.
            messages = connection.messages(min(limit - taken, _LOOK_CLOSER))
            if not messages:
                break
            taken += len(messages)
            counters.messages += len(messages)
            if stream.session.delivers:
                self._hand_on(stream, messages, wire.received_ns)
        return taken

    def _hand_on(self, stream: Stream, messages: list[bytes | Binary], received_ns: int) -> None:
        decode_ticks = stream.decoder.decode_ticks
        at, size = 0, len(messages)
        while at < size:
            ticks = decode_ticks(messages, at, received_ns)
            at += len(ticks)
            self._put_ticks(stream, ticks)
            if at < size:
                # One that is no tick, or one with a peculiarity.
                self._put_message(stream, stream.decoder.decode(messages[at], received_ns))
                at += 1

    def _put_message(self, stream: Stream, message: Message) -> None:
        if type(message) is dict:
            self._put_ticks(stream, [message])
            return
        if isinstance(message, DecodeError):
            stream.counters.decode_errors += 1
        stream.flow.put_event(Event(message, stream.symbol))  # type: ignore[arg-type]

    def _put_ticks(self, stream: Stream, ticks: list[Tick]) -> None:
        if stream.flow.put_ticks(ticks, self._now):
            stream.got_tick = True

    def _on_writable(self, stream: Stream) -> None:
        if stream.connection is None:
            return
        try:
            stream.connection.wire.flush()
        except OSError as cause:
            self._lost(stream, translate(cause))
        else:
            self._watch(stream)

    def _send(self, stream: Stream, send: Callable[[Connection], None]) -> None:
        if stream.connection is None:
            return
        try:
            send(stream.connection)
        except (OSError, EOFError) as cause:
            self._lost(stream, translate(cause))
        else:
            self._watch(stream)

    def _pause(self, stream: Stream) -> None:
        """Stop reading: the peer feels it, and nobody waits."""
        if not stream.paused:
            stream.paused = True
            stream.session.hold(time.monotonic())
            self._paused.append(stream)
            self._watch(stream)
            stream.flow.reading_paused(time.monotonic())
        if stream.flow.is_live:
            self._delivery.want_room()
        elif stream.flow.room() > 0:
            # What came was no ticks, and took no room.
            self._afterwards.append(self._resume)

    def _resume(self) -> None:
        for stream in self._streams.values():
            if not stream.flow.is_live:
                stream.flow.drain()
        paused, self._paused = self._paused, []
        for stream in paused:
            if not stream.paused or stream.connection is None:
                continue
            stream.paused = False
            stream.session.release(time.monotonic())
            self._deliver(stream, stream.connection, stream.flow.room())
            self._read_ahead(stream)
            self._schedule(stream)

    def _read_ahead(self, stream: Stream) -> None:
        """Read once without being told to: what TLS has read ahead wakes no poller."""
        if not stream.paused:
            self._on_readable(stream)

    def _watch(self, stream: Stream) -> None:
        """Have the poller watch for what is wanted of the connection now."""
        connection = stream.connection
        if connection is None:
            return
        poller = self._poller
        wanted = (0 if stream.paused else poller.READ) | (poller.WRITE if connection.wire.unsent else 0)
        if wanted == stream.watched:
            return
        fd = connection.wire.fileno()
        if not wanted:
            self._unwatch(stream, connection)
        elif stream.watched:
            poller.modify(fd, wanted)
        else:
            poller.register(fd, wanted)
            self._watched[fd] = stream
        stream.watched = wanted

    def _unwatch(self, stream: Stream, connection: Connection) -> None:
        if stream.watched:
            fd = connection.wire.fileno()
            self._poller.unregister(fd)
            del self._watched[fd]
            stream.watched = 0


@attrs.frozen(eq=False)
class _Host:
    """The network thread, as the resequencer of one stream sees it."""

    network: Network
    stream: Stream

    def send_probe(self) -> None:
        network, stream = self.network, self.stream
        network._afterwards.append(lambda: network._send(stream, Connection.send_probe))

    def resume_reading(self) -> None:
        self.network._afterwards.append(self.network._resume)

    def reschedule(self) -> None:
        self.network._schedule(self.stream)


@attrs.frozen(eq=False)
class _HandOver:
    """What a worker has to say, as a command for the network thread."""

    take: Callable[[_HandOver], None]
    worker: threading.Thread
    stream: Stream
    attempt: Attempt
    outcome: Connection | ConnectionFailed

    def __call__(self) -> None:
        self.take(self)

    def discard(self) -> None:
        """Nobody wants the connection any more."""
        if isinstance(self.outcome, Connection):
            self.outcome.disconnect()
