"""The command line, driven as its users drive it: as a process, against a real server."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect

from finx_streamer import __version__
from finx_streamer.server import LocalServer, SimulatedMarket, Tape

KEY = "a-key-nobody-guesses"
COMMAND = [sys.executable, "-m", "finx_streamer"]
TIMEOUT = 30.0
HOSTILE = '=1+1"\x1b]0;x\x07[b]'
TICKS = [
    ("BTC:USDC", "15:30:55.817Z", "BINANCE", "19200.84"),
    ("BTC:USDC", "15:30:55.9Z", "FTX", "21865.010000000002"),
    ("BTC:USDC", "15:30:56Z", HOSTILE, "19200.80"),
]


def tick(pair: str, time: str, exchange: str, price: str) -> dict[str, str]:
    return {"pair": pair, "date": "2022-07-02", "time": time, "exchange": exchange, "price": price}


@pytest.fixture(autouse=True, scope="module")
def interruptible() -> Iterator[None]:
    """Commands hear Ctrl-C even where this process, as a shell's background job, was started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Three ticks that are played to the first stream, and then silence."""
    with LocalServer(Tape([tick(*fields) for fields in TICKS], speed=None), keys={KEY}) as server:
        yield server


@pytest.fixture
def busy() -> Iterator[LocalServer]:
    """A market that never rests."""
    with LocalServer(SimulatedMarket(rate=None), keys={KEY}) as server:
        yield server


def environment(**variables: str) -> dict[str, str]:
    """This process's, with the key, and without what changes how terminals are taken."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "FINX_API_KEY": KEY, "TERM": "xterm-256color", **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=environment(**variables),
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what gives no sign of itself."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"not within {TIMEOUT} s: {what}"
        time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code and what was left to read."""
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


