"""`Stream`: decodes the messages of one symbol, and passes them to its resequencer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol, cast

from ..config.symbols import Pair, Symbol
from ..connection.handshake_pool import HandshakePool
from ..connection.loop import EventLoop
from ..errors import ConnectionFailed, DecodeError, FinxStreamerError
from ..values import NEVER, Event, Greeks, Notice, State, Tick
from ..wire.decoder import Decoder, Message
from ..wire.frames import Binary
from .catch_up import Past
from .counters import ConnectionCounters, Counters
from .delivered_window import Key
from .interfaces import Delivery
from .log_position import ASK, LogPosition
from .recovery import FIRST_TICK_TIMEOUT
from .resequencer import Resequencer
from .session import Session
from .settings import Allowance, StreamSettings
from .silence import Silence
from .tap import Tap

logger = logging.getLogger("finx_streamer")


class Carrier(Protocol):
    """What a stream needs of its connection."""

    paused: bool
    session: Session
    counters: ConnectionCounters

    @property
    def reconnects(self) -> int:
        """How often it was re-established."""

    @property
    def starved_at(self) -> float:
        """When reading last waited for slow callbacks: now, if it does."""

    def add(self, stream: Stream) -> None:
        """Ask for a stream, now or once the connection is open."""

    def remove(self, stream: Stream) -> None:
        """End a stream. What it held back was delivered."""

    def send_probe(self, stream: Stream) -> None:
        """Send a ping. Its answer calls the stream's `Resequencer.probe_answered`."""

    def send_mark(self, stream: Stream) -> None:
        """Have the server mark the end of what a stream missed. Its answer calls `Stream.caught_up`."""

    def settle(self) -> None:
        """Tell each stream which of its ticks were delivered, as far as it doesn't know."""

    def leave_lane(self, stream: Stream) -> None:
        """From now on, a tick of the stream isn't just delivered."""

    def stream_fell_silent(self, now: float) -> None:
        """A stream's silence was reported."""

    def streams(self) -> Collection[Stream]:
        """Return the streams that haven't ended."""

    def retry_by(self, deadline: float) -> None:
        """Try again by then at the latest: another connection has reached the server."""

    def resume(self) -> None:
        """Read again, if there is room again."""

    def deliver_rest(self) -> None:
        """Deliver what has been read and waits for room: at most one read."""

    def disconnect(self) -> None:
        """Close the connection, or give up the handshake."""

    def stop(self) -> None:
        """End for good."""


class Owner(Protocol):
    """What streams and connections need of `Streams`."""

    delivery: Delivery
    settings: StreamSettings
    loop: EventLoop
    handshakes: HandshakePool
    allowance: Allowance
    busy: set[Stream]
    tap: Tap | None

    def put_event(self, event: Event) -> None:
        """Deliver an event that needn't come in order with the ticks."""

    def new_session(self) -> Session:
        """Make the session of a connection."""

    def new_resequencer(self, stream: Stream) -> Resequencer:
        """Make the resequencer of a stream."""

    def pause(self, connection: Carrier) -> None:
        """Take note that a connection isn't read, because there is no room."""

    def resume(self) -> None:
        """Deliver what waits for room, then read again."""

    def connect(self, stream: Stream) -> None:
        """Open a stream, unless it was opened: its history comes first."""

    def retry_others(self, now: float) -> None:
        """A connection has reached the server, so the others retry soon."""

    def failed(self, error: ConnectionFailed) -> None:
        """A stream has ended by an error."""


