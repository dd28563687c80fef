"""Contract tickers: what is read, what is tolerated, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import DecodeError, Instrument, Notice, Option, ServerError
from finx_streamer.config.redaction import remember
from finx_streamer.config.symbols import Contract, parse_symbol
from finx_streamer.wire.contract_ticker import NUMBERS
from finx_streamer.wire.decoder import Decoder

NAME = "BTC-26AUG22-20000-C"
#: The vendor's own example.
EXAMPLE = {
    "redis_key": NAME, "underlying_price": "23227.53", "underlying_index": "BTC-26AUG22", "timestamp": "1659760300724",
    "state": "open", "settlement_price": "0.15522931", "open_interest": "846.5", "min_price": "0.1205",
    "max_price": "0.197", "mark_price": "0.1553", "mark_iv": "72.12", "last_price": "0.1535", "interest_rate": "0",
    "instrument_name": NAME, "index_price": "23199.76", "estimated_delivery_price": "23199.76", "bid_iv": "0",
    "best_bid_price": "0.125", "best_bid_amount": "5", "best_ask_price": "0.19", "best_ask_amount": "5",
    "ask_iv": "122.66", "vega": "13.62974", "theta": "-24.39797", "rho": "8.69414", "gamma": "0.00006",
    "delta": "0.83341", "volume": "3.3", "price_change": "-3.2258", "low": "0.15", "high": "0.162",
}  # fmt: skip
MONTH = Option.parse("BTCQ2202208")


def read(message: Any, symbol: str | Contract = MONTH) -> Any:
    """What a stream of this symbol makes of a message."""
    contract = parse_symbol(symbol)
    assert isinstance(contract, Option | Instrument)
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    return Decoder(str(contract), None, contract=contract).decode(text, 7)


def test_the_vendors_example() -> None:
    """Each value has its place. Texts become numbers, and `raw` keeps them."""
    greeks = read(EXAMPLE)
    assert greeks.pop("raw") == EXAMPLE
    assert greeks == {
        "symbol": "BTCQ2202208",
        "instrument": NAME,
        "exchange": "DERIBIT",
        "underlying": "BTC",
        "kind": "call",
        "strike": 20_000.0,
        "expiry": datetime(2022, 8, 26, 8, tzinfo=UTC),
        "timestamp": datetime(2022, 8, 6, 4, 31, 40, 724_000, UTC),
        "received_ns": 7,
        "delta": 0.83341,
        "gamma": 0.00006,
        "vega": 13.62974,
        "theta": -24.39797,
        "rho": 8.69414,
        "mark_iv": 72.12,
        "bid_iv": 0.0,
        "ask_iv": 122.66,
        "mark_price": 0.1553,
        "underlying_price": 23_227.53,
        "index_price": 23_199.76,
        "best_bid_price": 0.125,
        "best_ask_price": 0.19,
    }


def test_the_envelope_of_the_first_wire() -> None:
    """The values are the same."""
    enveloped = read({"results": "streaming", "resultData": {**EXAMPLE, "exchange": "DERIBIT"}})
    assert enveloped | {"raw": EXAMPLE} == read(EXAMPLE)


def test_recorded_tickers(shared_data: Path) -> None:
    """All of Deribit's recorded ones can be read: options and futures."""
    kinds = set()
    for line in (shared_data / "greeks" / "deribit_ticker.jsonl").read_text().splitlines():
        data = json.loads(line)
        data = data.get("params", {}).get("data", data)
        flat = {**data, **data.pop("greeks", {}), **data.pop("stats", {})}
        raw = {name: "" if value is None else str(value) for name, value in flat.items()}
        greeks = read(raw, raw["instrument_name"])
        kinds.add(greeks["kind"])
        assert (greeks["delta"] is None) == (greeks["strike"] is None)
        for name in NUMBERS:
            assert greeks[name] == (float(raw[name]) if raw.get(name) else None)
    assert kinds >= {"call", "put"}


@pytest.mark.parametrize("value", ["", None])
def test_empty_values_are_none(value: object) -> None:
    """Deribit sends null where there is no value, FinX an empty text."""
    greeks = read({**EXAMPLE, **dict.fromkeys(NUMBERS, value)})
    assert {greeks[name] for name in NUMBERS} == {None}
    assert greeks["raw"]["delta"] == value


def test_missing_values_are_none() -> None:
    """Only the name and the time are needed."""
    greeks = read({"instrument_name": NAME, "timestamp": "1659760300724"})
    assert {greeks[name] for name in NUMBERS} == {None}


