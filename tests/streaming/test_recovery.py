"""Gap recovery without sockets: step by step, and in a simulated world of ticks, connections and history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.streaming.delivered_window import DeliveredWindow, tick_key
from finx_streamer.streaming.recovery import (
    FIRST_TICK_TIMEOUT,
    MAX_UNSETTLED,
    RETRY_DELAYS,
    Deliver,
    Fetch,
    Finish,
    Probe,
    Recovery,
)
from finx_streamer.values import Event, State, Tick
from tests.support.effort import examples
from tests.support.recovery import PAIR, answer, at, history, only, recovery_after, seconds_of, tick, window_of
from tests.support.world import EMIT_IN_ORDER, EMIT_LATE, OTHER_MOVES, World

# One gap, step by step.


def test_missed_ticks_come_before_the_live_ones() -> None:
    """Ticks that only history has come first, then the gap, then the live ticks."""
    recovery = recovery_after(tick(0), tick(1))
    fetch = only(recovery.hold([tick(4), tick(5)]), Fetch)
    assert fetch.start == at(-1)
    assert at(6) < fetch.end <= at(7)
    assert recovery.page(history(tick(0), tick(1), tick(2), tick(3), tick(4), tick(5))) is None
    only(recovery.fetched(0.2), Probe)
    end = only(recovery.probe_answered(0.3), Finish)
    assert seconds_of(end.before) == [2.0, 3.0]
    assert all(each["backfilled"] for each in end.before)
    assert end.after == [tick(4), tick(5)]
    assert (end.gap.since, end.gap.until, end.gap.filled, end.gap.ticks) == (at(1), at(4), True, 2)
    assert end.error is None


def test_equal_ticks_are_counted() -> None:
    """Of five equal ticks two were delivered before the gap and one is live, so two were missed."""
    recovery = recovery_after(tick(1), tick(1))
    recovery.hold([tick(1)])
    end = only(answer(recovery, history(*[tick(1)] * 5)), Finish)
    assert end.before == [tick(1, backfilled=True)] * 2
    assert (end.gap.ticks, end.gap.filled) == (2, True)


def test_a_gap_in_which_nothing_was_missed_is_filled() -> None:
    """If history has only ticks that were received, the gap has no ticks."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(2)])
    end = only(answer(recovery, history(tick(1), tick(2))), Finish)
    assert (end.gap.ticks, end.gap.filled, end.before) == (0, True, [])


def test_late_ticks_are_found_within_the_lateness() -> None:
    """Missed ticks may be earlier than the last delivered one, and later than the first live one."""
    recovery = recovery_after(tick(5))
    recovery.hold([tick(6)])
    early, end = answer(recovery, history(tick(3.5), tick(4.9), tick(5), tick(6), tick(6.5)))
    assert isinstance(early, Deliver)
    assert isinstance(end, Finish)
    assert seconds_of(early.ticks + end.before) == [3.5, 4.9]
    assert seconds_of(end.after) == [6.0, 6.5]
    assert [each["backfilled"] for each in end.after] == [False, True]  # type: ignore[index]


def test_a_tick_in_transit_was_not_missed() -> None:
    """A tick that is in history, and arrives before the pong, is delivered once."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history(tick(1), tick(2), tick(3), tick(3.1)))
    only(recovery.fetched(0.1), Probe)
    assert recovery.hold([tick(3.1)]) is None
    end = only(recovery.probe_answered(0.2), Finish)
    assert end.after == [tick(3), tick(3.1)]


def test_history_is_fetched_again_if_counts_are_ambiguous() -> None:
    """A tick that arrives after the fetch may equal a missed one: history is fetched again, to count correctly."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history(tick(1), tick(3), tick(3)))
    only(recovery.fetched(0.1), Probe)
    recovery.hold([tick(3)])
    assert recovery.probe_answered(0.2) is None
    assert recovery.deadline == pytest.approx(0.2 + RETRY_DELAYS[0])
    only(recovery.wake(recovery.deadline), Fetch)
    end = only(answer(recovery, history(tick(1), tick(3), tick(3), tick(3))), Finish)
    assert end.before == [tick(3, backfilled=True)]
    assert end.after == [tick(3), tick(3)]


