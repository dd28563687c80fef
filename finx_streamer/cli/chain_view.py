"""The view for options: a chain with calls on the left, strikes, and puts on the right, one expiry at a time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .. import ConfigurationError, Greeks, Instrument, ListenerStats, Option
from ..base_listener import BaseListener
from ..config.symbols import Symbol
from .table_view import NO_VALUE, LiveTable

#: The lines of a screen that belong to no chain: totals, expiries, and a message; and those of a chain without strikes.
_OTHER_LINES, _CHAIN_LINES = 6, 6
#: The columns of a call, from the outside in. Those of a put are mirrored.
_SIDE = ("IV", "delta", "bid", "ask")
#: The most digits of a quote, so that a chain fits 80 columns.
_DIGITS = 5

#: The options of each expiry of an underlying.
Chains = dict[str, dict[datetime, list[Greeks]]]


class ChainView(LiveTable):
    """Shows the newest values of each contract that the listener has: a chain for each underlying.

    Args:
        title: Shown above the table.
        expiry: The expiry to show. None is the nearest one.
    """

    noun = "update"

    def __init__(self, title: str, expiry: datetime | None = None) -> None:
        super().__init__(title)
        self._expiry = expiry
        #: Whether an option of that expiry has appeared.
        self._found = False

    def tables(self, listener: BaseListener, stats: ListenerStats) -> list[RenderableType]:
        newest = listener.greeks().values()
        chains: Chains = {}
        for greeks in newest:
            if greeks["strike"] is not None and greeks["expiry"] is not None:
                chains.setdefault(greeks["underlying"], {}).setdefault(greeks["expiry"], []).append(greeks)
        others = sorted((each for each in newest if each["strike"] is None), key=lambda each: each["instrument"])
        now = max((greeks["timestamp"] for greeks in newest), default=None)
        shown = {name: self._choose(chains[name], now) for name in sorted(chains)}
        self._found = self._found or any(shown.values())
        taken = _OTHER_LINES + (4 + len(others) if others else 0)
        room = (self._live.console.height - taken) // max(1, len(shown)) - _CHAIN_LINES
        found: list[RenderableType] = [
            self._chain(name, expiry, chains[name][expiry], room) for name, expiry in shown.items() if expiry
        ]
        if others:
            found.append(self._table_of_others(others))
        found += self._other_expiries(chains, shown)
        if not newest:
            states = ", ".join(f"{symbol}: {stream.state.value}" for symbol, stream in stats.streams.items())
            found.append(self._text(f"{self._title}: no values yet ({states})", style="yellow"))
        return found

    def missing(self) -> str | None:
        if self._expiry is None or self._found:
            return None
        return f"no option that expires on {_day(self._expiry)} appeared (--expiry)"

    def _choose(self, chains: dict[datetime, list[Greeks]], now: datetime | None) -> datetime | None:
        """Return the expiry to show: the one that was asked for, if it is there, or the nearest."""
        if self._expiry is not None:
            return self._expiry if self._expiry in chains else None
        ahead = [expiry for expiry in chains if now is None or expiry > now]
        return min(ahead) if ahead else max(chains)

    def _chain(self, underlying: str, expiry: datetime, contracts: list[Greeks], room: int) -> Table:
        contracts = sorted(contracts, key=lambda greeks: greeks["timestamp"])
        forwards = [greeks["underlying_price"] for greeks in contracts if greeks["underlying_price"] is not None]
        forward = forwards[-1] if forwards else None
        at_forward = f", forward {forward:,.2f}" if forward is not None else ""
        left = _duration(expiry - contracts[-1]["timestamp"])
        title = f"{underlying} {_day(expiry)}{at_forward}, {left} · {self._title}"
        table = Table(title=self._text(title), title_justify="left", expand=False)
        columns = (*_SIDE, "strike", *reversed(_SIDE))
        for number, heading in enumerate(columns):
            above = {1: "calls", len(columns) - 2: "puts"}.get(number, "")
            style = "bold" if heading == "strike" else ""
            table.add_column(f"{above}\n{heading}", justify="right", no_wrap=True, style=style)
        sides = {(greeks["kind"], greeks["strike"]): greeks for greeks in contracts}
        strikes = sorted({greeks["strike"] for greeks in contracts if greeks["strike"] is not None})
        middle = strikes[len(strikes) // 2] if forward is None else min(strikes, key=lambda each: abs(each - forward))
        visible = _around(strikes, middle, max(1, room))
        decimals = _decimals(greeks for greeks in contracts if greeks["strike"] in visible)
        for strike in visible:
            call, put = (_cells(sides.get((kind, strike)), decimals) for kind in ("call", "put"))
            style = "reverse" if strike == middle and forward is not None else ""
            table.add_row(*call, Text(f"{strike:.7g}"), *reversed(put), style=style)
        return table

    def _other_expiries(self, chains: Chains, shown: dict[str, datetime | None]) -> list[Text]:
        others = sorted({expiry for name in chains for expiry in chains[name]} - set(shown.values()))
        if not others:
            return []
        days = ", ".join(map(_day, others))
        if self._expiry is not None and not any(shown.values()):
            return [self._text(f"no option expires on {_day(self._expiry)}; these do: {days}", style="yellow")]
        return [self._text(f"also: {days} (--expiry DAY)", style="dim")]

    def _table_of_others(self, contracts: list[Greeks]) -> Table:
        table = Table(expand=False)
        table.add_column("contract", no_wrap=True)
        for heading in ("mark", "bid", "ask", "index"):
            table.add_column(heading, justify="right", no_wrap=True)
        for greeks in contracts:
            prices = (greeks["mark_price"], greeks["best_bid_price"], greeks["best_ask_price"], greeks["index_price"])
            table.add_row(self._text(greeks["instrument"]), *map(_dollars, prices))
        return table


def _around(strikes: list[float], middle: float, room: int) -> list[float]:
    """Return as many strikes as there is room for, with `middle` in the middle if possible."""
    begin = max(0, min(strikes.index(middle) - room // 2, len(strikes) - room))
    return strikes[begin : begin + room]


def _decimals(contracts: Iterable[Greeks]) -> int:
    """Return how many decimals the finest quote has, as far as there is room: all quotes get as many."""
    quotes = [quote for greeks in contracts for quote in _quotes(greeks) if quote is not None]
    most = max(0, _DIGITS - len(f"{max(quotes, default=0):.0f}"))
    return max((len(f"{quote:.{most}f}".rstrip("0").partition(".")[2]) for quote in quotes), default=0)


def _quotes(greeks: Greeks) -> tuple[float | None, float | None]:
    """Return bid and ask. 0 means that there is none."""
    return greeks["best_bid_price"] or None, greeks["best_ask_price"] or None


def _cells(greeks: Greeks | None, decimals: int) -> list[Text]:
    if greeks is None:
        return [NO_VALUE] * len(_SIDE)
    quotes = [_number(quote, f".{decimals}f") for quote in _quotes(greeks)]
    return [_number(greeks["mark_iv"], ".1f"), _number(greeks["delta"], "+.3f"), *quotes]


def _dollars(price: float | None) -> Text:
    return _number(price, ",.2f" if price is not None and abs(price) >= 100 else ",.6g")


def _number(value: float | None, form: str) -> Text:
    return NO_VALUE if value is None else Text(format(value, form))


def parse_expiry(day: str, symbols: Iterable[Symbol]) -> datetime:
    """Return when options expire on a day such as "26AUG22".

    Raises:
        ConfigurationError: It isn't such a day, or no option among the symbols can expire then.
    """
    try:
        future = Instrument.parse(f"X-{day.upper()}")
    except ConfigurationError:
        future = None
    if future is None or future.kind != "future" or future.expiry is None:
        raise ConfigurationError(f"--expiry: {day!r} is not a day; expected one such as 26AUG22")
    expiry = future.expiry
    if not any(_has_options(symbol, expiry) for symbol in symbols):
        month = Option.of(Instrument.parse(f"BTC-{_day(expiry)}-1-C"))
        raise ConfigurationError(
            f"--expiry: no option that you listen to expires on {_day(expiry)}; listen to its month, which is {month} "
            "for BTC, or remove --expiry"
        )
    return expiry


def _has_options(symbol: Symbol, expiry: datetime) -> bool:
    """Whether options that expire then belong to a symbol."""
    if isinstance(symbol, Option):
        return (symbol.year, symbol.month) == (expiry.year, expiry.month)
    return isinstance(symbol, Instrument) and symbol.strike is not None and symbol.expiry == expiry


def _day(expiry: datetime) -> str:
    return f"{expiry.day}{expiry:%b%y}".upper()


def _duration(left: timedelta) -> str:
    """Say how much time is left, as of the newest values: recordings may be old."""
    if left <= timedelta(0):
        return "expired"
    hours, minutes = divmod(int(left.total_seconds()) // 60, 60)
    return f"{hours // 24} d {hours % 24} h left" if hours >= 24 else f"{hours} h {minutes} min left"
