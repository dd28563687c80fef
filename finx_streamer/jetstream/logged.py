"""`Logged`: finds out which messages are in the log, where NATS may have forgotten their IDs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

from nats.aio.client import Client

from ..clock import monotonic
from .message import FIRST, Message
from .reader import find_last, read_up_to

#: How much earlier reading begins than needed, because a slightly earlier message may follow.
_SLACK = timedelta(seconds=60)
#: Seconds for which the IDs of a filter are kept.
_KEEP = 10.0
#: How many filters are read at the same time.
_AT_ONCE = 16


class _Known:
    """The IDs of one filter's messages since a time."""

    def __init__(self, since: datetime) -> None:
        self.since = since
        self.ids: set[str | None] = set()
        self.number = 0
        self.read_at = self.used_at = float("-inf")

    async def read_on(self, client: Client, stream: str, subjects: str) -> None:
        """Read what has been added."""
        began = monotonic()
        last = await find_last(client, stream, subjects)
        if last is None or last.number <= self.number or last.stored_ns < self.since.timestamp() * 1e9:
            self.read_at = began
            return
        since = None if self.number else self.since
        async for entry in read_up_to(client, stream, subjects, last.number, after=self.number, since=since):
            self.number = entry.number
            self.ids.add(entry.message_id)
        self.read_at = began


class Logged:
    """What is in the log. Used on one connection.

    Args:
        client: The connection.
        stream: The stream.
        valid: For how many seconds a look at the log is good enough. NATS must remember newer IDs for longer.
    """

    def __init__(self, client: Client, stream: str, valid: float) -> None:
        self._client, self._stream, self._valid = client, stream, valid
        self._known: dict[str, _Known] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)

    async def find(self, messages: Iterable[Message]) -> set[str]:
        """Return the IDs of those messages that are in the log, unless NATS still remembers them.

        Raises:
            FinxStreamerError: The log can't be read now.
        """
        wanted: dict[str, list[Message]] = {}
        for message in messages:
            wanted.setdefault(message.filter, []).append(message)
        try:
            async with asyncio.TaskGroup() as tasks:
                found = [tasks.create_task(self._find(filter, group)) for filter, group in wanted.items()]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return set[str]().union(*(each.result() for each in found))

    async def _find(self, subjects: str, messages: list[Message]) -> set[str]:
        since = min(message.stored_since() for message in messages)
        known = self._known.get(subjects)
        if known is None or known.since > since:
            known = self._known[subjects] = _Known(max(FIRST, since - _SLACK))
        if monotonic() - known.read_at > self._valid:
            async with self._limit:
                await known.read_on(self._client, self._stream, subjects)
        known.used_at = monotonic()
        return {message.message_id for message in messages} & known.ids

    def forget(self) -> None:
        """Forget IDs that aren't needed any more."""
        limit = monotonic() - _KEEP
        for subjects in [subjects for subjects, known in self._known.items() if known.used_at < limit]:
            del self._known[subjects]
