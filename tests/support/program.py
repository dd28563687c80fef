"""Programs that run in their own process. Tests read their output line by line, and send them signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from tests.support.peers import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"


def program_command(name: str, *arguments: object, options: Iterable[str] = ()) -> list[str]:
    """The command that runs a program of tests/support/programs. `options` are the interpreter's."""
    return [sys.executable, *options, str(PROGRAMS / f"{name}.py"), *map(str, arguments)]


def program_environment(**variables: str) -> dict[str, str]:
    """This process's environment, without its API key, with more variables. Imports come from this checkout."""
    inherited = {name: value for name, value in os.environ.items() if name != "FINX_API_KEY"}
    return inherited | {"PYTHONPATH": str(ROOT)} | variables


def run_program(
    name: str, *arguments: object, options: Iterable[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        program_command(name, *arguments, options=options),
        env=program_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


class Program:
    """A running program. It's killed at the end of the `with` block, or when it takes too long."""

    def __init__(self, name: str, *arguments: object, options: Iterable[str] = ()) -> None:
        self.process = subprocess.Popen(
            program_command(name, *arguments, options=options),
            env=program_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._killer = threading.Timer(2 * PATIENCE, self.process.kill)

    def __enter__(self) -> Self:
        self._killer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._killer.cancel()
        self.process.kill()
        self.process.communicate()

    def interrupt(self) -> None:
        """Send Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def read_line(self) -> str:
        """The next line of its output. Fails with its error output if there is none."""
        assert self.process.stdout is not None
        line = b""
        # Byte by byte: `communicate` doesn't return what a buffered read has taken from the pipe.
        while not line.endswith(b"\n"):
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                assert self.process.stderr is not None
                raise AssertionError(self.process.stderr.read())
            line += byte
        return line.decode().rstrip("\n")

    def wait(self) -> tuple[int, str, str]:
        """Wait for its end. Return its exit code, the rest of its output, and its error output."""
        output, errors = self.process.communicate(timeout=2 * PATIENCE)
        return self.process.returncode, output, errors


class Restartable:
    """A command in a process of its own, which can be killed, stopped for a while and launched again.

    Args:
        name: Its name in messages.
        command: The command.
        log: The file for what it prints in all its lives.
        **variables: For its environment.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, **variables: str) -> None:
        self.name, self.command = name, [*command]
        self.process: subprocess.Popen[bytes] | None = None
        self._log, self._variables = log, variables

    @property
    def running(self) -> bool:
        """Whether the process lives, even if it's stopped."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def launch(self) -> None:
        """Start the process. It may not be ready yet."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=program_environment(**self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL. Does nothing if it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: for others, it looks like a partition of the network."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # The system stops it a little later.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
