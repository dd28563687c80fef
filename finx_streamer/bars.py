"""Bars: open, high, low and close of the ticks of an interval. Pure functions of ticks, without a clock or a thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from .config import checks as check
from .errors import BarError, ConfigurationError
from .values import Tick

#: How many bars with ticks of each pair (and exchange) late ticks can still change.
KEPT = 300
#: A pause of more intervals than this has no empty bars: it may come from a tick with a wrong date.
MOST_EMPTY = 100_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(9998, 1, 1, tzinfo=UTC)
#: A number that no interval has.
_NEVER = 1 << 60
_DAY = 86_400
_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": _DAY}
_INTERVALS = "a divisor of a day, such as '5s', '1min', '15min', '1h' or '1d'"
_TICKS = "tick dicts, as tick_history returns them"


class Bar(TypedDict):
    """The prices of one interval, as a plain dict::

        from finx_streamer import StreamListener

        listener = StreamListener("BTC:USDC", endpoint="demo")


        @listener.on_bar("1s")
        def show(bar):
            print(bar["start"], bar["open"], bar["high"], bar["low"], bar["close"], bar["ticks"])


        with listener:
            listener.join(timeout=3)

    An interval includes its start and excludes its end. FinX sends no volume, so a bar has none.

    Attributes:
        pair (str): E.g. "BTC:USDC".
        exchange (str | None): Whose ticks these are. None for all exchanges.
        start (datetime): Aware, in UTC.
        end (datetime): The start of the next interval.
        open (Any): The price of the first tick, by time; of equal times, the one that arrived first. Prices are what
            `parse_price` returned. An empty bar has None for all four.
        high (Any): The highest price.
        low (Any): The lowest price.
        close (Any): The price of the last tick, by time; of equal times, the one that arrived last.
        ticks (int): Number of ticks. 0 for an empty bar.
        final (bool): Whether the interval is over. Late ticks can still change the bar.
        revision (int): 0 the first time you get the bar, then 1 more each time.
    """

    pair: str
    exchange: str | None
    start: datetime
    end: datetime
    open: Any
    high: Any
    low: Any
    close: Any
    ticks: int
    final: bool
    revision: int


def bars(
    ticks: Iterable[Tick], interval: str, *, by_exchange: bool = False, empty: bool = False, lateness: float = 1.0
) -> Iterator[Bar]:
    """Make bars of any ticks::

        from datetime import UTC, datetime, timedelta

        from finx_streamer import FunctionClient, bars

        with FunctionClient(endpoint="demo") as client:
            ticks = client.iter_tick_history("BTC:USDC", datetime.now(UTC) - timedelta(minutes=1))
            for bar in bars(ticks, "15s"):
                print(bar["start"], bar["open"], bar["high"], bar["low"], bar["close"])

    You get each bar once, and those of a pair (and exchange) in order of time. A bar follows as soon as a tick is
    `lateness` seconds later than its end. At the end of the ticks you get the rest. Those whose interval may not be
    over, because no tick is later, have `final=False`.

    If a tick is later than `lateness`, its bar comes again, with the next `revision`. Only the last 300 bars with ticks
    of each pair (and exchange) can come again.

    Args:
        ticks (Iterable[Tick]): Any ticks, of any pairs. Ticks of equal times count in the given order.
        interval: The length of a bar: "5s", "1min", "15min", "1h", "1d", or any other divisor of a day.
        by_exchange: Make separate bars for each exchange.
        empty: Also yield bars without ticks, from the first tick of the pair (and exchange) on.
        lateness: How many seconds later than others a tick may be without a revision.

    Raises:
        ConfigurationError: An argument is wrong, or `ticks` aren't ticks.
        BarError: A price can't be compared, or a tick is older than the bars that can be changed: sort the ticks.
    """
    hold = timedelta(seconds=check.number("lateness", lateness, 0, _DAY, "seconds, from 0 to 86400"))
    length = parse_interval(interval)
    check.boolean("by_exchange", by_exchange)
    check.boolean("empty", empty)
    builder = BarBuilder(length, by_exchange=by_exchange, empty=empty, hold=hold)
    if not isinstance(ticks, Iterable):
        raise ConfigurationError(f"ticks: {type(ticks).__name__} is not iterable; expected {_TICKS}")
    return _bars(ticks, builder)


def _bars(ticks: Iterable[Tick], builder: BarBuilder) -> Iterator[Bar]:
    for tick in ticks:
        try:
            emitted = builder.add(tick)
        except (TypeError, KeyError) as fault:
            raise ConfigurationError(
                f"ticks: one of them is no tick ({type(fault).__name__}: {fault}); expected {_TICKS}"
            ) from None
        yield from emitted
    yield from builder.finish()


def parse_interval(interval: object, name: str = "interval") -> timedelta:
    """Return the length of a bar. Raises `ConfigurationError`, which has the argument's name and what is allowed."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})(s|min|h|d)", interval) if isinstance(interval, str) else None
    check.require(found is not None, name, interval, _INTERVALS)
    assert found is not None
    seconds = int(found[1]) * _UNITS[found[2]]
    # Otherwise the bars of different days would begin at different times.
    check.require(_DAY % seconds == 0, name, interval, _INTERVALS)
    return timedelta(seconds=seconds)


