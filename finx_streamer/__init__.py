"""Live crypto prices from FinX.

Set the environment variable `FINX_API_KEY` to your API key, then::

    from finx_streamer import StreamListener

    for tick in StreamListener("BTC:USDC", "ETH:USDC"):
        print(tick["timestamp"], tick["pair"], tick["price"])

`StreamListener` also delivers ticks to callbacks and to `async for`. `FunctionClient` fetches tick history.
"""

from __future__ import annotations

from ._version import __version__
from .bars import Bar, bars
from .config.endpoint import Endpoint
from .config.reconnect import ReconnectPolicy
from .config.symbols import Instrument, Option, Pair
from .delivery.stats import ListenerStats, StreamStats
from .diagnosis import doctor
from .errors import (
    AuthenticationError,
    BarError,
    CallbackError,
    CallTimeout,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    FunctionError,
    GapNotFilled,
    IncompleteHistory,
    NotAvailable,
    ProtocolError,
    PublishError,
    RateLimited,
    RecordingError,
    ServerError,
    SlowConsumer,
    StaleStream,
    StreamNotFound,
    TicksDropped,
)
from .functions.client import FunctionClient
from .listener import StreamListener, listeners, stop_all
from .tables import bars_to_pandas, greeks_to_pandas, greeks_to_polars, to_pandas, to_polars
from .values import Gap, Greeks, Notice, State, Tick

__all__ = [
    "AuthenticationError",
    "Bar",
    "BarError",
    "CallTimeout",
    "CallbackError",
    "ConfigurationError",
    "ConnectionFailed",
    "DecodeError",
    "Endpoint",
    "FinxStreamerError",
    "FunctionClient",
    "FunctionError",
    "Gap",
    "GapNotFilled",
    "Greeks",
    "IncompleteHistory",
    "Instrument",
    "ListenerStats",
    "NotAvailable",
    "Notice",
    "Option",
    "Pair",
    "ProtocolError",
    "PublishError",
    "RateLimited",
    "ReconnectPolicy",
    "RecordingError",
    "ServerError",
    "SlowConsumer",
    "StaleStream",
    "State",
    "StreamListener",
    "StreamNotFound",
    "StreamStats",
    "Tick",
    "TicksDropped",
    "__version__",
    "bars",
    "bars_to_pandas",
    "doctor",
    "greeks_to_pandas",
    "greeks_to_polars",
    "listeners",
    "stop_all",
    "to_pandas",
    "to_polars",
]
