"""Six loopback exchanges, the server and a client: every trade arrives once, in order, with its digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finx_streamer.server.exchanges import feed
from tests.support.exchanges import EXCHANGES, LoopbackExchanges, RestFault
from tests.support.exchanges.recordings import recordings

from .conftest import PAIR, Setting

Start = Callable[..., Setting]

#: How many missed trades each exchange's REST interface can return.
REACH = {"BINANCE": 2_500, "COINBASE": 2_500, "KRAKEN": 2_500, "OKX": 250, "BYBIT": 55, "BITSTAMP": 2_500}
#: More old trades than Kraken sends after a subscription, and fewer than Bybit's REST interface has.
MISSED = 55
CONSECUTIVE = tuple(name for name in EXCHANGES if name != "BITSTAMP")


@pytest.fixture(autouse=True)
def quick_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect and ask again soon."""
    monkeypatch.setattr(feed, "_FIRST_WAIT", 0.05)


@pytest.mark.parametrize("name", EXCHANGES)
def test_every_trade_arrives_once(start: Start, name: str) -> None:
    setting = start(name)
    for count in (1, 2, 100, 3):
        setting.make(name, count)
    result = setting.wait_for_all()
    assert result.faultless, result
    stats = setting.stats(name)
    assert (stats.trades, stats.gaps, stats.lost, stats.reconnects) == (result.made, 0, 0, 0)
    assert stats.connected
    assert stats.lag is not None


def test_all_exchanges_and_pairs_at_once(start: Start) -> None:
    setting = start(pairs=(PAIR, "ETH:USDT"))
    for number in range(20):
        for name in EXCHANGES:
            for pair in (PAIR, "ETH:USDT"):
                setting.make(name, 1 + number % 4, pair)
    result = setting.wait_for_all()
    assert result.faultless, result


@pytest.mark.parametrize("name", EXCHANGES)
def test_times_keep_their_precision(start: Start, name: str) -> None:
    setting = start(name)
    setting.make(name)
    setting.wait_for_all()
    digits = 3 if name in ("BINANCE", "OKX", "BYBIT") else 6
    assert len(setting.seen.ticks[0]["time"]) == len("15:30:55.Z") + digits


@pytest.mark.parametrize("name", EXCHANGES)
def test_equal_trades_are_not_duplicates(start: Start, name: str) -> None:
    """Their IDs differ, and nothing else."""
    setting = start(name)
    setting.make(name, 10, alike=True)
    setting.make(name, 1)
    result = setting.wait_for_all()
    assert result.faultless, result


@pytest.mark.parametrize("how", ["fin", "rst", "close"])
@pytest.mark.parametrize("name", EXCHANGES)
def test_an_outage_is_filled(start: Start, name: str, how: str) -> None:
    """Trades that were made during the outage arrive before those after it."""
    setting = start(name)
    setting.make(name, 5)
    setting.wait_for_all()
    setting.exchanges[name].refuse = 503
    setting.drop(name, how)
    setting.make(name, MISSED)
    setting.exchanges[name].refuse = None
    setting.exchanges.wait_subscribed(name)
    setting.make(name, 3)
    result = setting.wait_for_all()
    assert result.faultless, result
    stats = setting.stats(name)
    assert (stats.reconnects, stats.gaps, stats.unfilled, stats.lost) == (1, 1, 0, 0)
    # Kraken and Coinbase send some old trades after the subscription.
    assert MISSED - 50 <= stats.filled <= MISSED


@pytest.mark.parametrize("name", CONSECUTIVE)
def test_a_jump_of_ids_is_filled(start: Start, name: str) -> None:
    setting = start(name)
    setting.make(name, 5)
    setting.make(name, 7, send=False)
    setting.make(name, 5)
    result = setting.wait_for_all()
    assert result.faultless, result
    stats = setting.wait_stats(name, lambda stats: stats.filled == 7)
    assert (stats.reconnects, stats.gaps, stats.unfilled, stats.lost) == (0, 1, 0, 0)


