"""What the programs of the tests share: a listener that prints FLOWS when the first tick arrives.

Usage: python PROGRAM.py NAME URL [stuck]. NAME is a function of the program. With "stuck", the callback hangs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from finx_streamer import ReconnectPolicy, StreamListener, Tick

PAIR = "BTC:USDC"
#: A port that refuses connections.
NOWHERE = "ws://127.0.0.1:9/"
#: Set when the first tick arrived.
flows = threading.Event()

# A program that a shell starts in the background ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


def url() -> str:
    """The server's URL."""
    return sys.argv[2]


def announce(_: Tick) -> None:
    """Print FLOWS, once."""
    if not flows.is_set():
        # One write, before anything that waits for `flows` can print.
        os.write(1, b"FLOWS\n")
        flows.set()
    elif "stuck" in sys.argv[3:]:
        time.sleep(60)


def make(**settings: Any) -> StreamListener:
    """A listener to one pair, with fast reconnects."""
    defaults = {"api_key": "demo", "endpoint": url(), "on_tick": announce}
    defaults["reconnect"] = ReconnectPolicy(initial=0.02, factor=1.0, jitter=False)
    return StreamListener(PAIR, **defaults | settings)


def run(functions: dict[str, Any]) -> None:
    """Call the function named on the command line."""
    functions[sys.argv[1]]()
