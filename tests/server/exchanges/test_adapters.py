"""What each adapter reads and asks for, on recorded messages and on anything else that an exchange may send."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.server.contracts import KEYS, ContractTicker, parse_ticker
from finx_streamer.server.exchanges import find_adapters
from finx_streamer.server.exchanges.adapter import (
    MALFORMED,
    Adapter,
    Gap,
    Page,
    Trade,
    iso_time,
    join_pair,
    make_trade,
    unix_time,
)
from finx_streamer.server.exchanges.deribit import Deribit
from finx_streamer.server.exchanges.rest import decode_json, retry_after
from finx_streamer.server.ticks import parse_tick

#: Real messages. They aren't part of the project.
RECORDINGS = Path("/work/shared/data")
MARKETS = sorted(name for name in find_adapters() if name != "DERIBIT")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def recorded(path: str) -> list[Any]:
    file = RECORDINGS / path
    if not file.exists():
        pytest.skip(f"the recording {file} isn't on this machine")
    return [decode_json(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read(adapter: Adapter, messages: list[Any]) -> Iterator[tuple[str, Trade]]:
    for message in messages:
        for symbol, row in adapter.rows(message):
            yield symbol, adapter.trade(row)


@pytest.mark.parametrize(
    ("name", "path", "count", "first"),
    [
        (
            "BINANCE", "exchanges/binance.jsonl", 2,
            ("NKNUSDT", Trade(15683430, 15683430, "0.35280000", "2021-10-12", "00:28:43.963Z")),
        ),
        (
            "BITSTAMP", "exchanges/bitstamp.jsonl", 10,
            ("ethusd", Trade(216000477, 216000477, "3805.44", "2022-01-05", "00:48:19.596000Z")),
        ),
        (
            "BYBIT", "exchanges/ccxt_2026_bybit.jsonl", 7,
            ("BTCUSDT", Trade(2290000001190010743, 2290000001190010743, "64104.5", "2026-08-12", "12:45:00.833Z")),
        ),
        (
            "KRAKEN", "exchanges/kraken_v2_captured.jsonl", 4,
            ("BTC/USDT", Trade(9622656, 9622656, "118832.9", "2025-07-23", "04:41:46.919844Z")),
        ),
        (
            "OKX", "exchanges/ccxt_2026_okx.jsonl", 2,
            ("BTC-USDT", Trade(1040968612, 1040968613, "64040.2", "2026-08-12", "12:46:00.218Z")),
        ),
        ("COINBASE", "exchanges/coinbase.jsonl", None, None),
        ("OKX", "exchanges/okx.jsonl", None, None),
    ],
)  # fmt: skip
def test_recorded_messages(name: str, path: str, count: int | None, first: tuple[str, Trade] | None) -> None:
    """Each trade becomes a valid tick with the exchange's own digits, and each pair's IDs increase."""
    messages = recorded(path)
    trades = list(read(find_adapters()[name](), messages))
    assert trades
    if first is not None:
        assert (len(trades), trades[0]) == (count, first)
    written = (RECORDINGS / path).read_text(encoding="utf-8")
    newest: dict[str, Trade] = {}
    for symbol, trade in trades:
        parse_tick({"pair": "A:B", "date": trade.date, "time": trade.time, "exchange": name, "price": trade.price})
        assert trade.price in written
        assert symbol not in newest or newest[symbol].last < trade.first
        newest[symbol] = trade


def test_consecutive_ids_of_recorded_messages() -> None:
    """OKX's ID is that of the last of the trades in a message."""
    for name, path in (("OKX", "ccxt_2026_okx.jsonl"), ("BYBIT", "ccxt_2026_bybit.jsonl")):
        trades = [trade for _, trade in read(find_adapters()[name](), recorded(f"exchanges/{path}"))]
        assert {after.first - before.last for before, after in itertools.pairwise(trades)} == {1}


def test_snapshots_are_recognized() -> None:
    coinbase, kraken, bybit = (find_adapters()[name]() for name in ("COINBASE", "KRAKEN", "BYBIT"))
    kinds = {
        message["type"]: coinbase.is_snapshot(message)
        for message in recorded("exchanges/coinbase.jsonl")
        if coinbase.rows(message)
    }
    assert kinds == {"last_match": True, "match": False}
    assert [kraken.is_snapshot({"channel": "trade", "type": kind}) for kind in ("snapshot", "update")] == [True, False]
    # To Bybit, everything is a snapshot.
    assert not any(map(bybit.is_snapshot, recorded("exchanges/ccxt_2026_bybit.jsonl")))


