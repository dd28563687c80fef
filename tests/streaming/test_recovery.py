"""What is missing after a reconnect: the merge on its own, in a world of ticks, wires and a history."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.streaming.delivered_window import _MOST_NAMES, DeliveredWindow, _names
from finx_streamer.streaming.recovery import (
    FIRST_WAIT,
    MOST_TOLD,
    PAUSES,
    Deliver,
    Fetch,
    Finish,
    Probe,
    Recovery,
    Step,
)
from finx_streamer.values import Tick
from tests.support.effort import examples

START = datetime(2022, 7, 2, 23, 59, 50, tzinfo=UTC)
PONG = object()
SECOND = timedelta(seconds=1)


def tick(seconds: float, price: float = 1.0, exchange: str = "BINANCE", backfilled: bool = False) -> Tick:
    """A tick so many seconds after the start."""
    moment = START + timedelta(microseconds=round(seconds * 1e6))
    return {
        "pair": "BTC:USDC",
        "date": moment.date().isoformat(),
        "time": moment.time().isoformat() + "Z",
        "exchange": exchange,
        "price": price,
        "timestamp": moment,
        "received_ns": 0,
        "backfilled": backfilled,
    }


def line(of: Tick) -> tuple[Any, ...]:
    return of["exchange"], of["timestamp"], of["price"]


def keys(*ticks: Tick) -> list[tuple[Any, ...]]:
    """What a trail keeps of them."""
    return [(each["exchange"], each["timestamp"], each["price"]) for each in ticks]


def history(ticks: list[Tick]) -> list[Tick]:
    """The same ticks as history gives them: sorted, and in no order where the times are equal."""
    found: list[Tick] = [{**each, "backfilled": True} for each in ticks]
    random.Random(0).shuffle(found)
    return sorted(found, key=lambda each: each["timestamp"])


def after_outage(*delivered: Tick, margin: timedelta = 2 * SECOND) -> Recovery:
    """A recovery that begins at 0 s, after these ticks were delivered one by one, and one long before."""
    trail = DeliveredWindow(margin)
    for each in (tick(-100), *delivered):
        trail.extend([each])
    return Recovery("BTC:USDC", trail, 0.0)


def only(steps: list[Step], kind: type) -> Any:
    """The one step there is, which is of this kind."""
    assert [kind] == [type(step) for step in steps]
    return steps[0]


def told_apart(recovery: Recovery, found: list[Tick], now: float = 1.0) -> list[Step]:
    """What comes of one page from history, the end of it and the answer to the ping."""
    steps = recovery.page(found)
    steps += [step for step in recovery.fetched(now) if type(step) is not Probe]
    return steps + recovery.answered(now)


# One gap, step by step.


def test_lost_ticks_come_before_the_live_ones() -> None:
    """What history knows beyond what was delivered and received comes first, then the gap, then the live ticks."""
    recovery = after_outage(tick(0), tick(1))
    fetch = only(recovery.hold([tick(4), tick(5)]), Fetch)
    assert tick(1)["timestamp"] - 2 * SECOND == fetch.start
    assert tick(6)["timestamp"] < fetch.end <= tick(7)["timestamp"]
    assert recovery.page(history([tick(0), tick(1), tick(2), tick(3), tick(4), tick(5)])) == []
    only(recovery.fetched(0.2), Probe)
    end = only(recovery.answered(0.3), Finish)
    assert [(each["timestamp"] - START).total_seconds() for each in end.before] == [2.0, 3.0]
    assert all(each["backfilled"] for each in end.before)
    assert [tick(4), tick(5)] == end.after
    assert (tick(1)["timestamp"], tick(4)["timestamp"], True, 2) == (
        end.gap.since,
        end.gap.until,
        end.gap.filled,
        end.gap.ticks,
    )
    assert end.error is None


def test_equal_lines_are_counted() -> None:
    """Of five equal trades two were delivered before and one is live: two were lost."""
    recovery = after_outage(tick(1), tick(1))
    recovery.hold([tick(1)])
    end = only(told_apart(recovery, history([tick(1)] * 5)), Finish)
    assert [tick(1, backfilled=True)] * 2 == end.before
    assert (end.gap.ticks, end.gap.filled) == (2, True)


def test_nothing_lost_is_a_filled_gap_of_no_ticks() -> None:
    """Where history knows no more than was received, the gap says so."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(2)])
    end = only(told_apart(recovery, history([tick(1), tick(2)])), Finish)
    assert (end.gap.ticks, end.gap.filled, end.before) == (0, True, [])


