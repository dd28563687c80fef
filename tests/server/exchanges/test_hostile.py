"""Hostile, broken and flooding exchanges, and a server that has no room."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from finx_streamer.server import ExchangeMarket, LocalServer
from finx_streamer.server.exchanges import feed
from tests.support.exchanges import EXCHANGES, LoopbackExchanges, RestFault
from tests.support.peers import Seen
from tests.support.raw_client import TIMEOUT

from .conftest import PAIR, Setting

Start = Callable[..., Setting]
Dial = Callable[..., ClientConnection]

GARBAGE: dict[str, str | bytes] = {
    "no JSON": "{",
    "empty": "",
    "deep": "[" * 50_000 + "]" * 50_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "null": "null",
    "list": "[]",
    "number": "1" * 5_000,
    "text": '"trade"',
    "binary": b"\xff\xfe\x00",
    "other object": '{"a":1}',
    "infinity": '{"data":Infinity}',
}


@pytest.fixture(autouse=True)
def quick_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_FIRST_WAIT", 0.05)


def own_message(setting: Setting, name: str) -> str:
    """A message of this exchange that would be right: of a trade far ahead, which isn't kept."""
    exchange = setting.exchanges[name]
    trade = exchange.books[PAIR].trades[-1]
    (text,) = exchange.messages(PAIR, [[trade._replace(id=trade.id + 1, last=trade.id + 1)]])
    return str(text)


@pytest.mark.parametrize("name", EXCHANGES)
def test_garbage(start: Start, name: str) -> None:
    """Nothing of it becomes a tick, and the trades after it arrive."""
    setting = start(name)
    setting.make(name)
    for message in GARBAGE.values():
        setting.exchanges.call(setting.exchanges[name].send_raw, message)
        setting.make(name)
    result = setting.wait_for_all()
    assert result.faultless, result
    assert setting.stats(name).lost == 0


def mutations(text: str) -> list[str]:
    """The message with each of its values replaced by those of other types, or removed."""
    found = []

    def walk(value: object, rebuild: Callable[[object], object]) -> None:
        for other in (None, True, [], {}, "x", "", -1, 1e400, "9" * 400, {"a": [None]}, "NaN", "\u0000", 0.1):
            found.append(json.dumps(rebuild(other)))
        if isinstance(value, dict):
            for key in value:
                found.append(json.dumps(rebuild({k: v for k, v in value.items() if k != key})))
                walk(value[key], lambda new, key=key, value=value: rebuild({**value, key: new}))  # type: ignore[misc]
        elif isinstance(value, list) and value:
            walk(value[0], lambda new, value=value: rebuild([new, *value[1:]]))  # type: ignore[misc]

    walk(json.loads(text), lambda new: new)
    return found


@pytest.mark.parametrize("name", EXCHANGES)
def test_wrong_types(start: Start, name: str) -> None:
    """No value of any other type ends the market. Trades with another ID or price may become ticks: they are valid."""
    setting = start(name)
    setting.make(name)
    setting.wait_for_all()
    exchange = setting.exchanges[name]
    for message in mutations(own_message(setting, name)):
        setting.exchanges.call(exchange.send_raw, message)
        if not exchange.subscribed(PAIR):
            setting.exchanges.wait_subscribed(name)
    setting.exchanges.wait_subscribed(name)
    live = setting.make(name, 3)
    setting.seen.wait_for(lambda: setting.seen.ticks[-1]["price"] == live[-1].price)
    assert not setting.seen.errors
    assert setting.server.running
    assert not setting.server.stats.finished
    for tick in setting.seen.ticks:
        assert tick["pair"] == PAIR
        assert float(tick["price"]) >= 0


@pytest.mark.parametrize("name", EXCHANGES)
def test_pairs_that_were_not_asked_for(start: Start, name: str, dial: Dial) -> None:
    """An exchange can't make other pairs' ticks."""
    exchanges = LoopbackExchanges([PAIR, "ETH:USDT"])
    setting = start(name, exchanges=exchanges)
    exchange = exchanges[name]
    trades = exchange.books["ETH:USDT"].trades
    messages = list(exchange.messages("ETH:USDT", [trades[-1:]]))
    setting.exchanges.call(exchange.send_raw, *messages)
    setting.make(name)
    result = setting.wait_for_all()
    assert result.faultless, result
    with pytest.raises(InvalidStatus, match="404"):
        dial(setting.server, "streaming/demo/ETH:USDT")


def test_a_huge_message_ends_the_connection(start: Start) -> None:
    setting = start("OKX")
    setting.make("OKX")
    setting.wait_for_all()
    exchange = setting.exchanges["OKX"]
    setting.exchanges.call(exchange.send_raw, "x" * (feed._LONGEST_MESSAGE + 1))
    setting.exchanges.wait_until(lambda: exchange.handshakes == 2)
    setting.exchanges.wait_subscribed("OKX")
    setting.make("OKX", 3)
    result = setting.wait_for_all()
    assert result.faultless, result


def test_redirects_are_refused(seen: Seen) -> None:
    """Neither the WebSocket nor REST follows one to another address."""
    with LoopbackExchanges([PAIR]) as exchanges, LoopbackExchanges([PAIR]) as others:
        exchanges["OKX"].rest_fault = RestFault(
            302, {"Location": others.base_urls["OKX"] + "/api/v5/public/instruments?instType=SPOT"}, trades=False
        )
        market = ExchangeMarket([PAIR], exchanges=["OKX"], base_urls=exchanges.base_urls)
        with LocalServer(market) as server:
            stats = server.wait_until(lambda stats: bool(stats.exchanges["OKX"].error))
            assert "302" in str(stats.exchanges["OKX"].error)
            exchanges.wait_subscribed("OKX")
        assert others["OKX"].requests == []