class TestJsonLines:
    def test_a_line_holds_the_wires_fields_and_ours(self, server: LocalServer) -> None:
        """Prices and times are printed exactly as they came."""
        result = run("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "3")

        assert (result.returncode, result.stderr) == (0, "")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [tick(*fields) for fields in TICKS] == [
            {name: line[name] for name in ("pair", "date", "time", "exchange", "price")} for line in lines
        ]
        assert lines[0]["timestamp"] == "2022-07-02T15:30:55.817000+00:00"
        assert {int} == {type(line["received_ns"]) for line in lines}
        assert [line["backfilled"] for line in lines] == [False] * 3
        assert result.stdout.isascii()

    def test_a_line_is_there_as_soon_as_its_tick(self, server: LocalServer) -> None:
        """Nothing waits for a buffer to fill."""
        with running("listen", "BTC:USDC", "--endpoint", server.url) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["price"] == "19200.84"
            assert process.poll() is None

    def test_the_limit_is_exact(self, busy: LocalServer) -> None:
        """No tick more and none less, however many come at once."""
        result = run("listen", "BTC:USDC", "ETH:USDC", "--endpoint", busy.url, "--limit", "1234")

        assert (result.returncode, len(result.stdout.splitlines())) == (0, 1234)

    def test_the_duration_ends_a_silent_stream(self, server: LocalServer) -> None:
        """It does not take a tick to notice the time."""
        result = run("listen", "BTC:USDC", "--endpoint", server.url, "--exchange", "NONE", "--duration", "0.3")

        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def test_only_the_exchanges_asked_for(self, server: LocalServer) -> None:
        """The option may be repeated."""
        options = ["--exchange", "FTX", "--exchange", "BINANCE", "--limit", "2"]
        result = run("listen", "BTC:USDC", "--endpoint", server.url, *options)

        assert [json.loads(line)["exchange"] for line in result.stdout.splitlines()] == ["BINANCE", "FTX"]

    def test_a_lost_connection_is_one_line_on_stderr_and_its_return_another(self) -> None:
        """Ticks go on after it."""
        with (
            LocalServer(SimulatedMarket(rate=100.0), keys={KEY}) as market,
            running("listen", "BTC:USDC", "--endpoint", market.url) as process,
        ):
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            market.drop_connections()
            select.select([process.stderr], [], [], TIMEOUT)
            line = process.stderr.readline()
            assert line.startswith("finx-streamer: BTC:USDC: ")
            assert "next attempt in" in line
            back = r"finx-streamer: BTC:USDC: back after [\d.,]+ s; [\d,]+ missed ticks? fetched\n"
            assert re.fullmatch(back, process.stderr.readline())

    @pytest.mark.parametrize("name", ["note", "error"])
    def test_of_a_long_notice_or_error_the_beginning_is_shown(self, server: LocalServer, name: str) -> None:
        """Nobody reads thousands of characters in a line."""
        with running("listen", "BTC:USDC", "--endpoint", server.url) as process:
            assert process.stderr is not None
            server.wait_connected()
            server.send_message(json.dumps({name: "n" * 10_000}))
            line = process.stderr.readline()
        assert "nnnn" in line
        assert len(line) < 350


class TestCsv:
    def test_a_header_and_a_row_a_tick(self, server: LocalServer) -> None:
        """Rows hold what the JSON lines hold."""
        result = run("listen", "BTC:USDC", "--endpoint", server.url, "--format", "csv", "--limit", "2")

        assert (result.returncode, result.stderr) == (0, "")
        header, *rows = csv.reader(io.StringIO(result.stdout))
        assert header == ["pair", "date", "time", "exchange", "price", "timestamp", "received_ns", "backfilled"]
        first = ["BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84", "2022-07-02T15:30:55.817000+00:00"]
        assert [first, "false"] == [rows[0][:6], rows[0][7]]
        assert rows[1][4] == "21865.010000000002"

    def test_no_formula_and_no_control_character_comes_out(self, server: LocalServer) -> None:
        """An exchange's name is the server's choice, and spreadsheets run formulas."""
        options = ["--format", "csv", "--limit", "3"]
        result = run("listen", "BTC:USDC", "--endpoint", server.url, *options)

        *_, hostile = csv.reader(io.StringIO(result.stdout))
        assert "'" + HOSTILE.replace("\x1b", r"\x1b").replace("\x07", r"\x07").replace(";", r"\x3b") == hostile[3]
        assert "\x1b" not in result.stdout

    @pytest.mark.parametrize(
        "start",
        [
            *["=", "+", "-", "@", "\t", "\r", "\n", "\x00", "\x9f", "\ud800", " =", "  @", "=\u0338"],
            # Full-width, small and superscript forms of the four.
            *["\uff1d", "\uff0b", "\uff0d", "\uff20", "\ufe62", " \u207c"],
        ],
    )
    def test_what_a_cell_must_not_start_with(self, start: str) -> None:
        """An apostrophe makes a spreadsheet take the cell for text."""
        from finx_streamer.cli.lines import safe_cell

        cell = safe_cell(f"{start}1")
        assert cell[0] == "'"
        assert cell.isprintable()

    @given(st.text() | st.text(" ;,=+-@\uff1d\"'\t"))
    def test_no_cell_begins_a_formula(self, name: str) -> None:
        """Whatever the name, and also where a spreadsheet splits lines at semicolons."""
        from finx_streamer.cli.lines import safe_cell

        cell = safe_cell(name)
        assert cell.isprintable()
        assert ";" not in cell
        assert unicodedata.normalize("NFKC", cell.lstrip()[:1]) not in set("=+-@")

    @pytest.mark.parametrize("name", ["", "BINANCE", "a-b", "Börse 1", "12", "A=B", "x, y"])
    def test_what_a_cell_may_be(self, name: str) -> None:
        """An honest name is left alone."""
        from finx_streamer.cli.lines import safe_cell

        assert name == safe_cell(name)


class TestEnds:
    @pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_ends_with_a_summary(self, server: LocalServer, end: signal.Signals) -> None:
        """It is the normal end of an endless command, and a polite kill is the same."""
        with running("listen", "BTC:USDC", "--endpoint", server.url) as process:
            assert process.stdout is not None
            for _ in TICKS:
                process.stdout.readline()
            process.send_signal(end)
            code, out, err = ended(process)

        assert (code, out) == (0, "")
        assert re.fullmatch(r"finx-streamer: 3 ticks in [\d.]+ s; 0 reconnects, 0 dropped, 0 errors\n", err)

    def test_ctrl_c_works_while_nobody_reads(self, busy: LocalServer) -> None:
        """A reader that has stopped holds up the ticks, and nothing else."""
        with running("listen", "BTC:USDC", "--endpoint", busy.url) as process:
            assert process.stdout is not None
            pipe = process.stdout.fileno()
            size = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4_096)
            until(lambda: _unread(pipe) > size - 512, "the pipe is full")
            process.send_signal(signal.SIGINT)
            # Standard error first: whoever reads the pipe lets it go on.
            assert process.stderr is not None
            assert "ticks in" in process.stderr.readline()
            assert process.wait(TIMEOUT) == 0

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_a_closed_pipe_ends_it(self, busy: LocalServer, form: str) -> None:
        """As in `finx-streamer listen … | head -1`: no traceback, no error."""
        with running("listen", "BTC:USDC", "--endpoint", busy.url, "--format", form) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(TIMEOUT) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""

    def test_a_closed_pipe_ends_it_in_a_quiet_market_too(self, server: LocalServer) -> None:
        """No further tick is needed to notice."""
        with running("listen", "BTC:USDC", "--endpoint", server.url) as process:
            assert process.stdout is not None
            for _ in TICKS:
                process.stdout.readline()
            process.stdout.close()
            assert process.wait(TIMEOUT) == 0

    def test_a_full_disk_is_one_line(self, busy: LocalServer) -> None:
        """It is no traceback, and the exit code tells."""
        with open("/dev/full", "w") as full:
            result = subprocess.run(
                [*COMMAND, "listen", "BTC:USDC", "--endpoint", busy.url],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=TIMEOUT,
                env=environment(),
                check=False,
            )

        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert "No space left" in result.stderr


