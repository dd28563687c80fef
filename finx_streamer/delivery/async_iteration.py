"""`async for tick in listener` and `wait_async`, without a thread of their own.

Waits are cut into slices, because an event loop that awaits something that never comes may not notice Ctrl-C: another
thread may take the signal while the loop sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ..clock import monotonic
from ..values import Tick
from .iteration import TickBuffer, no_tick

#: The longest sleep of an event loop, in seconds.
SLICE = 0.25
#: After this many ticks without a wait, other tasks of the event loop get a turn.
_TURN = 64


class AsyncWakeup:
    """Wakes one coroutine from any thread. Create it within the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """End the current wait, or the next one. From any thread."""
        # The loop may have been closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._woken.set)

    async def wait(self, seconds: float) -> None:
        """Wait for `wake`, at most this long."""
        # Not asyncio.wait_for: up to Python 3.11 it may lose a cancellation.
        timer = self._loop.call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
        self._woken.clear()


class AsyncTickBuffer(TickBuffer):
    """A `TickBuffer` whose ticks are taken within an event loop."""

    def __init__(self, size: int, wait: bool, on_room: Callable[[], None]) -> None:
        super().__init__(size, wait, on_room)
        self._wakeup = AsyncWakeup()
        self._sleeps = False
        self._turn = 0

    def __call__(self, tick: Tick) -> None:
        super().__call__(tick)
        if self._sleeps:
            self._sleeps = False
            self._wakeup.wake()

    def end(self) -> None:
        super().end()
        self._wakeup.wake()

    def close(self) -> None:
        super().close()
        self._wakeup.wake()

    async def take_async(self, timeout: float | None = None) -> Tick | None:
        """Wait for the next tick and return it. None at the end. Raises `TimeoutError` after `timeout` seconds."""
        self._turn += 1
        if self._turn % _TURN == 0:
            await asyncio.sleep(0)
        deadline = None if timeout is None else monotonic() + timeout
        while self._ticks.empty() and not (self._closed or self._ended):
            self._sleeps = True
            # Check again: a tick may have been put before `_sleeps` was set.
            if self._ticks.empty():
                left = SLICE if deadline is None else deadline - monotonic()
                if left <= 0:
                    raise no_tick(timeout)
                await self._wakeup.wait(min(SLICE, left))
        # Doesn't block: there is a tick, or the end.
        return self.take()

    def take_rest(self) -> list[Tick]:
        """Return all ticks that are there, without waiting."""
        ticks = [self._ticks.get() for _ in range(self._ticks.qsize())]
        self._on_room()
        return [tick for tick in ticks if tick is not None]


async def wait_until(is_done: Callable[[], bool], watchers: list[Callable[[], None]], timeout: float | None) -> bool:
    """Wait until `is_done()`. Return False after `timeout` seconds. `watchers` are called when it may have changed."""
    deadline = None if timeout is None else monotonic() + timeout
    wakeup = AsyncWakeup()
    watchers.append(wakeup.wake)
    try:
        while not is_done():
            left = SLICE if deadline is None else min(SLICE, deadline - monotonic())
            if left <= 0:
                return False
            await wakeup.wait(left)
        return True
    finally:
        watchers.remove(wakeup.wake)