def test_text_of_an_exchange_reaches_no_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """An exchange's error could contain control characters, or lines that look like other entries."""
    setting = start("COINBASE")
    setting.make("COINBASE")
    setting.wait_for_all()
    exchange = setting.exchanges["COINBASE"]
    evil = {"type": "error", "message": "\x1b[2J\nevil", "reason": "evil"}
    setting.exchanges.call(exchange.send_raw, json.dumps(evil))
    setting.exchanges.wait_until(lambda: exchange.handshakes == 2)
    setting.exchanges.wait_subscribed("COINBASE")
    setting.make("COINBASE")
    setting.wait_for_all()
    assert "evil" not in caplog.text
    assert "\x1b" not in caplog.text


def test_pairs_that_no_exchange_lists_get_404(dial: Dial) -> None:
    pairs = (PAIR, "ETH:USDT", "DOGE:EUR")
    listed = {name: [PAIR] for name in EXCHANGES} | {"KRAKEN": [PAIR, "ETH:USDT"]}
    with LoopbackExchanges([PAIR], listed=listed) as exchanges:
        market = ExchangeMarket(pairs, base_urls=exchanges.base_urls)
        with LocalServer(market) as server:
            exchanges.wait_subscribed()
            exchanges.wait_subscribed("KRAKEN", pair="ETH:USDT")
            dial(server, f"streaming/demo/{PAIR}")
            dial(server, "streaming/demo/ETH:USDT")
            with pytest.raises(InvalidStatus, match="404"):
                dial(server, "streaming/demo/DOGE:EUR")
            assert market.pairs == {PAIR, "ETH:USDT"}


def test_an_unlisted_pair_is_reported_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    pairs = (PAIR, "ETH:USDT")
    setting = start("OKX", "KRAKEN", pairs=pairs, exchanges=LoopbackExchanges(pairs, listed={"KRAKEN": [PAIR]}))
    for _ in range(3):
        setting.drop("KRAKEN")
        setting.exchanges.wait_subscribed("KRAKEN")
    assert [text for text in caplog.messages if "ETH:USDT" in text] == ["KRAKEN: doesn't list ETH:USDT"]


def test_a_flood_does_not_delay_other_exchanges(start: Start) -> None:
    """The other exchange's trade overtakes the flood."""
    setting = start("BINANCE", "OKX")
    setting.make("BINANCE")
    setting.make("OKX")
    setting.wait_for_all()
    setting.make("BINANCE", 30_000)
    setting.make("OKX")
    result = setting.wait_for_all()
    assert result.faultless, result
    names = [tick["exchange"] for tick in setting.seen.ticks]
    assert "BINANCE" in names[len(names) - names[::-1].index("OKX") :]


def test_a_burst_loses_nothing(start: Start) -> None:
    setting = start("BYBIT", "KRAKEN")
    setting.make("BYBIT", 20_000)
    setting.make("KRAKEN", 20_000)
    result = setting.wait_for_all()
    assert result.faultless, result
    assert setting.stats("BYBIT").gaps == setting.stats("KRAKEN").gaps == 0


def test_a_store_without_room_slows_the_exchange_down(start: Start, tmp_path: Path) -> None:
    """While the store is busy, the server stops reading. The exchange feels it, and no tick is lost."""
    setting = start("BINANCE", server={"store": tmp_path / "ticks.db", "store_batch": 64})
    setting.make("BINANCE")
    setting.wait_for_all()
    exchange, gate = setting.exchanges["BINANCE"], threading.Event()
    service = setting.server._thread.service
    assert service is not None
    recorder = setting.server._state.recorder
    busy = asyncio.run_coroutine_threadsafe(recorder.query(lambda store: gate.wait(TIMEOUT)), service.loop)
    try:
        # Fill the buffers on the way, until the exchange can't send any more.
        stuck = 0
        while not stuck or exchange.waiting != stuck:
            setting.exchanges.call(exchange.send_raw, *[f'{{"id":"{"x" * 500_000}"}}'] * 10)
            setting.make("BINANCE", 500)
            stuck = exchange.waiting
            gate.wait(0.2)
        assert setting.stats("BINANCE").trades < len(setting.made["BINANCE", PAIR])
    finally:
        gate.set()
    assert busy.result(TIMEOUT)
    result = setting.wait_for_all()
    assert result.faultless, result
    assert setting.stats("BINANCE").reconnects == 0


def test_the_server_starts_again(start: Start) -> None:
    """The trades of the pause can't be known to it, and none of the others comes twice."""
    setting = start("OKX", "KRAKEN", "COINBASE")
    for name in ("OKX", "KRAKEN", "COINBASE"):
        setting.make(name, 5)
    setting.wait_for_all()
    setting.server.stop()
    for name in ("OKX", "KRAKEN", "COINBASE"):
        setting.exchanges.make(name, PAIR, 5)
    setting.server.start()
    for name in ("OKX", "KRAKEN", "COINBASE"):
        setting.exchanges.wait_subscribed(name)
    setting.server.wait_connected()
    for name in ("OKX", "KRAKEN", "COINBASE"):
        setting.make(name, 5)
    result = setting.wait_for_all()
    assert not result.missing
    assert not result.repeated
