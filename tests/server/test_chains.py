"""The options, futures and perpetuals of the simulated market."""

from __future__ import annotations

import calendar
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection

from finx_streamer.errors import ConfigurationError
from finx_streamer.greeks import black76
from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.server.chains import Chains, expiries
from finx_streamer.server.contracts import KEYS, ContractTicker, parse_instrument, parse_ticker
from finx_streamer.server.ticks import epoch_seconds
from tests.support.contracts import ask
from tests.support.effort import examples

#: A Monday, in seconds.
BEGIN = datetime(2022, 8, 1, 12, tzinfo=UTC).timestamp()
times = st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1)).map(lambda each: each.replace(tzinfo=UTC).timestamp())


def play(market: SimulatedMarket, seconds: float, began: float = BEGIN, **options: Any) -> Iterator[tuple[float, Any]]:
    for due, played in market.play(lambda: began, **options):
        if due >= seconds:
            return
        yield due, played


def tickers(seconds: float, began: float = BEGIN, *options: str, seed: int = 1) -> list[ContractTicker]:
    market = SimulatedMarket(rate=20.0, seed=seed, options=options or ("BTC", "ETH"))
    return [played for _, played in play(market, seconds, began) if isinstance(played, ContractTicker)]


def check_consistency(ticker: ContractTicker) -> None:
    """Check every value of an option against the others, as sent."""
    values, instrument = ticker.values, ticker.instrument
    assert list(values) == list(KEYS)
    assert parse_ticker(values) == ticker
    if instrument.strike is None:
        greeks = ("delta", "gamma", "vega", "theta", "rho", "mark_iv", "bid_iv", "ask_iv", "underlying_price")
        assert {values[key] for key in greeks} == {""}
        assert float(values["best_bid_price"]) <= float(values["mark_price"]) <= float(values["best_ask_price"])
        return
    assert instrument.expiry is not None
    assert instrument.expiry * 1_000 > ticker.timestamp
    forward, years = (
        float(values["underlying_price"]),
        (instrument.expiry * 1_000 - ticker.timestamp) / (365 * 86_400_000),
    )

    def value(key: str) -> Any:
        return black76(forward, instrument.strike or 0.0, years, float(values[key]) / 100, instrument.kind)

    right = value("mark_iv")
    for key in ("delta", "gamma", "vega", "theta", "rho"):
        assert float(values[key]) == pytest.approx(getattr(right, key), abs=5.1e-6)
    digits = 1e-8 if instrument.underlying == "BTC" else 1e-6
    mark = float(values["mark_price"])
    assert mark == pytest.approx(right.price / forward, abs=digits)
    bid, ask = float(values["best_bid_price"]), float(values["best_ask_price"])
    assert 0 <= bid <= mark <= ask
    assert float(values["min_price"]) <= max(mark, 0.0001) <= float(values["max_price"])
    for key, price in (("bid_iv", bid), ("ask_iv", ask)):
        if float(values[key]):
            again = value(key)
            assert again.price / forward == pytest.approx(price, abs=0.006 * again.vega / forward + 1e-9)
    assert values["underlying_index"] == instrument.name.rsplit("-", 2)[0]
    assert values["index_price"] == values["estimated_delivery_price"]


@given(began=times, seed=st.integers(0, 1_000), step=st.sampled_from([1e-4, 1e-2, 0.1]))
@examples(40)
def test_every_value_is_consistent(began: float, seed: int, step: float) -> None:
    """At any time, also shortly before expiries, with prices that move any way."""
    rng = random.Random(seed)
    prices = {"BTC": 10 ** rng.uniform(2, 6), "ETH": 10 ** rng.uniform(1, 5), "SOL": 10 ** rng.uniform(-1, 3)}
    now = int(began * 1_000)
    chains = Chains(tuple(prices), prices.__getitem__, rng, now)
    schedule = chains.schedule(now)
    for number, (when, instrument) in enumerate(schedule):
        prices[instrument.underlying] *= 2.718 ** rng.gauss(0, step / 20)
        check_consistency(chains.ticker(instrument, when))
        if number > 500:
            break


@given(milliseconds=st.integers(1, 3_000))
@examples(20)
def test_values_are_consistent_until_the_expiry(milliseconds: int) -> None:
    """Theta covers the time that is left. An expired contract has no ticker and isn't listed."""
    expiry = expiries(int(BEGIN * 1_000))[0]
    began = expiry - milliseconds / 1_000
    found = tickers(6.0, began, "BTC")
    for ticker in found:
        check_consistency(ticker)
    old = [each for each in found if each.instrument.expiry == expiry]
    assert all(each.timestamp < expiry * 1_000 for each in old)
    last = {each.instrument.expiry for each in found if each.timestamp > expiry * 1_000 + 1_000}
    assert expiry not in last
    assert len(last) == 4


def test_lists_three_expiries_with_strikes_on_both_sides() -> None:
    """Each has a future and at least 11 strikes on each side of the money, and the coin has a perpetual."""
    market = SimulatedMarket(options=("BTC", "ETH", "SOL"))
    for coin, price in (("BTC", 21_865.0), ("ETH", 1_580.0), ("SOL", 39.5)):
        mine = [parse_instrument(name) for name in market.contracts if name.startswith(coin)]
        assert sum(each.kind == "perpetual" for each in mine) == 1
        assert sum(each.kind == "future" for each in mine) == 3
        for expiry in {each.expiry for each in mine} - {None}:
            calls, puts = (
                {each.strike for each in mine if each.expiry == expiry and each.kind == kind}
                for kind in ("call", "put")
            )
            assert calls == puts
            assert sum(strike > price * 1.02 for strike in calls if strike) >= 11
            assert sum(strike < price for strike in calls if strike) >= 11


