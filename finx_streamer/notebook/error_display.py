"""Shows errors in the cell that they belong to, if there is no `on_error` callback."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import CallbackError, FinxStreamerError, make_printable
from .cells import Cell

logger = logging.getLogger("finx_streamer")

_PACKAGE = str(Path(__file__).parent.parent)
#: The highest number of frames of user code in a traceback.
_FRAMES = 5


class ErrorDisplay:
    """Shows an error the first time, then at counts of 10, 100, 1,000 …. Each callback's errors count separately.

    Where logging is configured, errors are logged instead, so that none is shown twice.
    """

    def __init__(self, starter: Cell, cell_of: Callable[[Callable[..., Any]], Cell | None]) -> None:
        #: The cell that shows errors of no callback.
        self._starter = starter
        self._cell_of = cell_of
        self._counts: Counter[tuple[type, int]] = Counter()

    def __call__(self, error: FinxStreamerError) -> None:
        callback = error.callback if isinstance(error, CallbackError) else None
        # The identity, because not every callable is hashable.
        key = (type(error), id(callback))
        self._counts[key] += 1
        count = self._counts[key]
        if not _is_power_of_ten(count):
            return
        cell = (self._cell_of(callback) if callback is not None else None) or self._starter
        cell.run(_show, error, count)


def _show(error: FinxStreamerError, count: int) -> None:
    times = f" ({count:,} times so far)" if count > 1 else ""
    if _logging_is_configured():
        logger.error("%s%s", error, times, exc_info=error.__cause__ if isinstance(error, CallbackError) else None)
        return
    lines = [f"finx_streamer: {type(error).__name__}: {error}{times}\n"]
    if isinstance(error, CallbackError) and error.__cause__ is not None:
        cause = error.__cause__
        lines += traceback.format_exception(type(cause), cause, _skip_package(cause.__traceback__), limit=-_FRAMES)
    print(make_printable("".join(lines), keep_newlines=True), end="", file=sys.stderr, flush=True)


def _skip_package(trace: TracebackType | None) -> TracebackType | None:
    """Remove the frames of this package from the top of a traceback."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        trace = trace.tb_next
    return trace


def _logging_is_configured() -> bool:
    """Whether a handler would take our errors. A NullHandler doesn't."""
    here: logging.Logger | None = logger
    while here is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in here.handlers):
            return True
        here = here.parent if here.propagate else None
    return False


def _is_power_of_ten(count: int) -> bool:
    while count % 10 == 0:
        count //= 10
    return count == 1
