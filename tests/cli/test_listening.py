"""`finx-streamer listen` in a pipe."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import zlib
from pathlib import Path

import pytest

from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support.cli import (
    COMMAND,
    HOSTILE_EXCHANGE,
    KEY,
    TICKS,
    TIMEOUT,
    environment,
    run,
    running,
    wait_until,
    wait_until_full,
)
from tests.support.peers import free_port


def test_a_line_has_the_fields_of_the_wire_and_ours(server: LocalServer) -> None:
    """Prices and times are printed exactly as they came."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "3")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{name: line[name] for name in TICKS[0]} for line in lines] == TICKS
    assert lines[0]["timestamp"] == "2022-07-02T15:30:55.817000+00:00"
    assert {type(line["received_ns"]) for line in lines} == {int}
    assert [line["backfilled"] for line in lines] == [False] * 3
    assert result.stdout.isascii()


def test_the_endpoint_can_be_repeated(server: LocalServer) -> None:
    """The servers are tried in turn, for live ticks and for history."""
    servers = ("--endpoint", f"ws://127.0.0.1:{free_port()}/", "--endpoint", server.url)
    result = run("listen", "BTC:USDC", *servers, "--limit", "3")
    assert (result.returncode, result.stderr.count("connection refused")) == (0, 1)
    assert len(result.stdout.splitlines()) == 3
    result = run("history", "BTC:USDC", *servers, "--start", "2022-07-02", "--end", "2022-07-03")
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, "", 3)


def test_a_line_is_written_at_once(server: LocalServer) -> None:
    """No tick waits for a buffer to fill."""
    with running("listen", "BTC:USDC", "--endpoint", server.url) as command:
        assert json.loads(command.stdout.readline())["price"] == "19200.84"
        assert command.process.poll() is None


def test_the_limit_is_exact(busy_server: LocalServer) -> None:
    """However many ticks arrive at once, exactly that number is written."""
    result = run("listen", "BTC:USDC", "ETH:USDC", "--endpoint", busy_server.url, "--limit", "1234")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1234)


def test_the_duration_ends_a_silent_stream(server: LocalServer) -> None:
    """The duration doesn't need a tick to be noticed, and its end prints a summary as Ctrl-C does."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--exchange", "NONE", "--duration", "0.3")
    assert (result.returncode, result.stdout) == (0, "")
    assert re.fullmatch(r"finx-streamer: 0 ticks in 0\.\d s; 0 reconnects, 0 dropped, 0 errors\n", result.stderr)


def test_a_duration_without_a_server_fails() -> None:
    """A script can tell it from a quiet market. The errors say why."""
    result = run("listen", "BTC:USDC", "--endpoint", f"ws://127.0.0.1:{free_port()}/", "--duration", "0.3")
    assert (result.returncode, result.stdout) == (1, "")
    assert "connection refused" in result.stderr
    assert "0 ticks in" in result.stderr


def test_the_summary_counts_what_was_written(busy_server: LocalServer) -> None:
    """Ticks that arrive after the duration are in neither."""
    result = run("listen", "BTC:USDC", "--endpoint", busy_server.url, "--duration", "0.5")
    lines = result.stdout.splitlines()
    assert {json.loads(line)["pair"] for line in lines} == {"BTC:USDC"}
    assert f"finx-streamer: {len(lines):,} ticks in " in result.stderr


def test_lines_for_people(server: LocalServer) -> None:
    """They have the time, pair, price and exchange, in columns."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "2", "--format", "line")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "2022-07-02 15:30:55.817Z  BTC:USDC             19200.84  BINANCE",
        "2022-07-02 15:30:55.900Z  BTC:USDC   21865.010000000002  FTX",
    ]


def written_ticks(data: bytes) -> list[dict[str, str]]:
    return [{name: line[name] for name in TICKS[0]} for line in map(json.loads, data.splitlines())]


@pytest.mark.parametrize("name", ["ticks.jsonl", "ticks.jsonl.gz"])
def test_writes_a_recording(server: LocalServer, tmp_path: Path, name: str) -> None:
    """`--output` replaces an old file, and the new one can be played as a tape."""
    file = tmp_path / name
    file.write_text("before")
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "3", "--output", str(file))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    data = file.read_bytes()
    assert written_ticks(gzip.decompress(data) if name.endswith(".gz") else data) == TICKS
    assert [tick for _, tick in Tape(file).play(lambda: 0.0)] == TICKS


