"""The live table."""

from __future__ import annotations

import threading

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import FinxStreamerError, Gap, ListenerStats, Notice, StreamListener, StreamStats, Tick
from ..errors import make_printable
from .text import brief, count, filled

#: Seconds between two pictures: more often than this nobody reads.
_REFRESH = 0.125
_NOTHING = Text("-", style="dim")
_STATE_STYLES = {"streaming": "green", "failed": "bold red", "idle": "dim", "stopped": "dim"}


class LiveTable:
    """A view that shows the state of each stream, a few times a second, from the listener's statistics.

    All text is set as `Text`, never as markup, and cleaned: a server chooses an exchange's name.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._news = Text("")
        self._errors = 0
        self._first: dict[str, str] = {}
        self._woken = threading.Event()
        self._live = Live(console=Console(force_terminal=True, highlight=False), auto_refresh=False, transient=False)

    def on_tick(self, tick: Tick) -> None:
        """Nothing: the statistics hold the last tick, and most ticks are never seen."""

    def on_error(self, error: FinxStreamerError) -> None:
        self._errors += 1
        self._news = Text(brief(str(error)), style="red")

    def on_notice(self, notice: Notice) -> None:
        self._news = Text(brief(f"notice: {notice.message}"), style="cyan")

    def on_gap(self, gap: Gap) -> None:
        self._news = Text(filled(gap), style="green")

    def wake(self) -> None:
        self._woken.set()

    def turn(self, listener: StreamListener, seconds: float) -> None:
        """Draw, and wait until it is time to draw again."""
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._picture(listener.stats), refresh=True)
        self._woken.wait(min(seconds, _REFRESH))
        self._woken.clear()

    def finish(self, listener: StreamListener, interrupted: bool) -> None:
        """Leave the last picture on the screen."""
        self._live.update(self._picture(listener.stats))
        self._live.stop()

    def _picture(self, stats: ListenerStats) -> Group:
        table = Table(title=Text(make_printable(self._title)), title_justify="left", expand=False)
        for heading in ("pair", "price", "change", "exchange", "rate", "lag", "state"):
            numeric = heading in ("price", "change", "rate", "lag")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=True, max_width=24)
        for symbol, stream in stats.streams.items():
            table.add_row(*self._row(symbol, stream))
        return Group(table, self._status(stats), self._news)

    def _row(self, symbol: str, stream: StreamStats) -> list[Text]:
        tick = stream.last_tick
        price = change = exchange = _NOTHING
        if tick is not None:
            price = Text(_short(tick["price"]), style="bold")
            exchange = Text(make_printable(tick["exchange"]))
            change = _change(self._first.setdefault(symbol, tick["price"]), tick["price"])
        return [
            Text(symbol),
            price,
            change,
            exchange,
            Text(f"{stream.rate:,.1f}/s"),
            _lag(stream.lag),
            Text(stream.state.value, style=_STATE_STYLES.get(stream.state.value, "yellow")),
        ]

    def _status(self, stats: ListenerStats) -> Text:
        parts = [
            count(stats.ticks, "tick"),
            f"{stats.rate:,.1f}/s",
            count(stats.reconnects, "reconnect"),
            f"{stats.dropped:,} dropped",
            count(self._errors, "error"),
        ]
        return Text(" · ".join(parts), style="yellow" if stats.dropped or self._errors else "dim")


def _short(price: str) -> str:
    """The price in at most twelve characters or so: vendors send `21865.010000000002`, and lines say so exactly."""
    return price if len(price) <= 12 else f"{float(price):.10g}"


def _change(first: str, last: str) -> Text:
    """The change since this table began, in per cent."""
    before, now = float(first), float(last)
    if before == now or not before:
        return Text("0.00 %", style="dim")
    style, arrow = ("green", "▲") if now > before else ("red", "▼")
    return Text(f"{arrow} {abs(now / before - 1):.2%}".replace("%", " %"), style=style)


def _lag(seconds: float | None) -> Text:
    if seconds is None:
        return _NOTHING
    text = f"{seconds * 1e3:,.0f} ms" if abs(seconds) < 1 else f"{seconds:,.1f} s" if abs(seconds) < 3_600 else "> 1 h"
    return Text(text, style="yellow" if abs(seconds) > 5 else "")
