"""Pairs and options: symbols that are accepted or refused."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.config.symbols import MONTH_LETTERS, Instrument, Option, Pair, parse_symbol, suggest_pair
from finx_streamer.errors import ConfigurationError, make_printable

codes = st.text("ABCXYZ0123456789", min_size=1, max_size=32)
#: What the rule allows, put in other words.
letters = st.characters(
    exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"], exclude_characters=":/?#%\\"
).filter(lambda letter: letter.upper() == letter)
parts = st.text(letters, min_size=1, max_size=32)
TRADED = ["USDC.E:USDT", "$TRUMP:USDC", "币安人生:USDT", "1INCH:USDC", "Ⅷ:USD", "BTC:ÜSD", "ID:TRY", 'A"B:<C>', "..:.."]
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
    "$trump:USDC",
    "ß:USD",
    "BTC:US DC",
    "BTC:USDC\u2028",
    "BTC:\u00a0USDC",
    "BTC:US\u200bDC",
    "BTC:\u202eUSDC",
    "BTC:\x7f",
    "BTC:\ud800",
    "BTC:US/DC",
    "BTC:US?DC",
    "BTC:US#DC",
    "BTC:US%DC",
    "BTC:US\\DC",
    "A" * 33 + ":USDC",
]


@pytest.mark.parametrize("text", TRADED)
def test_accepts_the_pairs_that_exchanges_trade(text: str) -> None:
    """Names have dots, dollar signs, digits and any script."""
    base, _, quote = text.partition(":")
    assert Pair.parse(text) == parse_symbol(text) == Pair(base, quote)
    assert str(Pair(base, quote)) == text


@given(parts, parts)
def test_a_pair_parses_its_own_text(base: str, quote: str) -> None:
    """BASE:QUOTE has two parts, of any characters except separators, spaces, control characters and lower case."""
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
    assert make_printable(repr(text)) in str(caught.value)
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
    ("text", "pair"),
    [
        *((text, "BTC:USDC") for text in ("btc:usdc", "BTC-USDC", "btc/usdc", "BTC_USDC", "BTC USDC", " BTC:USDC\n")),
        *(
            (text, "BTC:USDC")
            for text in ("btc.usdc", "BTCUSDC", "btcusdc", "BTC: USDC", "BTC - USDC", "BTC\uff1aUSDC")
        ),
        ("1000SATSFDUSD", "1000SATS:FDUSD"),
        ("USDCUSDT", "USDC:USDT"),
        ("ETHBTC", "ETH:BTC"),
        ("$trumpusdt", "$TRUMP:USDT"),
        ("币安人生USDT", "币安人生:USDT"),
        ("usdc.e-usdt", "USDC.E:USDT"),
        ("BTC-PERP/XYZ", "BTC-PERP:XYZ"),
        ("btc-wusdc", "BTC:WUSDC"),
    ],
)
def test_suggests_the_pair_that_was_probably_meant(text: str, pair: str) -> None:
    """Other spellings of a pair are refused, not converted silently."""
    for parse in (parse_symbol, Pair.parse):
        with pytest.raises(ConfigurationError) as caught:
            parse(text)
        assert f"(did you mean {pair!r}?)" in str(caught.value)


@pytest.mark.parametrize("text", ["BTC", "USDC", "BTC-USD-PERP", "USDC.E", "BTC:USDC:X", ":USDC", "BTC:", "BTC%USDC"])
def test_suggests_nothing_by_guesswork(text: str) -> None:
    """The error gives an example instead."""
    with pytest.raises(ConfigurationError, match=r"BASE:QUOTE.*, as in 'BTC:USDC'"):
        parse_symbol(text)


@given(st.text(max_size=30))
def test_a_suggestion_is_a_pair(text: str) -> None:
    """It has the given letters in their order."""
    guess = suggest_pair(text)
    if guess is not None:
        assert str(Pair.parse(guess)) == guess
        letters_of_both = [re.sub(r"[\s:\uff1a/_.-]", "", each) for each in (guess, text.upper())]
        assert letters_of_both[0] == letters_of_both[1]


@pytest.mark.parametrize(
    "key", ["5f2d9c0e-7a41-4c1b-9d0a-3b1f7c2e8a10", "SK_LIVE_51H8ZQ2EZVKYLO2C", "0123456789ABCDEF01234USDC", "k" * 21]
)
def test_does_not_repeat_what_may_be_a_key(key: str) -> None:
    """A key in place of the symbol may be one that isn't known yet."""
    for parse in (parse_symbol, Pair.parse, Option.parse):
        with pytest.raises(ConfigurationError, match=f": a text of {len(key)} characters; expected") as caught:
            parse(key)
        assert key[:8].upper() not in str(caught.value).upper()


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
    [Pair("btc", "usdc"), Pair("../X", "Y"), Pair("A:B", "C"), Option("BTC", "N2", 2022, 8), Option("", "N2", 2022, 7)],
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


@given(st.datetimes(datetime(2010, 1, 1), datetime(2099, 12, 31)), st.sampled_from(["BTC", "BTC_USDC", "ETH"]))
def test_the_month_of_an_option_includes_it(expiry: datetime, underlying: str) -> None:
    """It can be parsed, except for an underlying with an underscore."""
    option = Instrument.parse(f"{underlying}-{expiry.day}{expiry:%b%y}-20000-C".upper())
    month = Option.of(option)
    assert month.includes(option)
    if "_" not in underlying:
        assert Option.parse(str(month)) == month


@pytest.mark.parametrize("name", ["BTC-26AUG22", "BTC-PERPETUAL"])
def test_only_options_have_a_month(name: str) -> None:
    """A month means options, so a future isn't part of it."""
    with pytest.raises(ConfigurationError, match="is not an option"):
        Option.of(Instrument.parse(name))
