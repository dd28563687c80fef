"""The registry of callbacks, and how they are called."""

from __future__ import annotations

import functools
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from finx_streamer.delivery.callbacks import EVENTS, CallbackRunner, Callbacks
from finx_streamer.errors import CallbackError, ConfigurationError, FinxStreamerError, TicksDropped
from finx_streamer.streaming.counters import Counters
from finx_streamer.values import Event, Gap, Notice, State, Tick

PAIR = "BTC:USDC"
TICK: Tick = {"pair": PAIR, "price": 19200.84}  # type: ignore[typeddict-item]
GAP = Gap(PAIR, datetime.now(UTC), datetime.now(UTC), filled=True, ticks=3)


class Stage:
    """A registry, a caller, the counters of one stream, and a list of what was called."""

    def __init__(self) -> None:
        self.called: list[Any] = []
        self.callbacks = Callbacks()
        self.counters = {PAIR: Counters()}
        self.runner = CallbackRunner(self.callbacks, self.counters)

    def note(self, name: str) -> Any:
        """A callback that notes its name and what it was given."""
        return lambda *arguments: self.called.append((name, *arguments))

    def method(self, argument: object) -> None:
        self.called.append(argument)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def fails(*arguments: object) -> None:
    raise ZeroDivisionError("division by zero")


# The registry.


def test_several_callbacks_are_called_in_order_of_registration(stage: Stage) -> None:
    """The first registered is the first called."""
    for name in "abc":
        stage.callbacks.add("tick", stage.note(name))
    stage.runner.run_ticks([TICK])
    assert stage.called == [("a", TICK), ("b", TICK), ("c", TICK)]


def test_a_callback_may_be_narrowed_to_a_pair(stage: Stage) -> None:
    """It gets that pair's ticks alone, in its place among the others."""
    stage.callbacks.add("tick", stage.note("all"))
    stage.callbacks.add("tick", stage.note("mine"), PAIR)
    stage.callbacks.add("tick", stage.note("other"), "ETH:USDC")
    stage.runner.run_ticks([TICK])
    assert stage.called == [("all", TICK), ("mine", TICK)]


def test_what_is_registered_or_removed_later_counts_from_the_next_tick(stage: Stage) -> None:
    """The registry may change while ticks flow."""
    late, early = stage.note("late"), stage.note("early")
    stage.callbacks.add("tick", early)
    stage.runner.run_ticks([TICK])
    stage.callbacks.add("tick", late)
    stage.runner.run_ticks([TICK])
    stage.callbacks.remove(early)
    stage.runner.run_ticks([TICK])
    assert [name for name, _ in stage.called] == ["early", "early", "late", "late"]


def test_a_callback_may_remove_itself_while_it_is_called(stage: Stage) -> None:
    """The others of the same tick are still called, and it is not called again."""

    def once(tick: Tick) -> None:
        stage.called.append("once")
        stage.callbacks.remove(once)

    stage.callbacks.add("tick", once)
    stage.callbacks.add("tick", lambda tick: stage.called.append("always"))
    stage.runner.run_ticks([TICK])
    stage.runner.run_ticks([TICK])
    assert stage.called == ["once", "always", "always"]


def test_remove_undoes_every_registration(stage: Stage) -> None:
    """For all events and pairs."""
    callback = stage.note("x")
    stage.callbacks.add("tick", callback)
    stage.callbacks.add("tick", callback, PAIR)
    stage.callbacks.add("notice", callback)
    stage.callbacks.remove(callback)
    assert [()] * len(EVENTS) == [stage.callbacks.of(event) for event in EVENTS]


def test_a_bound_method_can_be_removed(stage: Stage) -> None:
    """Each access makes a new object of it; they are equal."""
    stage.callbacks.add("tick", stage.method)
    stage.callbacks.remove(stage.method)
    stage.runner.run_ticks([TICK])
    assert stage.called == []


def test_what_is_not_registered_can_not_be_removed(stage: Stage) -> None:
    """A mistake is told, with the callback's name."""
    with pytest.raises(ConfigurationError, match=r"fails.* is not registered"):
        stage.callbacks.remove(fails)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("value", [None, 5, "print"])
def test_what_can_not_be_called_is_refused(stage: Stage, event: str, value: Any) -> None:
    """The refusal names the argument and the type."""
    with pytest.raises(ConfigurationError, match=f"^on_{event}: {type(value).__name__} is not callable"):
        stage.callbacks.add(event, value)


@pytest.mark.parametrize("event", EVENTS)
def test_a_coroutine_function_is_refused(stage: Stage, event: str) -> None:
    """Calling it would run nothing, and every tick would be lost without a word."""

    async def later(*_: object) -> None: ...

    class Later:
        async def __call__(self, *_: object) -> None: ...

    for callback in (later, functools.partial(later), Later(), Later().__call__):
        with pytest.raises(ConfigurationError, match=f"^on_{event}: .* is a coroutine function"):
            stage.callbacks.add(event, callback)


# The calls.


