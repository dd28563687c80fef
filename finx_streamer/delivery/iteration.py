"""`for tick in listener`: ticks handed from the callback side to the thread that iterates, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from ..values import NO_BOUND, Tick


class TickBuffer:
    """One iteration's ticks. It is a tick callback; with `wait` it makes the runner wait while it is full.

    No lock is held anywhere, but within C: a signal handler may stop the listener in the midst of `take`, and what
    that waits for must not wait for `take`.
    """

    def __init__(self, size: int, wait: bool, on_room: Callable[[], None]) -> None:
        #: The thread that iterates.
        self.thread = threading.get_ident()
        self._size = size
        self._wait = wait
        self._on_room = on_room
        #: Ticks, and None where something else needs a look.
        self._ticks: SimpleQueue[Tick | None] = SimpleQueue()
        #: Wakes the runner that waits for room, which is `_full` then.
        self._room: SimpleQueue[None] = SimpleQueue()
        self._full = False
        self._closed = False
        self._ended = False

    def __call__(self, tick: Tick) -> None:
        while self._wait and not self._closed and self._ticks.qsize() >= self._size:
            self._full = True
            # Looked at once more: who takes after this sees that somebody waits.
            if self._ticks.qsize() >= self._size and not self._closed:
                self._room.get()
        if not self._closed:
            self._ticks.put(tick)

    def room(self) -> int:
        return NO_BOUND if self._closed else max(0, self._size - self._ticks.qsize())

    def take(self) -> Tick | None:
        """The next tick, waiting for it; None when there will be none."""
        self.thread = threading.get_ident()
        tick: Tick | None = None
        while tick is None:
            if self._closed or (self._ended and self._ticks.empty()):
                return None
            tick = self._ticks.get()
        self._taken()
        return tick

    def end(self) -> None:
        """Nothing more will come: what is here is still given out."""
        self._ended = True
        self._ticks.put(None)

    def close(self) -> None:
        """Nobody wants more, and whoever waits is let go."""
        self._closed = True
        self._ticks.put(None)
        self._wake()
        self._on_room()

    def _taken(self) -> None:
        if self._wait:
            self._wake()
        elif self._ticks.qsize() == self._size // 2:
            self._on_room()

    def _wake(self) -> None:
        if self._full:
            self._full = False
            self._room.put(None)


_B = TypeVar("_B", bound=TickBuffer)


class Iterations:
    """All iterations over one listener."""

    def __init__(self, size: int, wait: bool, on_room: Callable[[], None]) -> None:
        self._size = size
        self._wait = wait
        self._on_room = on_room
        self._buffers: tuple[TickBuffer, ...] = ()
        self._ended = False
        self._lock = threading.Lock()

    def open(self, kind: type[_B]) -> _B:
        buffer = kind(self._size, self._wait, self._on_room)
        with self._lock:
            self._buffers = (*self._buffers, buffer)
        # Looked at after it was added, as `end` looks at the buffers after it has said so: one of the two sees.
        if self._ended:
            buffer.end()
        return buffer

    def close(self, buffer: TickBuffer) -> None:
        with self._lock:
            self._buffers = tuple(other for other in self._buffers if other is not buffer)
        buffer.close()

    def room(self) -> int:
        """How many more ticks every iteration can take."""
        return min((buffer.room() for buffer in self._buffers), default=NO_BOUND)

    def want_room(self) -> None:
        """A loop that takes a tick calls back. If it took its last one just before this, nobody would: so look."""
        if self.room():
            self._on_room()

    def end(self) -> None:
        """Nothing more will come, not to those either that are opened from now on.

        Without the lock: a signal handler that strikes while its thread holds it may wait for this.
        """
        self._ended = True
        for buffer in self._buffers:
            buffer.end()

    def close_all(self) -> None:
        for buffer in self._buffers:
            buffer.close()

    def close_own(self) -> None:
        """Close the iterations of the calling thread, which can't take while it does something else."""
        for buffer in self._buffers:
            if buffer.thread == threading.get_ident():
                buffer.close()