class Stream:
    """One symbol: its decoder, position, gap and counters. Lives on the loop's thread.

    Args:
        symbol: The pair or option.
        owner: All streams of the listener.
        past: What it delivered before this run. None: it begins with the first live tick.
    """

    __slots__ = (
        "_log",
        "_loop",
        "_mark_at",
        "_number",
        "_owner",
        "_past",
        "_resumes",
        "connection",
        "counters",
        "decoder",
        "failure",
        "log",
        "newest",
        "resequencer",
        "scheduled",
        "silence",
        "state",
        "symbol",
    )

    #: Set by the owner.
    connection: Carrier

    def __init__(self, symbol: Symbol, owner: Owner, past: Past | None = None) -> None:
        self.symbol = str(symbol)
        pair, contract = (self.symbol, None) if isinstance(symbol, Pair) else (None, symbol)
        self.decoder = Decoder(self.symbol, pair, owner.settings.parse_price, contract=contract)
        #: The newest Greeks of each contract.
        self.newest: dict[str, Greeks] = {}
        self.counters = Counters()
        #: The log that the connection's IDs belong to. Empty if the server keeps none.
        self.log = ""
        #: When to ask the server for the end of what was missed.
        self._mark_at = NEVER
        #: The log of the newest tick that was received, and its ID.
        self._log, self._number = "", 0
        #: None from `begin` on.
        self._past = past
        #: Whether the last request named that.
        self._resumes = False
        self.state = State.IDLE
        #: The error that ended it.
        self.failure: ConnectionFailed | None = None
        #: For the loop: see `Timed`.
        self.scheduled = NEVER
        self._owner, self._loop = owner, owner.loop
        self.silence = Silence(owner.settings.stale_after)
        self.resequencer = owner.new_resequencer(self)

    # Its life.

    def begin(self) -> bool:
        """Continue after its past. Return whether history comes first: then `Owner.connect` is called after it."""
        if self._past is None:
            return False
        self._log, self._number = self._past.log, self._past.number
        comes_first = self.resequencer.begin(self._past)
        self._past = None
        if comes_first:
            self.enter(State.CONNECTING)
        return comes_first

    @property
    def history_until(self) -> datetime | None:
        """Return what history has reached, if it comes before the stream. From any thread."""
        past = self._past
        return self.resequencer.history_until if past is None else past.history_until

    def enter(self, state: State) -> None:
        """Set the state, and report it if it is another one."""
        if state is not self.state:
            logger.debug("%s: %s", self.symbol, state.value)
            self.state = state
            self._owner.put_event(Event(state, self.symbol))

    def requested(self, now: float) -> None:
        """Take note that the server learns that the stream is wanted."""
        # From now on, a tick in history may be in transit: a gap can't end before it has arrived.
        self.resequencer.requested(now)
        self.silence.begin(now)
        self._loop.schedule(self)

    def resume_request(self) -> str | None:
        """Return where the server is to resume the stream. None if missed ticks aren't wanted."""
        if not self.resequencer.fills_gaps:
            return None
        # What is held for the last gap is unknown to a log.
        self._resumes = bool(self._log) and not self.resequencer.is_recovering
        return str(LogPosition(self._log, self._number)) if self._resumes else ASK

    def joined(self, now: float, start: LogPosition | None = None) -> None:
        """Take note that from now on, the server sends everything. If it keeps a log, that begins at `start`."""
        self.enter(State.STREAMING)
        self.log = "" if start is None else start.log
        if self._owner.tap is not None:
            self._owner.tap.put_log(self.symbol, self.log)
        if start is None or start.refused or not self._resumes:
            self._log, self._number = (self.log, 0) if start is None else (start.log, start.number)
            self.resequencer.opened(now)
            return
        self.resequencer.resumed(start.number)
        if self._log == start.log and self._number >= start.number:
            self.caught_up()
        # A quiet stream has no tick that shows the end of what was missed.
        self._mark_at = now + FIRST_TICK_TIMEOUT
        self._loop.schedule(self)

    def caught_up(self) -> None:
        """Take note that the server has sent everything that was missed, if it was about to."""
        if self.resequencer.is_resuming:
            known = self._number if self._log == self.log else 0
            self._log, self._number = self.log, max(known, self.resequencer.resume_until)
            self.resequencer.end_resume()

    def received(self, number: int | None) -> None:
        """Take note of the newest ID on a connection with a log: before filters, drops and errors.

        0: there was none so far. None: a tick had none, so where the stream is in the log is unknown.
        """
        if number == 0:
            return
        self._log, self._number = ("", 0) if number is None else (self.log, number)
        if self.resequencer.is_resuming and (number is None or number >= self.resequencer.resume_until):
            self.resequencer.end_resume()

    def lost(self, now: float) -> None:
        """Take note that the connection was lost."""
        self.silence.end()
        self._mark_at = NEVER
        if self.state is State.STREAMING:
            if self.resequencer.is_recovering:
                # History may bring ticks that the server sent after the last ID, and would send again.
                self._log, self._number = "", 0
            self.resequencer.lost(now)

    def end(self, state: State, reason: str, failure: ConnectionFailed | None = None) -> None:
        """End it for good, after everything that was received. `reason`: why an open gap is not filled."""
        self.failure = failure
        self.resequencer.end(reason)
        self.enter(state)
        self._loop.unschedule(self)

    def refused(self, error: ConnectionFailed) -> None:
        """End it because the server refuses it, and no other."""
        self.resequencer.end("the stream has ended")
        self.report(error)
        self.end(State.FAILED, "the stream has ended", error)

    # The path of a tick.

    @property
    def is_straight(self) -> bool:
        """Whether a tick is just delivered: nothing is held, and the clock of its silence runs."""
        return self.decoder.contract is None and self.resequencer.is_live and not self.silence.is_over

    def put_ticks(self, ticks: list[Tick], keys: Callable[[], list[Key]] | None = None) -> None:
        """Deliver, queue or hold ticks, at least one, in order. If there are several, they `are_alike`.

        `keys` makes their keys later.
        """
        if live := self.take_ticks(ticks, (self.decoder.number,) * len(ticks), keys):
            self._owner.delivery.put_ticks(live)

    @property
    def are_alike(self) -> bool:
        """Whether the ticks that were just read are all live or all missed. IDs increase, so the last one's tells."""
        number = self.decoder.number
        return not self.resequencer.is_resuming or (number is not None and number <= self.resequencer.resume_until)

    @property
    def are_missed(self) -> bool:
        """Whether the ticks that were just read were missed. They `are_alike`."""
        return self.resequencer.is_resuming and self.are_alike

    def take_ticks(
        self, ticks: list[Tick], numbers: Sequence[int | None], keys: Callable[[], list[Key]] | None = None
    ) -> list[Tick]:
        """Queue or hold ticks, at least one. Return those to deliver now, in order.

        `numbers`: their IDs, which matter only while the stream `is_resuming`. `keys` makes their keys later.
        """
        now, given = self._loop.now, ticks
        if self.resequencer.is_resuming:
            ticks = self._take_missed(ticks, numbers, now)
        if wanted := self.resequencer.wanted(ticks):
            self._heard(now)
            return self.resequencer.take_ticks(wanted, now, keys if wanted is given else None)
        return wanted

    def _take_missed(self, ticks: list[Tick], numbers: Sequence[int | None], now: float) -> list[Tick]:
        """Take the ticks up to the end of what was missed. Return the others: these are live."""
        until = self.resequencer.resume_until
        count = sum(number is not None and number <= until for number in numbers)
        if missed := self.resequencer.wanted(ticks[:count]):
            self._heard(now)
            self.resequencer.take_missed(missed)
        if count < len(ticks):
            self.resequencer.end_resume(ticks[count]["timestamp"])
        return ticks[count:]

    def note_delivered(self, keys: list[Key], last: Tick, received_ns: int, number: int | None) -> None:
        """Take note of live ticks, at least one, that were delivered together with those of other streams.

        `number`: the last one's ID.
        """
        if self.log:
            self.received(number)
        now = self._loop.now
        self.counters.messages += len(keys)
        self.resequencer.note_delivered(keys, last, received_ns, now)
        self._heard(now)

    def put_messages(self, messages: list[bytes | Binary], received_ns: int) -> None:
        """Decode messages and pass them on, in order."""
        for message in messages:
            # Only a tick moves the position. The last one may have come another way.
            self.decoder.number = 0
            self._put_message(self.decoder.decode(message, received_ns), message, received_ns)
            if self.log:
                self.received(self.decoder.number)

    def _put_message(self, message: Message, sent: bytes | Binary, received_ns: int) -> None:
        tap = self._owner.tap
        if isinstance(message, dict) and self.decoder.contract is None:
            ticks, numbers = [cast("Tick", message)], [self.decoder.number]
            if tap is None:
                ticks = self.take_ticks(ticks, numbers)
            else:
                ticks = tap.take_run(self, ticks, numbers, [cast("bytes", sent)], received_ns)
            if ticks:
                self._owner.delivery.put_ticks(ticks)
            return
        if tap is not None:
            tap.put_other(self.symbol, self.decoder, sent, received_ns)
        if isinstance(message, dict):
            self._put_greeks(cast("Greeks", message))
            return
        if isinstance(message, DecodeError):
            self.counters.decode_errors += 1
        if self.decoder.pair is None:
            # A stream without ticks lives by its notices.
            self._heard(self._loop.now)
        self.put_event(message)

    def _put_greeks(self, greeks: Greeks) -> None:
        now = self._loop.now
        self._heard(now)
        self.newest[greeks["instrument"]] = greeks
        self.resequencer.put_greeks(Event(greeks, self.symbol), greeks, now)

    def put_event(self, payload: FinxStreamerError | Notice) -> None:
        """Report something else that the server sent, in order with the ticks."""
        self.resequencer.put_event(Event(payload, self.symbol))

    def _heard(self, now: float) -> None:
        was_over = self.silence.is_over
        self.silence.begin(now)
        if was_over:
            self._loop.schedule(self)

    # For the loop: the deadlines of a gap, and of silence.

    @property
    def deadline(self) -> float:
        return min(self.resequencer.deadline, self.silence.deadline, self._mark_at)

    def wake(self, now: float) -> None:
        if now >= self._mark_at:
            self._mark_at = NEVER
            if self.resequencer.is_resuming:
                self._loop.defer(lambda: self.connection.send_mark(self))
        self.connection.settle()
        self.resequencer.wake(now)
        if (report := self.silence.check(now, self.connection.paused)) is not None:
            report.symbol = self.symbol
            self.counters.last_error = now, report
            self._owner.put_event(Event(report, self.symbol))
            self.connection.leave_lane(self)
            self.connection.stream_fell_silent(now)

    @property
    def is_silent(self) -> bool:
        """Whether its silence was reported, and nothing came since. Also true while there is no connection."""
        return self.silence.is_over

    # For the resequencer, which is in the middle of a change when it asks.

    def send_probe(self) -> None:
        """Send a ping on the connection. Its answer calls `Resequencer.probe_answered`."""
        self._loop.defer(lambda: self.connection.send_probe(self))

    def connect(self) -> None:
        """Open the stream, unless it was opened."""
        self._loop.defer(lambda: self._owner.connect(self))

    def report(self, error: ConnectionFailed) -> None:
        """Report an error that isn't the connection's."""
        self.counters.last_error = self._loop.now, error
        self._owner.put_event(Event(error, self.symbol))

    def resume_reading(self) -> None:
        """Read again where there was no room."""
        self._loop.defer(self._owner.resume)

    def reschedule(self) -> None:
        """The deadline has changed."""
        self._loop.schedule(self)

    def set_busy(self, busy: bool) -> None:
        """Whether ticks are held or queued, and don't go straight to the delivery."""
        if busy:
            self._owner.busy.add(self)
            self.connection.leave_lane(self)
        else:
            self._owner.busy.discard(self)

    @property
    def starved_at(self) -> float:
        """When reading the connection last waited for slow callbacks. Now, if it does."""
        return self.connection.starved_at
