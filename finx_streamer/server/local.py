"""`LocalServer`: runs the server on a thread of its own, and controls it from any thread."""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from .. import metered
from ..errors import ConfigurationError
from .contracts import check_emitted
from .descriptors import RESERVE, raise_limit
from .fault_controls import FaultControls
from .keys import KeyRing
from .log_recorder import LogRecorder
from .log_store import LogStore
from .protocol import Form, is_loopback
from .recorder import Recorder
from .recording import Recorded, Recording
from .retention import Retention
from .service import ServerState, Service
from .settings import Settings, plain_number
from .source import LiveSource, Source, as_log
from .stats import ServerStats
from .store import TickStore
from .thread import ServerThread


class LocalServer(FaultControls):
    """A FinX server on this machine that plays one market to any number of clients::

        from finx_streamer import StreamListener
        from finx_streamer.server import LocalServer, SimulatedMarket

        with LocalServer(SimulatedMarket(), keys={"demo"}) as server:
            with StreamListener("BTC:USDC", endpoint=server.url, api_key="demo", on_tick=print) as listener:
                listener.join(timeout=1)

    Clients connect to `streaming/[key]/[pair]` and `streaming/greeks/[key]/[option]` (S) for one stream each, and to
    `streamer/[key]` (D) for function calls and for any number of streams that they ask for by message. Both prefixes
    work everywhere, and each connection accepts all messages (O).

    Browsers find a page at `/` that says what this is. Probes find `/health`: 200, or 503 when the store or the source
    has failed.

    Ticks are sent to the clients connected at that time, and stored for the functions. An answer includes every tick
    played before the call arrived. Connections stay open when the source ends.

    All methods are thread-safe and take effect before they return. Methods that act on connections return the number
    of connections affected, which is 0 while the server isn't running. You can set keys and faults before the start;
    they persist across restarts. A malformed argument of any method raises `ConfigurationError`.

    Args:
        source (Source | LiveSource): The market: a `Tape`, a `SimulatedMarket`, an `ExchangeMarket` or your own.
        keys (Iterable[str] | None): The API keys to accept. `None` accepts any key that isn't empty. The values of a
            dict are the numbers by which `request_log` identifies the keys.
        host (str): The address to listen on; `"::"` is all interfaces, for IPv6 and IPv4. Beyond loopback, the server
            warns. On every host, web pages of other hosts are refused with 403, based on their Origin header.
        port (int): The port to listen on. 0 picks a free port.
        ssl_context (ssl.SSLContext | None): A server-side context makes the server use `wss://`.
        form (str): The form of ticks on streams in the URL: `"enveloped"` (S), or `"flat"`, the vendor's later form
            (D). Streams that are asked for by message always have the later form.
        queue_bytes (int): How many bytes may wait for each client, in addition to 64 KiB in the transport and the
            kernel's buffer. A client with more is disconnected with 1013. An unpaced source waits for room instead.
        slow_client_timeout (float): Seconds after which a client that doesn't read is disconnected with 1013.
        send_buffer (int | None): The kernel's send buffer per client in bytes (`SO_SNDBUF`). `None` is the system's
            default.
        max_connections (int): How many connections may be open. Others are refused with 429 and `Retry-After: 1`. The
            start raises the process's soft limit of open files as far as needed, and warns if the hard limit is too
            low.
        max_connections_per_key (int): The same for each key.
        max_connections_per_address (int): The same for each client's address. A /64 network of IPv6 counts as one.
        request_log (str | os.PathLike[str] | None): A file to which a line of JSON is appended for each handshake, page
            and ended connection, without keys. `"-"` is standard output.
        idle_limit (float | None): Seconds after which a connection without a keepAlive is closed with 1000. The real
            server may do so after 300 (D). `None`: never.
        resumable (bool): Whether clients can resume a stream exactly, by the IDs of its ticks. FinX can't do that: with
            False, you test what your program gets there.
        store (str | os.PathLike[str] | None): The SQLite file for the ticks, created if missing. It is validated here,
            open while the server runs, and usable by one process at a time. `None` keeps ticks in memory as long as
            this object exists, across restarts.
        store_batch (int): How many ticks may be sent but not yet written: a killed process loses them. If the market is
            faster than the store, it runs late.
        store_batch_seconds (float): How many seconds a tick may wait before it is written.
        store_limit (int | None): How many ticks to keep. Those stored first are removed first. `None` is 1,000,000 in
            memory and no limit in a file. 0 stores nothing. Of contract tickers, a tenth as many are kept.
        store_age (timedelta | float | None): For how many seconds to keep ticks and contract tickers after they were
            stored. The newest one is always kept. `None`: forever.
        store_bytes (int | None): How large the store may be, from 1,000,000 bytes. The ticks and contract tickers
            stored first are removed, and their place in the file is used again. `None`: no limit.
        open_timeout (float): Seconds for the handshake.
        close_timeout (float): Seconds for the client's answer to a close frame. Then TCP is aborted.
        ping_interval (float | None): Seconds between the server's pings. `None` sends none.
        ping_timeout (float | None): Seconds for the pong. `None` waits forever.

    Raises:
        ConfigurationError: An argument is malformed or out of range, or the store file is in use or not a tick store.
        OSError: The system denies access to the store file.
    """

    def __init__(
        self,
        source: Source | LiveSource,
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
        max_connections_per_address: int = 2_048,
        request_log: str | os.PathLike[str] | None = None,
        idle_limit: float | None = None,
        resumable: bool = True,
        store: str | os.PathLike[str] | None = None,
        store_batch: int = 8_192,
        store_batch_seconds: float = 0.1,
        store_limit: int | None = None,
        store_age: timedelta | float | None = None,
        store_bytes: int | None = None,
        open_timeout: float = 10.0,
        close_timeout: float = 2.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
    ) -> None:
        self._settings = Settings(
            source=source,
            host=host,
            port=port,
            ssl_context=ssl_context,
            form=form,
            queue_bytes=queue_bytes,
            slow_client_timeout=slow_client_timeout,
            send_buffer=send_buffer,
            max_connections=max_connections,
            max_connections_per_key=max_connections_per_key,
            max_connections_per_address=max_connections_per_address,
            request_log=None if request_log is None else os.fspath(request_log),
            idle_limit=idle_limit,
            resumable=resumable,
            store_batch=store_batch,
            store_batch_seconds=store_batch_seconds,
            open_timeout=open_timeout,
            close_timeout=close_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
        )
        key_ring = KeyRing(keys)
        bounds = Retention(plain_number(store_age), plain_number(store_bytes))
        self._has_log = as_log(source) is not None
        limit = plain_number(store_limit)
        tick_store = LogStore(store, limit, bounds) if self._has_log else TickStore(store, limit, bounds)
        recorder_type = LogRecorder if self._has_log else Recorder
        # Opening validates the file. Ticks in memory stay.
        with tick_store.opened():
            self._state = ServerState(key_ring, recorder_type(tick_store, store_batch, store_batch_seconds))
        self._thread = ServerThread(self._settings, self._state)
        metered.register("server", self)

    def __repr__(self) -> str:
        address = self.url if self.port else self.host
        return f"<LocalServer {address} {'running' if self.running else 'stopped'}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server and return it once clients can connect. Does nothing if it is running.

        A stopped server restarts on the same port and plays its source from the beginning.

        Returns:
            LocalServer: This server.

        Raises:
            OSError: The port is taken, or the system denies access to the store file or the request log.
            ConfigurationError: The store file is in use by another server or program.
        """
        if not self.running:
            self._warn_beyond_loopback()
            self._raise_descriptor_limit()
            self._thread.start()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """Close all connections with 1001 and stop the server. Does nothing if it isn't running.

        Args:
            timeout (float): Seconds to wait. If the thread hasn't ended by then, a warning is logged.
        """
        self._thread.stop(timeout)

    @property
    def running(self) -> bool:
        """Whether clients can connect."""
        return self._thread.running

    @property
    def host(self) -> str:
        """The host that the server listens on, as given."""
        return self._settings.host

    @property
    def port(self) -> int:
        """The port that the server listens on; 0 if it is picked at the start."""
        return self._thread.port

    @property
    def url(self) -> str:
        """The base URL for clients.

        Raises:
            RuntimeError: The port is picked at the start, and the server hasn't started yet.
        """
        if not self.port:
            raise RuntimeError("the server has no port yet; call start() first, or pass a port")
        return self._settings.url(self.port)

    @property
    def stats(self) -> ServerStats:
        """A snapshot of the counters."""
        return self._thread.stats

    def wait_until(self, condition: Callable[[ServerStats], bool], timeout: float | None = 10.0) -> ServerStats:
        """Wait until a condition on the stats holds.

        Args:
            condition (Callable[[ServerStats], bool]): Called with the current stats after each change.
            timeout (float | None): Seconds to wait. `None` waits forever.

        Returns:
            ServerStats: The stats that satisfied the condition.

        Raises:
            TimeoutError: The condition didn't hold in time.
        """
        return self._thread.wait_until(condition, timeout)

    def wait_connected(self, streams: int = 1, timeout: float | None = 10.0) -> None:
        """Wait until `streams` streams are connected at the same time.

        Args:
            streams (int): The number of streams.
            timeout (float | None): Seconds to wait. `None` waits forever.

        Raises:
            TimeoutError: There were fewer streams during all that time.
        """
        self.wait_until(lambda stats: stats.streams >= streams, timeout)

    def wait_finished(self, timeout: float | None = 30.0) -> None:
        """Wait until the source has ended and all its ticks are queued for their clients.

        Args:
            timeout (float | None): Seconds to wait. `None` waits forever.

        Raises:
            TimeoutError: The source didn't end in time.
            Exception: The error that ended the source, if any.
        """
        self.wait_until(lambda stats: stats.finished, timeout)
        service = self._thread.service
        if service is not None and service.error is not None:
            raise service.error

    def emit(self, *ticks: Mapping[str, Any]) -> int:
        """Send ticks now, in addition to those of the source. For tests that decide what happens when.

        The ticks are stored and sent to all their subscribers.

        Args:
            *ticks (Mapping[str, Any]): Dicts of ticks or contract tickers, as for `Tape`.

        Returns:
            int: The number of ticks; 0 while the server isn't running.

        Raises:
            ConfigurationError: A tick is malformed, or the source doesn't play its pair or contract. No tick is sent.
        """
        self._refuse_with_log("emit()")
        settings = self._settings
        checked = [check_emitted(tick, settings.source.pairs, settings.contracts) for tick in ticks]

        def emit(service: Service | None) -> int:
            if service is None:
                return 0
            for tick in checked:
                service.hub.publish(tick)
            service.hub.flush()
            return len(checked)

        return self._thread.call(emit)

    def import_ticks(self, ticks: Recorded | Recording) -> int:
        """Store ticks without playing them, whether the server is running or not.

        Functions know their pairs afterwards; streams don't. A file's ticks are stored once: those that were imported
        from it or played from it before are skipped. Ticks that aren't in a file are always stored.

        Args:
            ticks (str | os.PathLike[str] | Iterable[Mapping[str, Any]]): A file or ticks, as for `Tape`.

        Returns:
            int: How many ticks were stored, without contract tickers. 0 for a file that was imported before.

        Raises:
            ConfigurationError: A tick is malformed or the file can't be read. No tick is stored then.
            OSError: The store can't be written.
        """
        self._refuse_with_log("import_ticks()")
        recording = ticks if isinstance(ticks, Recording) else Recording(ticks)
        return self._state.recorder.import_ticks(recording, once=recording.is_file)

    def _refuse_with_log(self, what: str) -> None:
        if self._has_log:
            raise ConfigurationError(f"{what}: a gateway has only the ticks of its log; publish them to NATS instead")

    def add_key(self, key: str) -> None:
        """Accept an API key from now on, even if it was revoked.

        Args:
            key (str): The key.
        """
        self._thread.call(lambda service: self._state.keys.add(key))

    def set_keys(self, keys: Iterable[str]) -> int:
        """Accept exactly these API keys from now on, and close the connections of other keys with 1008.

        Args:
            keys (Iterable[str]): The keys, as for the constructor.

        Returns:
            int: The number of connections closed.

        Raises:
            ConfigurationError: The keys are malformed. The earlier ones stay accepted.
        """

        def replace(service: Service | None) -> int:
            self._state.keys.replace(keys)
            return 0 if service is None else service.close_revoked()

        return self._thread.call(replace)

    def revoke_key(self, key: str) -> int:
        """Refuse an API key with 401 from now on, and close its connections with 1008.

        Args:
            key (str): The key.

        Returns:
            int: The number of connections closed.
        """

        def revoke(service: Service | None) -> int:
            self._state.keys.revoke(key)
            return 0 if service is None else service.close_revoked()

        return self._thread.call(revoke)

    def reopen_request_log(self) -> None:
        """Continue the request log in a new file of the same name, after you renamed the earlier one."""
        self._thread.call(lambda service: None if service is None else service.reopen_request_log())

    def _warn_beyond_loopback(self) -> None:
        if not is_loopback(self.host):
            where = self.host or "all interfaces"
            _warn(f"the local server listens on {where}, where other machines can reach it")

    def _raise_descriptor_limit(self) -> None:
        wanted = self._settings.max_connections
        limit = raise_limit(wanted + RESERVE)
        if limit is not None and limit < wanted + RESERVE:
            _warn(
                f"max_connections is {wanted}, but the system allows this process only {limit} open files; "
                "raise that limit (ulimit -n), or lower max_connections"
            )


def _warn(text: str) -> None:
    # The caller of start().
    warnings.warn(text, RuntimeWarning, stacklevel=4)
