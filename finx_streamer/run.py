"""One run of a listener, from `start` to its end: its streams, its delivery, and how they end together."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar

import attrs

from .clock import monotonic
from .config.reconnect import ReconnectPolicy
from .config.symbols import Pair, Symbol
from .connection.attempt import ConnectionConfig
from .delivery.bar_feed import BarTimer
from .delivery.callbacks import CallbackRunner, Callbacks
from .delivery.dispatcher import InlineDelivery, ThreadDelivery
from .delivery.frontend import Origin
from .delivery.iteration import Iterations
from .delivery.queues import QUEUES
from .delivery.recent import Recent
from .delivery.stats import ConnectionStats, ListenerStats, add_up, latest, snapshot
from .errors import FinxStreamerError, RecordingError
from .functions.call_pool import CallPool
from .functions.call_scheduler import PoolSettings
from .functions.tick_reader import TickReader
from .source import RunRecorder, RunStream, Source
from .streaming.catch_up import Past
from .streaming.counters import Counters
from .streaming.session import Timing
from .streaming.settings import StreamSettings
from .streaming.streams import Streams
from .values import Event, Greeks, State

logger = logging.getLogger("finx_streamer")

#: Seconds for one call of tick history, to fill a gap.
HISTORY_TIMEOUT = 10.0
#: Seconds that `stop` waits while an exception leaves a `with` block, for example after Ctrl-C.
HURRIED_STOP = 0.5
#: How much of its timeout `stop` spends on draining. After that, the remaining ticks are discarded.
_DRAIN_SHARE = 0.9
#: Seconds that a recorder may take to write what waits, at the end.
_LAST_WRITE = 5.0
#: Seconds that a thread with nothing left to do may take to return.
_LAST_STEPS = 1.0


@attrs.frozen(kw_only=True)
class RunSettings:
    """The checked arguments of any listener, and the objects that all of its runs share."""

    #: Whether bars are due by this machine's clock. Otherwise, the source says how time passes.
    follows_clock: ClassVar[bool] = True

    dispatch: str
    queue_size: int
    overflow: str
    name: str
    #: The last ticks. None keeps none.
    recent: Recent | None
    callbacks: Callbacks = attrs.field(factory=Callbacks)
    #: Called, on any thread, when a run starts and when it ends. May change during a run.
    watchers: list[Callable[[], None]] = attrs.field(factory=list)
    #: Opens the recorder of a run, and has it report problems. None records nothing.
    open_recorder: Callable[[Callable[[str], None]], RunRecorder] | None = None
    #: Called with pairs that are added, by whoever knows when some of them have to begin.
    find_starts: list[Callable[[list[str]], Mapping[str, datetime]]] = attrs.field(factory=list)

    def open_source(self, run: Run, on_end: Callable[[BaseException | None], None]) -> Source:
        """Return the source of a run. `on_end` is called last on the loop's thread, with the error if there is one."""
        raise NotImplementedError

    def pasts(self, pairs: list[str], recorder: RunRecorder | None) -> dict[str, Past]:
        """Return where streams begin."""
        return {}


