"""The view for terminals: a table that is redrawn a few times per second."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import Gap, Greeks, ListenerStats, Notice, StreamStats, Tick
from ..base_listener import BaseListener
from ..delivery.stats import reason
from ..errors import make_printable
from .terminal import count, describe_filled_gap, encodable, shorten

#: Seconds between two redraws: about as fast as people can read.
_REDRAW_INTERVAL = 0.125
NO_VALUE = Text("-", style="dim")
_STATE_STYLES = {"streaming": "green", "failed": "bold red", "idle": "dim", "stopped": "dim"}


class LiveTable(ABC):
    """A table of what a listener knows, redrawn while it runs, with the totals and the latest message below it.

    A server chooses an exchange's name. So text is escaped, and passed as `Text`, never as markup.
    """

    #: What arrives.
    noun = "tick"

    def __init__(self, title: str) -> None:
        self._title = title
        self._message: Text | None = None
        self._errors = 0
        self._woken = threading.Event()
        self._encoding = sys.stdout.encoding
        # With `file`, rich respects its encoding.
        console = Console(file=sys.stdout, force_terminal=True, highlight=False)
        self._live = Live(console=console, auto_refresh=False, transient=False)

    @abstractmethod
    def tables(self, listener: BaseListener, stats: ListenerStats) -> list[RenderableType]:
        """Return what to draw above the totals."""

    def on_tick(self, tick: Tick) -> bool:
        """Return True: `refresh` finds the last tick in the statistics."""
        return True

    def on_greeks(self, greeks: Greeks) -> bool:
        """Return True: `refresh` asks the listener for the newest ones."""
        return True

    def on_error(self, message: str) -> None:
        self._errors += 1
        self._message = self._text(shorten(message), style="red")

    def on_notice(self, notice: Notice) -> None:
        self._message = self._text(shorten(f"notice: {notice.message}"), style="cyan")

    def on_filled_gap(self, gap: Gap) -> None:
        self._message = self._text(describe_filled_gap(gap), style="green")

    def wake(self) -> None:
        self._woken.set()

    def refresh(self, listener: BaseListener, seconds: float) -> None:
        """Redraw the table, then wait until it is time for the next redraw."""
        if not self._live.is_started:
            self._live.start()
        self._live.update(self.render(listener), refresh=True)
        self._woken.wait(min(seconds, _REDRAW_INTERVAL))
        self._woken.clear()

    def finish(self, listener: BaseListener, interrupted: bool) -> None:
        """Leave the final table on the screen."""
        if not self._live.is_started:
            self._live.start()  # the limit may be reached before the first `refresh`
        self._live.update(self.render(listener))
        self._live.stop()

    def missing(self) -> str | None:
        return None

    def render(self, listener: BaseListener) -> Group:
        """Return the tables, the totals below them and the latest message."""
        stats = listener.stats
        lines = [*self.tables(listener, stats), self._totals(stats)]
        if text := reason(stats):
            lines.append(self._text(shorten(f"{stats.state.value}: {text}"), style="yellow"))
        return Group(*lines, *([self._message] if self._message else []))

    def _text(self, text: str, style: str = "") -> Text:
        return Text(encodable(text, self._encoding), style)

    def _totals(self, stats: ListenerStats) -> Text:
        parts = [
            count(stats.ticks, self.noun),
            f"{stats.rate:,.1f}/s",
            count(stats.reconnects, "reconnect"),
            f"{stats.dropped:,} dropped",
            count(self._errors, "error"),
        ]
        return Text(" · ".join(parts), style="yellow" if stats.dropped or self._errors else "dim")


class TableView(LiveTable):
    """Shows each stream's last tick and state, from the listener's statistics."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self._first_prices: dict[str, str] = {}

    def tables(self, listener: BaseListener, stats: ListenerStats) -> list[RenderableType]:
        table = Table(title=self._text(make_printable(self._title)), title_justify="left", expand=False)
        for heading in ("pair", "price", "change", "exchange", "rate", "lag", "state"):
            numeric = heading in ("price", "change", "rate", "lag")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=True, max_width=24)
        for symbol, stream in stats.streams.items():
            table.add_row(*self._row(symbol, stream))
        return [table]

    def _row(self, symbol: str, stream: StreamStats) -> list[Text]:
        tick = stream.last_tick
        price = change = exchange = NO_VALUE
        if tick is not None:
            price = Text(_short_price(tick["price"]), style="bold")
            exchange = self._text(make_printable(tick["exchange"]))
            change = _change(self._first_prices.setdefault(symbol, tick["price"]), tick["price"])
        return [
            self._text(symbol),
            price,
            change,
            exchange,
            Text(f"{stream.rate:,.1f}/s"),
            _lag(stream.lag),
            Text(stream.state.value, style=_STATE_STYLES.get(stream.state.value, "yellow")),
        ]


def _short_price(price: str) -> str:
    """Round a long price: servers send `21865.010000000002`. Only the table rounds."""
    return price if len(price) <= 12 else f"{float(price):.10g}"


def _change(first: str, last: str) -> Text:
    """Return the change in percent since the first price."""
    before, now = float(first), float(last)
    if before == now or not before:
        return Text("0.00 %", style="dim")
    style, arrow = ("green", "▲") if now > before else ("red", "▼")
    return Text(f"{arrow} {abs(now / before - 1):.2%}".replace("%", " %"), style=style)


def _lag(seconds: float | None) -> Text:
    if seconds is None:
        return NO_VALUE
    text = f"{seconds * 1e3:,.0f} ms" if abs(seconds) < 1 else f"{seconds:,.1f} s" if abs(seconds) < 3_600 else "> 1 h"
    return Text(text, style="yellow" if abs(seconds) > 5 else "")
