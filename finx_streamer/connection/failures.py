"""Translate every way in which a connection can fail into an error of this package, without the key."""

from __future__ import annotations

import errno
import logging
import socket
import ssl

import websocket

from ..config.api_key import KeySource
from ..config.redaction import redact
from ..errors import AuthenticationError, ConnectionFailed, ProtocolError, RateLimited, StreamNotFound
from .attempt import CA_BUNDLE, OPENSSL_VARIABLES, Attempt, ConnectionConfig
from .http_response import HttpResponse

logger = logging.getLogger("finx_streamer")
#: In characters.
_BODY_SHOWN, _STATUS_LINE_SHOWN = 200, 80
#: In Python's `ssl`, the end of a connection is one of two exceptions; which one depends on the version.
_ENDS = (EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError, websocket.WebSocketConnectionClosedException)
#: OpenSSL's codes for an unknown CA, as in "self-signed certificate" and "unable to get local issuer certificate".
_UNKNOWN_CA = (2, 18, 19, 20, 21)
_CA_HINT = (
    f"; if the server is the right one, let {OPENSSL_VARIABLES[0]} or {CA_BUNDLE} name a file with its CA (the first "
    "that is set wins), or pass ssl_context="
)
_ADVICE = {
    errno.ECONNREFUSED: "; check that a server runs there",
    errno.ENETUNREACH: "; check the network",
    errno.EHOSTUNREACH: "; check the network",
}
_CLOSE_CODES = {
    1000: ", normally",
    1001: ", going away",
    1011: ", server error",
    1012: ", restart",
    1013: ", try again later",
}


