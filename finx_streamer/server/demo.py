"""`start_demo`: a local server whose simulated market has already traded for an hour."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import cast

from .local import LocalServer
from .market import PAIRS, SimulatedMarket
from .ticks import Tick

#: Seconds of history at the start. It takes about 0.6 s to make.
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
        self._trades = SimulatedMarket(PAIRS, rate=_RATE).play(lambda: self._began)

    def take_past(self) -> Iterator[dict[str, str]]:
        """Yield the ticks before now."""
        for due, tick in self._trades:
            if due >= _PAST:
                self._trades = chain([(due, tick)], self._trades)
                return
            yield cast("dict[str, str]", tick)

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """Play the rest. See `Source.play`."""
        played = clock() - self._began
        for due, tick in self._trades:
            yield max(0.0, due - played), tick


def start_demo() -> LocalServer:
    """Start a server that accepts any key, with an hour of tick history."""
    market = MarketWithPast()
    # The default number could exceed the system's limit of open files, and cause a warning.
    server = LocalServer(market, max_connections=500)
    server.import_ticks(market.take_past())
    return server.start()
