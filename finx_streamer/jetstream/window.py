"""`Window`: the messages that were sent and aren't acknowledged."""

from __future__ import annotations

from collections.abc import Iterable

from .message import Message


class Window:
    """Messages by number, in the order in which they were sent first.

    Its span, from the oldest number to the newest, is limited, and not only how many messages it has. So what is
    missing in the log when a publisher is killed is among the last `size` messages that it has sent.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._messages: dict[int, Message] = {}
        self._oldest = 0
        #: The next number.
        self.next = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def oldest(self) -> int:
        """The lowest number of a message that isn't acknowledged; the next number if there is none."""
        while self._oldest < self.next and self._oldest not in self._messages:
            self._oldest += 1
        return self._oldest

    @property
    def room(self) -> int:
        """How many messages may be added."""
        return self._size - (self.next - self.oldest)

    def add(self, messages: Iterable[Message]) -> range:
        """Add messages that are about to be sent. Return their numbers."""
        first = self.next
        for message in messages:
            self._messages[self.next] = message
            self.next += 1
        return range(first, self.next)

    def numbers(self) -> list[int]:
        """The numbers of all messages, in order."""
        return sorted(self._messages)

    def get(self, number: int) -> Message | None:
        """A message; None if it was removed."""
        return self._messages.get(number)

    def remove(self, number: int) -> Message | None:
        """Remove a message, if it is still there."""
        return self._messages.pop(number, None)
