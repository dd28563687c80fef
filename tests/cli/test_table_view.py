"""`finx-streamer listen` in a terminal."""

from __future__ import annotations

import json
import threading

import pytest

from finx_streamer import StreamListener
from finx_streamer.cli.table_view import TableView
from finx_streamer.server import LocalServer
from tests.support.cli import run_in_terminal
from tests.support.peers import free_port


def test_a_terminal_gets_a_live_table(server: LocalServer) -> None:
    """The table shows the last tick and the state, and no control character of the server acts on the terminal."""
    shown, code = run_in_terminal("listen", "BTC:USDC", "--endpoint", server.url, ctrl_c_after="19200.80")
    assert code == 0
    for expected in ("BTC:USDC", "streaming", "3 ticks", "0 reconnects", "0 dropped", "0 errors", "3 ticks in"):
        assert expected in shown
    assert r"=1+1" in shown
    assert r"\x1b]0;x\x07[b]" in shown
    assert "\x1b]0;" not in shown


def test_a_refused_key_is_a_line_below_the_table(server: LocalServer) -> None:
    """The exit code is 1, as without a terminal."""
    shown, code = run_in_terminal("listen", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="wrong-secret")
    assert code == 1
    assert "finx-streamer: error: BTC:USDC: " in shown
    assert "wrong-secret" not in shown


def test_shortens_a_long_notice(server: LocalServer) -> None:
    """Even the final table, which isn't cut to the terminal's height, shows only its beginning."""

    def send() -> None:
        server.wait_connected()
        server.send_message(json.dumps({"note": "n" * 10_000}))

    sender = threading.Thread(target=send)
    sender.start()
    shown, code = run_in_terminal("listen", "BTC:USDC", "--endpoint", server.url, ctrl_c_after="notice: ")
    sender.join()
    assert code == 0
    assert 200 < shown.rpartition("notice: ")[2].count("n") < 350


def test_a_dumb_terminal_gets_lines(server: LocalServer) -> None:
    """A table can't be redrawn there."""
    shown, code = run_in_terminal("listen", "BTC:USDC", "--endpoint", server.url, "--limit", "1", TERM="dumb")
    assert (code, json.loads(shown)["price"]) == (0, "19200.84")


def test_the_final_table_appears_even_if_none_was_drawn_before(capsys: pytest.CaptureFixture[str]) -> None:
    """The limit may be reached before the first drawing."""
    TableView("title").finish(StreamListener("BTC:USDC"), interrupted=False)
    assert "BTC:USDC" in capsys.readouterr().out


def test_says_why_there_is_no_connection() -> None:
    """Below the totals."""
    shown, code = run_in_terminal(
        "listen", "BTC:USDC", "--endpoint", f"ws://127.0.0.1:{free_port()}/", ctrl_c_after="connecting: 127.0.0.1"
    )
    assert code == 0
    assert "connection refused; check that a server runs there" in shown
