"""run"""

from __future__ import annotations

import atexit
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .config.api_key import KeySource
from .config.endpoint import Endpoint
from .config.proxy import ProxyChoice
from .config.reconnect import ReconnectPolicy
from .config.symbols import Pair, Symbol
from .connection.attempt import ConnectionConfig
from .delivery.callbacks import CallbackRunner, Callbacks
from .delivery.dispatcher import Dispatcher, InlineDelivery, ThreadDelivery
from .delivery.frontend import Origin
from .delivery.iteration import Iterations
from .delivery.queues import QUEUES
from .delivery.recent import Recent
from .delivery.stats import ListenerStats, add_up, snapshot
from .errors import FinxStreamerError
from .functions.client import FunctionClient
from .streaming.counters import Counters
from .streaming.session import Session, Timing
from .streaming.streams import Network, Stream
from .values import State
from .wire.decoder import Decoder

logger = logging.getLogger("finx_streamer")
#: Seconds for one call of tick history, to fill a gap.
HISTORY_TIMEOUT = 10.0
#: How long a thread that has done its work may take to return.
_LAST_STEPS = 1.0

#: How long `stop` waits where an exception is on its way out of a `with` block, e.g. after Ctrl-C.
HURRIED_STOP = 0.5


class Run:
    """One life of a listener, from `start` to its end: the threads and what they share."""

    def __init__(
        self,
        settings: Settings,
        callbacks: Callbacks,
        symbols: Iterable[Symbol],
        recent: Recent | None,
        watchers: list[Callable[[], None]],
        origin: Origin | None,
        show_error: Callable[[FinxStreamerError], None] | None,
    ) -> None:
        self.pid = os.getpid()
        self.ended = threading.Event()
        #: Who started it, in a notebook.
        self.origin = origin
        #: What ended it, if it was not `stop`.
        self.error: BaseException | None = None
        #: Whether the user has been told of it: by `on_error`, or by what raised it.
        self.error_told = False
        self.stopping = False
        self.streams: dict[str, Stream] = {}
        self.counters: dict[str, Counters] = {}
        self._settings = settings
        # A `for` loop has a buffer behind the queue. Under a policy that drops, it has to be short: else the loop would
        # see ticks that are out of date.
        ahead = {"block": settings.queue_size, "drop_oldest": min(64, settings.queue_size), "latest": 1}
        self.iterations = Iterations(ahead[settings.overflow], settings.dispatch == "thread", self._resume_reading)
        self._watchers = watchers
        self.delivery = self._make_delivery(CallbackRunner(callbacks, self.counters, show_error), recent)
        self.network = Network(
            self.delivery,
            settings.exchanges,
            settings.name,
            self._network_ended,
            settings.queue_size,
            self._history if settings.backfill else None,
        )
        for symbol in symbols:
            self.add(symbol)

    def _make_delivery(self, runner: CallbackRunner, recent: Recent | None) -> Dispatcher:
        size, name = self._settings.queue_size, f"{self._settings.name}-callbacks"
        if self._settings.dispatch == "inline":
            return InlineDelivery(runner, self.iterations, self._callbacks_ended, recent)
        queue = QUEUES[self._settings.overflow](size)
        return ThreadDelivery(
            runner, queue, size, self.counters, self._resume_reading, self._callbacks_ended, name, recent
        )

    def _history(self) -> FunctionClient:
        settings = self._settings
        return FunctionClient.of_target(
            settings.target(None),
            timeout=HISTORY_TIMEOUT,
            connections=1,
            parse_price=settings.parse_price,
            reconnect=settings.reconnect,
            name=f"{settings.name}-history",
        )

    def _resume_reading(self) -> None:
        self.network.resume_reading()

    def start(self, listener: Any) -> None:
        """Raises RuntimeError where the system has no more threads to give."""
        live_runs[self] = listener
        try:
            # In this order, for the callback side ends by waiting for the network side.
            self.network.start()
            self.delivery.start()
        except RuntimeError:
            self._callbacks_ended(None)
            raise
        self._tell_watchers()

    def abandon(self) -> None:
        """End at once: no further call begins. Waits for nothing."""
        self.stopping = True
        self.delivery.abandon()
        self.iterations.close_all()
        self.network.stop()

    def add(self, symbol: Symbol) -> None:
        settings, name = self._settings, str(symbol)
        timing = settings.timing
        stream = Stream(
            name,
            Session(settings.reconnect, timing, key_can_change=settings.keys.can_change),
            Decoder(name, name if isinstance(symbol, Pair) else None, settings.parse_price),
            Counters(),
            settings.target(symbol),
        )
        self.streams = {**self.streams, name: stream}
        self.counters[name] = stream.counters
        self.network.add(stream)

    def remove(self, name: str) -> None:
        self.streams = {other: stream for other, stream in self.streams.items() if other != name}
        self.counters.pop(name, None)
        self.network.remove(name)

    def stop(self, timeout: float, drain: bool) -> bool:
        """Whether it ended in time."""
        self.stopping = True
        here = self.delivery.runs_here()
        self.iterations.close_own()
        if here or not drain:
            self.delivery.abandon()
            self.iterations.close_all()
        self.network.stop(drain=drain and not here)
        if here:
            return True
        ended = self.wait(timeout)
        if not ended:
            self.delivery.abandon()
            self.iterations.close_all()
            logger.warning(
                "stop: not ended after %g s; if a callback still runs, no further one will be called", timeout
            )
        return ended

    @property
    def elsewhere(self) -> bool:
        """Whether this is a copy in a forked process, where its threads are not."""
        return self.pid != os.getpid()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end; the threads have gone then, too. False if it has not come in time."""
        patience_ends = None if timeout is None else time.monotonic() + timeout
        if not self.ended.wait(timeout):
            return False
        # They have nothing left to do but to return; unless the network side is within a `parse_price` that hangs.
        left = None if patience_ends is None else max(_LAST_STEPS, patience_ends - time.monotonic())
        self.network.join(left)
        self.delivery.join(_LAST_STEPS)
        return not self.network.alive

    async def wait_async(self, timeout: float | None) -> bool:
        """The same in an event loop, which goes on meanwhile."""
        # Only here, for asyncio is a tenth of what it takes to import this package.
        from .delivery.async_iteration import wait_until

        return await wait_until(self.ended.is_set, self._watchers, timeout) and self.wait(0.0)

    @property
    def state(self) -> State:
        if self.error is not None:
            return State.FAILED
        if self.stopping or self.ended.is_set():
            return State.STOPPED
        states = {stream.session.state for stream in self.streams.values()}
        for state in (State.FAILED, State.RECONNECTING, State.CONNECTING, State.IDLE):
            if state in states:
                return State.CONNECTING if state is State.IDLE else state
        return State.STREAMING if states else State.IDLE

    def stats(self) -> ListenerStats:
        depths = self.delivery.depths()
        streams = {
            name: snapshot(stream.counters, stream.session.state, stream.session.reconnects, depths.get(name, 0))
            for name, stream in self.streams.items()
        }
        return add_up(self.state, streams, self.delivery.depth(), self.delivery.peak)

    def _network_ended(self, outcome: BaseException | None) -> None:
        if outcome is not None and self.error is None:
            self.error = outcome
            if not isinstance(outcome, FinxStreamerError):
                logger.error("the network side ended with %s", type(outcome).__name__, exc_info=outcome)
        self.delivery.finish()

    def _callbacks_ended(self, crash: BaseException | None) -> None:
        if crash is not None and self.error is None:
            self.error = crash
        self.network.stop()
        self.network.join(1.0)
        self.iterations.end()
        live_runs.pop(self, None)
        self.ended.set()
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()


@attrs.frozen
class Settings:
    """What the constructor was given, checked."""

    keys: KeySource = attrs.field(repr=False)
    endpoint: Endpoint
    exchanges: frozenset[str] | None
    parse_price: Callable[[str], Any]
    backfill: bool
    dispatch: str
    queue_size: int
    overflow: str
    reconnect: ReconnectPolicy | None
    timing: Timing
    context: Callable[[], ssl.SSLContext] = attrs.field(repr=False)
    proxies: ProxyChoice
    max_message_size: int
    name: str

    def target(self, symbol: Symbol | None) -> ConnectionConfig:
        """What to connect to; None: the functions."""
        return ConnectionConfig(
            self.endpoint,
            symbol,
            self.keys,
            self.timing.connect_timeout,
            self.context,
            self.max_message_size,
            self.proxies,
        )


# Listeners that run, to be stopped when the interpreter exits: a daemon thread that is frozen in mid-call is no end.
live_runs: dict[Run, Any] = {}


def _stop_all_at_exit() -> None:
    runs = [run for run in tuple(live_runs) if not run.elsewhere]
    for run in runs:
        run.abandon()
    patience_ends = time.monotonic() + HURRIED_STOP
    for run in runs:
        run.ended.wait(max(0.0, patience_ends - time.monotonic()))


atexit.register(_stop_all_at_exit)
