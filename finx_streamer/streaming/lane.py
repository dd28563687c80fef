"""The lane: the shortest way from a socket to the delivery, for a read that brings one plain tick."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from time import time_ns
from typing import Any, Protocol

from ..connection.loop import EventLoop
from ..connection.websocket import READ_SIZE, Connection
from ..values import NEVER, Tick, tick_copier
from ..wire.single_tick import SingleTick
from ..wire.tick_form import read_number
from .counters import ConnectionCounters, Counters
from .interfaces import Delivery
from .noted import Noted
from .session import Session
from .silence import Silence
from .stream import Stream

_new_tick = tick_copier("", "", 0, False)
_parse_time = datetime.fromisoformat


class LaneUser(Protocol):
    """A connection. It reads what the lane can't read."""

    loop: EventLoop
    session: Session
    counters: ConnectionCounters

    def on_readable(self) -> None:
        """Read, or pause."""

    def on_writable(self) -> None:
        """Send what waits."""

    def take(self, data: bytes) -> None:
        """Take what the lane has read."""

    def read_failed(self, error: BaseException) -> None:
        """Handle what a read has raised."""

    def settle(self) -> None:
        """Tell each stream which of its ticks were delivered, as far as it doesn't know."""


class LaneStream:
    """What the lane needs of a stream that is live."""

    __slots__ = ("add", "counters", "pair", "silence", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.pair = stream.symbol
        self.counters: Counters = stream.counters
        self.silence: Silence = stream.silence
        self.add = stream.resequencer.window.add


class Lane:
    """Reads an open connection in place of its owner, which gets the bytes of each read that isn't one plain tick.

    It does what the longer way does, in one function, with everything bound: no calls but those that do the work.

    Args:
        user: The owner.
        websocket: Its connection.
        delivery: Where ticks go.
        parse_price: Converts the text of a price.
        exchanges: Keep only the ticks of these; None keeps all.
        noted: What the owner's streams don't know yet. None if they always know.
        record: Records a frame with a tick, and when it was received. None records nothing.
    """

    __slots__ = (
        "_exchanges",
        "_loop",
        "_noted",
        "_parse_price",
        "_put_tick",
        "_read",
        "_record",
        "_recv",
        "_room",
        "_session",
        "_user",
        "form",
        "is_straight",
        "streams",
    )

    def __init__(
        self,
        user: LaneUser,
        websocket: Connection,
        delivery: Delivery,
        parse_price: Callable[[str], Any],
        exchanges: frozenset[str] | None,
        noted: Noted | None,
        record: Callable[[int, bytes], None] | None,
    ) -> None:
        self._user, self._session, self._loop = user, user.session, user.loop
        self._recv = websocket.wire.reader
        self._room, self._put_tick = delivery.room, delivery.put_tick
        self._parse_price, self._exchanges, self._noted = parse_price, exchanges, noted
        self._record = record
        #: Whether the connection is read, and nothing is buffered.
        self.is_straight = False
        #: The streams whose ticks go straight to the delivery, by the spelling of their pair.
        self.streams: dict[str, LaneStream] = {}
        self.form = SingleTick()
        self._read = self.form.read

    def on_writable(self) -> None:
        self._user.on_writable()

    def on_readable(self) -> None:
        user = self._user
        if not self.is_straight or self._room() <= 0:
            user.on_readable()
            return
        try:
            data = self._recv(READ_SIZE)
        except (OSError, MemoryError) as error:
            user.read_failed(error)
            return
        found = self._read(data)
        if found is None:
            user.take(data)
            return
        spelling, clock, exchange, text, number = found
        stream, date = self.streams.get(spelling), self.form.date
        if stream is None:
            user.take(data)
            return
        try:
            price, timestamp = self._parse_price(text), _parse_time(f"{date}T{clock}")
        except Exception:
            user.take(data)
            return
        if type(price) is float and price - price != 0.0:
            user.take(data)  # not finite
            return
        if self._noted is not None and self._noted.size:
            user.settle()
        # Nothing below fails.
        self._session.ping_sent = NEVER
        user.counters.bytes += len(data)
        counters = stream.counters
        counters.messages += 1
        if stream.stream.log:
            stream.stream.received(read_number(number))
        received_ns = time_ns()
        if self._record is not None:
            self._record(received_ns, data)
        if self._exchanges is not None and exchange not in self._exchanges:
            return
        tick: Tick = _new_tick()
        tick["pair"] = stream.pair
        tick["date"] = date
        tick["time"] = clock
        tick["exchange"] = exchange
        tick["price"] = price
        tick["timestamp"] = timestamp
        tick["received_ns"] = received_ns
        now = self._loop.now
        stream.silence.since = now
        stream.add(exchange, timestamp, price)
        counters.ticks += 1
        counters.last_tick = tick
        counters.last_times = received_ns, timestamp
        if now >= counters.second_ends:
            counters.begin_second(now)
        counters.per_second[counters.place] += 1
        self._put_tick(tick)
