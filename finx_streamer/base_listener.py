"""`BaseListener`: what listeners share, whether their ticks come from a server or from an archive."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from . import jupyter, tables
from .bars import parse_interval
from .config import checks as check
from .config.symbols import Pair, Symbol
from .delivery.bar_feed import BarRequest
from .delivery.callbacks import ARGUMENTS, Callback
from .delivery.frontend import LiveSettings, LiveView, Origin
from .delivery.iteration import TickBuffer
from .delivery.queues import QUEUES
from .delivery.recent import Recent
from .delivery.stats import ListenerStats, StreamStats, add_up, reason
from .errors import ConfigurationError
from .loops import END_TIMEOUT, AsyncTickIterator, TickIterator, Ticks
from .run import HURRIED_STOP, Run, RunSettings, live_runs
from .values import Greeks, State, Tick

if TYPE_CHECKING:
    import pandas
    import polars

_names = itertools.count(1)
_C = TypeVar("_C", bound=Callback)
_B = TypeVar("_B", bound=TickBuffer)


class BaseListener:
    """Callbacks, loops, life and state of a listener.

    Args:
        symbols: What it listens to.
        settings: Its checked arguments.
        name: What the user named it; None for a generated name.
        callbacks: The first callback of each event, if there is one.
    """

    def __init__(
        self,
        symbols: Mapping[str, Symbol],
        settings: RunSettings,
        name: str | None,
        callbacks: Mapping[str, Callback | None],
    ) -> None:
        self._frontend = jupyter.frontend()
        self._symbols = dict(symbols)
        self._settings = settings
        self._recent, self._callbacks = settings.recent, settings.callbacks
        self._given_name = name
        self._lock = threading.RLock()
        self._run: Run | None = None
        for event, callback in callbacks.items():
            if callback is not None:
                self._register(event, callback)

    # Callbacks.

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse methods that look like callbacks, because nothing would call them."""
        super().__init_subclass__(**arguments)
        inherited = [base for base in cls.__mro__ if base not in BaseListener.__mro__]
        for name in _CALLBACK_NAMES:
            if any(name in vars(base) for base in inherited):
                handler = f"self.handle_{name[3:]}"
                register = f"super().__init__(*symbols, {name}={handler})"
                if name == "on_bar":
                    register = f'self.on_bar("1min", {handler})'
                raise ConfigurationError(
                    f"{cls.__name__}.{name}: a method of this name isn't called, and hides the one that registers "
                    f"callbacks; rename it to handle_{name[3:]}, and write {register}"
                )

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse callbacks that are assigned, because nothing would call them."""
        if name in _CALLBACK_NAMES:
            function = getattr(value, "__name__", "f")
            arguments = f'"1min", {function}' if name == "on_bar" else function
            raise ConfigurationError(f"{name}: an assigned callback isn't called; write listener.{name}({arguments})")
        if name.startswith("on_"):
            raise ConfigurationError(f"{name}: a listener has no such event; it has {', '.join(_CALLBACK_NAMES)}")
        super().__setattr__(name, value)

    @overload
    def on_tick(self, callback: _C, /, *, pair: str | Pair | None = None) -> _C: ...
    @overload
    def on_tick(self, callback: None = None, /, *, pair: str | Pair) -> Callable[[_C], _C]: ...
    def on_tick(self, callback: Any = None, /, *, pair: str | Pair | None = None) -> Any:
        """Register a callback for ticks, usually as a decorator: `@listener.on_tick`.

        Args:
            callback (Callable[[Tick], object]): Called for each tick.
            pair: Only ticks of this pair: `@listener.on_tick(pair="BTC:USDC")`. None for all pairs.

        Returns:
            The callback.

        Raises:
            ConfigurationError: The callback can't work, or the pair is malformed.
        """
        if isinstance(callback, str | Pair):
            raise ConfigurationError(
                'on_tick: a pair is no callback; for the ticks of one pair, write @listener.on_tick(pair="BTC:USDC")'
            )
        if pair is None and callback is None:
            raise ConfigurationError(
                "on_tick: no callback given; write @listener.on_tick, without parentheses, or "
                "@listener.on_tick(pair='BTC:USDC')"
            )
        wanted = None if pair is None else str(check.pair(pair))

        def register(callback: _C) -> _C:
            return self._register("tick", callback, wanted)

        return register if callback is None else register(callback)

    @overload
    def on_greeks(self, callback: _C, /, *, symbol: str | Symbol | None = None) -> _C: ...
    @overload
    def on_greeks(self, callback: None = None, /, *, symbol: str | Symbol) -> Callable[[_C], _C]: ...
    def on_greeks(self, callback: Any = None, /, *, symbol: str | Symbol | None = None) -> Any:
        """Register a callback for Greeks: as a decorator, or with `symbol="BTCN2202207"` for those of one symbol.

        Args:
            callback (Callable[[Greeks], object] | None): Called for each message of an option, future or perpetual.
            symbol: The month or contract that you listen to; None for all.

        Returns:
            The callback, or without one a decorator.
        """
        if isinstance(callback, str | Symbol):
            raise ConfigurationError(
                "on_greeks: a symbol is no callback; for the Greeks of one symbol, write "
                '@listener.on_greeks(symbol="BTCN2202207")'
            )
        if symbol is None and callback is None:
            raise ConfigurationError(
                "on_greeks: no callback given; write @listener.on_greeks, without parentheses, or "
                "@listener.on_greeks(symbol='BTCN2202207')"
            )
        wanted = None if symbol is None else str(check.contract(symbol))

        def register(callback: _C) -> _C:
            return self._register("greeks", callback, wanted)

        return register if callback is None else register(callback)

    def on_error(self, callback: _C, /) -> _C:
        """Register a callback for errors, usually as a decorator: `@listener.on_error`.

        Args:
            callback (Callable[[FinxStreamerError], object]): Called for each error.

        Returns:
            The callback.

        Raises:
            ConfigurationError: The callback can't work.
        """
        return self._register("error", callback)

    def on_notice(self, callback: _C, /) -> _C:
        """Register a callback for the server's other messages, usually as a decorator: `@listener.on_notice`.

        Args:
            callback (Callable[[Notice], object]): Called for each message that is neither a tick nor an error.

        Returns:
            The callback.

        Raises:
            ConfigurationError: The callback can't work.
        """
        return self._register("notice", callback)

    def on_state(self, callback: _C, /) -> _C:
        """Register a callback for changes of state, usually as a decorator: `@listener.on_state`.

        Args:
            callback (Callable[[str, State], object]): Called with the symbol and its new state.

        Returns:
            The callback.

        Raises:
            ConfigurationError: The callback can't work.
        """
        return self._register("state", callback)

    def on_gap(self, callback: _C, /) -> _C:
        """Register a callback for gaps, usually as a decorator: `@listener.on_gap`.

        Args:
            callback (Callable[[Gap], object]): Called once per gap, after the missed ticks.

        Returns:
            The callback.

        Raises:
            ConfigurationError: The callback can't work.
        """
        return self._register("gap", callback)

    @overload
    def on_bar(
        self,
        interval: str,
        callback: _C,
        *,
        pair: str | Pair | None = None,
        by_exchange: bool = False,
        grace: float = 1.0,
        empty: bool = False,
    ) -> _C: ...
    @overload
    def on_bar(
        self,
        interval: str,
        callback: None = None,
        *,
        pair: str | Pair | None = None,
        by_exchange: bool = False,
        grace: float = 1.0,
        empty: bool = False,
    ) -> Callable[[_C], _C]: ...
    def on_bar(
        self,
        interval: str,
        callback: Any = None,
        *,
        pair: str | Pair | None = None,
        by_exchange: bool = False,
        grace: float = 1.0,
        empty: bool = False,
    ) -> Any:
        """Register a callback for bars, usually as a decorator: `@listener.on_bar("1min")`.

        You get a bar when a tick of a later interval arrives, or `grace` seconds after the bar's end. If a later tick
        changes it, you get it again, with the next `revision`. When the listener stops, you get the open bars; those
        whose interval isn't over have `final=False`.

        Args:
            interval: The length of a bar: "5s", "1min", "15min", "1h", "1d", or any other divisor of a day.
            callback (Callable[[Bar], object] | None): Called for each bar.
            pair: Only bars of this pair; None for all pairs.
            by_exchange: Make separate bars for each exchange.
            grace: How many seconds after its end a bar may wait for its last ticks, by this machine's clock.
            empty: Also get bars without ticks, from the first tick of the pair (and exchange) on.

        Returns:
            The callback, or without one a decorator.

        Raises:
            ConfigurationError: An argument is wrong, or the callback can't work.
        """
        request = BarRequest(interval, pair, by_exchange, grace, empty)

        def register(callback: _C) -> _C:
            self._callbacks.add("bar", callback, request.pair, self._frontend.place(), request.feed)
            if (run := self._run) is not None:
                run.time_bars()
            return callback

        return register if callback is None else register(callback)

    def remove_callback(self, callback: Callback) -> None:
        """Undo the registration of a callback.

        Args:
            callback: The function that you registered, for any event.

        Raises:
            ConfigurationError: It isn't registered.
        """
        self._callbacks.remove(callback)

    # Life.

    def start(self) -> Self:
        """Connect in the background, and return at once. Does nothing while it runs; after an end it starts again.

        In a notebook, this first stops a listener that an earlier run of the same cell has started, or one with the
        same `name`.

        Raises:
            ConfigurationError: The previous run is still stopping, or this process is a fork of the one that started.
            OSError: The system has no more open files for this process.
            RuntimeError: The system has no more threads.
        """
        self._replace_earlier()
        if (earlier := self.abandoned_run()) is not None:
            earlier.wait(END_TIMEOUT)
        with self._lock:
            self._check_process()
            run = self._run
            if run is None or run.ended.is_set() or not run.launched:
                run = self._new_run()
                run.start(self)
            elif run.state.ended:
                raise ConfigurationError(_STILL_STOPPING)
            run.started = True
        return self

    def stop(self, timeout: float = 5.0, drain: bool = True) -> bool:
        """End the listener. Works from any thread at any time, even inside a callback. Idempotent.

        After it has returned, no further callback is called.

        Args:
            timeout: Seconds to wait for the end.
            drain: Deliver the ticks that were received, as far as the timeout allows. Otherwise, and inside a callback
                or a `for` loop over the listener, they are discarded.

        Returns:
            False if a callback is still running after `timeout`.
        """
        limit = check.seconds("timeout", timeout, zero=True)
        run = self._run
        return run is None or run.forked or run.stop(limit, drain)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end. Ctrl-C interrupts it.

        Args:
            timeout: Seconds; None for no limit.

        Returns:
            False if the listener still runs after `timeout`.

        Raises:
            FinxStreamerError: The error that ended the listener, if one did.
            ConfigurationError: Called inside a callback, where it would wait for itself.
        """
        timeout = check.seconds_or_none("timeout", timeout, zero=True)
        run = self._run_to_join("join()")
        return run is None or self._joined(run, run.wait(timeout))

    async def wait_async(self, timeout: float | None = None) -> bool:
        """Wait for the end in an event loop, for example in a notebook that awaits. Other tasks keep running.

        Args:
            timeout: Seconds; None for no limit.

        Returns:
            False if the listener still runs after `timeout`.

        Raises:
            FinxStreamerError: The error that ended the listener, if one did.
            ConfigurationError: Called inside a callback, where it would wait for itself.
        """
        timeout = check.seconds_or_none("timeout", timeout, zero=True)
        run = self._run_to_join("wait_async()")
        return run is None or self._joined(run, await run.wait_async(timeout))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Start at the beginning of the block, and stop at its end.

        The end raises the error that ended the listener, unless you have seen it: raised, or in `on_error`.
        """
        if kind is not None:
            self.stop(HURRIED_STOP, drain=False)
            return
        self.stop()
        run = self._run
        if run is not None and not run.error_raised and not self._callbacks.of("error"):
            run.raise_error()

    def __iter__(self) -> TickIterator:
        """Iterate over ticks as they come. The loop ends with the listener, and raises as `join` does.

        If the listener has no pairs, but options, futures or perpetuals, you get their Greeks instead.

        Starts the listener if it doesn't run. Then leaving the loop stops it, without the ticks that wait.
        """
        return TickIterator(self, None)

    def __aiter__(self) -> AsyncTickIterator:
        """Iterate over ticks as they come, in an event loop. Other tasks keep running."""
        return AsyncTickIterator(self, None)

    def ticks(self, timeout: float | None = None) -> Ticks:
        """Iterate over ticks as they come, with a limit for quiet pairs: `for tick in listener.ticks(timeout=60)`.

        Args:
            timeout: Seconds without a tick, after which the loop raises `TimeoutError`. None for no limit.

        Returns:
            Something for `for` and `async for`. Each loop over it is like a loop over the listener.

        Raises:
            ConfigurationError: `timeout` is wrong.
        """
        return Ticks(self, check.seconds_or_none("timeout", timeout))

    def open_loop(self, kind: type[_B]) -> tuple[Run, _B]:
        """Start a run, or join the current one. For this package's loops."""
        self._replace_earlier()
        with self._lock:
            self._check_process()
            self._check_not_in_callback("iteration")
            self._check_symbols()
            run, is_new = self._run, self._run is None or self._run.over
            if run is None or is_new:
                run = self._new_run()
            buffer = run.iterations.open(kind)
            symbols = self._symbols.values()
            only_greeks = bool(symbols) and not any(isinstance(symbol, Pair) for symbol in symbols)
            self._callbacks.add("greeks" if only_greeks else "tick", buffer)
            if is_new:
                try:
                    run.start(self)
                except BaseException:
                    self.leave_loop(run, buffer)
                    raise
        return run, buffer

    def leave_loop(self, run: Run, buffer: TickBuffer) -> bool:
        """Leave a run. Return whether that ends it. For this package's loops."""
        with self._lock:
            self._callbacks.remove(buffer)
            if run.forked:
                return False
            run.iterations.close(buffer)
            if run.started or run.iterations.any_open:
                return False
            run.left = True
            # The user wants no more ticks, so this is no loss to report.
            run.abandon(report=False)
        return True

    def abandoned_run(self) -> Run | None:
        """Return a run that still has to end, because its last loop was left. For this package's loops."""
        run = self._run
        waits = run is not None and run.left and not run.forked and not run.streams.loop.runs_here
        return run if waits else None

    def begin_at(self, find_starts: Callable[[list[str]], Mapping[str, datetime]]) -> None:
        """Have pairs begin at certain times, as with `since`. For this package's publishers.

        Args:
            find_starts: Called with pairs that are about to begin. Returns the times of some of them. It may wait.

        Raises:
            ConfigurationError: The listener isn't one whose ticks can be published as they were sent.
        """
        settings = self._settings
        if getattr(settings, "parse_price", None) is not str or settings.overflow != "block":
            raise ConfigurationError(
                "attach(): prices must stay as they were sent, and no tick may be dropped; expected a StreamListener "
                "with parse_price=str and overflow='block'"
            )
        if settings.open_recorder is not None:
            raise ConfigurationError(
                "attach(): a recording and a log end at different times; expected a StreamListener without record"
            )
        if self._run is not None and not self._run.ended.is_set():
            raise ConfigurationError("attach(): the listener is running; attach before you start it")
        settings.find_starts.append(find_starts)

    # State.

    @property
    def name(self) -> str:
        """The name that you gave, or a generated one. The names of its threads begin with it."""
        return self._settings.name

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols it listens to."""
        return tuple(self._symbols)

    @property
    def state(self) -> State:
        """FAILED or STOPPED at the end. Until then, the least settled state of its streams."""
        return self._run.state if self._run is not None else State.IDLE

    @property
    def stats(self) -> ListenerStats:
        """A snapshot of all counters."""
        if self._run is not None:
            return self._run.stats()
        streams = {name: StreamStats(state=State.IDLE) for name in self._symbols}
        return add_up(State.IDLE, streams, queue_size=self._settings.queue_size)

    # Recent ticks.

    def recent(self, n: int | None = None, pair: str | Pair | None = None) -> list[Tick]:
        """The last ticks that were received, oldest first.

        They include ticks that still wait for callbacks, and ticks that an overflow policy drops.

        Args:
            n: How many; None for all that are kept: at most `keep`, of all pairs together.
            pair: Only ticks of this pair; None for all pairs.

        Raises:
            ConfigurationError: An argument is wrong, or the listener keeps no ticks.
        """
        if n is not None:
            n = check.integer("n", n, 0)
        recent = self._kept("recent()")
        return recent.last(recent.size if n is None else n, None if pair is None else str(check.symbol(pair)))

    def latest(self) -> dict[str, Tick]:
        """The newest tick that was received for each pair that had one."""
        return {name: stream.last_tick for name, stream in self.stats.streams.items() if stream.last_tick is not None}

    def greeks(self) -> dict[str, Greeks]:
        """The newest Greeks that were received for each contract that had any, by instrument."""
        return self._run.greeks() if self._run is not None else {}

    def to_pandas(self, n: int | None = None, pair: str | Pair | None = None) -> pandas.DataFrame:
        """Return the last ticks as a `pandas.DataFrame`. See `to_pandas`.

        Args:
            n: How many, as for `recent`.
            pair: Only ticks of this pair; None for all pairs.

        Raises:
            ConfigurationError: An argument is wrong, the listener keeps no ticks, or the extra `[pandas]` is missing.
        """
        return tables.to_pandas(self.recent(n, pair))

    def to_polars(self, n: int | None = None, pair: str | Pair | None = None) -> polars.DataFrame:
        """Return the last ticks as a `polars.DataFrame`. See `to_polars`.

        Args:
            n: How many, as for `recent`.
            pair: Only ticks of this pair; None for all pairs.

        Raises:
            ConfigurationError: An argument is wrong, the listener keeps no ticks, or the extra `[polars]` is missing.
        """
        return tables.to_polars(self.recent(n, pair))

    def live(self, *pairs: str | Pair, rate: float = 15.0, bars: str | None = None) -> LiveView:
        """Show a live view in a Jupyter notebook: a table of all streams, and charts. Starts the listener.

        Needs the extra `[notebook]`. Without it, you get a plain table that says so.

        Args:
            *pairs: The pairs with a chart; by default the first one.
            rate: Frames per second at most, from 1 to 30.
            bars: Draw candles of this length, such as "5s", instead of a line for each exchange.

        Raises:
            ConfigurationError: This isn't Jupyter, an argument is wrong, or the listener keeps no ticks.
        """
        recent = self._kept("live()")
        wanted = [str(check.symbol(pair)) for pair in pairs]
        rate = check.number("rate", rate, 1, 30, "frames per second, from 1 to 30")
        interval = None if bars is None else parse_interval(bars, "bars")
        return self._frontend.live(self, LiveSettings(recent, wanted, rate, self._watch, interval))

    def _watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher`, on any thread, when the listener starts or ends. Return what undoes this."""
        watchers = self._settings.watchers
        watchers.append(watcher)
        return lambda: watchers.remove(watcher)

    def _kept(self, method: str) -> Recent:
        if self._recent is None:
            raise ConfigurationError(f"{method}: the listener keeps no ticks, because it was created with keep=0")
        return self._recent

    def _repr_html_(self) -> str:
        """The current state, for notebooks. It runs no script, and escapes all text from the server."""
        return jupyter.snapshot(self, self._recent)

    def __repr__(self) -> str:
        kind = type(self).__name__
        if not hasattr(self, "_run"):
            # A traceback of the constructor may show locals.
            return f"<{kind} (incomplete)>"
        if self._run is None:
            return f"<{kind} {self.name} {self.state.value}: {self._shown()}>"
        stats = self._run.stats()
        why = f" ({text})" if (text := reason(stats)) else ""
        return (
            f"<{kind} {self.name} {stats.state.value}{why}: {self._shown()}; {stats.ticks} ticks, "
            f"{stats.rate:.1f}/s, {stats.dropped} dropped, {stats.reconnects} reconnects, {stats.gaps} gaps, "
            f"{stats.callback_errors + stats.decode_errors} errors>"
        )

    def _shown(self) -> str:
        """Return the symbols and their source, for `repr`."""
        raise NotImplementedError

    def _check_symbols(self) -> None:
        """Raise `ConfigurationError` if no tick would ever come."""

    # Shared steps.

    def _register(self, event: str, callback: _C, symbol: str | None = None) -> _C:
        self._callbacks.add(event, callback, symbol, self._frontend.place())
        return callback

    def _new_run(self) -> Run:
        if self._run is not None and self._run.streams.alive:
            raise ConfigurationError(_STILL_STOPPING)
        show_error = self._frontend.error_display(self._callbacks.place_of)
        self._run = Run(self._settings, self._symbols.values(), self._origin(), show_error)
        return self._run

    def _origin(self) -> Origin | None:
        return self._frontend.origin(self._given_name, frozenset(self._symbols))

    def _replace_earlier(self) -> None:
        """In a notebook, stop the listeners that this one replaces."""
        origin = self._origin()
        if origin is None:
            return
        for run, listener in tuple(live_runs.items()):
            if listener is not self and run.origin is not None and origin.replaces(run.origin):
                listener.stop(drain=False)

    def _run_to_join(self, method: str) -> Run | None:
        if self._run is not None:
            self._check_not_in_callback(method)
            self._check_process()
        return self._run

    def _joined(self, run: Run, ended: bool) -> bool:
        if ended:
            run.raise_error()
        return ended

    def _check_process(self) -> None:
        if self._run is not None and self._run.forked:
            raise ConfigurationError(
                "this listener was started before a fork, and its threads belong to the parent process; create a new "
                f"{type(self).__name__} in this process"
            )

    def _check_not_in_callback(self, method: str) -> None:
        run = self._run
        if run is not None and run.streams.loop.runs_here and not run.ended.is_set():
            raise ConfigurationError(
                f"{method} inside a callback would wait for itself; call stop() there, and do the rest outside"
            )


_CALLBACK_NAMES = tuple(f"on_{event}" for event in ARGUMENTS)
_STILL_STOPPING = "start(): the previous run is still stopping. Call join() first, outside of callbacks"


def delivery_settings(
    dispatch: str, queue_size: int, overflow: str, keep: int | None, name: str | None
) -> dict[str, Any]:
    """Check the arguments of the delivery. Return those of `RunSettings`."""
    if dispatch == "inline" and overflow != "block":
        raise check.refusal("overflow", overflow, "'block' with dispatch='inline', which has no queue to overflow")
    kept = check.integer("keep", jupyter.frontend().default_keep if keep is None else keep, 0)
    return {
        "dispatch": check.one_of("dispatch", dispatch, ("thread", "inline")),
        "queue_size": check.integer("queue_size", queue_size, 1),
        "overflow": check.one_of("overflow", overflow, tuple(QUEUES)),
        "name": check.text_or_none("name", name) or f"finx-streamer-{next(_names)}",
        "recent": Recent(kept) if kept else None,
    }
