"""What a market source is: something that plays ticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from .ticks import Tick


class Source(Protocol):
    """A market to be played. `Tape` and `SimulatedMarket` are two; any object of this shape will do.

    The source has no clock, thread or socket of its own: it says what is due when, and the server does the rest.
    """

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that can be asked for. All others are unknown (404)."""

    @property
    def wait_for(self) -> int:
        """How many streams must be connected before the first tick is played."""

    @property
    def paced(self) -> bool:
        """Whether the ticks are due by the clock. If not, they are played as fast as the clients take them."""

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """Start from the beginning: pairs of when, in seconds since the start and never falling, and what.

        `clock` tells the time in seconds since 1970, for sources that stamp their ticks.
        """
