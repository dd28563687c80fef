"""`Probe`: one connection whose messages are read one at a time, until a deadline."""

from __future__ import annotations

import email.utils
import json
import select
import time
from types import TracebackType
from typing import Any, Self

import attrs

from ..connection.attempt import Attempt, ConnectionConfig
from ..connection.handshake import open_connection
from ..errors import ConnectionFailed
from ..wire.frames import Binary
from .limits import LIMIT, Deadline


class Probe:
    """Opens a connection, and reads from it. Raises `ConnectionFailed` if there is none before the deadline."""

    def __init__(self, config: ConnectionConfig, deadline: Deadline) -> None:
        #: When the current step ends. Set it at the start of another step.
        self.deadline = deadline
        # The attempt's own limit comes first, because its error says what it waited for.
        config = attrs.evolve(config, connect_timeout=max(0.1, deadline.left - 0.2))
        attempt = Attempt()
        start = time.perf_counter()
        try:
            self._connection = deadline.run(lambda: open_connection(config, attempt))
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
        try:
            return email.utils.parsedate_to_datetime(self._header("date")).timestamp()
        except (TypeError, ValueError):
            return None

    @property
    def is_own_server(self) -> bool:
        """Whether the server runs this package: its answer to the handshake says so."""
        return self._header("server") == "finx-streamer"

    def _header(self, name: str) -> str:
        """A header of the answer to the handshake, "" if there is none. `name` is in lower case."""
        return self._connection.response_headers.get(name, "")

    def send(self, function: str, **arguments: str) -> None:
        """Send a request, which gets the key."""
        self._connection.send_request({"functionName": function, **arguments})

    def ask(self, function: str, **arguments: str) -> Any:
        """Send a request, and return the next message, as `read` does."""
        self.send(function, **arguments)
        return self.read()

    def read(self) -> Any:
        """Return the next message: a JSON value, or `{}` if it isn't JSON. None if none comes before the deadline.

        Raises:
            ConnectionFailed: The connection ended.
        """
        connection = self._connection
        if not self.deadline.left:
            return None  # also if the server has sent more than was read
        while not (messages := connection.messages(1)):
            if connection.ended is not None:
                raise connection.ended
            left = self.deadline.left
            if not left or not select.select([connection.wire.socket], [], [], left)[0]:
                return None
            try:
                connection.wire.fill()
            except (OSError, EOFError):
                raise ConnectionFailed("the server closed the connection") from None
        payload = messages[0]
        try:
            return json.loads(payload.payload if isinstance(payload, Binary) else payload)
        except (ValueError, RecursionError):
            return {}
