"""The errors: their tree, text, attributes, and copies."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from datetime import UTC, datetime

import pytest

from finx_streamer import errors
from finx_streamer.errors import (
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
    make_printable,
)

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, FinxStreamerError) and kind.__module__ == errors.__name__
}


def a_callback(argument: object) -> None:
    """Do nothing: `CallbackError` names this function."""


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
    errors.RecordingError("ticks/: no space left on device"),
    errors.PublishError("there is room again; 3 ticks were lost", 3),
    errors.BarError("it came too late", {"pair": "BTC:USDC", "timestamp": datetime(2022, 7, 2, tzinfo=UTC)}),
    errors.FunctionError("tickSnap", {"pair": "BTC:USD"}, "no such pair"),
    errors.CallTimeout("tickSnap", {"pair": "BTC:USD"}, "no answer within 10 s"),
    errors.IncompleteHistory("tickHistory", {"pair": "BTC:USD"}, "1000 ticks within one millisecond"),
    errors.NotAvailable("Greeks history is a future release"),
]


def test_the_drawn_tree_matches_the_classes() -> None:
    """The module's docstring shows every class under its base."""
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
    """The tests below cover every class."""
    assert set(CLASSES.values()) == {type(example) for example in EXAMPLES}


def test_a_configuration_error_is_a_value_error() -> None:
    """`except ValueError` catches a wrong argument."""
    assert issubclass(ConfigurationError, ValueError)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_text_of_each_error_names_its_stream(error: FinxStreamerError) -> None:
    """The text is one line, and starts with the stream if there is one."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert text.startswith("BTC:USDC: ") is bool(error.symbol)
    assert repr(error) == f"<{type(error).__name__} {text!r}>"


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_each_survives_copy_and_pickle(error: FinxStreamerError, duplicate: object) -> None:
    """A copy has the same type, attributes and text."""
    twin = duplicate(error)  # type: ignore[operator]
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)


class _Rejected(Exception):
    """Can be pickled, but not unpickled: its arguments aren't those of `__init__`."""

    def __init__(self, price: str, limit: int) -> None:
        super().__init__(f"{price} is over {limit}")


@pytest.mark.parametrize("cause", [ValueError("no price"), _Rejected("5", 3), ZeroDivisionError()])
def test_a_pickled_error_keeps_its_cause_or_its_text(cause: Exception) -> None:
    """A cause that doesn't survive pickling is replaced by its text."""
    error = CallbackError(a_callback)
    error.__cause__ = cause
    twin = pickle.loads(pickle.dumps(error))
    assert str(cause) in str(twin)
    assert type(cause).__name__ in str(twin)
    assert type(twin.__cause__) is (RuntimeError if isinstance(cause, _Rejected) else type(cause))


def test_errors_are_compared_by_identity() -> None:
    """Two errors with equal attributes are two events, and an error can be a member of a set."""
    first, second = TicksDropped(3), TicksDropped(3)
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize("at_end", [False, True])
def test_one_dropped_tick_is_singular(at_end: bool) -> None:
    """The text is read by people."""
    assert str(TicksDropped(1, at_end)).startswith("1 tick dropped")
    assert str(TicksDropped(2, at_end)).startswith("2 ticks dropped")


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({}, "refused (no further attempt)"),
        ({"attempt": 2}, "refused (attempt 2, no further attempt)"),
        ({"attempt": 2, "will_retry": True, "retry_in": 1.26}, "refused (attempt 2, next attempt in 1.3 s)"),
        ({"will_retry": True, "retry_in": 0.0}, "refused (next attempt in 0.0 s)"),
        ({"attempt": 1, "symbol": "BTC:USDC"}, "BTC:USDC: refused (attempt 1, no further attempt)"),
    ],
)
def test_a_failed_connection_names_its_attempt_and_the_next_one(attributes: dict[str, object], text: str) -> None:
    """The text shows the current values of `attempt`, `will_retry` and `retry_in`."""
    error = ConnectionFailed("refused")
    for name, value in attributes.items():
        setattr(error, name, value)  # the session fills them in later
    assert str(error) == text


def test_a_callback_error_names_the_callback_and_the_cause() -> None:
    """The text names the function and its exception."""
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
def test_control_characters_are_escaped(error: FinxStreamerError) -> None:
    """A peer can't control the terminal that shows an error."""
    assert str(error).isprintable()


@pytest.mark.parametrize("error", [DecodeError("bad", "x" * 100_000), ServerError("x" * 100_000)])
def test_the_text_of_an_error_is_short(error: FinxStreamerError) -> None:
    """A long payload is truncated in the text."""
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("text", "escaped", "with_newlines"),
    [
        ("BTC \u20bf", "BTC \u20bf", "BTC \u20bf"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J", "a\nb\\x1b[2J"),
        ("\u202e\x00\t", r"\u202e\x00\t", r"\u202e\x00\t"),
    ],
)
def test_make_printable_escapes_invisible_characters(text: str, escaped: str, with_newlines: str) -> None:
    """Newlines stay if you ask for it, e.g. in a traceback."""
    assert make_printable(text) == escaped
    assert make_printable(text, keep_newlines=True) == with_newlines
