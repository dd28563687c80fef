"""What a live view shows, conflated: of any number of ticks, what a page can draw. It knows nothing of Jupyter.

A page is sent one full picture, and from then on frames that tell what has changed. Both are JSON. All text in them is
plain (see `text`), and pages take it for text and not for HTML.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..delivery.frontend import ListenerView
from ..delivery.recent import Recent
from ..delivery.stats import ListenerStats, StreamStats
from ..values import Tick
from .text import plain, price_text

#: More streams than these are told by their number only.
ROWS = 200
#: More charts than these can't be looked at.
CHARTS = 4
#: Of more ticks in one frame, only the last are looked at: they say the same, and the rest only costs time.
_PER_FRAME = 5_000
#: Seconds between two looks at the counters.
_STATS_EVERY = 0.5
#: A sparkline has so many points, of so many seconds each.
_SPARK, _SPARK_SECONDS = 60, 1.0
#: A chart's history has so many rows, of so many seconds each: ten minutes.
_ROWS_KEPT, _ROW_SECONDS = 1_200, 0.5
#: More exchanges than these have no line of their own.
_LINES = 12


class Chart:
    """The last prices of one pair at each of its exchanges, in rows of half a second."""

    def __init__(self) -> None:
        self.exchanges: list[str] = []
        self._rows: deque[tuple[float, dict[int, float]]] = deque(maxlen=_ROWS_KEPT)

    def add(self, at: float, exchange: str, price: float) -> int | None:
        """Returns which line it belongs to; None where there is no room for another one."""
        if exchange not in self.exchanges:
            if len(self.exchanges) >= _LINES:
                return None
            self.exchanges.append(exchange)
        line = self.exchanges.index(exchange)
        if not self._rows or at - self._rows[-1][0] >= _ROW_SECONDS:
            self._rows.append((at, {}))
        self._rows[-1][1][line] = price
        return line

    def full(self) -> dict[str, Any]:
        """All rows, as columns."""
        rows = list(self._rows)
        lines = [[prices.get(line) for _, prices in rows] for line in range(len(self.exchanges))]
        return {"exchanges": list(self.exchanges), "x": [at for at, _ in rows], "y": lines}


class _Row:
    """One stream's last price."""

    def __init__(self) -> None:
        self.price: float | None = None
        self.text = "-"
        self.exchange = "-"
        self.at = 0.0
        self.direction = 0
        self.spark: deque[float] = deque(maxlen=_SPARK)
        self._spark_from = -math.inf

    def see(self, tick: Tick) -> None:
        at, price = tick["received_ns"] / 1e9, _number(tick["price"])
        if price is not None and self.price is not None and price != self.price:
            self.direction = 1 if price > self.price else -1
        self.price, self.at = price, at
        self.text, self.exchange = price_text(tick["price"]), plain(tick["exchange"])
        if price is None:
            return
        if at - self._spark_from >= _SPARK_SECONDS:
            self._spark_from = at
            self.spark.append(price)
        elif self.spark:
            self.spark[-1] = price

    def now(self) -> list[Any]:
        return [self.text, self.exchange, self.at, self.direction]


