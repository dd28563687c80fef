"""The commands of the page "Beyond one machine" do what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from tests.support.nats import lasting_port, nats_program
from tests.support.program import ROOT, program_environment

PAGE = ROOT / "docs" / "scaling.md"
#: What each command prints, or logs, once it works.
READY = {"nats-server": "Server is ready", "serve": "serving:", "publish": "", "listen": ""}


def commands(folder: Path) -> list[list[str]]:
    """The commands of the page, with free ports and a folder of this test."""
    text = PAGE.read_text(encoding="utf-8")
    for port in set(re.findall(r"(?:127\.0\.0\.1:|--port )(\d{4})\b", text)):
        text = re.sub(rf"\b{port}\b", str(lasting_port()), text)
    return [
        shlex.split(line.replace("/tmp/nats", str(folder / "nats")))
        for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE)
    ]


@contextmanager
def running(command: list[str], port: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command of the page, and wait until it works."""
    program, *arguments = command
    if program == "nats-server":
        full = [nats_program(), "-a", "127.0.0.1", "-p", port, *arguments]
    else:
        full = [sys.executable, "-m", "finx_streamer", *arguments]
    environment = program_environment(FINX_API_KEY="demo", PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        full, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            ready = READY[program if program == "nats-server" else arguments[0]]
            assert process.stdout is not None
            if ready:
                assert any(ready in line for line in process.stdout)
            yield process
        finally:
            process.kill()


def test_commands(tmp_path: Path) -> None:
    """A listener goes on at the other gateway. Each tick comes once, in the order of the market."""
    *servers, listen = commands(tmp_path)
    port = re.search(r"nats://127\.0\.0\.1:(\d+)", " ".join(servers[2]))
    assert port is not None
    with ExitStack() as stack:
        processes = [stack.enter_context(running(command, port[1], tmp_path)) for command in servers]
        listener = stack.enter_context(running(listen, port[1], tmp_path))
        assert listener.stdout is not None
        lines = (line for line in listener.stdout if line.startswith("{"))
        ticks = [json.loads(next(lines)) for _ in range(20)]
        processes[-2].terminate()
        processes[2].kill()
        ticks += [json.loads(next(lines)) for _ in range(40)]
    times = [(tick["date"], tick["time"]) for tick in ticks]
    assert times == sorted(times)
    assert len(ticks) == 60
