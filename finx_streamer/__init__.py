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
    NotAvailable,
    ProtocolError,
    RateLimited,
    ServerError,
    SlowConsumer,
    StaleStream,
    StreamNotFound,
    TicksDropped,
)
from .listener import StreamListener
from .messages import Notice, Tick
from .reconnect import ReconnectPolicy
from .session import State
from .stats import ListenerStats, StreamStats
from .symbols import Option, Pair

__all__ = [
    "AuthenticationError",
    "CallTimeout",
    "CallbackError",
    "ConfigurationError",
    "ConnectionFailed",
    "DecodeError",
    "Endpoint",
    "FinxStreamerError",
    "FunctionError",
    "GapNotFilled",
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
]

logging.getLogger("finx_streamer").addHandler(logging.NullHandler())
