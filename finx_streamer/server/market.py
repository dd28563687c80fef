"""`SimulatedMarket`: random trades with realistic prices and bursts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from ..config.symbols import Pair
from ..errors import ConfigurationError
from .contracts import ContractTicker, Played
from .settings import plain_number
from .ticks import Tick, format_time

if TYPE_CHECKING:
    from .chains import Chains

PAIRS = ("BTC:USDC", "ETH:USDC", "BTC:USDT", "ETH:USDT", "SOL:USDC", "ETH:BTC")
#: What can have options.
OPTIONS = ("BTC", "ETH", "SOL")
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
#: Milliseconds. An unpaced market skips the tickers of contracts that are later than this.
_LONGEST_LAG = 5_000


class SimulatedMarket:
    """A random walk of several pairs on several exchanges, with bursts and quiet periods::

        from finx_streamer.server import LocalServer, SimulatedMarket

        with LocalServer(SimulatedMarket(rate=200, seed=1)) as server:
            print(server.url)

    Cross rates are consistent, and each exchange has a small constant premium. Ticks have the current time in
    milliseconds. Prices have the digits of printed floats, as FinX sends them: `21865.010000000002` occurs. Source: D.

    Args:
        pairs (Iterable[str]): The pairs that clients can subscribe to. The first ones trade most often. Default:
            BTC:USDC, ETH:USDC, BTC:USDT, ETH:USDT, SOL:USDC and ETH:BTC.
        exchanges (Iterable[str]): The names of the exchanges. Default: BINANCE, COINBASE, FTX and KRAKEN.
        rate (float | None): The average number of ticks per second, for all pairs together. With `None`, ticks are
            played as fast as the connected clients accept them.
        seed (int | None): Determines the sequence of pair, exchange and price, together with `pairs` and `exchanges`.
            With `None`, each run has a different sequence.
        limit (int | None): The number of ticks after which the market ends. With `None`, it never ends.
        wait_for (int): The number of connected streams at which the market starts.
        options (Iterable[str]): The coins with options, of BTC, ETH and SOL: three expiries with at least 11 strikes on
            each side of the money, a future per expiry and a perpetual. Each contract has a ticker per second while the
            market trades. `limit` doesn't count these.

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
        options: Iterable[str] = (),
    ) -> None:
        rate, limit, wait_for = map(plain_number, (rate, limit, wait_for))
        self._pairs = tuple(Pair.parse(pair) for pair in _check_names("pairs", pairs))
        self._names = frozenset(map(str, self._pairs))
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
        self._options = self._check_options(options)
        self._chains: Chains | None = None
        rng = random.Random(0)
        # Clients may ask for the contracts before the market starts.
        self._start_chains(_DollarPrices(rng), rng, time.time())

    def _check_options(self, options: Iterable[str]) -> tuple[str, ...]:
        found = _check_names("options", options) if options else ()
        for name in found:
            if name not in OPTIONS or name not in {pair.base for pair in self._pairs}:
                raise ConfigurationError(
                    f"options has {name!r}; expected some of {', '.join(OPTIONS)}, each the base of one of the pairs"
                )
        return found

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to."""
        return self._names

    @property
    def wait_for(self) -> int:
        """The number of connected streams at which the market starts."""
        return self._wait_for

    @property
    def paced(self) -> bool:
        """Whether ticks are due at set times (`rate` is not `None`)."""
        return self._rate is not None

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that are listed now."""
        return frozenset() if self._chains is None else self._chains.contracts

    def play(self, clock: Callable[[], float], *, past: float = 0.0) -> Iterator[tuple[float, Played]]:
        """Play the market from its beginning. See `Source.play`.

        Args:
            clock (Callable[[], float]): Returns the current time in seconds since 1970.
            past (float): For how many seconds from the start contracts have tickers only before each five-minute point.

        Returns:
            Iterator[tuple[float, Tick | ContractTicker]]: When each is due, in seconds since the start, and it.
        """
        seed = random.getrandbits(64) if self._seed is None else self._seed
        # Generators of their own, so that the rate and the contracts have no influence on the trades.
        rng = random.Random(f"trades {seed}")
        prices = _DollarPrices(rng)
        trades = islice(self._trades(rng, prices), self._limit)
        arrivals = self._arrivals(random.Random(f"arrivals {seed}"))
        started = clock()
        chains = self._start_chains(prices, random.Random(f"contracts {seed}"), started)
        tickers = _Tickers(chains, started, past, paced=self.paced) if chains is not None else None
        for (pair, exchange, price), due in zip(trades, arrivals, strict=False):
            now = started + due if self.paced else clock()
            if tickers is not None and tickers.are_due(now):
                yield from tickers.until(now)
            day, moment = format_time(now)
            yield due, Tick(pair=pair, date=day, time=moment, exchange=exchange, price=price)

    def _start_chains(self, prices: _DollarPrices, rng: random.Random, now: float) -> Chains | None:
        if self._options:
            # Servers without options needn't load it.
            from .chains import Chains

            prices.add(self._options)
            self._chains = Chains(self._options, prices.of, rng, int(now * 1_000))
        return self._chains

    def _trades(self, rng: random.Random, prices: _DollarPrices) -> Iterator[tuple[str, str, str]]:
        prices.add(asset for pair in self._pairs for asset in (pair.base, pair.quote))
        premiums = {exchange: rng.uniform(-2e-4, 2e-4) for exchange in self._exchanges}
        tick_sizes = {pair: _tick_size(prices.rate(pair)) for pair in self._pairs}
        # Accumulated here, and not for each trade.
        weights = list(accumulate(1 / rank for rank in range(1, len(self._pairs) + 1)))
        while True:
            pair = rng.choices(self._pairs, cum_weights=weights)[0]
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


class _Tickers:
    """The tickers of a market's contracts, each with the time at which it is due. Times are in seconds."""

    def __init__(self, chains: Chains, started: float, past: float, *, paced: bool) -> None:
        self._chains = chains
        self._started = started
        self._paced = paced
        self._schedule = chains.schedule(int(started * 1_000), int((started + past) * 1_000) if past else 0)
        self._next = next(self._schedule)

    def are_due(self, now: float) -> bool:
        """Whether there are tickers until a time since 1970."""
        return self._next[0] <= now * 1_000

    def until(self, now: float) -> Iterator[tuple[float, ContractTicker]]:
        """Yield the tickers until a time since 1970."""
        end = int(now * 1_000)
        if not self._paced and end - self._next[0] > _LONGEST_LAG:
            # No one was connected meanwhile, or the clock was set.
            self._schedule = self._chains.schedule(end)
            self._next = next(self._schedule)
        while self._next[0] <= end:
            when, instrument = self._next
            due = max(0.0, when / 1_000 - self._started) if self._paced else 0.0
            yield due, self._chains.ticker(instrument, when)
            self._next = next(self._schedule)


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

    def of(self, asset: str) -> float:
        """The price of the asset in US dollars."""
        return self._prices[asset]

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
