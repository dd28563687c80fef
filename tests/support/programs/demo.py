"""Scripts that use the demo: in a forked process, and without the extra `server`."""

from __future__ import annotations

import os
import sys

from finx_streamer import FunctionClient, StreamListener
from tests.support.programs.common import run


def fork() -> None:
    """Print whether a forked process gets a market of its own."""
    with FunctionClient(endpoint="demo") as client:
        client.tick_snap("BTC:USDC")
    if (child := os.fork()) == 0:
        with FunctionClient(endpoint="demo") as another:
            os._exit(0 if another.tick_snap("BTC:USDC") and repr(another) != repr(client) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def without_extra() -> None:
    """Print the error."""
    sys.modules["websockets"] = None  # type: ignore[assignment]
    try:
        StreamListener("BTC:USDC", endpoint="demo")
    except ValueError as error:
        print(error)


run({"fork": fork, "without_extra": without_extra})
