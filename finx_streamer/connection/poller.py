"""Which sockets can be read or written now: asked of `epoll` itself where there is one, else through `selectors`.

`selectors` makes some objects for each event: at one tick an event, a tenth of the way from the socket to the callback.
"""

from __future__ import annotations

import select
import selectors
import sys
from typing import Protocol


class Poller(Protocol):
    """Watches file descriptors for `READ`, `WRITE` or both. Owned by one thread."""

    READ: int
    WRITE: int

    def register(self, fd: int, events: int, /) -> None: ...

    def modify(self, fd: int, events: int, /) -> None: ...

    def unregister(self, fd: int, /) -> None: ...

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait up to so many seconds, None for ever, for descriptors and what happened on each.

        An error, or the end of a connection, is neither `READ` nor `WRITE`, and a reason to try both.
        """

    def close(self) -> None: ...


class SelectorPoller:
    """For any system."""

    READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, events: int, /) -> None:
        self._selector.register(fd, events)

    def modify(self, fd: int, events: int, /) -> None:
        self._selector.modify(fd, events)

    def unregister(self, fd: int, /) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        return [(key.fd, events) for key, events in self._selector.select(timeout)]

    def close(self) -> None:
        self._selector.close()


if sys.platform == "linux":

    class EpollPoller:
        """For Linux."""

        READ, WRITE = select.EPOLLIN, select.EPOLLOUT

        def __init__(self) -> None:
            epoll = select.epoll()
            self.register, self.modify, self.unregister = epoll.register, epoll.modify, epoll.unregister
            self.poll, self.close = epoll.poll, epoll.close


def new_poller() -> Poller:
    """The quickest that the system has."""
    return EpollPoller() if sys.platform == "linux" else SelectorPoller()
