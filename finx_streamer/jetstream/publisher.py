"""`JetStreamPublisher`, the public class: its thread, and what it takes from listeners."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import partial
from itertools import product
from typing import Any, Self

from nats.aio.client import Client

from .. import metered
from ..base_listener import BaseListener
from ..config import checks as check
from ..config.redaction import hides_arguments
from ..errors import ConfigurationError, FinxStreamerError, PublishError
from .feed import Feed
from .log_end import LoggedTrade, find_starts, find_trades
from .publisher_stats import PublisherStats
from .sender import Sender, lost_text
from .settings import Nats, check_stream_name
from .stream import StreamSettings

logger = logging.getLogger("finx_streamer")

#: Seconds that what waits may take at the end of the process, without `close`.
_AT_EXIT = 1.0
#: How many messages at the end of the log may have holes between them, per message that one publisher may have in
#: flight: several publishers may have been killed at the same time.
_TAIL = 4


class JetStreamPublisher:
    """Publishes the ticks and Greeks of listeners to NATS JetStream, each once::

        from finx_streamer import StreamListener
        from finx_streamer.jetstream import JetStreamPublisher

        listener = StreamListener("BTC:USDC", endpoint="demo", parse_price=str)
        with JetStreamPublisher("nats://127.0.0.1:4222") as publisher:
            publisher.attach(listener)
            with listener:
                listener.join(timeout=1)

    Any number of publishers may publish the same pairs: NATS stores each tick once. A publisher that starts again goes
    on where the log ends.

    While NATS is away, up to `max_waiting` ticks wait, and then the source waits for up to 5 s. After that, live ticks
    are dropped, and reported with `PublishError`. Ticks from history wait as long as it takes.

    Args:
        url (str | Iterable[str] | Nats | None): `nats://HOST[:PORT]`, several of them as a list or separated by commas,
            or a `Nats`. None reads the environment variable NATS_URL.
        stream (str): The name of the stream. It's created if it doesn't exist.

        max_age (timedelta | None): How long the stream keeps ticks. `timedelta(0)` has no limit.
        max_bytes (int | None): How many bytes the stream keeps. -1 has no limit.
        replicas (int | None): On how many servers of a cluster.
        duplicate_window (timedelta | None): For how long NATS remembers which ticks it has. None in these four means
            what the stream has; a new stream gets one day, no limit, 1 and 2 minutes.

        max_waiting (int): How many ticks may wait to be sent.
        max_in_flight (int): How many ticks may be sent before the first of them is acknowledged.
        on_error (Callable[[PublishError], object] | None): Called for each problem, on the publisher's thread. It must
            be quick. None logs them.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    @hides_arguments
    def __init__(
        self,
        url: str | Iterable[str] | Nats | None = None,
        stream: str = "FINX",
        *,
        max_age: timedelta | None = None,
        max_bytes: int | None = None,
        replicas: int | None = None,
        duplicate_window: timedelta | None = None,
        max_waiting: int = 65_536,
        max_in_flight: int = 4_096,
        on_error: Callable[[PublishError], object] | None = None,
    ) -> None:
        self._nats = Nats.of(url)
        self._stream = StreamSettings(
            name=check_stream_name(stream),
            max_age=_duration("max_age", max_age, timedelta(0)),
            max_bytes=None if max_bytes is None else check.integer("max_bytes", max_bytes, -1),
            replicas=None if replicas is None else check.integer("replicas", replicas, 1),
            duplicate_window=_duration("duplicate_window", duplicate_window, timedelta(seconds=0.1)),
        )
        self._max_waiting = check.integer("max_waiting", max_waiting, 1)
        self._max_in_flight = check.integer("max_in_flight", max_in_flight, 1)
        if on_error is not None and not callable(on_error):
            raise check.refusal("on_error", on_error, "a callable or None")
        self._on_error = on_error
        self._tail = _TAIL * self._max_in_flight
        self._closed = False
        self._loop = asyncio.new_event_loop()
        started: Future[Sender] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="finx-publisher", daemon=True)
        self._thread.start()
        self._sender = started.result()
        _open.add(self)
        metered.register("publisher", self)

    def attach(self, listener: BaseListener) -> None:
        """Publish all that a listener gets. Call it before the listener starts.

        Each start of the listener then waits until NATS can be reached, and looks up where the log ends: pairs begin
        there, and what was missed comes from history. A pair without ticks in the log begins with its first live tick.

        Args:
            listener (StreamListener): With `parse_price=str`, so that prices stay as they were sent, and with the
                default `overflow`.

        Raises:
            ConfigurationError: The listener runs, changes prices, drops ticks, or records.
        """
        feed = self.new_feed()
        listener.begin_at(partial(self._find_starts, feed))
        listener.on_tick(feed.on_tick)
        listener.on_greeks(feed.on_greeks)
        listener.on_gap(feed.on_gap)
        listener.on_state(feed.on_state)

    def new_feed(self) -> Feed:
        """Return what publishes the ticks of one source. For this package."""
        return Feed(self._sender.waiting)

    def find_trades(
        self, exchanges: Iterable[str], pairs: Iterable[str]
    ) -> Mapping[tuple[str, str], list[LoggedTrade]]:
        """Return the last trades in the log, by exchange and pair. Waits for NATS. For this package."""
        wanted = list(product(exchanges, pairs))
        found: Mapping[tuple[str, str], list[LoggedTrade]] = self._ask(self._look_up(find_trades, wanted))
        return found

    def connect(self, timeout: float | None = None) -> bool:
        """Wait until NATS can be reached and the stream is ready.

        Args:
            timeout: Seconds; None for no limit.

        Returns:
            False after `timeout`.

        Raises:
            ConfigurationError: The stream can't be used, or NATS has no JetStream.
            AuthenticationError: NATS refuses the credentials.
            ConnectionFailed: TLS can't work.
        """
        limit = check.seconds_or_none("timeout", timeout, zero=True)
        try:
            self._ask(self._wait_for_client(), limit)
        except TimeoutError:
            return False
        return True

    @property
    def name(self) -> str:
        """The stream's name, by which metrics call the publisher."""
        return self._stream.name

    @property
    def stats(self) -> PublisherStats:
        """A snapshot of all counters."""
        sender = self._sender
        return sender.counters.snapshot(len(sender.waiting), len(sender.window), sender.is_well)

    def close(self, timeout: float = 10.0) -> bool:
        """Send what waits, and end. Idempotent. Stop the listeners before.

        Args:
            timeout: Seconds to wait for acknowledgements. What isn't acknowledged by then is lost, and reported.

        Returns:
            Whether everything was acknowledged.
        """
        limit = check.seconds("timeout", timeout, zero=True)
        if not self._closed:
            self._closed = True
            _open.discard(self)
            self._sender.waiting.close()
            self._call(self._sender.close)
            self._thread.join(limit)
            self._call(self._task.cancel)
            self._thread.join(_AT_EXIT)
        return not self._lost_at_end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        stats = self.stats
        state = "closed" if self._closed else "connected" if stats.connected else "not connected"
        return (
            f"<{type(self).__name__} {self._stream.name} at {self._nats} {state}: {stats.published} published, "
            f"{stats.waiting} waiting, {stats.lost} lost>"
        )

    # The thread.

    def _run(self, started: Future[Sender]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._send(started))

    async def _send(self, started: Future[Sender]) -> None:
        self._lost_at_end = 0
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        sender = Sender(self._nats, self._stream, self._max_waiting, self._max_in_flight, self._report)
        started.set_result(sender)
        try:
            await sender.run()
            if sender.failure is not None:
                # Whoever starts a listener gets this error.
                sender.waiting.close()
                await sender.closing.wait()
        finally:
            self._lost_at_end = sender.waiting.end() + len(sender.window)
            if lost := self._lost_at_end:
                sender.counters.lost += lost
                self._report(PublishError(f"{lost_text(lost)}: NATS hasn't acknowledged them before the end", lost))

    def _report(self, error: PublishError) -> None:
        if self._on_error is None:
            logger.error("%s", error)
            return
        try:
            self._on_error(error)
        except Exception:
            logger.exception("on_error failed")

    def _call(self, function: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(function)

    def _ask(self, question: Any, timeout: float | None = None) -> Any:
        """Run a coroutine on the thread, and return its result."""
        if self._closed:
            question.close()
            raise ConfigurationError("the publisher is closed; create another one")
        future = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return future.result(timeout)
        finally:
            future.cancel()

    async def _wait_for_client(self) -> None:
        await self._sender.has_client.wait()
        if (failure := self._sender.failure) is not None:
            raise failure

    def _find_starts(self, feed: Feed, pairs: list[str]) -> Mapping[str, datetime]:
        """Return where pairs begin that are added to a listener. Waits for NATS."""
        starts: Mapping[str, datetime] = self._ask(self._look_up(find_starts, pairs))
        feed.begin(pairs)
        return starts

    async def _look_up(self, find: Callable[[Client, str, list[Any], int], Awaitable[Any]], wanted: list[Any]) -> Any:
        while True:
            await self._wait_for_client()
            client = self._sender.client
            with contextlib.suppress(FinxStreamerError):
                if client is not None:
                    return await find(client, self._stream.name, wanted, self._tail)
            await asyncio.sleep(0.5)


def _duration(name: str, value: Any, least: timedelta) -> timedelta | None:
    if value is not None:
        check.require(
            isinstance(value, timedelta) and value >= least, name, value, f"a timedelta of at least {least}, or None"
        )
    return value  # type: ignore[no-any-return]


#: Publishers that were not closed.
_open: weakref.WeakSet[JetStreamPublisher] = weakref.WeakSet()


def _close_all() -> None:
    for publisher in list(_open):
        publisher.close(_AT_EXIT)


def _abandon_all() -> None:
    """In a fork, nothing is sent: the thread isn't there."""
    for publisher in list(_open):
        publisher._sender.waiting.abandon()
        publisher._closed = True
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
# A daemon thread that the interpreter freezes would leave its connection open.
atexit.register(_close_all)
