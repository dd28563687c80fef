"""`Acknowledged`: the last messages that NATS has acknowledged, because it may lose them.

A cluster that loses two of three nodes at once can come back with fewer entries than it had acknowledged. Their numbers
are then assigned again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from operator import itemgetter

import attrs
from nats.aio.client import Client

from .connection import find_stream
from .message import Message
from .reader import find_entry

#: How many messages are kept, at about 700 bytes each.
_MOST = 16_384
#: How often to look for an entry that is missing, and the seconds in between: a new leader may not have found all yet.
_LOOKS, _LOOK_EVERY = 10, 0.5


@attrs.frozen
class Loss:
    """What NATS has lost: all messages after an entry."""

    after: int
    messages: list[Message]


class Acknowledged:
    """Messages with the numbers of their entries in the log."""

    def __init__(self) -> None:
        self._messages: deque[tuple[int, Message]] = deque(maxlen=_MOST)

    def __len__(self) -> int:
        return len(self._messages)

    def keep(self, number: int, message: Message) -> None:
        """Keep a message that NATS has stored."""
        self._messages.append((number, message))

    async def take_lost(self, client: Client, stream: str) -> Loss | None:
        """Look whether the log still has what was acknowledged. Return what it has lost, and forget it.

        Raises:
            FinxStreamerError: The log can't be read now.
        """
        info = await find_stream(client, stream)
        oldest = 1 if info is None else info.state.first_seq
        # What has expired isn't lost.
        kept = sorted((each for each in self._messages if each[0] >= oldest), key=itemgetter(0))

        async def is_there(index: int) -> bool:
            number, message = kept[index]
            entry = await find_entry(client, stream, number)
            return entry is not None and entry.message_id == message.message_id

        for _ in range(_LOOKS):
            if not kept or await is_there(-1):
                return None
            await asyncio.sleep(_LOOK_EVERY)
        low, high = 0, len(kept) - 1
        while low < high:
            middle = (low + high) // 2
            if await is_there(middle):
                low = middle + 1
            else:
                high = middle
        self._messages = deque(kept[:low], maxlen=_MOST)
        return Loss(kept[low - 1][0] if low else oldest - 1, [message for _, message in kept[low:]])
