"""`SimulatedMarket`: random trades with realistic prices and bursts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ..config.symbols import Pair
from ..errors import ConfigurationError
from .settings import plain_number
from .ticks import Tick, format_time

PAIRS = ("BTC:USDC", "ETH:USDC", "BTC:USDT", "ETH:USDT", "SOL:USDC", "ETH:BTC")
EXCHANGES = ("BINANCE", "COINBASE", "FTX", "KRAKEN")

#: The first price in US dollars. Other assets start at a random price between 0.01 and 1,000.
_START_PRICES = {
    "BTC": 21_865.0, "ETH": 1_580.0, "BNB": 285.0, "SOL": 39.5, "LTC": 58.0, "AVAX": 22.4, "DOT": 7.4, "ADA": 0.48,
    "XRP": 0.36, "DOGE": 0.068, "EUR": 1.02, "GBP": 1.2, "USD": 1.0, "USDC": 1.0, "USDT": 0.9998,
}  # fmt: skip
_LOW_VOLATILITY = frozenset({"USD", "USDC", "USDT", "EUR", "GBP"})

#: Activity regimes: the share of time, and the factor on the rate. The factors average to 1.
_REGIMES = ((0.35, 0.25), (0.55, 1.0), (0.10, 3.625))
_MEAN_REGIME_SECONDS = 2.0


class SimulatedMarket:
    """A random walk of several pairs on several exchanges, with bursts and quiet periods::

        from finx_streamer.server import LocalServer, SimulatedMarket

        with LocalServer(SimulatedMarket(rate=200, seed=1)) as server:
            print(server.url)

    Cross rates are consistent, and each exchange has a small constant premium. Ticks have the current time in
    milliseconds. Prices have the digits of printed floats, as FinX sends them: `21865.010000000002` occurs. Source: D.

    Args:
        pairs (Iterable[str]): The pairs that clients can subscribe to. The first ones trade most often.
        exchanges (Iterable[str]): The names of the exchanges.
        rate (float | None): The average number of ticks per second, for all pairs together. With `None`, ticks are
            played as fast as the connected clients accept them.
        seed (int | None): Determines the sequence of pair, exchange and price, together with `pairs` and `exchanges`.
            With `None`, each run has a different sequence.
        limit (int | None): The number of ticks after which the market ends. With `None`, it never ends.
        wait_for (int): The number of connected streams at which the market starts.

    Raises:
        ConfigurationError: An argument is malformed or out of range.
    """

    def __init__(
        self,
        pairs: Iterable[str] = PAIRS,
        exchanges: Iterable[str] = EXCHANGES,
        rate: float | None = 50.0,
        seed: int | None = None,
        *,
        limit: int | None = None,
        wait_for: int = 0,
    ) -> None:
        rate, limit, wait_for = map(plain_number, (rate, limit, wait_for))
        self._pairs = tuple(Pair.parse(pair) for pair in _check_names("pairs", pairs))
        self._exchanges = _check_names("exchanges", exchanges)
        if rate is not None and not (0 < rate < math.inf):
            raise ConfigurationError(
                f"rate is {rate!r}; expected ticks per second, above 0, or None for as fast as possible"
            )
        if limit is not None and limit < 0:
            raise ConfigurationError(f"limit is {limit!r}; expected a number of ticks, or None for no end")
        if wait_for < 0:
            raise ConfigurationError(f"wait_for is {wait_for!r}; expected a whole number, 0 or more")
        self._rate = rate
        self._seed = seed
        self._limit = limit
        self._wait_for = wait_for

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to."""
        return frozenset(map(str, self._pairs))

    @property
    def wait_for(self) -> int:
        """The number of connected streams at which the market starts."""
        return self._wait_for

    @property
    def paced(self) -> bool:
        """Whether ticks are due at set times (`rate` is not `None`)."""
        return self._rate is not None

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """Play the market from its beginning. See `Source.play`.

        Args:
            clock (Callable[[], float]): Returns the current time in seconds since 1970.

        Returns:
            Iterator[tuple[float, Tick]]: When each tick is due, in seconds since the start, and the tick.
        """
        seed = random.getrandbits(64) if self._seed is None else self._seed
        # Two generators, so that the rate has no influence on the trades.
        trades = islice(self._trades(random.Random(f"trades {seed}")), self._limit)
        arrivals = self._arrivals(random.Random(f"arrivals {seed}"))
        started = clock()
        for (pair, exchange, price), due in zip(trades, arrivals, strict=False):
            day, time = format_time(started + due if self.paced else clock())
            yield due, Tick(pair=pair, date=day, time=time, exchange=exchange, price=price)

    def _trades(self, rng: random.Random) -> Iterator[tuple[str, str, str]]:
        prices = _DollarPrices(rng)
        prices.add(asset for pair in self._pairs for asset in (pair.base, pair.quote))
        premiums = {exchange: rng.uniform(-2e-4, 2e-4) for exchange in self._exchanges}
        tick_sizes = {pair: _tick_size(prices.rate(pair)) for pair in self._pairs}
        weights = [1 / rank for rank in range(1, len(self._pairs) + 1)]
        while True:
            pair = rng.choices(self._pairs, weights)[0]
            exchange = rng.choice(self._exchanges)
            prices.move(pair.base)
            price = prices.rate(pair) * (1 + premiums[exchange] + rng.gauss(0, 2e-5))
            # An integer times a binary fraction gives digits such as ...0002, as in the vendor's prices.
            yield str(pair), exchange, repr(max(1, round(price / tick_sizes[pair])) * tick_sizes[pair])

    def _arrivals(self, rng: random.Random) -> Iterator[float]:
        """When ticks are due: a Poisson process whose rate changes with the activity regime."""
        if self._rate is None:
            while True:
                yield 0.0
        now = until = 0.0
        while True:
            now = until
            until += rng.expovariate(1 / _MEAN_REGIME_SECONDS)
            factor = rng.choices([factor for _, factor in _REGIMES], [share for share, _ in _REGIMES])[0]
            while (now := now + rng.expovariate(self._rate * factor)) < until:
                yield now


class _DollarPrices:
    """The price of each asset in US dollars, a random walk each, so that cross rates are consistent."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._prices: dict[str, float] = {}

    def add(self, assets: Iterable[str]) -> None:
        """Set the first price of each new asset."""
        for asset in assets:
            if asset not in self._prices:
                self._prices[asset] = _START_PRICES.get(asset) or 10 ** self._rng.uniform(-2, 3)

    def move(self, asset: str) -> None:
        """Move the asset's price by one random step."""
        self._prices[asset] *= math.exp(self._rng.gauss(0, 1e-7 if asset in _LOW_VOLATILITY else 3e-5))

    def rate(self, pair: Pair) -> float:
        """The price of the pair's base in its quote."""
        return self._prices[pair.base] / self._prices[pair.quote]


def _tick_size(price: float) -> float:
    """The smallest price change: the seventh significant digit, similar to real exchanges."""
    return float(f"1e{math.floor(math.log10(price)) - 6}")


def _check_names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    # A single str is an iterable of letters, and never intended.
    found = () if isinstance(names, str) else tuple(dict.fromkeys(names))
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ConfigurationError(f"{argument} is {names!r}; expected one or more names, as in ('BTC:USDC',)")
    return found
