"""Deribit's tickers become Greeks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from finx_streamer.config.symbols import Option
from finx_streamer.server import ExchangeMarket, LocalServer
from finx_streamer.server.exchanges import feed
from tests.support.exchanges import LoopbackExchanges
from tests.support.peers import Seen

from .conftest import PAIR, Setting

Start = Callable[..., Setting]


@pytest.fixture(autouse=True)
def quick_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_FIRST_WAIT", 0.05)


def test_greeks(seen: Seen) -> None:
    with LoopbackExchanges([PAIR]) as exchanges:
        deribit = exchanges.deribit
        name = next(name for name, each in deribit.instruments.items() if each["kind"] == "option")
        market = ExchangeMarket([PAIR], exchanges=["OKX"], options=["BTC"], base_urls=exchanges.base_urls)
        with LocalServer(market) as server:
            exchanges.wait_until(
                lambda: any(name in channel for each in deribit.connections for channel in each.subscriptions)
            )
            expected = {each for each, about in deribit.instruments.items() if about["base_currency"] == "BTC"}
            server.wait_until(lambda stats: market.contracts == expected)
            with seen.listener(server.url, name):
                server.wait_connected()
                exchanges.call(deribit.make, name)
                (sent,) = exchanges.call(deribit.make, name, mark_price=0.0523, mark_iv=61.25, bid_iv=None)
                seen.wait_greeks(2)
    greeks = seen.greeks[1]
    assert greeks["instrument"] == name
    assert greeks["exchange"] == "DERIBIT"
    assert greeks["timestamp"] == datetime.fromtimestamp(sent["timestamp"] / 1_000, UTC)
    assert {each: greeks[each] for each in sent["greeks"]} == sent["greeks"]
    for each in ("mark_price", "mark_iv", "bid_iv", "ask_iv", "underlying_price", "index_price"):
        assert greeks[each] == sent[each]


def test_a_month_of_options(seen: Seen) -> None:
    """Each option of the month, and no future."""
    with LoopbackExchanges([PAIR]) as exchanges:
        deribit = exchanges.deribit
        options = [each for each in deribit.instruments.values() if each["kind"] == "option"]
        first = min(each["expiration_timestamp"] for each in options)
        expiry = datetime.fromtimestamp(first / 1_000, UTC)
        month = f"BTC{'FGHJKMNQUVXZ'[expiry.month - 1]}{expiry.year % 10}{expiry.year}{expiry.month:02}"
        expected = {
            each["instrument_name"]
            for each in options
            if each["base_currency"] == "BTC" and each["expiration_timestamp"] == first
        }
        market = ExchangeMarket([PAIR], exchanges=["OKX"], options=["BTC", "ETH"], base_urls=exchanges.base_urls)
        with LocalServer(market) as server:
            exchanges.wait_until(lambda: any(len(each.subscriptions) >= 30 for each in deribit.connections))
            with seen.listener(server.url, str(Option.parse(month))):
                server.wait_connected()
                exchanges.call(deribit.make)
                seen.wait_greeks(len(expected))
    assert {each["instrument"] for each in seen.greeks} == expected


def test_an_outage_of_deribit(seen: Seen) -> None:
    """It stops no trades. Afterwards, tickers go on."""
    with LoopbackExchanges([PAIR]) as exchanges:
        deribit = exchanges.deribit
        name = next(name for name, each in deribit.instruments.items() if each["kind"] == "option")
        market = ExchangeMarket([PAIR], exchanges=["OKX"], options=["BTC"], base_urls=exchanges.base_urls)
        with LocalServer(market) as server:
            exchanges.wait_subscribed("OKX")
            exchanges.wait_until(lambda: any(len(each.subscriptions) > 10 for each in deribit.connections))
            with seen.listener(server.url, PAIR, name):
                server.wait_connected(2)
                exchanges.call(deribit.drop, "rst")
                exchanges.wait_until(
                    lambda: (
                        deribit.handshakes == 2 and any(len(each.subscriptions) > 10 for each in deribit.connections)
                    )
                )
                exchanges.call(deribit.make, name)
                exchanges.make("OKX", PAIR)
                seen.wait_greeks(1)
                seen.wait_ticks(1)
                assert server.stats.exchanges["DERIBIT"].reconnects == 1
