"""Notice that NATS has lost entries of a log, after which it assigns their numbers again.

A publisher that notices appends a marker, of which all gateways learn. A gateway compares what it has read itself.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from .tick_log import shared_name

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.api import StreamInfo

    from ..jetstream.reader import Entry

#: Nanoseconds between two entries that are noted, and how far the same time may differ: NATS's client rounds it.
_STEP_NS, _ROUNDED_NS = 10_000_000_000, 10_000
#: How many entries are noted.
_MOST = 4_096


class _Mark(NamedTuple):
    number: int
    stored_ns: int


class Trail:
    """Some of the entries that were read, the newest one always, to find out whether the log still has them."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._marks: deque[_Mark] = deque(maxlen=_MOST)

    def note(self, entry: Entry | None) -> None:
        """Note the newest entry that was read. None: what was read is unknown."""
        marks = self._marks
        if entry is None:
            marks.clear()
            return
        if len(marks) > 1 and entry.stored_ns - marks[-2].stored_ns < _STEP_NS:
            marks.pop()
        marks.append(_Mark(entry.number, entry.stored_ns))

    async def is_intact(self, client: Client) -> bool:
        """Whether the log still has the newest entry that was read."""
        return not self._marks or await self._has(client, self._marks[-1])

    async def find_intact(self, client: Client) -> int:
        """Return the number of the newest noted entry that the log still has, and forget newer ones. 0: it has none."""
        while self._marks:
            if await self._has(client, self._marks[-1]):
                return self._marks[-1].number
            self._marks.pop()
        return 0

    async def _has(self, client: Client, mark: _Mark) -> bool:
        from ..jetstream.reader import find_entry

        entry = await find_entry(client, self._stream, mark.number)
        return entry is not None and abs(entry.stored_ns - mark.stored_ns) <= _ROUNDED_NS


def identity_of(info: StreamInfo) -> str:
    """How the names of a stream's logs begin: the same on every gateway, and another after it was created again.

    A publisher gives each stream that it creates another description. The time of creation differs between nodes.
    """
    return shared_name(f"{info.config.name} {info.config.description or ''}")


def has_identity(name: str, identity: str) -> bool:
    """Whether a log is this stream's."""
    return name.partition("-")[0] == identity


def name_of(identity: str, marker: Entry | None) -> str:
    """The name of a stream's log since a marker. It's the same on every gateway."""
    return f"{identity}-{0 if marker is None else f'{marker.number}_{lost_after(marker) or 0}'}"


async def find_name(client: Client, stream: str, identity: str) -> str:
    """The name of a stream's log since its newest marker."""
    from ..jetstream.reader import find_last
    from ..jetstream.subjects import LOST

    return name_of(identity, await find_last(client, stream, LOST))


def base_of(name: str) -> str:
    """A name without what `private_name` adds."""
    return "-".join(name.split("-")[:2])


def private_name(base: str) -> str:
    """A name that no other gateway has, for the time between a loss and its marker."""
    return f"{base}-{secrets.token_hex(4)}"


def lost_after(marker: Entry) -> int | None:
    """The number after which entries were lost, according to a marker. None if it isn't a valid one."""
    try:
        after = json.loads(marker.payload)["after"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return after if type(after) is int and 0 <= after < marker.number else None
