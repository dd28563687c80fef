"""A market under the test's control, and outages of its streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from finx_streamer import State, StreamListener
from finx_streamer.server import LocalServer
from tests.support.peers import Seen

PAIR, OTHER = "BTC:USDC", "ETH:USDC"
BEGIN = datetime(2022, 7, 2, 15, 30, tzinfo=UTC)


def tick(number: int, pair: str = PAIR, exchange: str = "BINANCE") -> dict[str, str]:
    """Tick `number` of the market: `number` hundredths of a second after `BEGIN`."""
    moment = BEGIN + timedelta(milliseconds=10 * number)
    return {
        "pair": pair,
        "date": moment.date().isoformat(),
        "time": moment.time().isoformat("milliseconds") + "Z",
        "exchange": exchange,
        "price": f"{19_200 + number}.50",
    }


class Market:
    """A market that sends only what the test emits."""

    wait_for = 0
    paced = True

    def __init__(self, *pairs: str) -> None:
        self.pairs = frozenset(pairs or (PAIR,))

    def play(self, clock: object) -> Iterator[tuple[float, Any]]:
        return iter(())


def send(server: LocalServer, *numbers: int, pair: str = PAIR) -> None:
    """Store these ticks, and send them to connected streams."""
    server.emit(*(tick(number, pair) for number in numbers))


def begin(server: LocalServer, seen: Seen, streams: int = 1) -> None:
    """Wait for the streams, and deliver tick 1 on the first one."""
    server.wait_connected(streams)
    send(server, 1)
    seen.wait_ticks(1)


def wait_held(listener: StreamListener, count: int) -> None:
    """Wait until this many ticks are held during a gap. No callback reports that."""
    while listener.stats.held < count:
        assert not listener.join(0.01)


def interrupt(server: LocalServer, seen: Seen) -> None:
    """Send tick 1 live, tick 2 during an outage, and tick 3 live again."""
    begin(server, seen)
    with outage(server, seen):
        send(server, 2)
    send(server, 3)


def prices(seen: Seen, pair: str = PAIR) -> list[int]:
    """The numbers of the ticks received for a pair."""
    return [int(each["price"]) - 19_200 for each in seen.ticks if each["pair"] == pair]


@contextmanager
def outage(server: LocalServer, seen: Seen, symbol: str = PAIR) -> Iterator[None]:
    """Keep one of the streams disconnected."""
    before = len(seen.states)
    server.refuse_next(None, 503)
    server.drop_connections(symbol)
    seen.wait_for(lambda: (symbol, State.RECONNECTING) in seen.states[before:])
    server.wait_until(lambda stats: symbol not in stats.symbols)
    yield
    server.refuse_next(0, 503)
    server.wait_until(lambda stats: symbol in stats.symbols)
