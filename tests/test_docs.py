"""Every code block in the README, the docs and the docstrings of the reference runs, against a local server."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import reference

from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.program import ROOT, program_command, program_environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "reference").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: The languages of blocks that show output.
SHOWN = {"text", ""}
#: Examples that don't end get Ctrl-C after this many lines.
ENOUGH_LINES = 3
#: The start of Python examples that don't end. All others run to their end, because Ctrl-C could meet the interpreter
#: while it exits.
ENDLESS = "for tick in StreamListener("
#: What Python examples have that end at SIGTERM.
SIGTERM = "signal.SIGTERM"
#: Runs a command as PID 1, as in a container.
AS_PID_1 = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


@attrs.frozen
class Block:
    """A fenced code block and its position."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(language: str) -> list[Block]:
    """All blocks in a language."""
    found = []
    for page in PAGES:
        # The reference is written from docstrings. The lines of these pages are those of the written text.
        text = reference.expand(page.read_text(encoding="utf-8"))
        for fence in FENCE.finditer(text):
            if fence[1] == language:
                found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, fence[2]))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server with a busy market that accepts any key."""
    with LocalServer(SimulatedMarket(rate=200.0, seed=1)) as running:
        yield running


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let child processes receive SIGINT. They inherit that it's ignored if the tests run in a shell's background."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture
def environment(server: LocalServer, tmp_path: Path) -> dict[str, str]:
    """The environment of an example: a key, and the commands of this installation."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return program_environment(FINX_API_KEY="a-demo-key", PATH=path, PYTHONUNBUFFERED="1", COLUMNS="120")


def run(
    command: list[str],
    cwd: Path,
    environment: dict[str, str],
    enough: int | None = None,
    end: Callable[[subprocess.Popen[str]], object] = lambda process: process.send_signal(signal.SIGINT),
) -> tuple[int, str, str]:
    """Run a command to its end, or end it, by default with Ctrl-C, when it has printed enough lines."""
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
                end(process)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    return process.returncode, "".join(lines), "".join(errors)


def test_every_block_has_a_known_language() -> None:
    """No code block escapes the tests because of its language."""
    languages = {found[1] for page in PAGES for found in FENCE.finditer(page.read_text(encoding="utf-8"))}
    known = {"python", "sh"} | SHOWN
    assert {language for language in languages - known if not language.startswith("{")} == set()


@pytest.mark.parametrize("block", [block for block in blocks("python") if SIGTERM not in block.code], ids=str)
def test_python_example(block: Block, server: LocalServer, environment: dict[str, str], tmp_path: Path) -> None:
    """Each Python example runs as written, to its end or until Ctrl-C, without an error."""
    script = tmp_path / "example.py"
    script.write_text(block.code, encoding="utf-8")
    endless = ENDLESS in block.code
    enough = ENOUGH_LINES if endless else None
    status, output, errors = run(program_command("example", server.url, script), tmp_path, environment, enough)
    if endless and errors.rstrip().endswith("KeyboardInterrupt"):
        return
    assert status == 0, f"{block} ended with {status}:\n{output}\n{errors}"
    assert not endless, f"{block} should go on until Ctrl-C:\n{output}"
    assert "Traceback" not in errors, f"{block} shows an error:\n{errors}"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("block", [block for block in blocks("python") if SIGTERM in block.code], ids=str)
@pytest.mark.parametrize("as_pid_1", [False, True])
def test_example_that_ends_at_sigterm(
    block: Block, as_pid_1: bool, server: LocalServer, environment: dict[str, str], tmp_path: Path
) -> None:
    """It ends at SIGTERM without an error, also as PID 1, for which the kernel ignores signals without a handler."""
    script = tmp_path / "example.py"
    script.write_text(block.code, encoding="utf-8")
    command = program_command("example", server.url, script)

    def terminate(process: subprocess.Popen[str]) -> None:
        if as_pid_1:
            # The only child of unshare.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
            os.kill(int(children), signal.SIGTERM)
        else:
            process.send_signal(signal.SIGTERM)

    if as_pid_1:
        if shutil.which("unshare") is None or subprocess.run([*AS_PID_1, "true"], check=False).returncode:
            pytest.skip("needs a user namespace")
        command = [*AS_PID_1, *command]
    status, output, errors = run(command, tmp_path, environment, ENOUGH_LINES, terminate)
    assert (status, errors) == (0, ""), output


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
    """Each command in the shell examples runs, with the local server in place of the production server."""
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
    """Each install command works, with a copy of this checkout in place of the package's name."""
    # Builds write into the source folder, so parallel ones need separate copies.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "finx_streamer", source / "finx_streamer")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    requirement = shlex.split(line.split("#")[0])[2]
    target = requirement.replace("finx-streamer", str(source))
    subprocess.run([*pip, "install", "--quiet", target], check=True, cwd=tmp_path, capture_output=True)
    subprocess.run([python, "-c", "import finx_streamer"], check=True, cwd=tmp_path)
    if requirement == "finx-streamer":
        listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
        names = {entry.split("==")[0].split(" @")[0].lower().replace("_", "-") for entry in listed.split("\n") if entry}
        assert names - {"pip", "setuptools", "wheel"} == {"finx-streamer", "websocket-client", "attrs"}