class BarBuilder:
    """Makes bars of ticks in any order. Independent of any clock: you say how far time has passed.

    Args:
        interval: The length of a bar.
        by_exchange: Make separate bars for each exchange.
        empty: Also emit bars without ticks.
        hold: A bar is emitted when a tick is that much later than its end.
    """

    def __init__(
        self,
        interval: timedelta,
        *,
        by_exchange: bool = False,
        empty: bool = False,
        hold: timedelta = timedelta(0),
    ) -> None:
        self.interval = interval
        self._by_exchange, self._empty, self._hold = by_exchange, empty, hold
        self._series: dict[tuple[str, str | None], _Series] = {}
        #: The time of the newest tick.
        self._newest = _EPOCH

    def add(self, tick: Tick) -> Iterable[Bar]:
        """Add a tick. Return the bars that it completes or changes. Raises `BarError` if no bar can contain it."""
        key = tick["pair"], tick["exchange"] if self._by_exchange else None
        series = self._series.get(key)
        if series is None:
            series = _Series(*key, self.interval, self._empty, self._hold)
        emitted = series.add(tick)
        self._series[key] = series
        if tick["timestamp"] > self._newest:
            self._newest = tick["timestamp"]
        return emitted

    def bar_of(self, tick: Tick) -> Bar:
        """Return the current bar of the pair (and exchange) of the tick that was added last: the bar that it is in."""
        return self._series[tick["pair"], tick["exchange"] if self._by_exchange else None].current()

    def pass_time(self, moment: datetime) -> Iterator[Bar]:
        """Return the bars whose interval ends at `moment` or before, and that weren't emitted yet."""
        for series in self._series.values():
            yield from series.pass_time(moment)

    def finish(self, moment: datetime | None = None) -> Iterator[Bar]:
        """Return all bars that weren't emitted yet. Those that end after `moment` have `final=False`.

        None is the time of the newest tick. Ticks may follow.
        """
        moment = self._newest if moment is None else moment
        yield from self.pass_time(moment)
        for series in self._series.values():
            yield from series.finish()


