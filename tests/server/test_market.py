"""The simulated market."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import islice, pairwise

import pytest

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import SimulatedMarket, Tick
from finx_streamer.server.ticks import format_time, parse_tick


def events(market: SimulatedMarket, count: int) -> list[tuple[float, Tick]]:
    return list(islice(market.play(lambda: 1_000_000.0), count))


def trades(market: SimulatedMarket, count: int = 500) -> list[tuple[str, str, str]]:
    return [(tick["pair"], tick["exchange"], tick["price"]) for _, tick in events(market, count)]


def test_seed_repeats_the_trades() -> None:
    """The same seed gives the same trades at any rate."""
    assert trades(SimulatedMarket(seed=7, rate=5_000.0)) == trades(SimulatedMarket(seed=7))
    assert trades(SimulatedMarket(seed=7, rate=None)) == trades(SimulatedMarket(seed=7))


def test_other_seeds_give_other_trades() -> None:
    """Another seed gives other trades, and without a seed each run differs."""
    assert trades(SimulatedMarket(seed=7)) != trades(SimulatedMarket(seed=8))
    unseeded = SimulatedMarket()
    assert trades(unseeded) != trades(unseeded)


def test_all_ticks_are_valid() -> None:
    """Every tick is valid, for known and unknown assets."""
    market = SimulatedMarket(["BTC:USDC", "XYZ:ABC", "SHIB:BTC"], ["A", "B"], seed=1)
    for _, tick in events(market, 2_000):
        assert parse_tick(tick) == tick
        assert float(tick["price"]) > 0


def test_every_pair_and_exchange_trades() -> None:
    """All pairs and exchanges occur."""
    market = SimulatedMarket(seed=3)
    found = trades(market, 2_000)
    assert {pair for pair, _, _ in found} == market.pairs
    assert len({exchange for _, exchange, _ in found}) == 4


def test_prices_are_plausible() -> None:
    """Prices stay near the first one and move in small steps."""
    prices = [float(price) for pair, _, price in trades(SimulatedMarket(seed=5), 5_000) if pair == "BTC:USDC"]
    assert 20_000 < min(prices) < max(prices) < 24_000
    assert max(abs(b / a - 1) for a, b in pairwise(prices)) < 0.002
    assert len(set(prices)) > len(prices) / 4


def test_some_prices_have_float_digits() -> None:
    """Prices such as 21865.010000000002 occur, as in the vendor's data."""
    assert any(len(price) > 14 for _, _, price in trades(SimulatedMarket(seed=5)))


def test_rate_is_an_average_over_bursts() -> None:
    """The average rate is as requested, and varies far more per second than a Poisson process."""
    due = [when for when, _ in events(SimulatedMarket(rate=100.0, seed=11), 30_000)]
    assert due == sorted(due)
    assert len(due) / due[-1] == pytest.approx(100.0, rel=0.2)
    seconds = Counter(int(when) for when in due)
    counts = [seconds[second] for second in range(int(due[-1]))]
    assert statistics.variance(counts) > 5 * statistics.mean(counts)


def test_ticks_have_the_time_at_which_they_are_due() -> None:
    """The time of a tick is the start of the market plus its due time."""
    for due, tick in events(SimulatedMarket(seed=2), 100):
        assert (tick["date"], tick["time"]) == format_time(1_000_000.0 + due)


def test_ends_at_the_limit() -> None:
    """After `limit` ticks, the market ends."""
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
def test_rejects_invalid_arguments(arguments: dict[str, object]) -> None:
    """An invalid argument is an error."""
    with pytest.raises(ConfigurationError):
        SimulatedMarket(**arguments)
