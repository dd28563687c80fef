"""Pairs and options: what is read, what is refused, and what the refusal says."""

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
def test_a_pair_reads_what_it_prints(base: str, quote: str) -> None:
    """BASE:QUOTE is read into its parts and printed again as it was."""
    assert Pair(base, quote) == Pair.parse(f"{base}:{quote}")
    assert str(parse_symbol(f"{base}:{quote}")) == f"{base}:{quote}"


@given(codes.filter(lambda code: len(code) <= 24), st.integers(0, 9999), st.integers(1, 12))
def test_an_option_reads_what_it_prints(underlying: str, year: int, month: int) -> None:
    """Each agreeing contract is read into its parts and printed again as it was."""
    text = f"{underlying}{MONTH_LETTERS[month - 1]}{year % 10}{year:04}{month:02}"
    option = parse_symbol(text)
    assert option == Option(underlying, f"{MONTH_LETTERS[month - 1]}{year % 10}", year, month)
    assert text == str(option)


def test_the_example_of_the_protocol_is_read() -> None:
    """`BTCN2202207` is `BTC` + `N2` + `2022` + `07`."""
    assert parse_symbol("BTCN2202207") == Option("BTC", "N2", 2022, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("BTCN2202208", "Q2"), ("BTCN3202207", "N2"), ("BTCF2202207", "N2"), ("BTCZ1202212", "Z2")],
)
def test_a_contract_that_disagrees_is_refused_by_name(text: str, expected: str) -> None:
    """The refusal names the contract that stands there and the one that would agree."""
    with pytest.raises(ConfigurationError) as caught:
        parse_symbol(text)
    assert text[3:5] in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("month", ["00", "13", "99"])
def test_a_month_that_is_none_is_refused(month: str) -> None:
    """The refusal names the month and its range."""
    with pytest.raises(ConfigurationError, match=f"{month} is not a month; expected 01 to 12"):
        parse_symbol(f"BTCN22022{month}")


@pytest.mark.parametrize("text", NOT_PAIRS)
def test_what_is_no_pair_is_refused_with_the_form_that_is_expected(text: str) -> None:
    """The refusal shows the value and BASE:QUOTE."""
    with pytest.raises(ConfigurationError, match="expected BASE:QUOTE") as caught:
        Pair.parse(text)
    assert repr(text) in str(caught.value)
    with pytest.raises(ConfigurationError):
        parse_symbol(text)


@pytest.mark.parametrize(
    "text", ["", "BTC", "N2202207", "BTCA2202207", "btcN2202207", "BTCN220227", "BTCN2\uff1202207"]
)
def test_what_is_no_option_is_refused_with_an_example(text: str) -> None:
    """The refusal shows the value and an option as it should be."""
    with pytest.raises(ConfigurationError, match="BTCN2202207") as caught:
        Option.parse(text)
    assert repr(text) in str(caught.value)
    with pytest.raises(ConfigurationError):
        parse_symbol(text)


@pytest.mark.parametrize(
    "text", ["btc:usdc", "BTC-USDC", "btc/usdc", "BTC_USDC", "BTC USDC", " BTC:USDC\n", "btc.usdc"]
)
def test_the_pair_that_was_probably_meant_is_suggested(text: str) -> None:
    """Other spellings of a pair are refused, and never guessed in silence."""
    with pytest.raises(ConfigurationError, match="did you mean 'BTC:USDC'"):
        parse_symbol(text)


@pytest.mark.parametrize("value", [None, 5, b"BTC:USDC", ["BTC:USDC"], ("BTC", "USDC")])
def test_a_symbol_of_another_type_is_refused(value: object) -> None:
    """The refusal names the type."""
    with pytest.raises(ConfigurationError, match=f"not {type(value).__name__}"):
        parse_symbol(value)


@pytest.mark.parametrize("value", [["BTC:USDC"], ("BTC", "USDC"), {"BTC:USDC"}])
def test_several_symbols_in_one_argument_are_refused_with_how_to_pass_them(value: object) -> None:
    """A list is what most people try first."""
    with pytest.raises(ConfigurationError, match=r"; pass several as StreamListener\(\*pairs\)$"):
        parse_symbol(value)


@pytest.mark.parametrize("symbol", [Pair("BTC", "USDC"), Option("BTC", "N2", 2022, 7)])
def test_a_symbol_is_taken_as_it_is(symbol: Pair | Option) -> None:
    """What is a symbol already stays one."""
    assert symbol == parse_symbol(symbol)


@pytest.mark.parametrize(
    "symbol",
    [Pair("btc", "usdc"), Pair("../x", "Y"), Pair("A:B", "C"), Option("BTC", "N2", 2022, 8), Option("", "N2", 2022, 7)],
)
def test_a_symbol_made_of_wrong_parts_is_refused(symbol: Pair | Option) -> None:
    """Nothing but a checked symbol ever gets into a URL."""
    with pytest.raises(ConfigurationError):
        parse_symbol(symbol)


def test_a_long_value_is_cut_in_the_refusal() -> None:
    """A megabyte given by mistake is not shown whole."""
    with pytest.raises(ConfigurationError) as caught:
        parse_symbol("x" * 1_000_000)
    assert len(str(caught.value)) < 500


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[A-Z]{0,4}[FN]?[0-9]{5,9}")))
def test_any_text_is_a_symbol_or_a_configuration_error(text: str) -> None:
    """What is accepted prints itself; all else raises the one error."""
    try:
        symbol = parse_symbol(text)
    except ConfigurationError:
        return
    assert text == str(symbol)


def test_every_recorded_pair_is_a_pair(shared_data: Path) -> None:
    """Pairs that really occur, with digits and with long and short names, are read."""
    for line in (shared_data / "odd.jsonl").read_text().splitlines():
        tick = json.loads(line).get("line")
        if tick:
            assert tick["pair"] == str(Pair.parse(tick["pair"]))