def test_late_ticks_are_looked_for_within_the_margin() -> None:
    """A lost tick whose time is before the last delivered one is found as well."""
    recovery = after_outage(tick(5))
    recovery.hold([tick(6)])
    found = history([tick(3.5), tick(4.9), tick(5), tick(6), tick(6.5)])
    early, end = told_apart(recovery, found)
    assert isinstance(early, Deliver)
    assert isinstance(end, Finish)
    assert [(each["timestamp"] - START).total_seconds() for each in early.ticks + end.before] == [3.5, 4.9]
    # It was sent before the first live tick, which was late itself.
    assert [(each["timestamp"] - START).total_seconds() for each in end.after] == [6.0, 6.5]
    assert [each["backfilled"] for each in end.after] == [False, True]


def test_a_tick_on_its_way_is_not_lost() -> None:
    """What history knows already, and the stream brings before the answer to the ping, is delivered once."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history([tick(1), tick(2), tick(3), tick(3.1)]))
    only(recovery.fetched(0.1), Probe)
    assert recovery.hold([tick(3.1)]) == []
    end = only(recovery.answered(0.2), Finish)
    assert [tick(3), tick(3.1)] == end.after


def test_equal_ticks_that_come_meanwhile_make_it_ask_again() -> None:
    """Where a tick of the first live one's time comes after the question, history is asked anew to count right."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history([tick(1), tick(3), tick(3)]))
    only(recovery.fetched(0.1), Probe)
    recovery.hold([tick(3)])
    assert recovery.answered(0.2) == []
    assert recovery.deadline == pytest.approx(0.2 + PAUSES[0])
    only(recovery.wake(recovery.deadline), Fetch)
    end = only(told_apart(recovery, history([tick(1), tick(3), tick(3), tick(3)])), Finish)
    assert [tick(3, backfilled=True)] == end.before
    assert [tick(3), tick(3)] == end.after


def test_a_history_that_is_behind_is_asked_again() -> None:
    """While history does not know the first live tick it may not know the lost ones: it is asked later."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    assert told_apart(recovery, history([tick(1)])) == []
    only(recovery.wake(recovery.deadline), Fetch)
    end = only(told_apart(recovery, history([tick(1), tick(2), tick(3)])), Finish)
    assert [tick(2, backfilled=True)] == end.before
    assert end.gap.filled


def test_a_history_that_stays_behind_leaves_the_gap_open() -> None:
    """What was found by then is delivered, and the gap says that it may not be all."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    for _ in PAUSES:
        assert told_apart(recovery, history([tick(1), tick(2)])) == []
        only(recovery.wake(recovery.deadline), Fetch)
    end = only(told_apart(recovery, history([tick(1), tick(2)])), Finish)
    assert [tick(2, backfilled=True)] == end.before
    assert (end.gap.filled, end.gap.ticks) == (False, 1)
    assert "first live tick" in str(end.error)


def test_a_foreign_history_is_not_believed() -> None:
    """Where none of the delivered ticks is known to history, it is another series, and would double everything."""
    recovery = after_outage(tick(0.5), tick(1))
    recovery.hold([tick(3)])
    end = only(told_apart(recovery, history([tick(0.5, 1.01), tick(1, 1.01), tick(2), tick(3)])), Finish)
    assert ([], [tick(3)], False) == (end.before, end.after, end.gap.filled)
    assert "none of the ticks" in str(end.error)


def test_a_store_that_lost_its_last_batch_is_believed() -> None:
    """That history has forgotten ticks which were delivered says nothing about those after them."""
    recovery = after_outage(tick(0.5), tick(1))
    recovery.hold([tick(3)])
    end = only(told_apart(recovery, history([tick(2), tick(3)])), Finish)
    assert [tick(2, backfilled=True)] == end.before
    assert end.gap.filled


