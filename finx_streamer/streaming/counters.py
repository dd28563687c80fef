"""The counters of one stream, and of one connection. `delivery.stats` makes snapshots of them for the user."""

from __future__ import annotations

import math
from datetime import datetime

from ..clock import monotonic
from ..errors import ConnectionFailed, FinxStreamerError
from ..values import NEVER, Tick

#: Seconds over which the tick rate is averaged.
RATE_WINDOW = 10
#: How many seconds are counted: more than the window, so that one that begins while the rate is read isn't in it.
_SECONDS = 16


#: An error, and `monotonic()` when it happened.
TimedError = tuple[float, FinxStreamerError]


class ConnectionCounters:
    """Mutable counters of a connection. Only the loop's thread writes them."""

    __slots__ = ("bytes", "connected_at", "decode_errors", "errors", "last_error", "messages")

    def __init__(self) -> None:
        #: `errors` counts attempts that failed, and connections that were lost. `messages` and `decode_errors` count
        #: those that belong to no stream.
        self.bytes = self.errors = self.messages = self.decode_errors = 0
        self.last_error: TimedError | None = None
        #: `time.time()` of the last handshake; None while disconnected.
        self.connected_at: float | None = None

    def count_error(self, error: ConnectionFailed) -> None:
        """Count a failed attempt, or a loss."""
        self.errors += 1
        self.last_error = monotonic(), error


class Counters:
    """Mutable counters, without a lock: each field has only one writing thread."""

    __slots__ = (
        "_second",
        "callback_errors",
        "decode_errors",
        "dropped",
        "filled_ticks",
        "gaps",
        "held",
        "last_error",
        "last_tick",
        "last_times",
        "messages",
        "per_second",
        "place",
        "queue_peak",
        "second_ends",
        "ticks",
        "unfilled_gaps",
    )

    def __init__(self) -> None:
        #: `ticks` counts those that were put into the delivery: waiting, handed to callbacks, or dropped.
        self.messages = self.ticks = self.dropped = self.callback_errors = self.decode_errors = 0
        self.queue_peak = self.gaps = self.unfilled_gaps = self.filled_ticks = self.held = 0
        #: The last error that was the stream's own and not its connection's.
        self.last_error: TimedError | None = None
        self.last_tick: Tick | None = None
        #: `received_ns` and `timestamp` of the last live tick. The user may change the tick itself.
        self.last_times: tuple[int, datetime] | None = None
        #: Live ticks in each of the last seconds. Those of this second are at `place`.
        self.per_second = [0] * _SECONDS
        self.place = 0
        #: The monotonic second, and when the next one begins.
        self._second = -1
        self.second_ends = -NEVER

    def count_ticks(self, ticks: list[Tick], now: float) -> None:
        """Count delivered ticks, at least one. `now` is in monotonic seconds."""
        last = ticks[-1]
        if last["backfilled"]:
            # History says nothing about the current rate and lag.
            self.ticks += len(ticks)
            self.last_tick = last
        else:
            self.count_live(len(ticks), last, last["timestamp"], last["received_ns"], now)

    def count_live(self, count: int, last: Tick, timestamp: datetime, received_ns: int, now: float) -> None:
        """Count delivered live ticks, at least one. The times are those of the last one, which the user may change."""
        self.last_tick = last
        self._count(count, timestamp, received_ns, now)

    def count_greeks(self, timestamp: datetime, received_ns: int, now: float) -> None:
        """Count one message with Greeks."""
        self._count(1, timestamp, received_ns, now)

    def _count(self, count: int, timestamp: datetime, received_ns: int, now: float) -> None:
        self.ticks += count
        self.last_times = received_ns, timestamp
        if now >= self.second_ends:
            self.begin_second(now)
        self.per_second[self.place] += count

    def begin_second(self, now: float) -> None:
        """Begin to count the ticks of another second."""
        second = int(now)
        for unused in range(max(self._second + 1, second + 1 - _SECONDS), second + 1):
            self.per_second[unused % _SECONDS] = 0
        self.place, self._second, self.second_ends = second % _SECONDS, second, second + 1.0

    @property
    def lag(self) -> float | None:
        """Seconds from the last live tick's own time to its receipt; None before the first."""
        if self.last_times is None:
            return None
        received_ns, timestamp = self.last_times
        return received_ns / 1e9 - timestamp.timestamp()

    def rate(self, now: float) -> float:
        """Return live ticks per second over the last `RATE_WINDOW` seconds."""
        # A copy: the loop's thread counts meanwhile.
        newest, counts = self._second, tuple(self.per_second)
        seconds = range(max(math.ceil(now - RATE_WINDOW), newest - RATE_WINDOW), newest + 1)
        recent = [second for second in seconds if counts[second % _SECONDS]]
        if not recent:
            return 0.0
        return sum(counts[second % _SECONDS] for second in recent) / max(1.0, now - recent[0])