def test_recorded_tickers() -> None:
    """Each has the vendor's keys, and the exchange's own digits without trailing zeros."""
    adapter = Deribit(currencies=("BTC", "ETH"))
    for message in recorded("greeks/deribit_ticker.jsonl"):
        [(name, row)] = adapter.rows(message)
        ticker = parse_ticker(row)
        assert isinstance(ticker, ContractTicker)
        assert (ticker.instrument.name, tuple(ticker.values)) == (name, KEYS)


def test_combinations_are_no_contracts() -> None:
    names = ["BTC-25DEC26-64000-C", "BTC-PERPETUAL", "BTC-CS-25DEC26-64000_66000", "BTC_USDC-PERPETUAL", 1, None, "x"]
    adapter = Deribit(currencies=("BTC",))
    found = adapter.symbols({"result": [{"instrument_name": name} for name in names if isinstance(name, str)]})
    assert set(found) == {"BTC-25DEC26-64000-C", "BTC-PERPETUAL"}


@pytest.mark.parametrize("name", MARKETS)
@given(value=JSON)
def test_any_json_value_is_read_or_rejected(name: str, value: Any) -> None:
    """In place of a message, of a row, and of an answer."""
    adapter = find_adapters()[name]()
    for action in (
        adapter.rows,
        adapter.trade,
        adapter.is_snapshot,
        adapter.symbols,
        adapter.problem,
        adapter.history_rows,
        adapter.history_trade,
    ):
        with contextlib.suppress(MALFORMED):
            list(action(value) or ())  # type: ignore[call-overload]


@given(number=JSON | st.integers(0, 2**70).map(str), price=JSON | st.decimals(allow_nan=True).map(str), count=JSON)
def test_trades_are_valid_or_rejected(number: Any, price: Any, count: Any) -> None:
    try:
        trade = make_trade(number, price, ("2026-11-29", "08:00:00.000Z"), count)
    except MALFORMED:
        return
    assert 0 <= trade.first <= trade.last < 2**63
    assert set(trade.price) <= set("0123456789.")
    parse_tick({"pair": "A:B", "date": trade.date, "time": trade.time, "exchange": "X", "price": trade.price})


@pytest.mark.parametrize(
    "price", ["1e5", "-1", "", ".5", "5.", "1_0", "NaN", "\u0661", "9" * 21, "0." + "1" * 21, True, 1.5]
)
def test_odd_prices_are_rejected(price: Any) -> None:
    with pytest.raises(MALFORMED):
        make_trade(1, price, ("2026-11-29", "08:00:00.000Z"))


@given(st.integers(1_300_000_000, 4_000_000_000), st.sampled_from([0, 3, 6]), st.data())
def test_times_keep_their_precision(seconds: int, digits: int, data: st.DataObject) -> None:
    fraction = data.draw(st.integers(0, 10**digits - 1))
    day, clock = unix_time(str(seconds * 10**digits + fraction), digits)
    trade = Trade(1, 1, "1", day, clock)
    assert trade.nanoseconds == seconds * 10**9 + fraction * 10 ** (9 - digits)
    assert len(clock.partition(".")[2].rstrip("Z")) == digits
    assert iso_time(f"{day}T{clock}") == (day, clock)


@pytest.mark.parametrize(
    "value", ["2026-11-29 08:00:00Z", "2026-02-30T08:00:00Z", "2026-11-29T25:00:00Z", "1969-01-01T00:00:00Z", ""]
)
def test_odd_times_are_rejected(value: str) -> None:
    with pytest.raises(MALFORMED):
        iso_time(value)


@pytest.mark.parametrize("value", [-1, 10**30, 1.5, None, "1_0", True, 0])
def test_odd_numbers_of_seconds_are_rejected(value: Any) -> None:
    with pytest.raises(MALFORMED):
        unix_time(value, 3)