def _unread(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


class TestKeys:
    def test_a_refused_key_is_one_line_and_not_shown(self, server: LocalServer) -> None:
        """The exit code says that it was no mistake of the command line."""
        result = run("listen", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="wrong-secret")

        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
        assert result.stderr.startswith("finx-streamer: error: BTC:USDC: ")
        assert "wrong-secret" not in result.stderr

    def test_the_file_wins_and_is_stripped(self, server: LocalServer, tmp_path: Path) -> None:
        """Editors end a file with a newline."""
        file = tmp_path / "key"
        file.write_text(f"  {KEY}\n\n")
        options = ["--api-key-file", str(file), "--limit", "1"]
        result = run("listen", "BTC:USDC", "--endpoint", server.url, *options, FINX_API_KEY="wrong-secret")

        assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)

    def test_the_file_is_read_at_every_attempt(self, busy: LocalServer, tmp_path: Path) -> None:
        """Keys rotate every 24 hours, and nobody wants to start again for that."""
        file = tmp_path / "key"
        file.write_text(KEY)
        with running("listen", "BTC:USDC", "--endpoint", busy.url, "--api-key-file", str(file)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            connections = busy.stats.connections_total
            busy.add_key("the-next-key")
            file.write_text("the-next-key")
            busy.revoke_key(KEY)
            busy.wait_until(lambda stats: stats.connections_total > connections and stats.streams == 1, TIMEOUT)

    def test_a_pipe_holds_the_key_too(self, server: LocalServer) -> None:
        """As in `--api-key-file <(pass finx)`, which can be read only once."""
        read, write = os.pipe()
        os.write(write, KEY.encode())
        os.close(write)
        options = ["--endpoint", server.url, "--limit", "1", "--api-key-file", f"/dev/fd/{read}"]
        result = subprocess.run(
            [*COMMAND, "listen", "BTC:USDC", *options],
            pass_fds=[read],
            capture_output=True,
            timeout=TIMEOUT,
            env=environment(FINX_API_KEY=""),
            check=False,
        )
        os.close(read)

        assert (result.returncode, result.stderr) == (0, b"")

    def test_no_key_is_bad_usage(self) -> None:
        """The line says how to give one."""
        result = run("listen", "BTC:USDC", FINX_API_KEY="")

        assert result.returncode == 2
        expected = "finx-streamer: error: no API key: set FINX_API_KEY, or pass --api-key-file FILE\n"
        assert expected == result.stderr

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "No such file or directory"),
            (b"", "it is empty"),
            (b" \n", "it is empty"),
            (b"\xff\xfe", "it is no text"),
        ],
    )
    def test_an_unusable_file_is_bad_usage(self, tmp_path: Path, content: bytes | None, reason: str) -> None:
        """It is found before anything is started."""
        file = tmp_path / "key"
        if content is not None:
            file.write_bytes(content)
        result = run("listen", "BTC:USDC", "--api-key-file", str(file))

        assert result.returncode == 2
        assert f"finx-streamer: error: --api-key-file {file}: {reason}\n" == result.stderr


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "hint"),
        [
            (["btc-usdc"], "did you mean 'BTC:USDC'?"),
            (["BTCN2202207"], "expected BASE:QUOTE"),
            (["BTC:USDC", "--endpoint", "gamma"], "expected 'production', 'beta' or a URL"),
            (["BTC:USDC", "--endpoint", "ws://example.com/"], "clear text"),
            (["BTC:USDC", "--format", "table"], "needs a terminal"),
        ],
    )
    def test_a_wrong_argument_is_one_line(self, arguments: list[str], hint: str) -> None:
        """The exit code is 2, and the line says what would be right."""
        result = run("listen", *arguments)

        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert hint in result.stderr

    @pytest.mark.parametrize("arguments", [["listen"], ["listen", "BTC:USDC", "--limit", "0"], ["frobnicate"]])
    def test_typers_own_refusals_have_the_same_code(self, arguments: list[str]) -> None:
        """What is bad usage does not depend on who found it."""
        assert run(*arguments).returncode == 2

    def test_the_version(self) -> None:
        """`--version` prints what the package says of itself."""
        assert f"finx-streamer {__version__}\n" == run("--version").stdout

    @pytest.mark.parametrize("missing", ["typer", "rich"])
    def test_without_its_extra_it_says_what_to_install(self, missing: str) -> None:
        """One line and exit code 2; no traceback."""
        program = f"import sys; sys.modules[{missing!r}] = None; from finx_streamer.__main__ import main; main()"
        arguments = ["demo", "--format", "json", "--limit", "1"]
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )

        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert 'pip install "finx-streamer[cli]"' in result.stderr


