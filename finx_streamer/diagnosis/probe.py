"""`Probe`: one connection whose messages are read one at a time, each within a limit."""

from __future__ import annotations

import email.utils
import json
import select
import time
from types import TracebackType
from typing import Any, Self

from ..clock import monotonic
from ..connection.attempt import Attempt, ConnectionConfig
from ..connection.handshake import open_connection
from ..errors import ConnectionFailed
from ..wire.frames import Binary
from .limits import LIMIT, within


class Probe:
    """Opens a connection. Raises `ConnectionFailed` if that fails or takes too long."""

    def __init__(self, config: ConnectionConfig) -> None:
        attempt = Attempt()
        start = time.perf_counter()
        try:
            self._connection = within(LIMIT + 0.5, lambda: open_connection(config, attempt))
        except TimeoutError:
            attempt.cancel()
            raise ConnectionFailed(f"no connection within {LIMIT:g} s") from None
        #: How long it took to open, in milliseconds.
        self.opened_in = (time.perf_counter() - start) * 1_000
        #: This machine's time when it was open, in seconds since 1970.
        self.opened_at = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._connection.disconnect()

    @property
    def server_time(self) -> float | None:
        """The server's time in its answer to the handshake, in seconds since 1970, if it said so."""
        headers = getattr(self._connection.sock, "headers", None) or {}
        try:
            return email.utils.parsedate_to_datetime(headers.get("date", "")).timestamp()
        except (TypeError, ValueError):
            return None

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Send a request, which gets the key, and return the next message."""
        self._connection.send_request(request)
        return self.read()

    def read(self, limit: float = LIMIT) -> dict[str, Any] | None:
        """Return the next message, `{}` if it isn't a JSON object, or None if none comes within `limit` seconds.

        Raises:
            ConnectionFailed: The connection ended.
        """
        connection, end = self._connection, monotonic() + limit
        while not (messages := connection.messages(1)):
            if connection.ended is not None:
                raise connection.ended
            left = end - monotonic()
            if left <= 0 or not select.select([connection.wire.socket], [], [], left)[0]:
                return None
            try:
                connection.wire.fill()
            except (OSError, EOFError):
                raise ConnectionFailed("the server closed the connection") from None
        payload = messages[0]
        try:
            message = json.loads(payload.payload if isinstance(payload, Binary) else payload)
        except (ValueError, RecursionError):
            return {}
        return message if isinstance(message, dict) else {}
