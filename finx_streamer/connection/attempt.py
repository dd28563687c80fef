"""connection.attempt"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable

import attrs

from ..config.api_key import ApiKey, KeySource
from ..config.endpoint import Endpoint
from ..config.proxy import DIRECT, ProxyChoice
from ..config.symbols import Symbol

MAX_MESSAGE = 16 * 1024 * 1024


@attrs.frozen
class ConnectionConfig:
    """All that a connection needs, the key left out: that is asked for when the attempt begins."""

    endpoint: Endpoint
    #: None: a connection for function calls.
    symbol: Symbol | None
    keys: KeySource
    connect_timeout: float
    ssl_context: Callable[[], ssl.SSLContext]
    max_message: int = MAX_MESSAGE
    proxies: ProxyChoice = DIRECT

    def url(self, key: ApiKey) -> str:
        """It holds the key."""
        if self.symbol is None:
            return self.endpoint.functions_url(key)
        return self.endpoint.stream_url(self.symbol, key)


class Attempt:
    """A handshake under way. `cancel` may be called from any thread, at any time."""

    def __init__(self, refused_key: ApiKey | None = None, key: ApiKey | None = None) -> None:
        #: A key that is not worth another try.
        self.refused_key = refused_key
        #: The key to use, where it is known beforehand; else, once it is known, the one that was used.
        self.key = key
        #: A key that was asked for when this attempt's was refused, for the next one.
        self.next_key: ApiKey | None = None
        #: Host and port of the proxy that it goes through, once that is known.
        self.proxy: str | None = None
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None

    def begin(self, timeout: float) -> None:
        """The time runs from here."""
        self._deadline = time.monotonic() + timeout

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._socket is not None:
                # Wakes a thread that is blocked on it; closing would not.
                # (The plain socket's way: that of a TLS socket would take its state from under that thread.)
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def remaining(self) -> float:
        """Seconds left; raises when there are none, or when nobody wants the connection any more."""
        left = self._deadline - time.monotonic()
        if self._cancelled or left <= 0:
            raise TimeoutError("timed out")
        return left

    def watch(self, sock: socket.socket) -> None:
        """Make `sock` the one that `cancel` interrupts."""
        with self._lock:
            self._socket = sock
        self.remaining()
