"""Have a kernel hear what it has missed.

From ipykernel 7.0 to 7.3 a kernel can go deaf (ipykernel's issue 1554): a request that arrives while a reply is
being sent on the same socket is not read, and then no later one is either. Whoever waits for one cell before running
the next hardly ever meets it. But the page of a live view says every two seconds that it looks, whatever the kernel is
doing. So where a view was made in such a kernel, the kernel's own thread for requests looks for them four times a
second.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

import zmq
from IPython.core.getipython import get_ipython
from tornado.ioloop import PeriodicCallback

#: Milliseconds between two looks.
_EVERY = 250.0
_IS_AFFLICTED = [7, 0] <= [int(part) for part in metadata.version("ipykernel").split(".")[:2]] < [7, 4]


@cache
def keep_hearing() -> None:
    """Begin with it, once in a kernel. Elsewhere, and in kernels that are not afflicted, this does nothing."""
    kernel: Any = getattr(get_ipython(), "kernel", None)
    thread = getattr(kernel, "shell_channel_thread", None)
    if not _IS_AFFLICTED or thread is None:
        return
    stream = kernel.shell_stream

    def look() -> None:
        if not stream.closed():
            stream.flush(zmq.POLLIN)

    # A socket is for one thread only: all of this happens on the one that reads requests.
    thread.io_loop.add_callback(lambda: PeriodicCallback(look, _EVERY).start())
