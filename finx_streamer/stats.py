"""What is counted: mutable counters inside, frozen snapshots for the user."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs

from .messages import Tick
from .session import State

#: Over how many seconds a rate is taken.
RATE_WINDOW = 10


@attrs.frozen(kw_only=True)
class StreamStats:
    """A snapshot of one stream.

    `state`: a `State`. `messages`, `bytes`: what was received, in messages and in bytes of the connection. `ticks`:
    handed on to your callbacks; `last_tick`: the last of them, None before the first. `dropped`: by the overflow
    policy. `callback_errors`: how often a callback raised; `decode_errors`: messages that could not be understood.
    `reconnects`: how often the connection was made anew. `gaps`: how often the connection was lost and ticks may have
    passed; `filled_ticks`: of `ticks`, those that history supplied. `held`: what was received and waits while a gap is
    filled. `rate`: live ticks a second over the last 10 s. `lag`: seconds from the last live tick's own time to its
    receipt. `queue_depth`, `queue_peak`: ticks that wait for callbacks, now and at most. `connected_since`: aware
    datetime in UTC, None while there is no connection.
    """

    state: State
    messages: int = 0
    ticks: int = 0
    dropped: int = 0
    callback_errors: int = 0
    decode_errors: int = 0
    reconnects: int = 0
    gaps: int = 0
    filled_ticks: int = 0
    held: int = 0
    bytes: int = 0
    rate: float = 0.0
    lag: float | None = None
    queue_depth: int = 0
    queue_peak: int = 0
    last_tick: Tick | None = None
    connected_since: datetime | None = None


@attrs.frozen(kw_only=True)
class ListenerStats:
    """A snapshot of a listener: `streams` by symbol, and the sums over them, fields as in `StreamStats`.

    No sums are `state`, that of the whole (see `StreamListener.state`), and `queue_depth` and `queue_peak`, which are
    those of the one queue that all streams share. Streams that were removed are not counted any more.
    """

    state: State
    messages: int = 0
    ticks: int = 0
    dropped: int = 0
    callback_errors: int = 0
    decode_errors: int = 0
    reconnects: int = 0
    gaps: int = 0
    filled_ticks: int = 0
    held: int = 0
    bytes: int = 0
    rate: float = 0.0
    queue_depth: int = 0
    queue_peak: int = 0
    streams: Mapping[str, StreamStats] = attrs.field(factory=dict)


SUMMED = (
    "messages",
    "ticks",
    "dropped",
    "callback_errors",
    "decode_errors",
    "reconnects",
    "gaps",
    "filled_ticks",
    "held",
    "bytes",
    "rate",
)


class Counters:
    """The counters of one stream. Each field has one writing thread, so none needs a lock."""

    def __init__(self) -> None:
        self.messages = self.ticks = self.dropped = self.callback_errors = self.decode_errors = 0
        self.bytes = self.queue_peak = self.gaps = self.filled_ticks = self.held = 0
        self.last_tick: Tick | None = None
        #: Its `received_ns` and `timestamp`, for the tick is the user's by now, who may change it.
        self._times: tuple[int, datetime] | None = None
        self.connected_at: float | None = None
        #: Seconds, and how many ticks came in each.
        self._seconds: deque[list[int]] = deque(maxlen=RATE_WINDOW + 1)
        self._this_second = [-1, 0]
        self._runs: deque[tuple[int, int]] = deque()
        self._waiting = 0

    def count_ticks(self, ticks: list[Tick], now: float) -> None:
        """`now` is monotonic."""
        self.ticks += len(ticks)
        self.last_tick = last = ticks[-1]
        if last["backfilled"]:
            return  # old ones, which say nothing of how the stream does now
        self._times = last["received_ns"], last["timestamp"]
        second = int(now)
        if second == self._this_second[0]:
            self._this_second[1] += len(ticks)
        else:
            self._this_second = [second, len(ticks)]
            self._seconds.append(self._this_second)

    def count_waiting(self, ticks: int, end: int, taken: int) -> None:
        """Keep the peak of how many ticks of this stream wait, from positions in the queue alone.

        `ticks` of them were put, and the last stands at position `end`; everything up to `taken` has left the queue.
        Costs the callback side nothing, which would otherwise have to count each tick.
        """
        while self._runs and self._runs[0][0] <= taken:
            self._waiting -= self._runs.popleft()[1]
        self._runs.append((end, ticks))
        self._waiting += ticks
        oldest_end, oldest = self._runs[0]
        gone = max(0, oldest - (oldest_end - taken))
        self.queue_peak = max(self.queue_peak, self._waiting - gone)

    def snapshot(self, state: State, reconnects: int, queue_depth: int) -> StreamStats:
        received_ns, timestamp = self._times or (0, None)
        return StreamStats(
            state=state,
            messages=self.messages,
            ticks=self.ticks,
            dropped=self.dropped,
            callback_errors=self.callback_errors,
            decode_errors=self.decode_errors,
            reconnects=reconnects,
            gaps=self.gaps,
            filled_ticks=self.filled_ticks,
            held=self.held,
            bytes=self.bytes,
            rate=self._rate(time.monotonic()),
            lag=received_ns / 1e9 - timestamp.timestamp() if timestamp else None,
            queue_depth=queue_depth,
            queue_peak=max(self.queue_peak, queue_depth),
            last_tick=self.last_tick,
            connected_since=datetime.fromtimestamp(self.connected_at, UTC) if self.connected_at else None,
        )

    def _rate(self, now: float) -> float:
        recent = [(second, count) for second, count in tuple(self._seconds) if now - second <= RATE_WINDOW]
        if not recent:
            return 0.0
        return sum(count for _, count in recent) / max(1.0, now - recent[0][0])


def add_up(state: State, streams: dict[str, StreamStats], queue_depth: int, queue_peak: int) -> ListenerStats:
    """The snapshot of a listener from those of its streams."""
    sums = {name: sum(getattr(stream, name) for stream in streams.values()) for name in SUMMED}
    return ListenerStats(state=state, queue_depth=queue_depth, queue_peak=queue_peak, streams=streams, **sums)