class _Series:
    """The bars of one pair, and of one exchange or all. An interval's number counts from 1970."""

    def __init__(self, pair: str, exchange: str | None, interval: timedelta, empty: bool, hold: timedelta) -> None:
        self._pair, self._exchange = pair, exchange
        self._interval, self._empty, self._hold = interval, empty, hold
        #: The bars that have ticks, by number.
        self._candles: dict[int, _Candle] = {}
        #: The bar of the last tick.
        self._last: _Candle | None = None
        #: The first interval whose bar isn't due yet, and the time of the tick that makes it due.
        self._next, self._due = -1, _EPOCH
        #: The first interval that can have an empty bar.
        self._first = -1
        #: The newest bar that can't be changed any more.
        self._forgotten = -1

    def add(self, tick: Tick) -> Iterable[Bar]:
        at, price = tick["timestamp"], tick["price"]
        if not (price == price if type(price) is float else _compares(price)):
            raise BarError(
                f"its price {price!r} can't be compared; use parse_price=float or decimal.Decimal",
                tick,
                symbol=self._pair,
            )
        candle = self._last
        if candle is None or not candle.start <= at < candle.end:
            candle = self._candle_at(at, tick)
        try:
            candle.add(at, price)
        except TypeError as fault:
            raise BarError(f"its price can't be compared with others: {fault}", tick, symbol=self._pair) from None
        self._last = candle
        if candle.number < self._next:
            return (self._emit(candle),)
        return self._emit_until(self._number(at - self._hold)) if at >= self._due else ()

    def _candle_at(self, at: datetime, tick: Tick) -> _Candle:
        """Return the bar of a time, which may be new."""
        if not _EPOCH <= at < _END:
            raise BarError("its date isn't from 1970 to 9997", tick, symbol=self._pair)
        number = self._number(at)
        candle = self._candles.get(number)
        if candle is not None:
            return candle
        oldest = min(self._candles) if len(self._candles) >= KEPT else number
        if number <= self._forgotten or number < oldest:
            raise BarError(
                f"it came too late: only the last {KEPT} bars with ticks can change", tick, symbol=self._pair
            )
        if oldest < min(number, self._next):
            self._forgotten = oldest
            del self._candles[oldest]
        candle = self._candles[number] = _Candle(number, *self._span(number))
        if self._last is None:
            self._first = number
            self._set_next(self._number(max(_EPOCH, at - self._hold)))
        elif number >= self._next:
            self._first = min(self._first, number)
        elif self._empty and number >= self._first:
            candle.emitted = 1  # as an empty bar
        return candle

    def current(self) -> Bar:
        assert self._last is not None
        return self._bar(self._last, self._last.number < self._next)

    def pass_time(self, moment: datetime) -> Iterable[Bar]:
        end = self._number(moment)
        if end <= self._next:
            return ()
        if not self._empty:
            # If ticks of later intervals come from history, their bars aren't late.
            end = max((number + 1 for number in self._candles if number < end), default=0)
        return self._emit_until(end) if end > self._next else ()

    def finish(self) -> list[Bar]:
        """Return the bars that aren't due, unless they were returned before and haven't changed."""
        # Until the next tick, we don't know whether intervals are empty.
        self._first = _NEVER
        waiting = [self._candles[number] for number in sorted(self._candles) if number >= self._next]
        return [self._emit(candle, final=False) for candle in waiting if candle.changed]

    def _emit_until(self, end: int) -> Iterable[Bar]:
        """Emit the bars before an interval."""
        start = self._next
        if end <= start:
            return ()
        self._set_next(end)
        due = sorted(number for number in self._candles if start <= number < end)
        emitted = {number: self._emit(self._candles[number]) for number in due}
        if not self._empty:
            return emitted.values()
        if end - max(start, self._first) > MOST_EMPTY:
            self._first = end
        numbers = sorted({*due, *range(max(start, self._first), end)})
        return (emitted.get(number) or self._empty_bar(number) for number in numbers)

    def _set_next(self, number: int) -> None:
        self._next = number
        self._due = self._span(number)[1] + self._hold

    def _number(self, at: datetime) -> int:
        return (at - _EPOCH) // self._interval

    def _span(self, number: int) -> tuple[datetime, datetime]:
        start = _EPOCH + number * self._interval
        return start, start + self._interval

    def _emit(self, candle: _Candle, final: bool = True) -> Bar:
        bar = self._bar(candle, final)
        candle.emitted += 1
        candle.changed = False
        return bar

    def _bar(self, candle: _Candle, final: bool) -> Bar:
        return {
            "pair": self._pair,
            "exchange": self._exchange,
            "start": candle.start,
            "end": candle.end,
            "open": candle.open,
            "high": candle.high,
            "low": candle.low,
            "close": candle.close,
            "ticks": candle.ticks,
            "final": final,
            "revision": candle.emitted,
        }

    def _empty_bar(self, number: int) -> Bar:
        return self._bar(_Candle(number, *self._span(number)), True)


class _Candle:
    """A bar in the making."""

    __slots__ = (
        "changed", "close", "closed_at", "emitted", "end", "high", "low", "number", "open", "opened_at", "start",
        "ticks",
    )  # fmt: skip

    def __init__(self, number: int, start: datetime, end: datetime) -> None:
        self.number, self.start, self.end = number, start, end
        self.open: Any = None
        self.high: Any = None
        self.low: Any = None
        self.close: Any = None
        self.ticks = 0
        #: The times of the first and the last tick.
        self.opened_at = self.closed_at = start
        #: How often it was emitted, and whether a tick came since then.
        self.emitted = 0
        self.changed = False

    def add(self, at: datetime, price: Any) -> None:
        """Raises TypeError, and changes nothing, if the price can't be compared."""
        if not self.ticks:
            self.open = self.high = self.low = self.close = price
            self.opened_at = self.closed_at = at
        else:
            high = price > self.high
            if price < self.low:
                self.low = price
            if high:
                self.high = price
            if at < self.opened_at:
                self.open, self.opened_at = price, at
            if at >= self.closed_at:
                self.close, self.closed_at = price, at
        self.ticks += 1
        self.changed = True


def _compares(price: Any) -> bool:
    """Whether a price has an order. NaN has none, and that of text isn't the order of its numbers."""
    try:
        return not isinstance(price, (str, bytes)) and bool(price <= price)
    except Exception:
        return False
