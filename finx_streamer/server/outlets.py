"""The outlets of live sources: where they send their market, and a gateway what it reads from a log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

import attrs

from .connection import TRY_AGAIN
from .contracts import ContractTicker, Played
from .hub import Hub
from .log_recorder import LogRecorder
from .log_store import LogRow, LogStore, Span
from .store import TickStore, fields_of

_Result = TypeVar("_Result")

#: The most ticks to publish before the event loop gets a turn.
MAX_BURST = 128
#: A tick or a contract's ticker with its number in the log.
Numbered = tuple[int, Played]


@attrs.frozen
class HubOutlet:
    """The `Outlet` of a live source."""

    _hub: Hub

    async def publish(self, played: Sequence[Played]) -> None:
        hub = self._hub
        burst = min(MAX_BURST, hub.recorder.max_burst)
        for start in range(0, len(played), burst):
            some = played[start : start + burst]
            await wait_until(hub, lambda: hub.recorder.has_room(burst))
            for each in some:
                hub.publish(each)
            hub.flush()
            if start + burst < len(played):
                await asyncio.sleep(0)

    def notify(self, pairs: Iterable[str], notice: Mapping[str, Any]) -> None:
        for pair in pairs:
            self._hub.notify_subscribers(pair, {**notice, "pair": pair})
        self._hub.flush()


@attrs.frozen
class LogOutlet(HubOutlet):
    """The `Outlet` of a source whose ticks have numbers from a log that is kept elsewhere."""

    @property
    def _recorder(self) -> LogRecorder:
        return cast(LogRecorder, self._hub.recorder)

    async def open_log(self, identity: str) -> tuple[str, int]:
        """The name and the newest number of the stream's log that the store has; nothing and 0 without one.

        Raises:
            ConfigurationError: The store belongs to another stream.
        """

        def open_log(store: LogStore) -> tuple[str, int]:
            store.check_identity(identity)
            return store.log_name, store.newest_logged

        return await self._query(open_log)

    async def follow(self, name: str, newest: int, keep: int | None = None) -> frozenset[str]:
        """Begin after a number of the log. Returns the pairs that the store knows. See `LogStore.follow`.

        With `keep`, clients have to connect again: what their positions mean is unknown.
        """

        def follow(store: LogStore) -> frozenset[str]:
            store.follow(name, newest, keep)
            return store.pairs

        self._recorder.is_switching = True
        try:
            pairs = await self._query(follow)
            self._recorder.begin(newest)
        finally:
            self._recorder.is_switching = False
        if keep is not None:
            self._close_streams("entries of the log were lost")
        return pairs

    async def rename(self, name: str, newest: int) -> None:
        """Refuse positions in the log's earlier names from now on."""
        await self._query(lambda store: store.follow(name, newest))

    async def first_after(self, number: int | None) -> tuple[int, str] | None:
        """See `LogStore.first_after`."""
        return await self._query(lambda store: store.first_after(number))

    def end_refilling(self) -> None:
        """Note that all that was forgotten was filled again."""
        cast(LogStore, self._recorder.store).is_refilling = False

    async def publish_numbered(self, played: Sequence[Numbered], until: int) -> None:
        """Publish ticks and tickers, as `publish` does. The log has no others up to `until`."""
        hub, recorder = self._hub, self._recorder
        burst = min(MAX_BURST, recorder.max_burst)
        for start in range(0, len(played), burst):
            await wait_until(hub, lambda: recorder.has_room(burst))
            for number, each in played[start : start + burst]:
                hub.publish(each, number)
            hub.flush()
            await asyncio.sleep(0)
        recorder.advance(until)

    def skip(self, newest: int, reason: str) -> None:
        """Continue after a number, because the log has expired up to there. Clients find out what they miss."""
        self._recorder.begin(newest)
        self._close_streams(reason)

    def _close_streams(self, reason: str) -> None:
        for connection, symbols in list(self._hub.connections.items()):
            if any(":" in symbol for symbol in symbols):
                connection.begin_close(TRY_AGAIN, reason)

    async def hole(self) -> Span | None:
        """See `LogStore.hole`."""
        return await self._query(LogStore.hole) if self._recorder.store.is_enabled else None

    async def fill(self, played: Sequence[Numbered], span: Span, stored: float) -> bool:
        """Store earlier ticks and tickers without publishing them. See `LogStore.fill`."""
        tickers = [each for _, each in played if isinstance(each, ContractTicker)]
        rows: list[LogRow] = [
            (number, *fields_of(each)) for number, each in played if not isinstance(each, ContractTicker)
        ]
        return await self._query(lambda store: store.fill(rows, span, tickers, stored))

    async def beginning(self) -> tuple[int, datetime | None]:
        """See `LogStore.beginning`."""
        return await self._query(LogStore.beginning)

    async def _query(self, query: Callable[[LogStore], _Result]) -> _Result:
        return await self._recorder.query(cast(Callable[[TickStore], _Result], query))


async def wait_until(hub: Hub, condition: Callable[[], bool]) -> None:
    while not condition():
        hub.changed.clear()
        await hub.changed.wait()
