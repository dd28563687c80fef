"""`ServerThread`: runs the server on a thread of its own, and calls into it from any thread."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ..clock import monotonic
from .request_log import RequestLog
from .service import ServerState, Service
from .settings import Settings
from .source import as_log, exchange_stats
from .stats import ServerStats

log = logging.getLogger("finx_streamer.server")
_Result = TypeVar("_Result")

#: The longest wait for the thread in seconds. Only a bug can exceed it.
_CALL_TIMEOUT = 30.0


class ServerThread:
    """Runs one `Service` at a time on a daemon thread. All methods are thread-safe."""

    def __init__(self, settings: Settings, state: ServerState) -> None:
        #: The current or last service.
        self.service: Service | None = None
        self.port = settings.port
        #: Notified after each change of the stats.
        self._changed = threading.Condition()
        self._settings = settings
        self._state = state
        self._thread: threading.Thread | None = None
        self._start_stop_lock = threading.RLock()
        self._finalizer = weakref.finalize(self, state.recorder.store.close)

    @property
    def running(self) -> bool:
        """Whether clients can connect."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread and wait until clients can connect. Does nothing if it is running."""
        with self._start_stop_lock:
            if self.running:
                return
            listener = self._listen()
            try:
                target = self._settings.request_log
                request_log = None if target is None else RequestLog(target)
            except BaseException:
                listener.close()
                raise
            service = Service(self._settings, self._state, self._notify, request_log)
            ready: Future[None] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(service, listener, ready), name="finx-local-server", daemon=True
            )
            self._thread.start()
            try:
                ready.result()
            except Exception:
                self._thread.join(_CALL_TIMEOUT)
                raise
            self.service = service
            self._notify()

    def stop(self, timeout: float) -> None:
        """Stop the service and wait for the thread, at most `timeout` seconds."""
        with self._start_stop_lock:
            thread, service = self._thread, self.service
            if thread is None or service is None:
                return
            if thread.is_alive():
                service.loop.call_soon_threadsafe(service.stop)
                thread.join(timeout)
            if thread.is_alive():
                log.warning("stop(): the server's thread did not end within %g s", timeout)

    @property
    def stats(self) -> ServerStats:
        """A snapshot of the counters."""
        service, counters = self.service, self._state.counters
        log_source = as_log(self._settings.source)
        symbols = {} if service is None else dict(service.hub.streams_per_symbol)
        return ServerStats(
            connections=0 if service is None else len(service.hub.connections),
            connections_total=counters.connections_total,
            streams=sum(symbols.values()),
            symbols=symbols,
            refused=counters.refused,
            ticks_played=counters.ticks_played,
            ticks_sent=counters.ticks_sent,
            greeks_played=counters.greeks_played,
            greeks_sent=counters.greeks_sent,
            slow_clients=counters.slow_clients,
            calls=counters.calls,
            ticks_stored=self._state.recorder.store.count,
            exchanges=dict(exchange_stats(self._settings.source)),
            log=None if log_source is None else log_source.log_stats,
            store_error=self._state.recorder.error,
            started=service is not None and service.started,
            finished=service is not None and service.finished,
        )

    def wait_until(self, condition: Callable[[ServerStats], bool], timeout: float | None) -> ServerStats:
        """Wait until a condition on the stats holds, and return those stats. Raises `TimeoutError`."""
        stats = ServerStats()

        def holds() -> bool:
            nonlocal stats
            stats = self.stats
            return condition(stats)

        with self._changed:
            if not self._changed.wait_for(holds, timeout):
                raise TimeoutError(f"the condition did not hold within {timeout:g} s; the last stats were {stats}")
        return stats

    def call(self, action: Callable[[Service | None], _Result]) -> _Result:
        """Run an action on the thread and return its result. If the server isn't running, run it here with `None`."""
        service, thread = self.service, self._thread
        if service is None or thread is None or not thread.is_alive() or thread is threading.current_thread():
            return action(service if thread is threading.current_thread() else None)
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(action(service))
            except BaseException as error:
                done.set_exception(error)

        try:
            service.loop.call_soon_threadsafe(run)
        except RuntimeError:
            # The loop was closed meanwhile.
            return action(None)
        return done.result(_CALL_TIMEOUT)

    def _run(self, service: Service, listener: socket.socket, ready: Future[None]) -> None:
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(service.run(listener, ready))
        except BaseException as error:
            if ready.done():
                log.exception("the server failed")
            else:
                ready.set_exception(error)
        finally:
            self._state.recorder.stop()
            listener.close()
            if service.request_log is not None:
                service.request_log.close()
            self._notify()

    def _listen(self) -> socket.socket:
        settings = self._settings
        listener = socket.create_server(
            (settings.host, self.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            dualstack_ipv6=settings.is_dual_stack,
            backlog=1_024,
        )
        if self._settings.send_buffer is not None:
            # Accepted sockets inherit the buffer size.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._settings.send_buffer)
        self.port = listener.getsockname()[1]
        return listener

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    # The server goes on while a test has frozen time.
    loop.time = monotonic  # type: ignore[method-assign]
    return loop