def test_times_that_go_back_can_not_be_told_apart() -> None:
    """A recording that begins again has times that history knows twice."""
    recovery = after_outage(tick(100), tick(101), tick(102))
    end = only(recovery.hold([tick(1)]), Finish)
    assert ([], [tick(1)], False) == (end.before, end.after, end.gap.filled)
    assert "gone back" in str(end.error)


def test_one_tick_with_a_wrong_time_does_no_harm() -> None:
    """A single time far ahead is not taken for the stream's own."""
    recovery = after_outage(tick(1), tick(9e6), tick(2))
    recovery.hold([tick(4)])
    end = only(told_apart(recovery, history([tick(1), tick(2), tick(3), tick(4)])), Finish)
    assert [tick(3, backfilled=True)] == end.before
    assert end.gap.filled


def test_without_a_live_tick_history_is_asked_after_a_while() -> None:
    """A quiet market does not keep the lost ticks back."""
    recovery = after_outage(tick(1))
    assert recovery.deadline == FIRST_WAIT
    assert recovery.wake(FIRST_WAIT / 2) == []
    assert only(recovery.wake(FIRST_WAIT), Fetch).end is None
    end = only(told_apart(recovery, history([tick(1), tick(2), tick(3)])), Finish)
    assert [tick(2, backfilled=True), tick(3, backfilled=True)] == end.before
    assert tick(3)["timestamp"] == end.gap.until


def test_no_history_lets_the_live_ticks_go() -> None:
    """Where history can't be had the live ticks wait no longer, with what stands between them in its place."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    notice = object()
    recovery.hold_beside(notice)
    recovery.hold([tick(4)])
    end = only(recovery.failed("unknown function"), Finish)
    assert [tick(3), notice, tick(4)] == end.after
    assert (end.gap.filled, end.gap.ticks) == (False, 0)
    assert str(end.error) == "BTC:USDC: gap not filled: unknown function"
    assert recovery.failed("again") == []
    assert recovery.give_up("again") == []


def test_a_long_gap_goes_out_page_by_page() -> None:
    """What lies before the margin of the first live tick is delivered without waiting for the rest."""
    recovery = after_outage(tick(0))
    recovery.hold([tick(100)])
    delivered: list[Tick] = []
    for page in range(10):
        for step in recovery.page(history([tick(page * 10 + second) for second in range(10)])):
            assert isinstance(step, Deliver)
            delivered += step.ticks
    assert [float(second) for second in range(1, 97)] == [
        (each["timestamp"] - START).total_seconds() for each in delivered
    ]
    last, end = told_apart(recovery, [tick(100)])
    assert isinstance(last, Deliver)
    assert isinstance(end, Finish)
    assert [(each["timestamp"] - START).total_seconds() for each in last.ticks + end.before] == [97.0, 98.0, 99.0]
    assert end.gap.ticks == 99


def test_a_full_hold_needs_no_answer() -> None:
    """With no room to hold more nothing is read, pongs included: what is newer than all that is held is yet to come,
    and what is older by less than the margin may be."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    assert not recovery.can_pause
    recovery.hold([tick(3), tick(7)])
    assert not recovery.can_pause
    recovery.hold([tick(7.1)])
    assert recovery.can_pause
    recovery.no_room(0.0)
    recovery.fetched(0.1)
    only(recovery.wake(recovery.deadline), Fetch)
    recovery.page(history([tick(1), tick(2), tick(3), tick(3), tick(4.9), tick(5.2)]))
    end = only(recovery.fetched(0.1), Finish)
    assert ([tick(2, backfilled=True)], True) == (end.before, end.gap.filled)
    assert [tick(3), tick(3), tick(4.9, backfilled=True), tick(7), tick(7.1)] == end.after


