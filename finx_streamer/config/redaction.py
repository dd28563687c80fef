"""The API key: asked for at every attempt, and kept out of everything that anybody might read.

FinX takes the key in the URL's path, so it is bound to pass through objects that print themselves. Three things keep
it in: `ApiKey` never prints it; every key in use, or used of late, is remembered here, and `redact` takes it out of
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
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NoReturn

import attrs

#: JSON's, a URL's (of which the percent sign may be escaped once more, and so on) and HTML's (likewise).
_ESCAPE = re.compile(
    r"\\u00([0-9a-f]{2})|%(?:25)*([0-9a-f]{2})"
    r"|&(?:amp;)*(?:#x0{0,5}([0-9a-f]{2})|#0{0,5}([0-9]{2,3})|(amp|lt|gt|quot|apos));"
)
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
#: One may stand before any character. Where each escaping doubles them, their number tells nothing.
_BACKSLASHES = re.compile(r"\\+")
#: How an escape begins that is cut off.
_CUT_ESCAPE = re.compile(r"(?:\\+(?:u0{0,2}[0-9a-f]?)?|%[0-9a-f]?|&[#0-9a-z]{0,6})\Z")
#: What a text may be wrapped in after it was cut, and how far back that is looked for.
_CLOSING, _LAST = "\"'`\\ \r\n.)]}>…", 12
#: Of how many kinds an escape may be within another.
_DEEPEST = 5
#: A part of so few characters is no secret yet, and may be there by chance.
SHORTEST_PART = 4


@attrs.frozen
class View:
    """A text in another form, and the way back."""

    text: str
    #: For each step behind it: places in the later text, and what they were in the earlier one.
    _steps: tuple[tuple[array[int], array[int]], ...] = ()

    def places(self, needles: Iterable[str]) -> Iterator[tuple[int, int]]:
        """Where they stand in the text as it was; also the end of one at its head, the beginning of one at its tail."""
        text, ends = self.text, list(self._ends())
        for needle in needles:
            at = text.find(needle)
            while at >= 0:
                yield self._origin(at), self._origin(at + len(needle))
                at = text.find(needle, at + len(needle))
            if text[:SHORTEST_PART] in needle:
                for part in _parts(needle, len(text)):
                    if text.startswith(needle[-part:]):
                        yield 0, self._origin(part)
                        break
            for end, whole in ends:
                if text[max(0, end - SHORTEST_PART) : end] in needle:
                    for part in _parts(needle, end):
                        if text.endswith(needle[:part], 0, end):
                            yield self._origin(end - part), self._origin(whole)
                            break

    def without(self, pattern: re.Pattern[str]) -> View:
        """The same without these escapes; itself where there are none."""
        pieces: list[str] = []
        places, origins = array("q"), array("q")
        at = length = 0
        for escape in pattern.finditer(self.text):
            length += escape.start() - at
            meant = _meant(escape)
            pieces += [self.text[at : escape.start()], meant]
            at = escape.end()
            places.append(length)
            origins.append(at - len(meant))
            length += len(meant)
        if not pieces:
            return self
        pieces.append(self.text[at:])
        return View("".join(pieces), (*self._steps, (places, origins)))

    def _origin(self, place: int) -> int:
        """A place between two characters, in the text as it was: what has gone belongs to what comes after it."""
        for places, origins in reversed(self._steps):
            behind = bisect_left(places, place) - 1
            if behind >= 0:
                place += origins[behind] - places[behind]
        return place

    def _ends(self) -> Iterator[tuple[int, int]]:
        """Where it may have been cut, and where what remains ends: with it, or with an escape that was cut, too."""
        size = len(self.text)
        last = self.text[-_LAST:]
        for whole in {size, size - len(last) + len(last.rstrip(_CLOSING))}:
            yield whole, whole
            cut = _CUT_ESCAPE.search(self.text, max(0, whole - _LAST), whole)
            if cut is not None:
                yield cut.start(), whole


def _parts(needle: str, longest: int) -> range:
    """How long a part of it may be, the longest first."""
    return range(min(len(needle) - 1, longest), SHORTEST_PART - 1, -1)


def views(text: str) -> list[View]:
    """The text in lower case: as it is, without escapes, and without backslashes on top of that; each form once."""
    # Of all characters this alone becomes two in lower case.
    found = [View(text.replace("\u0130", "i").lower())]
    if not any(mark in text for mark in "\\%&"):
        return found
    view = found[0]
    for _ in range(_DEEPEST):
        before, view = view, view.without(_ESCAPE)
        if view is before:
            break
    for further in (view, view.without(_BACKSLASHES)):
        if further is not found[-1]:
            found.append(further)
    return found


def masked(text: str, places: list[tuple[int, int]], mask: str) -> str:
    """The text with a mask in each of these places."""
    pieces: list[str] = []
    at = 0
    for start, end in sorted(places):
        if start > at or not pieces:
            pieces += [text[at:start], mask]
        at = max(at, end)
    return "".join([*pieces, text[at:]])


def _meant(escape: re.Match[str]) -> str:
    if escape.re is _BACKSLASHES:
        return ""
    in_json, in_url, in_hex, in_decimal, name = escape.groups()
    if name:
        return _NAMED[name]
    code = int(in_decimal) if in_decimal else int(in_json or in_url or in_hex, 16)
    # A key is ASCII. Of anything else it has to be a single character, in lower case too.
    return chr(code).lower() if code < 0x80 else "\ufffd"


MASK = "***"
#: A key shorter than this is not masked: it would garble every text, and is no secret to anybody who guesses.
SHORTEST_MASKED = 4
#: How the trace of `websocket-client` begins where it shows the bytes of a frame.
_SENT_RAW = "++Sent raw:"
#: How many keys are remembered, unless more are in use, and for how many seconds after that: keys rotate every 24 h.
_REMEMBERED = 256
_RETIRED = 2 * 86_400.0


class ApiKey:
    """A key that does not show itself: only `reveal` gives it away."""

    __slots__ = ("__weakref__", "_value")

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
        raise TypeError("a key is not pickled: it would lie about in clear text")


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
        self._held: weakref.WeakValueDictionary[str, ApiKey] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def add(self, secret: ApiKey) -> ApiKey:
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


def _remember(key: ApiKey) -> ApiKey:
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