def test_new_strikes_follow_the_price() -> None:
    """There are always 11 on each side, and nothing is removed before it expires."""
    price = 20_000.0
    chains = Chains(("BTC",), lambda coin: price, random.Random(1), int(BEGIN * 1_000))
    listed = chains.contracts
    schedule = chains.schedule(int(BEGIN * 1_000))
    for _ in range(60):
        price *= 1.05 if len(listed) % 3 else 0.9
        for _ in range(len(listed)):
            next(schedule)
        assert listed <= chains.contracts
        listed = chains.contracts
        for expiry in expiries(int(BEGIN * 1_000)):
            strikes = {each.strike for each in map(parse_instrument, listed) if each.strike and each.expiry == expiry}
            assert min(sum(strike < price for strike in strikes), sum(strike > price for strike in strikes)) >= 11


@given(times)
def test_expiries_are_fridays_at_eight(now: float) -> None:
    """The next Friday, and after it the next last Friday of a month and of a quarter."""
    week, month, quarter = (datetime.fromtimestamp(each, UTC) for each in expiries(int(now * 1_000)))
    assert timedelta(0) < week - datetime.fromtimestamp(now, UTC) <= timedelta(days=7)
    assert week < month < quarter
    for each in (week, month, quarter):
        assert (each.weekday(), each.hour, each.minute, each.second) == (4, 8, 0, 0)
    for each in (month, quarter):
        assert each.day + 7 > calendar.monthrange(each.year, each.month)[1]
    assert quarter.month % 3 == 0


@given(times, st.integers(0, 40 * 86_400))
def test_what_is_listed_stays_until_it_expires(now: float, later: int) -> None:
    """No expiry disappears early."""
    listed = set(expiries(int(now * 1_000)))
    still = {each for each in listed if each > now + later}
    assert still <= set(expiries(int((now + later) * 1_000)))


def test_each_contract_updates_at_most_once_per_second() -> None:
    """And the market's ticks and tickers are in order of time."""
    market = SimulatedMarket(rate=50.0, seed=3, options=("BTC", "ETH"))
    stamps: dict[str, list[int]] = defaultdict(list)
    last_due, last_time = 0.0, 0.0
    for due, played in play(market, 5.0):
        assert due >= last_due
        is_ticker = isinstance(played, ContractTicker)
        when = played.timestamp / 1_000 if is_ticker else epoch_seconds(played)
        assert when >= last_time
        assert when == pytest.approx(BEGIN + due, abs=0.0011)
        last_due, last_time = due, when
        if is_ticker:
            stamps[played.instrument.name].append(played.timestamp)
    assert set(stamps) == market.contracts
    for each in stamps.values():
        assert len(each) in {4, 5}
        assert {after - before for before, after in pairwise(each)} == {1_000}


def test_unpaced_markets_update_at_most_once_per_second() -> None:
    """By the clock. After a long pause, the missed tickers are skipped."""
    now = BEGIN

    def clock() -> float:
        nonlocal now
        now += 0.1 if count % 100 else 3_600.0
        return now

    market = SimulatedMarket(rate=None, seed=3, options=("BTC",))
    stamps: dict[str, list[int]] = defaultdict(list)
    count = 1
    for due, played in market.play(clock):
        assert due == 0.0
        if isinstance(played, ContractTicker):
            stamps[played.instrument.name].append(played.timestamp)
        else:
            count += 1
        if count > 1_000:
            break
    assert max(map(len, stamps.values())) < 400
    for each in stamps.values():
        assert all(after - before >= 1_000 for before, after in pairwise(each))


def test_options_have_no_influence_on_the_trades() -> None:
    """The same seed gives the same ticks, with and without options."""
    plain, other = (
        [played for _, played in play(SimulatedMarket(seed=5, options=options), 3.0) if isinstance(played, dict)]
        for options in ((), ("ETH",))
    )
    assert plain == other


def test_same_seed_gives_the_same_tickers() -> None:
    """Of the same time."""
    assert tickers(2.0) == tickers(2.0)
    assert tickers(2.0) != tickers(2.0, seed=2)


@pytest.mark.parametrize("options", ["BTC", ("DOGE",), ("btc",), ("",), (5,)])
def test_rejects_unknown_options(options: Any) -> None:
    """Of the coins that FinX has, those with a pair."""
    with pytest.raises(ConfigurationError, match="options "):
        SimulatedMarket(options=options)
    with pytest.raises(ConfigurationError, match="each the base of one of the pairs"):
        SimulatedMarket(["ETH:BTC"], options=("BTC",))


def test_serves_chains(dial: Callable[..., ClientConnection]) -> None:
    """Clients list the contracts, stream a month, and read the matrix."""
    with LocalServer(SimulatedMarket(options=("BTC", "ETH"))) as server:
        peer = dial(server, "streamer/demo")
        names = ask(peer, "listDeribitContracts")
        month = next(filter(None, (parse_instrument(name).month for name in names)))
        stream = dial(server, f"streaming/greeks/demo/{month}")
        options = {name for name in names if parse_instrument(name).month == month}
        seen: set[str] = set()
        while seen < options:
            values = json.loads(stream.recv(timeout=20))["resultData"]
            assert values.pop("exchange") == "DERIBIT"
            check_consistency(parse_ticker(values))
            seen.add(values["instrument_name"])
        assert seen == options
        found = ask(peer, "getFiveMinMatrix", baseInstrument="BTC", fiveMinuteDateTime="latest")
        assert len(found) > 100
        for values in found:
            check_consistency(parse_ticker(values))
