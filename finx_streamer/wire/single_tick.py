"""Read a frame that is one plain tick, of any pair.

As in `tick_form`, one regular expression does the JSON and the checks. It matches only what the thorough decoder would
read in the same way: no escapes and only ASCII, but for the pair. All connections share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from .tick_form import EXCHANGE, ID, TIME, TickForm

#: In bytes. A longer frame has a header of another form or isn't a plain tick, and so does a shorter one.
LONGEST, _SHORTEST = 4 + 255, 60
_WHOLE_TEXT, _TWO_BYTES = 0x81, 126
_Match = Callable[[str, int], re.Match[str] | None]


@lru_cache(64)
def _matcher(colon: str, comma: str, enveloped: bool, date: str) -> _Match:
    """Return the function that matches a message of one form and day. Keys and their order are documented (S, D)."""
    if enveloped:
        begin = rf'\{{"results"{colon}"streaming"{comma}"resultData"{colon}\{{"pair"{colon}"([^"]*+)"'
        moment, end = f'{comma}"date"{colon}"{date}"{comma}"time"{colon}"({TIME})"', r"\}"
    else:
        begin, end = rf'\{{"pair"{colon}"([^"]*+)"{comma}"unixDate"{colon}(?:0|[1-9][0-9]*+)', ""
        moment = f'{comma}"UTCDate"{colon}"{date}T({TIME})"'
    # A price that fits in a short frame is finite.
    values = rf'"exchange"{colon}"({EXCHANGE})"{comma}"price"{colon}"([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)"'
    return re.compile(rf'{begin}{moment}{comma}{values}{end}(?:{comma}"id"{colon}({ID}))?\}}').fullmatch


def _no_match(_text: str, _at: int, /) -> None:
    return None


class SingleTick:
    """Reads frames that look like the last one that it learned. Before the first one, nothing matches."""

    __slots__ = ("_match", "date")

    def __init__(self) -> None:
        self._match: _Match = _no_match
        #: Of all ticks that match.
        self.date = ""

    def learn(self, frame: bytes) -> str | None:
        """Note how a frame is written, and return how it spells its pair. None if it isn't one plain tick."""
        if len(frame) > LONGEST or len(frame) < _SHORTEST:
            return None
        form = TickForm.of(frame[4 if frame[1] == _TWO_BYTES else 2 :])
        if form is None:
            return None
        known, self._match = self._match, _matcher(form.colon, form.comma, not form.unix_digits, form.date)
        found = self.read(frame)
        if found is None:
            self._match = known
            return None
        self.date = form.date
        return found[0]

    def read(self, frame: bytes) -> tuple[str, str, str, str, str | None] | None:
        """Return the spelling of the pair, the time, the exchange, the price and the ID. None if it doesn't match.

        A spelling is how a pair is written in a message that was decoded as latin-1.
        """
        size = len(frame)
        if size > LONGEST or size < _SHORTEST or frame[0] != _WHOLE_TEXT:
            return None
        if frame[1] == _TWO_BYTES:
            if frame[3] != size - 4 or frame[2]:
                return None
            at = 4
        elif frame[1] == size - 2:
            at = 2
        else:
            return None
        found = self._match(str(frame, "latin-1"), at)
        return None if found is None else found.groups()  # type: ignore[return-value]
