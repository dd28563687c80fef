"""Every command prints something readable where the terminal can't encode arrows, boxes or an exchange's name."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.cli.terminal import encodable
from finx_streamer.server import LocalServer, Tape
from tests.support.cli import KEY, run, run_in_terminal, running, tick

ENCODINGS = ["ascii", "cp1252"]
#: What each encoding prints for the first exchange below.
SHOWN = {"ascii": r"\xe9 \u5e01", "cp1252": r"é \u5e01"}
TICKS = [tick("BTC:USDC", "15:30:55.817Z", "é 币", "1"), tick("BTC:USDC", "15:30:56Z", "X", "2")]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Plays the first tick, and has both in its history."""
    tape = Tape([TICKS[0]], speed=None, wait_for=1)
    with LocalServer(tape, keys={KEY}) as running_server:
        running_server.import_ticks(TICKS)
        yield running_server


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("listen", "BTC:USDC", "--limit", "1"),
        ("history", "BTC:USDC", "--start", "2022-07-02", "--end", "2022-07-03"),
        ("snap", "BTC:USDC", "2022-07-02T15:30:55.900Z"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_data_is_printed_in_any_encoding(server: LocalServer, arguments: tuple[str, ...], encoding: str) -> None:
    """Standard output has its own encoding; what that doesn't have is escaped."""
    result = run(*arguments, "--format", "csv", "--endpoint", server.url, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    assert f",{SHOWN[encoding]},1," in result.stdout


@pytest.mark.parametrize(
    ("encoding", "box", "dot", "arrows"),
    [("ascii", "+-", "-", "^v"), ("cp1252", "+-", "·", "^v"), ("utf-8", "┏━", "·", "▲▼")],
)
def test_the_live_table_uses_what_the_terminal_has(encoding: str, box: str, dot: str, arrows: str) -> None:
    """Boxes, dots and arrows are ASCII in a terminal that has no others."""
    shown, code = run_in_terminal("demo", "--limit", "60", PYTHONIOENCODING=encoding)
    assert code == 0
    assert "Traceback" not in shown
    assert box in shown
    assert f"simulated market {dot} Ctrl-C stops" in shown
    assert any(f"{arrow} 0.0" in shown for arrow in arrows)
    assert encoding == "utf-8" or not any(arrow in shown for arrow in "▲▼")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_live_table_shows_any_exchange(server: LocalServer, encoding: str) -> None:
    """A name from the server is escaped before its width is measured, so the frame stays straight."""
    arguments = ("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "1")
    shown, code = run_in_terminal(*arguments, PYTHONIOENCODING=encoding)
    assert code == 0
    assert f" {SHOWN[encoding]} " in shown


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_messages_and_errors_are_printed(server: LocalServer, encoding: str) -> None:
    """A message of the server ends neither `listen` nor the live table."""
    with running("listen", "BTC:USDC", "--endpoint", server.url, PYTHONIOENCODING=encoding) as command:
        server.wait_connected()
        server.send_message(json.dumps({"error": "币" + "n" * 1_000}))
        line = command.stderr.readline()
    assert line.endswith({"ascii": "n~\n", "cp1252": "n…\n"}[encoding])
    result = run("listen", "▲", PYTHONIOENCODING=encoding)
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)


def test_the_server_greets() -> None:
    """`serve` needs no encoding but ASCII."""
    with running("serve", "--port", "0", PYTHONIOENCODING="ascii") as command:
        assert command.stdout.readline().startswith("serving: ws://")


@given(st.text(), st.sampled_from(["ascii", "cp1252", "latin-1", "shift_jis", "utf-8"]))
def test_any_text_can_be_shown(text: str, encoding: str) -> None:
    """The result can be encoded as it is, and text that can be encoded isn't changed."""
    shown = encodable(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    assert shown.isascii() or encoding != "ascii"
    if text.isascii():
        assert shown == text
