"""Echo clients: what the server sends as text or binary goes back as it came. One on the transport, one without it.

The first reads and writes as the network thread does: it waits for readiness alone, nothing blocks, and every frame
goes by way of `Connection.messages`.
"""

from __future__ import annotations

import select
import ssl
from typing import Any

import attrs
import websocket

from finx_streamer import Endpoint
from finx_streamer.config.api_key import ApiKey, KeySource
from finx_streamer.connection import websocket as transport
from finx_streamer.connection.attempt import MAX_MESSAGE, Attempt, ConnectionConfig
from finx_streamer.connection.handshake import open_connection
from finx_streamer.connection.websocket import Connection
from finx_streamer.wire.frames import Binary

#: How long a connection may rest, in seconds. The suite's own patience is shorter.
PATIENCE = 60.0

# A listener hardly sends. Here whole messages wait to be sent, and more than one where the server is quick.
transport.MAX_UNSENT = 4 * MAX_MESSAGE


@attrs.frozen(kw_only=True)
class Case(ConnectionConfig):
    """A target with a path of its own, and no key in it."""

    path: str

    def url(self, key: ApiKey) -> str:
        return f"{self.endpoint.url}{self.path}"


def echo(base: str, path: str, context: ssl.SSLContext, at_once: int) -> None:
    """Connect, and send back what comes until the connection ends. Raises `ConnectionFailed`; TimeoutError.

    `at_once`: how many messages are read before the first of them is answered, where there are so many.
    """
    case = Case(
        endpoint=Endpoint(base),
        symbol=None,
        keys=KeySource.from_argument("not-asked-for"),
        connect_timeout=PATIENCE,
        ssl_context=lambda: context,
        path=path,
    )
    connection = open_connection(case, Attempt())
    try:
        _echo(connection, at_once)
        connection.send_close()
    finally:
        connection.close_socket()


def _echo(connection: Connection, at_once: int) -> None:
    wire, poller = connection.wire, select.poll()
    # What TLS has read ahead during the handshake wakes no poller.
    ready = select.POLLIN
    while True:
        try:
            if ready & select.POLLOUT:
                wire.flush()
            if ready & ~select.POLLOUT:
                wire.fill()
        except (OSError, EOFError):
            return
        if not _send_back(connection, at_once):
            return
        poller.register(wire.fileno(), select.POLLIN | (select.POLLOUT if wire.unsent else 0))
        events = poller.poll(PATIENCE * 1_000)
        if not events:
            raise TimeoutError(f"nothing has happened for {PATIENCE:.0f} s")
        ready = events[0][1]


def _send_back(connection: Connection, at_once: int) -> bool:
    """Answer all that has been read. False: the connection has ended."""
    while messages := connection.messages(at_once):
        for message in messages:
            if connection.sock is None or not connection.sock.connected:
                break  # a close frame was sent: it is the last
            if isinstance(message, Binary):
                connection.sock.send_bytes(message.payload)
            else:
                connection.sock.send_text(message.decode())
    return connection.ended is None


def echo_plainly(base: str, path: str) -> None:
    """The same by a `WebSocketApp` as the library's users write it, to compare with."""
    websocket.setdefaulttimeout(PATIENCE)
    websocket.WebSocketApp(f"{base}{path}", on_message=_send_back_plainly).run_forever()


def _send_back_plainly(app: Any, message: str | bytes) -> None:
    if isinstance(message, str):
        app.send_text(message)
    else:
        app.send_bytes(message)
