"""The user's callbacks: the registry of them, and the runner that calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CoroutineType
from typing import Any

import attrs

from ..bars import Bar
from ..errors import CallbackError, ConfigurationError, FinxStreamerError, TicksDropped
from ..streaming.counters import Counters
from ..values import Event, Gap, Notice, State, Tick, TimePassed
from .bar_feed import BarFeed, Emitted
from .error_log import ErrorLog
from .frontend import Place
from .queues import count_by_symbol
from .shared import Shared

Callback = Callable[..., Any]

#: What the callbacks of each event get.
ARGUMENTS = {
    "tick": ("tick",),
    "greeks": ("greeks",),
    "error": ("error",),
    "notice": ("notice",),
    "state": ("symbol", "state"),
    "gap": ("gap",),
    "bar": ("bar",),
}
_RUNS_NOTHING: dict[str, Callable[[Any], bool]] = {
    "a coroutine function": inspect.iscoroutinefunction,
    "a generator function": inspect.isgeneratorfunction,
    "an async generator function": inspect.isasyncgenfunction,
}


def check_callback(event: str, callback: object) -> None:
    """Refuse a callback that can't work. Raises `ConfigurationError`, which shows what to write instead."""
    arguments = ARGUMENTS[event]
    expected = f"expected a plain function: def on_{event}({', '.join(arguments)})"
    if not callable(callback):
        raise ConfigurationError(f"on_{event}: {type(callback).__name__} is not callable; {expected}")
    for kind, is_kind in _RUNS_NOTHING.items():
        if is_kind(callback) or is_kind(getattr(callback, "__call__", None)):  # noqa: B004
            hint = "" if kind == "a generator function" else " To await, use `async for tick in listener`"
            raise ConfigurationError(f"on_{event}: {callback!r} is {kind}, so a call runs nothing; {expected}.{hint}")
    try:
        signature = inspect.signature(callback, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # some builtins have none
    try:
        signature.bind(*arguments)
    except TypeError as fault:
        raise ConfigurationError(
            f"on_{event}: {callback!r} can't be called with ({', '.join(arguments)}): {fault}; {expected}"
        ) from None


@attrs.frozen
class _Registration:
    #: "tick", "greeks", "error", "notice", "state", "gap" or "bar".
    event: str
    callback: Callback
    #: Get only this symbol's ticks, Greeks or bars; None for those of all symbols.
    symbol: str | None
    #: The notebook cell that registered it.
    place: Place | None
    #: The callback itself or, in a notebook, a wrapper that routes its output to `place`. For bars, a `BarFeed`.
    call: Callback

    def replaces(self, earlier: _Registration) -> bool:
        """Whether a rerun of a notebook cell registered the same callback again. False in a script."""
        if self.place is None or earlier.place is None or (self.event, self.symbol) != (earlier.event, earlier.symbol):
            return False
        return self.place.redefines(self.callback, earlier.place, earlier.callback)


class _TickCallbacks(dict[str, tuple[Callback, ...]]):
    """The tick callbacks of each pair, in order of registration. Filled on the first lookup of a pair."""

    def __init__(self, registered: tuple[_Registration, ...]) -> None:
        super().__init__()
        #: The callbacks of all events.
        self.registered = registered

    def __missing__(self, pair: str) -> tuple[Callback, ...]:
        matching = (r for r in self.registered if r.event in ("tick", "bar") and r.symbol in (None, pair))
        found = self[pair] = tuple(r.call for r in matching)
        return found


class Callbacks:
    """A thread-safe registry. It may change while callbacks run."""

    def __init__(self) -> None:
        #: Replaced on every change, so that an identity check detects one.
        self.for_ticks = Shared(_TickCallbacks(()))

    def add(
        self,
        event: str,
        callback: Callback,
        symbol: str | None = None,
        place: Place | None = None,
        bar_feed: Callable[[Callback], BarFeed] | None = None,
    ) -> None:
        """Register a callback. `place` is the notebook cell that shows its output. `bar_feed` makes its bars.

        Raises `ConfigurationError` if the callback can't work.
        """
        check_callback(event, callback)
        call = callback if place is None else place.route(callback)
        new = _Registration(event, callback, symbol, place, call if bar_feed is None else bar_feed(call))

        def added(table: _TickCallbacks) -> _TickCallbacks:
            return _TickCallbacks((*(earlier for earlier in table.registered if not new.replaces(earlier)), new))

        self.for_ticks.change(added)

    def remove(self, callback: Callback) -> None:
        """Undo every registration of a callback. Raises `ConfigurationError` if there is none."""

        def removed(table: _TickCallbacks) -> _TickCallbacks:
            # Compare by equality: every access to a bound method makes a new object.
            kept = tuple(r for r in table.registered if r.callback != callback)
            if len(kept) == len(table.registered):
                raise ConfigurationError(f"remove_callback: {callback!r} is not registered")
            return _TickCallbacks(kept)

        self.for_ticks.change(removed)

    def of(self, event: str) -> tuple[Callback, ...]:
        """Return the callbacks of an event, in order of registration."""
        return tuple(r.call for r in self._registered if r.event == event)

    def bar_feeds(self) -> tuple[BarFeed, ...]:
        """Return what makes the bars, in order of registration."""
        return tuple(r.call for r in self._registered if isinstance(r.call, BarFeed))

    def for_greeks(self, symbol: str | None) -> tuple[Callback, ...]:
        """Return the callbacks for the Greeks of a symbol, in order of registration."""
        return tuple(r.call for r in self._registered if r.event == "greeks" and r.symbol in (None, symbol))

    def original(self, call: Callback) -> Callback:
        """Return the user's own callback behind a callable that `of` or `for_ticks` returned."""
        return next((r.callback for r in self._registered if r.call is call), call)

    def place_of(self, callback: Callback) -> Place | None:
        """Return the notebook cell that registered a callback."""
        return next((r.place for r in self._registered if r.callback is callback), None)

    @property
    def _registered(self) -> tuple[_Registration, ...]:
        return self.for_ticks.value.registered


class CallbackRunner:
    """Runs callbacks one at a time, and reports their exceptions. Used by one thread, except for the flags.

    Args:
        callbacks: The callbacks, which may change at any time.
        counters: The counters of each stream.
        show_error: Called with errors if there is no `on_error` callback. None logs them.
    """

    def __init__(
        self,
        callbacks: Callbacks,
        counters: Mapping[str, Counters],
        show_error: Callable[[FinxStreamerError], None] | None = None,
    ) -> None:
        #: Once set, by any thread, no call begins, except for the report of what was discarded.
        self.abandoned = False
        #: Once set, by any thread, no call begins at all.
        self.closed = False
        #: Set by any thread to end a batch of ticks after the current one.
        self.interrupted = False
        #: Whether ticks that are discarded at the end are reported, and not only counted.
        self.reports_discarded = True
        #: The ticks and Greeks that were taken when `abandoned` was noticed.
        self.unhandled: list[Tick | Event] = []
        #: How many errors of each class were reported, by its name.
        self.errors_by_type: dict[str, int] = {}
        self._callbacks = callbacks
        self._counters = counters
        self._show_error = show_error or ErrorLog()
        #: The callbacks that returned a coroutine.
        self._returned_coroutine: list[Callback] = []

    def abandon(self) -> None:
        """Begin no further call."""
        self.abandoned = self.interrupted = True

    def run_pair(self, ticks: Iterator[Tick], pair: str) -> None:
        """Call the callbacks for ticks of one pair. Stops early if interrupted, or if the callbacks have changed."""
        if self.abandoned:
            return
        for_ticks = self._callbacks.for_ticks
        table = for_ticks.value
        called = table[pair]
        # Usually there is only one callback, and a loop over it would double the cost of this method.
        only = called[0] if len(called) == 1 else None
        for tick in ticks:
            if only is None:
                self._call_each(called, pair, tick)
            else:
                try:
                    result = only(tick)
                    if result is not None:
                        self._handle_result(only, result)
                except Exception as cause:
                    self._failed(only, tick, cause, pair)
            if self.interrupted or for_ticks.value is not table:
                return

    def run_ticks(self, entries: Iterable[Tick | Event]) -> Event | None:
        """Call the callbacks for each tick, in order. Return the first event; None at the end or when interrupted."""
        for_ticks = self._callbacks.for_ticks
        table = for_ticks.value
        pair: str | None = None
        called: tuple[Callback, ...] = ()
        only: Callback | None = None
        for tick in entries:
            if type(tick) is not dict:
                return tick  # type: ignore[return-value]
            # Most ticks have the same pair as the tick before, and even the same str object.
            if tick["pair"] is not pair or for_ticks.value is not table:
                table, pair = for_ticks.value, tick["pair"]
                called = table[pair]
                only = called[0] if len(called) == 1 else None
            if self.abandoned:
                self.unhandled.append(tick)
                return None
            # Usually there is only one callback, and a loop over it would double the cost of this method.
            if only is None:
                self._call_each(called, pair, tick)
            else:
                try:
                    result = only(tick)
                    if result is not None:
                        self._handle_result(only, result)
                except Exception as cause:
                    self._failed(only, tick, cause, pair)
            if self.interrupted:
                return None
        return None

    def run_event(self, event: Event) -> None:
        """Call the callbacks for Greeks, an error, notice, gap or change of state."""
        payload = event.payload
        if event.greeks is not None:
            if self.abandoned:
                self.unhandled.append(event)
            else:
                self._call_each(self._callbacks.for_greeks(event.symbol), event.symbol, payload)
            return
        if isinstance(payload, FinxStreamerError):
            self.report(payload)
        elif isinstance(payload, Notice):
            self._call_each(self._callbacks.of("notice"), payload.symbol, payload)
        elif isinstance(payload, Gap):
            self._call_each(self._callbacks.of("gap"), payload.symbol, payload)
        elif isinstance(payload, TimePassed):
            for feed in self._callbacks.bar_feeds():
                self._run_bars(feed, feed.pass_time(payload))
            payload.handled = True
        else:
            assert isinstance(payload, State), f"no callback takes {payload!r}"
            self._call_each(self._callbacks.of("state"), event.symbol, event.symbol, payload)

    def report(self, error: FinxStreamerError) -> None:
        """Call the `on_error` callbacks. Without any, show or log the error."""
        self._report(error)

    def discard(self, ticks: Iterable[Tick | Event], dropped: Mapping[str, int] | None = None) -> None:
        """Count and report the ticks and Greeks that no callback will get, at the end.

        `dropped`: how many ticks of each pair the overflow policy has dropped since its last report.
        """
        counts = count_by_symbol((*self.unhandled, *ticks))
        for pair, count in counts.items():
            if counters := self._counters.get(pair):
                counters.dropped += count
        if not self.reports_discarded:
            return
        # After all were counted: `on_error` may raise SystemExit.
        reports = [TicksDropped(count, symbol=pair) for pair, count in (dropped or {}).items()]
        reports += [TicksDropped(count, True, symbol=pair) for pair, count in counts.items()]
        for report in reports:
            self._report(report, at_end=True)

    def _report(self, error: FinxStreamerError, at_end: bool = False) -> None:
        self._count_error(error)
        callbacks = self._callbacks.of("error")
        if not callbacks or self.closed:
            self._show_error(error)
        for callback in callbacks:
            if self.closed or (self.abandoned and not at_end):
                return
            try:
                result = callback(error)
                if type(result) is CoroutineType:
                    self._refuse_coroutine(callback, result)
            except Exception as cause:
                # Don't pass it to on_error again: that could go on forever.
                failure = self._count_failure(callback, error, cause, error.symbol)
                self._count_error(failure)
                self._show_error(failure)

    def _count_error(self, error: FinxStreamerError) -> None:
        name = type(error).__name__
        self.errors_by_type[name] = self.errors_by_type.get(name, 0) + 1

    def _call_each(self, callbacks: tuple[Callback, ...], symbol: str | None, *arguments: object) -> None:
        for callback in callbacks:
            if self.abandoned:
                return
            try:
                result = callback(*arguments)
                if result is not None:
                    self._handle_result(callback, result)
            except Exception as cause:
                self._failed(callback, arguments[-1], cause, symbol)

    def _handle_result(self, call: Callback, result: Any) -> None:
        """Refuse a coroutine, and emit bars. Nothing else that a callback returns matters."""
        if type(result) is CoroutineType:
            self._refuse_coroutine(call, result)
        elif type(result) is Emitted and isinstance(call, BarFeed):
            if result.error is not None:
                self.report(result.error)
            self._run_bars(call, result.bars)

    def _run_bars(self, feed: BarFeed, bars: Iterable[Bar]) -> None:
        for bar in bars:
            if self.abandoned:
                return
            try:
                result = feed.callback(bar)
                if type(result) is CoroutineType:
                    self._refuse_coroutine(feed, result)
            except Exception as cause:
                self._failed(feed, bar, cause, bar["pair"])

    def _failed(self, callback: Callback, argument: object, cause: Exception, symbol: str | None) -> None:
        self.report(self._count_failure(callback, argument, cause, symbol))

    def _refuse_coroutine(self, callback: Callback, coroutine: CoroutineType[Any, Any, Any]) -> None:
        """Raise for a callback that returned a coroutine: once, because each of its calls has this fault."""
        coroutine.close()  # otherwise Python warns that it was never awaited
        if all(known is not callback for known in self._returned_coroutine):
            self._returned_coroutine.append(callback)
            raise TypeError("it returned a coroutine, which nothing awaits; use `async for tick in listener` instead")

    def _count_failure(self, call: Callback, argument: object, cause: Exception, symbol: str | None) -> CallbackError:
        if counters := self._counters.get(symbol or ""):
            counters.callback_errors += 1
        error = CallbackError(self._callbacks.original(call), argument, symbol=symbol)
        error.__cause__ = cause
        return error
