"""`finx-streamer history` and `snap`."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import pty
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConfigurationError
from finx_streamer.cli.formats import JSON
from finx_streamer.cli.history import parse_time
from finx_streamer.cli.part_file import PartFile, Request
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from tests.support.calls import answer
from tests.support.cli import (
    COMMAND,
    HOSTILE_EXCHANGE,
    KEY,
    TIMEOUT,
    environment,
    read_terminal,
    run,
    running,
    tick,
    wait_until,
    wait_until_full,
)
from tests.support.peers import Peer, frame

NOON = datetime(2022, 7, 2, 12, tzinfo=UTC)


def exchange_of(number: int) -> str:
    return HOSTILE_EXCHANGE if number == 3 else "BINANCE" if number % 2 else "FTX"


TICKS = [
    tick(
        "BTC:USDC",
        f"{(NOON + timedelta(seconds=n)).time().isoformat()}.5Z",
        exchange_of(n),
        f"{n}.010000000000000002",
    )
    for n in range(1_500)
]
WHOLE_DAY = ("--start", "2022-07-02", "--end", "2022-07-03")
TEN_SECONDS = ("--start", "2022-07-02T12:00", "--end", "2022-07-02T12:00:10")


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Has the history of 1,500 ticks: two pages."""
    with LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={KEY}) as running:
        running.import_ticks(TICKS)
        yield running