def test_a_jump_of_ids_that_may_have_holes_means_nothing(start: Start) -> None:
    """Bitstamp's IDs have holes. What it leaves out on a connection can't be known."""
    setting = start("BITSTAMP")
    setting.make("BITSTAMP", 5)
    setting.exchanges.make("BITSTAMP", PAIR, 7, send=False)
    setting.make("BITSTAMP", 5)
    result = setting.wait_for_all()
    assert result.faultless, result
    assert setting.stats("BITSTAMP").gaps == setting.stats("BITSTAMP").lost == 0


@pytest.mark.parametrize("name", EXCHANGES)
def test_silence_is_an_outage(start: Start, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SILENCE", 1.5)
    setting = start(name)
    setting.make(name, 5)
    setting.wait_for_all()
    exchange = setting.exchanges[name]
    exchange.silent = True
    setting.make(name, 20)
    handshakes = exchange.handshakes
    setting.exchanges.wait_until(lambda: exchange.handshakes > handshakes)
    exchange.silent = False
    setting.exchanges.call(exchange.drop)
    setting.exchanges.wait_until(lambda: exchange.handshakes > handshakes + 1)
    setting.exchanges.wait_subscribed(name)
    setting.make(name, 5)
    result = setting.wait_for_all()
    assert result.faultless, result


@pytest.mark.parametrize("name", EXCHANGES)
def test_as_many_missed_trades_as_rest_has(start: Start, name: str) -> None:
    setting = start(name)
    setting.make(name)
    setting.wait_for_all()
    setting.drop(name)
    setting.make(name, REACH[name])
    setting.exchanges.wait_subscribed(name)
    setting.make(name)
    result = setting.wait_for_all()
    assert result.faultless, result
    assert setting.stats(name).lost == 0


def test_pages_of_coinbase_either_way(start: Start) -> None:
    """The documentation doesn't say which page `before` returns."""
    exchanges = LoopbackExchanges([PAIR])
    exchanges["COINBASE"].before_is_adjacent = True  # type: ignore[attr-defined]
    setting = start("COINBASE", exchanges=exchanges)
    setting.make("COINBASE")
    setting.wait_for_all()
    setting.drop("COINBASE")
    setting.make("COINBASE", 2_500)
    setting.exchanges.wait_subscribed("COINBASE")
    setting.make("COINBASE")
    result = setting.wait_for_all()
    assert result.faultless, result


def test_more_missed_trades_than_rest_has_are_lost_and_counted(start: Start) -> None:
    setting = start("BYBIT")
    setting.make("BYBIT")
    setting.wait_for_all()
    setting.exchanges.make("BYBIT", PAIR, 40, send=False)
    setting.drop("BYBIT")
    setting.make("BYBIT", 59)
    setting.exchanges.wait_subscribed("BYBIT")
    setting.make("BYBIT")
    result = setting.wait_for_all()
    assert result.faultless, result
    stats = setting.wait_stats("BYBIT", lambda stats: stats.unfilled == 1)
    assert (stats.gaps, stats.lost) == (1, 40)


def test_an_answer_with_too_few_trades_is_counted(start: Start) -> None:
    """Bybit's REST interface has 60 trades, and returns 10 here."""
    setting = start("BYBIT")
    setting.make("BYBIT")
    setting.exchanges["BYBIT"].page = 10
    setting.exchanges.make("BYBIT", PAIR, 6, send=False)
    # The live trade is among the ten that REST returns.
    setting.make("BYBIT", 9, send=False)
    setting.make("BYBIT")
    stats = setting.wait_stats("BYBIT", lambda stats: stats.unfilled == 1)
    assert (stats.lost, stats.filled) == (6, 9)
    result = setting.wait_for_all()
    assert result.faultless, result


@pytest.mark.parametrize("name", EXCHANGES)
def test_late_answers_are_sent_late(start: Start, name: str) -> None:
    """After `fill_seconds`, what came later is sent. The missed trades follow once REST returns them."""
    setting = start(name, market={"fill_seconds": 0.1})
    setting.make(name, 2)
    setting.wait_for_all()
    exchange = setting.exchanges[name]
    setting.exchanges.call(exchange.hold_rest)
    setting.drop(name)
    missed = setting.make(name, MISSED)
    setting.exchanges.wait_subscribed(name)
    live = setting.make(name)
    setting.seen.wait_for(lambda: setting.seen.ticks[-1]["price"] == live[-1].price)
    arrived = {each["price"] for each in setting.seen.ticks} & {each.price for each in missed}
    # Kraken and Coinbase send some old trades after the subscription.
    assert len(arrived) == {"KRAKEN": 50, "COINBASE": 1}.get(name, 0)
    setting.exchanges.call(exchange.release_rest)
    result = setting.wait_for_all()
    assert result.complete, result
    assert result.disordered
    assert setting.stats(name).lost == 0


@pytest.mark.parametrize(("name", "status"), [(name, 429) for name in EXCHANGES] + [("BINANCE", 418)])
def test_rate_limits(start: Start, name: str, status: int) -> None:
    """No request before `Retry-After` has passed. Then the gap is filled, late."""
    setting = start(name, market={"fill_seconds": 0.1})
    setting.make(name)
    setting.wait_for_all()
    exchange = setting.exchanges[name]
    exchange.rest_fault = RestFault(status, {"Retry-After": "1"}, times=1)
    asked = len(exchange.requests)
    setting.drop(name)
    setting.make(name, MISSED)
    setting.exchanges.wait_until(lambda: len(exchange.requests) == asked + 1)
    setting.exchanges.wait_subscribed(name)
    live = setting.make(name)
    setting.seen.wait_for(lambda: setting.seen.ticks[-1]["price"] == live[-1].price)
    assert len(exchange.requests) == asked + 1
    result = setting.wait_for_all()
    assert result.complete, result
    stats = setting.stats(name)
    assert (stats.unfilled, stats.lost) == (0, 0)


@pytest.mark.parametrize(
    "fault",
    [
        RestFault(500, times=2),
        RestFault(200, body="not JSON", times=2),
        RestFault(200, body="[" * 100_000, times=2),
        RestFault(200, body='{"a":1}', times=2),
        RestFault(200, body="[null, 7, {}]", times=2),
        RestFault(302, {"Location": "http://127.0.0.1:9/"}, times=2),
    ],
    ids=["status 500", "no JSON", "deep", "other object", "other items", "redirect"],
)
@pytest.mark.parametrize("name", ["BINANCE", "KRAKEN"])
def test_bad_answers_are_asked_for_again(start: Start, name: str, fault: RestFault) -> None:
    setting = start(name)
    setting.make(name)
    setting.exchanges[name].rest_fault = fault
    setting.make(name, 5, send=False)
    setting.make(name)
    result = setting.wait_for_all()
    assert result.faultless, result


def test_a_second_outage_during_a_fill(start: Start) -> None:
    setting = start("OKX")
    setting.make("OKX")
    setting.wait_for_all()
    exchange = setting.exchanges["OKX"]
    setting.exchanges.call(exchange.hold_rest)
    for _ in range(3):
        setting.drop("OKX")
        setting.make("OKX", 9)
        setting.exchanges.wait_subscribed("OKX")
        setting.make("OKX", 4)
    setting.exchanges.call(exchange.release_rest)
    result = setting.wait_for_all()
    assert result.faultless, result


def test_bitstamp_asks_to_reconnect(start: Start) -> None:
    setting = start("BITSTAMP")
    exchange = setting.exchanges["BITSTAMP"]
    setting.make("BITSTAMP")
    setting.wait_for_all()
    setting.exchanges.call(exchange.request_reconnect)  # type: ignore[attr-defined]
    setting.exchanges.wait_until(lambda: exchange.handshakes == 2)
    setting.exchanges.wait_subscribed("BITSTAMP")
    setting.make("BITSTAMP", 3)
    result = setting.wait_for_all()
    assert result.faultless, result


def test_notices_when_an_exchange_goes_away_and_comes_back(start: Start) -> None:
    """Only clients of affected pairs get them, and no client takes them for ticks."""
    pairs = (PAIR, "ETH:USDT")
    setting = start("OKX", "KRAKEN", pairs=pairs, exchanges=LoopbackExchanges(pairs, listed={"KRAKEN": [PAIR]}))
    setting.exchanges["KRAKEN"].refuse = 503
    setting.drop("KRAKEN")
    setting.seen.wait_for(lambda: setting.seen.notices)
    setting.exchanges["KRAKEN"].refuse = None
    setting.seen.wait_for(lambda: len(setting.seen.notices) == 2)
    assert [(each.symbol, each.message) for each in setting.seen.notices] == [
        (PAIR, {"notice": "exchange away", "source": "KRAKEN", "pair": PAIR}),
        (PAIR, {"notice": "exchange back", "source": "KRAKEN", "pair": PAIR}),
    ]
    setting.make("KRAKEN")
    setting.wait_for_all()
    assert not setting.seen.errors


def test_an_exchange_that_is_away_stops_no_other(start: Start) -> None:
    setting = start("OKX", "KRAKEN")
    setting.exchanges["KRAKEN"].refuse = 503
    setting.drop("KRAKEN")
    setting.make("OKX", 100)
    result = setting.wait_for_all()
    assert result.faultless, result
    assert not setting.stats("KRAKEN").connected
    assert setting.stats("OKX").connected


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mixture_of_faults(quick_reconnects: None, data: st.DataObject) -> None:
    """In any order of events, each trade arrives once, and jumps and outages are filled."""
    from finx_streamer.server import ExchangeMarket, LocalServer
    from tests.support.peers import Seen

    actions = st.sampled_from(["make", "jump", "drop", "hold", "release"])
    names = st.sampled_from(CONSECUTIVE)
    steps = data.draw(st.lists(st.tuples(actions, names, st.integers(1, 12)), min_size=5, max_size=25))
    exchanges, seen = LoopbackExchanges([PAIR], seed=data.draw(st.integers(0, 99))), Seen()
    with exchanges, LocalServer(ExchangeMarket([PAIR], base_urls=exchanges.base_urls)) as server:
        exchanges.wait_subscribed()
        with seen.listener(server.url, PAIR, parse_price=str) as listener:
            server.wait_connected()
            setting = Setting(exchanges, server, seen, listener)
            for name in CONSECUTIVE:
                setting.make(name)
            setting.wait_for_all()
            missed = dict.fromkeys(CONSECUTIVE, 0)
            for action, name, count in steps:
                exchange = exchanges[name]
                if action == "make" or (missed[name] + count > 55 and action == "jump"):
                    missed[name] += 0 if exchange.subscribed(PAIR) else count
                    setting.make(name, count)
                elif action == "jump":
                    missed[name] += count
                    setting.make(name, count, send=False)
                elif action == "drop":
                    exchanges.call(exchange.drop, "rst")
                else:
                    exchanges.call(exchange.hold_rest if action == "hold" else exchange.release_rest)
                if missed[name] > 40:
                    # Bybit's REST interface has only 60 trades.
                    exchanges.call(exchange.release_rest)
                    exchanges.wait_subscribed(name)
                    setting.make(name)
                    setting.seen.wait_for(lambda: not setting.compare().missing)
                    missed[name] = 0
            for exchange in exchanges:
                exchanges.call(exchange.release_rest)
            exchanges.wait_subscribed()
            for name in CONSECUTIVE:
                setting.make(name)
            seen.wait_for(lambda: not setting.compare().missing)
            result = setting.compare()
            assert result.complete, result
            assert all(setting.stats(name).lost == 0 for name in CONSECUTIVE)


def test_recorded_trades(start: Start, shared_data: Path) -> None:
    """Real messages become ticks with their digits. What follows continues their IDs."""
    found = [each for each in recordings(shared_data / "exchanges") if each.lines]
    # One recording for each pair and exchange: OKX and Bybit in 2026 come last.
    newest = {(each.exchange, each.pair): each for each in found}
    listed: dict[str, list[str]] = {name: [] for name in EXCHANGES}
    for name, pair in newest:
        listed[name].append(pair)
    pairs = tuple(sorted({pair for _, pair in newest}))
    setting = start(pairs=pairs, exchanges=LoopbackExchanges([], listed=listed, history=0))
    for (name, pair), recording in newest.items():
        live = [line for line in recording.lines if '"last_match"' not in line]
        setting.exchanges.call(setting.exchanges[name].replay, pair, live, recording.trades)
        setting.made[name, pair] = list(recording.trades)
        setting.make(name, 3, pair)
    result = setting.wait_for_all()
    assert result.complete, result
    assert all(stats.gaps == stats.lost == 0 for stats in setting.server.stats.exchanges.values())
