"""Masking keys in text, in log records and in tracebacks."""

from __future__ import annotations

import html
import io
import json
import logging
import re
import string
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.config import redaction
from finx_streamer.config.redaction import MASK, hides_arguments, redact, remember, shown
from finx_streamer.errors import ConfigurationError
from tests.support.effort import examples

pytestmark = pytest.mark.usefixtures("no_remembered_keys")

KEY = "kEy/with+odd=chars%and\"quotes'&back\\slash~9"

printable = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=4, max_size=24)


def redact_one(key: str, text: str) -> str:
    """Redact a text while this key alone is remembered."""
    redaction._keys.clear()
    remember(key)
    return redact(text)


# Whole keys.


def test_leaves_text_alone_while_no_key_is_remembered() -> None:
    """Without a key there is nothing to mask."""
    assert redact(KEY) == KEY


SPELLINGS = {
    "plain": str,
    "percent-encoded": lambda key: quote(key, safe=""),
    "percent-encoded in part": quote,
    "percent-encoded in lower case": lambda key: "".join(f"%{ord(c):02x}" if not c.isalnum() else c for c in key),
    "percent-encoded in whole": lambda key: "".join(f"%{ord(c):02X}" for c in key),
    "percent-encoded twice": lambda key: quote(quote(key, safe=""), safe=""),
    "JSON": lambda key: json.dumps(key)[1:-1],
    "JSON with the slash escaped": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "JSON with everything escaped": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "JSON in lower-case hex": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key))[1:-1][2:-2],
    "repr": lambda key: repr(key)[1:-1],
    "repr of JSON bytes": lambda key: repr(json.dumps(key).encode())[3:-2],
    "HTML": html.escape,
    "HTML in decimal numbers": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "HTML in hex, in part": lambda key: "".join(c if c.isalnum() else f"&#x{ord(c):04X};" for c in key),
    "HTML twice": lambda key: html.escape(html.escape(key)),
    "JSON in HTML": lambda key: html.escape(json.dumps(key)[1:-1]),
    "upper case": str.upper,
    "lower case": str.lower,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(key=printable)
@examples(60)
@example(key="!" + "\\" * 48 + "8")
@example(key="\\" * 4)
@example(key="%25%25%2525")
@example(key="&amp;&amp;amp;")
@example(key="u005cu005cuuuu")
def test_masks_each_spelling_of_a_key(spelling: str, key: str) -> None:
    """Nothing remains of a key, however a URL, a JSON text, a repr or a page spells it."""
    left = redact_one(key, f"<{SPELLINGS[spelling](key)}>")
    assert set(left.replace(MASK, "").replace("\\", "")) == {"<", ">"}


@given(key=printable, data=st.data())
@examples(200)
def test_masks_a_key_whose_characters_are_spelled_differently(key: str, data: st.DataObject) -> None:
    """Each character of a key may be escaped in its own way."""
    forms = [lambda c: c, lambda c: f"%{ord(c):02x}", lambda c: f"\\u{ord(c):04x}", lambda c: f"&#{ord(c)};"]
    text = "".join(data.draw(st.sampled_from(forms))(c) for c in key)
    assert redact_one(key, f"<{text}>").replace("\\", "") == f"<{MASK}>"


@pytest.mark.parametrize("order", [("part", "the-part-and-more"), ("the-part-and-more", "part")])
def test_a_key_within_another_leaves_nothing_of_it(order: tuple[str, str]) -> None:
    """The longer key is masked, in whichever order they were remembered."""
    for key in order:
        remember(key)
    assert redact("[the-part-and-more]") == f"[{MASK}]"


def test_of_two_keys_that_begin_alike_the_longer_is_masked() -> None:
    """Masking the shorter one would leave the rest of the longer one."""
    remember("the-key")
    remember("the-key-and-more")
    assert redact("the-key-and-more") == MASK


@pytest.mark.parametrize("hidden", ["key-1", "KEY%2d1", "k%65y%252D1", "k\\u0065y-1", "k&#101;y&#x2d;1", "k\\ey\\-1"])
@given(before=st.text(" ,:x\u0130\u212a\xdf"), after=st.text(" ,:x\u0130\u212a\xdf"))
def test_leaves_the_text_around_a_key_as_it_was(hidden: str, before: str, after: str) -> None:
    """This includes characters whose length changes with their case."""
    assert redact_one("key-1", before + hidden + after) == f"{before}{MASK}{after}"
    assert redact_one("key-1", f"{before}{hidden}, {hidden}{after}") == f"{before}{MASK}, {MASK}{after}"


@pytest.mark.parametrize("escaped", ["%2f", "\\n", "\\u000a", "&lt;", "\\\\", "%", "&", "\\u00", "%2"])
def test_leaves_other_escapes_as_they_were(escaped: str) -> None:
    """Only escapes within a key are replaced."""
    assert redact_one("key-1", f"{escaped} key-1; {escaped}x") == f"{escaped} {MASK}; {escaped}x"


