"""`ErrorLog`: logs the errors for which there is no `on_error` callback, without flooding the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Hashable

from ..clock import monotonic
from ..errors import CallbackError, FinxStreamerError, is_power_of_ten, make_printable

logger = logging.getLogger("finx_streamer")

#: Seconds without an error of a kind, after which the next one counts from 1 again.
FRESH_AFTER = 600.0


class Repeats:
    """Counts errors of each kind, and picks the 1st, 10th, 100th … of them."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        #: For each kind, the count and the time of the last one.
        self._seen: dict[Hashable, tuple[int, float]] = {}

    def count(self, error: FinxStreamerError) -> int:
        """Count an error. Return its number if it should be shown, otherwise 0."""
        # The identity, because not every callable is hashable.
        kind = type(error), id(error.callback) if isinstance(error, CallbackError) else None
        now = self._clock()
        count, last = self._seen.get(kind, (0, now))
        count = 1 if now - last > FRESH_AFTER else count + 1
        self._seen[kind] = count, now
        return count if is_power_of_ten(count) else 0


class ErrorLog:
    """Logs an error the first time, then at counts of 10, 100, 1,000 …. One thread calls it."""

    def __init__(self) -> None:
        self._repeats = Repeats()
        self._has_printed = False

    def __call__(self, error: FinxStreamerError) -> None:
        count = self._repeats.count(error)
        if not count:
            return
        log(error, count)
        if logger.disabled and not self._has_printed and sys.stderr is not None:
            self._has_printed = True
            # Its default switches off the loggers that exist.
            advice = "its logger is disabled: pass disable_existing_loggers=False to logging.config, or use on_error="
            print(f"finx_streamer: {error}. You see no further errors, because {advice}", file=sys.stderr, flush=True)


def log(error: FinxStreamerError, count: int) -> None:
    """Log an error. `count`: how often it has occurred."""
    # A callback's traceback shows the user where to look.
    cause = error.__cause__ if isinstance(error, CallbackError) else None
    if isinstance(error, CallbackError) and isinstance(error.argument, FinxStreamerError):
        text = "on_error callback %r raised while it handled: %s%s"
        logger.error(text, error.callback, error.argument, times(count), exc_info=cause)
    else:
        logger.error("%s%s", error, times(count), exc_info=cause)


def times(count: int) -> str:
    """Say how often an error has occurred, for the end of a line."""
    return f" ({count:,} times so far)" if count > 1 else ""


def will_be_logged() -> bool:
    """Whether a handler that the user configured takes our errors."""
    here: logging.Logger | None = None if logger.disabled else logger
    while here is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in here.handlers):
            return True
        here = here.parent if here.propagate else None
    return False


def _escape_tracebacks(record: logging.LogRecord) -> bool:
    """Escape the traceback. A user's exception may quote the server, and logs are read on terminals."""
    if record.exc_info and not record.exc_text:
        record.exc_text = make_printable(logging.Formatter().formatException(record.exc_info), keep_newlines=True)
    return True


logger.addFilter(_escape_tracebacks)
