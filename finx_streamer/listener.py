"""`StreamListener`, the public class: checks its arguments, and starts and stops a `Run` of its streams."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from . import demo
from .base_listener import BaseListener, delivery_settings
from .config import checks as check
from .config.endpoint import Endpoint
from .config.reconnect import ReconnectPolicy, checked_policy
from .config.redaction import hides_arguments
from .config.symbols import Symbol
from .connection.attempt import MAX_MESSAGE, ConnectionConfig
from .errors import ConfigurationError, FinxStreamerError
from .run import Settings, live_runs, stop_runs
from .source import RunRecorder
from .streaming.session import Timing
from .values import Gap, Greeks, Notice, State, Tick

if TYPE_CHECKING:
    from .archive import Archive

#: Seconds between keepAlive messages, by wire: FinX closes a connection of the second wire without them. Source: D.
_KEEP_ALIVE = {"url": None, "subscribe": 270.0}


class StreamListener(BaseListener):
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
        endpoint (str | Endpoint | Sequence[str | Endpoint]): "production", "beta", a base URL or an `Endpoint`; or
            "demo", a simulated market in this process, which needs no key but the extra `server`. Or a list of servers
            of the same service: after a loss or a failed attempt, the next one is tried.
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
        since (datetime | str | timedelta | None): Deliver history from this time on, then live ticks, as one sequence
            per pair: an aware datetime, ISO text, or a `timedelta` before the start of each run. Ticks from history
            have `backfilled=True`. None begins with the first live tick.
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

    _settings: Settings

    @hides_arguments
    def __init__(
        self,
        *symbols: str | Symbol,
        api_key: str | Callable[[], str | None] | None = None,
        endpoint: str | Endpoint | Sequence[str | Endpoint] = "production",
        on_tick: Callable[[Tick], object] | None = None,
        on_error: Callable[[FinxStreamerError], object] | None = None,
        on_notice: Callable[[Notice], object] | None = None,
        on_state: Callable[[str, State], object] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_greeks: Callable[[Greeks], object] | None = None,
        exchanges: Iterable[str] | None = None,
        parse_price: Callable[[str], Any] = float,
        backfill: bool = True,
        since: datetime | str | timedelta | None = None,
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
        wire = connection.endpoint.wire
        timing = Timing(
            check.seconds_or_none("ping_interval", ping_interval),
            check.seconds("ping_timeout", ping_timeout),
            check.seconds_or_none("keep_alive", _KEEP_ALIVE[wire] if keep_alive == "auto" else keep_alive),
        )
        if stale_reconnect and stale_after is None:
            raise check.refusal("stale_reconnect", stale_reconnect, "False without stale_after, which says when")
        if since is not None and not backfill:
            raise check.refusal("since", since, "None with backfill=False, which fetches no history")
        wanted_exchanges = check.exchanges(exchanges)
        settings = Settings(
            connection=connection,
            exchanges=wanted_exchanges,
            parse_price=check.price_parser(parse_price),
            backfill=check.boolean("backfill", backfill),
            since=check.moment_or_age("since", since),
            lateness=timedelta(seconds=check.seconds("lateness", lateness)),
            reconnect=checked_policy(reconnect),
            timing=timing,
            stale_after=check.seconds_or_none("stale_after", stale_after),
            stale_reconnect=check.boolean("stale_reconnect", stale_reconnect),
            open_recorder=_recorder_opener(record, wanted_exchanges),
            **delivery_settings(dispatch, queue_size, overflow, keep, name),
        )
        callbacks = {
            "tick": on_tick,
            "greeks": on_greeks,
            "error": on_error,
            "notice": on_notice,
            "state": on_state,
            "gap": on_gap,
        }
        super().__init__({str(symbol): symbol for symbol in map(check.symbol, symbols)}, settings, name, callbacks)

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
            added = {name: symbol for name, symbol in new.items() if name not in self._symbols}
            self._symbols = {**self._symbols, **added}
            if self._run is not None:
                self._run.add(*added.values())

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

    def _shown(self) -> str:
        shown = ", ".join(self.symbols[:5]) + (", …" if len(self._symbols) > 5 else "")
        return f"{shown or 'no symbols'} at {self._settings.connection.servers}"

    def _check_symbols(self) -> None:
        if not self._symbols:
            raise ConfigurationError("iteration: the listener has no symbols, so no tick would come; add() one first")


def listeners() -> list[BaseListener]:
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
