"""streaming.counters"""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime

from ..delivery.stats import StreamStats
from ..values import State, Tick

#: Over how many seconds a rate is taken.
RATE_WINDOW = 10


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