def test_history_that_is_behind_is_fetched_again() -> None:
    """While history lacks the first live tick, it may lack missed ones, too."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    assert answer(recovery, history(tick(1))) == []
    only(recovery.wake(recovery.deadline), Fetch)
    end = only(answer(recovery, history(tick(1), tick(2), tick(3))), Finish)
    assert end.before == [tick(2, backfilled=True)]
    assert end.gap.filled


def test_a_gap_is_not_filled_if_history_stays_behind() -> None:
    """The ticks found so far are delivered, and the gap reports that there may be more."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    for _ in RETRY_DELAYS:
        assert answer(recovery, history(tick(1), tick(2))) == []
        only(recovery.wake(recovery.deadline), Fetch)
    end = only(answer(recovery, history(tick(1), tick(2))), Finish)
    assert end.before == [tick(2, backfilled=True)]
    assert (end.gap.filled, end.gap.ticks) == (False, 1)
    assert "does not reach the first live tick" in str(end.error)


def test_a_foreign_history_is_not_used() -> None:
    """A history without any of the delivered ticks is another series: it would deliver everything twice."""
    recovery = recovery_after(tick(0.5), tick(1))
    recovery.hold([tick(3)])
    end = only(answer(recovery, history(tick(0.5, 1.01), tick(1, 1.01), tick(2), tick(3))), Finish)
    assert (end.before, end.after, end.gap.filled) == ([], [tick(3)], False)
    assert "none of the ticks" in str(end.error)


def test_a_history_that_lost_delivered_ticks_is_used() -> None:
    """Missing ticks from before the gap say nothing about those in the gap."""
    recovery = recovery_after(tick(0.5), tick(1))
    recovery.hold([tick(3)])
    end = only(answer(recovery, history(tick(2), tick(3))), Finish)
    assert end.before == [tick(2, backfilled=True)]
    assert end.gap.filled


def test_a_gap_is_not_filled_if_time_goes_backwards() -> None:
    """When a recording restarts, history has its times twice."""
    recovery = recovery_after(tick(100), tick(101), tick(102))
    end = only(recovery.hold([tick(1)]), Finish)
    assert (end.before, end.after, end.gap.filled) == ([], [tick(1)], False)
    assert "went backwards" in str(end.error)


def test_one_tick_with_a_wrong_time_does_no_harm() -> None:
    """A single time far ahead does not count as the stream's time."""
    recovery = recovery_after(tick(1), tick(9e6), tick(2))
    recovery.hold([tick(4)])
    end = only(answer(recovery, history(tick(1), tick(2), tick(3), tick(4))), Finish)
    assert end.before == [tick(3, backfilled=True)]
    assert end.gap.filled


def test_in_a_quiet_market_history_is_fetched_after_a_timeout() -> None:
    """Missed ticks don't wait for a live one."""
    recovery = recovery_after(tick(1))
    assert recovery.deadline == FIRST_TICK_TIMEOUT
    assert recovery.wake(FIRST_TICK_TIMEOUT / 2) is None
    assert only(recovery.wake(FIRST_TICK_TIMEOUT), Fetch).end is None
    end = only(answer(recovery, history(tick(1), tick(2), tick(3))), Finish)
    assert end.before == [tick(2, backfilled=True), tick(3, backfilled=True)]
    assert end.gap.until == at(3)


def test_without_history_the_live_ticks_are_released() -> None:
    """If the fetch fails, held ticks and events go out in order."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    event = Event(State.RECONNECTING, PAIR)
    recovery.hold_event(event)
    recovery.hold([tick(4)])
    end = recovery.finish("unknown function")
    assert end.after == [tick(3), event, tick(4)]
    assert (end.gap.filled, end.gap.ticks) == (False, 0)
    assert str(end.error) == "BTC:USDC: gap not filled: unknown function"


def test_a_long_gap_is_delivered_page_by_page() -> None:
    """Ticks well before the first live one are delivered without waiting for the other pages."""
    recovery = recovery_after(tick(0))
    recovery.hold([tick(100)])
    delivered: list[Tick] = []
    for page in range(10):
        step = recovery.page(history(*(tick(page * 10 + second) for second in range(10))))
        delivered += step.ticks if isinstance(step, Deliver) else []
    assert seconds_of(delivered) == [float(second) for second in range(1, 97)]
    last, end = answer(recovery, [tick(100)])
    assert isinstance(last, Deliver)
    assert isinstance(end, Finish)
    assert seconds_of(last.ticks + end.before) == [97.0, 98.0, 99.0]
    assert end.gap.ticks == 99


def test_while_reading_is_paused_no_pong_is_needed() -> None:
    """No pong is read then. Ticks that are later than the held ones by more than the lateness are still unread."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    assert not recovery.can_pause
    recovery.hold([tick(3), tick(7)])
    assert not recovery.can_pause
    recovery.hold([tick(7.1)])
    assert recovery.can_pause
    recovery.reading_paused(0.0)
    recovery.fetched(0.1)
    only(recovery.wake(recovery.deadline), Fetch)
    recovery.page(history(tick(1), tick(2), tick(3), tick(3), tick(4.9), tick(5.2)))
    end = only(recovery.fetched(0.1), Finish)
    assert (end.before, end.gap.filled) == ([tick(2, backfilled=True)], True)
    assert end.after == [tick(3), tick(3), tick(4.9, backfilled=True), tick(7), tick(7.1)]