@pytest.mark.parametrize("name", ["ticks.jsonl", "ticks.jsonl.gz"])
def test_a_recording_has_each_tick_before_the_end(server: LocalServer, tmp_path: Path, name: str) -> None:
    """Even a power cut loses no tick that was written, also with gzip."""
    file = tmp_path / name

    def read() -> bytes:
        data = file.read_bytes() if file.exists() else b""
        return zlib.decompressobj(wbits=31).decompress(data) if name.endswith(".gz") else data

    with running("listen", "BTC:USDC", "--endpoint", server.url, "--output", str(file)):
        wait_until(lambda: read().count(b"\n") == 3, "all ticks are in the file")
        assert written_ticks(read()) == TICKS


@pytest.mark.parametrize("name", ["ticks.csv", "ticks.csv.gz"])
def test_ctrl_c_completes_a_recording(busy_server: LocalServer, tmp_path: Path, name: str) -> None:
    """The file has exactly the ticks that the summary counts."""
    file = tmp_path / name
    options = ["--output", str(file), "--format", "csv"]
    with running("listen", "BTC:USDC", "--endpoint", busy_server.url, *options) as command:
        wait_until(lambda: file.exists() and file.stat().st_size > 10_000, "many ticks are in the file")
        command.send_signal()
        code, out, err = command.finish()
    text = (gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()).decode()
    assert (code, out) == (0, "")
    assert f"finx-streamer: {len(text.splitlines()) - 1:,} ticks in " in err
    assert text.endswith("\n")


def test_writes_a_recording_into_a_named_pipe(server: LocalServer, tmp_path: Path) -> None:
    """The pipe isn't replaced by a file."""
    output = tmp_path / "pipe"
    os.mkfifo(output)
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "3", "--output", str(output))
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert written_ticks(os.read(reader, 65_536)) == TICKS
    finally:
        os.close(reader)
    assert output.is_fifo()


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["BTC:USDC", "--output", "/dev/full"], 1, "No space left on device"),
        (["BTC:USDC", "--output", "/nowhere/at/all"], 1, "/nowhere/at/all: No such file"),
        (["BTC:USDC", "--output", "/"], 2, "--output /: is a directory; expected a file"),
        (["BTC:USDC", "--output", "x.jsonl", "--format", "table"], 2, "use json, csv or line"),
    ],
)
def test_a_recording_that_cannot_be_written_is_one_line(
    busy_server: LocalServer, arguments: list[str], code: int, hint: str
) -> None:
    """There is no traceback, and the command ends."""
    result = run("listen", *arguments, "--endpoint", busy_server.url)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)
    assert hint in result.stderr


def test_wrong_usage_keeps_an_old_recording(tmp_path: Path) -> None:
    """The file is emptied only once everything else is right."""
    file = tmp_path / "ticks.jsonl"
    file.write_text("before")
    assert run("listen", "btc-usdc", "--output", str(file)).returncode == 2
    assert file.read_text() == "before"


def test_shows_only_the_requested_exchanges(server: LocalServer) -> None:
    """`--exchange` can be repeated."""
    options = ["--exchange", "FTX", "--exchange", "BINANCE", "--limit", "2"]
    result = run("listen", "BTC:USDC", "--endpoint", server.url, *options)
    assert [json.loads(line)["exchange"] for line in result.stdout.splitlines()] == ["BINANCE", "FTX"]


def test_a_lost_connection_and_its_return_are_one_line_each() -> None:
    """Standard error reports both, and ticks go on."""
    with (
        LocalServer(SimulatedMarket(rate=100.0), keys={KEY}) as market,
        running("listen", "BTC:USDC", "--endpoint", market.url) as command,
    ):
        command.stdout.readline()
        market.drop_connections()
        lost = command.stderr.readline()
        assert lost.startswith("finx-streamer: BTC:USDC: ")
        assert "next attempt in" in lost
        back = r"finx-streamer: BTC:USDC: back after [\d.,]+ s; [\d,]+ missed ticks? fetched\n"
        assert re.fullmatch(back, command.stderr.readline())


@pytest.mark.parametrize("field", ["note", "error"])
def test_shortens_a_long_notice_or_error(server: LocalServer, field: str) -> None:
    """A server's text doesn't flood the terminal."""
    with running("listen", "BTC:USDC", "--endpoint", server.url) as command:
        server.wait_connected()
        server.send_message(json.dumps({field: "n" * 10_000}))
        line = command.stderr.readline()
    assert "nnnn" in line
    assert len(line) < 350


