"""`Source`: the interface of a market that the server can play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from .contracts import Played


class Source(Protocol):
    """A market that a server can play. Any class with these members is one::

        from datetime import UTC, datetime

        from finx_streamer.server import LocalServer


        class OneTickPerSecond:
            pairs = frozenset({"BTC:USDC"})
            wait_for = 1
            paced = True

            def play(self, clock):
                for second in range(60):
                    date, time = datetime.fromtimestamp(clock(), UTC).isoformat("T", "milliseconds")[:23].split("T")
                    tick = {"pair": "BTC:USDC", "date": date, "time": time, "exchange": "MINE", "price": str(second)}
                    yield float(second), tick


        with LocalServer(OneTickPerSecond()) as server:
            print(server.url)

    `Tape` and `SimulatedMarket` are sources. A source has no clock, thread or socket: it says which tick is due when,
    and the server does the rest.

    A source with options also has a property `contracts`: the names of the contracts that are listed now, as a
    frozenset. Clients can subscribe to these, and to the months in which their options expire.
    """

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to. Any other pair is refused with 404."""

    @property
    def wait_for(self) -> int:
        """The number of streams that must be connected before the first tick is played."""

    @property
    def paced(self) -> bool:
        """Whether ticks are due at set times. If not, they are played as fast as the clients accept them."""

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Played]]:
        """Play the market from its beginning.

        Args:
            clock (Callable[[], float]): Returns the current time in seconds since 1970, for sources that set the time
                of their ticks.

        Returns:
            Iterator[tuple[float, Tick | ContractTicker]]: When each tick is due, in seconds since the start, never
            decreasing; and the tick, or the ticker of a contract.
        """
