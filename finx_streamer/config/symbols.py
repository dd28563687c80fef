"""Symbols of streams: pairs such as `BTC:USDC`, and options such as `BTCN2202207`. Only pairs have a colon."""

from __future__ import annotations

import re

import attrs

from ..errors import ConfigurationError

#: Futures month letters, January to December.
MONTH_LETTERS = "FGHJKMNQUVXZ"

_PAIR = re.compile(r"([A-Z0-9]{1,32}):([A-Z0-9]{1,32})")
_OPTION = re.compile(rf"([A-Z0-9]{{1,32}})([{MONTH_LETTERS}])([0-9])([0-9]{{4}})([0-9]{{2}})")
#: In characters.
_LONGEST_SHOWN = 60


@attrs.frozen
class Pair:
    """A trading pair: the price of `base` in `quote`. Source: S for the format, O for upper case and digits."""

    base: str
    quote: str

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Parse `BASE:QUOTE`. Raises `ConfigurationError`."""
        found = _PAIR.fullmatch(text)
        if not found:
            raise ConfigurationError(f"not a pair: {_quoted(text)}; expected BASE:QUOTE{_suggestion(text)}")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{self.base}:{self.quote}"


@attrs.frozen
class Option:
    """An option: underlying, contract code, expiry year and month.

    `BTCN2202207` is `BTC` + `N2` + `2022` + `07`. The contract code is the letter of the expiry month and the last
    digit of the expiry year. Source: S for the format, O for the check that contract and expiry agree.
    """

    underlying: str
    contract: str
    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Option:
        """Parse underlying + contract + `YYYYMM`. Raises `ConfigurationError`."""
        found = _OPTION.fullmatch(text)
        if not found:
            raise ConfigurationError(
                f"not an option: {_quoted(text)}; expected underlying, month letter ({MONTH_LETTERS}), last digit of "
                "the year, year and month, as in BTCN2202207"
            )
        underlying, letter, digit, year, month = found.groups()
        if not 1 <= int(month) <= 12:
            raise ConfigurationError(f"option {text!r}: {month} is not a month; expected 01 to 12")
        expected = MONTH_LETTERS[int(month) - 1] + year[-1]
        if letter + digit != expected:
            raise ConfigurationError(
                f"option {text!r}: contract {letter}{digit} does not agree with {year}-{month}, which is {expected}"
            )
        return cls(underlying, letter + digit, int(year), int(month))

    def __str__(self) -> str:
        return f"{self.underlying}{self.contract}{self.year:04}{self.month:02}"


Symbol = Pair | Option


def parse_symbol(text: object) -> Symbol:
    """Return the `Pair` or `Option` for a text. Raises `ConfigurationError`."""
    if isinstance(text, Pair | Option):
        # Its parts haven't been checked.
        text = str(text)
    if not isinstance(text, str):
        advice = "; pass several as StreamListener(*pairs)" if isinstance(text, list | tuple | set | frozenset) else ""
        raise ConfigurationError(f"a symbol is a str such as 'BTC:USDC', not {type(text).__name__}{advice}")
    if ":" in text:
        return Pair.parse(text)
    if _OPTION.fullmatch(text):
        return Option.parse(text)
    raise ConfigurationError(
        f"not a symbol: {_quoted(text)}; expected a pair BASE:QUOTE in upper-case letters and digits"
        f"{_suggestion(text)}, or an option such as 'BTCN2202207'"
    )


def _suggestion(text: str) -> str:
    """Suggest the pair that was probably meant, or give an example."""
    parts = re.split(r"[-_/:. ]", text.strip().upper())
    guess = ":".join(parts)
    return f" (did you mean {guess!r}?)" if _PAIR.fullmatch(guess) else ", as in 'BTC:USDC'"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")
