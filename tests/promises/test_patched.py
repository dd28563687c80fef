"""Processes that other packages have patched: frozen time, and gevent. All with the real packages."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import freezegun
import pytest
import time_machine

from finx_streamer import CallTimeout, ConnectionFailed, FunctionClient, clock
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PAIR, Caller, Peer, Seen, hang, raw_tick, stay, tick
from tests.support.program import run_program

MOMENT = datetime(2022, 7, 2, 15, 31, tzinfo=UTC)
Freeze = Callable[[], AbstractContextManager[Any]]


def by_freezegun() -> AbstractContextManager[Any]:
    """Freeze time by replacing the functions of the module `time`."""
    return freezegun.freeze_time(MOMENT)


def by_time_machine() -> AbstractContextManager[Any]:
    """Freeze time in C."""
    return time_machine.travel(MOMENT, tick=False)


frozen = pytest.mark.parametrize("freeze", [by_freezegun, by_time_machine])


@frozen
def test_ticks_and_calls_under_frozen_time(seen: Seen, freeze: Freeze) -> None:
    """A server, a listener and a call work, and the time of receipt is the frozen one."""
    with freeze():
        tape = Tape([raw_tick(number) for number in range(1, 4)], speed=None)
        with LocalServer(tape, keys={"demo"}) as server:
            with seen.listener(server.url):
                seen.wait_ticks(3)
            with FunctionClient("demo", server.url) as client:
                assert client.authenticate()
    assert [tick["received_ns"] for tick in seen.ticks] == [int(MOMENT.timestamp()) * 10**9] * 3
    assert seen.errors == []


@frozen
def test_a_paced_tape_plays_under_frozen_time(seen: Seen, freeze: Freeze) -> None:
    """The server waits between ticks by a clock that goes on."""
    raw = [raw_tick(number) | {"time": f"15:30:55.{number}00Z"} for number in (1, 2, 3)]
    with freeze(), LocalServer(Tape(raw, speed=10.0), keys={"demo"}) as server, seen.listener(server.url):
        seen.wait_ticks(1)
        server.wait_until(lambda stats: stats.finished, 20.0)


@frozen
def test_a_call_under_frozen_time_ends(freeze: Freeze) -> None:
    """A call that gets no answer times out."""

    def silent(caller: Caller) -> None:
        caller.welcome()
        caller.wait_until_left()

    with (
        freeze(),
        Peer(silent) as peer,
        FunctionClient("demo", peer.url, timeout=0.3) as client,
        pytest.raises(CallTimeout),
    ):
        client.tick_snap(PAIR)


@frozen
def test_connecting_under_frozen_time_ends(seen: Seen, freeze: Freeze) -> None:
    """An attempt that hangs times out, and the next one connects."""
    with freeze(), Peer(hang, stay(tick(1))) as peer, seen.listener(peer.url, connect_timeout=0.3):
        seen.wait_ticks(1)
    assert ["did not answer in time" in str(error) for error in seen.of_type(ConnectionFailed)] == [True]


@frozen
def test_the_clock_is_real_if_it_is_imported_under_frozen_time(freeze: Freeze) -> None:
    """A package that is imported within a test gets the same clock."""
    with freeze():
        before = clock.monotonic()
        imported = runpy.run_path(clock.__file__)["monotonic"]()
        assert before <= imported <= clock.monotonic()


def test_a_process_that_gevent_has_patched() -> None:
    """A listener and a call work without epoll, which gevent removes."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server:
        child = run_program("under_gevent", server.url)
    assert (child.stdout, child.stderr) == ("1.1\nTrue\n", "")
