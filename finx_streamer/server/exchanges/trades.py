"""`TradeFeed`: the trades of one exchange as ticks. It fills the gaps of each pair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from ..ticks import Tick
from .adapter import MALFORMED, Adapter, Gap, Page, Trade
from .counters import Counters
from .feed import MOST_READY, Feed
from .rest import RestFailed
from .series import Series, State

log = logging.getLogger("finx_streamer.server.exchanges")

#: The most trades of an exchange that are held. Then nothing more is read.
_MOST_HELD = 50_000
#: The most trades that are sent instead of one that stands for them.
_MOST_ALIKE = 1_000
#: The most requests for one gap in a row.
_MOST_PAGES = 100
#: Seconds. The wait between two requests for a gap doubles, and a gap is given up after a while.
_FIRST_WAIT, _LONGEST_WAIT, _GIVE_UP = 0.25, 5.0, 60.0
#: How much this clock and an exchange's may differ, in seconds.
_CLOCKS_DIFFER = 60.0


@attrs.define(eq=False)
class _Traded:
    """One pair on this exchange."""

    symbol: str
    pair: str
    series: Series
    #: Fills its gaps.
    task: asyncio.Task[None] | None = None
    #: Ends the time in which trades are held.
    timer: asyncio.TimerHandle | None = None
    #: How many gaps the task knows of, and whether there are more.
    known_gaps: int = 0
    has_new_gap: asyncio.Event = attrs.field(factory=asyncio.Event)


class TradeFeed(Feed):
    """The trades of some pairs on one exchange.

    Each pair has a `Series`. While it has gaps, a task asks the exchange for the missing trades, and a timer releases
    what is held after `fill_seconds`.
    """

    def __init__(
        self,
        adapter: Adapter,
        counters: Counters,
        tls: ssl.SSLContext,
        on_listing: Callable[[], None],
        pairs: Iterable[str],
        fill_seconds: float,
        sends_trade_ids: bool = False,
        known: Mapping[str, Sequence[Trade]] | None = None,
    ) -> None:
        super().__init__(adapter, counters, tls, on_listing)
        self._sends_trade_ids = sends_trade_ids
        self._pairs = tuple(pairs)
        self._fill_seconds = fill_seconds
        #: After these, each pair's trades are missing.
        self._known = known or {}
        self._traded: dict[str, _Traded] = {}
        #: Those whose trades are held.
        self._holding: set[_Traded] = set()

    def wanted(self, listed: dict[str, str]) -> dict[str, str]:
        missing = [pair for pair in self._pairs if pair not in listed]
        if missing and not self._traded:
            log.warning("%s: doesn't list %s", self.adapter.name, ", ".join(missing))
        consecutive = self.adapter.consecutive
        for pair in self._pairs:
            if (symbol := listed.get(pair)) is not None and symbol not in self._traded:
                self._traded[symbol] = _Traded(symbol, pair, series := Series(consecutive=consecutive))
                self.counters.series.append(series)
                if pair in self._known:
                    epoch = asyncio.get_running_loop().time() - time.time()
                    series.begin_after(self._known[pair], epoch - _CLOCKS_DIFFER)
        return {listed[pair]: pair for pair in self._pairs if pair in listed}

    def affected(self) -> Iterable[str]:
        return self._pairs if self.symbols is None else tuple(self.symbols.values())

    def take(self, message: Any) -> bool:
        adapter = self.adapter
        rows = adapter.rows(message)
        if not rows:
            return False
        old = adapter.is_snapshot(message)
        found: list[tuple[Trade, _Traded]] = []
        for symbol, row in rows:
            try:
                traded = self._traded.get(symbol)
                if traded is not None:
                    found.append((adapter.trade(row), traded))
            except MALFORMED as error:
                self.warn("trade", f"a trade was rejected: {error!r}"[:120])
        if len(found) > 1:
            found.sort(key=_trade_of)
        if found and not old:
            newest = found[-1][0]
            self.counters.newest = (newest.date, newest.time, time.time())
        for trade, traded in found:
            series = traded.series
            self._publish(traded, series.add(trade, self._heard, old=old))
            if series.gaps or traded.timer is not None:
                self._attend(traded)
        return True

    def on_connected(self) -> None:
        for traded in self._traded.values():
            traded.series.interrupt(self._heard)
            self._attend(traded)

    @property
    def is_full(self) -> bool:
        held = sum(each.series.held for each in self._holding) if self._holding else 0
        return len(self.ready) >= MOST_READY or held >= _MOST_HELD

    def _publish(self, traded: _Traded, trades: list[Trade]) -> None:
        pair, name, ready = traded.pair, self.adapter.name, self.ready
        sends_ids = self._sends_trade_ids
        for first, last, price, day, clock in trades:
            # Faster than a call of Tick.
            tick: Tick = {"pair": pair, "date": day, "time": clock, "exchange": name, "price": price}
            if sends_ids:
                if first != last:
                    # REST returns them one by one, and publishers have to agree on IDs.
                    ready.extend({**tick, "trade": str(each)} for each in range(max(first, last - _MOST_ALIKE), last))
                tick["trade"] = str(last)
            ready.append(tick)
        self.counters.trades += len(trades)
        if trades:
            self.is_ready.set()

    def _attend(self, traded: _Traded) -> None:
        """Start and stop the timer and the task of a pair, as its state requires."""
        series = traded.series
        if series.state is State.HELD and traded.timer is None:
            loop = asyncio.get_running_loop()
            traded.timer = loop.call_later(self._fill_seconds, self._release, traded)
            self._holding.add(traded)
        elif series.state is not State.HELD and traded.timer is not None:
            traded.timer.cancel()
            traded.timer = None
            self._holding.discard(traded)
            self.on_room()
        if series.gap_count > traded.known_gaps:
            traded.known_gaps = series.gap_count
            traded.has_new_gap.set()
        if series.gaps and traded.task is None:
            traded.task = self._tasks.create_task(self._fill(traded))

    def _release(self, traded: _Traded) -> None:
        self._publish(traded, traded.series.release())
        self._attend(traded)

    async def _fill(self, traded: _Traded) -> None:
        """Ask for what is missing, until there are no gaps."""
        series, wait = traded.series, _FIRST_WAIT
        give_up: dict[Gap, float] = {}
        try:
            while series.gaps:
                traded.has_new_gap.clear()
                longest = wait
                for gap in list(series.gaps):
                    longest = max(longest, await self._try_to_fill(traded, gap, give_up))
                if series.gaps:
                    wait = min(2 * wait, _LONGEST_WAIT)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(min(longest, _GIVE_UP)):
                            await traded.has_new_gap.wait()
                            wait = _FIRST_WAIT
        except Exception:
            log.exception("%s: unexpected error; gaps of %s are given up", self.adapter.name, traded.pair)
            for gap in list(series.gaps):
                self._close(traded, gap)
        finally:
            traded.task = None

    async def _try_to_fill(self, traded: _Traded, gap: Gap, give_up: dict[Gap, float]) -> float:
        """Ask once for what is missing in a gap. Returns how long the exchange wants no further request."""
        series, loop = traded.series, asyncio.get_running_loop()
        if gap.high is None:
            # Only what is missing until then can be known.
            await self.is_connected.wait()
        wait = 0.0
        give_up.setdefault(gap, loop.time() + _GIVE_UP)
        if gap in series.gaps:
            try:
                await self._ask(traded, gap)
            except RestFailed as error:
                wait = error.wait
                give_up[gap] = max(give_up[gap], loop.time() + wait + _LONGEST_WAIT)
                self.warn("rest", f"missed trades of {traded.pair} can't be fetched yet: {error}")
        is_quiet = gap.late and gap.high is None and gap.answered
        if gap not in series.gaps or is_quiet or loop.time() >= give_up[gap]:
            self._close(traded, gap)
        return wait

    async def _ask(self, traded: _Traded, gap: Gap) -> None:
        """Request what is missing in a gap, page by page. Raises `RestFailed`."""
        adapter, series = self.adapter, traded.series
        page, upto = None, gap.low - 1
        for _ in range(_MOST_PAGES):
            age = asyncio.get_running_loop().time() - gap.began
            path = adapter.history_path(traded.symbol, gap, page, age)
            if path is None:
                break
            rows, trades = self._read_history(await self._rest.get(path))
            sent, count = series.fill(gap, trades)
            self.counters.filled += count
            self._publish(traded, sent)
            if not trades:
                break
            page = Page(rows, trades[0], trades[-1])
            upto = max(upto, page.newest.last)
            if adapter.oldest_first:
                self._publish(traded, series.answer(gap, upto, more=True))
            self._attend(traded)
            await self.wait_for_room()
        self._publish(traded, series.answer(gap, upto))
        self._attend(traded)

    def _read_history(self, body: Any) -> tuple[int, list[Trade]]:
        """The number of rows, and the trades among them."""
        trades = []
        try:
            rows = self.adapter.history_rows(body)
        except MALFORMED as error:
            raise RestFailed("REST: the trades can't be read") from error
        for row in rows:
            try:
                trades.append(self.adapter.history_trade(row))
            except MALFORMED as error:
                self.warn("trade", f"a trade was rejected: {error!r}"[:120])
        return len(rows), sorted(trades)

    def _close(self, traded: _Traded, gap: Gap) -> None:
        self._publish(traded, traded.series.close(gap))
        self._attend(traded)
        is_too_old = asyncio.get_running_loop().time() - gap.began > self.adapter.reach
        if is_too_old or not traded.series.is_filled(gap):
            self.counters.unfilled += 1
            self.warn("unfilled", f"not all missed trades of {traded.pair} could be fetched")
        self.wake_watchers()


def _trade_of(found: tuple[Trade, _Traded]) -> Trade:
    return found[0]
