"""A pool of connections for function calls: callers wait for their answer and decode it on their own thread."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import attrs

from ..errors import (
    CallTimeout,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    FunctionError,
    ServerError,
)
from ..values import Notice
from ..wire.decoder import Decoder
from .call_scheduler import Call, CallScheduler, PoolSettings, Reply

#: Seconds that `close` waits for the thread.
_JOIN_TIMEOUT = 1.0


@attrs.frozen
class Answer:
    """The decoded answer, and `time.time_ns()` when its bytes were read."""

    message: dict[str, Any] = attrs.field(repr=False)
    received_ns: int


class PendingCall:
    """A call that begins at once, and whose answer you wait for later. For one thread.

    Args:
        pool: Makes it.
        call: The call.
        insist: If the server is silent, try once more on another connection.
    """

    def __init__(self, pool: CallPool, call: Call, insist: bool) -> None:
        self._pool = pool
        self._call = call
        self._insist = insist
        self._begun: SimpleQueue[None] = SimpleQueue()
        self._submit()

    def wait_begun(self) -> None:
        """Wait until the request is sent, or waits for a connection.

        Otherwise this thread goes on, keeps the GIL, and the request is sent much later.
        """
        with self._cancelling():
            self._begun.get()

    def wait(self) -> tuple[Call, Reply]:
        """Return the call that was answered, and its answer. Raises what `CallPool.call` does."""
        outcome = self._outcome()
        if self._insist and isinstance(outcome, CallTimeout) and self._call.met_silence:
            silence, call = ConnectionFailed("the server was silent on another connection"), self._call
            self._call = Call(call.function, call.arguments, call.timeout, self._pool.delays(), silence)
            self._submit()
            outcome = self._outcome()
        if isinstance(outcome, FinxStreamerError):
            raise outcome
        return self._call, outcome

    def cancel(self) -> None:
        """Give up. Closes the call's connection, unless the answer has arrived."""
        call, scheduler = self._call, self._call.scheduler
        if scheduler is not None and not call.finished:
            scheduler.loop.post(lambda: scheduler.finish(call, _closed(call)))

    def _submit(self) -> None:
        with self._cancelling():
            self._pool.submit(self._call, self._begun)

    def _outcome(self) -> Reply | FinxStreamerError:
        with self._cancelling():
            return self._call.outcome.get()

    @contextlib.contextmanager
    def _cancelling(self) -> Iterator[None]:
        """Cancel the call at an exception: after Ctrl-C, no one waits for its answer."""
        try:
            yield
        except BaseException:
            self.cancel()
            raise


