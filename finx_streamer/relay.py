"""`RelayMarket`: the ticks of another FinX server as the market of a `LocalServer`. Needs the extra `server`."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from .config import checks as check
from .config.endpoint import Endpoint
from .config.reconnect import ReconnectPolicy
from .config.redaction import hides_arguments
from .config.symbols import Instrument, Option, Pair, Symbol, instrument
from .delivery.async_iteration import AsyncTickBuffer
from .errors import ConfigurationError, ConnectionFailed, FinxStreamerError, is_power_of_ten
from .functions.client import FunctionClient
from .listener import StreamListener
from .server.contracts import ContractTicker, Played, parse_ticker
from .server.source import Outlet
from .server.ticks import parse_tick
from .values import Gap, State

logger = logging.getLogger("finx_streamer.relay")

#: How much may wait for the server's event loop. A full buffer blocks the callbacks, so nothing more is read.
_BUFFERED = 8_192
#: Seconds.
_STOP_TIMEOUT = 5.0
#: Seconds between two looks at the upstream's list of contracts, and after one that failed.
_LIST_INTERVAL, _LIST_AGAIN = 300.0, 5.0


class RelayMarket:
    """The ticks and Greeks of another FinX server, for any number of clients of yours, over one connection and key::

        from finx_streamer import StreamListener
        from finx_streamer.relay import RelayMarket
        from finx_streamer.server import LocalServer, SimulatedMarket

        with (
            LocalServer(SimulatedMarket(), keys={"of-the-firm"}) as upstream,  # in real life: endpoint="production"
            LocalServer(RelayMarket("BTC:USDC", endpoint=upstream.url, api_key="of-the-firm"), keys={"demo"}) as server,
            StreamListener("BTC:USDC", endpoint=server.url, api_key="demo", on_tick=print) as listener,
        ):
            listener.join(timeout=1)

    It listens as a `StreamListener` does: lost connections are retried, and missed ticks are fetched and sent in order.
    If that fails, the clients of the pair get a notice `{"notice": "gap not filled"}` with `since` and `until`, and the
    log says why. Texts of prices and times stay as they were sent. If the store has no room, the upstream isn't read.

    If the upstream rejects the key, or knows none of the symbols, the source fails with that error: `/health` and
    `wait_finished()` report it.

    Args:
        *symbols (str | Pair | Option | Instrument): What to relay, as for `StreamListener`.
        endpoint (str | Endpoint | Sequence[str | Endpoint]): The upstream, as for `StreamListener`. All symbols share
            one connection, unless you pass `Endpoint(url, wire="url")`.
        api_key (str | Callable[[], str] | None): Its key, as for `StreamListener`. The relay's clients never see it.
        since (datetime | str | timedelta | None): Fill the store from this time on at each start, as for
            `StreamListener`. A store that has these ticks stores them again. None begins with the first live tick.
        reconnect (ReconnectPolicy): How long to wait between connection attempts.
        ssl_context (ssl.SSLContext | None): TLS settings for the upstream.
        proxy (str | None): The proxy to the upstream.
        allow_insecure (bool): True permits an upstream with `ws://` on another machine.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    @hides_arguments
    def __init__(
        self,
        *symbols: str | Symbol,
        endpoint: str | Endpoint | Sequence[str | Endpoint] = "production",
        api_key: str | Callable[[], str | None] | None = None,
        since: datetime | str | timedelta | None = None,
        reconnect: ReconnectPolicy = ReconnectPolicy(),  # noqa: B008 (frozen)
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
    ) -> None:
        self._symbols, self._since = symbols, since
        self._connection: dict[str, Any] = {
            "api_key": api_key,
            "endpoint": _on_one_connection(endpoint),
            "reconnect": reconnect,
            "ssl_context": ssl_context,
            "proxy": proxy,
            "allow_insecure": allow_insecure,
        }
        # Checks the arguments, the key first: from then on, errors about the others mask it.
        self._new_listener()
        if not symbols:
            raise ConfigurationError("a relay needs symbols, as in RelayMarket('BTC:USDC')")
        checked = tuple(map(check.symbol, symbols))
        self._months = [symbol for symbol in checked if isinstance(symbol, Option)]
        self._wanted = frozenset(map(str, checked))
        self._pairs = frozenset(str(symbol) for symbol in checked if isinstance(symbol, Pair))
        self._contracts = frozenset(str(symbol) for symbol in checked if isinstance(symbol, Instrument))
        self._refused: frozenset[str] = frozenset()
        self._malformed = 0

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to: those that the upstream hasn't refused."""
        return self._pairs - self._refused

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that clients can subscribe to, as far as the upstream lists them."""
        return self._contracts - self._refused

    async def run(self, outlet: Outlet) -> None:
        """Relay until the task is cancelled. See `LiveSource.run`.

        Args:
            outlet (Outlet): Where to send ticks and contract tickers.

        Raises:
            ConnectionFailed: The upstream rejects the key, or knows none of the symbols.
        """
        # It carries anything from the callback thread, in order.
        arrived: Any = AsyncTickBuffer(_BUFFERED, True, lambda: None)
        listing = asyncio.create_task(self._follow_listing())
        listener = self._new_listener(
            on_tick=arrived, on_greeks=arrived, on_gap=arrived, on_state=self._note_state
        ).start()
        end = asyncio.create_task(listener.wait_async())
        end.add_done_callback(lambda _: arrived.end())
        try:
            while (first := await arrived.take_async()) is not None:
                await self._relay([first, *arrived.take_rest()], outlet)
            await end
        except ConnectionFailed as error:
            error.reason = f"the upstream: {error.reason}"
            raise
        finally:
            listing.cancel()
            arrived.close()
            await asyncio.to_thread(listener.stop, _STOP_TIMEOUT)
            self._refused = frozenset()

    def _new_listener(self, **callbacks: Any) -> StreamListener:
        return StreamListener(
            *self._symbols, parse_price=str, since=self._since, keep=0, **callbacks, **self._connection
        )

    async def _relay(self, arrived: list[Any], outlet: Outlet) -> None:
        """Send what has arrived: ticks, Greeks and gaps, in order."""
        played: list[Played] = []
        for each in arrived:
            if type(each) is dict:
                try:
                    played.append(parse_tick(each) if "pair" in each else self._parse_ticker(each))
                except ValueError as error:
                    self._note_malformed(error)
            elif isinstance(each, Gap) and not each.filled:
                await outlet.publish(played)
                played = []
                since, until = each.since.isoformat(), each.until.isoformat()
                outlet.notify([each.symbol], {"notice": "gap not filled", "since": since, "until": until})
        await outlet.publish(played)

    def _parse_ticker(self, greeks: Any) -> ContractTicker:
        ticker = parse_ticker(greeks["raw"])
        if ticker.instrument.name not in self._contracts:
            self._contracts |= {ticker.instrument.name}
        return ticker

    async def _follow_listing(self) -> None:
        """Know the contracts of the months, so that clients can subscribe before the first ticker."""
        named = self._contracts & self._wanted
        while self._months:
            try:
                with FunctionClient(**self._connection) as client:
                    listed = await asyncio.to_thread(client.list_contracts)
            except FinxStreamerError as error:
                logger.warning("the upstream doesn't list its contracts, so clients can't choose them yet: %s", error)
                await asyncio.sleep(_LIST_AGAIN)
            else:
                found = {name for name in listed if any(_includes(month, name) for month in self._months)}
                self._contracts = named | found
                await asyncio.sleep(_LIST_INTERVAL)

    def _note_malformed(self, error: ValueError) -> None:
        self._malformed += 1
        if is_power_of_ten(self._malformed):
            logger.error("the upstream has sent %d ticks that can't be relayed; the last: %s", self._malformed, error)

    def _note_state(self, symbol: str, state: State) -> None:
        if state is State.FAILED:
            self._refused |= {symbol}


def _on_one_connection(endpoint: Any) -> Any:
    """Let servers that are given by name or URL carry all symbols on one connection. The demo can't."""
    if isinstance(endpoint, list | tuple):
        return list(map(_on_one_connection, endpoint))
    if not isinstance(endpoint, str) or endpoint == "demo":
        return endpoint
    return Endpoint(Endpoint.of(endpoint).url, wire="subscribe")


def _includes(month: Option, name: str) -> bool:
    try:
        return month.includes(instrument(name))
    except ConfigurationError:
        return False  # a kind of contract that this version doesn't know
