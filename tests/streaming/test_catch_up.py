"""History before a stream: the state machine alone, and in a simulated world of ticks, failures and connections."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.errors import DecodeError
from finx_streamer.streaming.catch_up import CATCH_UP_DELAYS, CatchUp, Past
from finx_streamer.streaming.delivered_window import DeliveredWindow, earlier, tick_key
from finx_streamer.streaming.recovery import (
    FIRST_TICK_TIMEOUT,
    MAX_BAD,
    MAX_UNSETTLED,
    Connect,
    Deliver,
    Fetch,
    Finish,
    Probe,
    Report,
    Step,
)
from finx_streamer.values import NEVER
from tests.support.effort import examples
from tests.support.recovery import PAIR, answer, at, history, only, seconds_of, tick
from tests.support.world import EMIT_IN_ORDER, EMIT_LATE, OTHER_MOVES, World

SECOND = timedelta(seconds=1)


def window_after(past: Past) -> DeliveredWindow:
    window = DeliveredWindow()
    past.seed(window)
    return window


def catch_up_after(past: Past) -> CatchUp:
    """A catch-up that waits for history."""
    recovery = CatchUp(PAIR, window_after(past))
    only(recovery.begin(), Fetch)
    return recovery


# Step by step.


def test_history_is_delivered_as_it_comes() -> None:
    """Except for the last second: a later tick may have an earlier time. The stream is opened at the end."""
    recovery = CatchUp(PAIR, window_after(Past(until=at(0))))
    assert only(recovery.begin(), Fetch) == Fetch(at(0), None, SECOND)
    assert recovery.deadline == NEVER
    first = only(recovery.page(history(tick(0), tick(1), tick(3))), Deliver)
    assert seconds_of(first.ticks) == [0.0, 1.0]
    assert recovery.history_until == at(2)
    second = only(recovery.page(history(tick(3.5), tick(9))), Deliver)
    assert seconds_of(second.ticks) == [3.0, 3.5]
    assert recovery.fetched(1.0) == Connect()


def test_the_seam_joins_history_and_the_stream() -> None:
    """The last second is requested again, with what has come since. The gap counts all ticks from history."""
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.page(history(tick(1), tick(2), tick(2.5))), Deliver)
    only(recovery.fetched(1.0), Connect)
    recovery.opened(2.0)
    fetch = only(recovery.hold([tick(4), tick(4)]), Fetch)
    assert (fetch.start, fetch.overlap) == (at(1.5), None)
    early, end = answer(recovery, history(tick(2), tick(2.2), tick(2.5), tick(3), tick(4), tick(4)))
    assert isinstance(early, Deliver)
    assert isinstance(end, Finish)
    assert seconds_of(early.ticks + end.before) == [2.0, 2.2, 2.5, 3.0]
    assert end.after == [tick(4), tick(4)]
    assert (end.gap.since, end.gap.until, end.gap.filled, end.gap.ticks) == (at(0), at(4), True, 5)


def test_without_any_tick_the_seam_is_tight() -> None:
    """A tick between the last page and the join is found, although none was delivered before."""
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.fetched(1.0), Connect)
    recovery.opened(2.0)
    assert recovery.deadline == 2.0 + FIRST_TICK_TIMEOUT
    assert only(recovery.wake(recovery.deadline), Fetch).start == at(0)
    end = only(answer(recovery, history(tick(7))), Finish)
    assert end.before == [tick(7, backfilled=True)]
    assert (end.gap.since, end.gap.until, end.gap.ticks) == (at(0), at(7), 1)


def test_without_ticks_at_all_the_gap_is_empty() -> None:
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.fetched(1.0), Connect)
    recovery.opened(2.0)
    only(recovery.wake(recovery.deadline), Fetch)
    end = only(recovery.fetched(3.0), Probe) and only(recovery.probe_answered(3.0), Finish)
    assert (end.gap.since, end.gap.until, end.gap.filled, end.gap.ticks) == (at(0), at(0), True, 0)


def test_ticks_of_an_earlier_run_are_counted() -> None:
    """Of three equal ticks, two were delivered before this run."""
    recovery = catch_up_after(Past(ticks=[tick(1), tick(2), tick(2)]))
    found = only(recovery.page(history(tick(1), tick(1.5), tick(2), tick(2), tick(2), tick(5))), Deliver)
    assert seconds_of(found.ticks) == [1.5, 2.0]


def test_another_series_is_not_delivered() -> None:
    """History without any tick of the earlier run would repeat all of them."""
    recovery = catch_up_after(Past(ticks=[tick(1), tick(2)]))
    end = only(recovery.page(history(tick(1, 5.0), tick(2, 5.0), tick(9))), Finish)
    assert (end.before, end.gap.filled) == ([], False)


def test_history_that_continues_sends_its_end_again() -> None:
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.page(history(tick(1), tick(2), tick(2.5), tick(3))), Deliver)
    recovery.restarted(at(2))
    found = only(recovery.page(history(tick(2), tick(2.5), tick(3), tick(8))), Deliver)
    assert seconds_of(found.ticks) == [2.0, 2.5, 3.0]


def test_pages_of_other_exchanges_count_as_progress() -> None:
    recovery = catch_up_after(Past(until=at(0)))
    assert recovery.page([], at(100)) is None
    assert recovery.history_until == at(99)


def test_a_temporary_failure_is_reported_and_retried() -> None:
    """History is requested again from where it was. After too many failures in a row, the stream is opened."""
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.page(history(tick(1), tick(5))), Deliver)
    for number, delay in enumerate(CATCH_UP_DELAYS, 1):
        error = only(recovery.fetch_failed("no history (away)", True, 10.0), Report).error
        assert (error.attempt, error.will_retry, error.retry_in) == (number, True, delay)
        assert recovery.deadline == 10.0 + delay
        assert only(recovery.wake(recovery.deadline), Fetch).start == at(4)
    only(recovery.fetch_failed("no history (away)", True, 10.0), Connect)


def test_a_page_ends_the_failures_in_a_row() -> None:
    recovery = catch_up_after(Past(until=at(0)))
    for second in range(3 * len(CATCH_UP_DELAYS)):
        recovery.fetch_failed("no history (away)", True, 10.0)
        only(recovery.wake(recovery.deadline), Fetch)
        recovery.page([tick(10.0 * second)])
    assert only(recovery.fetch_failed("no history (away)", True, 10.0), Report).error.attempt == 1


def test_a_refusal_is_not_retried() -> None:
    """The stream is opened. Its history is requested once more, and the refusal is reported as for any gap."""
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.fetch_failed("no history (unknown function)", False, 1.0), Connect)
    recovery.opened(2.0)
    only(recovery.hold([tick(3)]), Fetch)
    end = only(recovery.fetch_failed("no history (unknown function)", False, 3.0), Finish)
    assert (end.gap.since, end.gap.filled, end.after) == (at(0), False, [tick(3)])
    assert "unknown function" in str(end.error)


def test_ticks_that_cannot_be_read_are_counted_once_and_bounded() -> None:
    recovery = catch_up_after(Past(until=at(0)))
    errors = [DecodeError("bad price", str(number)) for number in range(MAX_BAD)]
    for _ in range(2):
        recovery.note_bad_ticks(errors)
    recovery.note_bad_ticks([DecodeError("bad price", f"more {number}") for number in range(5)])
    recovery.opened(2.0)
    recovery.hold([tick(3)])
    end = answer(recovery, history(tick(3)))[-1]
    assert isinstance(end, Finish)
    assert f"{MAX_BAD + 5:,} ticks of history can't be read" in str(end.error)


def test_a_first_live_tick_from_before_the_seam_hides_nothing() -> None:
    """The service plays a recording again, say: what history got before the join is delivered all the same."""
    recovery = catch_up_after(Past(until=at(0)))
    only(recovery.page(history(tick(1), tick(50), tick(50.5))), Deliver)
    only(recovery.fetched(1.0), Connect)
    recovery.opened(2.0)
    fetch = only(recovery.hold([tick(2)]), Fetch)
    assert (fetch.start, fetch.end) == (at(49.5), None)
    found = history(tick(50), tick(50.5), tick(51))
    steps = answer(recovery, found)
    ticks = [each for step in steps for each in (step.ticks if isinstance(step, Deliver) else step.before + step.after)]  # type: ignore[union-attr]
    assert Counter(seconds_of(ticks)) == Counter([2.0, 50.0, 50.5, 51.0])


def test_endless_history_of_one_moment_ends() -> None:
    """What waits is bounded. The stream is opened all the same: see `Resequencer._finish`."""
    recovery = catch_up_after(Past(until=at(0)))
    page = [tick(0.5, backfilled=True)] * (MAX_UNSETTLED // 4)
    end = only([step for _ in range(5) if (step := recovery.page(page)) is not None], Finish)
    assert not end.gap.filled


def test_reading_may_pause_meanwhile() -> None:
    """No unread tick belongs to a stream that isn't open."""
    recovery = catch_up_after(Past(until=at(0)))
    assert recovery.can_pause
    recovery.opened(1.0)
    assert not recovery.can_pause


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        (Past(), None),
        (Past(until=at(3)), at(3)),
        (Past(ticks=[tick(1), tick(2)]), at(2)),
        (Past(ticks=[tick(1)], log="log", number=7), None),
    ],
)
def test_a_past_says_from_when_history_is_needed(past: Past, expected: Any) -> None:
    assert past.history_until == expected