def test_the_end_of_the_connection_stands_for_the_answer() -> None:
    """What was on its way is lost with the connection, and is taken from history."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history([tick(1), tick(2), tick(3), tick(3.5)]))
    only(recovery.fetched(0.1), Probe)
    end = only(recovery.lost(0.2), Finish)
    assert [tick(2, backfilled=True)] == end.before
    assert [tick(3), tick(3.5, backfilled=True)] == end.after


def test_a_server_that_answers_no_ping_is_not_awaited_for_ever() -> None:
    """Whatever is driving this says when: what was found goes out, and the doubt is told."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    recovery.page(history([tick(1), tick(2), tick(3)]))
    only(recovery.fetched(1.0), Probe)
    assert recovery.wake(1e9) == []
    end = only(recovery.overdue(1e9), Finish)
    assert [tick(2, backfilled=True)] == end.before
    assert not end.gap.filled
    assert "answered no ping" in str(end.error)


def test_a_history_that_hangs_is_not_awaited_for_ever() -> None:
    """The live ticks go, and what history had said by then has gone before them."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(20)])
    deliver = only(recovery.page(history([tick(1), tick(2), tick(9)])), Deliver)
    assert [tick(2, backfilled=True)] == deliver.ticks
    end = only(recovery.overdue(30.0), Finish)
    assert (False, 1, [], [tick(20)]) == (end.gap.filled, end.gap.ticks, end.before, end.after)
    assert "history had not answered" in str(end.error)


def test_a_history_that_is_behind_for_too_long() -> None:
    """Overdue between two questions: what the last answer had goes out."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    assert told_apart(recovery, history([tick(1), tick(2)])) == []
    end = only(recovery.overdue(30.0), Finish)
    assert (False, [tick(2, backfilled=True)], [tick(3)]) == (end.gap.filled, end.before, end.after)
    assert "not got as far" in str(end.error)


def test_a_new_connection_makes_it_ask_again() -> None:
    """What passed between two connections within one gap is part of it."""
    recovery = after_outage(tick(1))
    recovery.hold([tick(3)])
    recovery.lost(0.1)
    recovery.opened(0.2)
    assert recovery.page(history([tick(1), tick(2), tick(3)])) == []
    assert recovery.fetched(0.3) == []
    only(recovery.hold([tick(5)]), Fetch)
    end = only(told_apart(recovery, history([tick(1), tick(2), tick(3), tick(4), tick(5)])), Finish)
    assert [tick(2, backfilled=True)] == end.before
    assert [tick(3), tick(4, backfilled=True), tick(5)] == end.after
    assert tick(5)["timestamp"] == end.gap.until


# The trail.


def test_nothing_before_the_first_tick_is_asked_for() -> None:
    """What was before the stream began is nobody's loss."""
    trail = DeliveredWindow(SECOND)
    trail.extend([tick(5)])
    trail.extend([tick(5.1)])
    assert (tick(5)["timestamp"], keys(tick(5), tick(5.1))) == trail.window()


def test_after_a_gap_that_was_not_filled_the_trail_begins_anew() -> None:
    """What is known to be lost is not found later, out of its order."""
    trail = DeliveredWindow(SECOND)
    for number in range(20):
        trail.extend([tick(number * 0.1)])
    assert tick(0.8)["timestamp"] == trail.floor
    trail.restart()
    assert tick(0.8)["timestamp"] == trail.floor
    assert trail.last is None
    trail.extend([tick(2.5), tick(2.6)])
    start, kept = trail.window()
    assert tick(2.5)["timestamp"] < start < tick(2.6)["timestamp"]
    assert keys(tick(2.6)) == kept


