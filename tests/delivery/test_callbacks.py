"""The registry of callbacks, and the runner that calls them."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any

import pytest

from finx_streamer.delivery.callbacks import CallbackRunner, Callbacks
from finx_streamer.errors import CallbackError, ConfigurationError, FinxStreamerError, TicksDropped
from finx_streamer.streaming.counters import Counters
from finx_streamer.values import Event, Gap, Notice, State, Tick

PAIR = "BTC:USDC"
EVENTS = ("tick", "error", "notice", "state", "gap")
TICK: Tick = {"pair": PAIR, "price": 19200.84}  # type: ignore[typeddict-item]
GAP = Gap(PAIR, datetime.now(UTC), datetime.now(UTC), filled=True, ticks=3)


class Stage:
    """A registry, a runner, the counters of one stream, and a record of the calls."""

    def __init__(self) -> None:
        self.called: list[Any] = []
        self.callbacks = Callbacks()
        self.counters = {PAIR: Counters()}
        self.runner = CallbackRunner(self.callbacks, self.counters)

    def record(self, name: str) -> Any:
        """Return a callback that records its name and arguments."""
        return lambda *arguments: self.called.append((name, *arguments))

    def method(self, argument: object) -> None:
        self.called.append(argument)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def fails(*arguments: object) -> None:
    raise ZeroDivisionError("division by zero")


# The registry.


def test_callbacks_are_called_in_order_of_registration(stage: Stage) -> None:
    """The first registered is the first called."""
    for name in "abc":
        stage.callbacks.add("tick", stage.record(name))
    stage.runner.run_ticks([TICK])
    assert stage.called == [("a", TICK), ("b", TICK), ("c", TICK)]


def test_a_callback_may_be_limited_to_a_pair(stage: Stage) -> None:
    """It gets only that pair's ticks, and keeps its place in the order."""
    stage.callbacks.add("tick", stage.record("all"))
    stage.callbacks.add("tick", stage.record("mine"), PAIR)
    stage.callbacks.add("tick", stage.record("other"), "ETH:USDC")
    stage.runner.run_ticks([TICK])
    assert stage.called == [("all", TICK), ("mine", TICK)]


def test_changes_of_the_registry_apply_from_the_next_tick(stage: Stage) -> None:
    """Callbacks may be added and removed at any time."""
    late, early = stage.record("late"), stage.record("early")
    stage.callbacks.add("tick", early)
    stage.runner.run_ticks([TICK])
    stage.callbacks.add("tick", late)
    stage.runner.run_ticks([TICK])
    stage.callbacks.remove(early)
    stage.runner.run_ticks([TICK])
    assert [name for name, _ in stage.called] == ["early", "early", "late", "late"]


def test_a_callback_may_remove_itself_while_it_is_called(stage: Stage) -> None:
    """The other callbacks still get the tick, and it isn't called again."""

    def once(tick: Tick) -> None:
        stage.called.append("once")
        stage.callbacks.remove(once)

    stage.callbacks.add("tick", once)
    stage.callbacks.add("tick", lambda tick: stage.called.append("always"))
    stage.runner.run_ticks([TICK])
    stage.runner.run_ticks([TICK])
    assert stage.called == ["once", "always", "always"]


def test_remove_undoes_every_registration(stage: Stage) -> None:
    """It removes the callback from all events and pairs."""
    callback = stage.record("x")
    stage.callbacks.add("tick", callback)
    stage.callbacks.add("tick", callback, PAIR)
    stage.callbacks.add("notice", callback)
    stage.callbacks.remove(callback)
    assert [stage.callbacks.of(event) for event in EVENTS] == [()] * len(EVENTS)


def test_a_bound_method_can_be_removed(stage: Stage) -> None:
    """Each access creates a new object, but all of them are equal."""
    stage.callbacks.add("tick", stage.method)
    stage.callbacks.remove(stage.method)
    stage.runner.run_ticks([TICK])
    assert stage.called == []


def test_removing_an_unregistered_callback_is_an_error(stage: Stage) -> None:
    """The message names the callback."""
    with pytest.raises(ConfigurationError, match=r"fails.* is not registered"):
        stage.callbacks.remove(fails)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("value", [None, 5, "print"])
def test_rejects_a_value_that_is_not_callable(stage: Stage, event: str, value: Any) -> None:
    """The message names the argument and the type."""
    with pytest.raises(ConfigurationError, match=f"^on_{event}: {type(value).__name__} is not callable"):
        stage.callbacks.add(event, value)


