"""Where the API key comes from, and that nobody else gets to see it."""

from __future__ import annotations

import io
import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finx_streamer import keys
from finx_streamer.errors import AuthenticationError, ConfigurationError, ConnectionFailed
from finx_streamer.keys import ENVIRONMENT_VARIABLE, MASK, KeySource, Secret, redact

KEY = "kEy/with+odd=chars%and\"quotes'&back\\slash~9"
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
    assert Secret(KEY) == source.ask()
    assert not source.can_change


def test_a_callable_is_asked_each_time() -> None:
    """Keys rotate, so each attempt asks again."""
    answers = iter(["first", "second"])
    source = KeySource.of(lambda: next(answers))
    assert ["first", "second"] == [source.ask().reveal(), source.ask().reveal()]
    assert source.can_change


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """None means the environment variable of the moment, and not of the import or the construction."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    source = KeySource.of(None)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "first")
    assert "first" == source.ask().reveal()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "second")
    assert "second" == source.ask().reveal()
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


# What prints it.


def test_a_secret_shows_itself_to_nobody() -> None:
    """Only `reveal` gives the key away."""
    secret = Secret(KEY)
    assert KEY == secret.reveal()
    assert {"Secret(***)"} == {repr(secret), str(secret), f"{secret}", f"{secret!r}"}
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_where_their_keys_are() -> None:
    """A refused key is recognised when it comes again."""
    assert Secret("one") == Secret("one")
    assert Secret("one") != Secret("two")
    assert Secret("one") != "one"
    assert 1 == len({Secret("one"), Secret("one")})


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
    assert KEY == redact(KEY)


def test_a_key_is_hidden_from_the_moment_it_is_given() -> None:
    """The errors of the other arguments may show text that holds it."""
    KeySource.of(KEY)
    assert MASK == redact(KEY)


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
    "upper case": str.upper,
    "lower case": str.lower,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(key=printable)
@settings(deadline=None, max_examples=60)
def test_a_key_is_hidden_in_each_of_its_spellings(spelling: str, key: str) -> None:
    """However a URL, a JSON text, a repr or a log may spell the key, nothing of it remains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_registry", keys._Registry())
        KeySource.of(key)
        left = redact(f"<{SPELLINGS[spelling](key)}>")
    assert {"<", ">"} == set(left.replace(MASK, "").replace("\\", ""))


@pytest.mark.parametrize("text", ["\\" * 50_000, "%" + "25" * 50_000, "a" * 50_000, "a\\" * 25_000])
@pytest.mark.parametrize("key", ["\\\\\\\\a", "aaaaaaab", "%%%%", "a\\b\\c"])
def test_a_hostile_text_is_searched_in_reasonable_time(key: str, text: str) -> None:
    """No text takes the square of its length: the test's time limit would strike."""
    KeySource.of(key)
    redact(text)


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
        assert MASK == redact("steady-key")
    assert f"key-number-3 {MASK}" == redact("key-number-3 key-number-4")
    assert 2 == len(keys._registry.patterns)


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
    assert "%s %d %\n" == websocket_log.getvalue()


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
    assert 1 == logging.getLogger("websocket").filters.count(keys._redact_record)


def test_a_masked_frame_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The bytes of a frame that was sent carry their own mask, and so would give the key away."""
    KeySource.of("some-key").ask()
    with caplog.at_level(logging.DEBUG, "websocket"):
        logging.getLogger("websocket").debug("++Sent raw: b'\\x81\\x84abcd....'")
    assert ["++Sent raw: ***"] == caplog.messages


def test_a_key_is_not_pickled() -> None:
    """What would show the key in a file is refused."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret("some-key"))


def test_a_key_of_a_few_letters_garbles_nothing() -> None:
    """What is too short to be a secret is left where it stands."""
    KeySource.of("k").ask()
    assert "a broken socket" == redact("a broken socket")
