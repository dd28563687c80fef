"""`finx-streamer history` and `snap`, as processes, against a real server."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import signal
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finx_streamer.server import LocalServer, SimulatedMarket
from tests.cli.test_commands import COMMAND, HOSTILE, KEY, TIMEOUT, _unread, ended, environment, run, running, until

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
TEN_SECONDS = ("--start", "2022-07-02T12:00", "--end", "2022-07-02T12:00:10")


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
    assert (result.returncode, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{name: line[name] for name in FIELDS} for line in lines] == TICKS
    assert all(line["backfilled"] is True for line in lines)


def test_history_as_csv_in_a_file(server: LocalServer, tmp_path: Path) -> None:
    """The file has a header and harmless cells; standard output has nothing."""
    output = tmp_path / "ticks.csv"
    result = run("history", "BTC:USDC", *INTERVAL, "--format", "csv", "--output", str(output), "--endpoint", server.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [tick["price"] for tick in TICKS] == [row["price"] for row in rows]
    assert rows[3]["exchange"].startswith("'=1+1")
    assert [output] == list(tmp_path.iterdir())


def test_history_of_an_exchange_and_an_hour(server: LocalServer) -> None:
    """The end is not included; times without an offset are in UTC."""
    interval = ("--start", "2022-07-02T12:00:01", "--end", "2022-07-02T12:00:08.500Z")
    result = run("history", "BTC:USDC", *interval, "--exchange", "FTX", "--endpoint", server.url)
    assert [int(float(json.loads(line)["price"])) for line in result.stdout.splitlines()] == [2, 4, 6]


def test_no_history_is_no_error(server: LocalServer) -> None:
    """Nothing is written, but for the header of a table."""
    interval = ("--start", "2022-07-03", "--end", "2022-07-04", "--endpoint", server.url)
    assert (lambda result: (result.returncode, result.stdout))(run("history", "BTC:USDC", *interval)) == (0, "")
    assert run("history", "BTC:USDC", *interval, "--format", "csv").stdout.count("\n") == 1


@pytest.mark.parametrize("format", ["json", "csv"])
def test_a_snap_is_one_line(server: LocalServer, format: str) -> None:
    """The last tick at or before the time."""
    result = run("snap", "BTC:USDC", "2022-07-02T12:00:05", "--format", format, "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
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
        (("history", "BTC:USDC", *INTERVAL, "--output", "/"), 2, "--output /: it is a directory; expected a file"),
        (("history", "BTC:USDC", *INTERVAL, "--output", ""), 2, "it is a directory"),
        (("history", "BTC:USDC", *INTERVAL, "--output", ".."), 2, "it is a directory"),
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
    assert result.stdout == ""


def test_a_fetch_that_fails_says_how_far_it_came(server: LocalServer, tmp_path: Path) -> None:
    """And that there is no file, for half a history would pass for a whole one."""
    many = {"pair": "BTC:USDC", "date": "2022-07-20", "time": "12:00:00.5Z", "exchange": "OKX", "price": "1"}
    server.import_ticks([many] * 1_001)
    file = tmp_path / "ticks.jsonl"
    options = ["--start", "2022-07-02", "--end", "2022-07-21", "--output", str(file)]
    result = run("history", "BTC:USDC", "--endpoint", server.url, *options)
    reason, end = result.stderr.splitlines()
    assert (result.returncode, file.exists()) == (1, False)
    assert "ticks within one millisecond" in reason
    assert f"finx-streamer: ended after {len(TICKS):,} ticks; {file} is not written" == end


def test_the_time_for_an_answer_is_an_option(server: LocalServer) -> None:
    """Of both commands."""
    server.stall_functions(None)
    for command in (("history", "BTC:USDC", *INTERVAL), ("snap", "BTC:USDC")):
        result = run(*command, "--endpoint", server.url, "--timeout", "0.5")
        assert result.returncode == 1
        assert "no answer within 0.5 s" in result.stderr


def test_a_refused_key_is_a_failure(server: LocalServer) -> None:
    """With one line that says so."""
    result = run("snap", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="another-key-altogether")
    assert result.returncode == 1
    assert "refused" in result.stderr
    assert "another-key" not in result.stderr


def test_a_key_from_a_file(server: LocalServer, tmp_path: Path) -> None:
    """As `listen` takes it."""
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    result = run("snap", "BTC:USDC", "--endpoint", server.url, "--api-key-file", str(file), FINX_API_KEY="")
    assert result.returncode == 0


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
    assert (code, out) == (130, "")
    assert "interrupted after 0 ticks" in err
    assert [output] == list(tmp_path.iterdir())
    assert output.read_text() == "before"


def test_a_file_keeps_its_mode_from_the_first_moment_on(server: LocalServer, tmp_path: Path) -> None:
    """Nobody may read the new ticks who might not read the old file."""
    output = tmp_path / "ticks.jsonl"
    output.write_text("before")
    output.chmod(0o600)
    arguments = ("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
    server.stall_functions(None)
    with running(*arguments):
        until(lambda: len(list(tmp_path.iterdir())) == 2, "the file is begun")
        assert {0o600} == {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    server.stall_functions(0)
    assert run(*arguments).returncode == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert len(output.read_text().splitlines()) == 10


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(server: LocalServer, tmp_path: Path, exists: bool) -> None:
    """The file that it leads to is written, as a shell's redirection would do it."""
    (tmp_path / "elsewhere").mkdir()
    output, target = tmp_path / "link", tmp_path / "elsewhere" / "ticks.jsonl"
    output.symlink_to(target)
    if exists:
        target.write_text("before")
    result = run("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert output.is_symlink()
    assert len(target.read_text().splitlines()) == 10
    assert [target] == list(target.parent.iterdir())


def test_a_long_name_is_a_name(server: LocalServer, tmp_path: Path) -> None:
    """What a file system takes is not too long for the file that comes before it."""
    output = tmp_path / ("n" * 250)
    result = run("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(output.read_text().splitlines()) == 10


def test_a_named_pipe_is_written_to(server: LocalServer, tmp_path: Path) -> None:
    """Whoever reads it gets the ticks, and it stays what it is."""
    output = tmp_path / "pipe"
    os.mkfifo(output)
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert len(os.read(reader, 65_536).splitlines()) == 10
    finally:
        os.close(reader)
    assert output.is_fifo()


def test_standard_output_by_its_name(server: LocalServer, tmp_path: Path) -> None:
    """A pipe is written to; a file that the shell appends to keeps what is in it."""
    arguments = ("history", "BTC:USDC", *TEN_SECONDS, "--output", "/proc/self/fd/1", "--endpoint", server.url)
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 10
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as file:
        subprocess.run([*COMMAND, *arguments], stdout=file, timeout=TIMEOUT, env=environment(), check=True)
    lines = log.read_text().splitlines()
    assert (lines[0], len(lines)) == ("before", 11)


@pytest.mark.parametrize("named", [True, False])
def test_ctrl_c_works_while_nobody_reads(server: LocalServer, tmp_path: Path, named: bool) -> None:
    """A pipe that is full holds up the ticks, and nothing else."""
    output = tmp_path / "pipe"
    os.mkfifo(output)
    more = ("--output", str(output)) if named else ()
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with running("history", "BTC:USDC", *INTERVAL, *more, "--endpoint", server.url) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            pipe = reader if named else process.stdout.fileno()
            size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4_096)
            until(lambda: _unread(pipe) > size - 512, "the pipe is full")
            process.send_signal(signal.SIGINT)
            assert "interrupted after" in process.stderr.readline()
            assert process.wait(TIMEOUT) == 130
    finally:
        os.close(reader)


def test_of_a_long_error_the_beginning_is_shown(server: LocalServer) -> None:
    """Nobody reads a hundred thousand characters in a line."""
    server.fail_functions(None, "m" * 100_000)
    result = run("snap", "BTC:USDC", "--endpoint", server.url)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "mmmm" in result.stderr
    assert len(result.stderr) < 350


def test_a_closed_pipe_is_the_end(server: LocalServer) -> None:
    """`head` has enough, and nobody complains."""
    line = (
        f"set -o pipefail; {' '.join(COMMAND)} history BTC:USDC {' '.join(INTERVAL)} --endpoint {server.url} | head -1"
    )
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT, env=environment(), check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["price"] == "0.010000000000000002"


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
    assert (process.returncode, out) == (0, b"")
    assert b"BTC:USDC" in shown
