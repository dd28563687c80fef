"""`SimulatedMarket`: made-up trades that look like a market's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ..config.symbols import Pair
from ..errors import ConfigurationError
from .ticks import Tick, stamp

PAIRS = ("BTC:USDC", "ETH:USDC", "BTC:USDT", "ETH:USDT", "SOL:USDC", "ETH:BTC")
EXCHANGES = ("BINANCE", "COINBASE", "FTX", "KRAKEN")

#: Where a walk begins, in US dollars. An asset that is not here begins anywhere between 0.01 and 1,000.
_DOLLARS = {
    "BTC": 21_865.0, "ETH": 1_580.0, "BNB": 285.0, "SOL": 39.5, "LTC": 58.0, "AVAX": 22.4, "DOT": 7.4, "ADA": 0.48,
    "XRP": 0.36, "DOGE": 0.068, "EUR": 1.02, "GBP": 1.2, "USD": 1.0, "USDC": 1.0, "USDT": 0.9998,
}  # fmt: skip
_STEADY = frozenset({"USD", "USDC", "USDT", "EUR", "GBP"})

#: What share of the time the market is in a mood, and by what factor it is then busier. The factors average to 1.
_MOODS = ((0.35, 0.25), (0.55, 1.0), (0.10, 3.625))
_MOOD_SECONDS = 2.0


class SimulatedMarket:
    """A random walk for a handful of pairs over several exchanges, with bursts and quiet.

    - `pairs`: what can be asked for; the first are traded most. Rates between pairs agree with each other.
    - `exchanges`: names, each with a small premium of its own.
    - `rate`: ticks a second, of all pairs together, on average. `None`: as fast as the connected clients take it.
    - `seed`: the sequence of (pair, exchange, price) follows from it and from `pairs` and `exchanges` alone.
      `None`: another sequence every time.
    - `limit`: end after so many ticks. `None`: never.
    - `wait_for`: how many streams must be connected before it begins.

    Times are now, in milliseconds. Prices are decimal strings as floats print, `21865.010000000002` included (D).
    Raises `ConfigurationError` for an argument that is wrong.
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
        self._pairs = tuple(Pair.parse(pair) for pair in _names("pairs", pairs))
        self._exchanges = _names("exchanges", exchanges)
        if rate is not None and not (0 < rate < math.inf):
            raise ConfigurationError(f"rate is {rate!r}; expected ticks a second, above 0, or None for no pace")
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
        """The pairs that can be asked for."""
        return frozenset(map(str, self._pairs))

    @property
    def wait_for(self) -> int:
        """How many streams must be connected before the market begins."""
        return self._wait_for

    @property
    def paced(self) -> bool:
        """Whether ticks are due by the clock (`rate` is not None)."""
        return self._rate is not None

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """The market from its beginning. See `Source.play`."""
        seed = random.getrandbits(64) if self._seed is None else self._seed
        # Two generators, so that the rate has no influence on what is traded.
        trades = islice(self._trades(random.Random(f"trades {seed}")), self._limit)
        arrivals = self._arrivals(random.Random(f"arrivals {seed}"))
        started = clock()
        for (pair, exchange, price), due in zip(trades, arrivals, strict=False):
            day, time = stamp(started + due if self.paced else clock())
            yield due, Tick(pair=pair, date=day, time=time, exchange=exchange, price=price)

    def _trades(self, chance: random.Random) -> Iterator[tuple[str, str, str]]:
        dollars = _Dollars(chance)
        dollars.know(asset for pair in self._pairs for asset in (pair.base, pair.quote))
        premiums = {exchange: chance.uniform(-2e-4, 2e-4) for exchange in self._exchanges}
        steps = {pair: _step(dollars.rate(pair)) for pair in self._pairs}
        shares = [1 / rank for rank in range(1, len(self._pairs) + 1)]
        while True:
            pair = chance.choices(self._pairs, shares)[0]
            exchange = chance.choice(self._exchanges)
            dollars.walk(pair.base)
            price = dollars.rate(pair) * (1 + premiums[exchange] + chance.gauss(0, 2e-5))
            # A whole number times a binary fraction: the vendor's prices end in ...0002 for the same reason.
            yield str(pair), exchange, repr(max(1, round(price / steps[pair])) * steps[pair])

    def _arrivals(self, chance: random.Random) -> Iterator[float]:
        """When ticks are due: a Poisson process whose intensity follows the market's mood."""
        if self._rate is None:
            while True:
                yield 0.0
        now = until = 0.0
        while True:
            now = until
            until += chance.expovariate(1 / _MOOD_SECONDS)
            factor = chance.choices([mood[1] for mood in _MOODS], [mood[0] for mood in _MOODS])[0]
            while (now := now + chance.expovariate(self._rate * factor)) < until:
                yield now


class _Dollars:
    """What assets are worth in US dollars, one walk each, so that pairs agree with each other."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._worth: dict[str, float] = {}

    def know(self, assets: Iterable[str]) -> None:
        for asset in assets:
            if asset not in self._worth:
                self._worth[asset] = _DOLLARS.get(asset) or 10 ** self._chance.uniform(-2, 3)

    def walk(self, asset: str) -> None:
        self._worth[asset] *= math.exp(self._chance.gauss(0, 1e-7 if asset in _STEADY else 3e-5))

    def rate(self, pair: Pair) -> float:
        return self._worth[pair.base] / self._worth[pair.quote]


def _step(price: float) -> float:
    """The smallest price change: the seventh significant digit, as exchanges have it or thereabouts."""
    return float(f"1e{math.floor(math.log10(price)) - 6}")


def _names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    # A lone text is an iterable of letters, and never what was meant.
    found = () if isinstance(names, str) else tuple(dict.fromkeys(names))
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ConfigurationError(f"{argument} is {names!r}; expected one name or more, as in ('BTC:USDC',)")
    return found
