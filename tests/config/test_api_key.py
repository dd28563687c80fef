"""Where the API key comes from, and that nobody else gets to see it."""

from __future__ import annotations

import html
import io
import json
import logging
import os
import pickle
import re
import string
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer.config import redaction as keys
from finx_streamer.config.api_key import ENVIRONMENT_VARIABLE, KeySource
from finx_streamer.config.redaction import MASK, ApiKey, redact, shown
from finx_streamer.errors import AuthenticationError, ConfigurationError, ConnectionFailed
from tests.support.effort import examples

KEY = "kEy/with+odd=chars%and\"quotes'&back\\slash~9"


class Unshowable:
    """Something of the user's."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


printable = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=4, max_size=24)


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with no key in use, and leaves none behind."""
    monkeypatch.setattr(keys, "_registry", keys._Registry())


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


# Where it comes from.


def test_a_str_is_the_key() -> None:
    """A key given as str is asked for and never changes."""
    source = KeySource.of(KEY)
    assert ApiKey(KEY) == source.ask()
    assert not source.can_change


def test_a_callable_is_asked_each_time() -> None:
    """Keys rotate, so each attempt asks again."""
    answers = iter(["first", "second"])
    source = KeySource.of(lambda: next(answers))
    assert [source.ask().reveal(), source.ask().reveal()] == ["first", "second"]
    assert source.can_change


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """None means the environment variable of the moment, and not of the import or the construction."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    source = KeySource.of(None)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "first")
    assert source.ask().reveal() == "first"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "second")
    assert source.ask().reveal() == "second"
    assert source.can_change


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """With no key anywhere the error says where one is looked for, and that a retry is no use."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
    with pytest.raises(AuthenticationError, match="FINX_API_KEY") as caught:
        KeySource.of(None).ask()
    assert caught.value.permanent


@pytest.mark.parametrize("answer", [None, "", 0, 5, b"bytes", ["list"], "my secret", "newline\n", "ümlaut"])
def test_an_unusable_answer_of_the_callable_is_an_authentication_error(answer: object) -> None:
    """It says what is wrong without showing the answer, and is not retried."""
    with pytest.raises(AuthenticationError) as caught:
        KeySource.of(lambda: answer).ask()
    assert caught.value.permanent
    assert not answer or str(answer) not in str(caught.value)


def test_a_callable_that_raises_is_a_failed_attempt() -> None:
    """A vault that is out of reach may be back: the attempt fails, with the cause, and can be retried."""

    def ask() -> str:
        raise OSError(f"vault refused {KEY}")

    with pytest.raises(ConnectionFailed) as caught:
        KeySource.of(ask).ask()
    assert not caught.value.permanent
    assert isinstance(caught.value.__cause__, OSError)
    assert "OSError" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", [5, b"key", ["key"], object(), str])
def test_a_key_of_another_type_is_refused(value: object) -> None:
    """The refusal names the argument, the type and what is allowed."""
    with pytest.raises(ConfigurationError, match=r"^api_key: expected a str, a callable or None, not "):
        KeySource.of(value)


@pytest.mark.parametrize("value", ["", "my secret", "newline\n", "\ttab", "nul\0", "ümlaut", "\u2010hyphen"])
def test_a_key_that_can_be_none_is_refused_without_being_shown(value: str) -> None:
    """The refusal names the argument and what is allowed, and never the value."""
    with pytest.raises(ConfigurationError, match=r"^api_key: ") as caught:
        KeySource.of(value)
    assert "expected" in str(caught.value)
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize("value", ["the-key\n", "\tthe-key", " the-key "])
def test_white_space_around_a_key_is_told_with_what_to_do(value: str) -> None:
    """A key that was read from a file ends with a line break."""
    with pytest.raises(ConfigurationError, match=r"; a key read from a file may need \.strip\(\)$"):
        KeySource.of(value)


@pytest.mark.parametrize("value", ["", "the key", "the-k\u00eby"])
def test_what_can_not_be_stripped_is_told_without_that_advice(value: str) -> None:
    """It would not help."""
    with pytest.raises(ConfigurationError) as caught:
        KeySource.of(value)
    assert "strip" not in str(caught.value)


# What prints it.


def test_a_secret_shows_itself_to_nobody() -> None:
    """Only `reveal` gives the key away."""
    secret = ApiKey(KEY)
    assert secret.reveal() == KEY
    assert {"ApiKey(***)"} == {repr(secret), str(secret), f"{secret}", f"{secret!r}"}
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_where_their_keys_are() -> None:
    """A refused key is recognised when it comes again."""
    assert ApiKey("one") == ApiKey("one")
    assert ApiKey("one") != ApiKey("two")
    assert ApiKey("one") != "one"
    assert len({ApiKey("one"), ApiKey("one")}) == 1


