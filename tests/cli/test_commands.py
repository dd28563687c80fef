"""Wrong usage, `--help`, `--version` and `finx-streamer demo`."""

from __future__ import annotations

import json
import re

import pytest
import typer.main

from finx_streamer import __version__
from finx_streamer.cli.commands import app
from finx_streamer.cli.terminal import OPTIONS, with_options
from tests.support.cli import run, run_in_terminal
from tests.support.program import run_program

COMMANDS = ["listen", "record", "publish", "history", "verify", "replay", "snap", "demo", "doctor", "serve"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["btc-usdc"], "did you mean 'BTC:USDC'?"),
        (["BTCN2202208"], "does not agree with 2022-08"),
        (["BTCUSDC"], "expected a pair BASE:QUOTE"),
        (["BTC:USDC", "--endpoint", "gamma"], "expected 'production', 'beta', 'demo' or a URL"),
        (["BTC:USDC", "--endpoint", "ws://example.com/"], "clear text; use wss://, or pass --allow-insecure if"),
        (["BTC:USDC", "--endpoint", "gamma"], "error: --endpoint: 'gamma' is unknown"),
        (["BTC:USDC", "--endpoint", "beta", "--endpoint", "demo"], "error: --endpoint: 'demo' can't be in a list"),
        (["BTC:USDC", "--prefix", "a/b"], "error: --prefix: 'a/b' is not one path segment"),
        (
            ["BTC:USDC", "--prefix", "streamer", "--endpoint", "demo"],
            "--prefix and --wire can't be used with --endpoint demo; remove them, or run finx-streamer serve",
        ),
        (["BTC:USDC", "--keep-alive", "0"], "error: --keep-alive: 0.0 is not allowed; expected seconds"),
        (["BTC:USDC", "--keep-alive", "nan"], "error: --keep-alive: nan is not allowed; expected seconds"),
        (["BTC:USDC", "--exchange", "binance"], "error: --exchange: 'binance' is not allowed"),
        (["BTC:USDC", "--proxy", "ftp://proxy"], "error: --proxy: "),
        (["BTC:USDC", "--format", "table"], "needs a terminal"),
        (["BTC:USDC", "--proxy", "http://me:secret@proxy:8080"], "set the environment variable https_proxy instead"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], hint: str) -> None:
    """The exit code is 2, and the line says what is expected."""
    result = run("listen", *arguments)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert hint in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("proxy: p would get the key; use proxy='' for none, or pass allow_insecure=True if", "--proxy '' for none"),
        ("timeout: inf is not allowed", "--timeout: inf"),
        ("a redirect to 'x': a login page, or a wrong endpoint=", "a wrong --endpoint"),
        ("exchanges: 'binance' is not allowed", "--exchange: 'binance'"),
        ("no API key: pass api_key= or set the environment variable FINX_API_KEY", "pass --api-key-file or set"),
        ("name resolution or the api_key callable hangs", "or reading --api-key-file hangs"),
        ("the certificate is refused: check SSL_CERT_FILE, or pass ssl_context=", "check SSL_CERT_FILE"),
    ],
)
def test_errors_name_options(error: str, shown: str) -> None:
    """No error of the Python API tells you to pass an argument that the command line doesn't have."""
    translated = with_options(error)
    assert shown in translated
    assert not re.search(r"\w=|allow_insecure|api_key|ssl_context", translated)


def test_the_options_that_errors_name_exist() -> None:
    """Each is an option of some command."""
    commands = typer.main.get_group(app).commands.values()
    assert set(OPTIONS.values()) <= {option for command in commands for each in command.params for option in each.opts}


def test_the_demo_endpoint_needs_no_key() -> None:
    """For `listen`, `history` and `snap`, as in Python."""
    result = run("listen", "BTC:USDC", "--endpoint", "demo", "--limit", "1", FINX_API_KEY="")
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, "", 1)


@pytest.mark.parametrize("arguments", [["listen"], ["listen", "BTC:USDC", "--limit", "0"], ["frobnicate"]])
def test_errors_of_the_parser_have_the_same_exit_code(arguments: list[str]) -> None:
    """Typer's own errors about wrong usage exit with 2, too."""
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_commands(option: str) -> None:
    """Each command has one line, and the text is plain."""
    result = run(option)
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line] == COMMANDS
    assert result.stdout.isascii()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    """The help shows the usage and all options."""
    result = run(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: finx-streamer {command} [OPTIONS]")


def test_prints_the_version() -> None:
    """`--version` prints the package's version."""
    assert run("--version").stdout == f"finx-streamer {__version__}\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    """A missing dependency is one line and exit code 2, not a traceback."""
    result = run_program("command_without", missing, "demo", "--format", "json", "--limit", "1")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert 'pip install "finx-streamer[cli]"' in result.stderr


def test_the_demo_needs_neither_key_nor_network() -> None:
    """Without a terminal it writes lines."""
    result = run("demo", "--limit", "5", FINX_API_KEY="")
    assert (result.returncode, result.stderr) == (0, "")
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 5


def test_the_duration_ends_the_demo() -> None:
    """`make demo` relies on it."""
    assert run("demo", "--duration", "0.2").returncode == 0


def test_the_demo_shows_all_its_pairs_in_a_terminal() -> None:
    """Each pair has a row from the start."""
    shown, code = run_in_terminal("demo", ctrl_c_after="streaming")
    assert code == 0
    for pair in ("BTC:USDC", "ETH:USDC", "ETH:BTC"):
        assert pair in shown


@pytest.mark.parametrize("key", ["a-key-of-mine", "A:KEY.OF:MINE"])
def test_a_key_in_place_of_a_pair_is_not_shown(key: str) -> None:
    """Neither as it is nor in a suggestion."""
    result = run("listen", key, FINX_API_KEY=key)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "key" not in result.stderr.lower()
    assert "a pair such as 'BTC:USDC'" in result.stderr