@attrs.frozen(kw_only=True)
class Settings(RunSettings):
    """The checked arguments of a `StreamListener`."""

    connection: ConnectionConfig
    exchanges: frozenset[str] | None
    parse_price: Callable[[str], Any]
    backfill: bool
    #: When streams begin, or how long before they are added. None: with the first live tick.
    since: datetime | timedelta | None
    lateness: timedelta
    reconnect: ReconnectPolicy | None
    timing: Timing
    stale_after: float | None
    stale_reconnect: bool

    def open_source(self, run: Run, on_end: Callable[[BaseException | None], None]) -> Source:
        common = StreamSettings(
            connection=self.connection,
            exchanges=self.exchanges,
            parse_price=self.parse_price,
            reconnect=self.reconnect,
            timing=self.timing,
            stale_after=self.stale_after,
            stale_reconnect=self.stale_reconnect,
            lateness=self.lateness,
            name=self.name,
            max_held=self.queue_size,
            recorder=run.recorder,
        )
        open_history = partial(self._open_history, run.recorder is not None)
        return Streams(run.delivery, common, on_end, open_history if self.backfill else None)

    def _open_history(self, keeps_text: bool) -> TickReader:
        pool = CallPool(PoolSettings(self.connection, self.reconnect, 1, f"{self.name}-history"))
        return TickReader(pool, HISTORY_TIMEOUT, self.parse_price, keeps_text=keeps_text)

    def pasts(self, pairs: list[str], recorder: RunRecorder | None) -> dict[str, Past]:
        """Return where streams begin. FinX keeps no history of contracts."""
        since, pasts = self.since, dict[str, Past]()
        if since is not None:
            begin = since if isinstance(since, datetime) else datetime.now(UTC) - since
            pasts = dict.fromkeys(pairs, Past(until=begin))
        for find in self.find_starts:
            pasts |= {pair: Past(until=start) for pair, start in find(pairs).items()}
        return pasts if recorder is None else pasts | recorder.pasts(pairs, self.parse_price)


