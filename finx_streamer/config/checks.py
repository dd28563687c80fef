"""Checks of what a user gives: each returns the value as it may be used, or raises `ConfigurationError`.

The error names the argument, the value (never a key) and what is allowed.
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, TypeVar

from ..errors import ConfigurationError, ConnectionFailed
from .reconnect import ReconnectPolicy
from .redaction import redact, shown
from .symbols import Pair, Symbol, parse_symbol

#: What `moment` takes.
Moment = datetime | date | str

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)
_EXPECTED = "an aware datetime, a date, or ISO text such as '2022-07-02' or '2022-07-02T15:30:55.817Z'"


def moment(name: str, value: object) -> datetime:
    """An aware datetime in UTC, out of an aware datetime, a date (its midnight, UTC) or ISO 8601 text.

    Text without an offset is in UTC, as FinX's own times are. A naive datetime is refused: elsewhere in Python it means
    local time. Raises `ConfigurationError`.
    """
    found = _read_moment(name, value)
    if found.tzinfo is None:
        raise ConfigurationError(
            f"{name}: {value!r} has no time zone; expected an aware datetime, such as {found.isoformat()}+00:00, that "
            "is: pass tzinfo=datetime.UTC"
        )
    try:
        found = found.astimezone(UTC)
    except OverflowError:
        raise refusal(name, value, "a time from 1970 to 9998") from None
    if not _FIRST <= found < _LAST:
        raise refusal(name, value, "a time from 1970 to 9998")
    return found


def _read_moment(name: str, value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, str):
        raise refusal(name, value, _EXPECTED)
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        raise refusal(name, value, _EXPECTED) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


_S = TypeVar("_S")

#: In seconds; clocks and selectors overflow somewhere beyond it.
_LONGEST = 1e9


def seconds(name: str, value: Any, zero: bool = False) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST
    if not good or (value == 0 and not zero):
        raise refusal(name, value, f"seconds, {'>= 0' if zero else '> 0'} and <= {_LONGEST:g}")
    return float(value)


def seconds_or_none(name: str, value: Any) -> float | None:
    return None if value is None else seconds(name, value)


def positive_int(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(name, value, "an int >= 1")
    if value > sys.maxsize:
        raise refusal(name, value, f"an int <= {sys.maxsize}")
    return value


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= sys.maxsize


def is_picture_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 30


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise refusal(name, value, f"one of {', '.join(map(repr, allowed))}")
    return str(value)


def instance(name: str, value: Any, expected: str, check: Callable[[Any], bool]) -> Any:
    if not check(value):
        raise refusal(name, value, expected)
    return value


def symbol(given: Any) -> Symbol:
    """A `Pair` or an `Option`, as `parse_symbol` reads it."""
    return _read(parse_symbol, given)


def pair(given: Any) -> Pair:
    """A `Pair`."""
    if not isinstance(given, str | Pair):
        raise refusal("pair", given, "a str such as 'BTC:USDC'")
    return _read(Pair.parse, str(given))


def _read(read: Callable[[Any], _S], given: Any) -> _S:
    """What is no symbol may be the key in the wrong place, of which `symbols` knows nothing."""
    try:
        return read(given)
    except ConfigurationError:
        if not isinstance(given, str) or redact(given) == given:
            raise
    raise refusal("symbol", given, "a pair such as 'BTC:USDC', or an option such as 'BTCN2202207'")


def exchange(name: str, value: Any) -> str:
    """An exchange as ticks name it. Source: O. In lower case it would be that of no tick, and nobody would know why."""
    if not isinstance(value, str) or not value:
        raise refusal(name, value, "a name such as 'BINANCE'")
    if value != value.upper():
        raise refusal(name, value, f"the upper case in which ticks name it: {shown(value.upper())}")
    return value


def refusal(name: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {shown(value)} is not allowed; expected {expected}")


def is_policy(value: Any) -> bool:
    return value is None or isinstance(value, ReconnectPolicy)


def is_context(value: Any) -> bool:
    return value is None or isinstance(value, ssl.SSLContext)


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_name(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value))


def context_factory(given: ssl.SSLContext | None) -> Callable[[], ssl.SSLContext]:
    """The user's TLS context, or one that verifies, made at its first use: loading certificates takes 20 ms."""
    if given is not None:
        return lambda: given
    lock = threading.Lock()
    made: list[ssl.SSLContext] = []

    def context() -> ssl.SSLContext:
        with lock:
            if not made:
                made.append(_verifying_context())
            return made[0]

    return context


def _verifying_context() -> ssl.SSLContext:
    """The default context. Raises `ConnectionFailed` or OSError where it has nothing to verify certificates with.

    It would be made in silence, refuse every certificate for a fault that is not the server's, and stay.
    """
    context = ssl.create_default_context()
    if context.cert_store_stats()["x509_ca"]:
        return context
    paths = ssl.get_default_verify_paths()
    file = os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile)
    folder = os.environ.get(paths.openssl_capath_env, paths.openssl_capath)
    # A folder's are read when they are needed.
    if _has_any(folder):
        return context
    try:
        with open(file, "rb"):
            fault = "holds none"
    except FileNotFoundError:
        fault = "does not exist"
    raise ConnectionFailed(
        f"no authority's certificate to verify the server's with: the file {file!r} {fault}, and the folder "
        f"{folder!r} has none; mend {paths.openssl_cafile_env}, or pass ssl_context=",
        permanent=True,
    )


def _has_any(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False