@pytest.mark.parametrize("event", EVENTS)
def test_rejects_a_coroutine_function(stage: Stage, event: str) -> None:
    """Calling it would run nothing, and every tick would be lost silently."""

    async def later(*_: object) -> None: ...

    class Later:
        async def __call__(self, *_: object) -> None: ...

    for callback in (later, functools.partial(later), Later(), Later().__call__):
        with pytest.raises(ConfigurationError, match=f"^on_{event}: .* is a coroutine function"):
            stage.callbacks.add(event, callback)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_rejects_a_generator_function(stage: Stage, event: str, kind: str) -> None:
    """Calling it would run nothing, too."""

    def generator(*_: object) -> Iterator[None]:
        yield

    async def async_generator(*_: object) -> AsyncIterator[None]:
        yield

    class Callable_:
        __call__ = generator if kind == "generator" else async_generator

    plain = {"generator": generator, "async generator": async_generator}[kind]
    for callback in (plain, functools.partial(plain), Callable_()):
        with pytest.raises(ConfigurationError, match=f"^on_{event}: .* is an? {kind} function"):
            stage.callbacks.add(event, callback)


@pytest.mark.parametrize("event", EVENTS)
def test_rejects_a_wrong_number_of_arguments(stage: Stage, event: str) -> None:
    """`WebSocketApp` passes itself as the first argument. We don't."""
    too_many = {
        "state": [lambda app, symbol, state: None, lambda symbol: None, lambda: None],
    }.get(event, [lambda app, value: None, lambda: None, lambda *, value: None])
    for callback in too_many:
        with pytest.raises(ConfigurationError, match=rf"^on_{event}: .* can't be called with .*def on_{event}\("):
            stage.callbacks.add(event, callback)


