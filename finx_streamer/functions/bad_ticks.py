"""What a `FunctionClient` does about ticks of history that can't be read."""

from __future__ import annotations

import logging
import threading
from typing import Any

from ..config.checks import refusal
from ..errors import DecodeError, is_power_of_ten

logger = logging.getLogger("finx_streamer")


class BadTicks:
    """Counts them, and skips or raises each. For any thread.

    Args:
        on_bad: "skip", "raise", or a callable that gets the error.

    Raises:
        ConfigurationError: It is none of these.
    """

    def __init__(self, on_bad: Any) -> None:
        if on_bad not in ("skip", "raise") and not callable(on_bad):
            raise refusal("on_bad", on_bad, "'skip', 'raise' or a callable that takes the error")
        self.count = 0
        self._on_bad = on_bad
        self._lock = threading.Lock()

    def report(self, error: DecodeError) -> None:
        """Take note of one. Raises its error, or anything that the callable raises."""
        with self._lock:
            self.count += 1
            count = self.count
        if self._on_bad == "raise":
            raise error
        if self._on_bad != "skip":
            self._on_bad(error)
        elif is_power_of_ten(count):
            logger.warning(
                "history without a tick that can't be read (%d so far; more are logged at 10, 100 …; see on_bad=): %s",
                count,
                error,
            )