# A simulated world.


class LateWorld(World):
    """A market that the client joins in the middle: it wants everything from a time on."""

    def __init__(self, page_size: int, seed: int, begin: float, instant_history: bool) -> None:
        super().__init__(page_size, seed, instant_history)
        self.emitted.clear()
        self.delivered.clear()
        self.in_transit.clear()
        self.window = DeliveredWindow()
        self.connected = False
        self.begin = begin
        self.asked_to_connect = False
        self.joined_at: int | None = None
        self.round_start = at(begin)
        self.previous = len(self.emitted)

    def start(self) -> None:
        past = Past(until=at(self.begin))
        past.seed(self.window)
        self.recovery = CatchUp(PAIR, self.window)
        self.carry_out(self.recovery.begin())

    def connect(self) -> None:
        if self.asked_to_connect:
            if self.joined_at is None:
                self.joined_at = len(self.emitted)
            super().connect()

    def cut(self) -> None:
        if self.asked_to_connect:
            super().cut()

    def fail(self) -> None:
        """History fails."""
        if self.query is not None and self.recovery is not None and not self.asked_to_connect:
            self.query = None
            self.carry_out(self.recovery.fetch_failed("no history", True, self.now))

    def ask(self) -> None:
        """As before, but history may have gone on meanwhile."""
        again = self.query is not None and not self.asked_to_connect and self.rng.random() < 0.3
        while again and self.query is not None:
            # Without its last step, the pages up to the end.
            start, end = self.query
            found = sorted(
                ({**each, "backfilled": True} for each in self.emitted if start <= each["timestamp"]),
                key=lambda each: each["timestamp"],
            )
            again = False
            if found:
                assert self.recovery is not None
                self.carry_out(self.recovery.page(found))
                if self.recovery is not None:
                    restart = max(self.round_start, earlier(found[-1]["timestamp"], SECOND))
                    self.recovery.restarted(restart)
                    self.query = (restart, end)
        super().ask()

    def carry_out(self, step: Step | None) -> None:
        match step:
            case Fetch():
                self.round_start = step.start
                super().carry_out(step)
            case Connect():
                self.query = None
                self.asked_to_connect = True
            case Report():
                pass
            case _:
                super().carry_out(step)

    def settle(self) -> None:
        for _ in range(100):
            if not self.asked_to_connect:
                self.ask()
                self.wait()
        assert self.asked_to_connect
        super().settle()

    def assert_complete(self) -> None:
        """What history had before the join, from `begin` on, and everything since: each exactly once.

        A later tick with a time before `begin` may be lost with a connection, because it isn't looked for in history.
        """
        assert self.joined_at is not None
        wanted = Counter(tick_key(each) for each in self.emitted if each["timestamp"] >= at(self.begin))
        others = Counter(
            tick_key(each) for each in self.emitted[self.joined_at :] if each["timestamp"] < at(self.begin)
        )
        delivered = Counter(map(tick_key, self.delivered))
        assert wanted <= delivered <= wanted + others


