"""`Waiting`: the bounded queue between the threads that bring ticks and the one that sends them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from ..clock import monotonic
from ..errors import PublishError
from ..values import NEVER
from .message import Message

#: How long a full queue keeps a source waiting before ticks are dropped, in seconds.
PATIENCE = 5.0
#: Seconds between two looks for room in an event loop.
_LOOK_EVERY = 0.01


class Waiting:
    """A queue of messages. While it's full, `put` waits: the source feels that. If that doesn't help, it drops.

    Args:
        size: How many messages may wait.
        wake: Called on any thread when there is something to send, after `take` has returned nothing.
        on_full: Called on any thread when the first message of an outage is dropped.
    """

    def __init__(self, size: int, wake: Callable[[], object], on_full: Callable[[], object]) -> None:
        self._size, self._wake, self._on_full = size, wake, on_full
        self._messages: deque[Message] = deque()
        self._has_room = threading.Condition()
        self._sources_wait = False
        self._sender_waits = False
        #: Whether messages are dropped.
        self._drops = False
        self._closed = False
        #: How many were dropped since the last `take_dropped`.
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message, *, is_history: bool = False) -> None:
        """Add a message. If the queue is full, wait for room, or drop the message. History isn't dropped: it can wait.

        Raises:
            PublishError: The publisher is closed.
        """
        if (len(self._messages) >= self._size or self._drops or self._closed) and not self._wait_for_room(is_history):
            self.drop()
        else:
            self.put_now(message)

    async def put_in_loop(self, message: Message) -> None:
        """Do what `put` does, in an event loop."""
        deadline = monotonic() + PATIENCE
        while self.state is False and monotonic() < deadline:
            await asyncio.sleep(_LOOK_EVERY)
        if self.state:
            self.put_now(message)
        else:
            self.drop()

    def put_now(self, message: Message) -> None:
        """Add a message, whether or not there is room."""
        self._messages.append(message)
        if self._sender_waits:
            self._sender_waits = False
            self._wake()

    def drop(self) -> None:
        """Count a message that isn't added."""
        if self._closed:
            raise PublishError("the publisher is closed", 1)
        with self._has_room:
            self._dropped += 1
            is_first, self._drops = not self._drops, True
        if is_first:
            self._on_full()

    @property
    def state(self) -> bool | None:
        """Whether there is room. None: don't wait for it, but drop."""
        return None if self._drops or self._closed else len(self._messages) < self._size

    def _wait_for_room(self, is_history: bool) -> bool:
        deadline = NEVER if is_history else monotonic() + PATIENCE
        with self._has_room:
            while not (found := self.state):
                left = deadline - monotonic()
                if self._closed or left <= 0 or (found is None and not is_history):
                    return False
                self._sources_wait = True
                self._has_room.wait(min(left, PATIENCE))
        return True

    # For the sender.

    def take(self, most: int) -> list[Message]:
        """Remove the oldest messages. If there are none, `wake` will be called once there is one."""
        messages = self._messages
        if not messages:
            # In this order, because a source adds first and looks then.
            self._sender_waits = True
            self._sender_waits = not messages
        taken = [messages.popleft() for _ in range(min(most, len(messages)))]
        if self._sources_wait or self._drops:
            with self._has_room:
                self._sources_wait = False
                self._drops = self._drops and len(messages) > self._size // 2
                self._has_room.notify_all()
        return taken

    def take_dropped(self) -> int:
        """Return how many messages were dropped, once there is room again. Until then, return 0."""
        if self._drops or not self._dropped:
            return 0
        with self._has_room:
            dropped, self._dropped = self._dropped, 0
        return dropped

    def close(self) -> None:
        """Accept nothing more."""
        with self._has_room:
            self._closed = True
            self._has_room.notify_all()

    def abandon(self) -> None:
        """Accept nothing more, in a fork. Another thread may have held the lock."""
        self._has_room, self._closed = threading.Condition(), True

    def end(self) -> int:
        """Remove everything. Return how many messages are lost, with those that were dropped."""
        with self._has_room:
            lost, self._dropped = self._dropped + len(self._messages), 0
            self._messages.clear()
        return lost
