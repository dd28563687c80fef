"""Shows errors in the cell that they belong to, if there is no `on_error` callback."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ..delivery.error_log import Repeats, log, times, will_be_logged
from ..errors import CallbackError, ConnectionFailed, FinxStreamerError, make_printable
from .cells import Cell

_PACKAGE = str(Path(__file__).parent.parent)
#: The highest number of frames of user code in a traceback.
_FRAMES = 5
#: Seconds in which a waiting cell raises the error that ends its listener.
_MOMENT = 0.25


class ErrorDisplay:
    """Shows an error the first time, then at counts of 10, 100, 1,000 …. Each callback's errors count separately.

    Where logging is configured, errors are logged instead, so that none is shown twice.
    """

    def __init__(self, starter: Cell, cell_of: Callable[[Callable[..., Any]], Cell | None]) -> None:
        #: The cell that shows errors of no callback.
        self._starter = starter
        self._cell_of = cell_of
        self._repeats = Repeats()

    def __call__(self, error: FinxStreamerError) -> None:
        count = self._repeats.count(error)
        if not count:
            return
        callback = error.callback if isinstance(error, CallbackError) else None
        cell = (self._cell_of(callback) if callback is not None else None) or self._starter
        if isinstance(error, ConnectionFailed) and not error.will_retry:
            # It may end the listener. A cell that waits for it then raises the error, which shows it.
            later = threading.Timer(_MOMENT, _show_unless_raised, (cell, error, count))
            later.daemon = True
            later.start()
        else:
            cell.run(_show, error, count)


def _show_unless_raised(cell: Cell, error: FinxStreamerError, count: int) -> None:
    if error.__traceback__ is None:
        cell.run(_show, error, count)


def _show(error: FinxStreamerError, count: int) -> None:
    if will_be_logged():
        log(error, count)
        return
    lines = [f"finx_streamer: {type(error).__name__}: {error}{times(count)}\n"]
    if isinstance(error, CallbackError) and error.__cause__ is not None:
        cause = error.__cause__
        lines += traceback.format_exception(type(cause), cause, _skip_package(cause.__traceback__), limit=-_FRAMES)
    print(make_printable("".join(lines), keep_newlines=True), end="", file=sys.stderr, flush=True)


def _skip_package(trace: TracebackType | None) -> TracebackType | None:
    """Remove the frames of this package from the top of a traceback."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        trace = trace.tb_next
    return trace