def test_writes_history_as_json_lines(server: LocalServer) -> None:
    """All ticks are there, sorted, with prices and times as they came, and nothing on stderr."""
    result = run("history", "BTC:USDC", *WHOLE_DAY, "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{name: line[name] for name in TICKS[0]} for line in lines] == TICKS
    assert {line["backfilled"] for line in lines} == {True}


def test_writes_history_as_csv_into_a_file(server: LocalServer, tmp_path: Path) -> None:
    """The file has a header, and exchanges as they came; standard output stays empty."""
    output = tmp_path / "ticks.csv"
    options = ["--format", "csv", "--output", str(output)]
    result = run("history", "BTC:USDC", *WHOLE_DAY, *options, "--endpoint", server.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["price"] for row in rows] == [tick["price"] for tick in TICKS]
    assert rows[3]["exchange"].startswith("=1+1")
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("name", ["ticks.jsonl.gz", "TICKS.JSONL.GZ"])
def test_a_name_ending_in_gz_is_written_with_gzip(server: LocalServer, tmp_path: Path, name: str) -> None:
    """A link's own name decides, and the result can be played as a tape."""
    output, target = tmp_path / name, tmp_path / "target"
    output.symlink_to(target)
    result = run("history", "BTC:USDC", *WHOLE_DAY, "--output", str(output), "--endpoint", server.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    lines = [json.loads(line) for line in gzip.decompress(target.read_bytes()).splitlines()]
    assert [{field: line[field] for field in TICKS[0]} for line in lines] == TICKS
    assert [tick for _, tick in Tape(output).play(lambda: 0.0)] == TICKS


def test_a_bad_tick_is_left_out_and_counted() -> None:
    """The others are written, and standard error says so."""
    sent = json.dumps({"0": TICKS[0], "1": {**TICKS[1], "price": "NaN"}, "2": TICKS[2]})
    with Peer(answer(lambda request: frame(sent))) as peer:
        result = run("history", "BTC:USDC", *TEN_SECONDS, "--endpoint", peer.url)
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 2)
    assert "price 'NaN' is not a decimal number" in result.stderr
    assert "finx-streamer: left out 1 tick that can't be read" in result.stderr.splitlines()


def test_selects_an_exchange_and_an_interval(server: LocalServer) -> None:
    """The end isn't included; times without an offset are in UTC."""
    interval = ("--start", "2022-07-02T12:00:01", "--end", "2022-07-02T12:00:08.500Z")
    result = run("history", "BTC:USDC", *interval, "--exchange", "FTX", "--endpoint", server.url)
    assert [int(float(json.loads(line)["price"])) for line in result.stdout.splitlines()] == [2, 4, 6]


@pytest.mark.parametrize(("line_format", "lines"), [("json", 0), ("csv", 1)])
def test_an_interval_without_ticks_is_no_error(server: LocalServer, line_format: str, lines: int) -> None:
    """Only the header of a table is written."""
    interval = ("--start", "2022-07-03", "--end", "2022-07-04")
    result = run("history", "BTC:USDC", *interval, "--format", line_format, "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == lines


@pytest.mark.parametrize("line_format", ["json", "csv"])
def test_writes_a_snap(server: LocalServer, line_format: str) -> None:
    """The line is the last tick at or before the time."""
    result = run("snap", "BTC:USDC", "2022-07-02T12:00:05", "--format", line_format, "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert "4.010000000000000002" in result.stdout.splitlines()[-1]


def test_a_snap_without_a_time_is_the_last_tick(server: LocalServer) -> None:
    """The default time is now."""
    assert json.loads(run("snap", "BTC:USDC", "--endpoint", server.url).stdout)["price"] == TICKS[-1]["price"]


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("history", "BTC-USDC", *WHOLE_DAY), 2, "did you mean 'BTC:USDC'"),
        (("history", "BTC:USDC", "--start", "tomorrow"), 2, "--start: 'tomorrow' is not allowed; expected a time"),
        (("history", "BTC:USDC", "--start", "9999999d"), 2, "a time from 1970 on"),
        (("history", "BTC:USDC", "--start", "1h", "--end", "2h"), 2, "is before --start"),
        (("history", "BTC:USDC", "--start", "1066-10-14"), 2, "a time from 1970 on, such as 2022-07-02"),
        (("history", "BTC:USDC", "--start", "2022-07-03", "--end", "2022-07-02"), 2, "is before --start"),
        (("history", "BTC:USDC"), 2, "--start"),
        (("history", "BTC:USDC", *WHOLE_DAY, "--format", "table"), 2, "table"),
        (("history", "BTC:USDC", *WHOLE_DAY, "--output", "/nowhere/at/all"), 1, "/nowhere/at/all: No such file"),
        (("history", "BTC:USDC", *WHOLE_DAY, "--output", "/"), 2, "--output /: is a directory; expected a file"),
        (("history", "BTC:USDC", *WHOLE_DAY, "--output", ""), 2, "is a directory"),
        (("history", "BTC:USDC", *WHOLE_DAY, "--output", ".."), 2, "is a directory"),
        (("history", "XRP:USDC", *WHOLE_DAY), 1, "XRP:USDC"),
        (("snap", "BTC:USDC", "1999-01-01"), 1, "no tick"),
        (("snap", "BTC:USDC", "noon"), 2, "TIME: 'noon'"),
        (("snap", "BTC:USDC", "--endpoint", "ws://127.0.0.1:9/", "--api-key-file", "/nowhere"), 2, "/nowhere"),
    ],
)
def test_an_error_has_an_exit_code_and_no_traceback(
    server: LocalServer, arguments: tuple[str, ...], code: int, hint: str
) -> None:
    """The exit code is 2 for wrong usage and 1 for a failure; the key isn't shown."""
    endpoint = () if "--endpoint" in arguments else ("--endpoint", server.url)
    result = run(*arguments, *endpoint)
    assert result.returncode == code, result.stderr
    assert hint in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2022-07-02T12:00:00"),
        ("today", "2022-07-02T00:00:00"),
        ("yesterday", "2022-07-01T00:00:00"),
        (" Yesterday ", "2022-07-01T00:00:00"),
        ("90s", "2022-07-02T11:58:30"),
        ("15m", "2022-07-02T11:45:00"),
        ("15min", "2022-07-02T11:45:00"),
        ("1h", "2022-07-02T11:00:00"),
        ("1.5h", "2022-07-02T10:30:00"),
        ("2d", "2022-06-30T12:00:00"),
        ("1w", "2022-06-25T12:00:00"),
        ("2022-07-01", "2022-07-01T00:00:00"),
        ("2022-07-01T02:00+02:00", "2022-07-01T00:00:00"),
    ],
)
def test_times_can_be_relative(text: str, expected: str) -> None:
    """They count from now; days begin at midnight in UTC, like FinX's dates."""
    assert parse_time("--start", text, NOON) == datetime.fromisoformat(f"{expected}+00:00")


