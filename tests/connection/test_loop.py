"""The pollers: both tell the same of the same sockets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from finx_streamer.connection import loop as loop_module
from finx_streamer.connection.loop import Poller, new_poller

PATIENCE = 10.0


@pytest.fixture(params=["selectors", "the system's"])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    with contextlib.closing(Poller() if request.param == "selectors" else new_poller()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_what_can_be_read_is_told(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """Until it has been read, and not before there is something."""
    here, there = pair
    poller.register(here.fileno(), poller.READ)
    assert poller.poll(0.0) == []
    there.send(b"x")
    assert [(here.fileno(), poller.READ)] == poller.poll(PATIENCE) == poller.poll(None)
    here.recv(1)
    assert poller.poll(0.0) == []


def test_what_is_watched_can_be_changed(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """To writing, to both, and to nothing."""
    here, there = pair
    there.send(b"x")
    poller.register(here.fileno(), poller.WRITE)
    assert [(here.fileno(), poller.WRITE)] == poller.poll(PATIENCE)
    poller.modify(here.fileno(), poller.READ | poller.WRITE)
    assert [(here.fileno(), poller.READ | poller.WRITE)] == poller.poll(PATIENCE)
    poller.unregister(here.fileno())
    assert poller.poll(0.0) == []


def test_the_end_of_a_connection_is_a_reason_to_read(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """Whatever the system calls it, it is not merely a reason to write."""
    here, there = pair
    poller.register(here.fileno(), poller.READ)
    there.close()
    [(fd, events)] = poller.poll(PATIENCE)
    assert here.fileno() == fd
    assert events & ~poller.WRITE


def test_the_quickest_poller_is_taken() -> None:
    """On Linux it is epoll itself."""
    with contextlib.closing(new_poller()) as made:
        assert getattr(loop_module, "EpollPoller", Poller) is type(made)
