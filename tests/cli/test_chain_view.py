"""`finx-streamer listen` with options: a chain in a terminal, lines elsewhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finx_streamer import ConfigurationError, FunctionClient, Instrument, ListenerStats, Option, State
from finx_streamer.cli.chain_view import ChainView, parse_expiry
from finx_streamer.config.symbols import parse_symbol
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.wire.contract_ticker import read_greeks
from tests.support.cli import run, run_in_terminal


@pytest.fixture
def options() -> Iterator[LocalServer]:
    """A server with options."""
    with LocalServer(SimulatedMarket(rate=50.0, options=("BTC",)), keys={"demo"}) as server:
        yield server


def contracts(server: LocalServer) -> list[Instrument]:
    """All contracts of a server."""
    with FunctionClient("demo", server.url) as client:
        return list(map(Instrument.parse, client.list_contracts()))


def nearest(server: LocalServer) -> Instrument:
    """A call of the nearest expiry."""
    calls = [each for each in contracts(server) if each.kind == "call"]
    return min(calls, key=lambda each: (each.expiry, each.strike))


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
        "listen",
        str(Option.of(nearest(options))),
        "--endpoint",
        options.url,
        ctrl_c_after="(--expiry DAY)",
        FINX_API_KEY="demo",
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


def test_exchanges_are_for_pairs() -> None:
    """All contracts are Deribit's, so the option would hide everything or nothing."""
    result = run("listen", "BTC-PERPETUAL", "--exchange", "BINANCE", "--endpoint", "demo")
    assert (result.returncode, "only for pairs" in result.stderr) == (2, True)


def test_the_demo_has_a_chain() -> None:
    """Of the nearest month, in a terminal and in a pipe."""
    shown, code = run_in_terminal("demo", "--options", ctrl_c_after="puts")
    assert code == 0
    assert "BTC" in shown
    result = run("demo", "--options", "--limit", "3")
    assert [json.loads(line)["underlying"] for line in result.stdout.splitlines()] == ["BTC"] * 3


def test_recorded_lines_can_be_played(tmp_path: Path) -> None:
    """`listen --output` writes a tape of contracts, too."""
    path = tmp_path / "options.jsonl"
    result = run(
        "listen", "BTC-PERPETUAL", "ETH-PERPETUAL", "--endpoint", "demo", "--output", str(path), "--limit", "4"
    )
    assert result.returncode == 0
    assert Tape(path).contracts == {"BTC-PERPETUAL", "ETH-PERPETUAL"}


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
    lines = [line for line in shown.splitlines() if "20000" in line]
    assert len(lines) == 1


def test_missing_values_are_dashes() -> None:
    """A contract may have no quotes, or only one side is subscribed."""
    shown = drawn(ChainView("here"), FakeListener("BTC-26AUG22-20000-C", mark_iv="72.12", delta="0.5"))
    (line,) = (line for line in shown.splitlines() if "20000" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "72.1",
        "+0.500",
        "-",
        "-",
        "20000",
        "-",
        "-",
        "-",
        "-",
    ]


def test_one_expiry_is_shown() -> None:
    """The nearest one, or the one that was asked for. The others are named."""
    listener = FakeListener(*CHAIN, "BTC-30SEP22-25000-C", "ETH-26AUG22-1500-P")
    assert "also: 30SEP22 (--expiry DAY)" in drawn(ChainView("here"), listener)
    later = drawn(ChainView("here", Instrument.parse("BTC-30SEP22").expiry), listener)
    assert "BTC 30SEP22" in later
    assert "25000" in later
    assert "20000" not in later
    missing = ChainView("here", Instrument.parse("BTC-1OCT22").expiry)
    assert "no option expires on 1OCT22; these do: 26AUG22, 30SEP22" in drawn(missing, listener)


def test_each_underlying_has_a_chain() -> None:
    """They share the screen."""
    shown = drawn(ChainView("here"), FakeListener(*CHAIN, "ETH-26AUG22-1500-P", "ETH-30SEP22-1500-P"))
    assert "BTC 26AUG22" in shown
    assert "ETH 26AUG22" in shown
    assert "ETH 30SEP22" not in shown
    assert shown.count("strike") == 2