@given(st.text() | st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,3})?(s|m|min|h|d|w)", fullmatch=True))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    """The result is in the range that FinX has; anything else is our own error."""
    with contextlib.suppress(ConfigurationError):
        found = parse_time("--start", text, NOON)
        assert datetime(1970, 1, 1, tzinfo=UTC) <= found < datetime(9999, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("command", [("history", "--start", "1h"), ("history", "--start", "today"), ("snap",)])
def test_prints_lines_for_people(command: tuple[str, ...]) -> None:
    """Every format is available for past ticks, too."""
    moment = datetime.now(UTC).replace(microsecond=0)
    past = tick("BTC:USDC", f"{moment.time().isoformat()}Z", "BINANCE", "1.5") | {"date": moment.date().isoformat()}
    with LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={KEY}) as server:
        server.import_ticks([past])
        name, *options = command
        result = run(name, "BTC:USDC", *options, "--format", "line", "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \S+Z +BTC:USDC +1\.5  BINANCE\n", result.stdout)


#: Too many ticks in one millisecond, which ends a fetch with an error.
CROWD = [tick("BTC:USDC", "12:00:00.5Z", "OKX", "1") | {"date": "2022-07-20"}] * 1_001
LONG = ("--start", "2022-07-02", "--end", "2022-07-21")


def test_a_failed_fetch_keeps_its_ticks(server: LocalServer, tmp_path: Path) -> None:
    """Half a history could be mistaken for a whole one, so it has another name."""
    server.import_ticks(CROWD)
    file = tmp_path / "ticks.jsonl"
    result = run("history", "BTC:USDC", "--endpoint", server.url, *LONG, "--output", str(file))
    reason, progress = result.stderr.splitlines()
    assert (result.returncode, file.exists()) == (1, False)
    assert "ticks within one millisecond" in reason
    end = f"kept in {file}.part; repeat the command with --resume to continue"
    assert progress == f"finx-streamer: failed after {len(TICKS):,} ticks, {end}"
    assert len((tmp_path / "ticks.jsonl.part").read_text().splitlines()) == len(TICKS)


def ticks_of(file: Path) -> list[str]:
    """The lines of a file, without what differs between runs."""
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    return sorted(re.sub(r'"received_ns":\d+|,\d{19},', "", line) for line in text.splitlines())


@pytest.fixture
def failed(server: LocalServer, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Returns the command of a run that failed after `TICKS` and ten ticks of the same time, ready to be repeated."""
    same = [tick("BTC:USDC", "13:00:00Z", "OKX", str(price)) for price in range(10)]
    server.import_ticks(same)
    with LocalServer(SimulatedMarket(rate=0.001, seed=1), keys={KEY}) as faulty:
        faulty.import_ticks([*TICKS, *same, *CROWD])

        def fail(name: str, *options: str) -> list[str]:
            command = ["history", "BTC:USDC", *LONG, "--output", str(tmp_path / name), *options]
            assert run(*command, "--endpoint", faulty.url).returncode == 1
            return [*command, "--endpoint", server.url]

        yield fail


@pytest.mark.parametrize(
    ("name", "line_format"), [("a.jsonl", "json"), ("a.csv", "csv"), ("a.jsonl.gz", "json"), ("a.csv.gz", "csv")]
)
@pytest.mark.parametrize("lost", [0, 700, 10**9])
def test_an_interrupted_fetch_is_continued(
    failed: Callable[..., list[str]], tmp_path: Path, name: str, line_format: str, lost: int
) -> None:
    """The file equals that of an uninterrupted run, even if a crash cut the part in the middle of a line."""
    command = failed(name, "--format", line_format)
    part = tmp_path / f"{name}.part"
    content = part.read_bytes()
    part.write_bytes(content[: max(0, len(content) - lost)])
    assert run(*command, "--resume").stderr == ""
    resumed = ticks_of(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert run(*command).returncode == 0
    assert resumed == ticks_of(tmp_path / name)
    assert len(resumed) == len(TICKS) + 10 + (line_format == "csv")


def test_a_continued_fetch_requests_only_the_rest(
    server: LocalServer, failed: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The ticks of the first run aren't fetched again."""
    command = failed("ticks.jsonl")
    with (tmp_path / "ticks.jsonl.part").open("a") as part:
        part.write('{"pair":"BTC:USDC","timest')
    before = server.stats.calls
    assert run(*command, "--resume").returncode == 0
    resumed = server.stats.calls - before
    assert run(*command).returncode == 0
    assert resumed < server.stats.calls - before - resumed


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--exchange", "OKX"), "was begun with --exchange left out, not OKX"),
        (("--start", "2022-07-03"), "was begun with --start 2022-07-02, not 2022-07-03"),
        (("--end", "2022-07-19"), "was begun with --end 2022-07-21, not 2022-07-19"),
        (("--format", "csv"), "was begun with --format json, not csv"),
    ],
)
def test_only_the_same_fetch_is_continued(
    failed: Callable[..., list[str]], tmp_path: Path, options: tuple[str, ...], hint: str
) -> None:
    """Otherwise the file could have a hole. The part stays as it is."""
    command = failed("ticks.jsonl")
    before = (tmp_path / "ticks.jsonl.part").read_bytes()
    result = run(*command, "--resume", *options)
    assert result.returncode == 2
    assert hint in result.stderr
    assert (tmp_path / "ticks.jsonl.part").read_bytes() == before


