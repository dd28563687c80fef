"""`finx-streamer serve`."""

from __future__ import annotations

import json
import shlex
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from finx_streamer.server import LocalServer
from tests.support.cli import KEY, TICKS, TIMEOUT, run, running


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """A recording of three ticks."""
    file = tmp_path / "tape.jsonl"
    file.write_text("".join(json.dumps(tick) + "\n" for tick in TICKS))
    return file


def test_the_printed_example_works() -> None:
    """You can copy the line to see ticks; Ctrl-C ends the server."""
    with running("serve", "--port", "0", "--rate", "1000") as command:
        lines = [command.stdout.readline() for _ in range(3)]
        example = lines[2].removeprefix("listen:").split()
        variable, _, key = example[0].partition("=")
        assert (variable, example[1]) == ("FINX_API_KEY", "finx-streamer")
        result = run(*example[2:], "--limit", "1", FINX_API_KEY=key)
        command.send_signal()
        code, _, err = command.finish()
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)
    assert (code, err) == (0, "finx-streamer: stopped\n")


def test_a_store_keeps_imported_and_played_ticks(tape: Path, tmp_path: Path) -> None:
    """They answer calls, also after a restart. A second import of the same file is skipped."""
    options = ["--port", "0", "--tape", str(tape), "--speed", "max", "--store", str(tmp_path / "ticks.db")]
    for imports in (2, 0):
        with running("serve", *options, *["--import", str(tape)] * imports) as command:
            url = command.stdout.readline().split()[-1]
            with connect(f"{url}streamer/demo", proxy=None) as peer:
                call = {"functionName": "tickHistory", "pair": "BTC:USDC", "date": TICKS[0]["date"]}
                peer.send(json.dumps(call | {"APIKey": "demo", "time": "00:00"}))
                assert len(json.loads(peer.recv(timeout=TIMEOUT))) == len(TICKS)
            command.send_signal()
            code, _, err = command.finish()
        imported = [
            f"finx-streamer: imported {len(TICKS)} ticks from {tape}",
            f"finx-streamer: skipped {tape}: the store has its {len(TICKS)} ticks already",
        ]
        assert (code, err.splitlines()) == (0, [*imported[:imports], "finx-streamer: stopped"])


def test_imports_the_ticks_that_were_added_to_a_file(tape: Path, tmp_path: Path) -> None:
    """The terminal says how many were in the store already."""
    lines = tape.read_text().splitlines(keepends=True)
    options = ["--port", "0", "--store", str(tmp_path / "ticks.db"), "--import", str(tape)]
    for count, says in ((1, "imported 1 tick from {}"), (3, "imported 2 ticks from {}; 1 tick was there already")):
        tape.write_text("".join(lines[:count]))
        with running("serve", *options) as command:
            assert command.stdout.readline()
            command.send_signal()
            _, _, err = command.finish()
        assert err.splitlines()[0] == f"finx-streamer: {says.format(tape)}"


def test_the_printed_example_is_quoted_for_the_shell(tmp_path: Path) -> None:
    """A shell would replace `$TRUMP`."""
    tape = tmp_path / "tape.jsonl"
    tape.write_text(json.dumps(TICKS[0] | {"pair": "$TRUMP:USDC"}))
    with running("serve", "--port", "0", "--tape", str(tape)) as command:
        lines = [command.stdout.readline() for _ in range(3)]
    assert lines[1] == "pairs:   $TRUMP:USDC\n"
    assert shlex.split(lines[2])[2:4] == ["finx-streamer", "listen"]
    assert "finx-streamer listen '$TRUMP:USDC' --endpoint" in lines[2]


def test_warns_about_a_tape_that_is_cut_off(tape: Path) -> None:
    """The terminal says where, for a tape that is played and for one that is imported."""
    tape.write_bytes(tape.read_bytes()[:-20])
    with running("serve", "--port", "0", "--tape", str(tape), "--import", str(tape)) as command:
        assert command.stdout.readline()
        command.send_signal()
        code, _, err = command.finish()
    cut = f"the tape {tape} is cut off in line 3, probably by a crash; only the first 2 ticks were read"
    warning, again, imported, _ = err.splitlines()
    assert (code, warning, again) == (0, f"finx-streamer: warning: {cut}", warning)
    assert imported == f"finx-streamer: imported 2 ticks from {tape}"


