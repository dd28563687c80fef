"""What the entries of a log say."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING

from ..config.symbols import Pair
from ..errors import ConfigurationError
from .contracts import Played, parse_instrument, parse_ticker
from .log_store import Span
from .ticks import Tick, check_series, exact_time, parse_tick

if TYPE_CHECKING:
    from nats.aio.client import Client

    from ..jetstream.reader import Entry
    from ..jetstream.subjects import Subject

#: A tick as publishers write it. Anything else takes the thorough way.
_TICK = re.compile(
    r'\{"pair":"([^"\\]+)","date":"([0-9-]{10})","time":"([0-9:.]{8,30}Z?)","exchange":"([^"\\]+)",'
    r'"price":"(-?[0-9]+(?:\.[0-9]+)?)"\}'
)


def parse_entry(payload: bytes, subject: Subject) -> Played:
    """Parse a tick or ticker of a subject. Raises `ValueError`, or what JSON of another form leads to."""
    if subject.kind == "greeks":
        ticker = parse_ticker(json.loads(payload))
        if ticker.instrument.name != subject.symbol:
            raise ValueError("another contract's ticker")
        return ticker
    tick = _parse_tick(payload)
    if tick["pair"] != subject.symbol or tick["exchange"] != subject.exchange:
        raise ValueError("another subject's tick")
    return tick


async def read_back(client: Client, stream: str, span: Span) -> list[Entry]:
    """Return the entries with these numbers."""
    from ..jetstream.reader import find_last, read_up_to

    # Only the stream's leader surely has all entries: a node that lags may have fewer than the span.
    last = await find_last(client, stream, ">")
    if last is None or last.number < span.first:
        return []
    entries = read_up_to(client, stream, "", min(span.last, last.number), after=span.first - 1)
    return [entry async for entry in entries if entry.number <= span.last]


async def is_same(client: Client, stream: str, row: tuple[int, str] | None) -> bool:
    """Whether an entry is still the tick that a store has: its number, and itself as JSON. True without one.

    True, too, if that has expired, because nothing is known then.
    """
    from ..jetstream.connection import find_stream
    from ..jetstream.reader import find_entry
    from ..jetstream.subjects import parse_subject

    if row is None:
        return True
    entry = await find_entry(client, stream, row[0])
    if entry is None:
        info = await find_stream(client, stream)
        return info is not None and row[0] < info.state.first_seq
    subject = parse_subject(entry.subject)
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        return subject is not None and parse_entry(entry.payload, subject) == json.loads(row[1])
    return False


async def list_symbols(client: Client, stream: str) -> tuple[set[str], set[str]]:
    """Return the pairs and the contracts that have entries."""
    from ..jetstream.connection import list_subjects
    from ..jetstream.subjects import GREEKS, TICKS, parse_subject

    found = []
    for subjects in (TICKS, GREEKS):
        parsed = map(parse_subject, await list_subjects(client, stream, subjects))
        found.append({each.symbol for each in parsed if each is not None})
    return found[0], found[1]


def _parse_tick(payload: bytes) -> Tick:
    text = payload.decode()
    found = _TICK.fullmatch(text)
    if found is None:
        return parse_tick(json.loads(text))
    pair, day, moment, exchange, price = found.groups()
    check_series(pair, exchange)
    exact_time(day, moment)
    return Tick(pair=pair, date=day, time=moment, exchange=exchange, price=price)


def is_pair(name: str) -> bool:
    """Whether a name is that of a pair, in the usual form."""
    with contextlib.suppress(ConfigurationError):
        return str(Pair.parse(name)) == name
    return False


def is_expired(contract: str, now: float) -> bool:
    """Whether a contract has expired, or isn't one."""
    try:
        expiry = parse_instrument(contract).expiry
    except ConfigurationError:
        return True
    return expiry is not None and expiry <= now