def test_history_without_end_ends_the_gap() -> None:
    """With no live tick to tell where to end, or all of it in one moment: no more is kept than a bound."""
    for live in ([], [tick(1.0)]):
        recovery = after_outage(tick(0.0))
        if live:
            only(recovery.hold(live), Fetch)
        else:
            only(recovery.wake(FIRST_WAIT), Fetch)
        page = [tick(0.5, backfilled=True)] * (MOST_TOLD // 4)
        steps = [step for _ in range(5) for step in recovery.page(page)]
        end = only(steps, Finish)
        assert (False, live) == (end.gap.filled, end.after)
        assert "more ticks than can be told" in str(end.error)


def test_the_trail_keeps_no_names_for_ever() -> None:
    """A server that makes up exchanges fills no table."""
    trail = DeliveredWindow()
    for number in range(5 * _MOST_NAMES):
        trail.extend([tick(number, exchange=f"X{number}")])
    assert len(_names) <= _MOST_NAMES + 4


def test_the_trail_forgets_what_is_older_than_the_margin() -> None:
    """Only what may be needed after an outage is kept."""
    trail = DeliveredWindow(SECOND)
    for number in range(100):
        trail.extend([tick(number * 0.1)])
    start, kept = trail.window()
    assert tick(8.9)["timestamp"] == start
    assert keys(*(tick(number * 0.1) for number in range(89, 100))) == kept


def test_a_trail_without_room_shortens_the_margin() -> None:
    """Ticks of a time that is not remembered in full are not asked for."""
    trail = DeliveredWindow(SECOND, size=10)
    for number in range(50):
        trail.extend([tick(number * 0.001), tick(number * 0.001, 2.0)])
    start, kept = trail.window()
    assert tick(0.045)["timestamp"] < start < tick(0.049)["timestamp"]
    every = [tick(number * 0.001, price) for number in range(50) for price in (1.0, 2.0)]
    assert keys(*(each for each in every if each["timestamp"] >= start)) == kept


def test_more_ticks_of_one_moment_than_are_remembered_are_told() -> None:
    """Where the last moment before the gap had too many ticks to count, what is missing of it can't be known."""
    trail = DeliveredWindow(SECOND, size=10)
    for _ in range(30):
        trail.extend([tick(5)])
    recovery = Recovery("BTC:USDC", trail, 0.0)
    recovery.hold([tick(7)])
    end = told_apart(recovery, history([tick(6), tick(7)]))[-1]
    assert isinstance(end, Finish)
    assert [tick(6, backfilled=True)] == end.before
    assert not end.gap.filled
    assert "than are remembered" in str(end.error)


# A world of ticks.


class World:
    """A server that sends and stores ticks, a wire that breaks, and a client that recovers."""

    def __init__(self, page: int, seed: int, at_once: bool = False) -> None:
        self.at_once = at_once
        self.rng = random.Random(seed)
        self.emitted: list[Tick] = []
        self.delivered: list[Tick] = []
        self.gaps: list[Finish] = []
        self.wire: deque[Any] = deque()
        self.connected = True
        self.trail = DeliveredWindow()
        self.recovery: Recovery | None = None
        self.question: tuple[datetime, datetime | None] | None = None
        self.now = 0.0
        self.page_size = page
        self.newest = 0.0
        self.emit(0.0, 0.0, 0)
        self.arrive(1)

    def emit(self, later: float, late: float, price: int) -> None:
        self.newest += later
        made = tick(max(0.0, self.newest - late), float(price), "OKX" if late else "BINANCE")
        self.emitted.append(made)
        if self.connected:
            self.wire.append(made)

    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            entry = self.wire.popleft()
            if entry is PONG:
                self.do(self.recovery.answered(self.now) if self.recovery else [])
            elif self.recovery is not None:
                self.do(self.recovery.hold([entry]))
            else:
                self.deliver([entry])

    def cut(self) -> None:
        if self.connected:
            self.connected = False
            self.wire.clear()
            if self.recovery is not None:
                self.do(self.recovery.lost(self.now))

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            if self.recovery is None:
                self.recovery = Recovery("BTC:USDC", self.trail, self.now)
            else:
                self.do(self.recovery.opened(self.now))

    def ask(self) -> None:
        """One page of history as it is now, or all of them."""
        more = self.question is not None
        while more:
            more = self.ask_page() and self.at_once

    def ask_page(self) -> bool:
        assert self.question is not None
        assert self.recovery is not None
        start, end = self.question
        found = [each for each in self.emitted if start <= each["timestamp"] and (not end or each["timestamp"] < end)]
        found = [{**each, "backfilled": True} for each in found]
        self.rng.shuffle(found)
        found.sort(key=lambda each: each["timestamp"])
        # A page ends where a time ends, as paging makes sure.
        groups = [list(group) for _, group in itertools.groupby(found, key=lambda each: each["timestamp"])]
        page: list[Tick] = []
        while groups and len(page) < self.page_size:
            page += groups.pop(0)
        self.question = (page[-1]["timestamp"] + timedelta(microseconds=1), end) if groups else None
        self.do(self.recovery.page(page))
        if not groups:
            self.do(self.recovery.fetched(self.now))
        return bool(groups)

    def wait(self) -> None:
        # Nothing is on its way for longer than that.
        if self.recovery is not None and self.now + 5.0 <= self.recovery.deadline:
            self.arrive(len(self.wire))
        if self.recovery is not None:
            self.now = max(self.now, min(self.recovery.deadline, self.now + 10.0))
            self.do(self.recovery.wake(self.now))

    def settle(self) -> None:
        """Let everything come to its end."""
        self.connect()
        for _ in range(10_000):
            if self.recovery is None and not self.wire:
                return
            self.arrive(len(self.wire))
            self.ask()
            self.wait()
        raise AssertionError("no end")

    def do(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Fetch():
                    self.question = (step.start, step.end)
                case Probe():
                    assert self.connected
                    self.wire.append(PONG)
                case Deliver():
                    self.deliver(step.ticks)
                case Finish():
                    self.recovery = self.question = None
                    self.gaps.append(step)
                    self.deliver(step.before)
                    self.deliver(step.after)

    def deliver(self, ticks: list[Tick]) -> None:
        if ticks:
            self.delivered += ticks
            self.trail.extend(ticks)


TIMES = st.sampled_from([0.0, 0.0, 0.000_4, 0.001, 0.03, 0.7, 5.0, 90_000.0])
EMIT = st.tuples(st.just("emit"), TIMES, st.sampled_from([0.0] * 4 + [0.001, 0.9]), st.integers(0, 1))
IN_ORDER = st.tuples(st.just("emit"), TIMES, st.just(0.0), st.integers(0, 1))
OTHERS = st.one_of(
    st.tuples(st.just("arrive"), st.integers(1, 6)),
    st.tuples(st.sampled_from(["cut", "connect", "connect", "ask", "ask", "wait"])),
)


@given(st.lists(st.one_of(IN_ORDER, IN_ORDER, OTHERS), max_size=60), st.integers(1, 5), st.integers(0, 9))
@examples(500)
def test_a_stream_in_order_stays_in_order(program: list[tuple[Any, ...]], page: int, seed: int) -> None:
    """Whatever happens to connections, and whenever history answers: nothing lost, nothing doubled, all in order."""
    world = World(page, seed)
    for name, *arguments in program:
        getattr(world, name)(*arguments)
    world.settle()
    assert Counter(map(line, world.emitted)) == Counter(map(line, world.delivered))
    times = [each["timestamp"] for each in world.delivered]
    assert sorted(times) == times
    assert all(end.gap.filled for end in world.gaps)
    filled = sum(end.gap.ticks for end in world.gaps)
    assert sum(each["backfilled"] for each in world.delivered) == filled


@given(st.lists(st.one_of(EMIT, EMIT, OTHERS), max_size=60), st.integers(1, 5), st.integers(0, 9))
@examples(500)
def test_late_ticks_are_neither_lost_nor_doubled(program: list[tuple[Any, ...]], page: int, seed: int) -> None:
    """With ticks that are late within the margin, each is still delivered once, and the live ones in their order.

    Here history answers in a moment: a late tick that it stores behind a page already read is found within the margin
    alone, and this market may go on by a day between two pages.
    """
    world = World(page, seed, at_once=True)
    for name, *arguments in program:
        getattr(world, name)(*arguments)
    world.settle()
    assert Counter(map(line, world.emitted)) == Counter(map(line, world.delivered))
    live = [line(each) for each in world.delivered if not each["backfilled"]]
    order = iter(map(line, world.emitted))
    assert all(each in order for each in live)
