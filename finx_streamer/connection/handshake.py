"""connection.handshake"""

from __future__ import annotations

from ..errors import AuthenticationError, ConnectionFailed
from .attempt import Attempt, ConnectionConfig
from .dial import _connect
from .failures import (
    _refusal,
    _Refused,
    translate,
)
from .websocket import (
    BufferedSocket,
    Connection,
)


def open_connection(target: ConnectionConfig, attempt: Attempt) -> Connection:
    """Connect and shake hands, within the attempt's deadline. Raises `ConnectionFailed`, with no key in it."""
    attempt.begin(target.connect_timeout)
    try:
        return _open(target, attempt)
    except ConnectionFailed as error:
        error.__context__ = None
        raise error.with_traceback(None) from error.__cause__
    except Exception as cause:
        way = f" (through the proxy {attempt.proxy})" if attempt.proxy else ""
        failure = translate(cause, f"{target.endpoint.host}:{target.endpoint.port}{way}")
    # Outside of the handler, for the library's exception holds frames whose locals hold the URL.
    raise failure


def outcome_of(target: ConnectionConfig, attempt: Attempt) -> Connection | ConnectionFailed:
    """What came of an attempt, whatever that is: for a thread that has to give its place back."""
    try:
        return open_connection(target, attempt)
    except ConnectionFailed as error:
        return error
    except BaseException as crash:
        # SystemExit in the user's key callable.
        return translate(crash)


def _open(target: ConnectionConfig, attempt: Attempt) -> Connection:
    key = attempt.key = attempt.key or target.keys.current()
    if key == attempt.refused_key:
        raise AuthenticationError("the API key was refused, and there is no other", permanent=True)
    sock = _connect(target, attempt)
    try:
        connection = Connection(target.url(key), BufferedSocket(sock, attempt), key, target.max_message)
        try:
            connection.shake_hands()
        except _Refused as refusal:
            raise _refusal(refusal.answer, target, attempt) from None
        return connection
    except BaseException:
        sock.close()
        raise
