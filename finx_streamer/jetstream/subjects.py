"""The names of subjects: `finx.v1.ticks.EXCHANGE.BASE.QUOTE` and `finx.v1.greeks.EXCHANGE.INSTRUMENT`. Source: O."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

_PREFIX = "finx.v1"
#: All subjects of a stream; those of ticks, and those of Greeks.
ALL, TICKS, GREEKS = f"{_PREFIX}.>", f"{_PREFIX}.ticks.>", f"{_PREFIX}.greeks.>"
#: Of a mark in the stream: NATS had lost the entries after a number, so that the numbers mean others now.
LOST = f"{_PREFIX}.log.lost"
#: Of a mark without meaning: once it is stored, NATS has settled what becomes of all messages that were sent before it.
SETTLED = f"{_PREFIX}.log.settled"


class Subject(NamedTuple):
    """What a subject says: the exchange, and the pair or the instrument."""

    kind: Literal["ticks", "greeks"]
    exchange: str
    symbol: str


@lru_cache(4_096)
def tick_subject(exchange: str, pair: str) -> str:
    """The subject of an exchange's ticks of a pair."""
    base, _, quoted = pair.partition(":")
    return f"{_PREFIX}.ticks.{_escape(exchange)}.{_escape(base)}.{_escape(quoted)}"


@lru_cache(4_096)
def greeks_subject(exchange: str, instrument: str) -> str:
    """The subject of the tickers of a contract."""
    return f"{_PREFIX}.greeks.{_escape(exchange)}.{_escape(instrument)}"


def pair_subjects(pair: str) -> str:
    """A filter for the ticks of a pair on all exchanges."""
    base, _, quoted = pair.partition(":")
    return f"{_PREFIX}.ticks.*.{_escape(base)}.{_escape(quoted)}"


@lru_cache(4_096)
def parse_subject(subject: str) -> Subject | None:
    """Read a subject. None if it is another program's."""
    match subject.removeprefix(f"{_PREFIX}.").split("."):
        case ["ticks", exchange, base, quoted]:
            return Subject("ticks", unquote(exchange), f"{unquote(base)}:{unquote(quoted)}")
        case ["greeks", exchange, instrument]:
            return Subject("greeks", unquote(exchange), unquote(instrument))
    return None


def _escape(name: str) -> str:
    """Percent-encode everything but letters, digits, `-`, `_` and `~`: dots, asterisks and blanks mean something."""
    return quote(name, safe="").replace(".", "%2E")
