"""Tables of Greeks: columns, types, order and values, also without any Greeks."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import (
    ConfigurationError,
    FunctionClient,
    Greeks,
    Instrument,
    Option,
    greeks_to_pandas,
    greeks_to_polars,
)
from finx_streamer.config.symbols import parse_symbol
from finx_streamer.wire.contract_ticker import NUMBERS, read_greeks
from tests.support.contracts import CALL, FUTURE, MONTH, PERPETUAL, ticker

RECEIVED = 1_656_775_855_900_000_123
EXPIRY = datetime(2022, 8, 26, 8, tzinfo=UTC)
MOMENT = datetime(2022, 8, 6, 4, 31, 40, 724_000, UTC)
TEXTS = ("symbol", "instrument", "exchange", "underlying", "kind")
NAMES = ["timestamp", *TEXTS, "expiry", "strike", *NUMBERS, "received"]


def greeks(name: str, symbol: str | None = None, **values: str) -> Greeks:
    """Greeks as a stream delivers them."""
    contract = parse_symbol(symbol or name)
    assert isinstance(contract, Option | Instrument)
    return read_greeks(ticker(name, **values), contract, RECEIVED)


SOME = [
    greeks(CALL, MONTH, delta="0.83341", mark_iv="72.12"),
    greeks(PERPETUAL, index_price="23199.76"),
    greeks(FUTURE),
]


@pytest.mark.parametrize("rows", [SOME, []], ids=["some", "none"])
def test_pandas_types(rows: list[Greeks]) -> None:
    """The columns have the documented types, also without Greeks."""
    frame = greeks_to_pandas(iter(rows))
    moments = {"timestamp": "datetime64[us, UTC]", "expiry": "datetime64[us, UTC]", "received": "datetime64[ns, UTC]"}
    texts = dict.fromkeys(TEXTS, "category")
    assert list(frame.columns) == NAMES
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        name: {**moments, **texts}.get(name, "float64") for name in NAMES
    }
    assert len(frame) == len(rows)


@pytest.mark.parametrize("rows", [SOME, []], ids=["some", "none"])
def test_polars_types(rows: list[Greeks]) -> None:
    """The columns have the documented types, also without Greeks."""
    frame = greeks_to_polars(iter(rows))
    moments = {name: pl.Datetime("us", "UTC") for name in ("timestamp", "expiry")}
    known = {**moments, **dict.fromkeys(TEXTS, pl.Categorical), "received": pl.Datetime("ns", "UTC")}
    assert list(frame.schema.items()) == [(name, known.get(name, pl.Float64)) for name in NAMES]
    assert len(frame) == len(rows)


def test_pandas_values() -> None:
    """Each row has the values of its Greeks. None is NaN or NaT."""
    frame = greeks_to_pandas(SOME)
    assert list(frame["symbol"]) == [MONTH, PERPETUAL, FUTURE]
    assert list(frame["kind"]) == ["call", "perpetual", "future"]
    assert [moment.to_pydatetime() for moment in frame["timestamp"]] == [MOMENT] * 3
    assert [moment.value for moment in frame["received"]] == [RECEIVED] * 3
    assert frame["expiry"][0] == frame["expiry"][2] == EXPIRY
    assert frame["strike"][0] == 20_000.0
    assert frame["delta"][0] == 0.83341
    assert frame[["delta", "mark_iv", "strike", "expiry"]].isna().to_numpy().tolist() == [
        [False] * 4,
        [True] * 4,
        [True, True, True, False],
    ]


def test_polars_values() -> None:
    """Each row has the values of its Greeks. None is null."""
    frame = greeks_to_polars(SOME)
    assert frame["instrument"].to_list() == [CALL, PERPETUAL, FUTURE]
    assert frame["timestamp"].to_list() == [MOMENT] * 3
    assert frame["received"].cast(pl.Int64).to_list() == [RECEIVED] * 3
    assert frame["expiry"].to_list() == [EXPIRY, None, EXPIRY]
    assert frame["delta"].to_list() == [0.83341, None, None]
    assert frame["index_price"].to_list() == [None, 23199.76, None]


def test_takes_the_dict_of_a_listener() -> None:
    """`listener.greeks()` maps each contract to its newest Greeks."""
    newest = {each["instrument"]: each for each in SOME}
    pd.testing.assert_frame_equal(greeks_to_pandas(newest), greeks_to_pandas(SOME))
    assert greeks_to_polars(newest).equals(greeks_to_polars(SOME))
    assert len(greeks_to_pandas({})) == len(greeks_to_polars({})) == 0


def test_takes_a_matrix() -> None:
    """The strikes of a chain are a pivot away."""
    with FunctionClient(endpoint="demo") as client:
        frame = greeks_to_pandas(client.five_minute_matrix("ETH"))
    options = frame[frame["strike"].notna()]
    chain = options.pivot_table(index=["expiry", "strike"], columns="kind", values="delta", observed=True)
    assert list(chain.columns) == ["call", "put"]
    assert (chain["call"] - chain["put"]).between(0.99, 1.01).all()


@given(st.dictionaries(st.sampled_from(NUMBERS), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_survive(values: dict[str, float]) -> None:
    """No number changes, and no other is missing or made up."""
    row = greeks(CALL, **{name: repr(value) for name, value in values.items()})
    for name in NUMBERS:
        expected = row[name]  # type: ignore[literal-required]
        assert values.get(name, expected) == expected
        number = greeks_to_pandas([row])[name][0]
        assert number == expected or (expected is None and number != number)
        assert greeks_to_polars([row])[name][0] == expected


@pytest.mark.parametrize(("convert", "name"), [(greeks_to_pandas, "pandas"), (greeks_to_polars, "polars")])
def test_a_missing_extra_is_named(convert: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf'greeks_to_{name} needs .*pip install "finx-streamer\[{name}\]"'):
        convert([])


@pytest.mark.parametrize("convert", [greeks_to_pandas, greeks_to_polars])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (3, "int is not iterable"),
        ([1], "one of them is a int, not Greeks"),
        (SOME[0], "one of them is a str, not Greeks"),
        ([{"delta": 0.5}], "one of them is a dict, not Greeks"),
        ({CALL: None}, "one of them is a NoneType, not Greeks"),
    ],
)
def test_anything_but_greeks_is_rejected(convert: Any, rows: Any, reason: str) -> None:
    """The error says what was expected, e.g. if single Greeks are passed."""
    with pytest.raises(ConfigurationError) as caught:
        convert(rows)
    assert str(caught.value) == f"greeks: {reason}; expected dicts of Greeks, as on_greeks gets them"
