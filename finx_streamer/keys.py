"""The API key: asked for at every attempt, and kept out of everything that anybody might read.

FinX takes the key in the URL's path, so it is bound to pass through objects that print themselves. Three things keep
it in: `Secret` never prints it; every key in use, or used of late, is remembered here, and `redact` takes it out of
text; and a filter on the logger of `websocket-client` redacts what that library logs, its trace output included.
"""

from __future__ import annotations

import logging
import os
import re
import reprlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import NoReturn

import attrs

from .errors import AuthenticationError, ConfigurationError, ConnectionFailed
from .spellings import masked, views

#: Where the key is looked for when none is given. Source: D.
ENVIRONMENT_VARIABLE = "FINX_API_KEY"
MASK = "***"

_MISSING = f"no API key: pass api_key= or set the environment variable {ENVIRONMENT_VARIABLE}"
_ALLOWED = re.compile(r"[!-~]+")
#: A key shorter than this is not masked: it would garble every text, and is no secret to anybody who guesses.
SHORTEST_MASKED = 4
#: How the trace of `websocket-client` begins where it shows the bytes of a frame.
_SENT_RAW = "++Sent raw:"
#: How many keys are remembered, unless more are in use, and for how many seconds after that: keys rotate every 24 h.
_REMEMBERED = 256
_RETIRED = 2 * 86_400.0


class Secret:
    """A key that does not show itself: only `reveal` gives it away."""

    __slots__ = ("__weakref__", "_value")

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
    """The text without any API key that this process has used, and without a part of one that the text is cut in."""
    forms = _registry.forms
    if not forms:
        return text
    places = [place for view in views(text) for place in view.places(forms)]
    return masked(text, places, MASK) if places else text


def shown(value: object) -> str:
    """Any value as an error may show it: short, and without a key, which goes before anything is cut."""
    try:
        return redact(_short.repr(value))
    except Exception:
        # Also where an int has more digits than Python is ready to write.
        return f"<{type(value).__name__}>"


class _Short(reprlib.Repr):
    def repr_str(self, value: str, level: int) -> str:
        return super().repr_str(redact(value), level)

    def repr_instance(self, value: object, level: int) -> str:
        return super().repr_instance(_AsShown(redact(repr(value))), level)


@attrs.frozen
class _AsShown:
    text: str

    def __repr__(self) -> str:
        return self.text


_short = _Short()


@attrs.define
class _Known:
    """A key that was used, in the forms in which it is looked for, and when that was (`time.monotonic()`)."""

    forms: tuple[str, ...]
    used: float


class _Registry:
    """The keys to look for: those that something holds, and those that were used in the last two days."""

    def __init__(self) -> None:
        #: What to look for. Replaced as a whole, so that readers need no lock.
        self.forms: tuple[str, ...] = ()
        #: The latest used last.
        self._keys: dict[str, _Known] = {}
        self._held: weakref.WeakValueDictionary[str, Secret] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def add(self, secret: Secret) -> Secret:
        """The one object that stands for this key as long as anybody has it."""
        key, now = secret.reveal(), time.monotonic()
        if len(key) < SHORTEST_MASKED:
            return secret
        with self._lock:
            secret = self._held.setdefault(key, secret)
            known = self._keys.pop(key, None)
            self._keys[key] = known or _Known(_forms(key), now)
            self._keys[key].used = now
            if known:
                return secret
            self._forget(now)
            self.forms = tuple(form for key in self._keys.values() for form in key.forms)
        logging.getLogger("websocket").addFilter(_redact_record)  # which adds it once
        return secret

    def unlock(self) -> None:
        """In a process that was just forked: whoever held the lock is not there."""
        self._lock = threading.Lock()

    def _forget(self, now: float) -> None:
        """Under the lock. What nobody has any more is of no use to anybody for long: keys rotate."""
        surplus = len(self._keys) - _REMEMBERED
        for key, known in list(self._keys.items()):
            if key in self._held:
                known.used = now
            elif surplus > 0 or now - known.used > _RETIRED:
                del self._keys[key]
                surplus -= 1


_registry = _Registry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _registry.unlock())


def _remember(key: Secret) -> Secret:
    return _registry.add(key)


def _forms(key: str) -> tuple[str, ...]:
    """As in the views of a text. One of a single character would be found everywhere."""
    return tuple(view.text for view in views(key) if len(view.text) > 1)


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
        advice = "; a key read from a file may need .strip()" if key != key.strip() else ""
        return f"it has white space, control or non-ASCII characters; expected printable ASCII{advice}"
    return None