def test_plays_a_tape_for_the_keys_of_a_file(tape: Path, tmp_path: Path) -> None:
    """Each key in the file is accepted, and none is shown."""
    keys = tmp_path / "keys"
    keys.write_text(f"another-key\n\n{KEY}\n")
    options = ["--port", "0", "--tape", str(tape), "--speed", "max", "--keys-file", str(keys)]
    with running("serve", *options) as command:
        shown = [command.stdout.readline() for _ in range(3)]
        result = run("listen", "BTC:USDC", "--endpoint", shown[0].split()[-1], "--limit", "3")
    prices = [json.loads(line)["price"] for line in result.stdout.splitlines()]
    assert prices == [tick["price"] for tick in TICKS]
    assert KEY not in "".join(shown)


def test_warns_about_a_host_beyond_loopback() -> None:
    """The terminal says that other machines can reach the server, and that they know the key."""
    with running("serve", "--port", "0", "--host", "0.0.0.0", "--allow-insecure") as command:
        assert command.stdout.readline()
        command.send_signal()
        _, _, err = command.finish()
    assert "warning: the local server listens on 0.0.0.0, where other machines can reach it" in err
    assert "warning: everyone who can reach this server can use the API key demo; pass --keys-file" in err


@pytest.mark.parametrize(("level", "logged"), [("info", True), (None, False)])
def test_log_level(level: str | None, logged: bool) -> None:
    """Refused clients are in the log at `info`. No line has a key."""
    options = [] if level is None else ["--log-level", level]
    with running("serve", "--port", "0", *options) as command:
        url = command.stdout.readline().split()[-1]
        with pytest.raises(InvalidStatus):
            connect(f"{url}streamer/{KEY}", proxy=None)
        command.send_signal()
        code, _, err = command.finish()
    assert (code, "INFO handshake refused: 401" in err, KEY in err) == (0, logged, False)


def test_an_unknown_log_level_is_refused() -> None:
    """The error lists the levels. `demo` has the option, too."""
    for command in ("serve", "demo"):
        result = run(command, "--log-level", "loud")
        assert result.returncode == 2
        assert "'debug', 'info', 'warning', 'error'" in result.stderr


def health(url: str) -> str:
    """The status that the server's probe answers."""
    try:
        with urllib.request.urlopen(f"{url}health") as answer:
            return str(json.load(answer)["status"])
    except urllib.error.HTTPError as error:
        return str(error.code)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
def test_a_failed_store_is_in_the_log(tmp_path: Path) -> None:
    """The terminal says so when the store fails and when it works again, and so does /health."""
    store = tmp_path / "ticks.db"
    with running("serve", "--port", "0", "--store", str(store)) as command:
        url = command.stdout.readline().split()[-1].replace("ws:", "http:")
        store.unlink()
        failed, works = command.stderr.readline(), command.stderr.readline()
        while health(url) != "ok":  # at the end of the turn that wrote the line
            time.sleep(0.01)
        command.send_signal()
        code, _, err = command.finish()
    assert f"ERROR the tick store failed: the file {store} was deleted" in failed
    assert "WARNING the tick store works again" in works
    assert (code, err) == (0, "finx-streamer: stopped\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--speed", "2"], "--speed and --loop need --tape"),
        (["--loop"], "--speed and --loop need --tape"),
        (["--tape", "t.jsonl", "--rate", "1"], "--rate can't be used with --tape"),
        (["--tape", "t.jsonl", "--speed", "fast"], "--speed: 'fast' is not allowed; expected a number above 0, or max"),
        (["--tape", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--tape", __file__], "is not a tape: line 1: not JSON: Extra data, column 3"),
        (["--keys-file", "no-such-file"], "No such file"),
        (["--keys-file", "/dev/null"], "the file has no keys"),
        (["--tape", "t.jsonl", "--speed", "0"], "--speed: '0' is not allowed; expected a number above 0, or max"),
        (["--rate", "0"], "--rate: 0 is not allowed; expected ticks per second, above 0"),
        (["--rate", "nan"], "--rate: nan is not allowed"),
        (["--store", __file__], "is not an SQLite database"),
        (["--import", "no-such-file.jsonl"], "no-such-file.jsonl"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], hint: str) -> None:
    """An option without effect is refused, too."""
    result = run("serve", "--port", "0", *arguments)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert hint in result.stderr


def test_a_port_in_use_is_one_line(server: LocalServer) -> None:
    """The exit code 1 says that the command line was right."""
    result = run("serve", "--port", str(server.port))
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "address already in use" in result.stderr.lower()
