"""Every code block in the README, the docs and the docstrings of the reference runs, against a local server."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest
import reference

from finx_streamer.archive import ArchiveWriter
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.installed import Installation, copy_of_source
from tests.support.program import ROOT, program_command, program_environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "reference").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: The block that shows the output of the program before it.
OUTPUT = re.compile(r"\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COOKBOOK = ROOT / "docs" / "cookbook.md"
#: The languages of blocks that show output.
SHOWN = {"text", ""}
#: Examples that don't end get Ctrl-C after this many lines.
ENOUGH_LINES = 3
#: The start of Python examples that don't end. All others run to their end, because Ctrl-C could meet the interpreter
#: while it exits.
ENDLESS = "for tick in StreamListener("
#: Where NATS is in Python examples.
NATS = "nats://127.0.0.1:4222"
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
    #: A sample of its output, in the block that follows. None: not shown.
    output: str | None = None

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
                shown = OUTPUT.match(text, fence.end()) if page == COOKBOOK else None
                output = None if shown is None else shown[1]
                found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, fence[2], output))
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
    variables = {"FINX_API_KEY": "a-demo-key", "PYTHONUNBUFFERED": "1", "COLUMNS": "120", "MPLBACKEND": "agg"}
    return program_environment(PATH=path, **variables)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """A web server that accepts alerts: its URL, and the JSON values that were posted."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/", posted
        listening.shutdown()
        thread.join()


@pytest.fixture
def postgres() -> Iterator[dict[str, str]]:
    """A PostgreSQL server on a socket in a new folder: the variables that libpq reads."""
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    programs = [
        shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *places])) for name in ("initdb", "pg_ctl")
    ]
    if None in programs:
        pytest.skip("PostgreSQL is not installed; on Debian, run apt install postgresql")
    initdb, pg_ctl = map(str, programs)
    # The server refuses to run as root. Paths of sockets must be short, and pytest's folders are closed to other users.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        data, log = f"{folder}/data", f"{folder}/log"
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
        control = [*as_user, pg_ctl, "-D", data, "-w", "-s"]
        subprocess.run([*as_user, initdb, "-D", data, "-A", "trust", "-U", "postgres"], check=True, cwd=folder)
        subprocess.run([*control, "-l", log, "-o", settings, "start"], check=True, cwd=folder)
        try:
            yield {"PGHOST": folder, "PGUSER": "postgres", "PGDATABASE": "postgres"}
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], check=True, cwd=folder)


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


def shape(line: str) -> str:
    """A pattern for lines that differ from this one in numbers, and in names of pairs and exchanges."""
    pattern = re.sub(r"[-+]?\d[\d.,]*", "0", " ".join(line.split()))
    pattern = re.escape(re.sub(r"\b[A-Z]{3,}\b", "X", pattern))
    return pattern.replace("0", r"[-+]?\d[\d.,]*").replace("X", r"[A-Z]{3,}")


def assert_alike(block: Block, output: str) -> None:
    """Each line of an output must look like a line that the documentation shows, and the other way round."""
    if block.output is None:
        return
    lines = [" ".join(line.split()) for line in output.splitlines()]
    shapes = {shape(line) for line in block.output.splitlines()}
    assert [line for line in lines if not any(re.fullmatch(shape, line) for shape in shapes)] == []
    assert [shape for shape in shapes if not any(re.fullmatch(shape, line) for line in lines)] == []


def test_outputs_are_compared() -> None:
    """Numbers and names may differ. Words may not, and no line may be missing."""
    block = Block(COOKBOOK, 1, "python", "", "BTC:USDC on FTX: +1.50 %\nend\n")
    assert_alike(block, "ETH:BTC on KRAKEN: -21,000 %\nETH:BTC on FTX: 1 %\nend\n")
    for wrong in ("BTC:USDC at FTX: 1 %\nend\n", "end\n", "BTC:USDC on FTX: nan %\nend\n", "BTC:USDC on FTX: 1 %\n"):
        with pytest.raises(AssertionError):
            assert_alike(block, wrong)


