"""Faults on demand, in handshakes and in answers to function calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus

import attrs

from ..errors import ConfigurationError
from .functions import SUBSCRIBING
from .protocol import HandshakeRefused

#: The functions that a fault without a function name doesn't affect.
_SPARED = frozenset({"keepAlive", *SUBSCRIBING})


class HandshakeFaults:
    """How many of the next handshakes to refuse or to leave unanswered."""

    def __init__(self) -> None:
        self._refusals = 0.0
        self._stalls = 0
        self._status = 0
        self._headers: dict[str, str] = {}

    def refuse(
        self, count: int | None, status: int, retry_after: float | datetime | str | None, headers: Mapping[str, str]
    ) -> None:
        """Refuse the next `count` handshakes; `None`: all of them; 0: stop refusing."""
        refusals = _check_count(count)
        self._status = _check_status(status)
        self._headers = dict(headers)
        if retry_after is not None:
            self._headers["Retry-After"] = _format_retry_after(retry_after)
        self._refusals = refusals

    def stall(self, count: int) -> None:
        """Leave the next `count` handshakes unanswered."""
        if count < 0:
            raise ConfigurationError(f"count is {count!r}; expected 0 or more")
        self._stalls = count

    def take_stall(self) -> bool:
        """Whether to leave this handshake unanswered."""
        if not self._stalls:
            return False
        self._stalls -= 1
        return True

    def raise_refusal(self) -> None:
        """Raise `HandshakeRefused` if this handshake is to be refused."""
        if self._refusals > 0:
            self._refusals -= 1
            raise HandshakeRefused(self._status, f"refused on demand with {self._status}", self._headers)


@attrs.define
class _CallFault:
    """How many of the next calls a fault applies to. Without a function name: all except keepAlive and subscribing."""

    count: float = 0
    function: str | None = None

    def take(self, function: str) -> bool:
        """Whether the fault applies to this call. If so, count it."""
        if self.count <= 0 or (function in _SPARED if self.function is None else function != self.function):
            return False
        self.count -= 1
        return True


class CallFaults:
    """How many of the next calls on function connections to fail, stall or drop."""

    def __init__(self) -> None:
        self._failures = _CallFault()
        self._stalls = _CallFault()
        self._drops = _CallFault()
        self._message = ""
        self._reset = False

    def fail(self, count: int | None, message: str, function: str | None) -> None:
        """Answer the next `count` calls with an error; `None`: all of them; 0: stop failing."""
        self._failures = _CallFault(_check_count(count), function)
        self._message = message

    def stall(self, count: int | None, function: str | None) -> None:
        """Delay the answers to the next `count` calls."""
        self._stalls = _CallFault(_check_count(count), function)

    def drop(self, count: int | None, function: str | None, reset: bool) -> None:
        """Drop the connection at each of the next `count` calls."""
        self._drops = _CallFault(_check_count(count), function)
        self._reset = reset

    @property
    def reset(self) -> bool:
        """Whether to reset a connection that is dropped."""
        return self._reset

    def take_drop(self, function: str) -> bool:
        """Whether to drop the connection at this call."""
        return self._drops.take(function)

    def take_stall(self, function: str) -> bool:
        """Whether to delay the answer to this call."""
        return self._stalls.take(function)

    def take_failure(self, function: str) -> str | None:
        """The error to answer this call with, if any."""
        return self._message if self._failures.take(function) else None


def check_close(code: int, reason: str) -> None:
    """Raise `ConfigurationError` unless a close frame can carry both. Source: RFC 6455, 7.4 and 5.5."""
    if code not in {1000, 1001, 1002, 1003, *range(1007, 1015)} and not 3_000 <= code <= 4_999:
        raise ConfigurationError(f"code is {code!r}; expected 1000 to 1003, 1007 to 1014 or 3000 to 4999")
    if len(reason.encode()) > 123:
        raise ConfigurationError(f"reason has {len(reason.encode())} bytes; expected at most 123")


def _check_count(count: int | None) -> float:
    if count is None:
        return math.inf
    if count < 0:
        raise ConfigurationError(f"count is {count!r}; expected 0 or more, or None for all")
    return count


def _check_status(status: int) -> int:
    if status not in set(HTTPStatus) or status < 200:
        raise ConfigurationError(f"status is {status!r}; expected an HTTP status of 200 or above")
    return int(status)


def _format_retry_after(value: float | datetime | str) -> str:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ConfigurationError(f"retry_after is {value!r}; expected a datetime with a time zone")
        return format_datetime(value.astimezone(UTC), usegmt=True)
    return value if isinstance(value, str) else str(math.ceil(value))