def test_expired_options_make_room_for_the_next_expiry() -> None:
    """A command may run for days. Without another expiry, the last values stay."""
    values = {"timestamp": "1661500800000"}  # 26AUG22, 08:00
    assert "BTC 30SEP22" in drawn(ChainView("here"), FakeListener(*CHAIN, "BTC-30SEP22-25000-C", **values))
    assert "BTC 26AUG22, forward 20,100.00, expired" in drawn(ChainView("here"), FakeListener(*CHAIN, **values))


def test_without_a_forward_no_strike_is_marked() -> None:
    """Then the strikes in the middle are shown."""
    names = [f"BTC-26AUG22-{strike}-C" for strike in range(10_000, 90_000, 1_000)]
    shown = drawn(ChainView("here"), FakeListener(*names, underlying_price=""))
    assert "BTC 26AUG22, 20 d 3 h left" in shown
    assert "50000" in shown
    assert "10000" not in shown


def test_quotes_have_the_same_decimals() -> None:
    """So that they can be compared. 0 means that there is no quote."""
    shown = drawn(ChainView("here"), FakeListener(*CHAIN, best_bid_price="0", best_ask_price="0.0125"))
    (line,) = (line for line in shown.splitlines() if "20000" in line)
    assert [cell.strip() for cell in line.split("│")[3:5]] == ["-", "0.0125"]
    listener = FakeListener(*CHAIN, best_bid_price="0.01", best_ask_price="12.5")
    assert drawn(ChainView("here"), listener).count("12.50") == 6


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
    with pytest.raises(ConfigurationError, match="such as 26AUG22"):
        parse_expiry(day, [])


@pytest.mark.parametrize("symbol", ["BTCQ2202208", "BTC-26AUG22-20000-C"])
def test_an_expiry_belongs_to_a_symbol(symbol: str) -> None:
    """To a month of options, or to one of them. Upper case isn't needed."""
    symbols = [parse_symbol("ETH-PERPETUAL"), parse_symbol(symbol)]
    assert parse_expiry("26aug22", symbols) == datetime(2022, 8, 26, 8, tzinfo=UTC)
    for wrong in ("27AUG22", "26SEP22")[symbol.startswith("BTCQ") :]:
        with pytest.raises(ConfigurationError, match=f"no option that you listen to expires on {wrong}"):
            parse_expiry(wrong, symbols)


def test_an_expiry_that_no_symbol_has() -> None:
    """Nothing is listened to: the error names the month to listen to."""
    arguments = ("BTC-PERPETUAL", "--endpoint", "demo", "--expiry", "26AUG22")
    shown, code = run_in_terminal("listen", *arguments)
    assert code == 2
    assert "its month, which is BTCQ2202208 for BTC" in " ".join(shown.split())


def test_an_expiry_that_never_appears(options: LocalServer) -> None:
    """The month has options, but none of that day. The end says so, too."""
    month = Option.of(nearest(options))
    listed = {each.expiry.day for each in contracts(options) if each.expiry is not None and month.includes(each)}
    day = next(day for day in range(1, 29) if day not in listed)
    expiry = f"{day}{datetime(2000, month.month, 1):%b}{month.year % 100:02}".upper()
    shown, code = run_in_terminal(
        "listen",
        str(month),
        "--endpoint",
        options.url,
        "--expiry",
        expiry,
        ctrl_c_after="these do",
        FINX_API_KEY="demo",
    )
    assert code == 0
    assert f"finx-streamer: no option that expires on {expiry} appeared" in shown


def test_an_expiry_that_appeared_is_not_missing() -> None:
    """Even if it is gone at the end."""
    view = ChainView("here", Instrument.parse("BTC-26AUG22").expiry)
    assert view.missing() == "no option that expires on 26AUG22 appeared (--expiry)"
    drawn(view, FakeListener(*CHAIN))
    drawn(view, FakeListener())
    assert (view.missing(), ChainView("here").missing()) == (None, None)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("bid", "ask"), [("0.0125", "0.13055"), ("12345.5", "22345"), ("0.00001", "1234567")])
def test_a_chain_fits_the_terminal(bid: str, ask: str, width: int) -> None:
    """No cell is cut, also with many digits."""
    names = [f"BTC-26AUG22-{strike}-{side}" for strike in (100_000, 150_000) for side in "CP"]
    listener = FakeListener(*names, mark_iv="100.05", delta="-0.99999", best_bid_price=bid, best_ask_price=ask)
    shown = drawn(ChainView("here"), listener, width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
