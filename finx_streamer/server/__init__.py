"""A local FinX server: for tests, demos and work without a network. Needs the extra `[server]`.

    with LocalServer(Tape("ticks.jsonl", speed=10.0), keys={"demo"}) as server:
        print(server.url)

It speaks the wire protocol independently of this package's client and shares only `symbols` and `errors` with it, so
that a mistake in one shows against the other.
"""

from importlib import import_module

try:
    import_module("websockets.asyncio.server")
except ImportError as error:
    raise ImportError(
        'finx_streamer.server needs the websockets package: pip install "finx-streamer[server]"'
    ) from error

from .local import LocalServer
from .market import SimulatedMarket
from .source import Source
from .stats import ServerStats
from .tape import Tape
from .ticks import Tick

__all__ = ["LocalServer", "ServerStats", "SimulatedMarket", "Source", "Tape", "Tick"]
