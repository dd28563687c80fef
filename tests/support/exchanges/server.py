"""`LoopbackExchanges`: all exchanges on one port, in an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from aiohttp import web

from .binance import Binance
from .bitstamp import Bitstamp
from .bybit import Bybit
from .coinbase import Coinbase
from .deribit import Deribit
from .exchange import Exchange
from .kraken import Kraken
from .okx import Okx
from .venue import Venue

EXCHANGES: Mapping[str, type[Exchange]] = {
    each.name: each for each in (Binance, Coinbase, Kraken, Okx, Bybit, Bitstamp)
}
#: A failsafe. It never decides the outcome of a test that passes.
TIMEOUT = 20.0
#: Seconds between the trades of `rate`.
PACE = 0.01

_Result = TypeVar("_Result")


class LoopbackExchanges:
    """Six exchanges and Deribit on loopback, each under its own path::

        with LoopbackExchanges() as exchanges:
            market = ExchangeMarket(["BTC:USDT"], base_urls=exchanges.base_urls)
            ...
            exchanges.make("OKX", "BTC:USDT", 5)

    Args:
        pairs (Iterable[str]): The pairs that each exchange lists.
        listed (Mapping[str, Iterable[str]]): Other pairs for some exchanges, by name.
        options (Iterable[str]): The currencies whose contracts Deribit lists.
        history (int): The trades of each pair that took place before the start.
        seed (int): Decides how trades are grouped into messages.
        keep (int | None): The number of trades of each pair to keep at least. None keeps all.
    """

    def __init__(
        self,
        pairs: Iterable[str] = ("BTC:USDT", "ETH:USDT"),
        *,
        listed: Mapping[str, Iterable[str]] | None = None,
        options: Iterable[str] = ("BTC", "ETH"),
        history: int = 60,
        seed: int = 0,
        keep: int | None = None,
    ) -> None:
        pairs = tuple(pairs)
        self.exchanges = {
            name: exchange((listed or {}).get(name, pairs), seed, keep) for name, exchange in EXCHANGES.items()
        }
        self.deribit = Deribit(options)
        for exchange in self.exchanges.values():
            for pair in exchange.books:
                exchange.make(pair, history, age=30.0)
        self.port = 0
        self._rate = 0.0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    def __getitem__(self, name: str) -> Exchange:
        return self.exchanges[name]

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.exchanges.values())

    @property
    def base_urls(self) -> dict[str, str]:
        """The address of each exchange, as `ExchangeMarket` takes it."""
        return {name: f"http://127.0.0.1:{self.port}/{name.lower()}" for name in (*self.exchanges, Deribit.name)}

    @property
    def venues(self) -> list[Venue]:
        return [*self.exchanges.values(), self.deribit]

    def __enter__(self) -> LoopbackExchanges:
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="loopback-exchanges", daemon=True)
        self._thread.start()
        self.port = ready.result(TIMEOUT)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        assert self._thread is not None
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def call(self, action: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
        """Call a method of an exchange in the event loop, from any thread, and return its result."""
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(action(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(TIMEOUT)

    def make(self, name: str, pair: str, count: int = 1, **kwargs: Any) -> list[Any]:
        """Make trades on one exchange. See `Exchange.make`."""
        return self.call(self[name].make, pair, count, **kwargs)

    def set_rate(self, per_second: float) -> None:
        """Make this many trades per second, spread evenly over exchanges and pairs."""
        self._rate = per_second

    def wait_until(self, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
        """Wait until a condition on the exchanges holds. Raises `AssertionError` after `timeout` seconds."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), "the exchanges waited in vain"

    def wait_subscribed(self, *names: str, pair: str = "BTC:USDT") -> None:
        """Wait until the exchanges with these names, or all that list the pair, send it to a client."""
        chosen = [self[name] for name in names] or [each for each in self if pair in each.books]
        self.wait_until(lambda: all(each.subscribed(pair) for each in chosen))

    def _run(self, ready: Future[int]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: Future[int]) -> None:
        app = web.Application()
        for venue in self.venues:
            venue.changed = self._notify
            app.add_routes(venue.routes("/" + venue.name.lower()))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pace = asyncio.ensure_future(self._pace())
        ready.set_result(runner.addresses[0][1])
        await self._stop.wait()
        pace.cancel()
        for venue in self.venues:
            venue.release_rest()
            venue.drop("rst")
        await runner.cleanup()

    async def _pace(self) -> None:
        """Make trades at the rate that was set."""
        loop = asyncio.get_running_loop()
        books = [(exchange, pair) for exchange in self.exchanges.values() for pair in exchange.books]
        due, then, turn = 0.0, loop.time(), 0
        while True:
            await asyncio.sleep(PACE)
            now = loop.time()
            due += (now - then) * self._rate
            then = now
            # Each pair's share of this moment: whole trades, the rest later. Turns make it even over time.
            share, rest = divmod(int(due), len(books))
            due -= int(due)
            for index, (exchange, pair) in enumerate(books):
                count = share + ((index - turn) % len(books) < rest)
                if count:
                    exchange.make(pair, count)
            turn = (turn + rest) % len(books)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
