"""Where a text stands in another, whose escapes it is found behind."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.config.redaction import masked, views

#: Hides what is looked for, "key-1", behind ever more.
HIDDEN = ["key-1", "KEY%2d1", "k%65y%252D1", "k\\u0065y-1", "k&#101;y&#x2d;1", "k&amp;#101;y-1", "k\\\\e\\y\\-1"]


def covered(text: str, needle: str) -> str:
    """The text with stars where the needle was found."""
    return masked(text, [place for view in views(text) for place in view.places([needle])], "*")


@pytest.mark.parametrize("hidden", HIDDEN)
@given(before=st.text(" ,:x\u0130\u212a\xdf"), after=st.text(" ,:x\u0130\u212a\xdf"))
def test_the_place_is_that_in_the_text_as_it_was(hidden: str, before: str, after: str) -> None:
    """What stands around it is left as it was, also characters that have another length in lower case."""
    assert f"{before}*{after}" == covered(before + hidden + after, "key-1")
    assert f"{before}*, *{after}" == covered(f"{before}{hidden}, {hidden}{after}", "key-1")


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("escaped", ["%2f", "\\n", "\\u000a", "&lt;", "\\\\", "%", "&", "\\u00", "%2"])
def test_other_escapes_are_left_as_they_were(hidden: str, escaped: str) -> None:
    """They are undone to look behind them, and not in what is shown."""
    assert f"{escaped} *; {escaped}x" == covered(f"{escaped} {hidden}; {escaped}x", "key-1")


@given(st.text(), st.text(min_size=5, max_size=8))
def test_a_place_is_within_the_text(text: str, needle: str) -> None:
    """And ends behind its beginning."""
    for view in views(text + needle + text):
        for start, end in view.places([needle.lower()]):
            assert 0 <= start < end <= 2 * len(text) + len(needle)


@given(st.text("ab\\%u005c26&mp;#x", max_size=60))
def test_what_is_left_of_a_text_without_the_needle_is_the_text(text: str) -> None:
    """Nothing is found that is not there."""
    assert text == covered(text, "key-1")


def test_each_character_has_a_place_of_its_own() -> None:
    """No character of Unicode moves those behind it."""
    for code in range(sys.maxunicode + 1):
        (view, *_) = views(chr(code))
        assert len(view.text) == 1, hex(code)


def test_places_that_overlap_have_one_mask() -> None:
    """Whatever they are given in."""
    assert masked("abcdef", [(4, 6), (1, 2), (1, 3), (2, 3)], "*") == "a*d*"
    assert masked("abc", [(0, 3), (1, 2)], "*") == "*"
    assert masked("abc", [], "*") == "abc"
