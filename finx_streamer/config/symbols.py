"""Symbols of streams: pairs such as `BTC:USDC`, option months such as `BTCN2202207`, and single contracts.

Only pairs have a colon.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

import attrs

from ..errors import ConfigurationError

#: Futures month letters, January to December.
MONTH_LETTERS = "FGHJKMNQUVXZ"

_OPTION = re.compile(rf"([A-Z0-9]{{1,32}})([{MONTH_LETTERS}])([0-9])([0-9]{{4}})([0-9]{{2}})")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
#: Deribit's names, such as BTC-26AUG22-20000-C, ETH-19AUG22, BTC_USDC-PERPETUAL and XRP_USDC-30JUN23-0d5-C.
_INSTRUMENT = re.compile(
    rf"([A-Z0-9_]{{1,32}})-(?:PERPETUAL|([1-9][0-9]?)({'|'.join(_MONTHS)})([0-9]{{2}})"
    r"(?:-([0-9]{1,12}(?:d[0-9]{1,12})?)-([CP]))?)"
)
#: The hour of the day, in UTC, at which contracts expire. Source: D.
_EXPIRY_HOUR = 8
#: In characters.
_LONGEST_PART = 32
_NOT_IN_A_PART = frozenset(" :/?#%\\")
#: What people write between base and quote. `\uff1a` is the colon of Chinese keyboards.
_SEPARATORS = ":\uff1a/-_ "
#: Quotes, to split a pair such as BTCUSDC. The longer ones first.
_QUOTES = (
    "FDUSD",
    "USDC", "USDT", "BUSD", "TUSD",
    "USD", "EUR", "GBP", "JPY", "KRW", "TRY", "BRL", "AUD", "CAD", "CHF", "DAI", "BTC", "ETH", "BNB", "SOL",
)  # fmt: skip
#: In characters. A longer text is cut. Without a colon, an even shorter one isn't shown: it may be a misplaced API key.
_LONGEST_SHOWN, _LONGEST_SHOWN_WITHOUT_COLON = 60, 20


@attrs.frozen
class Pair:
    """A trading pair: the price of `base` in `quote`::

        from finx_streamer import Pair

        print(Pair.parse("BTC:USDC").base)

    Wherever you pass a pair, a str such as "BTC:USDC", "USDC.E:USDT" or "币安人生:USDT" works, too.

    Args:
        base: What is traded: 1 to 32 characters, in upper case if the script has case. A separator, a space, a control
            character and `: / ? # % \\` can't be among them.
        quote: What it is paid in. The same characters are allowed.

    Source: S for the format, O for the characters.
    """

    base: str
    quote: str

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Parse a pair.

        Args:
            text: `BASE:QUOTE`.

        Raises:
            ConfigurationError: It is malformed. The text of the error suggests a pair.
        """
        base, colon, quote = text.partition(":")
        if not (colon and _is_part(base) and _is_part(quote)):
            raise ConfigurationError(f"not a pair: {_shown(text)}; expected BASE:QUOTE{_suggestion(text)}")
        return cls(base, quote)

    def __str__(self) -> str:
        return f"{self.base}:{self.quote}"


