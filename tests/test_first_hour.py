"""A new user's first hour: from a wheel in an empty environment to ticks, a chart, history, and an error understood.

Shows how many commands each step takes, and how many seconds: pytest -m slow -s tests/test_first_hour.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.installed import Installation, build_wheel
from tests.support.program import ROOT

#: Runs a cell as Jupyter does. Prints what it displays, once data for it has come.
CELL = """
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel()
try:
    client.execute(sys.argv[1])
    displayed, filled = [], False
    while not (displayed and filled):
        message = client.get_iopub_msg(timeout=60)
        content = message["content"]
        if message["msg_type"] == "error":
            sys.exit("\\n".join(content["traceback"]))
        if message["msg_type"] in ("display_data", "execute_result"):
            displayed += content["data"]
        filled |= message["msg_type"] == "comm_msg"
    print(*displayed)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
LIVE = """
from finx_streamer import StreamListener
StreamListener("BTC:USDC", "ETH:USDC", endpoint="demo").live("BTC:USDC")
"""


class Clock:
    """Counts the commands of each step, and measures its seconds."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._start = time.monotonic()
        self.rows: list[tuple[str, int, float]] = []
        self._commands = 0

    def run(self, program: str, *arguments: str) -> tuple[int, str]:
        """Run a command. Return its exit code, and what it prints."""
        self._commands += 1
        done = self._installation.run(program, *arguments)
        return done.returncode, " ".join(f"{done.stdout} {done.stderr}".split())

    def step(self, name: str, act: Callable[[], None]) -> None:
        """Do a step."""
        self._commands, start = 0, time.monotonic()
        act()
        self.rows.append((name, self._commands, time.monotonic() - start))

    def __str__(self) -> str:
        lines = [f"{name:<24}{commands:>3} commands {seconds:>7.1f} s" for name, commands, seconds in self.rows]
        total = f"{'in all':<24}{sum(row[1] for row in self.rows):>3} commands {time.monotonic() - self._start:>7.1f} s"
        return "\n".join([*lines, total])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_new_user_gets_through_the_first_hour(tmp_path: Path) -> None:
    """Each step works as the README says. The times are shown, and don't matter."""
    wheel = build_wheel(tmp_path)
    user = Installation(tmp_path)
    clock = Clock(user)

    def install() -> None:
        status, output = clock.run("pip", "install", f"{wheel}[all]")
        assert status == 0, output

    def first_tick() -> None:
        status, output = clock.run("finx-streamer", "demo", "--limit", "1", "--format", "json")
        assert status == 0, output
        assert '"price":' in output

    def first_program() -> None:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        code = readme.partition("```python\n")[2].partition("```")[0]
        (tmp_path / "ticks.py").write_text(code.rstrip() + "\n    break\n", encoding="utf-8")
        status, output = clock.run("python", "ticks.py")
        assert status == 0, output
        assert "USDC" in output

    def first_chart() -> None:
        (tmp_path / "cell.py").write_text(CELL, encoding="utf-8")
        status, output = clock.run("python", "cell.py", LIVE)
        assert status == 0, output
        assert "application/vnd.jupyter.widget-view+json" in output

    def first_history() -> None:
        wanted = ["BTC:USDC", "--start", "10m", "--format", "csv", "--output", "ticks.csv"]
        status, output = clock.run("finx-streamer", "history", *wanted, "--endpoint", "demo")
        assert status == 0, output
        assert len((tmp_path / "ticks.csv").read_text(encoding="utf-8").splitlines()) > 100

    def first_error() -> None:
        status, output = clock.run("finx-streamer", "listen", "BTC:USDC")
        assert (status, "no API key: set FINX_API_KEY" in output) == (2, True), output
        status, output = clock.run("finx-streamer", "doctor")
        assert (status, "try the endpoint demo without one" in output) == (1, True), output
        status, output = clock.run("finx-streamer", "doctor", "--endpoint", "demo")
        assert (status, "all is well" in output) == (0, True), output

    clock.step("installed", install)
    clock.step("first tick", first_tick)
    clock.step("first program", first_program)
    clock.step("first chart", first_chart)
    clock.step("first history", first_history)
    clock.step("first error understood", first_error)
    print(f"\n{clock}")
