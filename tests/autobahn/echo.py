"""Clients that echo every message: one uses our `Connection`, the other a plain `WebSocketApp`.

The first reads and writes without blocking, like the network thread.
"""

from __future__ import annotations

import select
import ssl
from typing import Any

import attrs
import websocket

from finx_streamer import Endpoint
from finx_streamer.config.api_key import ApiKey, KeySource
from finx_streamer.connection import websocket as connection_module
from finx_streamer.connection.attempt import MAX_MESSAGE, Attempt, ConnectionConfig
from finx_streamer.connection.handshake import open_connection
from finx_streamer.connection.websocket import Connection
from finx_streamer.wire.frames import Binary

#: The longest silence in seconds. The suite's own timeouts are shorter.
TIMEOUT = 60.0

# A listener sends very little, but an echo client may have several large messages to send.
connection_module.MAX_UNSENT = 4 * MAX_MESSAGE


@attrs.frozen(kw_only=True)
class Case(ConnectionConfig):
    """The configuration of one test case: its URL has its own path and no key."""

    path: str

    def url(self, key: ApiKey) -> str:
        return f"{self.endpoint.url}{self.path}"


def echo(base: str, path: str, context: ssl.SSLContext, batch: int) -> None:
    """Connect and echo every message until the connection ends.

    Args:
        base: The server's base URL.
        path: The path of the test case.
        context: The TLS context.
        batch: How many messages to read, if available, before answering the first one.

    Raises:
        ConnectionFailed: The connection could not be opened.
        TimeoutError: The server is silent.
    """
    case = Case(
        endpoint=Endpoint(base),
        symbol=None,
        keys=KeySource.from_argument("unused"),
        connect_timeout=TIMEOUT,
        ssl_context=lambda: context,
        path=path,
    )
    connection = open_connection(case, Attempt())
    try:
        _echo(connection, batch)
        connection.send_close()
    finally:
        connection.close_socket()


def _echo(connection: Connection, batch: int) -> None:
    wire, poller = connection.wire, select.poll()
    # The poller doesn't report data that TLS read during the handshake.
    ready = select.POLLIN
    while True:
        try:
            if ready & select.POLLOUT:
                wire.flush()
            if ready & ~select.POLLOUT:
                wire.fill()
        except (OSError, EOFError):
            return
        if not _echo_messages(connection, batch):
            return
        poller.register(wire.fileno(), select.POLLIN | (select.POLLOUT if wire.unsent else 0))
        events = poller.poll(TIMEOUT * 1_000)
        if not events:
            raise TimeoutError(f"the server is silent for {TIMEOUT:.0f} s")
        ready = events[0][1]


def _echo_messages(connection: Connection, batch: int) -> bool:
    """Answer all messages that have been read. Return False if the connection has ended."""
    while messages := connection.messages(batch):
        for message in messages:
            if connection.sock is None or not connection.sock.connected:
                break  # nothing may follow a close frame
            if isinstance(message, Binary):
                connection.sock.send_bytes(message.payload)
            else:
                connection.sock.send_text(message.decode())
    return connection.ended is None


def echo_with_library(base: str, path: str) -> None:
    """Do the same with a plain `WebSocketApp`, for comparison."""
    websocket.setdefaulttimeout(TIMEOUT)
    websocket.WebSocketApp(f"{base}{path}", on_message=_echo_messages_with_library).run_forever()


def _echo_messages_with_library(app: Any, message: str | bytes) -> None:
    if isinstance(message, str):
        app.send_text(message)
    else:
        app.send_bytes(message)