def test_a_part_of_unknown_origin_is_refused(server: LocalServer, tmp_path: Path) -> None:
    """It may belong to anything."""
    (tmp_path / "ticks.jsonl.part").write_text("mine")
    options = ("--output", str(tmp_path / "ticks.jsonl"), "--endpoint", server.url)
    result = run("history", "BTC:USDC", *TEN_SECONDS, *options, "--resume")
    assert result.returncode == 2
    assert "doesn't say what" in result.stderr
    assert (tmp_path / "ticks.jsonl.part").read_text() == "mine"


def test_resume_without_a_part_starts_from_the_beginning(server: LocalServer, tmp_path: Path) -> None:
    """So a loop can always pass it. It needs a file."""
    arguments = ("history", "BTC:USDC", *TEN_SECONDS, "--endpoint", server.url, "--resume")
    assert run(*arguments, "--output", str(tmp_path / "ticks.jsonl")).returncode == 0
    assert len(ticks_of(tmp_path / "ticks.jsonl")) == 10
    result = run(*arguments)
    assert (result.returncode, "--output FILE" in result.stderr) == (2, True)


def test_a_new_fetch_replaces_a_part(failed: Callable[..., list[str]], tmp_path: Path) -> None:
    """And says so, because the part may have taken hours."""
    result = run(*failed("ticks.jsonl"))
    assert result.returncode == 0
    assert "--resume would have continued it" in result.stderr


def test_one_process_writes_a_part_at_a_time(server: LocalServer, tmp_path: Path) -> None:
    """Two at once would mix up their ticks."""
    arguments = ("history", "BTC:USDC", *TEN_SECONDS, "--output", str(tmp_path / "t.jsonl"), "--endpoint", server.url)
    server.stall_functions(None)
    with running(*arguments):
        wait_for_temporary_file(tmp_path)
        result = run(*arguments)
        assert (result.returncode, "another process is writing" in result.stderr) == (2, True)


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine allows no mounts",
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_bind_mounted_file_is_written(server: LocalServer, tmp_path: Path, read_only: bool) -> None:
    """It can't be replaced (EBUSY), as in a container. If it can't be written either, the complete part stays."""
    (tmp_path / "outside").mkdir()
    inside, outside = tmp_path / "ticks.jsonl", tmp_path / "outside" / "ticks.jsonl"
    inside.touch()
    outside.write_text("before")
    arguments = ["history", "BTC:USDC", *TEN_SECONDS, "--output", str(inside), "--endpoint", server.url]
    remount = f"mount -o remount,ro,bind {inside};" if read_only else ""
    line = f'mount --bind {outside} {inside} && {remount} exec "$@"'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", line, "sh", *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(),
        check=False,
    )
    part = tmp_path / "ticks.jsonl.part"
    if read_only:
        assert result.returncode == 1
        assert f"kept in {part}" in result.stderr
        assert outside.read_text() == "before"
        assert len(ticks_of(part)) == 10
    else:
        assert (result.returncode, result.stderr) == (0, "")
        assert len(ticks_of(outside)) == 10
        assert not part.exists()


