"""`finx-streamer history` and `snap`, as processes, against a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finx_streamer.server import LocalServer, SimulatedMarket
from tests.test_cli import COMMAND, HOSTILE, KEY, TIMEOUT, ended, environment, run, running, until

NOON = datetime(2022, 7, 2, 12, tzinfo=UTC)
FIELDS = ("pair", "date", "time", "exchange", "price")
TICKS = [
    {
        "pair": "BTC:USDC",
        "date": "2022-07-02",
        "time": f"{(NOON + timedelta(seconds=n)).time().isoformat()}.5Z",
        "exchange": HOSTILE if n == 3 else "BINANCE" if n % 2 else "FTX",
        "price": f"{n}.010000000000000002",
    }
    for n in range(1_500)
]
INTERVAL = ("--start", "2022-07-02", "--end", "2022-07-03")


@pytest.fixture(autouse=True, scope="module")
def interruptible() -> Iterator[None]:
    """Commands hear Ctrl-C even where this process, as a shell's background job, was started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A server that knows these ticks."""
    with LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={KEY}) as running:
        running.import_ticks(TICKS)
        yield running


def test_history_as_json_lines(server: LocalServer) -> None:
    """All of it, sorted, prices and times as they came, and nothing on stderr."""
    result = run("history", "BTC:USDC", *INTERVAL, "--endpoint", server.url)
    assert (0, "") == (result.returncode, result.stderr)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert TICKS == [{name: line[name] for name in FIELDS} for line in lines]
    assert all(line["backfilled"] is True for line in lines)


def test_history_as_csv_in_a_file(server: LocalServer, tmp_path: Path) -> None:
    """The file has a header and harmless cells; standard output has nothing."""
    output = tmp_path / "ticks.csv"
    result = run("history", "BTC:USDC", *INTERVAL, "--format", "csv", "--output", str(output), "--endpoint", server.url)
    assert (0, "", "") == (result.returncode, result.stdout, result.stderr)
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [tick["price"] for tick in TICKS] == [row["price"] for row in rows]
    assert rows[3]["exchange"].startswith("'=1+1")
    assert [output] == list(tmp_path.iterdir())


def test_history_of_an_exchange_and_an_hour(server: LocalServer) -> None:
    """The end is not included; times without an offset are in UTC."""
    interval = ("--start", "2022-07-02T12:00:01", "--end", "2022-07-02T12:00:08.500Z")
    result = run("history", "BTC:USDC", *interval, "--exchange", "FTX", "--endpoint", server.url)
    assert [2, 4, 6] == [int(float(json.loads(line)["price"])) for line in result.stdout.splitlines()]


def test_no_history_is_no_error(server: LocalServer) -> None:
    """Nothing is written, but for the header of a table."""
    interval = ("--start", "2022-07-03", "--end", "2022-07-04", "--endpoint", server.url)
    assert (0, "") == (lambda result: (result.returncode, result.stdout))(run("history", "BTC:USDC", *interval))
    assert 1 == run("history", "BTC:USDC", *interval, "--format", "csv").stdout.count("\n")


@pytest.mark.parametrize("format", ["json", "csv"])
def test_a_snap_is_one_line(server: LocalServer, format: str) -> None:
    """The last tick at or before the time."""
    result = run("snap", "BTC:USDC", "2022-07-02T12:00:05", "--format", format, "--endpoint", server.url)
    assert (0, "") == (result.returncode, result.stderr)
    assert "4.010000000000000002" in result.stdout.splitlines()[-1]
    assert "1499" in run("snap", "BTC:USDC", "--endpoint", server.url).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("history", "BTC-USDC", *INTERVAL), 2, "did you mean 'BTC:USDC'"),
        (("history", "BTC:USDC", "--start", "yesterday"), 2, "--start: 'yesterday'"),
        (("history", "BTC:USDC", "--start", "2022-07-03", "--end", "2022-07-02"), 2, "is before --start"),
        (("history", "BTC:USDC"), 2, "--start"),
        (("history", "BTC:USDC", *INTERVAL, "--format", "table"), 2, "table"),
        (("history", "BTC:USDC", *INTERVAL, "--output", "/nowhere/at/all"), 1, "/nowhere/at"),
        (("history", "XRP:USDC", *INTERVAL), 1, "XRP:USDC"),
        (("snap", "BTC:USDC", "1999-01-01"), 1, "no tick"),
        (("snap", "BTC:USDC", "noon"), 2, "AT: 'noon'"),
        (("snap", "BTC:USDC", "--endpoint", "ws://127.0.0.1:9/", "--api-key-file", "/nowhere"), 2, "/nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(server: LocalServer, arguments: tuple[str, ...], status: int, said: str) -> None:
    """Bad usage is 2, a failure 1; the key is not shown."""
    more = () if "--endpoint" in arguments else ("--endpoint", server.url)
    result = run(*arguments, *more)
    assert status == result.returncode, result.stderr
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert "" == result.stdout


def test_a_refused_key_is_a_failure(server: LocalServer) -> None:
    """With one line that says so."""
    result = run("snap", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="another-key-altogether")
    assert 1 == result.returncode
    assert "refused" in result.stderr
    assert "another-key" not in result.stderr


def test_a_key_from_a_file(server: LocalServer, tmp_path: Path) -> None:
    """As `listen` takes it."""
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    result = run("snap", "BTC:USDC", "--endpoint", server.url, "--api-key-file", str(file), FINX_API_KEY="")
    assert 0 == result.returncode


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_file(server: LocalServer, tmp_path: Path, signum: int) -> None:
    """What was there before is as it was: a file is complete, or it is not there."""
    output = tmp_path / "ticks.jsonl"
    output.write_text("before")
    server.stall_functions(None)
    with running("history", "BTC:USDC", *INTERVAL, "--output", str(output), "--endpoint", server.url) as process:
        until(lambda: len(list(tmp_path.iterdir())) == 2, "the file is begun")
        process.send_signal(signum)
        code, out, err = ended(process)
    server.resume()
    assert (130, "") == (code, out)
    assert "interrupted after 0 ticks" in err
    assert [output] == list(tmp_path.iterdir())
    assert "before" == output.read_text()


def test_a_closed_pipe_is_the_end(server: LocalServer) -> None:
    """`head` has enough, and nobody complains."""
    line = (
        f"set -o pipefail; {' '.join(COMMAND)} history BTC:USDC {' '.join(INTERVAL)} --endpoint {server.url} | head -1"
    )
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT, env=environment(), check=False
    )
    assert (0, "") == (result.returncode, result.stderr)
    assert "0.010000000000000002" == json.loads(result.stdout)["price"]


def test_a_bar_in_a_terminal(server: LocalServer, tmp_path: Path) -> None:
    """On standard error alone, and only where that is a terminal."""
    leader, follower = pty.openpty()
    command = [*COMMAND, "history", "BTC:USDC", *INTERVAL, "--output", str(tmp_path / "x"), "--endpoint", server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment())
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4_096):
            shown += chunk
    except OSError:
        pass  # the terminal's other end is closed
    finally:
        os.close(leader)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert (0, b"") == (process.returncode, out)
    assert b"BTC:USDC" in shown
