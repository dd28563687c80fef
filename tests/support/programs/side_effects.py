"""Import finx_streamer. Print the number of threads, then the logging handlers of the root and of the package."""

from __future__ import annotations

import logging
import threading

import finx_streamer  # noqa: F401

print(threading.active_count(), logging.getLogger().handlers)
print([type(handler).__name__ for handler in logging.getLogger("finx_streamer").handlers])
