"""Simulated options, futures and perpetuals around the prices of a simulated market.

All values of an option agree under Black-76: its Greeks and its price follow from `mark_iv`, `underlying_price` and the
time left at `timestamp`, as sent. They are rounded as Deribit rounds them. Source: D for these conventions, O for the
contracts that exist.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zlib import crc32

import attrs

from ..errors import ConfigurationError
from ..greeks import black76, implied_volatility
from .contract_table import POINT_SECONDS
from .contracts import EXPIRY_HOUR, KEYS, ContractTicker, Instrument, format_expiry, parse_instrument

#: The milliseconds between two tickers of a contract.
INTERVAL = 1_000

#: The milliseconds between two times at which contracts have tickers. Some share each.
_SLOT = 50
#: The level of the volatility of each underlying, per year.
_VOLATILITY = {"BTC": 0.70, "ETH": 0.85, "SOL": 1.05}
#: How much dearer a forward is, per year.
_BASIS = 0.03
_YEAR = 365 * 86_400_000
#: The number of strikes on each side of the money, at least.
_STRIKES = 12
#: The smallest change of an option's price, in coins.
_TICK = 0.0005
#: The share of tickers with a trade.
_TRADING = 0.02


@attrs.define
class _Book:
    """What trading has done to a contract."""

    instrument: Instrument
    #: When its ticker is due within an interval, in milliseconds.
    phase: int
    open_interest: float
    settlement: float | None = None
    last: float | None = None
    first: float = 0.0
    low: float = 0.0
    high: float = 0.0
    volume: float = 0.0

    def trade(self, price: float, amount: float) -> None:
        if self.last is None:
            self.first = self.low = self.high = price
        self.last = price
        self.low, self.high = min(self.low, price), max(self.high, price)
        self.volume += amount
        self.open_interest += amount


class Chains:
    """The contracts of several underlyings.

    `price_of` returns the price of an underlying in dollars. `now` and all other times are in milliseconds since 1970.
    """

    def __init__(
        self, underlyings: Sequence[str], price_of: Callable[[str], float], rng: random.Random, now: int
    ) -> None:
        #: The names of the contracts that are listed now.
        self.contracts: frozenset[str] = frozenset()
        self._underlyings = underlyings
        self._price_of = price_of
        self._rng = rng
        self._levels = dict.fromkeys(underlyings, 1.0)
        self._books: dict[str, _Book] = {}
        self._list(now)

    def schedule(self, start: int, quiet_until: int = 0) -> Iterator[tuple[int, Instrument]]:
        """Yield when which contract has its next ticker, in order. Contracts expire, and new ones are listed.

        Until `quiet_until`, there are tickers only before each five-minute point.
        """
        began = start
        while True:
            if began < quiet_until:
                point = POINT_SECONDS * 1_000
                began = min(max(began, began // point * point + point - INTERVAL), quiet_until)
            self._list(began)
            for book in sorted(self._books.values(), key=lambda each: each.phase):
                expiry = book.instrument.expiry
                if expiry is None or began + book.phase < expiry * 1_000:
                    yield began + book.phase, book.instrument
            began += INTERVAL

    def ticker(self, instrument: Instrument, now: int) -> ContractTicker:
        """The ticker of a contract that is listed."""
        book = self._books[instrument.name]
        index = round(self._price_of(instrument.underlying), 2)
        values = dict.fromkeys(KEYS, "")
        values |= {
            "redis_key": instrument.name,
            "instrument_name": instrument.name,
            "timestamp": str(now),
            "state": "open",
            "index_price": _fixed(index, 2),
            "estimated_delivery_price": _fixed(index, 2),
        }
        if instrument.strike is None:
            self._fill_future(values, book, index, now)
        else:
            self._fill_option(values, book, instrument.strike, index, now)
        return ContractTicker(instrument, now, values)

    def _fill_future(self, values: dict[str, str], book: _Book, index: float, now: int) -> None:
        mark = _forward(index, book.instrument, now)
        tick = _nice(mark * 2e-5)
        bid, ask = math.floor(mark / tick) * tick, (math.floor(mark / tick) + 1) * tick
        self._fill_prices(values, book, mark, bid, ask, digits=2, amounts=10_000)
        values |= {"min_price": _fixed(mark * 0.985, 2), "max_price": _fixed(mark * 1.015, 2)}

    def _fill_option(self, values: dict[str, str], book: _Book, strike: float, index: float, now: int) -> None:
        instrument = book.instrument
        assert instrument.expiry is not None
        forward = _forward(index, instrument, now)
        years = (instrument.expiry * 1_000 - now) / _YEAR
        iv = round(100 * self._volatility(instrument.underlying, forward, strike, years), 2)
        value = black76(forward, strike, years, iv / 100, instrument.kind)
        mark = value.price / forward
        # A market maker's spread, wider for dear options.
        spread = _TICK + 0.01 * mark
        bid = max(0.0, math.floor((mark - spread) / _TICK) * _TICK)
        ask = math.ceil((mark + spread) / _TICK) * _TICK
        self._fill_prices(values, book, mark, bid, ask, digits=8 if instrument.underlying == "BTC" else 6, amounts=50)
        values |= {
            "underlying_price": _fixed(forward, 2),
            "underlying_index": f"{instrument.underlying}-{format_expiry(instrument.expiry)}",
            "interest_rate": "0",
            "min_price": _fixed(max(0.0001, math.floor((mark - 0.04) / _TICK) * _TICK), 4),
            "max_price": _fixed(math.ceil((mark + 0.04) / _TICK) * _TICK, 4),
            "mark_iv": _fixed(iv, 2),
            "bid_iv": _implied(bid, forward, strike, years, instrument.kind),
            "ask_iv": _implied(ask, forward, strike, years, instrument.kind),
            "delta": _fixed(value.delta, 5),
            "gamma": _fixed(value.gamma, 5),
            "vega": _fixed(value.vega, 5),
            "theta": _fixed(value.theta, 5),
            "rho": _fixed(value.rho, 5),
        }

    def _fill_prices(
        self, values: dict[str, str], book: _Book, mark: float, bid: float, ask: float, *, digits: int, amounts: int
    ) -> None:
        rng = self._rng
        if book.settlement is None:
            book.settlement = mark
        if rng.random() < _TRADING:
            book.trade(bid if bid and rng.random() < 0.5 else ask, rng.randint(1, amounts) / 10)
        values |= {
            "settlement_price": _fixed(book.settlement, digits),
            "open_interest": _fixed(book.open_interest, 1),
            "mark_price": _fixed(mark, digits),
            "best_bid_price": _fixed(bid, 4),
            "best_bid_amount": _fixed(rng.randint(1, amounts) / 10 if bid else 0.0, 1),
            "best_ask_price": _fixed(ask, 4),
            "best_ask_amount": _fixed(rng.randint(1, amounts) / 10, 1),
        }
        if book.last is not None:
            values |= {
                "last_price": _fixed(book.last, 4),
                "volume": _fixed(book.volume, 1),
                "price_change": _fixed(100 * (book.last / book.first - 1), 4),
                "low": _fixed(book.low, 4),
                "high": _fixed(book.high, 4),
            }

    def _volatility(self, underlying: str, forward: float, strike: float, years: float) -> float:
        """A smile: dearer away from the money, and dearer for low strikes."""
        level = _VOLATILITY[underlying] * self._levels[underlying] * (1 + 0.1 * math.exp(-8 * years))
        distance = math.log(strike / forward) / (level * math.sqrt(max(years, 1 / 365)))
        distance = max(-4.0, min(4.0, distance))
        return level * (1 - 0.04 * distance + 0.03 * distance**2)

    def _list(self, now: int) -> None:
        """Remove expired contracts, and list new ones around the present prices."""
        names = []
        for underlying in self._underlyings:
            level = self._levels[underlying]
            self._levels[underlying] = level**0.9999 * math.exp(self._rng.gauss(0.0, 2e-4))
            names.append(f"{underlying}-PERPETUAL")
            price = self._price_of(underlying)
            for expiry in expiries(now):
                name = f"{underlying}-{format_expiry(expiry)}"
                names.append(name)
                forward = _forward(price, parse_instrument(name), now)
                names += [f"{name}-{strike}-{side}" for strike in _strikes(forward) for side in "CP"]
        new = [name for name in names if name not in self._books]
        for name in new:
            phase = crc32(name.encode()) % (INTERVAL // _SLOT) * _SLOT
            self._books[name] = _Book(parse_instrument(name), phase, self._rng.randint(10, 20_000) / 10)
        gone = [name for name, book in self._books.items() if (book.instrument.expiry or math.inf) * 1_000 <= now]
        for name in gone:
            del self._books[name]
        if new or gone:
            self.contracts = frozenset(self._books)


def expiries(now: int) -> tuple[int, int, int]:
    """Three expiries, in seconds since 1970: the next Friday, and the next end of a month and of a quarter after it.

    An end is the last Friday. What is listed once stays until it expires.
    """
    day = datetime.fromtimestamp(now / 1_000, UTC).replace(hour=EXPIRY_HOUR, minute=0, second=0, microsecond=0)
    day += timedelta(days=(4 - day.weekday()) % 7)
    week = day if day.timestamp() * 1_000 > now else day + timedelta(days=7)
    month = _next_end(week, 1)
    return int(week.timestamp()), int(month.timestamp()), int(_next_end(month, 3).timestamp())


def _next_end(after: datetime, months: int) -> datetime:
    """The next Friday that is the last one of a month whose number is a multiple of `months`."""
    day = after + timedelta(days=7)
    while day.month % months or (day + timedelta(days=7)).month == day.month:
        day += timedelta(days=7)
    return day


def _forward(price: float, instrument: Instrument, now: int) -> float:
    """The price for delivery at the expiry. That of a perpetual is the price now."""
    years = 0.0 if instrument.expiry is None else (instrument.expiry * 1_000 - now) / _YEAR
    return round(price * (1 + _BASIS * years), 2)


def _strikes(forward: float) -> Iterator[str]:
    step = _nice(forward * 0.025)
    below = math.floor(forward / step)
    for number in range(below - _STRIKES + 1, below + _STRIKES + 1):
        # Deribit writes a decimal point as a d.
        yield _fixed(number * step, 4).replace(".", "d")


def _nice(value: float) -> float:
    """The greatest of 1, 2.5 and 5 times a power of ten that isn't greater than the value."""
    power = float(f"1e{math.floor(math.log10(value))}")
    return next(factor * power for factor in (5, 2.5, 1) if factor * power <= value * (1 + 1e-12))


def _implied(price: float, forward: float, strike: float, years: float, kind: str) -> str:
    """The implied volatility of a quote in percent; 0 if there is none, as Deribit sends it."""
    try:
        return _fixed(100 * implied_volatility(round(price, 4) * forward, forward, strike, years, kind), 2)
    except ConfigurationError:
        return "0"


def _fixed(value: float, digits: int) -> str:
    """A number as the vendor sends it: without an exponent and without trailing zeros."""
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