@given(st.text("ab\\%u005c26&mp;#x", max_size=60))
def test_leaves_text_without_a_key_as_it_was(text: str) -> None:
    """Nothing is masked that isn't a key."""
    assert redact_one("key-1", text) == text


def test_masks_nothing_but_the_key() -> None:
    """Text that resembles the key stays."""
    remember("abcdef")
    assert redact("ABC /abcdef/ abcde f") == f"ABC /{MASK}/ abcde f"


def test_does_not_mask_a_key_of_a_few_letters() -> None:
    """A key of fewer than four characters would garble every text."""
    remember("k")
    assert redact("a broken socket") == "a broken socket"


def test_masks_a_key_of_a_thousand_characters() -> None:
    """The length of a key has no bound."""
    key = "".join(chr(0x21 + number * 7 % 94) for number in range(1_000))
    assert redact_one(key, f"<{key}> {key[:900]}") == f"<{MASK}> {MASK}"


# Parts of keys.

#: In which each character of a key has its own spelling.
CHARACTERWISE = ["plain", "percent-encoded", "JSON with the slash escaped", "HTML", "JSON with everything escaped"]
issued = st.text(string.ascii_letters + string.digits + "-_~+/=&<", min_size=5, max_size=24)


@pytest.mark.parametrize("spelling", CHARACTERWISE)
@given(key=issued, data=st.data())
@examples(60)
def test_masks_the_beginning_of_a_key_at_the_end_of_a_text(spelling: str, key: str, data: st.DataObject) -> None:
    """A peer or a segment may cut a text anywhere, also within an escape."""
    spell = SPELLINGS[spelling]
    cut = data.draw(st.integers(len(spell(key[:4])), len(spell(key))))
    whole = max(count for count in range(len(key) + 1) if len(spell(key[:count])) <= cut)
    # Of an escape that was cut, the last characters may remain.
    rest = spell(key)[len(spell(key[:whole])) : cut]
    masks = [MASK + rest[at:] for at in range(len(rest) + 1)]
    # They begin with a character that no key has: else one may end as they begin, which is masked too.
    for around in (" no such key: {}", " data=b'key {}'", ' {{"error":"no {}"}}', ' {{"error":"\\"key {}…\\""}}'):
        left = redact_one(key, around.format(spell(key)[:cut]))
        assert left.replace("\\", "") in [around.format(mask).replace("\\", "") for mask in masks]


@given(key=issued, data=st.data())
@examples(60)
def test_masks_the_end_of_a_key_at_the_beginning_of_a_text(key: str, data: st.DataObject) -> None:
    """A peer may have cut the front of a text."""
    rest = data.draw(st.integers(4, len(key)))
    assert redact_one(key, f"{key[-rest:]}?") == f"{MASK}?"


@pytest.mark.parametrize("text", ["abc", "bcdef", "no abc", "abcd is no end", "the head is not def", "xcdef"])
def test_keeps_other_parts_of_a_key(text: str) -> None:
    """Parts of three characters stay, and longer parts that aren't at the end of the text that they were cut at."""
    remember("abcdefgh")
    assert redact(text) == text


# Time and memory.


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 50_000,
        "%" + "25" * 50_000,
        "a" * 50_000,
        "a\\" * 25_000,
        "&" + "amp;" * 50_000,
        "&amp;" * 20_000,
        "&#" + "0" * 50_000,
        "\\u005c" * 10_000,
        "\\" + "u005c" * 10_000,
        "%2" * 30_000,
        ("a" + "\\" * 1_000) * 50,
        "a\\\\\\\\" * 10_000,
    ],
)
@pytest.mark.parametrize(
    "key", ["\\\\\\\\a", "aaaaaaab", "%%%%", "a\\b\\c", "\\\\\\\\", "&&&&amp;", "a\\\\\\\\" * 20 + "b"]
)
def test_searches_a_hostile_text_in_reasonable_time(key: str, text: str) -> None:
    """No text takes the square of its length: that would exceed the test's time limit."""
    redact_one(key, text)


@pytest.mark.parametrize("text", ["x" * (32 << 20), "\\" * (1 << 20)], ids=["plain", "backslashes"])
def test_searches_for_many_keys_in_reasonable_time(text: str) -> None:
    """This holds for the largest message and the largest number of keys."""
    for day in range(redaction.MOST_KEYS):
        remember(f"the-key-of-day-number-{day}")
    assert redact(text) == text


def test_other_threads_run_during_a_search() -> None:
    """A large message doesn't stop the whole process."""
    remember(KEY)
    searching = threading.Thread(target=redact, args=("\\" * (2 << 20),))
    searching.start()
    turns = 0
    while searching.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 10


