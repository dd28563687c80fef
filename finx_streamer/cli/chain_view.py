"""The view for options: a chain with calls on the left, strikes, and puts on the right, one expiry at a time."""

from __future__ import annotations

from datetime import datetime, timedelta

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .. import ConfigurationError, Greeks, Instrument, ListenerStats, StreamListener
from .table_view import NO_VALUE, LiveTable

#: The lines of a screen that aren't strikes: title, headings, borders, totals, expiries, and a message.
_OTHER_LINES = 12
#: The columns of a call, from the outside in. Those of a put are mirrored.
_SIDE = {"IV": ("mark_iv", "{:.1f}"), "delta": ("delta", "{:+.3f}"), "bid": ("best_bid_price", "{:.7g}")}
_SIDE |= {"ask": ("best_ask_price", "{:.7g}")}

Chain = tuple[str, datetime]


class ChainView(LiveTable):
    """Shows the newest values of each contract that the listener has.

    Args:
        title: Shown above the table.
        expiry: The day of the expiry to show, such as "26AUG22". None is the nearest one.

    Raises:
        ConfigurationError: `expiry` isn't such a day.
    """

    noun = "update"

    def __init__(self, title: str, expiry: str | None = None) -> None:
        super().__init__(title)
        self._expiry = None if expiry is None else _parse_expiry(expiry)

    def tables(self, listener: StreamListener, stats: ListenerStats) -> list[RenderableType]:
        newest = listener.greeks().values()
        chains: dict[Chain, list[Greeks]] = {}
        for greeks in newest:
            if greeks["strike"] is not None and greeks["expiry"] is not None:
                chains.setdefault((greeks["underlying"], greeks["expiry"]), []).append(greeks)
        others = sorted((each for each in newest if each["strike"] is None), key=lambda each: each["instrument"])
        found: list[RenderableType] = []
        if others:
            found.append(self._table_of_others(others))
        if chain := self._choose(chains):
            found = [self._chain(chain, chains[chain], 3 + len(others) if others else 0), *found]
            found += self._expiries(chain, chains)
        if not found:
            states = ", ".join(f"{symbol}: {stream.state.value}" for symbol, stream in stats.streams.items())
            found.append(self._text(f"{self._title}: no values yet ({states})", style="yellow"))
        return found

    def _choose(self, chains: dict[Chain, list[Greeks]]) -> Chain | None:
        wanted = [chain for chain in chains if self._expiry in (None, chain[1])]
        return min(wanted, key=lambda chain: (chain[1], chain[0])) if wanted else None

    def _chain(self, chain: Chain, contracts: list[Greeks], taken: int) -> Table:
        underlying, expiry = chain
        newest = max(contracts, key=lambda greeks: greeks["timestamp"])
        forward = newest["underlying_price"]
        at_forward = f", forward {forward:,.2f}" if forward is not None else ""
        left = _duration(expiry - newest["timestamp"])
        title = f"{underlying} {_day(expiry)}{at_forward}, {left} · {self._title}"
        table = Table(title=self._text(title), title_justify="left", expand=False)
        for heading in (*_SIDE, "strike", *reversed(_SIDE)):
            table.add_column(heading, justify="right", no_wrap=True, style="bold" if heading == "strike" else "")
        sides = {(greeks["kind"], greeks["strike"]): greeks for greeks in contracts}
        strikes = sorted({greeks["strike"] for greeks in contracts if greeks["strike"] is not None})
        at_the_money = min(strikes, key=lambda strike: abs(strike - (forward or strike)))
        for strike in self._visible(strikes, at_the_money, taken):
            call, put = (_cells(sides.get((kind, strike))) for kind in ("call", "put"))
            style = "reverse" if strike == at_the_money else ""
            table.add_row(*call, Text(f"{strike:,.7g}"), *reversed(put), style=style)
        return table

    def _visible(self, strikes: list[float], middle: float, taken: int) -> list[float]:
        """Return the strikes around the forward that fit on the screen."""
        room = max(3, self._live.console.height - _OTHER_LINES - taken)
        begin = max(0, min(strikes.index(middle) - room // 2, len(strikes) - room))
        return strikes[begin : begin + room]

    def _expiries(self, shown: Chain, chains: dict[Chain, list[Greeks]]) -> list[Text]:
        others = [
            f"{underlying} {_day(expiry)}" for underlying, expiry in sorted(chains, key=lambda chain: chain[::-1])
        ]
        others.remove(f"{shown[0]} {_day(shown[1])}")
        return [self._text(f"also: {', '.join(others)} (--expiry DAY)", style="dim")] if others else []

    def _table_of_others(self, contracts: list[Greeks]) -> Table:
        table = Table(expand=False)
        table.add_column("contract", no_wrap=True)
        for heading in ("mark", "bid", "ask", "index"):
            table.add_column(heading, justify="right", no_wrap=True)
        for greeks in contracts:
            names = ("mark_price", "best_bid_price", "best_ask_price", "index_price")
            table.add_row(self._text(greeks["instrument"]), *(_number(greeks, name, "{:,.2f}") for name in names))
        return table


def _cells(greeks: Greeks | None) -> list[Text]:
    return [NO_VALUE if greeks is None else _number(greeks, name, form) for name, form in _SIDE.values()]


def _number(greeks: Greeks, name: str, form: str) -> Text:
    value = greeks[name]  # type: ignore[literal-required]
    return NO_VALUE if value is None else Text(form.format(value))


def _parse_expiry(day: str) -> datetime:
    try:
        expiry = Instrument.parse(f"X-{day.upper()}").expiry
    except ConfigurationError:
        expiry = None
    if expiry is None:
        raise ConfigurationError(f"--expiry: {day!r} is not a day; expected one such as 26AUG22")
    return expiry


def _day(expiry: datetime) -> str:
    return f"{expiry.day}{expiry:%b%y}".upper()


def _duration(left: timedelta) -> str:
    """Say how much time is left, as of the newest values: recordings may be old."""
    if left <= timedelta(0):
        return "expired"
    hours, minutes = divmod(int(left.total_seconds()) // 60, 60)
    return f"{hours // 24} d {hours % 24} h left" if hours >= 24 else f"{hours} h {minutes} min left"
