"""`for tick in listener` and `async for tick in listener`: iterators that leave the run when they are dropped."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol, TypeVar

from .delivery.iteration import TickBuffer
from .run import HURRIED_STOP, Run
from .values import Tick

#: Seconds that the end of a loop waits for the end of the run.
END_TIMEOUT = 5.0

_B = TypeVar("_B", bound=TickBuffer)


class Host(Protocol):
    """What a loop needs from its listener."""

    def open_loop(self, kind: type[_B]) -> tuple[Run, _B]:
        """Start a run, or join the current one. Return it, and a buffer that gets its ticks."""

    def leave_loop(self, run: Run, buffer: TickBuffer) -> bool:
        """Stop the buffer. The last loop of a run that only loops have started ends the run; return whether it did."""

    def abandoned_run(self) -> Run | None:
        """Return a run that still has to end, because its last loop was left."""


class _Loop:
    """One loop. It opens at the first tick that is taken, and is left once.

    Args:
        host: The listener.
        timeout: Seconds without a tick until `TimeoutError`; None for no limit.
    """

    def __init__(self, host: Host, timeout: float | None) -> None:
        self._host = host
        self._timeout = timeout
        self._opened: tuple[Run, Any] | None = None
        self._left = False

    def _leave(self) -> Run | None:
        """Leave the run. Return it if that ends it."""
        if self._left or self._opened is None:
            self._left = True
            return None
        self._left = True
        run, buffer = self._opened
        return run if self._host.leave_loop(run, buffer) else None


class TickIterator(_Loop, Iterator[Tick]):
    """What `iter(listener)` returns."""

    def __next__(self) -> Tick:
        if self._left:
            raise StopIteration
        if self._opened is None:
            if (earlier := self._host.abandoned_run()) is not None:
                earlier.wait(END_TIMEOUT)
            self._opened = self._host.open_loop(TickBuffer)
        run, buffer = self._opened
        try:
            tick: Tick | None = buffer.take(self._timeout)
        except (KeyboardInterrupt, SystemExit):
            self.close(HURRIED_STOP)
            raise
        if tick is not None:
            return tick
        run.wait(END_TIMEOUT)
        self.close()
        run.raise_error()
        raise StopIteration

    def close(self, timeout: float = END_TIMEOUT) -> None:
        """Leave the loop, and wait up to `timeout` seconds if that ends the run."""
        run = self._leave()
        if run is not None:
            run.wait(timeout)

    def __del__(self) -> None:
        if self._opened is not None and self._opened[1].thread == threading.get_ident():
            self.close()
        else:
            # The garbage collector may run on any thread: don't make it wait.
            self._leave()


class AsyncTickIterator(_Loop, AsyncIterator[Tick]):
    """What `aiter(listener)` returns. Notices interrupts within a quarter of a second."""

    async def __anext__(self) -> Tick:
        if self._left:
            raise StopAsyncIteration
        if self._opened is None:
            # asyncio takes a tenth of the time to import this package, so it is imported late.
            from .delivery.async_iteration import AsyncTickBuffer

            if (earlier := self._host.abandoned_run()) is not None:
                await earlier.wait_async(END_TIMEOUT)
            self._opened = self._host.open_loop(AsyncTickBuffer)
        run, buffer = self._opened
        tick: Tick | None = await buffer.take_async(self._timeout)
        if tick is not None:
            return tick
        await run.wait_async(END_TIMEOUT)
        await self.aclose()
        run.raise_error()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leave the loop, and wait if that ends the run."""
        run = self._leave()
        if run is not None:
            await run.wait_async(END_TIMEOUT)

    def __del__(self) -> None:
        # Nothing can be awaited here. A later loop, or `start`, waits for the end of the run.
        self._leave()


class Ticks:
    """What `listener.ticks()` returns: `for` and `async for` iterate over it."""

    def __init__(self, host: Host, timeout: float | None) -> None:
        self._host = host
        self._timeout = timeout

    def __iter__(self) -> TickIterator:
        return TickIterator(self._host, self._timeout)

    def __aiter__(self) -> AsyncTickIterator:
        return AsyncTickIterator(self._host, self._timeout)