@pytest.mark.parametrize("command", [("history", "BTC:USDC", *WHOLE_DAY), ("snap", "BTC:USDC")])
def test_the_timeout_is_an_option(server: LocalServer, command: tuple[str, ...]) -> None:
    """Both commands give up after that time."""
    server.stall_functions(None)
    result = run(*command, "--endpoint", server.url, "--timeout", "0.5")
    assert result.returncode == 1
    assert "no answer within 0.5 s" in result.stderr


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("command", [("history", "BTC:USDC", *WHOLE_DAY), ("snap", "BTC:USDC")])
def test_a_refused_connection_fails_at_once(closed_port: int, command: tuple[str, ...]) -> None:
    """With a second attempt, this would take an hour. The error says what to check."""
    result = run(*command, "--endpoint", f"ws://127.0.0.1:{closed_port}/", "--timeout", "3600")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "connection refused; check that a server runs there (attempt 1, no further attempt)" in result.stderr
    assert result.stderr.endswith("; check --endpoint and --proxy, or wait with --retry\n")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "n" * 64 + ".invalid"])
def test_a_name_without_an_address_fails_at_once(host: str) -> None:
    """So does one that can't exist."""
    result = run("snap", "BTC:USDC", "--endpoint", f"wss://{host}/", "--timeout", "3600")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "can't be resolved" in result.stderr


@pytest.mark.parametrize("command", [("history", "BTC:USDC", *WHOLE_DAY), ("snap", "BTC:USDC")])
def test_retry_waits_for_the_server(closed_port: int, command: tuple[str, ...]) -> None:
    """After several attempts, the error doesn't suggest `--retry` again."""
    result = run(*command, "--endpoint", f"ws://127.0.0.1:{closed_port}/", "--timeout", "0.5", "--retry")
    assert result.returncode == 1
    assert re.search(r"attempt [2-9]|before that: .* refused", result.stderr)
    assert "--retry" not in result.stderr


def test_a_refused_key_is_a_failure(server: LocalServer) -> None:
    """One line says so, without the key."""
    result = run("snap", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="another-key-altogether")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "refused" in result.stderr
    assert "another-key" not in result.stderr


def test_the_key_can_come_from_a_file(server: LocalServer, tmp_path: Path) -> None:
    """The option is the same as for `listen`."""
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    result = run("snap", "BTC:USDC", "--endpoint", server.url, "--api-key-file", str(file), FINX_API_KEY="")
    assert result.returncode == 0


def wait_for_temporary_file(folder: Path) -> None:
    """Wait until the command has begun to write beside the old file."""
    wait_until(lambda: any(folder.glob("*.part")), "the temporary file exists")


@pytest.fixture
def hangup_not_ignored() -> Iterator[None]:
    """`nohup make test` ignores SIGHUP, and the programs that tests start would do the same."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_not_ignored")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_the_old_file(server: LocalServer, tmp_path: Path, signum: int) -> None:
    """A new file is complete, or it doesn't appear."""
    output = tmp_path / "ticks.jsonl"
    output.write_text("before")
    server.stall_functions(None)
    with running("history", "BTC:USDC", *WHOLE_DAY, "--output", str(output), "--endpoint", server.url) as command:
        wait_for_temporary_file(tmp_path)
        command.send_signal(signum)
        code, out, err = command.finish()
    server.resume()
    assert (code, out) == (130, "")
    assert f"interrupted after 0 ticks; {output} was not written" in err
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_text() == "before"


def test_ctrl_c_right_after_the_temporary_file_appears(tmp_path: Path) -> None:
    """Then the file of an interrupted run without ticks goes, and the old one stays."""
    output = tmp_path / "ticks.jsonl"
    output.write_text("before")
    part = PartFile(output, None, False, JSON)
    request = Request("BTC:USDC", None, "json", "2022-07-02", None, NOON, NOON)

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name == "_begin" and part.path.exists():
            raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), part.open(request, resume=False):
            pytest.fail("the block was entered")
    finally:
        sys.settrace(before)
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_text() == "before"


def test_nohup_keeps_a_fetch_running(server: LocalServer, tmp_path: Path) -> None:
    """A signal that was ignored at the start stays ignored."""
    output = tmp_path / "ticks.jsonl"
    server.stall_functions(None)
    line = "trap '' HUP; exec \"$@\""
    arguments = ["history", "BTC:USDC", *WHOLE_DAY, "--output", str(output), "--endpoint", server.url]
    process = subprocess.Popen(["sh", "-c", line, "sh", *COMMAND, *arguments], env=environment())
    try:
        wait_for_temporary_file(tmp_path)
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        assert ignored & 1 << signal.SIGHUP - 1
    finally:
        process.kill()
        process.wait(TIMEOUT)