def test_a_key_source_shows_no_key() -> None:
    """Neither a key nor a callable that may have one in its repr is part of the text."""
    for source in (KeySource.of(KEY), KeySource.of(lambda: KEY)):
        assert KEY not in repr(source)


def test_the_traceback_of_a_refused_answer_shows_no_key() -> None:
    """The usual traceback has the text of the code, and no value."""
    with pytest.raises(AuthenticationError) as caught:
        KeySource.of(lambda: KEY + "\n").ask()
    assert KEY not in "".join(traceback.format_exception(caught.value))


# What takes it out of text.


def test_text_is_left_alone_while_no_key_is_in_use() -> None:
    """With nothing to hide, nothing is hidden."""
    assert redact(KEY) == KEY


def test_a_key_is_hidden_from_the_moment_it_is_given() -> None:
    """The errors of the other arguments may show text that holds it."""
    KeySource.of(KEY)
    assert redact(KEY) == MASK


def test_every_key_that_was_asked_for_is_hidden() -> None:
    """An old key may still be in a text that comes late."""
    answers = iter(["first-key", "second-key"])
    source = KeySource.of(lambda: next(answers))
    source.ask()
    source.ask()
    assert f"{MASK} and {MASK}" == redact("first-key and second-key")


@pytest.mark.parametrize("order", [("part", "the-part-and-more"), ("the-part-and-more", "part")])
def test_a_key_that_is_a_part_of_another_leaves_nothing_of_it(order: tuple[str, str]) -> None:
    """The longer key is taken out first, whichever came first."""
    for key in order:
        KeySource.of(key)
    assert f"[{MASK}]" == redact("[the-part-and-more]")


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
def test_a_key_is_hidden_in_each_of_its_spellings(spelling: str, key: str) -> None:
    """However a URL, a JSON text, a repr or a log may spell the key, nothing of it remains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_registry", keys._Registry())
        KeySource.of(key)
        left = redact(f"<{SPELLINGS[spelling](key)}>")
    assert {"<", ">"} == set(left.replace(MASK, "").replace("\\", ""))


#: What each character of a key may be.
CHARACTERWISE = ["plain", "percent-encoded", "JSON with the slash escaped", "HTML", "JSON with everything escaped"]
issued = st.text(string.ascii_letters + string.digits + "-_~+/=&<", min_size=5, max_size=24)


@pytest.mark.parametrize("spelling", CHARACTERWISE)
@given(key=issued, data=st.data())
@examples(60)
def test_a_key_that_the_text_is_cut_in_leaves_nothing_of_it(spelling: str, key: str, data: st.DataObject) -> None:
    """A peer or a segment cuts where it likes, also within an escape: four characters are a secret already."""
    spell = SPELLINGS[spelling]
    cut = data.draw(st.integers(len(spell(key[:4])), len(spell(key))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_registry", keys._Registry())
        KeySource.of(key)
        # They begin with what no key has: else one may end as they begin, and that is masked, too.
        for around in (" no such key: {}", " data=b'key {}'", ' {{"error":"no {}"}}', ' {{"error":"\\"key {}…\\""}}'):
            # Of an escape that was cut a backslash may be left.
            left = redact(around.format(spell(key)[:cut]))
            assert around.format(MASK).replace("\\", "") == left.replace("\\", "")
        rest = data.draw(st.integers(4, len(key)))
        assert f"{MASK}?" == redact(f"{spell(key[-rest:])}?")


@pytest.mark.parametrize("text", ["abc", "bcdef", "no abc", "abcd is no end", "the head is not def", "xcdef"])
def test_less_than_a_part_is_kept(text: str) -> None:
    """Three characters, and what is neither a key's beginning at the end nor its end at the beginning."""
    KeySource.of("abcdefgh")
    assert text == redact(text)


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
    ],
)
@pytest.mark.parametrize("key", ["\\\\\\\\a", "aaaaaaab", "%%%%", "a\\b\\c"])
def test_a_hostile_text_is_searched_in_reasonable_time(key: str, text: str) -> None:
    """No text takes the square of its length: the test's time limit would strike."""
    KeySource.of(key)
    redact(text)


@pytest.mark.parametrize("text", ["x" * (32 << 20), "\\" * (16 << 20)], ids=["plain", "backslashes"])
def test_many_keys_are_looked_for_in_reasonable_time(text: str) -> None:
    """The largest message, and as many keys as a month has days: it was minutes, in which no other thread could run."""
    sources = [KeySource.of(f"the-key-of-day-number-{day}") for day in range(30)]
    assert redact(text) is text
    assert sources


