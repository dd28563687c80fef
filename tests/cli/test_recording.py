"""`finx-streamer record`."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason='needs the extra: pip install "finx-streamer[archive]"')

from finx_streamer.archive import Archive
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.cli import TICKS, run, run_in_terminal, running, wait_until


def recorded(directory: Path) -> list[dict[str, object]]:
    """The ticks of an archive, as a tape has them."""
    ticks = [each for each in Archive(directory).entries(parse_price=str) if isinstance(each, dict)]
    return [{name: tick[name] for name in TICKS[0]} for tick in ticks]  # type: ignore[literal-required]


def has_ticks(directory: Path) -> bool:
    """Whether all ticks are on disk."""
    return (directory / "journal").is_dir() and len(recorded(directory)) == len(TICKS)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_everything_written(server: LocalServer, tmp_path: Path, signum: int) -> None:
    """The summary says what is there."""
    with running("record", "BTC:USDC", "--to", str(tmp_path / "ticks"), "--endpoint", server.url) as command:
        wait_until(lambda: has_ticks(tmp_path / "ticks"), "all ticks")
        command.send_signal(signum)
        code, out, err = command.finish()
    assert (code, out) == (0, "")
    assert re.fullmatch(
        r"finx-streamer: 3 ticks, [\d.]+ (bytes|KB) on disk \([\d.]+ bytes per tick\), 0 gaps, in [\d.]+ s; "
        r"0 reconnects, 0 errors\n",
        err,
    )
    assert recorded(tmp_path / "ticks") == TICKS
    kinds = [each.kind for each in Archive(tmp_path / "ticks").entries() if not isinstance(each, dict)]
    assert (kinds[0], kinds[-1]) == ("open", "close")
    assert run("verify", str(tmp_path / "ticks")).returncode == 0


def test_what_passed_between_two_runs_is_shown(tmp_path: Path) -> None:
    """The next recorder fills the pause, and says so."""
    with LocalServer(SimulatedMarket(rate=200.0, seed=1)) as busy:
        arguments = ("record", "BTC:USDC", "--to", str(tmp_path), "--endpoint", busy.url, "--for", "2")
        assert "back after" not in run(*arguments).stderr
        assert re.search(r"BTC:USDC: back after [\d.]+ s; [\d,]+ missed ticks? fetched\n", run(*arguments).stderr)


def test_it_ends_after_a_time(server: LocalServer, tmp_path: Path) -> None:
    """With --for."""
    result = run("record", "BTC:USDC", "--to", str(tmp_path), "--endpoint", server.url, "--for", "1")
    assert result.returncode == 0
    assert recorded(tmp_path) == TICKS


def test_a_terminal_shows_a_line(server: LocalServer, tmp_path: Path) -> None:
    """It is redrawn, and removed at the end."""
    shown, code = run_in_terminal(
        "record", "BTC:USDC", "--to", str(tmp_path), "--endpoint", server.url, ctrl_c_after="3 ticks"
    )
    assert code == 0
    assert "\r\x1b[K3 ticks" in shown
    assert "ticks/s" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["BTC:USDC", "--to", "/proc/x"], 1, "/proc/x: can't be written"),
        (["BTC:USDC", "--to", "ticks", "--for", "soon"], 2, "--for: 'soon' is not allowed"),
        (["BTC:USDC", "--to", "ticks", "--for", "0s"], 2, "--for: '0s' is not allowed"),
        (["bitcoin", "--to", "ticks"], 2, "not a symbol: 'bitcoin'"),
        (["BTC:USDC"], 2, "--to"),
    ],
)
def test_wrong_usage(server: LocalServer, arguments: list[str], code: int, message: str) -> None:
    """Nothing is created, and the message names the option."""
    result = run("record", *arguments, "--endpoint", server.url)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("ticks").exists()


def test_without_a_key(tmp_path: Path) -> None:
    """It says where the key comes from."""
    result = run("record", "BTC:USDC", "--to", str(tmp_path), FINX_API_KEY="")
    assert (result.returncode, "FINX_API_KEY" in result.stderr) == (2, True)


def test_a_second_recorder_is_refused(server: LocalServer, tmp_path: Path) -> None:
    """The message names the process that records."""
    arguments = ("record", "BTC:USDC", "--to", str(tmp_path), "--endpoint", server.url)
    with running(*arguments) as first:
        wait_until(lambda: has_ticks(tmp_path), "all ticks")
        result = run(*arguments)
        assert (result.returncode, f"pid {first.process.pid}" in result.stderr) == (2, True)
