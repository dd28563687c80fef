"""The API key: a type that never shows it, and the sources that supply one for each connection attempt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NoReturn

import attrs

from ..errors import AuthenticationError, ConfigurationError, ConnectionFailed
from .redaction import MASK, remember

#: Read if no key is given. Source: D.
ENVIRONMENT_VARIABLE = "FINX_API_KEY"

_MISSING = f"no API key: pass api_key= or set the environment variable {ENVIRONMENT_VARIABLE}"
_ALLOWED = re.compile(r"[!-~]+")
_URL = re.compile(r"(wss?|https?)://", re.IGNORECASE)


class ApiKey:
    """An API key. Its `repr` is masked; only `reveal` returns the key."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiKey) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"ApiKey({MASK})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an ApiKey can't be pickled: the pickle would hold the key in clear text")


def from_environment() -> str:
    """Return the key in the environment. Empty if there is none."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "").strip()


@attrs.frozen
class KeySource:
    """Supplies keys: a fixed one, or those that a callable or (None) the environment returns at each attempt.

    White space around a key is removed, wherever it comes from: a key from a file often ends with a newline.
    """

    _given: ApiKey | Callable[[], str | None] | None = attrs.field(repr=False)

    @classmethod
    def from_argument(cls, api_key: object) -> KeySource:
        """Check the user's `api_key`. Raises `ConfigurationError`, which never shows the value."""
        if api_key is None:
            # The key may also have been given in a wrong place, where an error would show it.
            current = from_environment()
            if not _fault(current):
                remember(current)
            return cls(None)
        if callable(api_key) and not isinstance(api_key, type):
            return cls(api_key)
        if not isinstance(api_key, str):
            raise ConfigurationError(f"api_key: expected a str, a callable or None, not {type(api_key).__name__}")
        api_key = api_key.strip()
        if fault := _fault(api_key):
            raise ConfigurationError(f"api_key: {fault}")
        remember(api_key)
        return cls(ApiKey(api_key))

    @property
    def can_change(self) -> bool:
        """Whether a later call of `current` may return another key."""
        return not isinstance(self._given, ApiKey)

    def current(self) -> ApiKey:
        """Return the key to use now. May block, if the user's callable does.

        Raises:
            AuthenticationError: There is no usable key.
            ConnectionFailed: The callable raised. This is retried: a vault may be reachable again later.
        """
        if isinstance(self._given, ApiKey):
            remember(self._given.reveal())
            return self._given
        if self._given is None:
            key: object = from_environment()
            missing = _MISSING
        else:
            missing = "the api_key callable returned no key"
            try:
                key = self._given()
            except Exception as cause:
                raise ConnectionFailed(f"the api_key callable raised {type(cause).__name__}") from cause
        if isinstance(key, str):
            key = key.strip()
        if not key:
            raise AuthenticationError(missing, permanent=True)
        if not isinstance(key, str):
            raise AuthenticationError(f"the API key is a {type(key).__name__}, not a str", permanent=True)
        if fault := _fault(key):
            raise AuthenticationError(f"the API key can't be used: {fault}", permanent=True)
        remember(key)
        return ApiKey(key)


def _fault(key: str) -> str | None:
    """Describe why a key can't be used, without showing it."""
    if not key:
        return f"it is empty; expected a key as FinX issued it, or None to read {ENVIRONMENT_VARIABLE}"
    if _URL.match(key):
        return "a URL was given as the key; expected a key as FinX issued it. Pass the URL as endpoint="
    if not _ALLOWED.fullmatch(key):
        return "it has white space inside, control or non-ASCII characters; expected printable ASCII"
    return None