def test_recipes_are_short_and_show_their_output() -> None:
    """Each is a program of less than 30 lines, with an install line before it and its output after it."""
    recipes = [block for block in blocks("python") if block.page == COOKBOOK]
    assert {len(block.code.splitlines()) < 30 for block in recipes} == {True}
    assert [str(block) for block in recipes if not block.output] == []
    installed = [block for block in blocks("sh") if block.page == COOKBOOK and block.code.startswith("pip install")]
    assert len(installed) == len(recipes)


def test_the_readme_is_short() -> None:
    """It is for people who have little time."""
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120


def test_the_picture_of_the_terminal() -> None:
    """It is animated by CSS alone, loads nothing, and is small."""
    text = (ROOT / "docs" / "images" / "terminal.svg").read_text(encoding="utf-8")
    names = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert names == {"svg", "style", "rect", "circle", "path", "g", "text"}
    assert "@keyframes" in text
    assert "url(" not in text
    assert len(text) < 60_000


@pytest.mark.parametrize("block", [block for block in blocks("python") if SIGTERM not in block.code], ids=str)
def test_python_example(
    block: Block,
    server: LocalServer,
    environment: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Each Python example runs as written, to its end or until Ctrl-C, without an error."""
    posted: list[Any] = []
    if "WEBHOOK" in block.code:
        environment["WEBHOOK"], posted = request.getfixturevalue("webhook")
    if "psycopg" in block.code:
        environment |= request.getfixturevalue("postgres")
    code = block.code
    if NATS in code:
        code = code.replace(NATS, request.getfixturevalue("nats_server").url)
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    endless = ENDLESS in block.code
    enough = ENOUGH_LINES if endless else None
    status, output, errors = run(program_command("example", server.url, script), tmp_path, environment, enough)
    if endless and errors.rstrip().endswith("KeyboardInterrupt"):
        return
    assert status == 0, f"{block} ended with {status}:\n{output}\n{errors}"
    assert not endless, f"{block} should go on until Ctrl-C:\n{output}"
    assert "Traceback" not in errors, f"{block} shows an error:\n{errors}"
    assert_alike(block, output)
    if "WEBHOOK" in block.code:
        assert [alert["text"] for alert in posted] == [line.split(": status")[0] for line in output.splitlines()]


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
    assert_alike(block, output)


@pytest.mark.parametrize("unit", [block for block in blocks("text") if block.code.startswith("[Unit]")], ids=str)
def test_units(unit: Block, tmp_path: Path) -> None:
    """systemd knows all of their settings."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (tmp_path / "ticks.service").write_text(unit.code, encoding="utf-8")
    command = ["systemd-analyze", "verify", str(tmp_path / "ticks.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "ticks.service:" in done.stderr) == (0, False), done.stderr


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
    if " replay " in line:
        with ArchiveWriter(tmp_path / "ticks") as writer:
            writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])
    command = ["bash", "-c", f"set -o pipefail; {line}"] if "|" in line or ">" in line else shlex.split(line)
    # Ctrl-C could meet the interpreter while it exits.
    enough = None if "--limit" in line else ENOUGH_LINES
    status, output, errors = run(command, tmp_path, environment, enough)
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
    source, user = copy_of_source(tmp_path), Installation(tmp_path)
    requirements = shlex.split(line.split("#")[0])[2:]
    user.install(*[requirement.replace("finx-streamer", str(source)) for requirement in requirements])
    user.run("python", "-c", "import finx_streamer").check_returncode()
    if requirements == ["finx-streamer"]:
        listed = user.run("pip", "--disable-pip-version-check", "list", "--format=freeze").stdout
        names = {entry.split("==")[0].split(" @")[0].lower().replace("_", "-") for entry in listed.split("\n") if entry}
        assert names - {"pip", "setuptools", "wheel"} == {"finx-streamer", "websocket-client", "attrs"}
