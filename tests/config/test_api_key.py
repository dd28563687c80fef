"""Where the API key comes from, and that the type that holds it never shows it."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable

import pytest

from finx_streamer import FunctionClient, StreamListener
from finx_streamer.config.api_key import ENVIRONMENT_VARIABLE, ApiKey, KeySource
from finx_streamer.config.redaction import MASK, redact
from finx_streamer.errors import AuthenticationError, ConfigurationError, ConnectionFailed

pytestmark = pytest.mark.usefixtures("no_remembered_keys")

KEY = "kEy/with+odd=chars%and\"quotes'&back\\slash~9"


# Sources.


def test_a_str_is_the_key() -> None:
    """A key given as a str never changes."""
    source = KeySource.from_argument(KEY)
    assert source.current() == ApiKey(KEY)
    assert not source.can_change


def test_a_callable_is_called_each_time() -> None:
    """Keys rotate, so each attempt asks the callable again."""
    answers = iter(["first", "second"])
    source = KeySource.from_argument(lambda: next(answers))
    assert [source.current().reveal(), source.current().reveal()] == ["first", "second"]
    assert source.can_change


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """None reads the environment variable at each attempt, not at import or construction."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    source = KeySource.from_argument(None)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "first")
    assert source.current().reveal() == "first"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "second")
    assert source.current().reveal() == "second"
    assert source.can_change


@pytest.mark.parametrize("value", [None, "", "\n"])
def test_the_error_for_a_missing_key_names_the_environment_variable(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """Without any key the error says where one is looked for, and isn't retried."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
    with pytest.raises(AuthenticationError, match="FINX_API_KEY") as caught:
        KeySource.from_argument(None).current()
    assert caught.value.permanent


@pytest.mark.parametrize("answer", [None, "", 0, 5, " \n", b"bytes", ["list"], "my secret", "new\nline", "ümlaut"])
def test_an_unusable_answer_of_the_callable_is_an_authentication_error(answer: object) -> None:
    """The error says what is wrong without showing the answer, and isn't retried."""
    with pytest.raises(AuthenticationError) as caught:
        KeySource.from_argument(lambda: answer).current()
    assert caught.value.permanent
    assert not answer or str(answer) not in str(caught.value)


def test_a_callable_that_raises_is_a_failed_attempt() -> None:
    """The attempt fails with the callable's error as the cause, and can be retried."""

    def ask() -> str:
        raise OSError(f"vault refused {KEY}")

    with pytest.raises(ConnectionFailed) as caught:
        KeySource.from_argument(ask).current()
    assert not caught.value.permanent
    assert isinstance(caught.value.__cause__, OSError)
    assert "OSError" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", [5, b"key", ["key"], object(), str])
def test_refuses_a_key_of_another_type(value: object) -> None:
    """The error names the argument, the type and the types that are allowed."""
    with pytest.raises(ConfigurationError, match=r"^api_key: expected a str, a callable or None, not "):
        KeySource.from_argument(value)


@pytest.mark.parametrize("value", ["", " \n", "my secret", "new\nline", "a\ttab", "nul\0", "ümlaut", "\u2010hyphen"])
def test_refuses_an_impossible_key_without_showing_it(value: str) -> None:
    """The error names the argument and what is expected, never the value."""
    with pytest.raises(ConfigurationError, match=r"^api_key: ") as caught:
        KeySource.from_argument(value)
    assert "expected" in str(caught.value)
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize("written", ["the-key\n", "\tthe-key", " the-key\r\n"])
def test_white_space_around_a_key_is_removed(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """From an argument, a callable and the environment: a key that was read from a file often ends with a newline."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, written)
    for given in (written, lambda: written, None):
        assert KeySource.from_argument(given).current() == ApiKey("the-key")


# The type.


def test_only_reveal_shows_the_key() -> None:
    """Every text made of an `ApiKey` is masked."""
    key = ApiKey(KEY)
    assert key.reveal() == KEY
    assert {repr(key), str(key), f"{key}", f"{key!r}"} == {"ApiKey(***)"}
    assert not hasattr(key, "__dict__")


def test_keys_are_equal_if_their_values_are() -> None:
    """A refused key is recognised when the source returns it again."""
    assert ApiKey("one") == ApiKey("one")
    assert ApiKey("one") != ApiKey("two")
    assert ApiKey("one") != "one"
    assert len({ApiKey("one"), ApiKey("one")}) == 1


def test_a_key_can_not_be_pickled() -> None:
    """A pickle would hold the key in clear text."""
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(ApiKey("some-key"))


def test_the_repr_of_a_source_shows_no_key() -> None:
    """It shows neither a key nor a callable, whose own repr may hold one."""
    for source in (KeySource.from_argument(KEY), KeySource.from_argument(lambda: KEY)):
        assert KEY not in repr(source)


def test_the_traceback_of_a_refused_answer_shows_no_key() -> None:
    """A usual traceback shows source code, not values."""
    with pytest.raises(AuthenticationError) as caught:
        KeySource.from_argument(lambda: KEY + "\n" + KEY).current()
    assert KEY not in "".join(traceback.format_exception(caught.value))


# Which keys are masked.


def test_a_key_is_masked_as_soon_as_it_is_given() -> None:
    """Errors about the other arguments may show text that holds it."""
    KeySource.from_argument(KEY)
    assert redact(KEY) == MASK


def test_every_key_that_was_used_is_masked() -> None:
    """An old key may still occur in a late message."""
    answers = iter(["first-key", "second-key"])
    source = KeySource.from_argument(lambda: next(answers))
    source.current()
    source.current()
    assert redact("first-key and second-key") == f"{MASK} and {MASK}"


def test_the_key_in_the_environment_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been given in a wrong place too."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, KEY)
    KeySource.from_argument(None)
    assert redact(KEY) == MASK


@pytest.mark.parametrize("url", ["ws://127.0.0.1:8765/", "wss://ws.finx.io", "HTTPS://ws.finx.io/", " ws://h/s3cr3t"])
@pytest.mark.parametrize("create", [FunctionClient, lambda url: StreamListener("BTC:USDC", api_key=url)])
def test_a_url_in_place_of_the_key_is_refused(url: str, create: Callable[[str], object]) -> None:
    """The first argument of `FunctionClient` is the key. The error doesn't show the URL, which may contain one."""
    with pytest.raises(ConfigurationError) as caught:
        create(url)
    assert str(caught.value) == (
        "api_key: a URL was given as the key; expected a key as FinX issued it. Pass the URL as endpoint="
    )


def test_a_url_in_the_environment_is_not_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt fails for good, and says why."""
    monkeypatch.setenv("FINX_API_KEY", "wss://ws.finx.io/")
    with pytest.raises(AuthenticationError, match="a URL was given as the key"):
        KeySource.from_argument(None).current()
