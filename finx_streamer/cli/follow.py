"""Follow streams until something ends it: the listener and a view of it, brought together."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from .. import ConfigurationError, ConnectionFailed, FinxStreamerError, Gap, Notice, State, StreamListener, Tick
from ..config.api_key import ENVIRONMENT_VARIABLE
from ..delivery.stats import ListenerStats
from .text import brief, count, say, warn_of_readers

#: Seconds between two looks at what nobody tells us of, such as a pipe that has lost its reader.
_LOOK = 0.25
_STOP_TIMEOUT = 2.0


class View(Protocol):
    """What shows ticks. `on_…` run on the callback side, the others on the caller's thread; `wake` anywhere."""

    def on_tick(self, tick: Tick) -> None: ...

    def on_error(self, error: FinxStreamerError) -> None: ...

    def on_notice(self, notice: Notice) -> None: ...

    def on_gap(self, gap: Gap) -> None:
        """One that was filled; of the others an error tells."""

    def wake(self) -> None:
        """Make the `turn` that waits, or else the next one, return at once."""

    def turn(self, listener: StreamListener, seconds: float) -> None:
        """Show what has come. Wait for more if there is nothing, but not longer than `seconds`."""

    def finish(self, listener: StreamListener, interrupted: bool) -> None:
        """Show the rest. Callbacks may still come, and must not wait any more."""


class Following:
    """One run of a listener in a view. `run` returns the exit code."""

    def __init__(self, view: View, limit: int | None, duration: float | None) -> None:
        self._view = view
        self._limit = limit
        self._duration = duration
        self._full = False
        self._ticks = self._errors = 0
        self._fatal: list[FinxStreamerError] = []

    def run(self, listener: StreamListener) -> int:
        """Follow until the limit, the duration, Ctrl-C, a closed pipe or a fatal error: 0, or 1 for the last."""
        listener.on_tick(self._on_tick)
        listener.on_error(self._on_error)
        listener.on_notice(self._view.on_notice)
        listener.on_state(self._on_state)
        listener.on_gap(self._on_gap)
        started = time.monotonic()
        interrupted = self._watch(listener, started)
        if interrupted:
            say(self._summary(listener.stats, time.monotonic() - started))
        return self._verdict(listener)

    def _watch(self, listener: StreamListener, started: float) -> bool:
        """Show ticks until the end. Returns whether that was Ctrl-C."""
        interrupted = False
        with terminate_as_interrupt(), contextlib.suppress(BrokenPipeError):
            try:
                listener.start()
                self._show(listener, started)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                try:
                    self._view.finish(listener, interrupted)
                finally:
                    listener.stop(timeout=_STOP_TIMEOUT, drain=False)
        return interrupted

    def _show(self, listener: StreamListener, started: float) -> None:
        end = started + self._duration if self._duration is not None else float("inf")
        while not (self._full or listener.state.ended):
            left = end - time.monotonic()
            if left <= 0:
                return
            self._view.turn(listener, min(left, _LOOK))

    def _on_tick(self, tick: Tick) -> None:
        if self._full:
            return
        self._view.on_tick(tick)
        self._ticks += 1
        if self._ticks == self._limit:
            self._full = True
            self._view.wake()

    def _on_error(self, error: FinxStreamerError) -> None:
        self._errors += 1
        if isinstance(error, ConnectionFailed) and not error.will_retry:
            # It ends the listener: `join` raises it, and it is told once, at the end.
            self._fatal.append(error)
        else:
            self._view.on_error(error)

    def _on_gap(self, gap: Gap) -> None:
        if gap.filled:
            self._view.on_gap(gap)

    def _on_state(self, symbol: str, state: State) -> None:
        self._view.wake()

    def _summary(self, stats: ListenerStats, seconds: float) -> str:
        return (
            f"{count(self._ticks, 'tick')} in {seconds:,.1f} s; {count(stats.reconnects, 'reconnect')}, "
            f"{stats.dropped:,} dropped, {count(self._errors, 'error')}"
        )

    def _verdict(self, listener: StreamListener) -> int:
        ends = self._fatal
        try:
            listener.join(timeout=0)
        except FinxStreamerError as raised:
            ends = [*(end for end in ends if end is not raised), raised]
        for end in ends:
            say(brief(f"error: {end}"))
        return 1 if ends else 0


class KeyFileUnusable(Exception):
    """The key file can't be read now; a later attempt may find it mended. Listeners show this name."""


def api_key(file: Path | None) -> str | Callable[[], str]:
    """The key from the environment, or a callable that reads the file at each attempt. Never from an argument.

    Raises `ConfigurationError` where there is no key at this moment.
    """
    if file is None:
        key = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
        if not key:
            raise ConfigurationError(f"no API key: set {ENVIRONMENT_VARIABLE}, or pass --api-key-file FILE")
        return key
    try:
        key = _read_key(file)
        # What is no file on a disk, as in `--api-key-file <(pass finx)`, can be read only once.
        warn_of_readers("--api-key-file", file)
        return (lambda: _read_key(file)) if stat.S_ISREG(file.stat().st_mode) else key
    except KeyFileUnusable as unusable:
        raise ConfigurationError(str(unusable)) from None


def _read_key(file: Path) -> str:
    fault = "it is no text"
    try:
        with contextlib.suppress(UnicodeDecodeError):
            # Editors of Windows begin it with a mark.
            key = file.read_text("utf-8-sig").strip()
            if key:
                return key
            fault = "it is empty"
    except OSError as cause:
        fault = cause.strerror or type(cause).__name__
    # Outside of the handlers: the error of what is no text holds all of it, and would stay with this one.
    raise KeyFileUnusable(f"--api-key-file {file}: {fault}")


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """A polite kill ends a run as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_terminal() -> bool:
    """Whether standard output is a terminal that a table can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
