"""Find out where the log ends, so that a publisher goes on from there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import datetime

from nats.aio.client import Client

from .counts import stamp_of
from .message import before
from .reader import find_last, read_up_to
from .subjects import TICKS, pair_subjects, parse_subject

#: How many requests run at the same time.
_AT_ONCE = 16


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
    wanted = set(pairs)
    starts: dict[str, datetime] = {}
    last = await find_last(client, stream, TICKS)
    if last is None:
        return starts
    async for entry in read_up_to(client, stream, TICKS, last.number, after=max(0, last.number - tail)):
        found = parse_subject(entry.subject)
        if found is not None and found.symbol in wanted and found.symbol not in starts:
            _note(starts, found.symbol, entry.payload)
    limit = asyncio.Semaphore(_AT_ONCE)

    async def note_last(pair: str) -> None:
        async with limit:
            found = await find_last(client, stream, pair_subjects(pair))
        if found is not None:
            _note(starts, pair, found.payload)

    await asyncio.gather(*map(note_last, wanted - starts.keys()))
    return starts


def _note(starts: dict[str, datetime], pair: str, payload: bytes) -> None:
    try:
        tick = json.loads(payload)
        starts[pair] = before(stamp_of(tick["date"], tick["time"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # another program's message
