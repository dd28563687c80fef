"""The user's callbacks: who is registered for what, and how one is called."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from ..errors import CallbackError, ConfigurationError, FinxStreamerError, printable_lines
from ..streaming.counters import Counters
from ..values import Event, Gap, Notice, Tick
from .frontend import Place

logger = logging.getLogger("finx_streamer")


def _make_printable(record: logging.LogRecord) -> bool:
    """Have the traceback formatted here: an exception of the user's may quote what the server sent, and logs are read
    on terminals."""
    if record.exc_info and not record.exc_text:
        record.exc_text = printable_lines(logging.Formatter().formatException(record.exc_info))
    return True


logger.addFilter(_make_printable)

Callback = Callable[..., Any]
EVENTS = ("tick", "error", "notice", "state", "gap")


@attrs.frozen
class _Registered:
    callback: Callback
    pair: str | None
    #: What to call: in a notebook the callback with its output in the cell that registered it; else the callback.
    call: Callback
    place: Place | None = None

    def replaces(self, earlier: _Registered) -> bool:
        """Whether a rerun of a notebook cell registered the same callback again. False in a script."""
        if self.place is None or earlier.place is None or self.pair != earlier.pair:
            return False
        return self.place.redefines(self.callback, earlier.place, earlier.callback)


class _TickCallbacks(dict[str, tuple[Callback, ...]]):
    """The tick callbacks for each pair, in order of registration; found out when a pair is first asked for."""

    def __init__(self, registered: tuple[_Registered, ...]) -> None:
        super().__init__()
        self._registered = registered

    def __missing__(self, pair: str) -> tuple[Callback, ...]:
        found = self[pair] = tuple(r.call for r in self._registered if r.pair in (None, pair))
        return found


class Callbacks:
    """A registry that may be changed from any thread while another one calls what is in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_event: dict[str, tuple[_Registered, ...]] = dict.fromkeys(EVENTS, ())
        #: Replaced at each change, so that who looks anew for each tick sees it.
        self.for_ticks = _TickCallbacks(())

    def add(self, event: str, callback: Callback, pair: str | None = None, place: Place | None = None) -> None:
        """Register a callback. `place` is the notebook cell that shows its output.

        Raises `ConfigurationError` for anything that can't be called.
        """
        if not callable(callback):
            raise ConfigurationError(f"on_{event}: {type(callback).__name__} is not callable; expected a function")
        if any(map(inspect.iscoroutinefunction, (callback, getattr(callback, "__call__", None)))):  # noqa: B004
            # Calling it would run nothing.
            raise ConfigurationError(f"on_{event}: {callback!r} is a coroutine function; expected a plain function")
        new = _Registered(callback, pair, callback if place is None else place.route(callback), place)
        with self._lock:
            kept = [earlier for earlier in self._by_event[event] if not new.replaces(earlier)]
            self._by_event[event] = (*kept, new)
            self.for_ticks = _TickCallbacks(self._by_event["tick"])

    def remove(self, callback: Callback) -> None:
        """Undo every registration of it. Raises `ConfigurationError` where there is none."""
        with self._lock:
            # By equality and not identity: a bound method is a new object at each access.
            kept = {event: tuple(r for r in rs if r.callback != callback) for event, rs in self._by_event.items()}
            if kept == self._by_event:
                raise ConfigurationError(f"remove_callback: {callback!r} is not registered")
            self._by_event = kept
            self.for_ticks = _TickCallbacks(self._by_event["tick"])

    def of(self, event: str) -> tuple[Callback, ...]:
        return tuple(registered.call for registered in self._by_event[event])

    def original(self, call: Callback) -> Callback:
        """The user's own callback, of what is called for it."""
        found = (r.callback for registered in self._by_event.values() for r in registered if r.call is call)
        return next(found, call)

    def place_of(self, callback: Callback) -> Place | None:
        """The notebook cell that registered it."""
        found = (r.place for registered in self._by_event.values() for r in registered if r.callback is callback)
        return next(found, None)


