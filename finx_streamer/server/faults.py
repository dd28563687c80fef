"""What goes wrong on demand, before a handshake is done and in answer to calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus

import attrs

from ..errors import ConfigurationError
from .protocol import Refused


class Refusals:
    """The handshakes to come that are to be refused, or never answered."""

    def __init__(self) -> None:
        self._refuse = 0.0
        self._stall = 0
        self._status = 0
        self._headers: dict[str, str] = {}

    def refuse(
        self, count: int | None, status: int, retry_after: float | datetime | str | None, headers: Mapping[str, str]
    ) -> None:
        """Refuse the next `count` handshakes; `None` is all of them, 0 none any more."""
        number = _number(count)
        self._status = _status(status)
        self._headers = dict(headers)
        if retry_after is not None:
            self._headers["Retry-After"] = _retry_after(retry_after)
        self._refuse = number

    def stall(self, count: int) -> None:
        """Leave the next `count` handshakes without an answer."""
        if count < 0:
            raise ConfigurationError(f"count is {count!r}; expected 0 or more")
        self._stall = count

    def stalls(self) -> bool:
        """Whether the handshake at hand is to be left unanswered."""
        self._stall -= 1
        if self._stall >= 0:
            return True
        self._stall = 0
        return False

    def check(self) -> None:
        """Raise `Refused` if the handshake at hand is to be refused."""
        if self._refuse > 0:
            self._refuse -= 1
            raise Refused(self._status, f"refused on demand with {self._status}", self._headers)


@attrs.define
class _Coming:
    """How many of the calls to come are meant, and of which function; None is any but keepAlive."""

    count: float = 0
    function: str | None = None

    def takes(self, function: str) -> bool:
        """Whether the call at hand is one of them; if so, it is one less from then on."""
        if self.count <= 0 or (function == "keepAlive" if self.function is None else function != self.function):
            return False
        self.count -= 1
        return True


class CallFaults:
    """The calls to come on function connections that are to go wrong."""

    def __init__(self) -> None:
        self._fail = _Coming()
        self._stall = _Coming()
        self._drop = _Coming()
        self._message = ""
        self._reset = False

    def fail(self, count: int | None, message: str, function: str | None) -> None:
        """Answer the next `count` calls with an error; `None` is all of them, 0 none any more."""
        self._fail = _Coming(_number(count), function)
        self._message = message

    def stall(self, count: int | None, function: str | None) -> None:
        """Leave the next `count` calls without an answer for now."""
        self._stall = _Coming(_number(count), function)

    def drop(self, count: int | None, function: str | None, reset: bool) -> None:
        """Drop the connection of the next `count` calls."""
        self._drop = _Coming(_number(count), function)
        self._reset = reset

    def drops(self, function: str) -> bool:
        """Whether the connection is to be dropped at this call."""
        return self._drop.takes(function)

    @property
    def resets(self) -> bool:
        """Whether a dropped connection is reset."""
        return self._reset

    def stalls(self, function: str) -> bool:
        """Whether this call is to be left without an answer for now."""
        return self._stall.takes(function)

    def failure(self, function: str) -> str | None:
        """The error that this call is to be answered with, if any."""
        return self._message if self._fail.takes(function) else None


def check_close(code: int, reason: str) -> None:
    """Raise `ConfigurationError` unless a close frame can say this. Source: RFC 6455, 7.4 and 5.5."""
    if code not in {1000, 1001, 1002, 1003, *range(1007, 1015)} and not 3_000 <= code <= 4_999:
        raise ConfigurationError(f"code is {code!r}; expected 1000 to 1003, 1007 to 1014 or 3000 to 4999")
    if len(reason.encode()) > 123:
        raise ConfigurationError("reason is longer than the 123 bytes that a close frame has room for")


def _number(count: int | None) -> float:
    if count is None:
        return math.inf
    if count < 0:
        raise ConfigurationError(f"count is {count!r}; expected 0 or more, or None for all")
    return count


def _status(status: int) -> int:
    if status not in set(HTTPStatus) or status < 200:
        raise ConfigurationError(f"status is {status!r}; expected an HTTP status from 200 up")
    return int(status)


def _retry_after(value: float | datetime | str) -> str:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ConfigurationError("retry_after has no time zone")
        return format_datetime(value.astimezone(UTC), usegmt=True)
    return value if isinstance(value, str) else str(math.ceil(value))
