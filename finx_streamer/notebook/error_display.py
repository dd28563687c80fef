"""Errors that no `on_error` takes, shown in the cell that has to do with them: rarely, and briefly."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import CallbackError, FinxStreamerError, printable_lines
from .cells import Cell

logger = logging.getLogger("finx_streamer")

_OURS = str(Path(__file__).parent.parent)
#: How many frames of a user's own code are shown, at most.
_FRAMES = 5


class ErrorDisplay:
    """Shows an error the first time, and then at counts of 10, 100, 1,000 …, each callback's on its own.

    It goes to the log instead where logging was set up: no error is shown twice.
    """

    def __init__(self, starter: Cell, cell_of: Callable[[Callable[..., Any]], Cell | None]) -> None:
        #: Where errors go that are no callback's.
        self._starter = starter
        self._cell_of = cell_of
        self._counts: Counter[tuple[type, int]] = Counter()

    def __call__(self, error: FinxStreamerError) -> None:
        callback = error.callback if isinstance(error, CallbackError) else None
        # By identity, for not everything that can be called can be hashed.
        key = (type(error), id(callback))
        self._counts[key] += 1
        count = self._counts[key]
        if not _is_power_of_ten(count):
            return
        cell = (self._cell_of(callback) if callback is not None else None) or self._starter
        cell.run(_tell, error, count)


def _tell(error: FinxStreamerError, count: int) -> None:
    times = f" ({count:,} times so far)" if count > 1 else ""
    if _logging_is_set_up():
        logger.error("%s%s", error, times, exc_info=error.__cause__ if isinstance(error, CallbackError) else None)
        return
    lines = [f"finx_streamer: {type(error).__name__}: {error}{times}\n"]
    if isinstance(error, CallbackError) and error.__cause__ is not None:
        cause = error.__cause__
        lines += traceback.format_exception(type(cause), cause, _users_own(cause.__traceback__), limit=-_FRAMES)
    print(printable_lines("".join(lines)), end="", file=sys.stderr, flush=True)


def _users_own(trace: TracebackType | None) -> TracebackType | None:
    """Without our frames at its top."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace


def _logging_is_set_up() -> bool:
    """Whether any handler would take an error of ours. A NullHandler takes none."""
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
