"""The tree of errors: what each is, says, keeps and survives."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from finx_streamer import errors
from finx_streamer.errors import (
    PAYLOAD_LIMIT,
    AuthenticationError,
    CallbackError,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    ServerError,
    SlowConsumer,
    StaleStream,
    TicksDropped,
    truncate,
)

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, FinxStreamerError) and kind.__module__ == errors.__name__
}


def a_callback(argument: object) -> None:
    """Something to name in a `CallbackError`."""


EXAMPLES = [
    FinxStreamerError(symbol="BTC:USDC"),
    ConfigurationError("queue_size: 0 is not allowed; expected an int > 0"),
    ConnectionFailed("refused", attempt=3, will_retry=True, retry_in=1.5, symbol="BTC:USDC"),
    AuthenticationError("refused", status=401, permanent=True),
    errors.StreamNotFound("no such stream", status=404),
    errors.RateLimited("too many requests", status=429, retry_after=7.0),
    errors.ProtocolError("a reserved bit is set", close_code=1002),
    DecodeError("not JSON", "{", symbol="BTC:USDC"),
    ServerError("no such pair", {"error": "no such pair"}),
    CallbackError(a_callback, {"pair": "BTC:USDC"}),
    TicksDropped(3, symbol="BTC:USDC"),
    SlowConsumer(90, 100),
    StaleStream(12.5),
    errors.GapNotFilled("history has no such day"),
    errors.FunctionError("tickSnap", {"pair": "BTC:USD"}, "no such pair"),
    errors.CallTimeout("tickSnap", {"pair": "BTC:USD"}, "no answer within 10 s"),
    errors.IncompleteHistory("tickHistory", {"pair": "BTC:USD"}, "1000 ticks within one millisecond"),
    errors.NotAvailable("Greeks history is a future release"),
]


def test_the_drawn_tree_is_the_real_one() -> None:
    """The module's docstring draws every class under its own base."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z][A-Za-z]+)\b", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = path[depth - 1] if depth else "Exception"
    assert drawn == {name: kind.__mro__[1].__name__ for name, kind in CLASSES.items()}


def test_there_is_an_example_of_each_class() -> None:
    """No class is left out of the tests below."""
    assert set(CLASSES.values()) == {type(example) for example in EXAMPLES}


def test_a_configuration_error_is_a_value_error() -> None:
    """Whoever catches ValueError catches a wrong argument."""
    assert issubclass(ConfigurationError, ValueError)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_each_prints_its_facts_and_its_stream(error: FinxStreamerError) -> None:
    """The text is not empty, is one line, and begins with the stream where there is one."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert bool(error.symbol) == text.startswith("BTC:USDC: ")
    assert f"<{type(error).__name__} {text!r}>" == repr(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_each_survives_copy_and_pickle(error: FinxStreamerError, duplicate: object) -> None:
    """A copy, and what comes out of another process, has the same type, facts and text."""
    twin = duplicate(error)  # type: ignore[operator]
    assert type(error) is type(twin)
    assert vars(error) == vars(twin)
    assert str(error) == str(twin)


def test_errors_are_compared_by_identity() -> None:
    """Two errors with equal facts are two events, and an error can be put into a set."""
    first, second = TicksDropped(3), TicksDropped(3)
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "refused (no further attempt)"),
        ({"attempt": 2}, "refused (attempt 2, no further attempt)"),
        ({"attempt": 2, "will_retry": True, "retry_in": 1.26}, "refused (attempt 2, next attempt in 1.3 s)"),
        ({"will_retry": True, "retry_in": 0.0}, "refused (next attempt in 0.0 s)"),
        ({"attempt": 1, "symbol": "BTC:USDC"}, "BTC:USDC: refused (attempt 1, no further attempt)"),
    ],
)
def test_a_failed_connection_says_which_attempt_it_was_and_what_follows(facts: dict[str, object], text: str) -> None:
    """`attempt`, `will_retry` and `retry_in` are part of the text, as they are when it is printed."""
    error = ConnectionFailed("refused")
    for name, value in facts.items():
        setattr(error, name, value)  # the session fills them in later
    assert text == str(error)


def test_a_callback_error_names_the_callback_and_the_cause() -> None:
    """The text says which function raised what."""
    error = CallbackError(a_callback, None)
    error.__cause__ = ZeroDivisionError("division by zero")
    assert str(error) == "callback a_callback raised ZeroDivisionError: division by zero"


def test_a_callback_without_a_name_is_named_by_its_type() -> None:
    """A callable object has no `__qualname__`."""

    class Collector:
        def __call__(self, argument: object) -> None: ...

    assert "callback Collector raised" in str(CallbackError(Collector(), None)).replace(
        "test_a_callback_without_a_name_is_named_by_its_type.<locals>.", ""
    )


@pytest.mark.parametrize("error", [DecodeError("bad", "\x1b[2J\n\x00"), ServerError("\x1b[2J\n\x00")])
def test_control_characters_from_outside_are_escaped(error: FinxStreamerError) -> None:
    """What a peer sent can't steer the terminal that the error is printed to."""
    assert str(error).isprintable()


@pytest.mark.parametrize("error", [DecodeError("bad", "x" * 100_000), ServerError("x" * 100_000)])
def test_the_text_of_an_error_stays_short(error: FinxStreamerError) -> None:
    """A long payload is cut in the text."""
    assert len(str(error)) < 200


@pytest.mark.parametrize("unit", ["x", b"x"])
def test_cut_keeps_what_is_short_and_the_beginning_of_what_is_long(unit: str | bytes) -> None:
    """`PAYLOAD_LIMIT` characters are kept, and not one more."""
    whole = unit * PAYLOAD_LIMIT
    assert whole == truncate(whole)
    assert whole == truncate(whole + unit)
