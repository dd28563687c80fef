"""Keep API keys out of text, logs and tracebacks. `api_key` remembers each key here; `redact` masks it."""

from __future__ import annotations

import functools
import logging
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import ParamSpec, TypeVar

import attrs

MASK = "***"
#: In characters. A shorter key or part of a key is not masked: it would garble every text.
SHORTEST_MASKED = 4
#: How many keys are remembered. The one used least recently is forgotten first.
MOST_KEYS = 16
#: In characters.
_LONGEST_SHOWN = 60
#: `websocket-client` logs the bytes of a frame after this. They carry their own mask, so anyone can unmask them.
_SENT_RAW = "++Sent raw:"

_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
#: At the end of a text that was cut within a key: the rest of an escape, then what follows once the text was quoted.
_CUT = r"(?=(?:[\\%&]{1,8}[#\w]{0,6})?\W{0,12}\Z)"

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: No lock: each operation on it is atomic, so neither a fork nor a signal handler can find it locked.
_keys: OrderedDict[str, None] = OrderedDict()


def remember(key: str) -> None:
    """Mask this key from now on."""
    if len(key) < SHORTEST_MASKED:
        return
    logging.getLogger("websocket").addFilter(_redact_record)  # no effect if it's already there
    _keys[key] = None
    _keys.move_to_end(key)
    while len(_keys) > MOST_KEYS:
        _keys.popitem(last=False)


def redact(text: str) -> str:
    """Return the text with every remembered key masked, also a part of one that was cut off at either end."""
    if not _keys:
        return text
    pieces: list[str] = []
    kept = 0
    for start, end in _finder(frozenset(_keys)).find(text):
        pieces += [text[kept:start], MASK]
        kept = end
    return "".join([*pieces, text[kept:]]) if pieces else text


def shown(value: object) -> str:
    """Return a short `repr` of a value for an error message. Keys are masked before the text is cut."""
    try:
        text = redact(repr(value))
    except Exception:  # the value's own __repr__ may raise anything
        return f"<{type(value).__name__}>"
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]}…{text[-half:]}"


def hides_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a public function whose arguments may hold a key: its errors carry no local variables of its frames."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            if error.__suppress_context__:
                error.__context__ = None
            raise
        finally:
            del args, kwargs

    return call


@attrs.frozen
class _Finder:
    """Finds keys. The pattern `key` is tried only where `first` matches, which is much faster."""

    first: re.Pattern[str]
    key: re.Pattern[str]
    lower_case: tuple[str, ...]

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where each key starts and ends, in order."""
        end = 0
        # Not `Pattern.finditer`, which would block all other threads while it searches a large text.
        for start in chain((0,), (found.start() for found in self.first.finditer(text))):
            if start < end:
                continue
            found = self.key.match(text, start)
            length = found.end() - start if found else 0 if start else self._end_of_key(text)
            if length:
                end = start + length
                yield start, end

    def _end_of_key(self, text: str) -> int:
        """Return how many characters at the beginning of a text are the end of a key."""
        text = text[: max(map(len, self.lower_case))].lower()
        beginning = text[:SHORTEST_MASKED]
        keys = [key for key in self.lower_case if beginning in key]
        ends = (key[at:] for key in keys for at in range(1, len(key) - SHORTEST_MASKED + 1))
        return max((len(end) for end in ends if text.startswith(end)), default=0)


@functools.lru_cache(maxsize=1)
def _finder(keys: frozenset[str]) -> _Finder:
    # The longest first: one key may begin with another.
    ordered = sorted(keys, key=lambda key: (-len(key), key))
    first = {re.escape(letter) for key in keys for letter in (key[0].lower(), key[0].upper())}
    return _Finder(
        re.compile(rf"[\\%&{''.join(sorted(first))}]"),
        re.compile("|".join(map(_alternative, ordered)), re.IGNORECASE | re.ASCII),
        tuple(key.lower() for key in ordered),
    )


def _alternative(key: str) -> str:
    """A pattern for a whole key, or for its beginning at the end of the text."""
    first, *others = re.findall(r"\\+|[^\\]", key)
    parts = [_escapable(first, r"\\?"), *(_escapable(part, r"\\*+") for part in others)]
    beginning, rest = parts[:SHORTEST_MASKED], parts[SHORTEST_MASKED:]
    return "".join([*beginning, *(f"(?:{part}|{_CUT})" for part in rest)])


def _escapable(part: str, backslashes: str) -> str:
    """A pattern for one character, as it is or escaped for JSON, a URL or HTML; or for a run of backslashes."""
    code, number, ampersand = f"{ord(part[0]):02x}", ord(part[0]), "&(?:amp;)*"
    forms = [f"u00{code}", f"%(?:25)*{code}", f"{ampersand}#(?:x0*{code}|0*{number});"]
    if name := _ENTITIES.get(part):
        forms.append(f"{ampersand}{name};")
    forms.append(re.escape(part[0]))  # the last: the others may begin with it
    if part[0] != "\\":
        return f"{backslashes}(?:{'|'.join(forms)})"
    # Each escaping for JSON or Python doubles them.
    # An atomic group, because Python 3.11.2 matches possessive quantifiers of groups wrongly.
    return f"(?>(?:{'|'.join(forms)}){{1,{8 * len(part)}}})"


def _redact_record(record: logging.LogRecord) -> bool:
    text = redact(record.getMessage())
    record.msg, record.args = (f"{_SENT_RAW} {MASK}" if text.startswith(_SENT_RAW) else text), ()
    if record.exc_info:
        record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
        record.exc_info = None
    return True