class CallbackRunner:
    """CallPool callbacks one at a time, and turns what they raise into errors. Owned by the callback side."""

    def __init__(
        self,
        callbacks: Callbacks,
        counters: Mapping[str, Counters],
        tell: Callable[[FinxStreamerError], None] | None = None,
    ) -> None:
        #: Set by `abandon`, from any thread: from then on no call begins.
        self.abandoned = False
        #: Set from any thread: a run of ticks has to end after the tick that is being handled.
        self.interrupted = False
        self._callbacks = callbacks
        self._counters = counters
        #: Takes errors that no `on_error` takes; None: the log does.
        self._tell = tell

    def abandon(self) -> None:
        """Begin no further call."""
        self.abandoned = self.interrupted = True

    def ticks(self, entries: Iterable[Tick | Event]) -> Event | None:
        """Call for each tick, in order, up to the first event, which is returned, or until interrupted."""
        callbacks = self._callbacks
        table = callbacks.for_ticks
        pair: str | None = None
        called: tuple[Callback, ...] = ()
        only: Callback | None = None
        for tick in entries:
            if type(tick) is not dict:
                return tick  # type: ignore[return-value]
            # Most ticks are of the same pair as the one before: the same object, and not merely an equal one.
            if tick["pair"] is not pair or callbacks.for_ticks is not table:
                table, pair = callbacks.for_ticks, tick["pair"]
                called = table[pair]
                only = called[0] if len(called) == 1 else None
            if self.abandoned:
                return None
            # Nearly always there is one, and a loop over one would double the cost of all that is here.
            if only is None:
                self._call_each(called, pair, tick)
            else:
                try:
                    only(tick)
                except Exception as cause:
                    self._failed(only, tick, cause, pair)
            if self.interrupted:
                return None
        return None

    def event(self, event: Event) -> None:
        payload = event.payload
        if isinstance(payload, FinxStreamerError):
            self.error(payload)
        elif isinstance(payload, Notice):
            self._call_all("notice", payload.symbol, payload)
        elif isinstance(payload, Gap):
            self._call_all("gap", payload.symbol, payload)
        else:
            self._call_all("state", event.symbol, event.symbol, payload)

    def error(self, error: FinxStreamerError) -> None:
        """Hand an error to `on_error`; to the log where nobody is registered."""
        callbacks = self._callbacks.of("error")
        if not callbacks and self._tell is not None:
            self._tell(error)
        elif not callbacks:
            # The traceback is of the user's own callback: it shows him where to look.
            logger.error("%s", error, exc_info=error.__cause__ if isinstance(error, CallbackError) else None)
        for callback in callbacks:
            if self.abandoned:
                return
            try:
                callback(error)
            except Exception as cause:
                # Not handed to on_error again: that would go round for ever.
                self._count(error.symbol)
                if self._tell is not None:
                    self._tell(self._error_of(callback, error, cause, error.symbol))
                else:
                    logger.exception("on_error callback %r raised while it handled: %s", callback, error)

    def _call_all(self, event: str, symbol: str | None, *arguments: object) -> None:
        self._call_each(self._callbacks.of(event), symbol, *arguments)

    def _call_each(self, callbacks: tuple[Callback, ...], symbol: str | None, *arguments: object) -> None:
        for callback in callbacks:
            if self.abandoned:
                return
            try:
                callback(*arguments)
            except Exception as cause:
                self._failed(callback, arguments[-1], cause, symbol)

    def _failed(self, callback: Callback, argument: object, cause: Exception, symbol: str | None) -> None:
        self._count(symbol)
        self.error(self._error_of(callback, argument, cause, symbol))

    def _error_of(self, call: Callback, argument: object, cause: Exception, symbol: str | None) -> CallbackError:
        error = CallbackError(self._callbacks.original(call), argument, symbol=symbol)
        error.__cause__ = cause
        return error

    def _count(self, symbol: str | None) -> None:
        counters = self._counters.get(symbol or "")
        if counters:
            counters.callback_errors += 1
