"""Pairs and options: symbols that are accepted or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.config.symbols import MONTH_LETTERS, Option, Pair, parse_symbol
from finx_streamer.errors import ConfigurationError

codes = st.text("ABCXYZ0123456789", min_size=1, max_size=32)
NOT_PAIRS = [
    "",
    ":",
    "BTC",
    "BTC:",
    ":USDC",
    "BTC:USDC:X",
    "btc:usdc",
    "BTC:USDC\n",
    " BTC:USDC",
    "BTC/USDC",
    "BTC:ÜSD",
    "Ⅷ:USD",
]


@given(codes, codes)
def test_a_pair_parses_its_own_text(base: str, quote: str) -> None:
    """BASE:QUOTE has two parts."""
    assert Pair.parse(f"{base}:{quote}") == Pair(base, quote)
    assert str(parse_symbol(f"{base}:{quote}")) == f"{base}:{quote}"


@given(codes.filter(lambda code: len(code) <= 24), st.integers(0, 9999), st.integers(1, 12))
def test_an_option_parses_its_own_text(underlying: str, year: int, month: int) -> None:
    """Every contract that agrees with its expiry is accepted."""
    text = f"{underlying}{MONTH_LETTERS[month - 1]}{year % 10}{year:04}{month:02}"
    option = parse_symbol(text)
    assert option == Option(underlying, f"{MONTH_LETTERS[month - 1]}{year % 10}", year, month)
    assert str(option) == text


def test_parses_the_example_of_the_protocol() -> None:
    """`BTCN2202207` is `BTC` + `N2` + `2022` + `07`."""
    assert parse_symbol("BTCN2202207") == Option("BTC", "N2", 2022, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("BTCN2202208", "Q2"), ("BTCN3202207", "N2"), ("BTCF2202207", "N2"), ("BTCZ1202212", "Z2")],
)
def test_refuses_a_contract_that_disagrees_with_its_expiry(text: str, expected: str) -> None:
    """The error names the given contract and the right one."""
    with pytest.raises(ConfigurationError) as caught:
        parse_symbol(text)
    assert text[3:5] in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("month", ["00", "13", "99"])
def test_refuses_an_impossible_month(month: str) -> None:
    """The error names the month and its range."""
    with pytest.raises(ConfigurationError, match=f"{month} is not a month; expected 01 to 12"):
        parse_symbol(f"BTCN22022{month}")


@pytest.mark.parametrize("text", NOT_PAIRS)
def test_refuses_a_wrong_pair(text: str) -> None:
    """The error shows the value and the expected format."""
    with pytest.raises(ConfigurationError, match="expected BASE:QUOTE") as caught:
        Pair.parse(text)
    assert repr(text) in str(caught.value)
    with pytest.raises(ConfigurationError):
        parse_symbol(text)


@pytest.mark.parametrize(
    "text", ["", "BTC", "N2202207", "BTCA2202207", "btcN2202207", "BTCN220227", "BTCN2\uff1202207"]
)
def test_refuses_a_wrong_option(text: str) -> None:
    """The error shows the value and an example."""
    with pytest.raises(ConfigurationError, match="BTCN2202207") as caught:
        Option.parse(text)
    assert repr(text) in str(caught.value)
    with pytest.raises(ConfigurationError):
        parse_symbol(text)


@pytest.mark.parametrize(
    "text", ["btc:usdc", "BTC-USDC", "btc/usdc", "BTC_USDC", "BTC USDC", " BTC:USDC\n", "btc.usdc"]
)
def test_suggests_the_pair_that_was_probably_meant(text: str) -> None:
    """Other spellings of a pair are refused, not converted silently."""
    with pytest.raises(ConfigurationError, match="did you mean 'BTC:USDC'"):
        parse_symbol(text)


@pytest.mark.parametrize("value", [None, 5, b"BTC:USDC", ["BTC:USDC"], ("BTC", "USDC")])
def test_refuses_a_symbol_of_another_type(value: object) -> None:
    """The error names the type."""
    with pytest.raises(ConfigurationError, match=f"not {type(value).__name__}"):
        parse_symbol(value)


@pytest.mark.parametrize("value", [["BTC:USDC"], ("BTC", "USDC"), {"BTC:USDC"}])
def test_refuses_several_symbols_in_one_argument(value: object) -> None:
    """The error shows how to pass a list."""
    with pytest.raises(ConfigurationError, match=r"; pass several as StreamListener\(\*pairs\)$"):
        parse_symbol(value)


@pytest.mark.parametrize("symbol", [Pair("BTC", "USDC"), Option("BTC", "N2", 2022, 7)])
def test_accepts_a_symbol_object(symbol: Pair | Option) -> None:
    """It stays as it is."""
    assert parse_symbol(symbol) == symbol


@pytest.mark.parametrize(
    "symbol",
    [Pair("btc", "usdc"), Pair("../x", "Y"), Pair("A:B", "C"), Option("BTC", "N2", 2022, 8), Option("", "N2", 2022, 7)],
)
def test_refuses_a_symbol_object_of_wrong_parts(symbol: Pair | Option) -> None:
    """Only a checked symbol gets into a URL."""
    with pytest.raises(ConfigurationError):
        parse_symbol(symbol)


def test_the_error_cuts_a_long_value() -> None:
    """A megabyte isn't shown as a whole."""
    with pytest.raises(ConfigurationError) as caught:
        parse_symbol("x" * 1_000_000)
    assert len(str(caught.value)) < 500


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[A-Z]{0,4}[FN]?[0-9]{5,9}")))
def test_any_text_is_a_symbol_or_a_configuration_error(text: str) -> None:
    """An accepted text is the symbol's text; there is no other error."""
    try:
        symbol = parse_symbol(text)
    except ConfigurationError:
        return
    assert str(symbol) == text


def test_parses_every_recorded_pair(shared_data: Path) -> None:
    """They include digits, and long and short names."""
    for line in (shared_data / "odd.jsonl").read_text().splitlines():
        tick = json.loads(line).get("line")
        if tick:
            assert tick["pair"] == str(Pair.parse(tick["pair"]))