def test_a_lost_connection_replaces_the_pong() -> None:
    """Ticks in transit are lost with the connection, so they are taken from history."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history(tick(1), tick(2), tick(3), tick(3.5)))
    only(recovery.fetched(0.1), Probe)
    end = only(recovery.lost(0.2), Finish)
    assert end.before == [tick(2, backfilled=True)]
    assert end.after == [tick(3), tick(3.5, backfilled=True)]


def test_an_unanswered_ping_is_not_awaited_forever() -> None:
    """When the caller says that it is overdue, missed ticks are delivered and the doubt is reported."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history(tick(1), tick(2), tick(3)))
    only(recovery.fetched(1.0), Probe)
    assert recovery.wake(1e9) is None
    end = only(recovery.overdue(1e9), Finish)
    assert end.before == [tick(2, backfilled=True)]
    assert not end.gap.filled
    assert "did not answer a ping" in str(end.error)


def test_a_hanging_history_is_not_awaited_forever() -> None:
    """When it is overdue, the live ticks are released after the ticks found so far."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(20)])
    deliver = only(recovery.page(history(tick(1), tick(2), tick(9))), Deliver)
    assert deliver.ticks == [tick(2, backfilled=True)]
    end = only(recovery.overdue(30.0), Finish)
    assert (end.gap.filled, end.gap.ticks, end.before, end.after) == (False, 1, [], [tick(20)])
    assert "history did not answer" in str(end.error)


def test_a_recovery_may_be_overdue_between_two_fetches() -> None:
    """The ticks of the last answer are delivered."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    assert answer(recovery, history(tick(1), tick(2))) == []
    end = only(recovery.overdue(30.0), Finish)
    assert (end.gap.filled, end.before, end.after) == (False, [tick(2, backfilled=True)], [tick(3)])
    assert "does not reach" in str(end.error)


def test_a_new_connection_extends_the_gap() -> None:
    """Ticks missed between two connections within one gap belong to it."""
    recovery = recovery_after(tick(1))
    recovery.hold([tick(3)])
    recovery.lost(0.1)
    recovery.opened(0.2)
    only(recovery.hold([tick(5)]), Fetch)
    end = only(answer(recovery, history(tick(1), tick(2), tick(3), tick(4), tick(5))), Finish)
    assert end.before == [tick(2, backfilled=True)]
    assert end.after == [tick(3), tick(4, backfilled=True), tick(5)]
    assert end.gap.until == at(5)


