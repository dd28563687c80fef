"""Run `finx-streamer` as its users do: as a process, in a pipe or in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import IO

KEY = "a-key-that-is-hard-to-guess"
COMMAND = [sys.executable, "-m", "finx_streamer"]
#: Seconds after which a test fails.
TIMEOUT = 30.0
#: An exchange name that a spreadsheet would run as a formula, a terminal would obey and `rich` would style.
HOSTILE_EXCHANGE = '=1+1"\x1b]0;x\x07[b]'


def tick(pair: str, time: str, exchange: str, price: str) -> dict[str, str]:
    """Return a tick as a tape or an import has it."""
    return {"pair": pair, "date": "2022-07-02", "time": time, "exchange": exchange, "price": price}


#: What the fixture `server` plays.
TICKS = [
    tick("BTC:USDC", "15:30:55.817Z", "BINANCE", "19200.84"),
    tick("BTC:USDC", "15:30:55.9Z", "FTX", "21865.010000000002"),
    tick("BTC:USDC", "15:30:56Z", HOSTILE_EXCHANGE, "19200.80"),
]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, with the key, and without variables that change how terminals are used."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "FINX_API_KEY": KEY, "TERM": "xterm-256color", **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        encoding=variables.get("PYTHONIOENCODING", "utf-8"),
        timeout=TIMEOUT,
        env=environment(**variables),
        check=False,
        stdin=subprocess.DEVNULL,
    )


class Running:
    """The command while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.stdout: IO[str] = process.stdout
        self.stderr: IO[str] = process.stderr

    def send_signal(self, signum: int = signal.SIGINT) -> None:
        """Send a signal. The default is Ctrl-C."""
        self.process.send_signal(signum)

    def wait(self) -> int:
        """Return the exit code."""
        return self.process.wait(TIMEOUT)

    def finish(self) -> tuple[int, str, str]:
        """Return the exit code, and the rest of both outputs."""
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, err


@contextlib.contextmanager
def running(*arguments: str, **variables: str) -> Iterator[Running]:
    """Run the command for as long as the block lasts."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding=variables.get("PYTHONIOENCODING", "utf-8"),
        env=environment(**variables),
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


def run_in_terminal(*arguments: str, ctrl_c_after: str | None = None, **variables: str) -> tuple[str, int]:
    """Run the command in a terminal. Return everything that it wrote there, and its exit code.

    As soon as the terminal shows `ctrl_c_after`, Ctrl-C is sent.
    """
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (30, 120))
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=follower, stdout=follower, stderr=follower, env=environment(**variables)
    )
    os.close(follower)
    shown = b""
    try:
        while select.select([leader], [], [], TIMEOUT)[0]:
            piece = read_terminal(leader)
            if not piece:
                break
            shown += piece
            if ctrl_c_after is not None and ctrl_c_after.encode() in shown:
                process.send_signal(signal.SIGINT)
                ctrl_c_after = None
        return shown.decode(variables.get("PYTHONIOENCODING", "utf-8")), process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def read_terminal(leader: int) -> bytes:
    """Return what was written to a terminal. It is empty once no process has the terminal open."""
    with contextlib.suppress(OSError):  # raised by Linux for a terminal that is no longer open
        return os.read(leader, 65_536)
    return b""


def wait_until_full(pipe: int) -> None:
    """Make a pipe small, and wait until the command has filled it."""
    size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4_096)

    def unread() -> int:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)

    wait_until(lambda: unread() > size - 512, "the pipe is full")


def wait_until(condition: Callable[[], bool], description: str) -> None:
    """Poll for a condition that has no event."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"not within {TIMEOUT} s: {description}"
        time.sleep(0.01)