class TestTable:
    def test_a_terminal_gets_a_live_table(self, server: LocalServer) -> None:
        """It shows the last tick and the state, and nothing of what a server sends acts on the terminal."""
        shown, code = _in_terminal("listen", "BTC:USDC", "--endpoint", server.url, end_when="19200.80")

        assert code == 0
        for expected in ("BTC:USDC", "streaming", "3 ticks", "0 reconnects", "0 dropped", "0 errors", "3 ticks in"):
            assert expected in shown
        assert r"=1+1" in shown
        assert r"\x1b]0;x\x07[b]" in shown
        assert "\x1b]0;" not in shown

    def test_a_refused_key_leaves_a_line_below_it(self, server: LocalServer) -> None:
        """The exit code is 1, as without a terminal."""
        shown, code = _in_terminal("listen", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="wrong-secret")

        assert code == 1
        assert "finx-streamer: error: BTC:USDC: " in shown
        assert "wrong-secret" not in shown

    def test_of_a_long_notice_the_beginning_is_shown(self, server: LocalServer) -> None:
        """In the last picture too, which a terminal gets whole."""

        def send() -> None:
            server.wait_connected()
            server.send_message(json.dumps({"note": "n" * 10_000}))

        sender = threading.Thread(target=send)
        sender.start()
        shown, code = _in_terminal("listen", "BTC:USDC", "--endpoint", server.url, end_when="notice: ")
        sender.join(TIMEOUT)

        assert code == 0
        assert 200 < shown.rpartition("notice: ")[2].count("n") < 350

    def test_a_dumb_terminal_gets_lines(self, server: LocalServer) -> None:
        """A table can't be drawn on it."""
        shown, code = _in_terminal("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "1", TERM="dumb")

        assert (code, json.loads(shown)["price"]) == (0, "19200.84")


def _in_terminal(*arguments: str, end_when: str | None = None, **variables: str) -> tuple[str, int]:
    """Run the command in a terminal of its own. Returns all that it wrote there, and its exit code.

    Ctrl-C is pressed as soon as `end_when` is shown; with None it is left to end by itself.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 120))
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**variables)
    )
    os.close(theirs)
    shown = b""
    try:
        while select.select([ours], [], [], TIMEOUT)[0]:
            # On Linux a terminal that nobody has open any more fails to be read.
            with contextlib.suppress(OSError):
                piece = os.read(ours, 65_536)
                shown += piece
                if end_when is not None and end_when.encode() in shown:
                    process.send_signal(signal.SIGINT)
                    end_when = None
                continue
            break
        return shown.decode(), process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


class TestDemo:
    def test_it_needs_neither_key_nor_network(self) -> None:
        """Without a terminal it writes lines."""
        result = run("demo", "--limit", "5", FINX_API_KEY="")

        assert (result.returncode, result.stderr) == (0, "")
        assert len([json.loads(line) for line in result.stdout.splitlines()]) == 5

    def test_a_duration_ends_it(self) -> None:
        """`make demo` relies on it."""
        assert run("demo", "--duration", "0.2").returncode == 0

    def test_it_shows_all_its_pairs_in_a_terminal(self) -> None:
        """Each has a row from the first picture on."""
        shown, code = _in_terminal("demo", end_when="streaming")

        assert code == 0
        for pair in ("BTC:USDC", "ETH:USDC", "ETH:BTC"):
            assert pair in shown


class TestServe:
    def test_the_example_it_prints_works(self) -> None:
        """Whoever copies the line sees ticks; Ctrl-C ends the server."""
        with running("serve", "--port", "0", "--rate", "1000") as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            example = lines[2].removeprefix("listen:").split()
            name, _, key = example[0].partition("=")
            assert (name, example[1]) == ("FINX_API_KEY", "finx-streamer")
            result = run(*example[2:], "--limit", "1", FINX_API_KEY=key)
            process.send_signal(signal.SIGINT)
            code, _, err = ended(process)

        assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)
        assert (code, err) == (0, "finx-streamer: stopped\n")

    def test_ticks_are_kept_in_a_file(self, tmp_path: Path) -> None:
        """What was imported and what was played is there in the file at the next start, and answers calls."""
        tape, store = tmp_path / "tape.jsonl", tmp_path / "ticks.db"
        tape.write_text("".join(json.dumps(tick(*fields)) + "\n" for fields in TICKS))
        options = ["--port", "0", "--tape", str(tape), "--speed", "max", "--store", str(store)]
        count = len([fields for fields in TICKS if tick(*fields)["pair"] == "BTC:USDC"])
        for imports in (["--import", str(tape), "--import", str(tape)], []):
            with running("serve", *options, *imports) as process:
                assert process.stdout is not None
                url = process.stdout.readline().split()[-1]
                with connect(f"{url}streamer/demo", proxy=None) as peer:
                    call = {"functionName": "tickHistory", "pair": "BTC:USDC", "date": tick(*TICKS[0])["date"]}
                    peer.send(json.dumps(call | {"APIKey": "demo", "time": "00:00"}))
                    assert 2 * count == len(json.loads(peer.recv(timeout=20)))
                process.send_signal(signal.SIGINT)
                code, _, err = ended(process)
            said = [f"finx-streamer: imported {len(TICKS)} ticks from {tape}"] * (len(imports) // 2)
            assert (0, [*said, "finx-streamer: stopped"]) == (code, err.splitlines())

    def test_a_tape_and_keys_of_ones_own(self, tmp_path: Path) -> None:
        """The keys in the file are accepted and never shown."""
        tape, keys = tmp_path / "tape.jsonl", tmp_path / "keys"
        tape.write_text("".join(json.dumps(tick(*fields)) + "\n" for fields in TICKS))
        keys.write_text(f"another-key\n\n{KEY}\n")
        options = ["--port", "0", "--tape", str(tape), "--speed", "max", "--keys-file", str(keys)]
        with running("serve", *options) as process:
            assert process.stdout is not None
            shown = [process.stdout.readline() for _ in range(3)]
            result = run("listen", "BTC:USDC", "--endpoint", shown[0].split()[-1], "--limit", "3")

        assert [json.loads(line)["price"] for line in result.stdout.splitlines()] == [
            "19200.84",
            "21865.010000000002",
            "19200.80",
        ]
        assert KEY not in "".join(shown)

    @pytest.mark.skipif(os.name != "posix", reason="modes of files")
    @pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
    def test_a_keys_file_that_others_can_read_is_warned_of(self, tmp_path: Path, mode: int, warned: bool) -> None:
        """Both files that hold keys are to be the user's own."""
        keys = tmp_path / "keys"
        keys.write_text(KEY)
        keys.chmod(mode)
        with running("serve", "--port", "0", "--keys-file", str(keys)) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            result = run("listen", "BTC:USDC", "--endpoint", url, "--api-key-file", str(keys), "--limit", "1")
            process.send_signal(signal.SIGINT)
            code, _, err = ended(process)
        assert (code, result.returncode) == (0, 0)
        for said, option in ((err, "--keys-file"), (result.stderr, "--api-key-file")):
            assert warned is (f"warning: {option} {keys}: others can get at the keys in it" in said)
            assert KEY not in said

    def test_a_host_beyond_loopback_is_a_warning(self) -> None:
        """Where other machines can reach it, the terminal says so."""
        with running("serve", "--port", "0", "--host", "0.0.0.0") as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, _, err = ended(process)
        assert "warning: the local server listens on 0.0.0.0, where other machines can reach it" in err

    @pytest.mark.parametrize(
        ("arguments", "hint"),
        [
            (["--speed", "2"], "with --tape only"),
            (["--loop"], "with --tape only"),
            (["--tape", "t.jsonl", "--rate", "1"], "without --tape only"),
            (["--tape", "t.jsonl", "--speed", "fast"], "'fast' is not a number"),
            (["--tape", "no-such-file.jsonl"], "no-such-file.jsonl"),
            (["--keys-file", "no-such-file"], "No such file"),
            (["--rate", "0"], "rate"),
            (["--store", __file__], "is no SQLite database"),
            (["--import", "no-such-file.jsonl"], "no-such-file.jsonl"),
        ],
    )
    def test_a_wrong_argument_is_one_line(self, arguments: list[str], hint: str) -> None:
        """No option is ignored in silence."""
        result = run("serve", "--port", "0", *arguments)

        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert hint in result.stderr

    def test_a_port_in_use_is_one_line(self, server: LocalServer) -> None:
        """The exit code is 1: the command line was right."""
        result = run("serve", "--port", str(server.port))

        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
