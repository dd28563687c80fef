"""connection.failures"""

from __future__ import annotations

import logging
import socket
import ssl

import websocket

from ..config.api_key import KeySource
from ..config.redaction import redact
from ..errors import AuthenticationError, ConnectionFailed, ProtocolError, RateLimited, StreamNotFound
from .attempt import Attempt, ConnectionConfig
from .http_response import HttpAnswer

logger = logging.getLogger("finx_streamer")
#: How much of a refusal's body is shown, and of what should be a status line: in characters.
_BODY_SHOWN, _LINE_SHOWN = 200, 80


class _Refused(Exception):
    """The server answered the handshake with something else than a switch of protocols."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _is_of_certificate(cause: BaseException) -> bool:
    """Whether a certificate was refused. For Python 3.11.2 it may be a plain SSLError, where descriptors are short."""
    told = getattr(cause, "reason", "") == "CERTIFICATE_VERIFY_FAILED"
    return told or isinstance(cause, ssl.SSLCertVerificationError)


def _check_answer(response: bytes) -> None:
    """Let a switch to the protocol we asked for pass; raise `_Refused` for any other answer, redirects included."""
    answer = HttpAnswer.parse(response)
    if answer is None:
        status_line = response.partition(b"\r\n")[0]
        raise ProtocolError(f"the server's status line is {redact(repr(status_line))[:_LINE_SHOWN]}", permanent=True)
    if answer.status != 101:
        raise _Refused(answer)
    if answer.unasked is not None:
        raise ProtocolError(f"the server uses what was not offered to it: {answer.unasked}", permanent=True)


def _refusal(refused: HttpAnswer, target: ConnectionConfig, attempt: Attempt) -> ConnectionFailed:
    """The typed error for an HTTP answer. Source: the refusals of docs/protocol.md, O."""
    status = refused.status
    answer = f"the server answered {status} {redact(refused.phrase)}".rstrip()
    if body := _shown_body(refused):
        answer += f", {body!r}"
    if status in (401, 403):
        final = not _ask_for_another(target.keys, attempt)
        advice = "; keys rotate every 24 hours: get a new one" if final else ""
        return AuthenticationError(f"the API key was refused: {answer}{advice}", status=status, permanent=final)
    if status == 404 and target.symbol is None:
        return StreamNotFound(f"no functions there: {answer}; check the endpoint", status=status)
    if status == 404:
        return StreamNotFound(f"no such stream: {answer}; check the pair, and the endpoint's prefix", status=status)
    if status == 429:
        return RateLimited(f"too many requests: {answer}", status=status, retry_after=refused.retry_after)
    if 300 <= status < 400:
        where = redact(refused.headers.get("Location", "nowhere"))
        return ConnectionFailed(
            f"{answer}: a redirect to {where!r} is not followed: a login page on the way, or a wrong endpoint=",
            status=status,
        )
    if status < 300:
        return ProtocolError(f"{answer}: it is no websocket server at this address", status=status, permanent=True)
    return ConnectionFailed(answer, status=status, retry_after=refused.retry_after)


def _shown_body(refused: HttpAnswer) -> str:
    """The body as far as it has come, without the key; and without its last word, where that may be a part of one."""
    text, length = redact(refused.body.decode("utf-8", "replace")), refused.headers.get("Content-Length", "").strip()
    complete = length.isdecimal() and len(refused.body) >= int(length[:12])
    if text and not complete and not text[-1].isspace():
        text = text.removesuffix(text.rsplit(None, 1)[-1]) + "…"
    shown = text.strip()[:_BODY_SHOWN]
    # A page for browsers begins with what says nothing.
    return "" if shown.startswith("<") else shown


def _ask_for_another(keys: KeySource, attempt: Attempt) -> bool:
    """Whether another key may do what the refused one did not. One that is found is kept for the next attempt."""
    if not keys.can_change:
        return False
    try:
        another = keys.current()
    except ConnectionFailed:
        # The next attempt asks again, and says what is wrong with the answer.
        return True
    attempt.next_key = another if another != attempt.key else None
    return attempt.next_key is not None


_CLOSE_CODES = {
    1000: ", normally",
    1001: ", going away",
    1011: ", server error",
    1012: ", restart",
    1013: ", try again later",
}


def closed(code: int | None, reason: str | None) -> ConnectionFailed:
    """The typed error for a close frame. Source: the close codes of docs/protocol.md, O."""
    said = f": {redact(reason)!r}" if reason else ""
    if code == 1008:
        return AuthenticationError(f"closed by the server for policy, e.g. a revoked key (1008){said}", close_code=code)
    if code is None:
        return ConnectionFailed(f"closed by the server without a code{said}")
    meaning = _CLOSE_CODES.get(code, "")
    return ConnectionFailed(f"closed by the server ({code}{meaning}){said}", close_code=code)


def translate(cause: BaseException, where: str = "the server") -> ConnectionFailed:
    """The typed error for an exception of the library's or the system's, with a cause reduced to its text."""
    if isinstance(cause, ConnectionFailed):
        return cause
    error = _translated(cause, where)
    error.__cause__ = _without_frames(cause)
    return error


#: How the end of a connection is told; which of `ssl`'s two it is depends on the version of Python.
_ENDS = (EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


def _translated(cause: BaseException, where: str) -> ConnectionFailed:
    text = redact(str(cause))
    if _is_of_certificate(cause):
        why = getattr(cause, "verify_message", "it can't be verified")
        return ConnectionFailed(f"the certificate of {where} is refused: {why}", permanent=True)
    if isinstance(cause, (*_ENDS, websocket.WebSocketConnectionClosedException)):
        return ConnectionFailed(f"{where} closed the connection without a close frame")
    if isinstance(cause, TimeoutError | websocket.WebSocketTimeoutException):
        return ConnectionFailed(f"{where} did not answer in time")
    if isinstance(cause, ssl.SSLError):
        return ConnectionFailed(f"TLS with {where} failed: {cause.reason or text}", permanent=True)
    if isinstance(cause, socket.gaierror | UnicodeError):
        return ConnectionFailed(f"the name of {where} can't be resolved: {text}")
    if isinstance(cause, OSError):
        return ConnectionFailed(f"{where}: {(cause.strerror or text or type(cause).__name__).lower()}")
    if isinstance(cause, MemoryError):
        return ConnectionFailed(f"out of memory while reading from {where}")
    if isinstance(cause, websocket.WebSocketException):
        return ProtocolError(f"{where} does not complete the websocket handshake: {text}", permanent=True)
    logger.error("unexpected %s while connecting to %s: %s", type(cause).__name__, where, text)
    return ConnectionFailed(f"{where}: {type(cause).__name__}: {text}")


def _without_frames(cause: BaseException) -> BaseException | None:
    """A copy of an OSError without the frames that it passed, whose locals hold the key; None for anything else."""
    if not isinstance(cause, OSError):
        return None
    copy = type(cause).__new__(type(cause), *cause.args)
    copy.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in cause.args)
    for name in ("reason", "verify_code", "verify_message"):
        if hasattr(cause, name):
            setattr(copy, name, getattr(cause, name))
    return copy