def test_unknown_values_are_kept() -> None:
    """FinX may add some."""
    assert read({**EXAMPLE, "funding": [1, {"a": None}]})["raw"]["funding"] == [1, {"a": None}]


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), (0.25, 0.25), ("1e-3", 0.001), ("-0", 0.0), ("+.5", 0.5)])
def test_numbers_may_be_numbers(value: object, number: float) -> None:
    """In place of texts."""
    assert read({**EXAMPLE, "delta": value, "timestamp": 1_659_760_300_724})["delta"] == number


@pytest.mark.parametrize("name", [*NUMBERS, "timestamp"])
@pytest.mark.parametrize(
    "value", ["x", "nan", "inf", "1_000", " 1", "1,5", "1e999", "--1", True, [], {}, "9" * 65, 10**400, "\u0661"]
)
def test_anything_else_is_refused(name: str, value: object) -> None:
    """The error names the value's place."""
    error = read({**EXAMPLE, name: value})
    assert isinstance(error, DecodeError)
    assert error.symbol == "BTCQ2202208"
    assert name in error.reason or "range" in error.reason


@pytest.mark.parametrize("value", ["", None, "1e300", "-1e18"])
def test_a_ticker_needs_a_time(value: object) -> None:
    """In milliseconds since 1970."""
    assert isinstance(read({**EXAMPLE, "timestamp": value}), DecodeError)


@pytest.mark.parametrize("name", ["BTC-31FEB22-20000-C", "BTC-26AUG22-20000-X", "btc-26aug22-20000-c", "", 5, None, []])
def test_a_ticker_needs_a_contract(name: object) -> None:
    """An expiry that doesn't exist is refused, too."""
    assert isinstance(read({**EXAMPLE, "instrument_name": name}), DecodeError)


@pytest.mark.parametrize(
    ("symbol", "belongs"),
    [
        ("BTCQ2202208", True),
        (NAME, True),
        ("BTCU2202209", False),
        ("ETHQ2202208", False),
        ("BTC-26AUG22-20000-P", False),
        ("BTC-26AUG22", False),
    ],
)
def test_a_ticker_belongs_to_its_stream(symbol: str, belongs: bool) -> None:
    """One on another stream is an error, as with ticks."""
    found = read(EXAMPLE, symbol)
    assert isinstance(found, dict) == belongs
    assert belongs or "on the stream of" in found.reason


@pytest.mark.parametrize(
    ("name", "kind", "underlying", "strike"),
    [
        ("BTC-PERPETUAL", "perpetual", "BTC", None),
        ("BTC_USDC-PERPETUAL", "perpetual", "BTC_USDC", None),
        ("ETH-19AUG22", "future", "ETH", None),
        ("ETH-5AUG22-1250-P", "put", "ETH", 1_250.0),
        ("XRP_USDC-30JUN23-0d525-C", "call", "XRP_USDC", 0.525),
    ],
)
def test_each_kind_of_contract(name: str, kind: str, underlying: str, strike: float | None) -> None:
    """The name says what it is."""
    greeks = read({"instrument_name": name, "timestamp": 0}, name)
    assert (greeks["kind"], greeks["underlying"], greeks["strike"]) == (kind, underlying, strike)
    assert (greeks["expiry"] is None) == (kind == "perpetual")


def test_the_placeholder_is_a_notice() -> None:
    """What a server without options sends."""
    assert isinstance(read({"feature": "scheduled for future release"}), Notice)


def test_an_error_is_an_error() -> None:
    """Also if it names a contract."""
    assert isinstance(read({"error": "unknown", "instrument_name": NAME}), ServerError)


def test_the_key_does_not_reach_the_user() -> None:
    """A server may put it anywhere into a ticker."""
    remember("very-secret-key")
    for name in [*EXAMPLE, "more", "very-secret-key"]:
        found = read({**EXAMPLE, name: "very-secret-key"})
        assert "very-secret-key" not in repr(found)
        assert "very-secret-key" not in str(found)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*EXAMPLE, "exchange", "error", "results", "resultData"]), values))
def test_any_object_is_decoded(changes: dict[str, Any]) -> None:
    """It becomes Greeks with numbers or None, or a message of another kind. Nothing raises."""
    found = read({**EXAMPLE, **changes})
    if not isinstance(found, dict):
        assert isinstance(found, DecodeError | Notice | ServerError)
        return
    assert {type(found[name]) for name in NUMBERS} <= {float, type(None)}
    assert found["timestamp"].tzinfo is UTC


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded(message: bytes) -> None:
    """Nothing raises."""
    assert isinstance(read(message), DecodeError | Notice | ServerError)
