"""Hostile text from a server does no harm in terminals, files and logs."""

from __future__ import annotations

import copy
import csv
import io
import logging
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import CallbackError, ConnectionFailed, FinxStreamerError, Tick
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Script, Seen, close_frame, frame, refuse, stay, tick

#: Sets a terminal's title, clears it, reverses the writing direction, and starts a formula, a cell and a line.
HOSTILE = "=cmd|' /C calc'!A0\x1b]0;x\x07\x1b[2J\u202e\x9b2J\r\n,\"\t\0"


def answer_with(*lines: bytes) -> Script:
    """A script that answers the handshake with these lines."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(b"\r\n".join([*lines, b"", b""]))
        caller.leave()

    return script


ATTACKS: dict[str, Script] = {
    "phrase": answer_with(b"HTTP/1.1 500 \x1b]0;x\x07\x1b[2J"),
    "phrase of a refusal": answer_with(b"HTTP/1.1 401 \x1b[2J\x9b2J"),
    "status line": answer_with(b"HTTP/1.1 \x1b[2J"),
    "no HTTP": answer_with(b"\x1b[2J"),
    "location": answer_with(b"HTTP/1.1 302 Found", b"Location: \x1b[2J\x07"),
    "body": refuse("500 No", body=HOSTILE),
    "header": answer_with(b"HTTP/1.1 101 OK", b"\x1b[2J"),
    "upgrade": answer_with(b"HTTP/1.1 101 OK", b"Upgrade: \x1b[2J", b"Connection: \x1b[2J"),
    "retry-after": answer_with(b"HTTP/1.1 429 No", b"Retry-After: \x1b[2J"),
    "close reason": stay(close_frame(4000, "\x1b[2J\u202e\r\n".encode())),
    "close reason of policy": stay(close_frame(1008, b"\x1b[2J\x07\r\n")),
    "error": stay(frame('{"error": "\\u001b[2J\\u202e\\r\\n"}'), close_frame(1008)),
    "no JSON": stay(frame("\x1b[2J\u202e\r\n"), close_frame(1008)),
    "binary": stay(frame(b"\x1b[2J\x9b", 0x2), close_frame(1008)),
    "price": stay(frame(tick(1).decode("latin-1").replace("1", "\x1b")), close_frame(1008)),
}


@pytest.mark.parametrize("script", ATTACKS.values(), ids=ATTACKS)
def test_errors_have_no_control_characters(seen: Seen, script: Script, caplog: pytest.LogCaptureFixture) -> None:
    """No error and no log line has control characters, wherever the server sends them."""
    with Peer(script) as peer:
        listener = seen.listener(peer.url, reconnect=None).start()
        with pytest.raises(ConnectionFailed):
            listener.join(PATIENCE)
        logged = seen.listener(peer.url, reconnect=None, on_error=None).start()
        with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionFailed):
            logged.join(PATIENCE)
    assert seen.errors
    for error in seen.errors:
        assert str(error).isprintable(), repr(str(error))
        assert repr(error).isprintable()
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()


@given(st.text())
def test_any_text_in_an_error_is_one_printable_line(text: str) -> None:
    """The text of an error is one printable line, also for an error in a callback."""
    error = CallbackError(print)
    error.__cause__ = ValueError(text)
    assert str(error).isprintable()
    assert str(ConnectionFailed(text)).isprintable()


def hostile_tick() -> Tick:
    """A received tick whose exchange is the hostile text."""
    found = Seen()
    sent = tick(1, exchange=HOSTILE)
    with Peer(stay(sent)) as peer, found.listener(peer.url, parse_price=str):
        found.wait_ticks(1)
    return found.ticks[0]


def test_lines_of_a_hostile_tick_are_harmless() -> None:
    """A hostile tick is one line without control characters, in JSON and in CSV."""
    pytest.importorskip("typer")
    from finx_streamer.cli.formats import csv_line, json_line

    received = hostile_tick()
    assert received["exchange"] == HOSTILE
    for line in (json_line(received), csv_line(received)):
        assert line.endswith("\n")
        assert line[:-1].isprintable()
    (row,) = csv.reader(io.StringIO(csv_line(received)))
    assert row[3].startswith("=")


def test_the_table_of_a_hostile_tick_is_harmless() -> None:
    """The live table shows an exchange as plain text, without markup and control characters."""
    pytest.importorskip("rich")
    from rich.console import Console

    from finx_streamer.cli.table_view import TableView

    shown = io.StringIO()
    found = Seen()
    with (
        Peer(stay(tick(1, exchange="[red]\x1b]0;x\x07"))) as peer,
        found.listener(peer.url, parse_price=str) as listener,
    ):
        found.wait_ticks(1)
        console = Console(file=shown, width=200, color_system=None)
        console.print(TableView("title [b]\x1b[2J").render(listener))
    assert r"[red]\x1b]0;x\x07" in shown.getvalue()
    assert all(line.isprintable() for line in shown.getvalue().splitlines())


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_keeps_the_cause(duplicate: Any) -> None:
    """A copied or pickled error keeps its arguments and its cause, or at least the text of its cause."""

    class Local(Exception):
        """Can't be pickled, because no module has it."""

    for cause, expected in ((OSError(111, "refused"), ConnectionRefusedError), (Local("here"), (Local, RuntimeError))):
        error = ConnectionFailed("refused", status=503)
        error.symbol = PAIR
        error.__cause__ = cause
        twin: FinxStreamerError = duplicate(error)
        assert (type(error), error.args, str(error)) == (type(twin), twin.args, str(twin))
        assert isinstance(twin.__cause__, expected)
        assert str(cause) in str(twin.__cause__)
        assert error.__suppress_context__ is twin.__suppress_context__