def test_the_number_of_remembered_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key a minute for a year must not fill the memory; the most recently used keys are kept."""
    monkeypatch.setattr(redaction, "MOST_KEYS", 2)
    for number in range(5):
        remember("steady-key")
        remember(f"key-number-{number}")
        assert redact("steady-key") == MASK
    assert redact("key-number-3 key-number-4") == f"key-number-3 {MASK}"
    assert len(redaction._keys) == 2


def test_threads_can_remember_keys_at_the_same_time() -> None:
    """None of their keys is lost, and no thread fails."""
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(500):
                remember(f"{name}-{number % 3}")
                assert redact(f"{name}-{number % 3}") == MASK
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"thread-{name}",)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(redaction._keys) == 12


# Values.


class Unshowable:
    """An argument of the user's."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "value",
    [
        KEY * 3,
        KEY.encode() * 3,
        ["x" * 20 + KEY],
        {KEY: (KEY,)},
        Path("/x" * 20 + KEY),
        "x" * 12 + KEY,
    ],
)
def test_shows_a_value_in_short_without_the_key(value: object) -> None:
    """The key is masked before the text is cut, because half a key isn't recognised."""
    remember(KEY)
    assert {"kEy", "slash", "odd", "quotes"} & set(re.findall("[A-Za-z]+", shown(value))) == set()
    assert len(shown(value)) < 80


@pytest.mark.parametrize("value", [10**5_000, Unshowable()], ids=["int", "broken"])
def test_shows_the_type_of_a_value_without_a_repr(value: object) -> None:
    """An error about an argument is that error, even if the argument's own repr raises."""
    assert shown(value) == f"<{type(value).__name__}>"


# Log records.


@pytest.fixture
def websocket_log() -> Iterator[io.StringIO]:
    """What the library's logger writes."""
    written = io.StringIO()
    logger, handler = logging.getLogger("websocket"), logging.StreamHandler(written)
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield written
    logger.removeHandler(handler)
    logger.setLevel(before)
    logger.propagate = propagates


def test_redacts_the_log_of_the_library(websocket_log: io.StringIO) -> None:
    """Messages and their arguments lose the key, and keep the rest."""
    remember(KEY)
    logging.getLogger("websocket").debug("GET /streaming/%s/BTC:USDC 100%%", quote(KEY, safe=""))
    assert websocket_log.getvalue() == f"GET /streaming/{MASK}/BTC:USDC 100%\n"


def test_a_percent_sign_without_arguments_breaks_no_log_record(websocket_log: io.StringIO) -> None:
    """The redacted text isn't formatted a second time."""
    remember(KEY)
    logging.getLogger("websocket").debug("%s %d %")
    assert websocket_log.getvalue() == "%s %d %\n"


def test_redacts_an_exception_in_the_log_of_the_library(websocket_log: io.StringIO) -> None:
    """The traceback that a handler appends loses the key as well."""
    remember(KEY)
    try:
        raise ValueError(f"bad URL {KEY}")
    except ValueError:
        logging.getLogger("websocket").exception("failed")
    assert "ValueError: bad URL ***" in websocket_log.getvalue()
    assert KEY not in websocket_log.getvalue()


def test_installs_the_log_filter_once() -> None:
    """Keys that rotate don't pile up filters."""
    for number in range(3):
        remember(f"key-number-{number}")
    assert logging.getLogger("websocket").filters.count(redaction._redact_record) == 1


def test_does_not_log_a_masked_frame(caplog: pytest.LogCaptureFixture) -> None:
    """The bytes of a sent frame carry their own mask, so they would give the key away."""
    remember("some-key")
    with caplog.at_level(logging.DEBUG, "websocket"):
        logging.getLogger("websocket").debug("++Sent raw: b'\\x81\\x84abcd....'")
    assert caplog.messages == ["++Sent raw: ***"]


# Tracebacks.


def _refuse(value: str) -> None:
    kept = [value]
    try:
        int(kept[0])
    except ValueError:
        raise ConfigurationError("not a number") from None


@hides_arguments
def refuse(value: str, *, also: str = "") -> None:
    """A public function that refuses its arguments."""
    if value.isdecimal():
        raise ZeroDivisionError(len(also))
    _refuse(value + also)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [(("s3cr3t",), ConfigurationError), (("1",), ZeroDivisionError), (("s3cr3t", "s3cr3t"), TypeError)],
)
def test_an_error_carries_no_local_variables_of_a_function_that_hides_its_arguments(
    arguments: tuple[str, ...], kind: type[Exception]
) -> None:
    """This holds for every kind of error, and for the errors in its context; the lines of code stay."""
    with pytest.raises(kind) as caught:
        refuse(*arguments, also="s3cr3t")
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    own = text.partition("finx_streamer/config/redaction.py")[2]
    assert own
    assert "s3cr3t" not in own
    assert caught.value.__context__ is None


def test_a_function_that_hides_its_arguments_keeps_the_cause_of_an_error() -> None:
    """Only a context that isn't shown anyway is dropped."""
    with pytest.raises(ConfigurationError) as caught:
        hides_arguments(_with_cause)()
    assert isinstance(caught.value.__cause__, OSError)


def _with_cause() -> None:
    try:
        raise OSError("inner")
    except OSError as cause:
        raise ConfigurationError("outer") from cause
