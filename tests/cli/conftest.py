"""Servers for the commands."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support.cli import KEY, TICKS


@pytest.fixture(autouse=True, scope="package")
def ctrl_c_works() -> Iterator[None]:
    """Let commands hear Ctrl-C, even if pytest runs as a background job of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Plays three ticks to the first stream, then nothing."""
    with LocalServer(Tape(TICKS, speed=None), keys={KEY}) as server:
        yield server


@pytest.fixture
def busy_server() -> Iterator[LocalServer]:
    """Plays ticks without a pause."""
    with LocalServer(SimulatedMarket(rate=None), keys={KEY}) as server:
        yield server
