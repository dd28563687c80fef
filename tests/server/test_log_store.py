"""The store of a gateway, compared with a model: a log with holes, of which the store has the newest part, or most."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConfigurationError
from finx_streamer.server.functions import CallError
from finx_streamer.server.log_store import LogRow, LogStore, Span
from finx_streamer.server.retention import Retention
from finx_streamer.server.store import TickStore
from finx_streamer.server.tick_log import Position
from tests.support.effort import examples

LOG, PAIRS = "js0123456789abcdef", ("BTC:USDC", "ETH:USDC")
DAY, MIDNIGHT = "2026-11-29", 1_795_910_400


def row(number: int) -> LogRow:
    """Ticks are a second apart, and their pair and price follow from their number."""
    minute, second = divmod(number, 60)
    time = f"{minute // 60:02}:{minute % 60:02}:{second:02}.000Z"
    return number, PAIRS[number % 7 > 3], DAY, time, "MINE", str(number)


class Model:
    """A store, and what it must have."""

    def __init__(self, path: Path | None, limit: int | None) -> None:
        self.store = LogStore(path, limit)
        self._limit = limit
        self._opened = contextlib.ExitStack()
        self._opened.enter_context(self.store.opened())
        self.store.follow(LOG, 0)
        #: The numbers of all ticks in the log, of those in the store, and all that it covers.
        self.log: set[int] = set()
        self.kept: set[int] = set()
        self.covered: set[int] = set()
        self.newest = self.written = self.trimmed = 0

    def close(self) -> None:
        self._opened.close()

    def write(self, steps: list[int], behind: int) -> None:
        """Store new ticks. The log has some other messages behind them."""
        numbers = [self.newest + sum(steps[: count + 1]) for count in range(len(steps))]
        span = Span(self.newest + 1, (numbers[-1] if numbers else self.newest) + behind)
        if span.first > span.last:
            return
        self.log |= set(numbers)
        self.store.write_span(list(map(row, numbers)), span)
        self._add(numbers, span)
        self.newest = self.written = span.last

    def lose(self, steps: list[int]) -> None:
        """The log has further ticks, but the store couldn't be written."""
        for step in steps:
            self.newest += step
            self.log.add(self.newest)

    def fill(self, count: int) -> None:
        """Store earlier ticks."""
        hole = self.store.hole()
        assert hole == self.hole()
        if hole is not None:
            span = Span(max(hole.first, hole.last - count + 1), hole.last)
            numbers = sorted(number for number in self.log if span.first <= number <= span.last)
            self.store.fill(list(map(row, numbers)), span, (), MIDNIGHT)
            newer = sum(number > span.last for number in self.kept)
            room = len(numbers) if self._limit is None else max(0, self._limit - newer)
            if len(numbers) > room:
                numbers = numbers[len(numbers) - room :]
                span = Span(numbers[0] if numbers else span.last + 1, span.last)
            self._add(numbers, span)

    def reopen(self) -> None:
        self._opened.close()
        self._opened.enter_context(self.store.opened())
        self.store.follow(LOG, self.written)

    def _add(self, numbers: list[int], span: Span) -> None:
        self.kept |= set(numbers)
        self.covered |= set(range(span.first, span.last + 1))
        if self._limit is not None and len(self.kept) > self._limit:
            removed = sorted(self.kept)[: len(self.kept) - self._limit]
            self.kept -= set(removed)
            self.covered -= set(range(removed[-1] + 1))
            self.trimmed = max(self.trimmed, removed[-1])

    def oldest(self) -> int:
        """The smallest number after which everything is there, up to what was written last."""
        number = self.written
        while number in self.covered:
            number -= 1
        return number

    def hole(self) -> Span | None:
        last = self.oldest()
        first = last
        while first > self.trimmed and first not in self.covered:
            first -= 1
        return Span(first + 1, last) if first < last else None

    def check(self) -> None:
        assert self.store.count == len(self.kept)
        assert self.store.beginning()[0] == self.oldest() + 1
        for position in range(self.written + 2):
            for pair in PAIRS:
                wanted = [
                    (number, number) for number in sorted(self.kept) if row(number)[1] == pair and number > position
                ]
                can_resume = self.oldest() <= position <= self.written
                assert self.read(pair, position) == (wanted if can_resume else None)

    def read(self, pair: str, position: int) -> list[tuple[int, int]] | None:
        """All pages after a position: the numbers and prices."""
        page = self.store.resume(pair, Position(LOG, position), self.written, 3)
        found = []
        while page is not None:
            found += [(number, int(json.loads(tick)["price"])) for number, tick in page.ticks]
            if page.until >= self.written:
                return found
            page = self.store.read_log(pair, page.until, self.written, 3)
        return None


@contextlib.contextmanager
def modelled(limit: int | None = None) -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder) / "ticks.db", limit)
        try:
            yield model
        finally:
            model.close()


STEPS = st.lists(st.integers(1, 4), max_size=8)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), STEPS, st.integers(0, 3)),
        st.tuples(st.just("lose"), st.lists(st.integers(1, 4), min_size=1, max_size=8)),
        st.tuples(st.just("fill"), st.integers(1, 20)),
        st.tuples(st.just("fill"), st.integers(1, 4)),
        st.tuples(st.just("reopen")),
    ),
    min_size=5,
    max_size=20,
)


