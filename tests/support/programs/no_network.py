"""Scripts that set no callback for errors, with a server that can't be reached. Usage: python no_network.py NAME."""

from __future__ import annotations

import contextlib
import logging.config

from finx_streamer import ConnectionFailed, ReconnectPolicy, StreamListener
from tests.support.programs.common import NOWHERE, PAIR, run


def listen() -> None:
    """Try to connect 12 times."""
    policy = ReconnectPolicy(initial=0.001, factor=1.0, jitter=False, attempts=12)
    listener = StreamListener(PAIR, api_key="demo", endpoint=NOWHERE, on_tick=print, reconnect=policy).start()
    with contextlib.suppress(ConnectionFailed):
        listener.join()
    print(listener.stats.connection_errors)


def disable_and_listen() -> None:
    """Disable our logger, as `dictConfig` does by default."""
    logging.config.dictConfig({"version": 1})
    listen()


run({"listen": listen, "disable_and_listen": disable_and_listen})