def test_assets_have_one_name() -> None:
    """Stablecoins aren't dollars."""
    assert [join_pair("XBT", "usdt"), join_pair("xdg", "USD"), join_pair("ETH", "USDC")] == [
        "BTC:USDT", "DOGE:USD", "ETH:USDC"
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*MARKETS, "DERIBIT"])
def test_another_base_url(name: str) -> None:
    """The exchange's own paths lie below it."""
    kind = find_adapters()[name]
    path = kind.websocket.split("/", 3)[3]
    moved = kind("https://127.0.0.1:9000/x")
    assert (moved.websocket_url, moved.rest_url) == (f"wss://127.0.0.1:9000/x/{path}", "https://127.0.0.1:9000/x")
    assert kind("http://localhost").websocket_url == f"ws://localhost/{path}"
    assert kind().websocket_url.startswith("wss://")
    assert kind().rest_url.startswith("https://")


def paths(name: str, gap: Gap, *pages: list[int], size: int) -> list[str | None]:
    """The requests for a gap, with pages of these IDs as answers."""
    adapter = find_adapters()[name]()
    found = [adapter.history_path("S", gap, None, 5.0)]
    for page in pages:
        trades = [Trade(each, each, "1", "2026-11-29", f"08:00:{each:02}Z") for each in page]
        found.append(adapter.history_path("S", gap, Page(size, trades[0], trades[-1]), 5.0))
    return found


AFTER = Trade(9, 9, "1", "2026-11-29", "08:00:09.5Z")


def test_requests_for_older_pages() -> None:
    """From the end of the gap to its beginning. Without an end, from the newest trade."""
    gap = Gap(10, 19, AFTER, 0.0)
    assert paths("COINBASE", gap, [15, 19], [10, 14], size=1_000) == [
        "/products/S/trades?limit=1000&after=20", "/products/S/trades?limit=1000&after=15", None
    ]  # fmt: skip
    assert paths("OKX", gap, [15, 19], [8, 14], size=100)[1:] == [
        "/api/v5/market/history-trades?instId=S&type=1&limit=100&after=15", None
    ]  # fmt: skip
    is_open = Gap(10, None, AFTER, 0.0)
    assert paths("COINBASE", is_open, [15, 19], size=1)[0:2] == ["/products/S/trades?limit=1000", None]


def test_requests_for_newer_pages() -> None:
    gap = Gap(10, 19, AFTER, 0.0)
    assert paths("BINANCE", gap, [10, 14], [15, 19], size=1_000) == [
        "/api/v3/aggTrades?symbol=S&fromId=10&limit=1000", "/api/v3/aggTrades?symbol=S&fromId=15&limit=1000", None
    ]  # fmt: skip
    kraken = find_adapters()["KRAKEN"]()
    listing = {"result": {"XXBTZUSD": {"wsname": "XBT/USD", "altname": "XBTUSD"}, "old": {"altname": "x"}}}
    assert kraken.symbols(listing) == {"BTC:USD": "BTC/USD"}
    assert kraken.history_path("BTC/USD", gap, None, 5.0) == (
        f"/0/public/Trades?pair=XBTUSD&since={AFTER.nanoseconds - 1}&count=1000"
    )


def test_requests_that_have_one_page() -> None:
    gap = Gap(10, None, AFTER, 0.0)
    assert paths("BYBIT", gap, [10, 14], size=60)[1] is None
    assert paths("BITSTAMP", gap, [10, 14], size=60) == ["/api/v2/transactions/S/?time=minute", None]
    bitstamp = find_adapters()["BITSTAMP"]()
    assert bitstamp.history_path("S", gap, None, 600.0) == "/api/v2/transactions/S/?time=hour"
    assert bitstamp.history_path("S", gap, None, 6_000.0) == "/api/v2/transactions/S/?time=day"


def test_kraken_answers() -> None:
    kraken = find_adapters()["KRAKEN"]()
    body = decode_json(
        '{"error":[],"result":{"XBTUSD":[["30243.40000","0.3",1688669597.8277369,"b","m","",7]],"last":"1"}}'
    )
    [row] = kraken.history_rows(body)
    assert kraken.history_trade(row) == Trade(7, 7, "30243.40000", "2023-07-06", "18:53:17.827736Z")
    with pytest.raises(MALFORMED):
        kraken.history_rows({"error": ["EAPI:Rate limit exceeded"]})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("99999999", 3_600.0), ("-1", 0.0), ("nan", None), ("x", None), (None, None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


@given(st.decimals(0, 10**9, places=6))
def test_numbers_keep_their_digits(number: Any) -> None:
    text = f"{number:f}"
    assert decode_json(json.dumps({"price": 0}).replace("0}", f"{text}}}")) == {"price": text}