@given(moves=MOVES, limit=st.none() | st.integers(1, 30))
@examples(500)
def test_the_store_is_what_the_log_was(moves: list[tuple[str, object]], limit: int | None) -> None:
    """After any sequence of writes, losses, fills and removals, a position resumes exactly, or is refused."""
    with modelled(limit) as model:
        for name, *arguments in moves:
            getattr(model, name)(*arguments)
            model.check()


def test_ticks_of_one_time_keep_the_order_of_the_log() -> None:
    """Also if they are filled in below those that are there."""
    with modelled() as model:
        rows: list[LogRow] = [(number, PAIRS[0], DAY, "00:00:01Z", "MINE", str(number)) for number in (2, 5, 6, 9)]
        model.store.write_span(rows[2:], Span(6, 10))
        model.store.fill(rows[:2], Span(1, 5), (), MIDNIGHT)
        found = model.store.history(PAIRS[0], DAY, (MIDNIGHT, ""), None, 10)
        assert [json.loads(tick)["price"] for tick in found] == ["2", "5", "6", "9"]


def test_history_does_not_skip_a_hole() -> None:
    """Entries that expired unread are reported to whoever asks for that time. Before and after it, history answers."""
    with modelled() as model:
        model.store.write_span([row(11), row(12)], Span(1, 20))
        model.store.write_span([row(40), row(41)], Span(35, 41))

        def history(after: int, limit: int) -> list[str]:
            ticks = model.store.history(PAIRS[1], DAY, (MIDNIGHT + after, ""), None, limit)
            return [json.loads(tick)["price"] for tick in ticks]

        for after in (0, 12):
            with pytest.raises(CallError, match="incomplete"):
                history(after, 3)
        assert (history(0, 2), history(40, 3)) == (["11", "12"], ["41"])
        model.store.fill([], Span(21, 34), (), MIDNIGHT)
        assert history(0, 9) == ["11", "12", "40", "41"]


@pytest.mark.parametrize("bounds", [Retention(size=1_000_000), Retention(age=3_600.0)])
def test_nothing_is_filled_that_would_be_removed_next(tmp_path: Path, bounds: Retention) -> None:
    """Each thousand entries before the newest one are 20 minutes older."""
    store, newest = LogStore(tmp_path / "ticks.db", None, bounds), 80_000
    with store.opened():
        store.follow(LOG, newest)
        while (hole := store.hole()) is not None:
            span = Span(hole.last - 999, hole.last)
            stored = time.time() - 1.2 * (newest - span.last)
            if not store.fill([row(number) for number in range(span.first, span.last + 1)], span, (), stored):
                break
        assert 2_000 < store.count < 50_000
        before = store.count
        while store.remove_excess():
            pass
        assert store.count == before


def test_a_normal_server_and_a_gateway_refuse_the_files_of_each_other(tmp_path: Path) -> None:
    normal, shared = tmp_path / "normal.db", tmp_path / "shared.db"
    with (store := TickStore(normal)).opened():
        store.write([row(1)[1:]])
    with pytest.raises(ConfigurationError, match="another market"), LogStore(normal).opened():
        pass
    with (gateway := LogStore(shared)).opened():
        gateway.follow(LOG, 5)
    with pytest.raises(ConfigurationError, match="gateway"), TickStore(shared).opened():
        pass
    with LogStore(shared).opened(), pytest.raises(ConfigurationError, match="in use"), LogStore(shared).opened():
        pass


def test_a_gateway_refuses_the_file_of_another_stream(tmp_path: Path) -> None:
    with (store := LogStore(tmp_path / "ticks.db")).opened():
        store.follow(f"{LOG}-7_5", 5)
        with pytest.raises(ConfigurationError, match="another JetStream stream"):
            store.check_identity("js00")
        store.check_identity(LOG)


@pytest.mark.parametrize("keep", [0, 3, 7, 20])
def test_ticks_that_the_log_has_lost_are_forgotten(keep: int) -> None:
    """Up to a number. Positions in the log's earlier name are unknown, and history is refused until it's complete."""
    with (store := LogStore()).opened():
        store.follow(LOG, 0)
        store.write_span([row(number) for number in range(1, 11)], Span(1, 12))
        assert store.resume(PAIRS[0], Position(LOG, 2), 12, 100) is not None
        store.follow(f"{LOG}-7_5", 15, keep)
        kept = min(keep, 10)
        assert store.count == kept
        assert store.hole() == Span(min(keep, 12) + 1, 15)
        assert store.first_after(kept) is None
        assert (store.first_after(None) or (0, ""))[0] == kept
        assert store.resume(PAIRS[0], Position(LOG, 2), 15, 100) is None
        with pytest.raises(CallError, match="incomplete here"):
            store.history(PAIRS[0], DAY, (MIDNIGHT, ""), None, 10)
        store.fill([row(number) for number in range(kept + 1, 16)], Span(kept + 1, 15), (), 0.0)
        page = store.resume(PAIRS[0], Position(f"{LOG}-7_5", 0), 15, 100)
        assert page is not None
        assert [number for number, _ in page.ticks] == [each for each in range(1, 16) if row(each)[1] == PAIRS[0]]


def test_an_empty_file_of_a_normal_server_becomes_that_of_a_gateway(tmp_path: Path) -> None:
    with TickStore(tmp_path / "ticks.db").opened():
        pass
    with (store := LogStore(tmp_path / "ticks.db")).opened():
        store.follow(LOG, 5)
        assert store.hole() == Span(1, 5)
