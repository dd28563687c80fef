"""`finx-streamer listen` in a pipe."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess

import pytest

from finx_streamer.server import LocalServer, SimulatedMarket
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
    """The duration doesn't need a tick to be noticed."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, "--exchange", "NONE", "--duration", "0.3")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


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
