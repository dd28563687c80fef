"""Connect to the addresses of a host as in RFC 8305, "Happy Eyeballs": the first one that answers wins."""

from __future__ import annotations

import itertools
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..clock import monotonic
from .attempt import Attempt
from .loop import LONGEST_WAIT

#: Seconds that an address gets before the next one is tried as well (RFC 8305, section 5).
HEAD_START = 0.25


class Address(NamedTuple):
    """An answer of `socket.getaddrinfo`."""

    family: int
    kind: int
    protocol: int
    name: str
    where: Any


def take_turns(addresses: Iterable[Address], first: int | None) -> list[Address]:
    """Order addresses as in RFC 8305, section 4: families in turn, each in the system's order.

    Args:
        addresses: The addresses, in the system's order.
        first: The family to start with; None for the system's choice.
    """
    by_family: dict[int, list[Address]] = {} if first is None else {first: []}
    for address in addresses:
        by_family.setdefault(address.family, []).append(address)
    rounds = itertools.zip_longest(*by_family.values())
    return [address for one in rounds for address in one if address is not None]


def race(addresses: list[Address], attempt: Attempt, remaining: Callable[[], float]) -> tuple[socket.socket, int]:
    """Return a TCP connection to the first address that answers, and its family. The others are closed.

    Args:
        addresses: The addresses, in the order in which to try them.
        attempt: Its `cancel` ends the race.
        remaining: Returns the seconds left, or raises `TimeoutError`.

    Raises:
        OSError: No address can be reached, or none answered in time.
    """
    runners = _Race(addresses, attempt)
    try:
        winner = runners.run(remaining)
        winner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        attempt.watch(winner)
    except BaseException:
        runners.close()
        raise
    runners.close(winner)
    return winner, winner.family


class _Race:
    """The connections in progress, and the addresses that weren't tried yet."""

    def __init__(self, addresses: list[Address], attempt: Attempt) -> None:
        self._untried = deque(addresses)
        self._attempt = attempt
        self._sockets: list[socket.socket] = []
        # Not epoll: that would take one more descriptor. Windows has no poll.
        self._selector: selectors.BaseSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._next_start = 0.0
        self._failure: OSError | None = None

    def run(self, remaining: Callable[[], float]) -> socket.socket:
        while self._untried or self._sockets:
            try:
                seconds = remaining()
            except TimeoutError as late:
                # That another address was refused says more.
                raise self._failure or late from None
            now = monotonic()
            if self._untried and (now >= self._next_start or not self._sockets):
                self._next_start = now + HEAD_START
                self._start(self._untried.popleft())
                continue
            if self._untried:
                seconds = min(seconds, self._next_start - now)
            for key, _ in self._selector.select(min(seconds, LONGEST_WAIT)):
                sock: socket.socket = key.data
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not error:
                    return sock
                self._selector.unregister(sock)
                self._drop(sock, OSError(error, os.strerror(error)))
        raise self._failure or OSError("the host has no address")

    def close(self, winner: socket.socket | None = None) -> None:
        """Close all sockets except the winner's."""
        self._selector.close()
        for sock in self._sockets:
            if sock is not winner:
                sock.close()

    def _start(self, address: Address) -> None:
        try:
            # Fails without IPv6 in the system: then only the IPv4 addresses can be reached.
            sock = socket.socket(address.family, address.kind, address.protocol)
        except OSError as error:
            self._fail(error)
            return
        self._sockets.append(sock)
        self._attempt.watch(*self._sockets)
        try:
            sock.setblocking(False)
            sock.connect(address.where)
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(sock, error)
            return
        self._selector.register(sock, selectors.EVENT_WRITE, sock)

    def _drop(self, sock: socket.socket, error: OSError) -> None:
        self._sockets.remove(sock)
        sock.close()
        self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failure = error
        # RFC 8305, section 5: the next address needn't wait any longer.
        self._next_start = 0.0
