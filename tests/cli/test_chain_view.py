"""`finx-streamer listen` with options: a chain in a terminal, lines elsewhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from finx_streamer import ConfigurationError, FunctionClient, Instrument, ListenerStats, State
from finx_streamer.cli.chain_view import ChainView
from finx_streamer.config.symbols import MONTH_LETTERS
from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.wire.contract_ticker import read_greeks
from tests.support.cli import run, run_in_terminal


@pytest.fixture
def options() -> Iterator[LocalServer]:
    """A server with options."""
    with LocalServer(SimulatedMarket(rate=50.0, options=("BTC",)), keys={"demo"}) as server:
        yield server


def nearest(server: LocalServer) -> Instrument:
    """A call of the nearest expiry."""
    with FunctionClient("demo", server.url) as client:
        calls = [each for each in map(Instrument.parse, client.list_contracts()) if each.kind == "call"]
    return min(calls, key=lambda each: (each.expiry, each.strike))


def month(instrument: Instrument) -> str:
    """The option month of a contract."""
    expiry = instrument.expiry
    assert expiry is not None
    return f"{instrument.underlying}{MONTH_LETTERS[expiry.month - 1]}{expiry.year % 10}{expiry.year}{expiry.month:02}"


class FakeListener:
    """A listener with these Greeks."""

    def __init__(self, *names: str, **values: str) -> None:
        self.stats = ListenerStats(state=State.STREAMING)
        self._greeks = {}
        for name in names:
            raw = {"instrument_name": name, "timestamp": "1659760300724", "underlying_price": "20100", **values}
            self._greeks[name] = read_greeks(raw, Instrument.parse(name), 0)

    def greeks(self) -> dict[str, Any]:
        return self._greeks


def drawn(view: ChainView, listener: Any, width: int = 80) -> str:
    """What the view shows."""
    console = Console(file=io.StringIO(), width=width)
    console.print(view.render(listener))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


CHAIN = [f"BTC-26AUG22-{strike}-{side}" for strike in (19_000, 20_000, 21_000) for side in "CP"]


def test_a_terminal_gets_a_chain(options: LocalServer) -> None:
    """Calls on the left, strikes, puts on the right."""
    shown, code = run_in_terminal(
        "listen", month(nearest(options)), "--endpoint", options.url, ctrl_c_after="(--expiry DAY)", FINX_API_KEY="demo"
    )
    assert code == 0
    assert "BTC" in shown
    assert "strike" in shown
    assert "updates in" in shown


@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_lines_of_greeks(options: LocalServer, wire: str) -> None:
    """In each format, on both wires."""
    contract = nearest(options)
    command = ("listen", contract.name, "--endpoint", options.url, "--wire", wire, "--limit", "1")
    as_json = json.loads(run(*command, FINX_API_KEY="demo").stdout)
    assert (as_json["instrument"], as_json["kind"], as_json["raw"]["instrument_name"]) == (
        contract.name,
        "call",
        contract.name,
    )
    (row,) = csv.DictReader(io.StringIO(run(*command, "--format", "csv", FINX_API_KEY="demo").stdout))
    assert (row["instrument"], float(row["strike"])) == (contract.name, contract.strike)
    assert row["expiry"].endswith("T08:00:00+00:00")
    text = run(*command, "--format", "line", FINX_API_KEY="demo").stdout
    assert f"{contract.name} " in text
    assert "delta" in text


def test_pairs_and_options_are_not_mixed(options: LocalServer) -> None:
    """They have different columns."""
    result = run("listen", "BTC:USDC", "BTC-PERPETUAL", "--endpoint", options.url, FINX_API_KEY="demo")
    assert result.returncode == 2
    assert "can't be shown together" in result.stderr


@pytest.mark.parametrize("arguments", [("BTC:USDC", "--expiry", "26AUG22"), ("BTC-PERPETUAL", "--expiry", "26AUG22")])
def test_an_expiry_needs_a_chain(arguments: tuple[str, ...]) -> None:
    """A pipe gets all contracts."""
    result = run("listen", *arguments, "--endpoint", "demo")
    assert result.returncode == 2
    assert "--expiry is only for a table of options" in result.stderr


def test_the_strike_next_to_the_forward_is_in_the_middle() -> None:
    """The title names the expiry, the forward and the time left at the newest values."""
    shown = drawn(ChainView("here"), FakeListener(*CHAIN))
    assert "BTC 26AUG22, forward 20,100.00, 20 d 3 h left · here" in shown
    lines = [line for line in shown.splitlines() if "20,000" in line]
    assert len(lines) == 1


def test_missing_values_are_dashes() -> None:
    """A contract may have no quotes, or only one side is subscribed."""
    shown = drawn(ChainView("here"), FakeListener("BTC-26AUG22-20000-C", mark_iv="72.12", delta="0.5"))
    (line,) = (line for line in shown.splitlines() if "20,000" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "72.1",
        "+0.500",
        "-",
        "-",
        "20,000",
        "-",
        "-",
        "-",
        "-",
    ]


def test_one_expiry_is_shown() -> None:
    """The nearest one, or the one that was asked for. The others are named."""
    listener = FakeListener(*CHAIN, "BTC-30SEP22-25000-C", "ETH-26AUG22-1500-P")
    assert "also: ETH 26AUG22, BTC 30SEP22 (--expiry DAY)" in drawn(ChainView("here"), listener)
    later = drawn(ChainView("here", "30sep22"), listener)
    assert "BTC 30SEP22" in later
    assert "25,000" in later
    assert "20,000" not in later


def test_futures_have_a_table_of_their_own() -> None:
    """They have neither a strike nor Greeks."""
    shown = drawn(ChainView("here"), FakeListener("BTC-26AUG22", "BTC-PERPETUAL", mark_price="20123.5"))
    assert "BTC-PERPETUAL" in shown
    assert "20,123.50" in shown
    assert "strike" not in shown


def test_without_values_the_states_are_shown() -> None:
    """The first ones may take a while."""
    assert "here: no values yet" in drawn(ChainView("here"), FakeListener())


@pytest.mark.parametrize("day", ["", "tomorrow", "31FEB22", "PERPETUAL", "26AUG22-1-C"])
def test_refuses_a_malformed_expiry(day: str) -> None:
    """The error shows an example."""
    if day == "26AUG22-1-C":
        ChainView("here", day)  # the day of a contract
        return
    with pytest.raises(ConfigurationError, match="such as 26AUG22"):
        ChainView("here", day)


@pytest.mark.parametrize("width", [80, 120])
def test_a_chain_fits_the_terminal(width: int) -> None:
    """No cell is cut, also with many digits."""
    listener = FakeListener(
        *CHAIN, mark_iv="100.05", delta="-0.99999", best_bid_price="0.0125", best_ask_price="0.1305"
    )
    shown = drawn(ChainView("here"), listener, width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
