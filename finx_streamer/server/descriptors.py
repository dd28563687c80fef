"""The process's limit of file descriptors: raise it for the connections, and report when it is reached."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import sys
from collections.abc import Callable
from typing import Any

from ..clock import monotonic

if sys.platform != "win32":
    import resource

log = logging.getLogger("finx_streamer.server")

#: Descriptors for everything besides connections: the store, the event loop, standard streams, your own files.
RESERVE = 64
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: Seconds between two reports of exhaustion.
_REPORT_INTERVAL = 60.0


def raise_limit(wanted: int) -> int | None:
    """Raise the soft limit towards the hard one, as far as `wanted` descriptors need.

    Returns the limit that applies from now on; `None` if there is none, as on Windows.
    """
    if sys.platform == "win32":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if target > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (OSError, ValueError):
            # macOS refuses limits above its kernel's, even below the hard limit.
            return soft
        return target
    return soft


class ExhaustionReporter:
    """An event loop's exception handler. It logs exhaustion once a minute; asyncio would log each failed `accept()`."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next_report = -math.inf
        self._unreported = 0

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See `asyncio.AbstractEventLoop.set_exception_handler()`."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            loop.default_exception_handler(context)
            return
        self._unreported += 1
        now = self._clock()
        if now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL
            log.error(
                "cannot accept connections: %s (%d times since the last report). New clients wait until others leave; "
                "raise the limit of open files (ulimit -n), or lower max_connections",
                error.strerror,
                self._unreported,
            )
            self._unreported = 0
