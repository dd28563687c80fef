"""Every code block of the README and the docs is run, against a local server."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from finx_streamer.server import LocalServer, SimulatedMarket

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Blocks that hold what is printed, and nothing to run.
SHOWN = {"text", ""}
#: How much an example has to print before Ctrl-C ends it, where it would go on for ever.
ENOUGH_LINES = 3
#: How a Python example goes on for ever. All others come to an end, and are left to: Ctrl-C might meet the interpreter
#: in the midst of ending.
ENDLESS = "for tick in StreamListener("

#: What stands before each Python example: "production" is the local server, and files are in a folder of their own.
PRELUDE = """
import finx_streamer
finx_streamer.Endpoint.PRODUCTION = finx_streamer.Endpoint({url!r})
"""


@attrs.frozen
class Block:
    """A fenced code block and where it stands."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(language: str) -> list[Block]:
    """The blocks in a language, of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            if fence[1] == language:
                found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, fence[2]))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A market that never rests, and accepts any key."""
    with LocalServer(SimulatedMarket(rate=200.0, seed=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A child inherits an ignored SIGINT, and ignored it is where the tests run in a shell's background."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture
def environment(server: LocalServer, tmp_path: Path) -> dict[str, str]:
    """What an example finds around it: a key, and the commands of this installation."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"FINX_API_KEY": "a-demo-key", "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def run(command: list[str], cwd: Path, environment: dict[str, str], enough: int | None = None) -> tuple[int, str, str]:
    """Run a command to its end, or until it has printed enough lines: then it gets Ctrl-C."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
    reader.start()
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if len(lines) == enough:
                process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    return process.returncode, "".join(lines), "".join(errors)


def test_every_block_is_of_a_language_that_is_run_or_shown() -> None:
    """No code block escapes the tests by its language."""
    languages = {found[1] for page in PAGES for found in FENCE.finditer(page.read_text(encoding="utf-8"))}
    known = {"python", "sh"} | SHOWN
    assert set() == {language for language in languages - known if not language.startswith("{")}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_example(block: Block, server: LocalServer, environment: dict[str, str], tmp_path: Path) -> None:
    """Each Python example runs as it stands, to its end or until Ctrl-C, without an error."""
    script = tmp_path / "example.py"
    script.write_text(PRELUDE.format(url=server.url) + block.code, encoding="utf-8")
    endless = ENDLESS in block.code
    enough = ENOUGH_LINES if endless else None
    status, output, errors = run([sys.executable, str(script)], tmp_path, environment, enough)
    if endless and errors.rstrip().endswith("KeyboardInterrupt"):
        return
    assert status == 0, f"{block} ended with {status}:\n{output}\n{errors}"
    assert not endless, f"{block} should go on until Ctrl-C:\n{output}"
    assert "Traceback" not in errors, f"{block} shows an error:\n{errors}"


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (block, line)
        for block in blocks("sh")
        for line in block.code.splitlines()
        if line.startswith(("finx-streamer", "python -m"))
    ],
    ids=str,
)
def test_shell_example(
    block: Block, line: str, server: LocalServer, environment: dict[str, str], tmp_path: Path
) -> None:
    """Each command of the shell examples runs, its production server being the local one."""
    line = line.split("#")[0].strip()
    for command in (" listen ", " history ", " snap "):
        if command in line and "--endpoint" not in line:
            line = line.replace(command, f"{command}--endpoint {server.url} ", 1)
    (tmp_path / "ticks.jsonl").write_text(
        '{"pair":"BTC:USDC","date":"2022-07-02","time":"15:30:55.817Z","exchange":"BINANCE","price":"19200.84"}\n'
    )
    command = ["bash", "-c", f"set -o pipefail; {line}"] if "|" in line or ">" in line else shlex.split(line)
    status, output, errors = run(command, tmp_path, environment, ENOUGH_LINES)
    assert status in (0, 130, -signal.SIGINT), f"{block}: {line} ended with {status}:\n{output}\n{errors}"
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "line",
    sorted({line for b in blocks("sh") for line in b.code.splitlines() if line.startswith("pip install")}),
)
def test_install_example(line: str, tmp_path: Path) -> None:
    """Each install command works, with this checkout in the place of the package's name."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    requirement = shlex.split(line.split("#")[0])[2]
    target = requirement.replace("finx-streamer", str(ROOT))
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", target], check=True, cwd=tmp_path, capture_output=True)
    subprocess.run([str(home / "bin" / "python"), "-c", "import finx_streamer"], check=True, cwd=tmp_path)
    if requirement == "finx-streamer":
        listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
        names = {entry.split("==")[0].split(" @")[0].lower().replace("_", "-") for entry in listed.split("\n") if entry}
        assert {"finx-streamer", "websocket-client", "attrs"} == names - {"pip", "setuptools", "wheel"}
