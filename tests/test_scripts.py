"""Scripts with a listener, each in its own process: how they end, Ctrl-C, signal handlers and forks."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.peers import Peer, stay, tick
from tests.support.program import Program, run_program

#: The bound for fast operations, in seconds, on a busy machine.
AT_ONCE = 4.0


@pytest.fixture
def market() -> Iterator[LocalServer]:
    """A server whose ticks don't end."""
    with LocalServer(SimulatedMarket(["BTC:USDC"], rate=200.0, seed=1), keys={"demo"}) as server:
        yield server


def time_to_end(program: Program, *, interrupt: bool) -> tuple[int, str, str, float]:
    """Wait for a program's first tick and for its end. Return its code, output and errors, and the seconds between."""
    assert program.read_line() == "FLOWS"
    started = time.monotonic()
    if interrupt:
        program.interrupt()
    code, output, errors = program.wait()
    return code, output, errors, time.monotonic() - started


CTRL_C = ["join", "start_and_join", "inline", "loop", "loop_in_with", "join_in_with", "sleep_in_with"]


@pytest.mark.parametrize("name", CTRL_C)
def test_ctrl_c_ends_a_script(market: LocalServer, name: str) -> None:
    """Ctrl-C raises KeyboardInterrupt in the main thread at once, and nothing else is printed."""
    with Program("ctrl_c", name, market.url) as program:
        code, _, errors, seconds = time_to_end(program, interrupt=True)
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert "Exception" not in errors
    assert seconds < AT_ONCE


@pytest.mark.parametrize("name", ["join", "loop", "loop_in_with", "join_in_with", "sleep_in_with"])
def test_ctrl_c_ends_a_script_with_a_stuck_callback(market: LocalServer, name: str) -> None:
    """A callback that never returns doesn't keep a script alive. The script may say which ticks it didn't get."""
    with Program("ctrl_c", name, market.url, "stuck") as program:
        code, _, errors, seconds = time_to_end(program, interrupt=True)
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert "\nKeyboardInterrupt\n" in errors
    assert seconds < AT_ONCE


@pytest.mark.parametrize("name", ["stopped", "left_loop", "sys_exit_in_with", "stuck_callback", "stop_in_callback"])
def test_a_script_exits_at_its_end(market: LocalServer, name: str) -> None:
    """A script exits promptly, in any state of the listener. It may say that ticks were dropped, or a callback hung."""
    with Program("endings", name, market.url) as program:
        code, output, errors, seconds = time_to_end(program, interrupt=False)
    assert (code, output) == (0, "")
    assert [line for line in errors.splitlines() if "dropped" not in line] == []
    assert seconds < AT_ONCE


def test_a_signal_handler_can_stop_the_listener(market: LocalServer) -> None:
    """stop() in a SIGINT handler ends the loop and join() in the main thread, and the script continues."""
    with Program("ctrl_c", "signal_handler", market.url) as program:
        code, output, errors, seconds = time_to_end(program, interrupt=True)
    assert (code, output, errors) == (0, "ended True\n", "")
    assert seconds < AT_ONCE


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since Python 3.12, a fork with threads warns")
@pytest.mark.parametrize(("name", "output"), [("use_in_child", "4\n"), ("leave_loop_in_child", "0\n")])
def test_a_forked_child_does_not_hang(name: str, output: str) -> None:
    """In a child, which has no listener threads, calls raise errors, stop() returns, and a loop ends at once."""
    with Peer(stay(tick(1))) as peer, Program("forks", name, peer.url) as program:
        assert time_to_end(program, interrupt=False)[:3] == (0, output, "")


def test_a_script_without_a_network_says_so() -> None:
    """Without `on_error` and logging, errors appear on standard error, at counts 1, 10, 100 …, and say what to do."""
    run = run_program("no_network", "listen")
    assert run.stdout == "12\n"
    lines = run.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("BTC:USDC: 127.0.0.1:9: connection refused; check that a server runs") for line in lines)
    assert "(10 times so far)" in lines[1]


def test_a_script_whose_logging_config_disables_our_logger_hears_once() -> None:
    """As `logging.config.dictConfig` does by default."""
    run = run_program("no_network", "disable_and_listen")
    assert run.stdout == "12\n"
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("finx_streamer: BTC:USDC: 127.0.0.1:9: connection refused")
    assert "disable_existing_loggers=False" in run.stderr
