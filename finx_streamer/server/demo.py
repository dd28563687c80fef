"""`start_demo`: a local server whose simulated market, with options, has already traded for an hour."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from .contracts import Played
from .local import LocalServer
from .market import PAIRS, SimulatedMarket

#: Seconds of history at the start. It takes about 0.8 s to make.
_PAST = 3_600.0
#: Ticks per second.
_RATE = 10.0


class MarketWithPast:
    """A simulated market that plays once: its past with `take_past`, then the rest."""

    pairs = frozenset(PAIRS)
    wait_for = 0
    paced = True

    def __init__(self) -> None:
        self._began = time.time() - _PAST
        self._market = SimulatedMarket(PAIRS, rate=_RATE, options=("BTC", "ETH"))
        self._rest = self._market.play(lambda: self._began, past=_PAST)

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that are listed now."""
        return self._market.contracts

    def take_past(self) -> Iterator[Any]:
        """Yield what was played before now: ticks, and the contracts' tickers before each five-minute point."""
        for due, played in self._rest:
            if due >= _PAST:
                self._rest = chain([(due, played)], self._rest)
                return
            yield played

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Played]]:
        """Play the rest. See `Source.play`."""
        elapsed = clock() - self._began
        for due, played in self._rest:
            yield max(0.0, due - elapsed), played


def start_demo() -> LocalServer:
    """Start a server that accepts any key, with an hour of tick history and of five-minute points."""
    market = MarketWithPast()
    # The default number could exceed the system's limit of open files, and cause a warning.
    server = LocalServer(market, max_connections=500)
    server.import_ticks(market.take_past())
    return server.start()