class HandshakeRefused(Exception):
    """The server answered the handshake with a status other than 101."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__(response.status)
        self.response = response


def check_response(data: bytes) -> None:
    """Accept a switch to the WebSocket protocol as we requested it. Raises `HandshakeRefused` or `ProtocolError`."""
    response = HttpResponse.parse(data)
    if response is None:
        status_line = redact(repr(data.partition(b"\r\n")[0]))[:_STATUS_LINE_SHOWN]
        raise ProtocolError(f"the server's status line is {status_line}", permanent=True)
    if response.status != 101:
        raise HandshakeRefused(response)
    if response.unrequested is not None:
        raise ProtocolError(f"the server uses what we didn't offer: {response.unrequested}", permanent=True)


def refusal(response: HttpResponse, config: ConnectionConfig, attempt: Attempt) -> ConnectionFailed:
    """Return the error for a handshake that was refused (source of the statuses: O; see docs/protocol.md)."""
    status, retry_after = response.status, response.retry_after
    answer = f"the server answered {status} {redact(response.phrase)}".rstrip()
    if body := _shown_body(response):
        answer += f", {body!r}"
    if status in (401, 403):
        final = not _has_another_key(config.keys, attempt)
        advice = "; keys rotate every 24 hours: get a new one" if final else ""
        return AuthenticationError(f"the API key was refused: {answer}{advice}", status=status, permanent=final)
    if status == 404 and config.symbol is None:
        return StreamNotFound(f"no functions there: {answer}; check the endpoint", status=status)
    if status == 404:
        return StreamNotFound(f"no such stream: {answer}; check the pair, and the endpoint's prefix", status=status)
    if status == 429:
        return RateLimited(f"too many requests: {answer}", status=status, retry_after=retry_after)
    if 300 <= status < 400:
        where = redact(response.headers.get("Location", "nowhere"))
        reason = f"{answer}: a redirect to {where!r} is not followed: a login page on the way, or a wrong endpoint="
        return ConnectionFailed(reason, status=status)
    if status < 300:
        return ProtocolError(f"{answer}: there is no websocket server at this URL", status=status, permanent=True)
    return ConnectionFailed(answer, status=status, retry_after=retry_after)


def _shown_body(response: HttpResponse) -> str:
    """The beginning of the body, without the key. The last word of an incomplete body may be part of a key: drop it."""
    text = redact(response.body.decode("utf-8", "replace"))
    length = response.headers.get("Content-Length", "").strip()
    complete = length.isdecimal() and len(response.body) >= int(length[:12])
    if text and not complete and not text[-1].isspace():
        text = text.removesuffix(text.rsplit(None, 1)[-1]) + "…"
    shown = text.strip()[:_BODY_SHOWN]
    # A page for browsers starts with tags, which explain nothing.
    return "" if shown.startswith("<") else shown


def _has_another_key(keys: KeySource, attempt: Attempt) -> bool:
    """Whether the next attempt may use another key. If one is found, the attempt keeps it."""
    if not keys.can_change:
        return False
    try:
        another = keys.current()
    except BaseException:
        # Also SystemExit, on this worker thread. The next attempt asks again, and reports the error.
        return True
    attempt.next_key = another if another != attempt.key else None
    return attempt.next_key is not None


def closed(code: int | None, reason: str | None) -> ConnectionFailed:
    """Return the error for a close frame (source of the codes: O; see docs/protocol.md)."""
    said = f": {redact(reason)!r}" if reason else ""
    if code == 1008:
        return AuthenticationError(f"closed by the server for policy, e.g. a revoked key (1008){said}", close_code=code)
    if code is None:
        return ConnectionFailed(f"closed by the server without a code{said}")
    return ConnectionFailed(f"closed by the server ({code}{_CLOSE_CODES.get(code, '')}){said}", close_code=code)


def translate(cause: BaseException, where: str = "the server") -> ConnectionFailed:
    """Return the error for any exception. Its traceback and context are dropped: their frames may hold the key."""
    error = cause if isinstance(cause, ConnectionFailed) else _error_for(cause, where)
    if isinstance(cause, OSError):
        error.__cause__ = cause.with_traceback(None)
        cause.__cause__ = cause.__context__ = None
    error.__context__ = None
    return error.with_traceback(None)


def _error_for(cause: BaseException, where: str) -> ConnectionFailed:
    text = redact(str(cause))
    if getattr(cause, "reason", None) == "CERTIFICATE_VERIFY_FAILED":
        fault = getattr(cause, "verify_message", "it can't be verified")
        hint = _CA_HINT if getattr(cause, "verify_code", None) in _UNKNOWN_CA else ""
        return ConnectionFailed(f"the certificate of {where} is refused: {fault}{hint}", permanent=True)
    if isinstance(cause, _ENDS):
        return ConnectionFailed(f"{where} closed the connection without a close frame")
    if isinstance(cause, TimeoutError | websocket.WebSocketTimeoutException):
        return ConnectionFailed(f"{where} did not answer in time; check the network")
    if isinstance(cause, ssl.SSLError):
        return ConnectionFailed(f"TLS with {where} failed: {cause.reason or text}", permanent=True)
    if isinstance(cause, socket.gaierror | UnicodeError):
        # A UnicodeError: no such name can exist, for example because a part of it is too long.
        permanent = isinstance(cause, UnicodeError)
        advice = "; check the network and the endpoint"
        return ConnectionFailed(f"the name of {where} can't be resolved: {text}{advice}", permanent=permanent)
    if isinstance(cause, OSError):
        advice = _ADVICE.get(cause.errno or 0, "")
        return ConnectionFailed(f"{where}: {(cause.strerror or text or type(cause).__name__).lower()}{advice}")
    if isinstance(cause, MemoryError):
        return ConnectionFailed(f"out of memory while reading from {where}")
    if isinstance(cause, websocket.WebSocketException):
        return ProtocolError(f"{where} does not complete the websocket handshake: {text}", permanent=True)
    logger.error("unexpected %s while connecting to %s: %s", type(cause).__name__, where, text)
    return ConnectionFailed(f"{where}: {type(cause).__name__}: {text}")
