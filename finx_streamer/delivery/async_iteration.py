"""`async for tick in listener`, and waiting for a listener's end in an event loop. No thread of its own.

A loop that awaits something which never comes does not always notice an interrupt: the signal may be taken by another
thread, while the loop sleeps on. So waits are in slices.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from queue import Empty

from ..values import Tick
from .iteration import TickBuffer

#: Seconds that a loop sleeps at a time.
SLICE = 0.25
#: After how many ticks that were there already the loop's other work gets its turn.
_TURN = 64


class LoopBell:
    """Wakes what waits in an event loop, from any thread. Made within the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._sleeper: asyncio.Future[None] | None = None

    def ring(self) -> None:
        # The loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    def silence(self) -> None:
        """What is to be got_tick is what comes from now on."""
        self._rung = False

    async def wait(self, seconds: float) -> None:
        """Until it rings, or for so long. (`asyncio.wait_for` may lose a cancellation up to Python 3.11.)"""
        if self._rung:
            return
        self._sleeper = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake)
        try:
            await self._sleeper
        finally:
            timer.cancel()
            self._sleeper = None

    def _wake(self) -> None:
        self._rung = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


class AsyncTickBuffer(TickBuffer):
    """One iteration's ticks, taken within an event loop."""

    def __init__(self, size: int, wait: bool, on_room: Callable[[], None]) -> None:
        super().__init__(size, wait, on_room)
        self._bell = LoopBell()
        self._sleeps = False
        self._turn = 0

    def __call__(self, tick: Tick) -> None:
        super().__call__(tick)
        if self._sleeps:
            self._sleeps = False
            self._bell.ring()

    def end(self) -> None:
        super().end()
        self._bell.ring()

    def close(self) -> None:
        super().close()
        self._bell.ring()

    async def take_async(self) -> Tick | None:
        """The next tick; None when there will be none."""
        self._turn += 1
        if self._turn % _TURN == 0:
            await asyncio.sleep(0)
        while True:
            if self._closed or (self._ended and self._ticks.empty()):
                return None
            try:
                tick = self._ticks.get_nowait()
            except Empty:
                await self._sleep()
                continue
            if tick is not None:
                self._taken()
                return tick

    async def _sleep(self) -> None:
        self._bell.silence()
        self._sleeps = True
        # Looked at once more: whoever puts after this sees that somebody sleeps.
        if self._ticks.empty() and not self._closed and not self._ended:
            await self._bell.wait(SLICE)
        self._sleeps = False


async def until(is_done: Callable[[], bool], bell: LoopBell, timeout: float | None) -> bool:
    """Wait until it is done; whoever does it rings the bell. False where it was not in time."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        bell.silence()
        if is_done():
            return True
        left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
        if left <= 0:
            return False
        await bell.wait(left)
