"""Find out where the log ends, so that a publisher goes on from there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import datetime

import nats
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from ..errors import ConfigurationError
from .connection import REQUEST_TIMEOUT, find_stream, translate
from .counts import stamp_of
from .message import before
from .reader import reading
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
    info = await find_stream(client, stream)
    if info is None:
        raise ConfigurationError(f"there is no stream {stream}")
    starts: dict[str, datetime] = {}
    async with reading(client, stream, TICKS, after=max(0, info.state.last_seq - tail)) as reader:
        async for entry in reader.read_present():
            found = parse_subject(entry.subject)
            if found is not None and found.symbol in wanted and found.symbol not in starts:
                _note(starts, found.symbol, entry.payload)
    limit = asyncio.Semaphore(_AT_ONCE)

    async def find_last(pair: str) -> None:
        async with limit:
            try:
                last = await client.jetstream(timeout=REQUEST_TIMEOUT).get_last_msg(stream, pair_subjects(pair))
            except NotFoundError:
                return
            _note(starts, pair, last.data or b"")

    try:
        await asyncio.gather(*(find_last(pair) for pair in wanted - starts.keys()))
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise translate(error) from None
    return starts


def _note(starts: dict[str, datetime], pair: str, payload: bytes) -> None:
    try:
        tick = json.loads(payload)
        starts[pair] = before(stamp_of(tick["date"], tick["time"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # another program's message