def test_sends_keep_alive_messages(server: LocalServer) -> None:
    """The answers aren't news, so they aren't printed."""
    with running("listen", "BTC:USDC", "--endpoint", server.url, "--keep-alive", "0.05") as command:
        wait_until(lambda: server.stats.calls >= 3, "three keepAlive messages have arrived")
        command.send_signal()
        _, _, err = command.finish()
    assert re.fullmatch(r"finx-streamer: \d ticks in .*\n", err)


@pytest.mark.parametrize(("prefix", "code"), [("streaming", 0), ("streamer", 0), ("elsewhere", 1)])
def test_the_prefix_is_part_of_the_path(server: LocalServer, prefix: str, code: int) -> None:
    """The server knows two; another one isn't found."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--prefix", prefix, "--limit", "1")
    assert result.returncode == code
    assert ("no such stream" in result.stderr) == (code == 1)


@pytest.mark.parametrize("command", [("listen", "BTC:USDC", "--limit", "1"), ("snap", "BTC:USDC")])
def test_another_machine_gets_the_key_in_clear_text_only_on_request(
    server: LocalServer, command: tuple[str, ...]
) -> None:
    """0.0.0.0 isn't a loopback address, but leads to this machine."""
    server.import_ticks(TICKS)
    endpoint = server.url.replace("127.0.0.1", "0.0.0.0")
    refused = run(*command, "--endpoint", endpoint)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "use wss://, or pass --allow-insecure if every hop" in refused.stderr
    result = run(*command, "--endpoint", endpoint, "--allow-insecure")
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, "", 1)


def test_csv_has_a_header_and_one_row_per_tick(server: LocalServer) -> None:
    """Rows have the same values as JSON lines. Control characters in an exchange's name are escaped."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--format", "csv", "--limit", "3")
    assert (result.returncode, result.stderr) == (0, "")
    header, *rows = csv.reader(io.StringIO(result.stdout))
    assert header == ["pair", "date", "time", "exchange", "price", "timestamp", "received_ns", "backfilled"]
    first = ["BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84", "2022-07-02T15:30:55.817000+00:00"]
    assert [*rows[0][:6], rows[0][7]] == [*first, "false"]
    assert rows[1][4] == "21865.010000000002"
    assert rows[2][3] == HOSTILE_EXCHANGE.replace("\x1b", r"\x1b").replace("\x07", r"\x07")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_summary(server: LocalServer, signum: signal.Signals) -> None:
    """Ctrl-C is the normal end of an endless command, and SIGTERM does the same."""
    with running("listen", "BTC:USDC", "--endpoint", server.url) as command:
        for _ in TICKS:
            command.stdout.readline()
        command.send_signal(signum)
        code, out, err = command.finish()
    assert (code, out) == (0, "")
    assert re.fullmatch(r"finx-streamer: 3 ticks in [\d.]+ s; 0 reconnects, 0 dropped, 0 errors\n", err)


def test_ctrl_c_works_while_the_pipe_is_full(busy_server: LocalServer) -> None:
    """A reader that stops holds up the ticks, but not the command."""
    with running("listen", "BTC:USDC", "--endpoint", busy_server.url) as command:
        wait_until_full(command.stdout.fileno())
        command.send_signal()
        # Don't read standard output first: that would let the writer continue.
        assert "ticks in" in command.stderr.readline()
        assert command.wait() == 0


@pytest.mark.parametrize("line_format", ["json", "csv"])
def test_a_closed_pipe_is_a_normal_end(busy_server: LocalServer, line_format: str) -> None:
    """`finx-streamer listen … | head -1` prints neither a traceback nor an error."""
    with running("listen", "BTC:USDC", "--endpoint", busy_server.url, "--format", line_format) as command:
        command.stdout.readline()
        command.stdout.close()
        assert command.wait() == 0
        assert command.stderr.read() == ""


def test_a_closed_pipe_is_noticed_in_a_quiet_market(server: LocalServer) -> None:
    """The command ends without another tick."""
    with running("listen", "BTC:USDC", "--endpoint", server.url) as command:
        for _ in TICKS:
            command.stdout.readline()
        command.stdout.close()
        assert command.wait() == 0


def test_a_full_disk_is_one_line(busy_server: LocalServer) -> None:
    """A failed write is an error with exit code 1, not a traceback."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "listen", "BTC:USDC", "--endpoint", busy_server.url],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            env=environment(),
            check=False,
        )
    assert (result.returncode, result.stderr) == (1, "finx-streamer: error: No space left on device\n")
