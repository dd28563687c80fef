"""`StreamListener`, the public class: checks its arguments, and starts and stops a `Run` of its streams."""

from __future__ import annotations

import itertools
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from . import demo, jupyter, tables
from .bars import parse_interval
from .config import checks as check
from .config.endpoint import Endpoint
from .config.reconnect import ReconnectPolicy, checked_policy
from .config.redaction import hides_arguments, redact
from .config.symbols import Pair, Symbol
from .connection.attempt import MAX_MESSAGE, ConnectionConfig
from .delivery.bar_feed import BarRequest
from .delivery.callbacks import ARGUMENTS, Callback
from .delivery.frontend import LiveSettings, LiveView, Origin
from .delivery.iteration import TickBuffer
from .delivery.queues import QUEUES
from .delivery.recent import Recent
from .delivery.stats import ListenerStats, StreamStats, add_up, reason
from .errors import ConfigurationError, FinxStreamerError
from .loops import END_TIMEOUT, AsyncTickIterator, TickIterator, Ticks
from .run import HURRIED_STOP, Run, RunRecorder, Settings, live_runs, stop_runs
from .streaming.session import Timing
from .values import Gap, Greeks, Notice, State, Tick

if TYPE_CHECKING:
    import pandas
    import polars

    from .archive import Archive

logger = logging.getLogger("finx_streamer")

#: Seconds between keepAlive messages, by wire: FinX closes a connection of the second wire without them. Source: D.
_KEEP_ALIVE = {"url": None, "subscribe": 270.0}
_names = itertools.count(1)
_C = TypeVar("_C", bound=Callback)
_B = TypeVar("_B", bound=TickBuffer)


