"""Run a listener and show what it gets, until the limit, the duration, Ctrl-C, a closed pipe or a fatal error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from .. import (
    ConnectionFailed,
    FinxStreamerError,
    Gap,
    Greeks,
    Notice,
    State,
    StreamNotFound,
    Tick,
    TicksDropped,
)
from ..base_listener import BaseListener
from ..clock import monotonic
from ..delivery.stats import ListenerStats
from .key_files import KeyFileError
from .terminal import count, say, say_error, signals_as_ctrl_c, with_options

#: Seconds between two looks at the things that raise no event, such as a pipe that has lost its reader.
_POLL_INTERVAL = 0.25
_V = TypeVar("_V", Tick, Greeks)
#: What FinX answers to a keepAlive message (source: D).
_KEEP_ALIVE_ANSWER = {"keepAlive": True}


class View(Protocol):
    """Shows ticks. Callbacks call `on_…`; the main thread calls `refresh` and `finish`; any thread calls `wake`."""

    def on_tick(self, tick: Tick) -> bool:
        """Show a tick. Return False if it came after `finish`."""

    def on_greeks(self, greeks: Greeks) -> bool:
        """Show the values of a contract. Return False if they came after `finish`."""

    def on_error(self, message: str) -> None: ...

    def on_notice(self, notice: Notice) -> None: ...

    def on_filled_gap(self, gap: Gap) -> None: ...

    def wake(self) -> None:
        """Make the current or the next `refresh` return at once."""

    def refresh(self, listener: BaseListener, seconds: float) -> None:
        """Show what has arrived. Wait for up to `seconds`.

        Raises:
            BrokenPipeError: The reader of the output is gone.
            OSError: The output can't be written.
        """

    def finish(self, listener: BaseListener, interrupted: bool) -> None:
        """Show the rest. From now on, callbacks must not wait."""

    def missing(self) -> str | None:
        """Return what was asked for and never came, for the end."""


class ListenRun:
    """One run of a listener in a view."""

    #: Whether it fails if no server is reached.
    _needs_a_server = True
    #: How long the end may take, in seconds.
    _stop_timeout = 2.0
    #: Whether what was received is used up at the end.
    _drains = False

    def __init__(self, view: View, limit: int | None, duration: float | None, noun: str = "tick") -> None:
        self._view = view
        self._limit = limit
        #: What arrives.
        self._noun = noun
        self._duration = duration
        self._limit_reached = False
        #: The symbols that were disconnected. Others have a gap only because their history comes first.
        self._interrupted: set[str] = set()
        #: Whether any stream has reached the server.
        self._has_streamed = False
        #: Whether the duration, or the end of an archive, was the end.
        self._over = False
        self._values = self._errors = 0
        self._fatal: list[FinxStreamerError] = []

    def run(self, listener: BaseListener) -> int:
        """Show ticks until the end. Return the exit code: 1 after a fatal error, or if no server was reached."""
        self._watch_values(listener)
        listener.on_error(self._on_error)
        listener.on_notice(self._on_notice)
        listener.on_state(self._on_state)
        listener.on_gap(self._on_gap)
        started = monotonic()
        if self._show_until_end(listener, started):
            say(self._summary(listener.stats, monotonic() - started))
        if missing := self._view.missing():
            say(missing)
        never_connected = self._over and self._errors > 0 and not (self._has_streamed or self._values)
        return 1 if never_connected and self._needs_a_server else self._exit_code(listener)

    def _watch_values(self, listener: BaseListener) -> None:
        listener.on_tick(lambda tick: self._on_value(self._view.on_tick, tick))
        listener.on_greeks(lambda greeks: self._on_value(self._view.on_greeks, greeks))

    def _show_until_end(self, listener: BaseListener, started: float) -> bool:
        """Return whether Ctrl-C, the duration or the end of an archive was the end."""
        interrupted = False
        with signals_as_ctrl_c(), contextlib.suppress(BrokenPipeError):
            try:
                listener.start()
                self._over = self._show(listener, started)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                try:
                    self._view.finish(listener, interrupted)
                finally:
                    listener.stop(timeout=self._stop_timeout, drain=self._drains)
                    self._on_stopped()
        return interrupted or self._over

    def _on_stopped(self) -> None:
        """No further callback will be called."""

    def _show(self, listener: BaseListener, started: float) -> bool:
        """Return whether the duration, or the end of an archive, was the end."""
        end = started + self._duration if self._duration is not None else float("inf")
        while not (self._limit_reached or listener.state.ended):
            seconds_left = end - monotonic()
            if seconds_left <= 0:
                return True
            self._view.refresh(listener, min(seconds_left, _POLL_INTERVAL))
        return listener.state is State.STOPPED

    def _on_value(self, show: Callable[[_V], bool], value: _V) -> None:
        if self._limit_reached or not show(value):
            return
        self._values += 1
        if self._values == self._limit:
            self._limit_reached = True
            self._view.wake()

    def _on_error(self, error: FinxStreamerError) -> None:
        if isinstance(error, TicksDropped) and error.at_end:
            return  # the user wants no more ticks; the summary counts these
        self._errors += 1
        if self._is_fatal(error):
            # Printed at the end, once: `join` raises it, too.
            self._fatal.append(error)
        else:
            reason = f": {error.__cause__}" if isinstance(error.__cause__, KeyFileError) else ""
            self._view.on_error(with_options(f"{error}{reason}"))

    def _is_fatal(self, error: FinxStreamerError) -> bool:
        return isinstance(error, ConnectionFailed) and not (error.will_retry or isinstance(error, StreamNotFound))

    def _on_notice(self, notice: Notice) -> None:
        if notice.message != _KEEP_ALIVE_ANSWER:
            self._view.on_notice(notice)

    def _on_gap(self, gap: Gap) -> None:
        # A gap that wasn't filled is reported as an error.
        if gap.filled and gap.symbol in self._interrupted:
            self._view.on_filled_gap(gap)

    def _on_state(self, symbol: str, state: State) -> None:
        self._has_streamed = self._has_streamed or state is State.STREAMING
        if state is State.RECONNECTING:
            self._interrupted.add(symbol)
        self._view.wake()

    def _summary(self, stats: ListenerStats, seconds: float) -> str:
        return (
            f"{count(self._values, self._noun)} in {seconds:,.1f} s; {count(stats.reconnects, 'reconnect')}, "
            f"{stats.dropped:,} dropped, {count(self._errors, 'error')}"
        )

    def _exit_code(self, listener: BaseListener) -> int:
        ending: FinxStreamerError | None = None
        try:
            listener.join(timeout=0)
        except FinxStreamerError as raised:
            ending = raised
            if raised not in self._fatal and not isinstance(raised, StreamNotFound):
                self._fatal.append(raised)
        for error in self._fatal:
            say_error(error)
        return 1 if self._fatal or ending is not None else 0
