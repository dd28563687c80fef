"""The loopback exchanges send what real exchanges sent: the same members, of the same types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.exchanges import EXCHANGES, Deribit, Trade
from tests.support.exchanges.recordings import recordings


def shape(value: Any) -> Any:
    """The structure of a JSON value: its members and types, without its values."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(value[0])]
    # JSON has one type for numbers.
    return "number" if type(value) in (int, float) else type(value).__name__


def test_trades(shared_data: Path) -> None:
    """The first recording of OKX is from before `count`, `source` and `seqId` were added."""
    seen = set()
    for recording in recordings(shared_data / "exchanges"):
        exchange = EXCHANGES[recording.exchange]([recording.pair], 0, None)
        trades = recording.trades[:1]
        (made,) = exchange.messages(recording.pair, [[trades[0]._replace(last=trades[0].id)]])
        recorded = next(line for line in recording.lines if '"last_match"' not in line)
        expected, found = shape(json.loads(recorded)), shape(json.loads(made))
        if recording.exchange == "OKX" and "count" not in expected["data"][0]:
            for name in ("count", "source", "seqId"):
                del found["data"][0][name]
        assert found == expected
        seen.add(recording.exchange)
    assert seen == set(EXCHANGES)


def test_single_trades_are_the_same_text(shared_data: Path) -> None:
    """Apart from what a tick doesn't contain, such as amounts, messages agree to the byte."""
    trade = Trade(15683430, 1633998523963 * 1_000_000, "0.35280000", 15683430)
    (made,) = EXCHANGES["BINANCE"](["NKN:USDT"], 0, None).messages("NKN:USDT", [[trade]])
    recorded = (shared_data / "exchanges" / "binance.jsonl").read_text().splitlines()[0]
    for name in ("stream", "data"):
        first, second = json.loads(made)[name], json.loads(recorded)[name]
        if name == "data":
            for other in ("q", "f", "l"):
                del first[other], second[other]
        assert first == second


def test_tickers(shared_data: Path) -> None:
    deribit = Deribit(["BTC"])
    option = next(name for name, each in deribit.instruments.items() if each["kind"] == "option")
    (made,) = deribit.make(option)
    lines = (shared_data / "greeks" / "deribit_ticker.jsonl").read_text().splitlines()
    recorded = json.loads(lines[0])["params"]["data"]
    assert set(made) == set(recorded)
    for name in ("greeks", "stats"):
        assert set(made[name]) == set(recorded[name])
