"""The package's doors, and what it shares with others."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import finx_streamer.server
from finx_streamer.server import LocalServer, SimulatedMarket


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)


def test_what_is_exported() -> None:
    """The public names are these."""
    expected = ["LocalServer", "ServerStats", "SimulatedMarket", "Source", "Tape", "Tick"]
    assert expected == finx_streamer.server.__all__


def test_without_websockets_the_way_to_get_it_is_told() -> None:
    """The ImportError names the extra."""
    result = run("import sys; sys.modules['websockets'] = None; import finx_streamer.server")
    assert result.returncode == 1
    assert "ImportError: finx_streamer.server needs" in result.stderr
    assert 'pip install "finx-streamer[server]"' in result.stderr


def modules_of_the_server_alone() -> set[str]:
    """What importing the server imports, less what the package itself does."""
    result = run(
        "import sys, types\n"
        "sys.modules['finx_streamer'] = package = types.ModuleType('finx_streamer')\n"
        f"package.__path__ = {list(finx_streamer.__path__)!r}\n"
        "import finx_streamer.server\n"
        "print(*sys.modules)"
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_what_the_server_imports() -> None:
    """It shares two modules with the client, since a codec bug must not cancel out, and loads nothing heavy."""
    modules = modules_of_the_server_alone()
    ours = {name for name in modules if name.startswith("finx_streamer.")}
    assert {name for name in ours if ".server" not in name} == {
        "finx_streamer.errors",
        "finx_streamer.config",
        "finx_streamer.config.symbols",
    }
    assert not modules & {"websocket", "msgspec", "numpy", "pandas", "typer", "rich", "IPython"}


def test_the_librarys_own_command_line_client() -> None:
    """`python -m websockets` shows the documented messages."""
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


def test_no_key_is_logged(dial, caplog) -> None:
    """Whatever the level, no log record holds a key."""
    caplog.set_level(logging.DEBUG)
    with LocalServer(SimulatedMarket(rate=100.0), keys={"secret-key-1"}) as server:
        dial(server, "streaming/secret-key-1/BTC:USDC").recv(timeout=10)
        with pytest.raises(Exception, match="401"):
            dial(server, "streaming/secret-key-2/BTC:USDC")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("finx_streamer")]
    assert ours
    assert not any("secret" in text for text in ours)
    servers = [record for record in caplog.records if record.name == "websockets.server"]
    assert servers == []
