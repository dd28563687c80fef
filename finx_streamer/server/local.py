"""`LocalServer`: the server in a thread of its own, and its doors for all other threads."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import ssl
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from ..errors import ConfigurationError
from .connection import Connection, Limits
from .faults import CallFaults, Refusals, check_close
from .keys import KeyRing
from .protocol import Form, encoder, frame, is_loopback
from .recorder import Recorder
from .service import Only, Service, Settings
from .source import Source
from .stats import Counters, ServerStats
from .store import TickStore
from .tape import read_ticks
from .ticks import Tick, checked

log = logging.getLogger("finx_streamer.server")
_Result = TypeVar("_Result")

#: How long a call waits for the server's thread, in seconds. It never should.
_CALL_TIMEOUT = 30.0


class LocalServer:
    """A FinX server for this machine, playing one market to any number of clients::

        with LocalServer(Tape("ticks.jsonl", speed=10.0), keys={"demo"}) as server:
            listener = StreamListener("BTC:USDT", endpoint=server.url, api_key="demo")

    It serves `streaming/[key]/[pair]` and `streaming/greeks/[key]/[option]` (S), and the functions on `streamer/[key]`
    (D): `authenticate`, `tickSnap`, `tickHistory`, `referenceData`, `keepAlive`. Both prefixes serve all (O), and
    streams answer calls, too. Ticks go out to those who are connected at the moment, and are stored for the functions:
    an answer takes every tick into account that was played before the call came. When the source has come to its end,
    connections stay open.

    - `keys`: the API keys that are accepted; `None` accepts any that is not empty.
    - `host`, `port`: where to listen. Port 0 takes a free one. Beyond loopback a warning says so. Wherever it listens,
      a web page of another host is refused with 403, by its Origin header.
    - `ssl_context`: a server-side context makes it `wss://`.
    - `form`: tick messages `"enveloped"` (S) or `"flat"`, the vendor's later form (D).
    - `queue_bytes`: how much may wait for one client, beyond 64 KiB in the transport and what the kernel holds. A
      client over it is disconnected with close code 1013; only a source without a pace waits for room instead.
    - `slow_client_timeout`: a client that leaves its transport full for so many seconds is disconnected with 1013.
    - `send_buffer`: the kernel's buffer for each client in bytes (`SO_SNDBUF`); `None` leaves it to the kernel.
    - `max_connections`, `max_connections_per_key`: more are refused with 429 and a Retry-After of 1 s.
    - `idle_limit`: close connections (1000) that sent no keepAlive for so many seconds. The real server may do so
      after 300 (D). `None`: never.
    - `store`: a file for the ticks, an SQLite database that is made if need be; `None` keeps them in memory for as long
      as this object lives, over stops and starts. A file is open while the server runs, has one user at a time, and is
      checked here.
    - `store_batch`, `store_batch_seconds`: the longest batch in ticks and in seconds. A killed process has lost at most
      `store_batch` ticks that it had sent, and none older than `store_batch_seconds` and the time a write takes. A
      market that is too fast for the store runs late.
    - `store_limit`: the store forgets its oldest ticks beyond so many. `None`: 1,000,000 in memory, no limit in a file;
      0 stores nothing.
    - `open_timeout`: for the handshake. `close_timeout`: for a client's answer to a close frame, then TCP is aborted.
    - `ping_interval`, `ping_timeout`: the server's own pings; `None` for none.

    Everything here may be called from any thread, and has taken effect when it returns. Methods that act on
    connections return on how many, and do nothing (0) while the server is not running. Keys and refusals may be set
    before it starts, and stay over a restart.

    Raises `ConfigurationError` for an argument that is wrong, and for a file that is no store or in use; `OSError`
    where the system refuses the file.
    """

    def __init__(
        self,
        source: Source,
        *,
        keys: Iterable[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        form: Form = "enveloped",
        queue_bytes: int = 1_048_576,
        slow_client_timeout: float = 10.0,
        send_buffer: int | None = None,
        max_connections: int = 4_096,
        max_connections_per_key: int = 2_048,
        idle_limit: float | None = None,
        store: str | os.PathLike[str] | None = None,
        store_batch: int = 8_192,
        store_batch_seconds: float = 0.1,
        store_limit: int | None = None,
        open_timeout: float = 10.0,
        close_timeout: float = 2.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
    ) -> None:
        _check_source(source)
        encoder(form)
        _check_positive(
            queue_bytes=queue_bytes,
            slow_client_timeout=slow_client_timeout,
            send_buffer=send_buffer,
            max_connections=max_connections,
            max_connections_per_key=max_connections_per_key,
            idle_limit=idle_limit,
            store_batch=store_batch,
            store_batch_seconds=store_batch_seconds,
            open_timeout=open_timeout,
            close_timeout=close_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
        )
        if not 0 <= port <= 65_535:
            raise ConfigurationError(f"port is {port!r}; expected 0 to 65535")
        self._settings = Settings(
            source=source,
            host=host,
            limits=Limits(queue_bytes, slow_client_timeout, close_timeout),
            form=form,
            ssl_context=ssl_context,
            max_connections=max_connections,
            max_connections_per_key=max_connections_per_key,
            idle_limit=idle_limit,
            open_timeout=open_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
        )
        self._host = host
        self._port = port
        self._send_buffer = send_buffer
        self._keys = KeyRing(keys)
        self._refusals = Refusals()
        self._faults = CallFaults()
        self._recorder = _recorder(store, store_limit, store_batch, store_batch_seconds)
        self._closing = weakref.finalize(self, self._recorder.store.close)
        self._counters = Counters()
        self._service: Service | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        where = self.url if self._port else self._host
        return f"<LocalServer {where} {'running' if self.running else 'stopped'}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Its life

    def start(self) -> Self:
        """Begin to serve; returns itself once clients can connect. Does nothing if it is running.

        A server that was stopped starts again on the same port, with its source from the beginning. Raises `OSError`
        if it cannot listen there, and what opening the store raises.
        """
        with self._starting:
            if self.running:
                return self
            self._warn_beyond_loopback()
            listener = self._listen()
            service = Service(
                self._settings,
                self._keys,
                self._refusals,
                self._faults,
                self._recorder,
                self._counters,
                self._notify,
            )
            ready: Future[None] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(service, listener, ready), name="finx-local-server", daemon=True
            )
            self._thread.start()
            ready.result()
            self._service = service
            self._notify()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """Close all connections (1001) and end the thread, within `timeout` seconds. May be called again."""
        with self._starting:
            thread, service = self._thread, self._service
            if thread is None or service is None:
                return
            if thread.is_alive():
                service.loop.call_soon_threadsafe(service.stop)
                thread.join(timeout)
            if thread.is_alive():
                log.warning("the server's thread did not end within %g s", timeout)

    @property
    def running(self) -> bool:
        """Whether clients can connect."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def host(self) -> str:
        """The host that it listens on, as given."""
        return self._host

    @property
    def port(self) -> int:
        """The port that it listens on; 0 if that is still to be found at the start."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL for clients, e.g. `ws://127.0.0.1:41234/`. Raises `RuntimeError` before the first start."""
        if not self._port:
            raise RuntimeError("the server has no port before it is started")
        scheme = "ws" if self._settings.ssl_context is None else "wss"
        return f"{scheme}://{_reachable(self._host)}:{self._port}/"

    # What can be seen

    @property
    def stats(self) -> ServerStats:
        """A snapshot of the counters."""
        service, counters = self._service, self._counters
        symbols = {} if service is None else dict(service.hub.symbols)
        return ServerStats(
            connections=0 if service is None else len(service.hub.connections),
            connections_total=counters.connections_total,
            streams=sum(symbols.values()),
            symbols=symbols,
            refused=counters.refused,
            ticks_played=counters.ticks_played,
            ticks_sent=counters.ticks_sent,
            slow_clients=counters.slow_clients,
            calls=counters.calls,
            ticks_stored=self._recorder.store.held,
            started=service is not None and service.started,
            finished=service is not None and service.finished,
        )

    def wait_until(self, condition: Callable[[ServerStats], bool], timeout: float | None = 10.0) -> ServerStats:
        """Wait until the condition holds for the stats, and return those. Raises `TimeoutError` after `timeout` s."""
        found = ServerStats()

        def holds() -> bool:
            nonlocal found
            found = self.stats
            return condition(found)

        with self._changed:
            if not self._changed.wait_for(holds, timeout):
                raise TimeoutError(f"not so within {timeout:g} s: {found}")
        return found

    def wait_connected(self, streams: int = 1, timeout: float | None = 10.0) -> None:
        """Wait until so many streams are connected at once. Raises `TimeoutError` after `timeout` seconds."""
        self.wait_until(lambda stats: stats.streams >= streams, timeout)

    def wait_finished(self, timeout: float | None = 30.0) -> None:
        """Wait until the source has come to its end and every tick was handed to the connections.

        Raises `TimeoutError` after `timeout` seconds, and what the source raised if an error ended it.
        """
        self.wait_until(lambda stats: stats.finished, timeout)
        if self._service is not None and self._service.error is not None:
            raise self._service.error

    # The store

    def emit(self, *ticks: Mapping[str, str]) -> int:
        """Let these ticks go out now, besides what the source plays: for tests that say what happens when.

        They are stored, and handed to whoever is connected. Returns how many; 0 while the server is not running. Raises
        `ConfigurationError` for what is no tick, or of a pair that the source does not play; nothing goes out then.
        """
        found = [_played(tick, self._settings.source.pairs) for tick in ticks]

        def emit(service: Service | None) -> int:
            if service is None:
                return 0
            for tick in found:
                service.hub.emit(tick)
            service.hub.flush()
            return len(found)

        return self._perform(emit)

    def import_ticks(self, ticks: str | os.PathLike[str] | Iterable[Mapping[str, str]]) -> int:
        """Store ticks without playing them: a `.jsonl` or `.jsonl.gz` file, or tick dicts. Returns how many.

        From any thread, before the server runs or while it does; returns when they are stored. Functions know the
        pairs from then on; streams do not. Nothing is stored of what has a mistake in it: raises `ConfigurationError`
        as `Tape` does, and `OSError` where the store cannot be written.
        """
        return self._recorder.load(read_ticks(ticks))

    # Keys

    def add_key(self, key: str) -> None:
        """Accept this key from now on, also if it had been revoked."""
        self._perform(lambda service: self._keys.add(key))

    def revoke_key(self, key: str) -> int:
        """Refuse this key from now on (401) and close the connections made with it (1008)."""

        def revoke(service: Service | None) -> int:
            self._keys.revoke(key)
            found = [] if service is None else service.with_key(key)
            for connection in found:
                connection.shut(1008, "the API key was revoked")
            return len(found)

        return self._perform(revoke)

    # Faults on demand

    def refuse_next(
        self,
        count: int | None,
        status: int,
        retry_after: float | datetime | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse the next `count` handshakes with this HTTP status; `None` refuses all, 0 none any more.

        `retry_after` is sent as Retry-After: seconds as a whole number (rounded up), an aware `datetime` as an HTTP
        date, a text as it is. `headers` are sent too, e.g. `{"Location": …}`. A later call replaces an earlier one.
        """
        self._perform(lambda service: self._refusals.refuse(count, status, retry_after, headers or {}))

    def stall_next(self, count: int) -> None:
        """Leave the next `count` handshakes without an answer, until `resume()` or for `open_timeout` seconds."""
        self._perform(lambda service: self._refusals.stall(count))

    # `only` narrows it to "streams" or to "functions", as `symbol` does to the streams of one symbol.

    def drop_connections(self, symbol: str | None = None, *, reset: bool = False, only: Only | None = None) -> int:
        """End the TCP connections without a close frame: all, or those of one symbol. `reset` sends RST, not FIN."""
        return self._each(symbol, only, lambda connection: connection.drop(reset=reset))

    def close_connections(
        self, code: int = 1000, reason: str = "", symbol: str | None = None, *, only: Only | None = None
    ) -> int:
        """Send a close frame: to all, or to the streams of one symbol. What a client does with it is not awaited."""
        check_close(code, reason)
        return self._each(symbol, only, lambda connection: connection.shut(code, reason))

    def go_silent(self, symbol: str | None = None, *, only: Only | None = None) -> int:
        """Neither read from nor send to the connections there are, pongs included; TCP stays open.

        The market plays on: ticks wait, and a client with too many of them gets 1013 at `resume()`. What the kernel
        has been given already still arrives. New connections are served as ever.
        """
        return self._each(symbol, only, lambda connection: connection.freeze())

    def resume(self) -> int:
        """Undo `go_silent()`, `stall_next()` and `stall_functions()`. Returns how many connections were silent.

        Calls that were stalled are answered now; those that are still to be stalled will be.
        """
        return self._perform(lambda service: 0 if service is None else service.resume())

    def send_message(self, message: str | bytes, symbol: str | None = None, *, only: Only | None = None) -> int:
        """Send any message, well formed or not, to all connections or one symbol's: text for str, else binary."""
        data = frame(message)

        def send(connection: Connection) -> None:
            connection.offer(data)
            connection.flush()

        return self._each(symbol, only, send)

    # The same for calls, on function connections alone. `function` narrows it to calls of that name; without it, all
    # but keepAlive are meant.

    def fail_functions(
        self, count: int | None, message: str = "failed on demand", *, function: str | None = None
    ) -> None:
        """Answer the next `count` calls with this error; `None` is all of them, 0 none any more."""
        self._perform(lambda service: self._faults.fail(count, message, function))

    def stall_functions(self, count: int | None, *, function: str | None = None) -> None:
        """Take the next `count` calls and leave them without an answer until `resume()`; `None` is all, 0 no more.

        They are answered then, late, with what is known then; a connection's later calls wait their turn.
        """
        self._perform(lambda service: self._faults.stall(count, function))

    def drop_functions(self, count: int | None, *, function: str | None = None, reset: bool = False) -> None:
        """Drop the connection at each of the next `count` calls, as `drop_connections()` does; `None`: all, 0: none."""
        self._perform(lambda service: self._faults.drop(count, function, reset))

    # Within

    def _each(self, symbol: str | None, only: Only | None, action: Callable[[Connection], None]) -> int:
        if only not in {None, "streams", "functions"}:
            raise ConfigurationError(f"only is {only!r}; expected 'streams', 'functions' or None for both")

        def act(service: Service | None) -> int:
            found = [] if service is None else service.having(symbol, only)
            for connection in found:
                action(connection)
            return len(found)

        return self._perform(act)

    def _perform(self, action: Callable[[Service | None], _Result]) -> _Result:
        """Do something in the server's thread, or here if there is none."""
        service, thread = self._service, self._thread
        if service is None or thread is None or not thread.is_alive() or thread is threading.current_thread():
            return action(service if thread is threading.current_thread() else None)
        done: Future[_Result] = Future()

        def perform() -> None:
            try:
                done.set_result(action(service))
            except BaseException as error:
                done.set_exception(error)

        try:
            service.loop.call_soon_threadsafe(perform)
        except RuntimeError:
            # The loop was closed in this very moment.
            return action(None)
        return done.result(_CALL_TIMEOUT)

    def _run(self, service: Service, listener: socket.socket, ready: Future[None]) -> None:
        try:
            asyncio.run(service.run(listener, ready))
        except BaseException as error:
            if ready.done():
                log.exception("the server failed")
            else:
                ready.set_exception(error)
        finally:
            self._recorder.stop()
            listener.close()
            self._notify()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=1_024)
        if self._send_buffer is not None:
            # Accepted sockets inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        self._port = listener.getsockname()[1]
        return listener

    def _warn_beyond_loopback(self) -> None:
        if not is_loopback(self._host):
            text = f"the local server listens on {self._host or 'all interfaces'}, where other machines can reach it"
            log.warning(text)
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _recorder(path: str | os.PathLike[str] | None, limit: int | None, batch: int, seconds: float) -> Recorder:
    if not isinstance(seconds, int | float):
        raise ConfigurationError(f"store_batch_seconds is {seconds!r}; expected a number above 0")
    if not isinstance(batch, int):
        raise ConfigurationError(f"store_batch is {batch!r}; expected a whole number above 0")
    store = TickStore(path, limit)
    with store.opened():
        return Recorder(store, batch, seconds)


def _check_source(source: object) -> None:
    """A path in the place of a tape would be noticed by the first client alone."""
    if isinstance(source, type):
        given = f"the class {source.__name__}"
    elif all(hasattr(source, name) for name in ("pairs", "wait_for", "paced", "play")):
        return
    else:
        given = f"a {type(source).__name__}"
    raise ConfigurationError(
        f"source is {given}; expected a Tape, a SimulatedMarket or another Source, as in "
        "LocalServer(Tape('ticks.jsonl'))"
    )


def _check_positive(**arguments: float | None) -> None:
    for name, value in arguments.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigurationError(f"{name} is {value!r}; expected a number above 0")


def _reachable(host: str) -> str:
    """The host as it stands in a URL: an address for all interfaces is none that a client can connect to."""
    if host in {"", "0.0.0.0"}:
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _played(raw: Mapping[str, str], pairs: Collection[str]) -> Tick:
    try:
        tick = checked(dict(raw))
    except ValueError as fault:
        raise ConfigurationError(f"emit: {fault}") from None
    if tick["pair"] not in pairs:
        raise ConfigurationError(f"emit: the source does not play {tick['pair']}; expected one of {sorted(pairs)}")
    return tick