class StreamListener:
    """Delivers live ticks of one or more pairs to your callbacks, and fetches the ticks that you missed::

        from finx_streamer import StreamListener

        with StreamListener("BTC:USDC", endpoint="demo", on_tick=print) as listener:
            listener.join(timeout=1)

    Callbacks run one at a time, in order. Lost connections are retried.

    Args:
        *symbols (str | Pair | Option | Instrument): Pairs such as "BTC:USDC"; months such as "BTCN2202207", which means
            all options on BTC that expire in July 2022; or single contracts such as "BTC-26AUG22-20000-C".

        api_key (str | Callable[[], str] | None): Your API key. A callable is asked for it at every connection attempt.
            None reads the environment variable FINX_API_KEY at every attempt. FinX replaces keys every 24 hours.
        endpoint (str | Endpoint): "production", "beta", a base URL or an `Endpoint`; or "demo", a simulated market in
            this process, which needs no key but the extra `server`.
        allow_insecure (bool): True permits `ws://` to other machines. Everyone on the way can then read your API key.
        ssl_context (ssl.SSLContext | None): TLS settings. None trusts the CAs in SSL_CERT_FILE or SSL_CERT_DIR; if
            neither is set, those in REQUESTS_CA_BUNDLE, or else the system's.
        proxy (str | None): "http://[user:password@]host:port", "socks5://…" or "socks5h://…". "" uses no proxy. None
            reads https_proxy, all_proxy and no_proxy at every attempt. Tick history uses the same proxy.

        on_tick (Callable[[Tick], object] | None): Called for each tick.
        on_error (Callable[[FinxStreamerError], object] | None): Called for each error. Without an `on_error` callback,
            errors are logged.
        on_notice (Callable[[Notice], object] | None): Called for each other message of the server.
        on_state (Callable[[str, State], object] | None): Called with the symbol and its new state.
        on_gap (Callable[[Gap], object] | None): Called once per gap: after the missed ticks, and before the next live
            one.
        on_greeks (Callable[[Greeks], object] | None): Called for each message of an option, future or perpetual.

        exchanges (Iterable[str] | None): Deliver only ticks of these exchanges, named in upper case. None for all.
        parse_price (Callable[[str], Any]): Converts the decimal string that was sent to a price, e.g. `float`,
            `decimal.Decimal` or `str`. It must be quick, because nothing is read meanwhile. It must be thread-safe,
            because other threads call it, too.
        backfill (bool): Get missed ticks: from a server that can resume a stream, else from history. False only reports
            gaps.
        lateness (float): How many seconds later than others a tick may arrive and still be found when history fills a
            gap. A server that can resume a stream finds any tick.

        dispatch (str): "thread" runs callbacks on a thread that also reads, until a second thread relieves it because
            they are slow. "inline" has no second thread: callbacks must be quick, because nothing is read meanwhile.
        queue_size (int): How many ticks may wait for callbacks.
        overflow (str): What happens when the queue is full. "block" stops reading until there is room. "drop_oldest"
            drops the oldest ticks. "latest" always keeps only the latest tick of each pair. You hear about dropped
            ticks as `TicksDropped`.

        reconnect (ReconnectPolicy | None): How long to wait between connection attempts. None doesn't retry.
        connect_timeout (float): Seconds for one attempt, in total.
        ping_interval (float | None): Seconds between pings. None sends no pings.
        ping_timeout (float): Seconds to wait for the answer to a ping before the connection counts as lost.
        stale_after (float | None): Seconds without a tick until `StaleStream` is reported. None for never.
        stale_reconnect (bool): Also reconnect then, although the server answers pings.
        keep_alive (float | None): Seconds between FinX's keepAlive messages. None sends none. A server may close a
            connection after 300 s without one; 270 keeps it open. "auto" is 270 with `Endpoint(wire="subscribe")`, and
            else None.
        max_message_size (int): Bytes. A larger message causes a `ProtocolError` and close code 1009. It isn't stored.

        keep (int | None): How many of the last ticks to keep for `recent`, `to_pandas`, `to_polars` and `live`, at
            about 600 bytes each. 0 keeps none. None keeps 10,000 in a notebook and 1,000 elsewhere.
        record (str | os.PathLike[str] | Archive | None): Record everything that the streams get into this directory.
            Needs the extra `archive`. A pair that was recorded before goes on from its last recorded tick. None records
            nothing.
        name (str | None): Prefix of the thread names, shown in `repr`. In a notebook, a listener replaces an earlier
            one of the same name. None generates a name.

    Raises:
        ConfigurationError: An argument is wrong.

    Sources: S for symbols and for ticks of all exchanges on one stream; D for the replacement of keys and for the limit
    of 300 s; O for upper-case names of exchanges.
    """

    @hides_arguments
    def __init__(
        self,
        *symbols: str | Symbol,
        api_key: str | Callable[[], str | None] | None = None,
        endpoint: str | Endpoint = "production",
        on_tick: Callable[[Tick], object] | None = None,
        on_error: Callable[[FinxStreamerError], object] | None = None,
        on_notice: Callable[[Notice], object] | None = None,
        on_state: Callable[[str, State], object] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_greeks: Callable[[Greeks], object] | None = None,
        exchanges: Iterable[str] | None = None,
        parse_price: Callable[[str], Any] = float,
        backfill: bool = True,
        lateness: float = 1.0,
        dispatch: Literal["thread", "inline"] = "thread",
        queue_size: int = 65_536,
        overflow: Literal["block", "drop_oldest", "latest"] = "block",
        reconnect: ReconnectPolicy | None = ReconnectPolicy(),  # noqa: B008 (frozen)
        connect_timeout: float = 10.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float = 10.0,
        stale_after: float | None = None,
        stale_reconnect: bool = False,
        keep_alive: float | Literal["auto"] | None = "auto",
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
        max_message_size: int = MAX_MESSAGE,
        keep: int | None = None,
        record: str | os.PathLike[str] | Archive | None = None,
        name: str | None = None,
    ) -> None:
        endpoint, api_key, proxy = demo.connection_arguments(self, endpoint, api_key, proxy)
        connection = ConnectionConfig.from_arguments(
            api_key=api_key,
            endpoint=endpoint,
            proxy=proxy,
            allow_insecure=allow_insecure,
            ssl_context=ssl_context,
            connect_timeout=connect_timeout,
            max_message=max_message_size,
        )
        self._symbols = {str(symbol): symbol for symbol in map(check.symbol, symbols)}
        wire = connection.endpoint.wire
        timing = Timing(
            check.seconds_or_none("ping_interval", ping_interval),
            check.seconds("ping_timeout", ping_timeout),
            check.seconds_or_none("keep_alive", _KEEP_ALIVE[wire] if keep_alive == "auto" else keep_alive),
        )
        if stale_reconnect and stale_after is None:
            raise check.refusal("stale_reconnect", stale_reconnect, "False without stale_after, which says when")
        if dispatch == "inline" and overflow != "block":
            raise check.refusal("overflow", overflow, "'block' with dispatch='inline', which has no queue to overflow")
        self._frontend = jupyter.frontend()
        wanted_exchanges = check.exchanges(exchanges)
        kept = check.integer("keep", self._frontend.default_keep if keep is None else keep, 0)
        self._settings = Settings(
            connection=connection,
            exchanges=wanted_exchanges,
            parse_price=check.price_parser(parse_price),
            backfill=check.boolean("backfill", backfill),
            lateness=timedelta(seconds=check.seconds("lateness", lateness)),
            dispatch=check.one_of("dispatch", dispatch, ("thread", "inline")),
            queue_size=check.integer("queue_size", queue_size, 1),
            overflow=check.one_of("overflow", overflow, tuple(QUEUES)),
            reconnect=checked_policy(reconnect),
            timing=timing,
            stale_after=check.seconds_or_none("stale_after", stale_after),
            stale_reconnect=check.boolean("stale_reconnect", stale_reconnect),
            name=check.text_or_none("name", name) or f"finx-streamer-{next(_names)}",
            recent=Recent(kept) if kept else None,
            open_recorder=_recorder_opener(record, wanted_exchanges),
        )
        self._recent, self._callbacks = self._settings.recent, self._settings.callbacks
        #: None for a generated name.
        self._given_name = name
        self._lock = threading.RLock()
        self._run: Run | None = None
        given = {
            "tick": on_tick,
            "greeks": on_greeks,
            "error": on_error,
            "notice": on_notice,
            "state": on_state,
            "gap": on_gap,
        }
        for event, callback in given.items():
            if callback is not None:
                self._register(event, callback)

    # Callbacks.

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse methods that look like callbacks, because nothing would call them."""
        super().__init_subclass__(**arguments)
        inherited = [base for base in cls.__mro__ if base not in StreamListener.__mro__]
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
            if not self._symbols:
                raise ConfigurationError(
                    "iteration: the listener has no symbols, so no tick would come; add() one first"
                )
            run, is_new = self._run, self._run is None or self._run.over
            if run is None or is_new:
                run = self._new_run()
            buffer = run.iterations.open(kind)
            only_greeks = not any(isinstance(symbol, Pair) for symbol in self._symbols.values())
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

    # Symbols.

    def add(self, *symbols: str | Symbol) -> None:
        """Listen to more symbols. Those that it already listens to stay as they are.

        A symbol that the server doesn't know gets the state FAILED, and `on_error` a `StreamNotFound`.

        Args:
            *symbols (str | Pair | Option): Such as "ETH:USDC".

        Raises:
            ConfigurationError: A symbol is malformed.
        """
        new = {str(symbol): symbol for symbol in map(check.symbol, symbols)}
        with self._lock:
            self._check_process()
            for name, symbol in new.items():
                if name not in self._symbols:
                    self._symbols = {**self._symbols, name: symbol}
                    if self._run is not None:
                        self._run.add(symbol)

    def remove(self, *symbols: str | Symbol) -> None:
        """Stop listening to symbols. Ticks that were received may still be delivered.

        Args:
            *symbols (str | Pair | Option): Such as "ETH:USDC".

        Raises:
            ConfigurationError: The listener doesn't listen to one of them. Then it removes none.
        """
        names = [str(check.symbol(symbol)) for symbol in symbols]
        with self._lock:
            self._check_process()
            for name in names:
                if name not in self._symbols:
                    raise ConfigurationError(f"remove(): not listening to {name!r}, only to {sorted(self._symbols)}")
            self._symbols = {name: symbol for name, symbol in self._symbols.items() if name not in names}
            for name in names:
                if self._run is not None:
                    self._run.remove(name)

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
        return add_up(State.IDLE, {name: StreamStats(state=State.IDLE) for name in self._symbols})

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
        if not hasattr(self, "_run"):
            # A traceback of the constructor may show locals.
            return "<StreamListener (incomplete)>"
        shown = ", ".join(self.symbols[:5]) + (", …" if len(self._symbols) > 5 else "")
        where = redact(self._settings.connection.endpoint.url)
        symbols = f"{shown or 'no symbols'} at {where}"
        if self._run is None:
            return f"<StreamListener {self.name} {self.state.value}: {symbols}>"
        stats = self._run.stats()
        why = f" ({text})" if (text := reason(stats)) else ""
        return (
            f"<StreamListener {self.name} {stats.state.value}{why}: {symbols}; {stats.ticks} ticks, "
            f"{stats.rate:.1f}/s, {stats.dropped} dropped, {stats.reconnects} reconnects, {stats.gaps} gaps, "
            f"{stats.callback_errors + stats.decode_errors} errors>"
        )

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
                "StreamListener in this process"
            )

    def _check_not_in_callback(self, method: str) -> None:
        run = self._run
        if run is not None and run.streams.loop.runs_here and not run.ended.is_set():
            raise ConfigurationError(
                f"{method} inside a callback would wait for itself; call stop() there, and do the rest outside"
            )


def listeners() -> list[StreamListener]:
    """Return the running listeners of this process::

        import finx_streamer

        print(finx_streamer.listeners())

    They are in the order in which they were started.
    """
    return [listener for run, listener in tuple(live_runs.items()) if not run.forked]


def stop_all(timeout: float = 5.0) -> bool:
    """Stop every listener of this process::

        import finx_streamer

        finx_streamer.stop_all()

    Ticks that wait for callbacks are discarded.

    Args:
        timeout: Seconds, for all of them together.

    Returns:
        False if a callback is still running after `timeout`.
    """
    return stop_runs(check.seconds("timeout", timeout, zero=True))


def _recorder_opener(
    record: str | os.PathLike[str] | Archive | None, exchanges: frozenset[str] | None
) -> Callable[[Callable[[str], None]], RunRecorder] | None:
    if record is None:
        return None
    try:
        from .archive.recorder import Recorder
    except ImportError as error:
        raise ConfigurationError(f"record: {error}") from None
    path = getattr(record, "path", record)
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise check.refusal("record", record, "a directory")
    return lambda on_problem: Recorder(path, exchanges, on_problem)


_CALLBACK_NAMES = tuple(f"on_{event}" for event in ARGUMENTS)
_STILL_STOPPING = "start(): the previous run is still stopping. Call join() first, outside of callbacks"
