"""Where a text stands within another one, however it was escaped there, and where it is cut off.

A key in a URL, in JSON, in a Python string or in a page of HTML looks different each time. So both are brought to the
same form: lower case, escapes undone (again and again, for one may be within another), backslashes left out. All of it
takes time in proportion to the text's length, whatever the text.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator

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
