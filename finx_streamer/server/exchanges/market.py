"""`ExchangeMarket`: the live trades of real exchanges as a market."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import ssl
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...config.symbols import Pair
from ...errors import ConfigurationError
from ..settings import plain_number
from ..source import Outlet
from ..stats import ExchangeStats
from . import find_adapters

if TYPE_CHECKING:
    from .adapter import Trade
    from .counters import Counters
    from .feed import Feed

EXCHANGES = ("BINANCE", "COINBASE", "KRAKEN", "OKX", "BYBIT", "BITSTAMP")
#: Its tickers of contracts feed the streams of Greeks.
_OPTIONS_EXCHANGE = "DERIBIT"


class ExchangeMarket:
    """The live trades of real exchanges, aggregated. Needs the extra `live` and a network, but no key.

    Each exchange has a connection of its own, and reconnects on its own. Trades that are missed meanwhile, or that an
    exchange leaves out, are requested from it and sent in order. The page "Your own market" says more.

    Args:
        pairs (Iterable[str]): The pairs that clients can subscribe to. Each exchange sends those that it lists.
        exchanges (Iterable[str]): The names of the exchanges.
        options (Iterable[str]): The coins whose options, futures and perpetuals on Deribit feed the streams of Greeks,
            such as "BTC" and "ETH".
        base_urls (Mapping[str, str] | None): Other addresses of exchanges. With
            `{"OKX": "http://127.0.0.1:9000/okx"}`, the paths of OKX's own WebSocket and REST URLs lie below that URL.
        fill_seconds (float): The most seconds for which a pair's trades of an exchange wait for missing ones. These
            are then sent late.

    Raises:
        ConfigurationError: An argument is malformed, or names an exchange that isn't supported.
        ImportError: The package httpx isn't installed.
    """

    def __init__(
        self,
        pairs: Iterable[str],
        exchanges: Iterable[str] = EXCHANGES,
        options: Iterable[str] = (),
        base_urls: Mapping[str, str] | None = None,
        fill_seconds: float = 5.0,
    ) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise ImportError('ExchangeMarket needs the httpx package: pip install "finx-streamer[live]"')
        self._pairs = tuple(str(Pair.parse(pair)) for pair in _names("pairs", pairs))
        self._exchanges = _names("exchanges", exchanges)
        self._options = _names("options", options) if options else ()
        self._base_urls = dict(base_urls or {})
        for name, url in self._base_urls.items():
            _check_base_url(name, url)
        #: Whether each tick has the exchange's own ID of the trade. Set it before the market runs.
        self.sends_trade_ids = False
        self._fill_seconds = plain_number(fill_seconds)
        if not isinstance(self._fill_seconds, int | float) or not 0 < self._fill_seconds < math.inf:
            raise ConfigurationError(f"fill_seconds is {fill_seconds!r}; expected a number of seconds above 0")
        _check_exchanges("exchanges", self._exchanges)
        _check_exchanges("base_urls", self._base_urls, _OPTIONS_EXCHANGE)
        #: The trades of each exchange and pair after which the next run begins.
        self._known: dict[tuple[str, str], list[Trade]] = {}
        self._feeds: dict[str, Feed] = {}
        self._counters: dict[str, Counters] = self._new_counters()
        self._known_pairs = frozenset(self._pairs)
        self._contracts: frozenset[str] = frozenset()

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to: those that an exchange lists, or may list.

        Until an exchange's listing is known, it may list any of the pairs.
        """
        return self._known_pairs

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that are listed now."""
        return self._contracts

    @property
    def exchange_stats(self) -> Mapping[str, ExchangeStats]:
        """The counters of each exchange."""
        return {name: counters.snapshot() for name, counters in self._counters.items()}

    def begin_after(self, known: Mapping[tuple[str, str], Iterable[tuple[int, str, str, str]]]) -> None:
        """Have the next run begin with what is missing since known trades. For publishers.

        Args:
            known (Mapping[tuple[str, str], Iterable[tuple[int, str, str, str]]]): By exchange and pair: the ID, price,
                date and time of trades.
        """
        self._known = {each: _read_known(trades) for each, trades in known.items()}

    async def run(self, outlet: Outlet) -> None:
        """Send the trades of all exchanges until the task is cancelled. See `LiveSource.run`.

        Args:
            outlet (Outlet): Where to send them.
        """
        # Verifies certificates.
        tls = ssl.create_default_context()
        self._feeds = self._new_feeds(tls)
        self._known = {}
        try:
            async with asyncio.TaskGroup() as tasks:
                for feed in self._feeds.values():
                    tasks.create_task(feed.run(outlet))
        finally:
            self._feeds = {}
            self._on_listing()

    def _new_counters(self) -> dict[str, Counters]:
        from .counters import Counters

        names = [*self._exchanges, *([_OPTIONS_EXCHANGE] if self._options else [])]
        return {name: Counters() for name in names}

    def _new_feeds(self, tls: ssl.SSLContext) -> dict[str, Feed]:
        from .contracts import ContractFeed
        from .deribit import Deribit
        from .trades import TradeFeed

        feeds: dict[str, Feed] = {}
        for name in self._exchanges:
            adapter = find_adapters()[name](self._base_urls.get(name))
            counters = self._counters[name]
            known = {pair: trades for (exchange, pair), trades in self._known.items() if exchange == name and trades}
            feeds[name] = TradeFeed(
                adapter, counters, tls, self._on_listing, self._pairs, self._fill_seconds, self.sends_trade_ids, known
            )
        if self._options:
            deribit = Deribit(self._base_urls.get(_OPTIONS_EXCHANGE), self._options)
            feeds[deribit.name] = ContractFeed(deribit, self._counters[deribit.name], tls, self._on_listing)
        return feeds

    def _on_listing(self) -> None:
        """Find out what clients can subscribe to."""
        pairs: set[str] = set()
        for name in self._exchanges:
            feed = self._feeds.get(name)
            pairs |= set(self._pairs if feed is None or feed.symbols is None else feed.symbols.values())
        self._known_pairs = frozenset(pairs)
        feed = self._feeds.get(_OPTIONS_EXCHANGE)
        self._contracts = frozenset(() if feed is None else (feed.symbols or {}).values())


def _names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    # A single str is an iterable of letters, and never intended.
    found = () if isinstance(names, str) else tuple(dict.fromkeys(names))
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ConfigurationError(f"{argument} is {names!r}; expected one or more names, as in ('BTC:USDT',)")
    return found


def _read_known(trades: Iterable[tuple[int, str, str, str]]) -> list[Trade]:
    from .adapter import MALFORMED, Trade

    known = []
    for number, *rest in trades:
        trade = Trade(number, number, *rest)
        with contextlib.suppress(*MALFORMED):
            if trade.nanoseconds:
                known.append(trade)
    return known


def _check_exchanges(argument: str, names: Iterable[str], *more: str) -> None:
    known = [name for name in find_adapters() if name != _OPTIONS_EXCHANGE or more]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"{argument} has {name!r}; expected some of {', '.join(sorted(known))}")


def _check_base_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except (ValueError, AttributeError, TypeError):
        is_valid = False
    if not is_valid or parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError(
            f"base_urls has an address for {name} that can't be used; expected one such as http://127.0.0.1:9000/okx"
        )