def test_a_file_keeps_its_mode_at_all_times(server: LocalServer, tmp_path: Path) -> None:
    """Users who can't read the old file can't read the new ticks either, not even while they are written."""
    output = tmp_path / "ticks.jsonl"
    output.write_text("before")
    output.chmod(0o600)
    arguments = ("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
    server.stall_functions(None)
    with running(*arguments):
        wait_for_temporary_file(tmp_path)
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    server.stall_functions(0)
    assert run(*arguments).returncode == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert len(output.read_text().splitlines()) == 10


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(server: LocalServer, tmp_path: Path, exists: bool) -> None:
    """The file behind the link is written, as a shell's redirection does it."""
    (tmp_path / "elsewhere").mkdir()
    output, target = tmp_path / "link", tmp_path / "elsewhere" / "ticks.jsonl"
    output.symlink_to(target)
    if exists:
        target.write_text("before")
    result = run("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert output.is_symlink()
    assert len(target.read_text().splitlines()) == 10
    assert list(target.parent.iterdir()) == [target]


def test_a_file_name_can_be_long(server: LocalServer, tmp_path: Path) -> None:
    """The temporary file's name isn't longer than the file system allows."""
    output = tmp_path / ("n" * 250)
    result = run("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(output.read_text().splitlines()) == 10


@pytest.mark.parametrize(("name", "unpack"), [("pipe", bytes), ("pipe.gz", gzip.decompress)])
def test_writes_into_a_named_pipe(
    server: LocalServer, tmp_path: Path, name: str, unpack: Callable[[bytes], bytes]
) -> None:
    """The reader gets the ticks, and the pipe isn't replaced by a file. Its name decides on gzip, as for a file."""
    output = tmp_path / name
    os.mkfifo(output)
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run("history", "BTC:USDC", *TEN_SECONDS, "--output", str(output), "--endpoint", server.url)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert len(unpack(os.read(reader, 65_536)).splitlines()) == 10
    finally:
        os.close(reader)
    assert output.is_fifo()


def test_standard_output_can_be_named(server: LocalServer, tmp_path: Path) -> None:
    """A pipe is written to; a file to which the shell appends keeps its content."""
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
def test_ctrl_c_works_while_the_pipe_is_full(server: LocalServer, tmp_path: Path, named: bool) -> None:
    """A reader that stops holds up the ticks, but not the command."""
    output = tmp_path / "pipe"
    os.mkfifo(output)
    options = ("--output", str(output)) if named else ()
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with running("history", "BTC:USDC", *WHOLE_DAY, *options, "--endpoint", server.url) as command:
            wait_until_full(reader if named else command.stdout.fileno())
            command.send_signal()
            assert "interrupted after" in command.stderr.readline()
            assert command.wait() == 130
    finally:
        os.close(reader)


def test_shortens_a_long_error(server: LocalServer) -> None:
    """A server's text doesn't flood the terminal."""
    server.fail_functions(None, "m" * 100_000)
    result = run("snap", "BTC:USDC", "--endpoint", server.url)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "mmmm" in result.stderr
    assert len(result.stderr) < 350


def test_a_closed_pipe_is_a_normal_end(server: LocalServer) -> None:
    """`finx-streamer history … | head -1` prints no error."""
    command = [*COMMAND, "history", "BTC:USDC", *WHOLE_DAY, "--endpoint", server.url]
    line = f"set -o pipefail; {' '.join(command)} | head -1"
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT, env=environment(), check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["price"] == "0.010000000000000002"


def test_a_terminal_shows_a_progress_bar(server: LocalServer, tmp_path: Path) -> None:
    """The bar is on standard error, and only if that is a terminal."""
    leader, follower = pty.openpty()
    options = ["--output", str(tmp_path / "ticks.jsonl"), "--endpoint", server.url]
    process = subprocess.Popen(
        [*COMMAND, "history", "BTC:USDC", *WHOLE_DAY, *options],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environment(),
    )
    os.close(follower)
    shown = b"".join(iter(lambda: read_terminal(leader), b""))
    os.close(leader)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (0, b"")
    assert b"BTC:USDC" in shown
