"""Open a connection: the socket first, then the WebSocket handshake. Blocks, so it runs on worker threads."""

from __future__ import annotations

from ..config.endpoint import join_host_port
from ..errors import AuthenticationError, ConnectionFailed
from .attempt import Attempt, ConnectionConfig
from .dial import closed_on_error, connect
from .failures import HandshakeRefused, refusal, translate
from .websocket import BufferedSocket, Connection


def open_connection(config: ConnectionConfig, attempt: Attempt) -> Connection:
    """Return an open connection within `connect_timeout`. Raises `ConnectionFailed`, which never shows the key."""
    outcome = outcome_of(config, attempt)
    if isinstance(outcome, ConnectionFailed):
        raise outcome
    return outcome


def outcome_of(config: ConnectionConfig, attempt: Attempt) -> Connection | ConnectionFailed:
    """Like `open_connection`, but return the error. The user's code may raise anything, also SystemExit."""
    attempt.begin(config.connect_timeout)
    try:
        return _open(config, attempt)
    except HandshakeRefused as refused:
        return refusal(refused.response, config, attempt)
    except BaseException as cause:
        way = f" (through the proxy {attempt.proxy})" if attempt.proxy else ""
        return translate(cause, join_host_port(config.endpoint.host, config.endpoint.port) + way)


def _open(config: ConnectionConfig, attempt: Attempt) -> Connection:
    key = attempt.key = attempt.key or config.keys.current()
    if key == attempt.refused_key:
        raise AuthenticationError("the API key was refused, and there is no other", permanent=True)
    sock = connect(config, attempt)
    with closed_on_error(sock):
        connection = Connection(
            config.url(key), BufferedSocket(sock, attempt), key, config.max_message, attempt.headers
        )
        connection.handshake()
    return connection