def test_each_event_goes_to_its_own_callbacks(stage: Stage) -> None:
    """Errors to `error`, notices to `notice`, states to `state` with the symbol before them."""
    for event in EVENTS:
        stage.callbacks.add(event, stage.note(event))
    error, notice = TicksDropped(3), Notice(PAIR, {"keepAlive": True}, 1)
    stage.runner.run_event(Event(error, PAIR))
    stage.runner.run_event(Event(notice, PAIR))
    stage.runner.run_event(Event(State.STREAMING, PAIR))
    stage.runner.run_ticks([TICK])
    assert [("error", error), ("notice", notice), ("state", PAIR, State.STREAMING), ("tick", TICK)] == stage.called


@pytest.mark.parametrize("event", ["tick", "notice", "state"])
def test_a_callback_that_raises_stops_nothing(stage: Stage, event: str) -> None:
    """It is counted, told with the callback, its argument and the cause, and the next one is called."""
    stage.callbacks.add(event, fails)
    stage.callbacks.add(event, stage.note("next"))
    errors: list[FinxStreamerError] = []
    stage.callbacks.add("error", errors.append)
    given = {"tick": TICK, "notice": Notice(PAIR, {}, 1), "state": State.STREAMING}[event]
    if event == "tick":
        stage.runner.run_ticks([TICK])
    else:
        stage.runner.run_event(Event(given, PAIR))  # type: ignore[arg-type]
    [error] = errors
    assert isinstance(error, CallbackError)
    assert (fails, given, PAIR) == (error.callback, error.argument, error.symbol)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert [name for name, *_ in stage.called] == ["next"]
    assert stage.counters[PAIR].callback_errors == 1


def test_an_error_callback_that_raises_is_logged_and_counted(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It is not told to `on_error` again, which would go round for ever; the next is called."""
    stage.callbacks.add("error", fails)
    stage.callbacks.add("error", stage.note("next"))
    error = TicksDropped(3, symbol=PAIR)
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        stage.runner.report(error)
    assert [("next", error)] == stage.called
    assert len(caplog.records) == 1
    assert "3 ticks dropped" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert stage.counters[PAIR].callback_errors == 1


def test_with_nobody_registered_errors_are_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Never printed, and without a traceback of ours."""
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        stage.runner.run_event(Event(TicksDropped(3, symbol=PAIR), PAIR))
    assert [(f"{PAIR}: 3 ticks dropped: callbacks are slower than the stream", None)] == [
        (record.getMessage(), record.exc_info) for record in caplog.records
    ]


def test_with_nobody_registered_a_callbacks_traceback_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It shows the user the line of his own that failed."""
    stage.callbacks.add("tick", fails)
    with caplog.at_level(logging.ERROR, "finx_streamer"):
        stage.runner.run_ticks([TICK])
    assert 'raise ZeroDivisionError("division by zero")' in caplog.text


@pytest.mark.parametrize("event", ["tick", "error"])
def test_what_a_server_sent_does_not_act_on_the_terminal_by_way_of_an_exception(
    stage: Stage, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    """An exception of the user's that quotes an exchange is logged escaped; its lines stay lines."""

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


def test_with_somebody_registered_errors_are_not_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Who handles an error decides what to log."""
    stage.callbacks.add("error", stage.note("mine"))
    with caplog.at_level(logging.DEBUG, "finx_streamer"):
        stage.runner.report(TicksDropped(3))
    assert caplog.records == []


@pytest.mark.parametrize("event", EVENTS)
def test_after_abandon_no_call_begins(stage: Stage, event: str) -> None:
    """Not even the next callback of the tick or event that is being delivered."""

    def abandon(*arguments: object) -> None:
        stage.called.append("first")
        stage.runner.abandoned = True

    stage.callbacks.add(event, abandon)
    stage.callbacks.add(event, stage.note("second"))
    events = {"error": TicksDropped(3), "notice": Notice(PAIR, {}, 1), "state": State.STREAMING, "gap": GAP}
    for _ in range(2):
        if event == "tick":
            stage.runner.run_ticks([TICK])
        else:
            stage.runner.run_event(Event(events[event], PAIR))
    assert stage.called == ["first"]


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("event", EVENTS)
def test_what_wants_to_end_the_program_is_let_through(stage: Stage, event: str, raised: type[BaseException]) -> None:
    """SystemExit and KeyboardInterrupt are no mistakes of a callback."""

    def leave(*arguments: object) -> None:
        raise raised

    stage.callbacks.add(event, leave)
    events = {"error": TicksDropped(3), "notice": Notice(PAIR, {}, 1), "state": State.STREAMING, "gap": GAP}
    call = stage.runner.run_ticks if event == "tick" else stage.runner.run_event
    with pytest.raises(raised):
        call([TICK] if event == "tick" else Event(events[event], PAIR))  # type: ignore[arg-type]
    assert stage.counters[PAIR].callback_errors == 0


def test_an_error_of_no_stream_is_counted_nowhere(stage: Stage) -> None:
    """A callback that fails on a listener's own event finds no counters, and that is no fault."""
    stage.callbacks.add("state", fails)
    stage.callbacks.add("error", stage.note("error"))
    stage.runner.run_event(Event(State.STREAMING))
    assert [name for name, *_ in stage.called] == ["error"]
    assert stage.counters[PAIR].callback_errors == 0