@attrs.frozen
class Option:
    """All options of an underlying that expire in one month, such as `BTCN2202207`: `BTC`, `N2`, `2022`, `07`::

        from finx_streamer import Option

        print(Option.parse("BTCN2202207").year)

    Args:
        underlying: Such as "BTC".
        contract: The letter of the expiry month (F G H J K M N Q U V X Z for January to December), and the last digit
            of the expiry year.
        year: The year of the expiry.
        month: The month of the expiry, 1 to 12.

    Source: S for the format, O for its meaning, and for the check that contract and expiry agree.
    """

    underlying: str
    contract: str
    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Option:
        """Parse an option.

        Args:
            text: Underlying, contract and `YYYYMM`, without separators.

        Raises:
            ConfigurationError: It is malformed, or its contract and expiry don't agree.
        """
        found = _OPTION.fullmatch(text)
        if not found:
            raise ConfigurationError(
                f"not an option: {_shown(text)}; expected underlying, month letter ({MONTH_LETTERS}), last digit of "
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

    @classmethod
    def of(cls, instrument: Instrument) -> Option:
        """Return the month of an option.

        Args:
            instrument: An option.

        Raises:
            ConfigurationError: It is a future or a perpetual.
        """
        expiry = instrument.expiry
        if expiry is None or instrument.strike is None:
            raise ConfigurationError(f"{instrument} is not an option; expected a name such as BTC-26AUG22-20000-C")
        contract = MONTH_LETTERS[expiry.month - 1] + str(expiry.year % 10)
        return cls(instrument.underlying, contract, expiry.year, expiry.month)

    def __str__(self) -> str:
        return f"{self.underlying}{self.contract}{self.year:04}{self.month:02}"

    def includes(self, instrument: Instrument) -> bool:
        """Return whether a contract is one of these options.

        Args:
            instrument: The contract.
        """
        expiry = instrument.expiry
        return (
            expiry is not None
            and instrument.strike is not None
            and (instrument.underlying, expiry.year, expiry.month) == (self.underlying, self.year, self.month)
        )


@attrs.frozen
class Instrument:
    """One contract by Deribit's name for it: an option, a future or a perpetual::

        from finx_streamer import Instrument

        print(Instrument.parse("BTC-26AUG22-20000-C").strike)

    Args:
        name: `BTC-26AUG22-20000-C`, `BTC-26AUG22` or `BTC-PERPETUAL`.
        underlying: `BTC`.
        kind: "call", "put", "future" or "perpetual".
        expiry: 08:00 UTC on the day of the expiry. None for a perpetual.
        strike: None for futures and perpetuals.

    Source: D.
    """

    name: str
    underlying: str
    kind: Literal["call", "put", "future", "perpetual"]
    expiry: datetime | None
    strike: float | None

    @classmethod
    def parse(cls, text: str) -> Instrument:
        """Parse a name.

        Args:
            text: The name, in upper case.

        Raises:
            ConfigurationError: It is malformed, or its date doesn't exist.
        """
        found = _INSTRUMENT.fullmatch(text)
        if not found:
            raise ConfigurationError(
                f"not a contract: {_shown(text)}; expected a name such as BTC-26AUG22-20000-C, BTC-26AUG22 or "
                "BTC-PERPETUAL"
            )
        underlying, day, month, year, strike, side = found.groups()
        if day is None:
            return cls(text, underlying, "perpetual", None, None)
        try:
            expiry = datetime(2000 + int(year), _MONTHS.index(month) + 1, int(day), _EXPIRY_HOUR, tzinfo=UTC)
        except ValueError:
            raise ConfigurationError(f"contract {text!r}: {day}{month}{year} is not a date") from None
        if strike is None:
            return cls(text, underlying, "future", expiry, None)
        return cls(text, underlying, "call" if side == "C" else "put", expiry, float(strike.replace("d", ".")))

    def __str__(self) -> str:
        return self.name

    def includes(self, instrument: Instrument) -> bool:
        """Return whether a contract is this one.

        Args:
            instrument: The contract.
        """
        return instrument.name == self.name


#: What has Greeks.
Contract = Option | Instrument
Symbol = Pair | Option | Instrument


@lru_cache(4_096)
def instrument(name: str) -> Instrument:
    """Return the `Instrument` of a name in a message. Raises `ConfigurationError`."""
    return Instrument.parse(name)


def parse_symbol(text: object) -> Symbol:
    """Return the `Pair`, `Option` or `Instrument` for a text. Raises `ConfigurationError`."""
    if isinstance(text, Pair | Option | Instrument):
        # Its parts haven't been checked.
        text = str(text)
    if not isinstance(text, str):
        advice = "; pass several as StreamListener(*pairs)" if isinstance(text, list | tuple | set | frozenset) else ""
        raise ConfigurationError(f"a symbol is a str such as 'BTC:USDC', not {type(text).__name__}{advice}")
    if ":" in text:
        return Pair.parse(text)
    if _OPTION.fullmatch(text):
        return Option.parse(text)
    if _INSTRUMENT.fullmatch(text):
        return Instrument.parse(text)
    raise ConfigurationError(
        f"not a symbol: {_shown(text)}; expected a pair BASE:QUOTE in upper case{_suggestion(text)}, an option month "
        "such as 'BTCN2202207', or a contract such as 'BTC-26AUG22-20000-C'"
    )


def _is_part(text: str) -> bool:
    """Whether this may be a pair's base or quote."""
    # Separators and control characters aren't printable.
    allowed = text.isprintable() and _NOT_IN_A_PART.isdisjoint(text)
    return 0 < len(text) <= _LONGEST_PART and allowed and text == text.upper()


def _suggestion(text: str) -> str:
    """Suggest the pair that was probably meant, or give an example."""
    guess = suggest_pair(text)
    return f" (did you mean {guess!r}?)" if guess else ", as in 'BTC:USDC'"


def suggest_pair(text: str) -> str | None:
    """Return the pair that was probably meant by a malformed text, if any."""
    if not _may_be_shown(text):
        return None
    text = text.strip().upper()
    splits = [text.split(separator) for separator in _SEPARATORS if text.count(separator) == 1]
    splits += [[text.removesuffix(quote).rstrip("."), quote] for quote in _QUOTES if text.endswith(quote)]
    for base, quote in splits:
        if _is_part(base.strip()) and _is_part(quote.strip()):
            return f"{base.strip()}:{quote.strip()}"
    return None


def _may_be_shown(text: str) -> bool:
    return ":" in text or len(text) <= _LONGEST_SHOWN_WITHOUT_COLON


def _shown(text: str) -> str:
    if not _may_be_shown(text):
        return f"a text of {len(text):,} characters"
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")
