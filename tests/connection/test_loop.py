"""The pollers. Each reports the same events for the same sockets."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Iterator

import pytest

from finx_streamer.connection import loop as loop_module
from finx_streamer.connection.loop import Poller, new_poller
from tests.support.peers import PATIENCE


@pytest.fixture(params=["selectors", "the system's"])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    """Each of the pollers."""
    with contextlib.closing(Poller() if request.param == "selectors" else new_poller()) as one:
        yield one


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets: the watched one and its peer."""
    watched, peer = socket.socketpair()
    with watched, peer:
        yield watched, peer


def test_readable_sockets_are_reported(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """A socket is reported from the arrival of data until the data has been read."""
    watched, peer = pair
    poller.register(watched.fileno(), poller.READ)
    assert poller.poll(0.0) == []
    peer.send(b"x")
    assert poller.poll(PATIENCE) == [(watched.fileno(), poller.READ)]
    assert poller.poll(None) == [(watched.fileno(), poller.READ)]
    watched.recv(1)
    assert poller.poll(0.0) == []


def test_the_watched_events_can_be_changed(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """A socket can be watched for writing, for both events, and not at all."""
    watched, peer = pair
    peer.send(b"x")
    poller.register(watched.fileno(), poller.WRITE)
    assert poller.poll(PATIENCE) == [(watched.fileno(), poller.WRITE)]
    poller.modify(watched.fileno(), poller.READ | poller.WRITE)
    assert poller.poll(PATIENCE) == [(watched.fileno(), poller.READ | poller.WRITE)]
    poller.unregister(watched.fileno())
    assert poller.poll(0.0) == []


def test_the_end_of_a_connection_is_not_only_writable(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    """When the peer closes, the reported events make the loop read, whichever the system reports."""
    watched, peer = pair
    poller.register(watched.fileno(), poller.READ)
    peer.close()
    [(fd, events)] = poller.poll(PATIENCE)
    assert fd == watched.fileno()
    assert events & ~poller.WRITE


def test_new_poller_chooses_epoll_on_linux() -> None:
    """Where epoll is missing, it chooses the generic poller."""
    with contextlib.closing(new_poller()) as poller:
        assert type(poller) is getattr(loop_module, "EpollPoller", Poller)


def test_a_loop_that_never_starts_leaves_no_socket_open() -> None:
    """An interrupt can come between its creation and its start."""
    loop = loop_module.EventLoop("unused", lambda: None, lambda crash: None)
    ends = (loop._waker, loop._woken)
    del loop
    gc.collect()
    assert [end.fileno() for end in ends] == [-1, -1]
