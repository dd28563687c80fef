"""A local FinX server for tests, demos and offline work. Needs the extra `[server]`.

    with LocalServer(Tape("ticks.jsonl", speed=10.0), keys={"demo"}) as server:
        print(server.url)

It implements the wire protocol independently of this package's client and shares only `errors` and `config.symbols`
with it, so that a codec bug on one side can't cancel out a bug on the other.
"""

from importlib import import_module

try:
    import_module("websockets.asyncio.server")
except ImportError as error:
    raise ImportError(
        'finx_streamer.server needs the websockets package: pip install "finx-streamer[server]"'
    ) from error

from .exchanges.market import ExchangeMarket
from .jetstream import JetStreamMarket
from .local import LocalServer
from .market import SimulatedMarket
from .source import LiveSource, Outlet, Source
from .stats import ExchangeStats, LogStats, ServerStats
from .tape import Tape
from .ticks import Tick

__all__ = [
    "ExchangeMarket",
    "ExchangeStats",
    "JetStreamMarket",
    "LiveSource",
    "LocalServer",
    "LogStats",
    "Outlet",
    "ServerStats",
    "SimulatedMarket",
    "Source",
    "Tape",
    "Tick",
]
