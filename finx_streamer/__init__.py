"""finx_streamer: live crypto ticks from FinX, in your callbacks. See `StreamListener`."""

from __future__ import annotations

import logging

from ._version import __version__
from .endpoint import Endpoint
from .errors import (
    AuthenticationError,
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
    RateLimited,
    ServerError,
    SlowConsumer,
    StaleStream,
    StreamNotFound,
    TicksDropped,
)
from .functions import FunctionClient
from .gaps import Gap
from .listener import StreamListener, listeners, stop_all
from .messages import Notice, Tick
from .reconnect import ReconnectPolicy
from .session import State
from .stats import ListenerStats, StreamStats
from .symbols import Option, Pair
from .tables import to_pandas, to_polars

__all__ = [
    "AuthenticationError",
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
    "IncompleteHistory",
    "ListenerStats",
    "NotAvailable",
    "Notice",
    "Option",
    "Pair",
    "ProtocolError",
    "RateLimited",
    "ReconnectPolicy",
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
    "listeners",
    "stop_all",
    "to_pandas",
    "to_polars",
]

logging.getLogger("finx_streamer").addHandler(logging.NullHandler())
