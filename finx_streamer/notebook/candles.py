"""The candles of a chart: the bars of one pair, with the one that is still open."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from ..bars import BarBuilder
from ..errors import BarError

#: The number of candles in a chart's history.
CANDLES_KEPT = 300


class Candles:
    """The last bars of one pair. Used like `Chart`."""

    def __init__(self, interval: timedelta) -> None:
        self._seconds = interval.total_seconds()
        self._builder = BarBuilder(interval)
        #: The start in seconds since 1970, open, high, low and close of each bar, by start.
        self._candles: dict[float, list[float]] = {}

    def add(self, received_at: float, moment: datetime, exchange: str, price: float) -> float | None:
        """Add a price. Return the start of its bar, or None if that is too old to be drawn."""
        tick: Any = {"pair": "", "exchange": exchange, "timestamp": moment, "price": price}
        try:
            self._builder.add(tick)
        except BarError:
            return None
        bar = self._builder.bar_of(tick)
        start = bar["start"].timestamp()
        self._candles[start] = [start, bar["open"], bar["high"], bar["low"], bar["close"]]
        if len(self._candles) > CANDLES_KEPT:
            del self._candles[min(self._candles)]
        return start if start in self._candles else None

    def full(self) -> dict[str, Any]:
        """Return all candles."""
        return {"seconds": self._seconds, "candles": [self._candles[start] for start in sorted(self._candles)]}

    def points(self, changed: dict[float, float]) -> dict[str, Any]:
        """Return some candles, by their starts."""
        return {"candles": [self._candles[start] for start in sorted(changed) if start in self._candles]}
