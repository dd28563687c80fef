"""Fixtures: loopback exchanges, and a server that they feed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from finx_streamer import StreamListener
from finx_streamer.server import ExchangeMarket, LocalServer
from tests.support.exchanges import Comparison, LoopbackExchanges, Trade, compare
from tests.support.peers import Seen

PAIR = "BTC:USDT"


@attrs.define
class Setting:
    """Exchanges, the server that they feed, and a client of that server.

    Attributes:
        exchanges (LoopbackExchanges): Where trades are made.
        server (LocalServer): The server under test.
        seen (Seen): What the client received.
        listener (StreamListener): The client.
        made (dict): All trades of `make`, by exchange and pair.
    """

    exchanges: LoopbackExchanges
    server: LocalServer
    seen: Seen
    listener: StreamListener
    made: dict[tuple[str, str], list[Trade]] = attrs.field(factory=dict)

    def make(self, name: str, count: int = 1, pair: str = PAIR, **options: Any) -> list[Trade]:
        """Make trades that have to arrive. The options are those of `Exchange.make`."""
        trades = self.exchanges.make(name, pair, count, **options)
        self.made.setdefault((name, pair), []).extend(trades)
        return trades

    def wait_for_all(self) -> Comparison:
        """Wait until a tick of each trade has arrived. Returns what became of them."""
        self.seen.wait_ticks(self.compare().made)
        # Trades that OKX sends as one may come one by one from REST, so that there are more ticks.
        self.seen.wait_for(lambda: not self.compare().missing)
        return self.compare()

    def compare(self) -> Comparison:
        return compare(self.exchanges, self.made, list(self.seen.ticks))

    def stats(self, name: str) -> Any:
        return self.server.stats.exchanges[name]

    def wait_stats(self, name: str, condition: Callable[[Any], bool]) -> Any:
        """Wait until a condition on an exchange's counters holds."""
        return self.server.wait_until(lambda stats: condition(stats.exchanges[name])).exchanges[name]

    def drop(self, name: str, how: str = "fin") -> None:
        """Drop the exchange's connections, and wait until it knows no client."""
        exchange = self.exchanges[name]
        self.exchanges.call(exchange.drop, how)
        self.exchanges.wait_until(lambda: not exchange.connections)


@pytest.fixture
def start(seen: Seen) -> Iterator[Callable[..., Setting]]:
    """Starts exchanges, a server and a client. Options: those of `LoopbackExchanges` and `ExchangeMarket`."""
    with contextlib.ExitStack() as stack:

        def start(
            *names: str,
            pairs: tuple[str, ...] = (PAIR,),
            exchanges: LoopbackExchanges | None = None,
            market: dict[str, Any] | None = None,
            server: dict[str, Any] | None = None,
            symbols: tuple[str, ...] | None = None,
            listener: dict[str, Any] | None = None,
        ) -> Setting:
            loopback = stack.enter_context(exchanges or LoopbackExchanges(pairs))
            options: dict[str, Any] = {"base_urls": loopback.base_urls} | (market or {})
            if names:
                options["exchanges"] = names
            served = stack.enter_context(LocalServer(ExchangeMarket(pairs, **options), **(server or {})))
            for each in names or loopback.exchanges:
                for pair in set(pairs) & set(loopback[each].books):
                    loopback.wait_subscribed(each, pair=pair)
            client = seen.listener(served.url, *(symbols or pairs), parse_price=str, **(listener or {}))
            stack.enter_context(client)
            served.wait_connected(len(symbols or pairs))
            return Setting(loopback, served, seen, client)

        yield start
