"""The package's public names and imports, other clients, and its logs."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import finx_streamer.server
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.program import run_program


def test_exports_the_public_names() -> None:
    """The public names are fixed."""
    expected = [
        "ExchangeMarket",
        "ExchangeStats",
        "JetStreamMarket",
        "LiveSource",
        "LocalServer",
        "LogStats",
        "Outlet",
        "ServerStats",
        "SimulatedMarket",
        "Source",
        "Tape",
        "Tick",
    ]
    assert finx_streamer.server.__all__ == expected


def test_import_error_names_the_missing_extra() -> None:
    """Without websockets, the ImportError says how to install it."""
    result = run_program("server/import_without_websockets")
    assert result.returncode == 1
    assert "ImportError: finx_streamer.server needs" in result.stderr
    assert 'pip install "finx-streamer[server]"' in result.stderr


def test_imports_little_of_the_client() -> None:
    """The server shares few modules with the client, so that codec bugs can't cancel out, and loads nothing heavy."""
    result = run_program("server/import_server_only", *finx_streamer.__path__)
    assert result.returncode == 0, result.stderr
    modules = set(result.stdout.split())
    ours = {name for name in modules if name.startswith("finx_streamer.")}
    assert {name for name in ours if ".server" not in name} == {
        "finx_streamer.clock",
        "finx_streamer.errors",
        "finx_streamer.metered",
        "finx_streamer.config",
        "finx_streamer.config.symbols",
    }
    assert not modules & {"websocket", "msgspec", "numpy", "pandas", "typer", "rich", "IPython"}


def test_websockets_command_line_client_shows_the_documented_message() -> None:
    """`python -m websockets` receives the documented messages."""
    with LocalServer(SimulatedMarket(rate=50.0), keys={"demo"}) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "websockets", f"{server.url}streaming/demo/BTC:USDC"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        server.wait_connected(timeout=30)
        server.wait_until(lambda stats: stats.ticks_sent >= 3)
        server.close_connections()
        output, _ = process.communicate(timeout=30)
    assert '{"results":"streaming","resultData":{"pair":"BTC:USDC","date":"' in output


def test_logs_contain_no_key(dial, caplog) -> None:
    """No log record contains a key, at any level."""
    caplog.set_level(logging.DEBUG)
    with LocalServer(SimulatedMarket(rate=100.0), keys={"secret-key-1"}) as server:
        dial(server, "streaming/secret-key-1/BTC:USDC").recv(timeout=10)
        with pytest.raises(Exception, match="401"):
            dial(server, "streaming/secret-key-2/BTC:USDC")
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("finx_streamer")]
    assert messages
    assert not any("secret" in message for message in messages)
    assert [record for record in caplog.records if record.name == "websockets.server"] == []
