"""A simulated world for tests of the gap logic: ticks, connections that break, and a history that answers any time."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from finx_streamer.streaming.delivered_window import DeliveredWindow, tick_key
from finx_streamer.streaming.recovery import Deliver, Fetch, Finish, Probe, Recovery, Step
from finx_streamer.values import Tick
from tests.support.recovery import PAIR, tick

PONG = object()


class World:
    """A server that sends and stores ticks, a connection that breaks, and a client that recovers.

    With `instant_history`, all pages of an answer come at once.
    """

    def __init__(self, page_size: int, seed: int, instant_history: bool = False) -> None:
        self.instant_history = instant_history
        self.page_size = page_size
        self.rng = random.Random(seed)
        self.now = 0.0
        self.newest = 0.0
        self.emitted: list[Tick] = []
        self.delivered: list[Any] = []
        self.gaps: list[Finish] = []
        self.in_transit: deque[Any] = deque()
        self.connected = True
        self.window = DeliveredWindow()
        self.recovery: Recovery | None = None
        self.query: tuple[datetime, datetime | None] | None = None
        self.emit(0.0, 0.0, 0)
        self.arrive(1)

    # The world's moves.

    def emit(self, later: float, late: float, price: int) -> None:
        """The market moves on by `later` seconds; its next tick is stamped `late` seconds before that."""
        self.newest += later
        emitted = tick(max(0.0, self.newest - late), float(price), "OKX" if late else "BINANCE")
        self.emitted.append(emitted)
        if self.connected:
            self.in_transit.append(emitted)

    def arrive(self, count: int) -> None:
        """Up to `count` messages arrive."""
        for _ in range(min(count, len(self.in_transit))):
            entry = self.in_transit.popleft()
            if entry is PONG:
                self.carry_out(self.recovery.probe_answered(self.now) if self.recovery else None)
            elif self.recovery is not None:
                self.carry_out(self.recovery.hold([entry]))
            else:
                self.deliver([entry])

    def cut(self) -> None:
        """The connection breaks, and loses what is in transit."""
        if self.connected:
            self.connected = False
            self.in_transit.clear()
            if self.recovery is not None:
                self.carry_out(self.recovery.lost(self.now))

    def connect(self) -> None:
        """The client is connected again."""
        if not self.connected:
            self.connected = True
            self.query = None
            if self.recovery is None:
                self.recovery = Recovery(PAIR, self.window, self.now)
            else:
                self.recovery.opened(self.now)

    def ask(self) -> None:
        """History, as it is now, answers with the next page, or with all pages."""
        more = self.query is not None
        while more:
            more = self.answer_page() and self.instant_history

    def wait(self) -> None:
        """Time passes, up to the recovery's deadline. Nothing is in transit for longer than 5 s."""
        if self.recovery is not None and self.now + 5.0 <= self.recovery.deadline:
            self.arrive(len(self.in_transit))
        if self.recovery is not None:
            self.now = max(self.now, min(self.recovery.deadline, self.now + 10.0))
            self.carry_out(self.recovery.wake(self.now))

    def settle(self) -> None:
        """Connect, and go on until everything has arrived."""
        self.connect()
        for _ in range(10_000):
            if self.recovery is None and not self.in_transit:
                return
            self.arrive(len(self.in_transit))
            self.ask()
            self.wait()
        raise AssertionError("the recovery never finishes")

    # What they do.

    def answer_page(self) -> bool:
        """Answer with one page. Return whether there are more."""
        assert self.query is not None
        assert self.recovery is not None
        start, end = self.query
        found = [each for each in self.emitted if start <= each["timestamp"] and (not end or each["timestamp"] < end)]
        found = [{**each, "backfilled": True} for each in found]
        self.rng.shuffle(found)
        found.sort(key=lambda each: each["timestamp"])
        # `history_pages` never splits ticks of one time between two pages.
        groups = [list(group) for _, group in itertools.groupby(found, key=lambda each: each["timestamp"])]
        page: list[Tick] = []
        while groups and len(page) < self.page_size:
            page += groups.pop(0)
        self.query = (page[-1]["timestamp"] + timedelta(microseconds=1), end) if groups else None
        self.carry_out(self.recovery.page(page))
        if not groups and self.recovery is not None:
            self.carry_out(self.recovery.fetched(self.now))
        return self.query is not None

    def carry_out(self, step: Step | None) -> None:
        match step:
            case Fetch():
                self.query = (step.start, step.end)
            case Probe():
                assert self.connected
                self.in_transit.append(PONG)
            case Deliver():
                self.deliver(step.ticks)
            case Finish():
                self.recovery = self.query = None
                self.gaps.append(step)
                self.deliver(step.before)
                self.deliver(step.after)

    def deliver(self, ticks: list[Any]) -> None:
        if ticks:
            self.delivered += ticks
            self.window.extend(ticks)

    # What came of it.

    def run(self, moves: list[tuple[Any, ...]]) -> None:
        for name, *arguments in moves:
            getattr(self, name)(*arguments)
        self.settle()

    def assert_complete(self) -> None:
        """Each tick was delivered exactly once."""
        assert Counter(map(tick_key, self.delivered)) == Counter(map(tick_key, self.emitted))


ADVANCES = st.sampled_from([0.0, 0.0, 0.000_4, 0.001, 0.03, 0.7, 5.0, 90_000.0])
PRICES = st.integers(0, 1)
EMIT_LATE = st.tuples(st.just("emit"), ADVANCES, st.sampled_from([0.0] * 4 + [0.001, 0.9]), PRICES)
EMIT_IN_ORDER = st.tuples(st.just("emit"), ADVANCES, st.just(0.0), PRICES)
OTHER_MOVES = st.one_of(
    st.tuples(st.just("arrive"), st.integers(1, 6)),
    st.tuples(st.sampled_from(["cut", "connect", "connect", "ask", "ask", "wait"])),
)