def test_accepts_what_can_be_called(stage: Stage) -> None:
    """Builtins without a signature, defaults, variable arguments, bound methods, and decorated functions."""

    def fills_in(function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def call(*arguments: object) -> object:
            return function("app", *arguments)

        return call

    @fills_in
    def with_app(app: str, tick: Tick) -> None: ...

    queue: SimpleQueue[Tick] = SimpleQueue()
    accepted = [print, [].append, queue.put, dict, lambda tick, more=1: None, lambda *all: None, with_app, stage.method]
    for callback in accepted:
        stage.callbacks.add("tick", callback)
    assert len(stage.callbacks.of("tick")) == len(accepted)


@pytest.mark.parametrize("others", [0, 1])
def test_a_callback_that_returns_coroutines_is_reported_once(stage: Stage, others: int) -> None:
    """The error points to `async for`. Python's warning about the coroutine doesn't appear."""

    async def later(tick: Tick) -> None: ...

    stage.callbacks.add("tick", lambda tick: later(tick))
    for _ in range(others):
        stage.callbacks.add("tick", stage.record("other"))
    errors: list[FinxStreamerError] = []
    stage.callbacks.add("error", errors.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage.runner.run_ticks([TICK, TICK, TICK])
    assert [type(error) for error in errors] == [CallbackError]
    assert "async for tick in listener" in str(errors[0])
    assert stage.called == [("other", TICK)] * 3 * others


# The calls.


def test_each_event_goes_to_its_own_callbacks(stage: Stage) -> None:
    """State callbacks also get the symbol."""
    for event in EVENTS:
        stage.callbacks.add(event, stage.record(event))
    error, notice = TicksDropped(3), Notice(PAIR, {"keepAlive": True}, 1)
    stage.runner.run_event(Event(error, PAIR))
    stage.runner.run_event(Event(notice, PAIR))
    stage.runner.run_event(Event(State.STREAMING, PAIR))
    stage.runner.run_ticks([TICK])
    assert stage.called == [
        ("error", error),
        ("notice", notice),
        ("state", PAIR, State.STREAMING),
        ("tick", TICK),
    ]


@pytest.mark.parametrize("event", ["tick", "notice", "state"])
def test_a_callback_that_raises_stops_nothing(stage: Stage, event: str) -> None:
    """The error has the callback, its argument and the cause, it is counted, and the next callback is called."""
    stage.callbacks.add(event, fails)
    stage.callbacks.add(event, stage.record("next"))
    errors: list[FinxStreamerError] = []
    stage.callbacks.add("error", errors.append)
    given = {"tick": TICK, "notice": Notice(PAIR, {}, 1), "state": State.STREAMING}[event]
    if event == "tick":
        stage.runner.run_ticks([TICK])
    else:
        stage.runner.run_event(Event(given, PAIR))  # type: ignore[arg-type]
    [error] = errors
    assert isinstance(error, CallbackError)
    assert (error.callback, error.argument, error.symbol) == (fails, given, PAIR)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert [name for name, *_ in stage.called] == ["next"]
    assert stage.counters[PAIR].callback_errors == 1


def test_an_error_callback_that_raises_is_logged_and_counted(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The new error isn't passed to `on_error`, which could go on forever, and the next callback is called."""
    stage.callbacks.add("error", fails)
    stage.callbacks.add("error", stage.record("next"))
    error = TicksDropped(3, symbol=PAIR)
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        stage.runner.report(error)
    assert stage.called == [("next", error)]
    assert len(caplog.records) == 1
    assert "3 ticks dropped" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert stage.counters[PAIR].callback_errors == 1


def test_without_on_error_errors_are_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The record has no traceback, because it would only show internals."""
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        stage.runner.run_event(Event(TicksDropped(3, symbol=PAIR), PAIR))
    [record] = caplog.records
    assert record.getMessage() == f"{PAIR}: 3 ticks dropped: callbacks are slower than the stream"
    assert record.exc_info is None


def test_without_on_error_the_traceback_of_a_callback_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It shows the line that failed."""
    stage.callbacks.add("tick", fails)
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        stage.runner.run_ticks([TICK])
    assert 'raise ZeroDivisionError("division by zero")' in caplog.text


@pytest.mark.parametrize("event", ["tick", "error"])
def test_control_characters_in_a_logged_traceback_are_escaped(
    stage: Stage, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    """A user's exception may quote the server; the traceback keeps its line breaks."""

    def quotes(argument: object) -> None:
        raise ValueError("unknown exchange \x1b]0;title\x07\nsecond line\r\u202e") from KeyError("\x9b")

    stage.callbacks.add(event, quotes)
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        if event == "tick":
            stage.runner.run_ticks([TICK])
        else:
            stage.runner.report(TicksDropped(3))
    assert "ValueError: unknown exchange \\x1b]0;title\\x07\nsecond line\\r\\u202e\n" in caplog.text + "\n"
    assert [line for line in caplog.text.split("\n") if not line.isprintable()] == []


def test_with_on_error_errors_are_not_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The callback decides what to log."""
    stage.callbacks.add("error", stage.record("mine"))
    with caplog.at_level(logging.DEBUG, "finx_streamer"):
        stage.runner.report(TicksDropped(3))
    assert caplog.records == []


@pytest.mark.parametrize("event", EVENTS)
def test_after_abandon_no_call_begins(stage: Stage, event: str) -> None:
    """The remaining callbacks of the current tick or event aren't called either."""

    def abandon(*arguments: object) -> None:
        stage.called.append("first")
        stage.runner.abandoned = True

    stage.callbacks.add(event, abandon)
    stage.callbacks.add(event, stage.record("second"))
    events = {"error": TicksDropped(3), "notice": Notice(PAIR, {}, 1), "state": State.STREAMING, "gap": GAP}
    for _ in range(2):
        if event == "tick":
            stage.runner.run_ticks([TICK])
        else:
            stage.runner.run_event(Event(events[event], PAIR))
    assert stage.called == ["first"]


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("event", EVENTS)
def test_exceptions_that_end_the_program_pass_through(stage: Stage, event: str, raised: type[BaseException]) -> None:
    """SystemExit and KeyboardInterrupt are not callback errors."""

    def leave(*arguments: object) -> None:
        raise raised

    stage.callbacks.add(event, leave)
    events = {"error": TicksDropped(3), "notice": Notice(PAIR, {}, 1), "state": State.STREAMING, "gap": GAP}
    call = stage.runner.run_ticks if event == "tick" else stage.runner.run_event
    with pytest.raises(raised):
        call([TICK] if event == "tick" else Event(events[event], PAIR))  # type: ignore[arg-type]
    assert stage.counters[PAIR].callback_errors == 0


def test_a_failure_without_a_stream_is_not_counted(stage: Stage) -> None:
    """A callback that fails on an event of the listener still causes an error."""
    stage.callbacks.add("state", fails)
    stage.callbacks.add("error", stage.record("error"))
    stage.runner.run_event(Event(State.STREAMING))
    assert [name for name, *_ in stage.called] == ["error"]
    assert stage.counters[PAIR].callback_errors == 0
