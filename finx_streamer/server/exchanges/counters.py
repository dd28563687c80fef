"""`Counters`: what one exchange has sent so far."""

from __future__ import annotations

import attrs

from ..stats import ExchangeStats
from ..ticks import exact_time
from .series import Series


@attrs.define
class Counters:
    """The counters of one exchange. They continue when the market runs again. Only the server's thread writes them."""

    connected: bool = False
    trades: int = 0
    reconnects: int = 0
    gaps: int = 0
    filled: int = 0
    unfilled: int = 0
    lost: int = 0
    #: Why the exchange sends nothing.
    error: str | None = None
    #: The newest trade's date and time, and when it arrived, in seconds since 1970.
    newest: tuple[str, str, float] | None = None
    #: The series of this run, which know of gaps and losses.
    series: list[Series] = attrs.field(factory=list)

    def snapshot(self) -> ExchangeStats:
        """The counters for users."""
        return ExchangeStats(
            connected=self.connected,
            trades=self.trades,
            reconnects=self.reconnects,
            gaps=self.gaps + sum(each.gap_count for each in self.series),
            filled=self.filled,
            unfilled=self.unfilled,
            lost=self.lost + sum(each.lost for each in self.series),
            lag=self._lag,
            error=self.error,
        )

    def end_run(self) -> None:
        """Keep the totals of the run."""
        total = self.snapshot()
        self.connected, self.gaps, self.lost = False, total.gaps, total.lost
        self.series.clear()

    @property
    def _lag(self) -> float | None:
        if self.newest is None:
            return None
        day, clock, arrived = self.newest
        seconds, fraction = exact_time(day, clock)
        return arrived - seconds - float(f"0.{fraction or 0}")
