"""`for tick in listener`: hands ticks from the callback thread to the iterating thread, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from ..connection.wakeup import Wakeup
from ..values import NO_BOUND, Tick
from .shared import Shared


class TickBuffer:
    """A tick callback that buffers ticks for one iteration. With `wait`, the callback blocks while the buffer is full.

    No locks in Python code: a signal handler may interrupt `take` and re-enter through stop().
    """

    def __init__(self, size: int, wait: bool, on_room: Callable[[], None]) -> None:
        #: The iterating thread.
        self.thread = threading.get_ident()
        self._size = size
        self._wait = wait
        #: Wakes the callback thread when it waits for room.
        self._has_room = Wakeup()
        self._on_room = self._has_room.wake if wait else on_room
        #: `_on_room` is called when this many ticks are left. A waiting callback needs room for one tick only.
        self._low = size - 1 if wait else size // 2
        #: None wakes the consumer, to check the flags.
        self._ticks: SimpleQueue[Tick | None] = SimpleQueue()
        self._closed = False
        self._ended = False

    def __call__(self, tick: Tick) -> None:
        while self._wait and not self._closed and self._ticks.qsize() >= self._size:
            self._has_room.wait()
        if not self._closed:
            self._ticks.put(tick)

    def room(self) -> int:
        return NO_BOUND if self._closed else max(0, self._size - self._ticks.qsize())

    def take(self, timeout: float | None = None) -> Tick | None:
        """Wait for the next tick and return it. None at the end. Raises `TimeoutError` after `timeout` seconds."""
        self.thread = threading.get_ident()
        while not (self._closed or (self._ended and self._ticks.empty())):
            try:
                tick = self._ticks.get(timeout=timeout)
            except Empty:
                raise no_tick(timeout) from None
            if tick is not None:
                if self._ticks.qsize() == self._low:
                    self._on_room()
                return tick
        return None

    def end(self) -> None:
        """No more ticks will come. The buffered ones can still be taken."""
        self._ended = True
        self._ticks.put(None)

    def close(self) -> None:
        """Discard further ticks, and wake both sides."""
        self._closed = True
        self._ticks.put(None)
        self._on_room()


def no_tick(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"no tick came within {timeout:g} s")


_B = TypeVar("_B", bound=TickBuffer)


class Iterations:
    """The open iterations over one run of a listener."""

    def __init__(self, size: int, wait: bool, on_room: Callable[[], None]) -> None:
        self._size = size
        self._wait = wait
        self._on_room = on_room
        self._buffers: Shared[tuple[TickBuffer, ...]] = Shared(())
        self._ended = False

    def open(self, kind: type[_B]) -> _B:
        buffer = kind(self._size, self._wait, self._on_room)
        self._buffers.change(lambda buffers: (*buffers, buffer))
        # Check after adding. `end` sets the flag before it reads the buffers, so one of the two ends this buffer.
        if self._ended:
            buffer.end()
        return buffer

    @property
    def any_open(self) -> bool:
        return bool(self._buffers.value)

    def close(self, buffer: TickBuffer) -> None:
        self._buffers.change(lambda buffers: tuple(other for other in buffers if other is not buffer))
        buffer.close()

    def room(self) -> int:
        """Return how many ticks fit into every buffer."""
        buffers = self._buffers.value
        return min(buffer.room() for buffer in buffers) if buffers else NO_BOUND

    def want_room(self) -> None:
        """Have `on_room` called when there is room again."""
        # A loop calls it after taking a tick. It may have taken its last one just before this.
        if self.room():
            self._on_room()

    def end(self) -> None:
        """End all iterations, and those that are opened later.

        No lock: the caller may be waited for by a signal handler that interrupted a thread holding it.
        """
        self._ended = True
        for buffer in self._buffers.value:
            buffer.end()

    def close_all(self) -> None:
        """Close all iterations."""
        for buffer in self._buffers.value:
            buffer.close()

    def close_own(self) -> None:
        """Close the iterations of the calling thread, which can't take ticks while it waits elsewhere."""
        for buffer in self._buffers.value:
            if buffer.thread == threading.get_ident():
                buffer.close()
