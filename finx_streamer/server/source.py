"""The interfaces of markets: a `Source` is played on the server's clock, a `LiveSource` sends ticks as they occur."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from .contracts import Played
from .stats import ExchangeStats, LogStats


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


class Outlet(Protocol):
    """Where a `LiveSource` sends its market. Call it in the server's event loop."""

    async def publish(self, played: Sequence[Played]) -> None:
        """Wait until the store has room, then store ticks and contract tickers, and send them to their subscribers.

        It never waits for a client: a slow one is disconnected. While it waits, read nothing more, so that the exchange
        feels the back-pressure.

        Args:
            played (Sequence[Tick | ContractTicker]): The ticks, in the order in which clients receive them.
        """

    def notify(self, pairs: Iterable[str], notice: Mapping[str, Any]) -> None:
        """Send a notice to the subscribers of each pair.

        Args:
            pairs (Iterable[str]): The pairs that it concerns.
            notice (Mapping[str, Any]): What to send. The key `pair` is added.
        """


class LiveSource(Protocol):
    """A market that sends ticks as they occur. `ExchangeMarket` is one. Any class with these members is one::

        import asyncio
        from datetime import UTC, datetime

        from finx_streamer.server import LocalServer


        class OneTickPerSecond:
            pairs = frozenset({"BTC:USDC"})

            async def run(self, outlet):
                for second in range(60):
                    date, time = datetime.now(UTC).isoformat("T", "milliseconds")[:23].split("T")
                    tick = {"pair": "BTC:USDC", "date": date, "time": time, "exchange": "MINE", "price": str(second)}
                    await outlet.publish([tick])
                    await asyncio.sleep(1.0)


        with LocalServer(OneTickPerSecond()) as server:
            print(server.url)

    A live source with options has a property `contracts`, as a `Source` has. One that is fed by exchanges has a
    property `exchange_stats`: a mapping from each exchange's name to its `ExchangeStats`.
    """

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to now. Any other pair is refused with 404."""

    async def run(self, outlet: Outlet) -> None:
        """Send the market until it ends, or until this task is cancelled, which happens when the server stops.

        Args:
            outlet (Outlet): Where to send it.
        """


class LogSource(LiveSource, Protocol):
    """A live source that reads its ticks from a log that several servers share, such as a `JetStreamMarket`.

    Its outlet is a `LogOutlet`. It isn't a public interface.
    """

    @property
    def ready(self) -> bool:
        """Whether its pairs are known. Until then, clients are refused with 503."""

    @property
    def log_stats(self) -> LogStats:
        """Where it is in the log."""

    def expects(self, number: int) -> bool:
        """Whether the store will soon be able to resume after a number, but may not be now."""


def as_log(source: Source | LiveSource) -> LogSource | None:
    """The source, if it is a `LogSource`."""
    return cast(LogSource, source) if hasattr(source, "log_stats") else None


def exchange_stats(source: Source | LiveSource) -> Mapping[str, ExchangeStats]:
    """The counters of each exchange that feeds a source. Most have none."""
    return getattr(source, "exchange_stats", {})