class CallPool:
    """Makes function calls. Every method is for any thread."""

    def __init__(self, settings: PoolSettings) -> None:
        self.closed = False
        self._settings = settings
        self._pid = os.getpid()
        # Reentrant: a signal handler may close the pool.
        self._lock = threading.RLock()
        self._scheduler: CallScheduler | None = None
        self._running = False

    @property
    def connections(self) -> int:
        """How many connections are open."""
        connections = tuple(self._scheduler.connections) if self._scheduler is not None else ()
        return sum(connection.websocket is not None for connection in connections)

    def call(
        self, function: str, arguments: dict[str, Any], timeout: float, *, data: bool = False, insist: bool = False
    ) -> Answer:
        """Call a function and wait for its answer.

        Args:
            function: The name on the wire.
            arguments: Its arguments, without the key.
            timeout: Seconds until it is sent, retries included; and then for the answer, or since its last bytes, at
                most 6 times as long.
            data: The answer is ticks. Don't look for the key in it, which takes longer than to decode it.
            insist: If the server is silent, try once more on another connection.

        Raises:
            FunctionError: The server answered with an error, or the pool is closed.
            CallTimeout: No answer came in time.
            DecodeError: The answer isn't a JSON object.
            ConnectionFailed: There is no connection, and the policy doesn't retry.
            ConfigurationError: This is a forked process.
        """
        call, reply = self.begin(function, arguments, timeout, insist=insist).wait()
        message = Decoder(function, None, bounded=False, redact_notices=not data).decode(reply.payload, 0)
        if isinstance(message, DecodeError):
            raise message
        if isinstance(message, ServerError):
            raise call.error(message.message)
        assert isinstance(message, Notice), "without a pair, the decoder makes no ticks"
        return Answer(message.message, reply.received_ns)

    def call_for_list(self, function: str, arguments: dict[str, Any], timeout: float) -> tuple[list[Any], int]:
        """Call a function whose answer is a JSON array. Return it, and `time.time_ns()` when its bytes were read.

        The arguments and errors are those of `call`.
        """
        call, reply = self.begin(function, arguments, timeout, wants_list=True).wait()
        content = Decoder(function, None, bounded=False).decode_list(reply.payload)
        if isinstance(content, DecodeError):
            raise content
        if isinstance(content, ServerError):
            raise call.error(content.message)
        return content, reply.received_ns

    def begin(
        self,
        function: str,
        arguments: dict[str, Any],
        timeout: float,
        *,
        insist: bool = False,
        wants_list: bool = False,
    ) -> PendingCall:
        """Begin a call, as `call` does. All its errors are raised by `PendingCall.wait`."""
        call = Call(function, arguments, timeout, self.delays(), wants_list=wants_list)
        return PendingCall(self, call, insist)

    def delays(self) -> Iterator[float]:
        """The waits between the attempts of a call, in seconds."""
        settings = self._settings
        count = len(settings.config.servers.endpoints)
        return iter(()) if settings.policy is None else settings.policy.delays(servers=count)

    def submit(self, call: Call, begun: SimpleQueue[None]) -> None:
        """Begin a call, and put something into `begun` then. If it can't begin, that is its outcome."""

        def submit() -> None:
            try:
                scheduler.submit(call)
            finally:
                begun.put(None)

        def discard() -> None:
            call.finish(_closed(call))
            begun.put(None)

        try:
            scheduler = call.scheduler = self._started(call)
            if not scheduler.loop.post(submit, discard):
                raise _closed(call)
        except FinxStreamerError as error:
            call.finish(error)
            begun.put(None)

    def close(self, wait: bool = True) -> None:
        """Close the connections; calls in progress raise `FunctionError`. Idempotent. `wait`: for the thread."""
        if self._pid != os.getpid():
            self._close_copies()
            return
        with self._lock:
            self.closed = True
        if self._scheduler is not None:
            self._scheduler.loop.stop()
            if wait:
                self._scheduler.loop.join(_JOIN_TIMEOUT)

    def check_process(self) -> None:
        """Raises `ConfigurationError` in a forked process."""
        if self._pid != os.getpid():
            raise ConfigurationError(
                "this client was created before a fork, and its connections belong to the parent process; create a "
                "new FunctionClient in this process"
            )

    def _started(self, call: Call) -> CallScheduler:
        """The scheduler, which starts with the first call: a client that isn't used costs nothing."""
        self.check_process()
        with self._lock:
            self._check_open(call)
            try:
                if self._scheduler is None:
                    self._scheduler = CallScheduler(self._settings)
                if not self._running:
                    self._scheduler.loop.start()
            except (RuntimeError, OSError) as cause:
                # The system has no more threads or open files.
                self._scheduler = None
                reason = cause.strerror if isinstance(cause, OSError) else None
                raise ConnectionFailed((reason or str(cause)).lower()) from None
            self._running = True
            # Again, because a signal handler may have closed it before there was anything to stop.
            self._check_open(call)
            return self._scheduler

    def _check_open(self, call: Call) -> None:
        if self.closed:
            if self._scheduler is not None:
                self._scheduler.loop.stop()
            raise _closed(call)

    def _close_copies(self) -> None:
        """In a forked process: close the sockets without a word to the server, which the parent process talks to."""
        self.closed = True
        for connection in self._scheduler.connections if self._scheduler is not None else ():
            if connection.websocket is not None:
                connection.websocket.wire.socket.close()


def _closed(call: Call) -> FunctionError:
    return call.error("the client is closed")
