"""`--metrics-port` of the commands that run for long."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
pytest.importorskip("pyarrow", reason="the extra `archive` is not installed")

from finx_streamer.archive import ArchiveWriter
from finx_streamer.server import LocalServer
from tests.support.cli import KEY, TIMEOUT, Running, run, running, wait_until
from tests.support.program import run_program


def address_of(command: Running) -> str:
    """The address that the command prints first."""
    line = command.stderr.readline()
    address = line.removeprefix("finx-streamer: metrics: ").strip()
    assert address.startswith("http://127.0.0.1:"), line
    return address


def page_at(address: str) -> str:
    """The page, which must not have the key."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        text: str = answer.read().decode()
    assert KEY not in text
    return text


def test_a_listener(busy_server: LocalServer) -> None:
    """The page counts its ticks. The address is on standard error, so it isn't among the ticks."""
    with running("listen", "BTC:USDC", "--endpoint", busy_server.url, "--metrics-port", "0") as command:
        address = address_of(command)
        assert command.stdout.readline().startswith("{")
        assert re.search(r'^finx_listener_messages_total{.*,pair="BTC:USDC"} [1-9]', page_at(address), re.MULTILINE)
        command.send_signal()
        assert command.finish()[0] == 0


def test_a_recording(busy_server: LocalServer, tmp_path: Path) -> None:
    """The page shows the queue of its archive."""
    options = ["--to", str(tmp_path), "--endpoint", busy_server.url, "--metrics-port", "0"]
    with running("record", "BTC:USDC", *options) as command:
        address = address_of(command)
        wait_until(lambda: "finx_recorder_writable{" in page_at(address), "it records")
        command.send_signal()
        assert command.finish()[0] == 0


def test_a_server() -> None:
    """The page has what the server counts."""
    with running("serve", "--port", "0", "--metrics-port", "0") as command:
        command.stdout.readline()
        assert "finx_server_store_writable{" in page_at(address_of(command))
        command.send_signal()
        assert command.finish()[0] == 0


def test_a_replay(tmp_path: Path) -> None:
    """It counts what it replays."""
    with ArchiveWriter(tmp_path) as writer:
        writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])
    result = run("replay", str(tmp_path), "--metrics-port", "0", "--format", "line")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)
    assert result.stderr.startswith("finx-streamer: metrics: http://127.0.0.1:")


def test_a_taken_port(server: LocalServer) -> None:
    """Nothing starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("listen", "BTC:USDC", "--endpoint", server.url, "--metrics-port", port)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"finx-streamer: error: metrics: can't listen on 127.0.0.1:{port}: Address already in use; pass another port, "
        "or 0 for a free one\n"
    )


def test_without_the_extra(server: LocalServer) -> None:
    """The error says what to install."""
    result = run_program(
        "command_without", "prometheus_client", "listen", "BTC:USDC", "--endpoint", server.url, "--metrics-port", "0",
        FINX_API_KEY=KEY,
    )  # fmt: skip
    assert result.returncode == 2
    assert 'pip install "finx-streamer[metrics]"' in result.stderr