@pytest.mark.parametrize("live", [[], [tick(1.0)]], ids=["no live tick", "all at one time"])
def test_endless_history_ends_the_gap(live: list[Tick]) -> None:
    """The ticks that wait for a decision are bounded, even if no live tick or time shows where to end."""
    recovery = recovery_after(tick(0.0))
    only(recovery.hold(live) if live else recovery.wake(FIRST_TICK_TIMEOUT), Fetch)
    page = [tick(0.5, backfilled=True)] * (MAX_UNSETTLED // 4)
    end = only([step for _ in range(5) if (step := recovery.page(page)) is not None], Finish)
    assert (end.gap.filled, end.after) == (False, live)
    assert "history has more ticks than can be kept" in str(end.error)


def test_a_gap_is_not_filled_if_its_first_moment_is_not_remembered() -> None:
    """If the last time before the gap had too many ticks to count, the missed ones of that time are unknown."""
    recovery = Recovery(PAIR, window_of(*[tick(5)] * 30, size=10), 0.0)
    recovery.hold([tick(7)])
    end = answer(recovery, history(tick(6), tick(7)))[-1]
    assert isinstance(end, Finish)
    assert end.before == [tick(6, backfilled=True)]
    assert not end.gap.filled
    assert "than are remembered" in str(end.error)


def test_a_tick_missed_behind_a_wrong_time_is_found_or_reported() -> None:
    """If the last delivered tick was far ahead, the gap is not called filled without the missed tick."""
    recovery = Recovery(PAIR, window_of(tick(0), tick(1), tick(60)), 0.0)
    known = history(tick(0), tick(1), tick(2), tick(3), tick(60))
    step = recovery.hold([tick(3)])
    steps = [step] if step is not None else []
    if isinstance(step, Fetch):
        fetch = only(step, Fetch)
        steps = answer(recovery, [each for each in known if fetch.start <= each["timestamp"] < fetch.end])
    end = steps[-1]
    assert isinstance(end, Finish)
    found = [each for step in steps if isinstance(step, Deliver) for each in step.ticks] + end.before
    assert not end.gap.filled or seconds_of(found) == [2.0]


def test_a_tick_that_was_ahead_in_a_long_run_is_not_fetched() -> None:
    """If one exchange is ahead by less than the lateness, its delivered ticks are remembered."""
    delivered: list[Tick] = []
    window = DeliveredWindow()
    for run in range(41):
        ticks = [tick(run * 0.1 + number * 0.0015) for number in range(64)]
        ticks[20] = tick(run * 0.1 + 0.03 + 0.9, exchange="OKX")
        window.extend(ticks)
        delivered += ticks
    recovery = Recovery(PAIR, window, 0.0)
    live = tick(4.2)
    fetch = only(recovery.hold([live]), Fetch)
    known = history(*(each for each in [*delivered, live] if fetch.start <= each["timestamp"] < fetch.end))
    end = answer(recovery, known)[-1]
    assert isinstance(end, Finish)
    assert (end.gap.ticks, end.gap.filled) == (0, True)


def pause_if_possible(recovery: Recovery) -> None:
    """Do what a caller without room does."""
    if recovery.can_pause:
        recovery.reading_paused(0.0)


def test_an_unread_late_tick_is_delivered_once() -> None:
    """A late tick that history has, and that is unread for lack of room, was not missed."""
    recovery = Recovery(PAIR, window_of(tick(1)), 0.0)
    recovery.hold([tick(3), tick(4)])
    pause_if_possible(recovery)
    recovery.page(history(tick(1), tick(3), tick(3.5), tick(4)))
    step = recovery.fetched(0.1)
    if isinstance(step, Probe):
        recovery.hold([tick(3.5)])
        step = recovery.probe_answered(0.2)
    end = only(step, Finish)
    assert (end.gap.ticks, end.gap.filled) == (0, True)


def test_a_missed_tick_ahead_of_the_live_ones_is_found_without_room() -> None:
    """A missed tick that is later than the first live one by less than the lateness is found, or reported."""
    recovery = Recovery(PAIR, window_of(tick(1)), 0.0)
    recovery.hold([tick(3), tick(3.1)])
    pause_if_possible(recovery)
    recovery.page(history(tick(1), tick(3), tick(3.1), tick(3.5, exchange="OKX")))
    step = recovery.fetched(0.1)
    if isinstance(step, Probe):
        step = recovery.probe_answered(0.2)
    end = only(step, Finish)
    assert not end.gap.filled or end.gap.ticks == 1


# A simulated world.


@given(
    st.lists(st.one_of(EMIT_IN_ORDER, EMIT_IN_ORDER, OTHER_MOVES), max_size=60), st.integers(1, 5), st.integers(0, 9)
)
@examples(500)
def test_ticks_in_order_stay_in_order(moves: list[tuple[Any, ...]], page_size: int, seed: int) -> None:
    """Nothing is lost, doubled or out of order, whenever connections break and history answers."""
    world = World(page_size, seed)
    world.run(moves)
    world.assert_complete()
    times = [each["timestamp"] for each in world.delivered]
    assert times == sorted(times)
    assert all(end.gap.filled for end in world.gaps)
    assert sum(each["backfilled"] for each in world.delivered) == sum(end.gap.ticks for end in world.gaps)


@given(st.lists(st.one_of(EMIT_LATE, EMIT_LATE, OTHER_MOVES), max_size=60), st.integers(1, 5), st.integers(0, 9))
@examples(500)
def test_late_ticks_are_neither_lost_nor_doubled(moves: list[tuple[Any, ...]], page_size: int, seed: int) -> None:
    """Ticks within the lateness are delivered once, and live ones keep their order.

    History answers at once: this market may advance by a day between two pages, and a late tick that history gets
    after a page was read is only found within the lateness.
    """
    world = World(page_size, seed, instant_history=True)
    world.run(moves)
    world.assert_complete()
    live = [tick_key(each) for each in world.delivered if not each["backfilled"]]
    rest = iter(map(tick_key, world.emitted))
    assert all(key in rest for key in live)
