"""The simulated market."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import islice, pairwise

import pytest

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import SimulatedMarket, Tick
from finx_streamer.server.ticks import checked, stamp


def events(market: SimulatedMarket, count: int) -> list[tuple[float, Tick]]:
    return list(islice(market.play(lambda: 1_000_000.0), count))


def trades(market: SimulatedMarket, count: int = 500) -> list[tuple[str, str, str]]:
    return [(tick["pair"], tick["exchange"], tick["price"]) for _, tick in events(market, count)]


def test_a_seed_repeats_the_trades() -> None:
    """The same seed gives the same trades, however fast."""
    assert trades(SimulatedMarket(seed=7)) == trades(SimulatedMarket(seed=7, rate=5_000.0))
    assert trades(SimulatedMarket(seed=7)) == trades(SimulatedMarket(seed=7, rate=None))


def test_other_seeds_give_other_trades() -> None:
    """Another seed is another market, and no seed is a new one every time."""
    assert trades(SimulatedMarket(seed=7)) != trades(SimulatedMarket(seed=8))
    unseeded = SimulatedMarket()
    assert trades(unseeded) != trades(unseeded)


def test_all_its_ticks_are_good() -> None:
    """Every tick is well formed, for known and unknown assets alike."""
    market = SimulatedMarket(["BTC:USDC", "XYZ:ABC", "SHIB:BTC"], ["A", "B"], seed=1)
    for _, tick in events(market, 2_000):
        assert tick == checked(tick)
        assert float(tick["price"]) > 0


def test_all_pairs_and_exchanges_are_traded() -> None:
    """Nothing that was asked for is missing."""
    market = SimulatedMarket(seed=3)
    seen = trades(market, 2_000)
    assert market.pairs == {pair for pair, _, _ in seen}
    assert len({exchange for _, exchange, _ in seen}) == 4


def test_prices_are_plausible() -> None:
    """Prices stay near where they began, and move in small steps."""
    prices = [float(price) for pair, _, price in trades(SimulatedMarket(seed=5), 5_000) if pair == "BTC:USDC"]
    assert 20_000 < min(prices) < max(prices) < 24_000
    assert max(abs(b / a - 1) for a, b in pairwise(prices)) < 0.002
    assert len(set(prices)) > len(prices) / 4


def test_some_prices_are_those_of_floats() -> None:
    """Prices with the tail of a binary fraction occur, as they do at the vendor's."""
    assert any(len(price) > 14 for _, _, price in trades(SimulatedMarket(seed=5)))


def test_the_rate_is_a_mean_over_bursts_and_quiet() -> None:
    """Over a long time the rate is as asked; over seconds it swings much more than chance would have it."""
    due = [when for when, _ in events(SimulatedMarket(rate=100.0, seed=11), 60_000)]
    assert due == sorted(due)
    assert len(due) / due[-1] == pytest.approx(100.0, rel=0.2)
    seconds = Counter(int(when) for when in due)
    counts = [seconds[second] for second in range(int(due[-1]))]
    assert statistics.variance(counts) > 5 * statistics.mean(counts)


def test_times_are_now() -> None:
    """A tick bears the time at which it is due."""
    for due, tick in events(SimulatedMarket(seed=2), 100):
        assert stamp(1_000_000.0 + due) == (tick["date"], tick["time"])


def test_a_limit_ends_it() -> None:
    """After `limit` ticks the market is at its end."""
    assert len(events(SimulatedMarket(limit=3), 10)) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"pairs": ()},
        {"pairs": "BTC:USDC"},
        {"pairs": ("btc-usdc",)},
        {"exchanges": ()},
        {"exchanges": ("",)},
        {"rate": 0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"limit": -1},
        {"wait_for": -1},
    ],
)
def test_arguments_that_are_wrong(arguments: dict[str, object]) -> None:
    """A wrong argument is an error."""
    with pytest.raises(ConfigurationError):
        SimulatedMarket(**arguments)