MOVES = st.one_of(OTHER_MOVES, st.just(("fail",)))
BEGINS = st.sampled_from([-5.0, 0.0, 0.001, 0.03, 0.7, 5.0, 90_000.0])


@given(
    st.lists(EMIT_IN_ORDER, max_size=30),
    st.lists(st.one_of(EMIT_IN_ORDER, EMIT_IN_ORDER, MOVES), max_size=60),
    BEGINS,
    st.integers(1, 5),
    st.integers(0, 9),
)
@examples(500)
def test_history_and_stream_are_one_sequence(
    before: list[tuple[Any, ...]], moves: list[tuple[Any, ...]], begin: float, page_size: int, seed: int
) -> None:
    """Nothing is lost, doubled or out of order, wherever it is cut, and whenever history or connections fail."""
    world = LateWorld(page_size, seed, begin, instant_history=False)
    for _, *arguments in before:
        world.emit(*arguments)
    world.start()
    world.run(moves)
    world.assert_complete()
    times = [each["timestamp"] for each in world.delivered]
    if begin <= 0.0:  # live ticks may be from before it
        assert times == sorted(times)
    assert all(end.gap.filled for end in world.gaps)
    assert sum(each["backfilled"] for each in world.delivered) == sum(end.gap.ticks for end in world.gaps)


@given(
    st.lists(EMIT_LATE, max_size=30),
    st.lists(st.one_of(EMIT_LATE, EMIT_LATE, MOVES), max_size=60),
    BEGINS,
    st.integers(1, 5),
    st.integers(0, 9),
)
@examples(500)
def test_late_ticks_join_history_and_stream(
    before: list[tuple[Any, ...]], moves: list[tuple[Any, ...]], begin: float, page_size: int, seed: int
) -> None:
    """Ticks within the lateness are delivered once, on either side of the seam."""
    world = LateWorld(page_size, seed, begin, instant_history=True)
    for _, *arguments in before:
        world.emit(*arguments)
    world.start()
    world.run(moves)
    world.assert_complete()
