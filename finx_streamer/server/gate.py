"""`Gate`: live ticks that wait while their client gets from the log what it missed."""

from __future__ import annotations

from collections import deque

import attrs

from .connection import Connection
from .protocol import Wire


@attrs.define(eq=False)
class Gate:
    """Live ticks of one stream that wait until its client has what it missed.

    When too many wait, they are forgotten, and read from the store instead: up to `until`.
    """

    connection: Connection
    symbol: str
    wire: Wire
    until: int
    _limit: int
    _frames: deque[bytes] = attrs.field(factory=deque, init=False)
    _size: int = attrs.field(default=0, init=False)

    def add(self, frame: bytes, number: int) -> None:
        """Let a live tick wait."""
        self._size += len(frame)
        if self._size > self._limit:
            self._frames.clear()
            self._size, self.until = 0, number
        else:
            self._frames.append(frame)

    def release(self) -> int:
        """Queue what waits for the client. Returns the number of ticks."""
        for frame in self._frames:
            self.connection.enqueue(frame, can_wait=True)
        return len(self._frames)
