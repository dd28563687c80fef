"""Find out where the log ends, so that a publisher goes on from there."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple, TypeVar

from nats.aio.client import Client

from .counts import stamp_of
from .message import before, trade_prefix
from .reader import Entry, find_last, read_up_to
from .subjects import TICKS, Subject, pair_subjects, parse_subject, tick_subject

#: How many requests run at the same time.
_AT_ONCE = 16
#: What follows the prefix in a trade's message ID.
_TRADE_ID = re.compile(r"\d{1,19}", re.ASCII)
_FIELDS = ("price", "date", "time")
#: Raised while another program's message is read.
_FOREIGN = (ValueError, LookupError, TypeError, AttributeError)

_Key = TypeVar("_Key")


class LoggedTrade(NamedTuple):
    """A trade in the log: the exchange's own ID, and what the tick says."""

    id: int
    price: str
    date: str
    time: str


async def find_starts(client: Client, stream: str, pairs: Iterable[str], tail: int) -> dict[str, datetime]:
    """Return from when on each pair has to be published. A pair without ticks in the log is left out.

    Publishers that were killed may have left holes, but only among the last messages in the log: each had a limit of
    messages in flight. So a pair begins before its first tick among the last ones, or else before its last tick.

    Args:
        client: A connection.
        stream: The stream.
        pairs: The pairs.
        tail: How many messages at the end may have holes between them.

    Raises:
        FinxStreamerError: The log can't be read now.
    """
    filters = {pair: pair_subjects(pair) for pair in pairs}
    ends = await _read_ends(client, stream, tail, filters, lambda subject: subject.symbol)
    starts = {pair: _start_of(entries) for pair, entries in ends.items()}
    return {pair: start for pair, start in starts.items() if start is not None}


async def find_trades(
    client: Client, stream: str, series: Iterable[tuple[str, str]], tail: int
) -> dict[tuple[str, str], list[LoggedTrade]]:
    """Return the trades of each series that are among the last messages, and the one before, so that holes show.

    Args:
        client: A connection.
        stream: The stream.
        series: An exchange and a pair each. Without trades in the log, they are left out.
        tail: How many messages at the end may have holes between them.

    Raises:
        FinxStreamerError: The log can't be read now.
    """
    filters = {(exchange, pair): tick_subject(exchange, pair) for exchange, pair in series}
    ends = await _read_ends(
        client, stream, tail, filters, lambda subject: (subject.exchange, subject.symbol), one_before=True
    )
    trades = {each: [trade for entry in ends[each] if (trade := _trade_of(entry, *each))] for each in ends}
    return {each: found for each, found in trades.items() if found}


async def _read_ends(
    client: Client,
    stream: str,
    tail: int,
    filters: Mapping[_Key, str],
    key_of: Callable[[Subject], _Key],
    *,
    one_before: bool = False,
) -> dict[_Key, list[Entry]]:
    """Return the entries of each filter among the last messages, or else its last one, if there is one.

    With `one_before`, also an earlier entry of each, unless there is none.
    """
    ends: dict[_Key, list[Entry]] = {}
    last = await find_last(client, stream, TICKS)
    if last is None:
        return ends
    after = max(0, last.number - tail)
    async for entry in read_up_to(client, stream, TICKS, last.number, after=after):
        subject = parse_subject(entry.subject)
        if subject is not None and (key := key_of(subject)) in filters:
            ends.setdefault(key, []).append(entry)
    limit = asyncio.Semaphore(_AT_ONCE)

    async def complete(key: _Key, found: list[Entry]) -> None:
        async with limit:
            if not found:
                newest = await find_last(client, stream, filters[key])
                found += [newest] if newest is not None else []
            elif one_before and after:
                found[:1] = await _read_one_before(client, stream, filters[key], found[0], tail)

    await asyncio.gather(*(complete(key, ends.setdefault(key, [])) for key in filters))
    return ends


async def _read_one_before(client: Client, stream: str, subjects: str, entry: Entry, span: int) -> list[Entry]:
    """Return an entry, after at least one earlier one of the same subjects, if there is one."""
    while True:
        after = max(0, entry.number - span)
        found = read_up_to(client, stream, subjects, entry.number, after=after)
        earlier = [each async for each in found if each.number < entry.number]
        if earlier or not after:
            return [*earlier[-1:], entry]
        span *= 8


def _start_of(entries: Iterable[Entry]) -> datetime | None:
    for entry in entries:
        try:
            tick = json.loads(entry.payload)
            return before(stamp_of(tick["date"], tick["time"]))
        except _FOREIGN:
            pass
    return None


def _trade_of(entry: Entry, exchange: str, pair: str) -> LoggedTrade | None:
    """Read a trade that has an ID of the exchange's own."""
    prefix = trade_prefix(exchange, pair)
    message_id = entry.message_id or ""
    found = _TRADE_ID.fullmatch(message_id.removeprefix(prefix)) if message_id.startswith(prefix) else None
    if found is None:
        return None
    try:
        tick = json.loads(entry.payload)
        return LoggedTrade(int(found[0]), *(str(tick[name]) for name in _FIELDS))
    except _FOREIGN:
        return None
