"""`finx-streamer replay`: a recording in `listen`'s formats."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra `archive` is not installed")

from finx_streamer import AuthenticationError, Gap, State
from finx_streamer.archive import ArchiveWriter
from finx_streamer.archive.events import fields_of
from finx_streamer.values import Event
from tests.support.cli import TICKS, run, run_in_terminal


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """Ticks of two pairs, a filled gap and a fatal error."""
    path = tmp_path / "ticks"
    now = datetime(2022, 7, 2, tzinfo=UTC)
    with ArchiveWriter(path) as writer:
        for payload in (
            State.STREAMING,
            State.RECONNECTING,
            Gap("BTC:USDC", now, now, True, 0),
            AuthenticationError("the key was rejected"),
        ):
            kind, fields = fields_of(Event(payload)) or ("", {})
            writer.put_event(kind, fields, "BTC:USDC")
        for tick in [*TICKS, {**TICKS[0], "pair": "ETH:USDC"}]:
            writer.put_backfilled([tuple(tick[name] for name in ("pair", "date", "time", "exchange", "price"))])
    return str(path)


def test_a_recording_is_written_as_lines(recording: str) -> None:
    """Prices are as they were sent. A recorded error is shown, and is no failure."""
    done = run("replay", recording)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tick["price"] for tick in found] == [tick["price"] for tick in TICKS] + [TICKS[0]["price"]]
    assert "the key was rejected" in done.stderr
    assert "0 missed ticks fetched" in done.stderr
    assert "4 ticks in" in done.stderr


def test_a_terminal_has_a_table(recording: str) -> None:
    """It stays on the screen at the end of the archive."""
    shown, status = run_in_terminal("replay", recording, COLUMNS="140")
    assert status == 0
    assert "4 ticks" in shown
    assert "ETH:USDC" in shown


def test_pairs_times_and_limits(recording: str) -> None:
    """Each option chooses a part."""
    assert len(run("replay", recording, "ETH:USDC", "--format", "csv").stdout.splitlines()) == 2
    assert len(run("replay", recording, "--limit", "2", "--format", "line").stdout.splitlines()) == 2
    assert run("replay", recording, "--end", "1h").stdout == ""
    assert len(run("replay", recording, "--start", "1h", "--speed", "10", "--max-pause", "1").stdout.splitlines()) == 4


def test_wrong_usage(recording: str, tmp_path: Path) -> None:
    """One line says what is expected."""
    for arguments, text in (
        ((str(tmp_path),), "not an archive"),
        ((recording, "BTC-USDC"), "pair"),
        ((recording, "--speed", "0"), "--speed: "),
        ((recording, "--start", "1h", "--end", "2h"), "is before --start"),
        ((recording, "--start", "x"), "--start"),
    ):
        done = run("replay", *arguments)
        assert done.returncode == 2
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