class Run:
    """Connects the streams to the callbacks, and ends both. Any thread may call its methods.

    Args:
        settings: What the listener was given.
        symbols: The first streams.
        origin: What started it, in a notebook.
        show_error: Shows errors if there is no `on_error`; None: they are logged.
    """

    def __init__(
        self,
        settings: RunSettings,
        symbols: Iterable[Symbol],
        origin: Origin | None,
        show_error: Callable[[FinxStreamerError], None] | None,
    ) -> None:
        self.origin = origin
        self.ended = threading.Event()
        #: What ended it, unless `stop` did.
        self.error: BaseException | None = None
        #: Whether the user has seen the error.
        self.error_raised = False
        #: Whether `start` was called. Otherwise it ends with its last loop.
        self.started = False
        #: Whether its own start began. If Ctrl-C prevented that, it will never run.
        self.launched = False
        #: The thread in `start`.
        self._starter: int | None = None
        #: Whether its last loop was left.
        self.left = False
        self._pid = os.getpid()
        self._stopping = False
        self._streams: dict[str, RunStream] = {}
        self._counters: dict[str, Counters] = {}
        self._settings = settings
        # A `for` loop reads from a buffer behind the queue. A policy that drops ticks needs a short one, or the loop
        # would see outdated ticks.
        buffered = {"block": settings.queue_size, "drop_oldest": min(64, settings.queue_size), "latest": 1}
        self.iterations = Iterations(buffered[settings.overflow], settings.dispatch == "thread", self._resume_reading)
        self.runner = CallbackRunner(settings.callbacks, self._counters, show_error)
        self.delivery = self._new_delivery(self.runner)
        open_recorder = settings.open_recorder
        self.recorder = None if open_recorder is None else open_recorder(self._report_recording)
        try:
            self.streams = settings.open_source(self, self._streams_ended)
            self._bar_timer = BarTimer(settings.callbacks.bar_feeds, self.delivery)
            self.time_bars()
            self.add(*symbols)
        except BaseException:
            self._close_recorder()
            raise

    def _new_delivery(self, runner: CallbackRunner) -> InlineDelivery | ThreadDelivery:
        settings = self._settings
        if settings.dispatch == "inline":
            return InlineDelivery(runner, self.iterations, self._stop_streams, self._delivery_ended, settings.recent)
        return ThreadDelivery(
            runner,
            QUEUES[settings.overflow](settings.queue_size),
            self._counters,
            self._resume_reading,
            self._stop_streams,
            self._delivery_ended,
            settings.recent,
        )

    def _report_recording(self, problem: str) -> None:
        event = Event(RecordingError(problem))
        if not self.streams.loop.post(lambda: self.delivery.put_event(event)):
            logger.error("%s", event.payload)

    def _close_recorder(self) -> None:
        if self.recorder is not None:
            self.recorder.close(_LAST_WRITE)

    def _resume_reading(self) -> None:
        self.streams.resume_reading()

    def _stop_streams(self) -> None:
        self.streams.stop()

    @property
    def name(self) -> str:
        """The name of its listener."""
        return self._settings.name

    # Streams.

    def add(self, *symbols: Symbol) -> None:
        """Open streams."""
        pairs = [str(symbol) for symbol in symbols if isinstance(symbol, Pair)]
        pasts = self._settings.pasts(pairs, self.recorder)
        for symbol in symbols:
            self.adopt(self.streams.add(symbol, pasts.get(str(symbol))))

    def adopt(self, stream: RunStream) -> None:
        """Show a stream that was opened."""
        self._streams = {**self._streams, stream.symbol: stream}
        self._counters[stream.symbol] = stream.counters

    def remove(self, name: str) -> None:
        """Close a stream."""
        self._streams = {other: each for other, each in self._streams.items() if other != name}
        self._counters.pop(name, None)
        self.streams.remove(name)

    def time_bars(self) -> None:
        """Have bars emitted in time. Call it after each registration of an `on_bar` callback."""
        if self._settings.follows_clock and self._settings.callbacks.bar_feeds():
            self.streams.loop.post(lambda: self._bar_timer.start(self.streams.loop))

    @property
    def state(self) -> State:
        """FAILED or STOPPED at the end. Until then, the least settled state of the streams that haven't ended."""
        if self.error is not None:
            return State.FAILED
        if self._stopping or self.ended.is_set():
            return State.STOPPED
        states = {stream.state for stream in self._streams.values()}
        if states == {State.FAILED}:
            return State.FAILED
        for state in (State.RECONNECTING, State.CONNECTING, State.IDLE):
            if state in states:
                return State.CONNECTING if state is State.IDLE else state
        return State.STREAMING if states else State.IDLE

    def stats(self) -> ListenerStats:
        """A snapshot of all counters."""
        depths, connections, streams = self.delivery.depths(), {}, {}
        for name, stream in self._streams.items():
            connection = stream.connection
            if connection not in connections:
                connections[connection] = ConnectionStats.of(connection.counters, connection.reconnects)
            streams[name] = snapshot(
                stream.counters,
                connections[connection],
                stream.state,
                depths.get(name, 0),
                stream.history_until,
            )
        errors = [stream.counters.last_error for stream in self._streams.values()]
        last_error = latest([*errors, *(connection.last_error for connection in connections.values())])
        return add_up(
            self.state,
            streams,
            connections.values(),
            queue_depth=self.delivery.depth(),
            queue_size=self._settings.queue_size,
            queue_peak=self.delivery.peak,
            last_error=last_error,
            errors_by_type=self.runner.errors_by_type.copy(),
        )

    def greeks(self) -> dict[str, Greeks]:
        """The newest Greeks of each contract."""
        # Copies: the loop's thread adds to them.
        newest: dict[str, Greeks] = {}
        for stream in self._streams.values():
            for instrument, greeks in stream.newest.copy().items():
                if instrument not in newest or newest[instrument]["timestamp"] <= greeks["timestamp"]:
                    newest[instrument] = greeks
        return newest

    # Life.

    def start(self, listener: Any) -> None:
        """Raises RuntimeError if the system has no more threads."""
        try:
            self._starter = threading.get_ident()
            self.launched = True
            live_runs[self] = listener
            if self.recorder is not None:
                self.recorder.start(self._streams)
            self.streams.start()
        except BaseException:
            # There are no more threads, or Ctrl-C came.
            self._delivery_ended(None)
            raise
        finally:
            self._starter = None
        self._notify_watchers()

    def stop(self, timeout: float, drain: bool) -> bool:
        """End within `timeout` seconds. Return whether that succeeded."""
        self._stopping = True
        in_callback = self.streams.loop.runs_here
        self.iterations.close_own()
        if in_callback or not drain:
            self._discard()
        self.streams.stop()
        if in_callback:
            return True
        deadline = monotonic() + timeout
        # The rest of the time is for the callback that runs then.
        if self.wait(timeout * _DRAIN_SHARE):
            return True
        self._discard()
        if self.wait(max(0.0, deadline - monotonic())):
            return True
        self.runner.closed = True
        logger.warning(
            "stop(): a callback is still running after %.3g s. No further callback will be called, and %d ticks that "
            "wait are dropped",
            timeout,
            self.delivery.depth(),
        )
        return False

    def abandon(self, report: bool = True) -> None:
        """End at once, without waiting: no further callback is called, except with the report of dropped ticks."""
        self._stopping = True
        self.runner.reports_discarded = report
        self._discard()
        self.streams.stop()

    def leave(self) -> None:
        """In a forked process: touch nothing that is the parent's, even if a callback has forked and returns."""
        self.runner.reports_discarded = False
        self.runner.abandon()
        self.streams.loop.leave()

    def _discard(self) -> None:
        self.delivery.abandon()
        self.iterations.close_all()

    @property
    def over(self) -> bool:
        """Whether a loop needs another run: this one has ended, is ending, or will never run."""
        return self.ended.is_set() or self.left or not self.launched

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a forked process, which has none of its threads."""
        return self._pid != os.getpid()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end, threads included. Return False if it takes longer than `timeout` seconds."""
        if not self.launched or self._starter == threading.get_ident():
            # It never runs, or a signal handler interrupted its start: it ends when that goes on.
            return True
        deadline = None if timeout is None else monotonic() + timeout
        if not self.ended.wait(timeout):
            return False
        # The threads have nothing left to do, unless a `parse_price` hangs.
        self.streams.join(None if deadline is None else max(_LAST_STEPS, deadline - monotonic()))
        return not self.streams.alive

    async def wait_async(self, timeout: float | None) -> bool:
        """`wait` for event loops, which keep running."""
        # asyncio takes a tenth of the time to import this package, so it is imported late.
        from .delivery.async_iteration import wait_until

        return await wait_until(self.ended.is_set, self._settings.watchers, timeout) and self.wait(0.0)

    def raise_error(self) -> None:
        """Raise the error that ended the run, if one did."""
        if self.error is not None:
            self.error_raised = True
            # Without the tracebacks of earlier raises.
            raise self.error.with_traceback(None)

    def _streams_ended(self, error: BaseException | None) -> None:
        """On the loop's thread, at its end."""
        if error is not None and self.error is None:
            self.error = error
            if not isinstance(error, FinxStreamerError):
                logger.error("the network thread crashed: %s", type(error).__name__, exc_info=error)
        if self.recorder is not None:
            self.recorder.stop()
        self.delivery.finish()

    def _delivery_ended(self, crash: BaseException | None) -> None:
        """After the last callback, with the exception that a callback raised to end everything, if one did."""
        if crash is not None and self.error is None:
            self.error = crash
        self.streams.stop()
        self.streams.join(_LAST_STEPS)
        try:
            self.delivery.discard()
        except BaseException as error:
            # `on_error` raised SystemExit, or a logging handler raised. join() must not wait forever.
            if self.error is None:
                self.error = error
        self.iterations.end()
        self._close_recorder()
        live_runs.pop(self, None)
        self.ended.set()
        self._notify_watchers()

    def _notify_watchers(self) -> None:
        for watcher in tuple(self._settings.watchers):
            watcher()


#: The runs in progress and their listeners.
live_runs: dict[Run, Any] = {}


def stop_runs(timeout: float, report: bool = True) -> bool:
    """End all runs of this process within `timeout` seconds. Return whether that succeeded. `report`: dropped ticks."""
    runs = [run for run in tuple(live_runs) if not run.forked]
    for run in runs:
        run.abandon(report)
    deadline = monotonic() + timeout
    ended = [run.stop(max(0.0, deadline - monotonic()), drain=False) for run in runs]
    return all(ended)


def _leave_runs() -> None:
    for run in tuple(live_runs):
        run.leave()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_runs)

# A daemon thread that the interpreter freezes during a call would not end cleanly.
# The end of a program is no surprise, so it reports no dropped ticks.
atexit.register(stop_runs, HURRIED_STOP, report=False)
