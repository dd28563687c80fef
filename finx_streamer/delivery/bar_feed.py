"""`on_bar`: makes bars of the ticks on their way to callbacks, and emits them in time although no tick comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import attrs

from ..bars import Bar, BarBuilder, parse_interval
from ..clock import monotonic
from ..config import checks as check
from ..config.symbols import Pair
from ..connection.loop import EventLoop
from ..errors import BarError, ConfigurationError
from ..streaming.interfaces import Delivery
from ..values import NEVER, Event, Tick, TimePassed

#: Seconds between two looks at the wall clock at most, because it may be set.
_LONGEST_WAIT = 1.0
#: Seconds until the next look while callbacks haven't handled the last `TimePassed`.
_RETRY = 0.1


@attrs.frozen
class Emitted:
    """What a `BarFeed` returns instead of calling the callback: the runner calls it, as it does with all others."""

    bars: Iterable[Bar]
    error: BarError | None = None


class BarFeed:
    """Makes the bars of one `on_bar` callback. Registered like a tick callback; runs on the callback thread.

    Args:
        callback: Called with each bar, by the runner.
        new_builder: Returns what makes the bars. It lives as long as the registration, so that a restart continues the
            open bars.
        grace: How long to wait for ticks after the end of a bar.
    """

    def __init__(self, callback: Callable[..., Any], new_builder: Callable[[], BarBuilder], grace: float) -> None:
        self.callback = callback
        self._new_builder = new_builder
        self._builder = new_builder()
        self._interval, self._grace = self._builder.interval.total_seconds(), grace
        self._waits = timedelta(seconds=grace)

    def __call__(self, tick: Tick) -> Emitted | None:
        try:
            emitted = self._builder.add(tick)
        except BarError as error:
            return Emitted((), error)
        return Emitted(emitted) if emitted else None

    def pass_time(self, passed: TimePassed) -> Iterable[Bar]:
        """Return the bars that are due without a tick; at the end of the listener, all others, too."""
        if passed.at_end:
            return self._builder.finish(passed.now)
        return self._builder.pass_time(passed.now - self._waits)

    def start_over(self) -> None:
        """Forget all bars: ticks come again from the beginning."""
        self._builder = self._new_builder()

    def due_after(self, now: float) -> float:
        """Return when the next bar is due after a time, in seconds since 1970."""
        return ((now - self._grace) // self._interval + 1) * self._interval + self._grace


class BarRequest:
    """The checked arguments of `on_bar`. Raises `ConfigurationError`."""

    def __init__(self, interval: object, pair: str | Pair | None, by_exchange: bool, grace: float, empty: bool) -> None:
        if callable(interval):
            raise ConfigurationError(
                'on_bar: no interval given; write @listener.on_bar("1min"), or listener.on_bar("1min", callback)'
            )
        self._interval = parse_interval(interval)
        self.pair = None if pair is None else str(check.pair(pair))
        self._by_exchange, self._empty = check.boolean("by_exchange", by_exchange), check.boolean("empty", empty)
        self._grace = check.seconds("grace", grace, zero=True)

    def feed(self, callback: Callable[..., Any]) -> BarFeed:
        """Return what makes the bars for a callback."""
        new_builder = partial(BarBuilder, self._interval, by_exchange=self._by_exchange, empty=self._empty)
        return BarFeed(callback, new_builder, self._grace)


class BarTimer:
    """Puts a `TimePassed` into the delivery when bars are due. On the loop's thread.

    It follows the wall clock, which has the time of the ticks, and may be set at any moment.

    Args:
        feeds: Returns the current feeds.
        delivery: Takes the events.
    """

    def __init__(self, feeds: Callable[[], Iterable[BarFeed]], delivery: Delivery) -> None:
        #: For the loop: see `Timed`.
        self.scheduled = self.deadline = NEVER
        self._feeds, self._delivery = feeds, delivery
        #: When the next bar is due, in seconds since 1970.
        self._due = NEVER
        self._last: TimePassed | None = None

    def start(self, loop: EventLoop) -> None:
        """Begin, or take new feeds into account."""
        self._wait_until_due(time.time(), monotonic())
        loop.schedule(self)

    def wake(self, now: float) -> None:
        wall = time.time()
        if wall >= self._due:
            # While callbacks are slow, one event that waits is enough.
            if self._last is not None and not self._last.handled:
                self.deadline = now + _RETRY
                return
            self._due = NEVER
            self._last = TimePassed(datetime.fromtimestamp(wall, UTC))
            self._delivery.put_event(Event(self._last))
        self._wait_until_due(wall, now)

    def _wait_until_due(self, wall: float, now: float) -> None:
        next_due = min((feed.due_after(wall) for feed in self._feeds()), default=NEVER)
        self._due = min(self._due, next_due)
        self.deadline = NEVER if next_due == NEVER else now + max(0.0, min(self._due - wall, _LONGEST_WAIT))
