"""The state of a live view: conflates any number of ticks into what a page can draw. Independent of Jupyter.

A page gets the full state once, then frames with changes, both as JSON with plain text only (see `text`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from ..clock import monotonic
from ..delivery.frontend import ListenerView
from ..delivery.recent import Recent
from ..delivery.stats import ListenerStats, StreamStats, reason
from .candles import Candles
from .chains import Chains, is_option
from .text import finite, plain, plain_name, price_digits, price_text

#: The highest number of streams shown. For the rest, only their number.
ROWS = 200
#: The highest number of charts.
CHARTS = 4
#: The highest number of ticks used per frame. The last ones show the same as all of them, in less time.
_PER_FRAME = 5_000
#: Seconds between two reads of the counters.
_STATS_EVERY = 0.5
#: The number of points in a sparkline, and the seconds between two of them.
_SPARK_POINTS, _SPARK_SECONDS = 60, 1.0
#: The number of rows in a chart's history, and the seconds between two of them. Together ten minutes.
_ROWS_KEPT, _ROW_SECONDS = 1_200, 0.5
#: The highest number of exchanges with a line in a chart.
_LINES = 12


class Chart:
    """The last prices of one pair at each exchange, with one row per half second."""

    def __init__(self) -> None:
        self.exchanges: list[str] = []
        self._rows: deque[tuple[float, dict[int, float]]] = deque(maxlen=_ROWS_KEPT)

    def add(self, received_at: float, moment: datetime, exchange: str, price: float) -> int | None:
        """Add a price. Return the index of its line, or None if the chart has no room for another line."""
        if exchange not in self.exchanges:
            if len(self.exchanges) >= _LINES:
                return None
            self.exchanges.append(exchange)
        line = self.exchanges.index(exchange)
        if not self._rows or received_at - self._rows[-1][0] >= _ROW_SECONDS:
            self._rows.append((received_at, {}))
        self._rows[-1][1][line] = price
        return line

    def full(self) -> dict[str, Any]:
        """Return the whole history, as columns."""
        rows = list(self._rows)
        lines = [[prices.get(line) for _, prices in rows] for line in range(len(self.exchanges))]
        return {"exchanges": list(self.exchanges), "x": [at for at, _ in rows], "y": lines}

    def points(self, prices: dict[float, float]) -> dict[str, Any]:
        """Return the last price of some lines, by index."""
        return {"exchanges": self.exchanges, "y": prices}


class _Row:
    """The last price of one stream."""

    def __init__(self) -> None:
        self.price: float | None = None
        #: The price as the tick has it, of any type. A month of options has none.
        self.exact: Any = "-"
        #: The number of decimals shown. It never decreases, so the column keeps its width.
        self.digits = 0
        self.exchange = "-"
        self.at = 0.0
        self.direction = 0
        self.spark: deque[float] = deque(maxlen=_SPARK_POINTS)
        self._spark_from = -math.inf

    def update(self, received_ns: int, exact: Any, exchange: object) -> None:
        at, price = received_ns / 1e9, finite(exact)
        if price is not None and self.price is not None and price != self.price:
            self.direction = 1 if price > self.price else -1
        self.price, self.at = price, at
        self.exact, self.exchange = exact, plain_name(str(exchange))
        self.digits = max(self.digits, price_digits(self.exact))
        if price is None:
            return
        if at - self._spark_from >= _SPARK_SECONDS:
            self._spark_from = at
            self.spark.append(price)
        elif self.spark:
            self.spark[-1] = price

    def values(self) -> list[Any]:
        return [price_text(self.exact, self.digits), self.price, self.exchange, self.at, self.direction]


class ViewModel:
    """The state of one view. Not thread-safe.

    Args:
        listener: What the view shows.
        recent: Its last ticks.
        charts: The symbols to chart first.
        bars: The length of a candle. None draws lines.
    """

    def __init__(
        self, listener: ListenerView, recent: Recent, charts: Iterable[str], bars: timedelta | None = None
    ) -> None:
        self._listener = listener
        self._recent = recent
        self._bars = bars
        #: A candle needs all ticks that there are.
        self._per_frame = _PER_FRAME if bars is None else recent.size
        self._position = 0
        self._rows: dict[str, _Row] = {}
        self._symbols: tuple[str, ...] = ()
        self._chains = Chains()
        self._has_options = False
        self._charts: dict[str, Chart | Candles] = {}
        #: What changed since the last frame.
        self._changed: set[str] = set()
        #: The prices of the lines, by index, or of the candles, by start.
        self._points: dict[str, dict[float, float]] = {}
        self._chosen = False
        #: Charts that no page has yet.
        self._new_charts: set[str] = set()
        self._stats: ListenerStats = listener.stats
        self._stats_at = -math.inf
        self._stats_sent = -math.inf
        self.choose(charts)

    @property
    def charts(self) -> tuple[str, ...]:
        return tuple(self._charts)

    def choose(self, pairs: Iterable[str]) -> None:
        """Choose the pairs to chart, and load their recent ticks. Ignores pairs that the listener doesn't have.

        Futures and perpetuals have charts like pairs, but no recent ticks. Options have none.
        """
        known_symbols = self._listener.symbols
        wanted = [pair for pair in dict.fromkeys(pairs) if pair in known_symbols and not is_option(pair)][:CHARTS]
        known, self._charts = self._charts, {}
        self._chosen = True
        for pair in wanted:
            self._charts[pair] = known.get(pair) or self._load(pair)

    def _load(self, pair: str) -> Chart | Candles:
        # What is no pair has no trades.
        chart = Chart() if self._bars is None or ":" not in pair else Candles(self._bars)
        row = self._rows.setdefault(pair, _Row())
        self._new_charts.add(pair)
        for tick in self._recent.last(self._recent.size, pair):
            if (price := finite(tick["price"])) is not None:
                chart.add(tick["received_ns"] / 1e9, tick["timestamp"], plain_name(str(tick["exchange"])), price)
                row.digits = max(row.digits, price_digits(tick["price"]))
        return chart

    def update(self) -> None:
        """Take in the ticks received since the last call."""
        ticks, self._position = self._recent.since(self._position, self._per_frame)
        for tick in ticks:
            self._update_row(tick["pair"], tick["received_ns"], tick["timestamp"], tick["price"], tick["exchange"])
        if any(":" not in symbol for symbol in self._listener.symbols):
            self._update_contracts()
        if monotonic() - self._stats_at >= _STATS_EVERY:
            self.update_stats()

    def _update_row(self, symbol: str, received_ns: int, moment: datetime, price: Any, exchange: object) -> None:
        row = self._rows.get(symbol)
        if row is None:
            row = self._rows[symbol] = _Row()
        row.update(received_ns, price, exchange)
        self._changed.add(symbol)
        if row.price is not None and (chart := self._charts.get(symbol)) is not None:
            point = chart.add(row.at, moment, row.exchange, row.price)
            if point is not None:
                self._points.setdefault(symbol, {})[point] = row.price

    def _update_contracts(self) -> None:
        symbols = frozenset(self._listener.symbols)
        for name, greeks in self._chains.update(self._listener.greeks()).items():
            # The same contract may come as itself and with its month.
            for symbol in symbols & {name, greeks["symbol"]}:
                price = greeks["mark_price"] if symbol == name else None
                quote = "-" if price is None else price
                self._update_row(symbol, greeks["received_ns"], greeks["timestamp"], quote, greeks["exchange"])

    def choose_expiry(self, name: str) -> None:
        """Choose the expiry whose chain is shown. Ignores one without options."""
        self._chains.choose(name)

    @property
    def expiry(self) -> str | None:
        """The expiry whose chain is shown."""
        return None if self._chains.chosen is None else self._chains.chosen.name

    def update_stats(self) -> None:
        """Read the counters."""
        self._stats_at = monotonic()
        self._stats = self._listener.stats

    def full(self) -> dict[str, Any]:
        """Return the full state. The next frame has the changes since then."""
        self._symbols = self._listener.symbols
        shown = self._symbols[:ROWS]
        self._changed.clear()
        self._points.clear()
        self._chosen = False
        self._new_charts.clear()
        self._has_options = any(map(is_option, self._symbols))
        return {
            "kind": "full",
            "now": time.time(),
            "name": plain(self._listener.name),
            "symbols": [plain(symbol) for symbol in shown],
            "more": len(self._symbols) - len(shown),
            "rows": [self._row(symbol).values() for symbol in shown],
            "sparks": [list(self._row(symbol).spark) for symbol in shown],
            "charts": {pair: self._chart(pair) for pair in self._charts},
            "uncharted": [i for i, symbol in enumerate(shown) if is_option(symbol)],
            **({"options": self._chains.full()} if self._has_options else {}),
            **self._stats_fields(),
        }

    def frame(self) -> dict[str, Any] | None:
        """Return the changes since the last frame or full state. None without changes."""
        if self._listener.symbols != self._symbols:
            return self.full()
        rows = {i: self._rows[s].values() for i, s in enumerate(self._symbols[:ROWS]) if s in self._changed}
        points = {
            pair: {**self._charts[pair].points(prices), "digits": self._rows[pair].digits}
            for pair, prices in self._points.items()
            if pair in self._charts and pair not in self._new_charts
        }
        changes = {**self._charts_fields(), **(self._stats_fields() if self._stats_at > self._stats_sent else {})}
        if self._has_options and (options := self._chains.changes(monotonic())) is not None:
            changes["options"] = options
        self._changed.clear()
        self._points = {}
        if not rows and not changes:
            return None
        return {"kind": "frame", "now": time.time(), "rows": rows, "points": points, **changes}

    def digits(self) -> dict[str, int]:
        """Return the number of decimals of each stream's prices."""
        return {symbol: row.digits for symbol, row in self._rows.items()}

    def sparklines(self) -> dict[str, list[tuple[float, float]]]:
        """Return the recent prices of each stream as points. Both coordinates are from 0 to 1."""
        return {symbol: _scaled(list(row.spark)) for symbol, row in self._rows.items()}

    def _chart(self, pair: str) -> dict[str, Any]:
        return {**self._charts[pair].full(), "digits": self._row(pair).digits}

    def _charts_fields(self) -> dict[str, Any]:
        """Return the chosen pairs and the history of new charts, if the choice changed. No other chart is loaded."""
        if not self._chosen:
            return {}
        new = {pair: self._chart(pair) for pair in self._charts if pair in self._new_charts}
        self._chosen = False
        self._new_charts.clear()
        return {"pairs": list(self._charts), "new_charts": new}

    def _row(self, symbol: str) -> _Row:
        return self._rows.get(symbol) or _Row()

    def _stats_fields(self) -> dict[str, Any]:
        self._stats_sent = self._stats_at
        stats = self._stats
        none = StreamStats(state=stats.state)
        streams = [stats.streams.get(symbol, none) for symbol in self._symbols[:ROWS]]
        return {
            "state": stats.state.value,
            "reason": plain(reason(stats)),
            "totals": {
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


def first_charted(symbols: Iterable[str]) -> list[str]:
    """Return the symbol that has a chart by default: the first that can have one."""
    return [symbol for symbol in symbols if not is_option(symbol)][:1]


def _scaled(prices: list[float]) -> list[tuple[float, float]]:
    if len(prices) < 2:
        return []
    low, high = min(prices), max(prices)
    span = (high - low) or 1.0
    return [(i / (len(prices) - 1), (price - low) / span) for i, price in enumerate(prices)]
