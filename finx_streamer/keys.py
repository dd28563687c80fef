"""The API key: asked for at every attempt, and kept out of everything that anybody might read.

FinX takes the key in the URL's path, so it is bound to pass through objects that print themselves. Three things keep
it in: `Secret` never prints it; every key that was ever asked for is remembered here, and `redact` takes it out of
text; and a filter on the logger of `websocket-client` redacts what that library logs, its trace output included.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import NoReturn

import attrs

from .errors import AuthenticationError, ConfigurationError, ConnectionFailed

#: Where the key is looked for when none is given. Source: D.
ENVIRONMENT_VARIABLE = "FINX_API_KEY"
MASK = "***"

_MISSING = f"no API key: pass api_key= or set the environment variable {ENVIRONMENT_VARIABLE}"
_ALLOWED = re.compile(r"[!-~]+")
#: A key shorter than this is not masked: it would garble every text, and is no secret to anybody who guesses.
SHORTEST_MASKED = 4
#: How the trace of `websocket-client` begins where it shows the bytes of a frame.
_SENT_RAW = "++Sent raw:"
_REMEMBERED = 1_024


class Secret:
    """A key that does not show itself: only `reveal` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled: it would lie about in clear text")


@attrs.frozen
class KeySource:
    """Where keys come from: a str, a callable that returns one, or (None) the environment, read at every attempt."""

    _given: Secret | Callable[[], str | None] | None = attrs.field(repr=False)

    @classmethod
    def of(cls, api_key: object) -> KeySource:
        """Check what the user gave. Raises `ConfigurationError`, which never shows a key."""
        if api_key is None:
            # It is read anew at each attempt; but from here on no error may show it, wherever else it was given.
            known = os.environ.get(ENVIRONMENT_VARIABLE, "")
            if not _fault(known):
                _remember(Secret(known))
            return cls(None)
        if callable(api_key) and not isinstance(api_key, type):
            return cls(api_key)
        if not isinstance(api_key, str):
            raise ConfigurationError(f"api_key: expected a str, a callable or None, not {type(api_key).__name__}")
        if fault := _fault(api_key):
            raise ConfigurationError(f"api_key: {fault}")
        return cls(_remember(Secret(api_key)))

    @property
    def can_change(self) -> bool:
        """Whether asking again could give another key."""
        return not isinstance(self._given, Secret)

    def ask(self) -> Secret:
        """The key of this moment. May block, if the user's callable does.

        Raises `AuthenticationError` where there is no usable key, and `ConnectionFailed`, with the cause, where the
        callable raised: a vault that is out of reach may be back at the next attempt.
        """
        if isinstance(self._given, Secret):
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
        return _remember(Secret(key))


def redact(text: str) -> str:
    """The text without any API key that this process has used."""
    for pattern in _registry.patterns:
        text = pattern.sub(MASK, text)
    return text


class _Registry:
    """The keys in use, and for each a pattern that finds it in any of its spellings."""

    def __init__(self) -> None:
        #: Longest key first: a key may be a part of another one. Replaced as a whole, so that readers need no lock.
        self.patterns: tuple[re.Pattern[str], ...] = ()
        #: The latest used last.
        self._keys: dict[str, re.Pattern[str]] = {}
        self._lock = threading.Lock()

    def add(self, key: str) -> None:
        if len(key) < SHORTEST_MASKED:
            return
        with self._lock:
            known = self._keys.pop(key, None)
            self._keys[key] = known or _pattern(key)
            if known:
                return
            while len(self._keys) > _REMEMBERED:
                del self._keys[next(iter(self._keys))]
            self.patterns = tuple(self._keys[key] for key in sorted(self._keys, key=len, reverse=True))
        logging.getLogger("websocket").addFilter(_redact_record)  # which adds it once


_registry = _Registry()


def _remember(key: Secret) -> Secret:
    _registry.add(key.reveal())
    return key


def _pattern(key: str) -> re.Pattern[str]:
    """Finds the key where any of its characters is spelled in another way: percent-encoded (once or more often),
    escaped as JSON, Python or a shell may do, or in the other case."""
    return re.compile("".join(_token(character, len(list(run))) for character, run in itertools.groupby(key)), re.I)


def _token(character: str, count: int) -> str:
    code = f"{ord(character):02x}"
    if character == "\\":
        # However many: each escaping doubles them.
        return rf"(?:\\u005c|%(?:25)*{code}|\\){{1,64}}"
    # Escapes before the character itself, which may be the first one of its own escape. The bounds keep the time for
    # a text of backslashes in proportion to its length. (Possessive quantifiers would be neater, but find nothing in
    # this place up to Python 3.11.2.)
    return rf"(?:%(?:25)*{code}|\\{{0,8}}(?:u00{code}|{re.escape(character)})){{{count}}}"


def _redact_record(record: logging.LogRecord) -> bool:
    text = redact(record.getMessage())
    # A frame that was sent is masked, and carries its mask: whoever can read it can undo it.
    record.msg, record.args = (f"{_SENT_RAW} {MASK}" if text.startswith(_SENT_RAW) else text), ()
    if record.exc_info:
        record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
        record.exc_info = None
    return True


def _fault(key: str) -> str | None:
    """What is wrong with a key, without showing it."""
    if not key:
        return "empty; expected a key as FinX issued it, or None to read " + ENVIRONMENT_VARIABLE
    if not _ALLOWED.fullmatch(key):
        return "it has white space, control or non-ASCII characters; expected printable ASCII"
    return None
