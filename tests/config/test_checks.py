"""Checks of arguments: accepted values, and the errors for all others."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finx_streamer.config import checks as check
from finx_streamer.config.redaction import remember
from finx_streamer.config.symbols import Pair
from finx_streamer.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("no_remembered_keys")

NOON = datetime(2022, 7, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("accept", "value"),
    [
        (check.seconds, 0.5),
        (check.seconds, 1_000_000_000),
        (lambda name, value: check.seconds(name, value, zero=True), 0),
        (check.seconds_or_none, None),
        (lambda name, value: check.integer(name, value, 0), 0),
        (lambda name, value: check.integer(name, value, 1), sys.maxsize),
        (check.boolean, False),
        (lambda name, value: check.one_of(name, value, ("a", "b")), "b"),
        (check.text_or_none, None),
        (check.text_or_none, "x"),
        (check.exchange, "BINANCE"),
    ],
)
def test_accepts_a_right_value(accept: Callable[[str, Any], object], value: object) -> None:
    """It is returned as it was."""
    assert accept("name", value) == value


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16, np.float16, np.float32, np.float64])
def test_accepts_numbers_of_numpy(kind: Callable[[int], Any]) -> None:
    """They become Python's."""
    found = check.seconds("name", kind(7))
    assert (found, type(found)) == (7.0, float)
    if isinstance(kind(7), np.integer):
        whole = check.integer("name", kind(7), 1)
        assert (whole, type(whole)) == (7, int)


@pytest.mark.parametrize(
    "value", [np.True_, np.float64("nan"), np.array([1.0]), np.str_("1"), np.datetime64("NaT", "us")]
)
def test_refuses_other_values_of_numpy(value: object) -> None:
    """Booleans aren't numbers."""
    with pytest.raises(ConfigurationError, match=r"^name: .* is not allowed; expected seconds"):
        check.seconds("name", value)
    with pytest.raises(ConfigurationError, match=r"^name: .* is not allowed; expected an int"):
        check.integer("name", value, 1)


@pytest.mark.parametrize(
    ("refuse", "values", "expected"),
    [
        (check.seconds, [0, -1, math.nan, math.inf, 1e10, "1", None, True], "seconds, > 0 and <= 1e+09"),
        (lambda name, value: check.seconds(name, value, zero=True), [-1], "seconds, >= 0 and <= 1e+09"),
        (lambda name, value: check.number(name, value, 1, 30, "1 to 30"), [0, 31, "2", True], "1 to 30"),
        (lambda name, value: check.integer(name, value, 1), [0, -1, 1.0, "1", None, True], "an int >= 1"),
        (lambda name, value: check.integer(name, value, 1), [sys.maxsize + 1], f"an int <= {sys.maxsize}"),
        (check.boolean, [0, 1, "yes", None], "True or False"),
        (lambda name, value: check.one_of(name, value, ("a", "b")), ["c", None, ["a"]], "one of 'a', 'b'"),
        (check.text_or_none, ["", 5, b"x"], "a str or None"),
        (lambda name, value: check.text(name, value, "a word"), ["", 5, None], "a word"),
        (check.exchange, ["", None, 5], "a name such as 'BINANCE'"),
        (check.exchange, ["Binance"], "the upper case in which ticks name it: 'BINANCE'"),
    ],
)
def test_refuses_a_wrong_value(refuse: Callable[[str, Any], object], values: list[object], expected: str) -> None:
    """The error names the argument, the value and what was expected."""
    for value in values:
        with pytest.raises(ConfigurationError) as caught:
            refuse("name", value)
        assert str(caught.value) == f"name: {value!r} is not allowed; expected {expected}"


def test_a_price_parser_is_callable() -> None:
    """The error gives examples."""
    assert check.price_parser(float) is float
    with pytest.raises(ConfigurationError, match=r"^parse_price: 'float' .* a callable such as float"):
        check.price_parser("float")


@pytest.mark.parametrize("value", [["BINANCE", "KRAKEN"], {"KRAKEN", "BINANCE"}, iter(("BINANCE", "KRAKEN"))])
def test_exchanges_are_any_iterable_of_names(value: object) -> None:
    """None means all."""
    assert check.exchanges(value) == {"BINANCE", "KRAKEN"}
    assert check.exchanges(None) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("BINANCE", r"is one str; expected several, as in \['BINANCE'\]"),
        ([], "at least one name"),
        (5, "names such as"),
        ([5], "a name such as 'BINANCE'"),
        (["binance"], "the upper case in which ticks name it: 'BINANCE'"),
    ],
)
def test_refuses_wrong_exchanges(value: object, expected: str) -> None:
    """The error says what was expected."""
    with pytest.raises(ConfigurationError, match=f"^exchanges: .*{expected}"):
        check.exchanges(value)


def test_a_pair_is_a_text_or_a_pair() -> None:
    """An option isn't."""
    assert check.pair("BTC:USDC") == check.pair(Pair("BTC", "USDC")) == Pair("BTC", "USDC")
    for value in (5, None, "BTCN2202207"):
        with pytest.raises(ConfigurationError):
            check.pair(value)


@pytest.mark.parametrize("accept", [check.symbol, check.pair])
def test_does_not_repeat_a_misplaced_key(accept: Callable[[object], object]) -> None:
    """Not even a part of it, or a symbol made of it."""
    remember("s3cr3t-key")
    with pytest.raises(ConfigurationError, match=r"^symbol: '\*\*\*' is not allowed") as caught:
        accept("s3cr3t-key")
    assert "S3CR3T" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        NOON.astimezone(timezone(timedelta(hours=-5))),
        "2022-07-02T12:00",
        "2022-07-02T12:00Z",
        " 2022-07-02T14:00:00.000+02:00 ",
    ],
)
def test_reads_a_moment(value: object) -> None:
    """The result is in UTC, like a text without an offset."""
    found = check.moment("at", value)
    assert found == NOON
    assert found.tzinfo is UTC


@pytest.mark.parametrize("value", [date(2022, 7, 2), "2022-07-02"])
def test_a_date_is_its_midnight(value: object) -> None:
    """In UTC."""
    assert check.moment("at", value) == datetime(2022, 7, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2022, 7, 2), r"has no time zone; .*tzinfo=datetime\.UTC"),
        ("yesterday", "an aware datetime, a date, or ISO text"),
        (1_656_763_200, "an aware datetime, a date, or ISO text"),
        (pd.NaT, "NaT is not allowed; expected an aware datetime, .*NaT is a missing time"),
        (np.datetime64("NaT", "us"), "NaT.* is not allowed"),
        ("1969-12-31", "a time from 1970 to 9998"),
        ("9999-01-01", "a time from 1970 to 9998"),
        (datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-5))), "a time from 1970 to 9998"),
    ],
)
def test_refuses_what_is_not_a_moment(value: object, expected: str) -> None:
    """A naive datetime too: elsewhere in Python it means local time."""
    with pytest.raises(ConfigurationError, match=f"^at: .*{expected}"):
        check.moment("at", value)
