"""Deliver history before a stream is opened, so that only the ticks of a short seam are held."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import attrs

from ..errors import ConnectionFailed
from ..values import Tick
from .delivered_window import DeliveredWindow, earlier, tick_key
from .recovery import Connect, Fetch, Recovery, Report, Step

#: Seconds until history is requested again after a temporary failure. Each page that comes begins them again.
CATCH_UP_DELAYS = (0.5, 2.0, 5.0, 10.0)


@attrs.frozen(kw_only=True)
class Past:
    """What a stream delivered before this run, so that it continues there.

    Attributes:
        ticks: The last delivered ticks, as many as are known, in order of delivery.
        log: The log that their IDs belong to. Empty without IDs.
        number: The newest of these IDs.
        until: Without ticks: when the stream begins. None if it begins with its first live tick.
        window: Takes the place of `ticks`, if the stream was removed during this run.
    """

    ticks: Sequence[Tick] = ()
    log: str = ""
    number: int = 0
    until: datetime | None = None
    window: DeliveredWindow | None = None

    @property
    def history_until(self) -> datetime | None:
        """Return from when on history is needed. None if a server can resume the stream, or there is no past."""
        if self.log:
            return None
        if self.window is not None:
            return self.window.last
        return self.ticks[-1]["timestamp"] if self.ticks else self.until

    def seed(self, window: DeliveredWindow) -> DeliveredWindow:
        """Return a window that remembers it: this one, if there is none."""
        if self.window is not None:
            return self.window
        if self.until is not None:
            window.begin(self.until)
        for tick in self.ticks:
            window.add(*tick_key(tick))
        return window


class CatchUp(Recovery):
    """A gap that begins before the stream has a connection: in an earlier run, or at the time `since`.

        CATCHING UP ──history is close to now──> the stream is opened ──> as `Recovery`
             │   ^
             └───┘ history fails for a moment

    Without a connection, no tick is in transit. So history is certain, except for its newest ticks: later ones may have
    earlier times. It is delivered as it comes, and nothing is held. `Recovery` then does the rest: it requests the
    newest ticks again, and joins them with the first live ones.
    """

    #: Whether the stream hasn't been opened. `__init__` of the base class calls `opened`.
    _is_ahead = True

    def __init__(self, symbol: str, window: DeliveredWindow) -> None:
        super().__init__(symbol, window, 0.0)
        self._is_ahead = True
        #: How many fetches in a row have failed.
        self._failures = 0

    def begin(self) -> Step:
        """Begin with history."""
        return self._fetch()

    def opened(self, now: float) -> None:
        self._is_ahead = False
        super().opened(now)

    @property
    def history_until(self) -> datetime | None:
        return self._start

    @property
    def can_pause(self) -> bool:
        return self._is_ahead or super().can_pause

    def page(self, ticks: list[Tick], reached: datetime | None = None) -> Step | None:
        self._failures = 0
        return super().page(ticks, reached)

    def _certain_until(self, reached: datetime) -> datetime:
        return earlier(reached, self._lateness) if self._is_ahead else super()._certain_until(reached)

    def fetched(self, now: float) -> Step | None:
        return Connect() if self._is_ahead else super().fetched(now)

    def fetch_failed(self, reason: str, temporary: bool, now: float) -> Step | None:
        if not self._is_ahead:
            return super().fetch_failed(reason, temporary, now)
        if not temporary or self._failures == len(CATCH_UP_DELAYS):
            # Once the stream is open, the rest is requested once more. If that fails, too, the gap is reported.
            return Connect()
        delay = CATCH_UP_DELAYS[self._failures]
        self._failures += 1
        self._retry(now + delay)
        return Report(
            ConnectionFailed(reason, symbol=self._symbol, attempt=self._failures, will_retry=True, retry_in=delay)
        )

    def _fetch(self) -> Step:
        if not self._is_ahead:
            return super()._fetch()
        self._begin_fetch()
        return Fetch(self._start, None, self._lateness)