def test_other_text_is_kept() -> None:
    """Only the key is replaced."""
    KeySource.of("abcdef")
    assert f"ABC /{MASK}/ abcde f" == redact("ABC /abcdef/ abcde f")


def test_the_number_of_remembered_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key a minute for a year must not fill the memory; the keys used last are the ones that are kept."""
    monkeypatch.setattr(keys, "_REMEMBERED", 2)
    steady = KeySource.of("steady-key")
    for number in range(5):
        steady.ask()
        KeySource.of(f"key-number-{number}")
        assert redact("steady-key") == MASK
    assert f"key-number-3 {MASK}" == redact("key-number-3 key-number-4")
    assert len(keys._registry.forms) == 2


def test_a_key_in_use_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others there are, and however long ago it was asked for: its connection may still live."""
    monkeypatch.setattr(keys, "_REMEMBERED", 2)
    monkeypatch.setattr(keys, "_RETIRED", -1.0)
    sources = [KeySource.of(f"key-number-{number}") for number in range(4)]
    asked = KeySource.of(lambda: "asked-key").ask()
    KeySource.of("another-key")
    assert " ".join([MASK] * 5) == redact("key-number-0 key-number-1 key-number-2 key-number-3 asked-key")
    assert ApiKey("asked-key") == asked
    assert sources


def test_a_retired_key_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days after nobody has it any more, the next key takes its place."""
    KeySource.of("retired-key")
    assert redact("retired-key") == MASK
    monkeypatch.setattr(keys, "_RETIRED", -1.0)
    KeySource.of("next-key")
    assert f"retired-key {MASK}" == redact("retired-key next-key")


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
def test_a_value_is_shown_in_short_without_the_key(value: object) -> None:
    """What is cut has lost the key before: a half of it would not be recognised."""
    KeySource.of(KEY)
    assert not {"kEy", "slash", "odd", "quotes"} & set(re.findall("[A-Za-z]+", shown(value)))
    assert len(shown(value)) < 80


@pytest.mark.parametrize("value", [10**5_000, Unshowable()], ids=["int", "broken"])
def test_a_value_that_can_t_be_shown_has_a_type(value: object) -> None:
    """An error about an argument is that error, whatever the argument's own repr does."""
    assert f"<{type(value).__name__}>" == shown(value)


# The library's logger.


def test_the_librarys_log_is_redacted(websocket_log: io.StringIO) -> None:
    """Messages and their arguments lose the key, and keep the rest."""
    KeySource.of(KEY)
    logging.getLogger("websocket").debug("GET /streaming/%s/BTC:USDC 100%%", quote(KEY, safe=""))
    assert f"GET /streaming/{MASK}/BTC:USDC 100%\n" == websocket_log.getvalue()


def test_a_percent_sign_without_arguments_breaks_no_log_record(websocket_log: io.StringIO) -> None:
    """The redacted text is not formatted a second time."""
    KeySource.of(KEY)
    logging.getLogger("websocket").debug("%s %d %")
    assert websocket_log.getvalue() == "%s %d %\n"


def test_an_exception_in_the_librarys_log_is_redacted(websocket_log: io.StringIO) -> None:
    """The traceback that a handler appends loses the key as well."""
    KeySource.of(KEY)
    try:
        raise ValueError(f"bad URL {KEY}")
    except ValueError:
        logging.getLogger("websocket").exception("failed")
    assert "ValueError: bad URL ***" in websocket_log.getvalue()
    assert KEY not in websocket_log.getvalue()


def test_the_filter_is_installed_once() -> None:
    """Keys that rotate do not pile up filters."""
    for number in range(3):
        KeySource.of(f"key-number-{number}")
    assert logging.getLogger("websocket").filters.count(keys._redact_record) == 1


def test_a_masked_frame_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The bytes of a frame that was sent carry their own mask, and so would give the key away."""
    KeySource.of("some-key").ask()
    with caplog.at_level(logging.DEBUG, "websocket"):
        logging.getLogger("websocket").debug("++Sent raw: b'\\x81\\x84abcd....'")
    assert caplog.messages == ["++Sent raw: ***"]


def test_a_key_is_not_pickled() -> None:
    """What would show the key in a file is refused."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(ApiKey("some-key"))


def test_a_key_of_a_few_letters_garbles_nothing() -> None:
    """What is too short to be a secret is left where it stands."""
    KeySource.of("k").ask()
    assert redact("a broken socket") == "a broken socket"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_at_any_moment_leaves_keys_usable() -> None:
    """Also one while another thread notes a key down: the child has no such thread, which would undo its lock."""
    program = (
        "import os\n"
        "from finx_streamer.config import api_key, redaction\n"
        "with redaction._registry._lock:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        api_key.KeySource.of('a-key-of-the-child')\n"
        "        os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("7\n", "")