class ViewModel:
    """The state of one view. One thread at a time."""

    def __init__(self, listener: ListenerView, recent: Recent, charts: Iterable[str]) -> None:
        self._listener = listener
        self._recent = recent
        self._position = 0
        self._rows: dict[str, _Row] = {}
        self._symbols: tuple[str, ...] = ()
        self._charts: dict[str, Chart] = {}
        #: What changed since the last frame.
        self._changed: set[str] = set()
        self._points: dict[str, dict[int, float]] = {}
        self._stats: ListenerStats = listener.stats
        self._stats_at = -math.inf
        self._stats_sent = -math.inf
        self.choose(charts)

    @property
    def charts(self) -> tuple[str, ...]:
        return tuple(self._charts)

    def choose(self, pairs: Iterable[str]) -> None:
        """Which pairs to draw, with what is known of their past. Those that are not listened to are left out."""
        wanted = [pair for pair in dict.fromkeys(pairs) if pair in self._listener.symbols][:CHARTS]
        known, self._charts = self._charts, {}
        for pair in wanted:
            chart = self._charts[pair] = known.get(pair) or Chart()
            if pair not in known:
                for tick in self._recent.last(self._recent.size, pair):
                    if (price := _number(tick["price"])) is not None:
                        chart.add(tick["received_ns"] / 1e9, plain(tick["exchange"]), price)

    def look(self) -> None:
        """Take in what has come since the last time."""
        ticks, self._position = self._recent.since(self._position, _PER_FRAME)
        for tick in ticks:
            pair = tick["pair"]
            row = self._rows.get(pair)
            if row is None:
                row = self._rows[pair] = _Row()
            row.see(tick)
            self._changed.add(pair)
            if row.price is not None and (chart := self._charts.get(pair)) is not None:
                line = chart.add(row.at, row.exchange, row.price)
                if line is not None:
                    self._points.setdefault(pair, {})[line] = row.price
        if time.monotonic() - self._stats_at >= _STATS_EVERY:
            self.count()

    def count(self) -> None:
        """Look at the counters."""
        self._stats_at = time.monotonic()
        self._stats = self._listener.stats

    def full(self) -> dict[str, Any]:
        """All of it."""
        self._symbols = self._listener.symbols
        shown = self._symbols[:ROWS]
        self._changed.clear()
        self._points.clear()
        return {
            "kind": "full",
            "now": time.time(),
            "name": plain(self._listener.name),
            "symbols": [plain(symbol) for symbol in shown],
            "more": len(self._symbols) - len(shown),
            "rows": [self._row(symbol).now() for symbol in shown],
            "sparks": [list(self._row(symbol).spark) for symbol in shown],
            "charts": {pair: chart.full() for pair, chart in self._charts.items()},
            **self._counted(),
        }

    def frame(self) -> dict[str, Any] | None:
        """What has changed since the last frame, or since `full`; None where nothing has."""
        if self._listener.symbols != self._symbols:
            return self.full()
        rows = {i: self._rows[s].now() for i, s in enumerate(self._symbols[:ROWS]) if s in self._changed}
        points = {
            pair: {"exchanges": self._charts[pair].exchanges, "y": prices}
            for pair, prices in self._points.items()
            if pair in self._charts
        }
        self._changed.clear()
        self._points = {}
        counted = self._counted() if self._stats_at > self._stats_sent else {}
        if not rows and not counted:
            return None
        return {"kind": "frame", "now": time.time(), "rows": rows, "points": points, **counted}

    def sparks(self) -> dict[str, list[tuple[float, float]]]:
        """A line of recent prices for each stream, within a square of 1 by 1."""
        return {symbol: _scaled(list(row.spark)) for symbol, row in self._rows.items()}

    def _row(self, symbol: str) -> _Row:
        return self._rows.get(symbol) or _Row()

    def _counted(self) -> dict[str, Any]:
        self._stats_sent = self._stats_at
        stats = self._stats
        none = StreamStats(state=stats.state)
        streams = [stats.streams.get(symbol, none) for symbol in self._symbols[:ROWS]]
        return {
            "state": stats.state.value,
            "sums": {
                "ticks": stats.ticks,
                "rate": stats.rate,
                "dropped": stats.dropped,
                "reconnects": stats.reconnects,
                "gaps": stats.gaps,
                "errors": stats.callback_errors + stats.decode_errors,
                "waiting": stats.queue_depth,
            },
            "streams": [[s.state.value, s.rate, s.lag, s.ticks, s.gaps] for s in streams],
        }


def _number(price: Any) -> float | None:
    """A price as it can be drawn, whatever `parse_price` made of it."""
    try:
        number = float(price)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _scaled(prices: list[float]) -> list[tuple[float, float]]:
    if len(prices) < 2:
        return []
    low, high = min(prices), max(prices)
    span = (high - low) or 1.0
    return [(i / (len(prices) - 1), (price - low) / span) for i, price in enumerate(prices)]
