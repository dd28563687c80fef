"""config.api_key"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import attrs

from ..errors import AuthenticationError, ConfigurationError, ConnectionFailed
from .redaction import (
    ApiKey,
    _remember,
)

#: Where the key is looked for when none is given. Source: D.
ENVIRONMENT_VARIABLE = "FINX_API_KEY"

_MISSING = f"no API key: pass api_key= or set the environment variable {ENVIRONMENT_VARIABLE}"
_ALLOWED = re.compile(r"[!-~]+")


@attrs.frozen
class KeySource:
    """Where keys come from: a str, a callable that returns one, or (None) the environment, read at every attempt."""

    _given: ApiKey | Callable[[], str | None] | None = attrs.field(repr=False)

    @classmethod
    def of(cls, api_key: object) -> KeySource:
        """Check what the user gave. Raises `ConfigurationError`, which never shows a key."""
        if api_key is None:
            # It is read anew at each attempt; but from here on no error may show it, wherever else it was given.
            known = os.environ.get(ENVIRONMENT_VARIABLE, "")
            if not _fault(known):
                _remember(ApiKey(known))
            return cls(None)
        if callable(api_key) and not isinstance(api_key, type):
            return cls(api_key)
        if not isinstance(api_key, str):
            raise ConfigurationError(f"api_key: expected a str, a callable or None, not {type(api_key).__name__}")
        if fault := _fault(api_key):
            raise ConfigurationError(f"api_key: {fault}")
        return cls(_remember(ApiKey(api_key)))

    @property
    def can_change(self) -> bool:
        """Whether asking again could give another key."""
        return not isinstance(self._given, ApiKey)

    def ask(self) -> ApiKey:
        """The key of this moment. May block, if the user's callable does.

        Raises `AuthenticationError` where there is no usable key, and `ConnectionFailed`, with the cause, where the
        callable raised: a vault that is out of reach may be back at the next attempt.
        """
        if isinstance(self._given, ApiKey):
            return _remember(self._given)
        if self._given is None:
            key: object = os.environ.get(ENVIRONMENT_VARIABLE)
            missing = _MISSING
        else:
            missing = "the api_key callable returned no key"
            try:
                key = self._given()
            except Exception as cause:
                raise ConnectionFailed(f"the api_key callable raised {type(cause).__name__}") from cause
        if not key:
            raise AuthenticationError(missing, permanent=True)
        if not isinstance(key, str):
            raise AuthenticationError(f"the API key is a {type(key).__name__}, not a str", permanent=True)
        if fault := _fault(key):
            raise AuthenticationError(f"the API key is unusable: {fault}", permanent=True)
        return _remember(ApiKey(key))


def _fault(key: str) -> str | None:
    """What is wrong with a key, without showing it."""
    if not key:
        return "empty; expected a key as FinX issued it, or None to read " + ENVIRONMENT_VARIABLE
    if not _ALLOWED.fullmatch(key):
        advice = "; a key read from a file may need .strip()" if key != key.strip() else ""
        return f"it has white space, control or non-ASCII characters; expected printable ASCII{advice}"
    return None
