"""The order, the gaps and the duplicates of one pair's trades on one exchange."""

from __future__ import annotations

from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from finx_streamer.server.exchanges.adapter import Gap, Trade
from finx_streamer.server.exchanges.series import Series, State


def trade(last: int, count: int = 1) -> Trade:
    return Trade(last - count + 1, last, str(last), "2026-11-29", "08:00:00.000Z")


def ids(trades: list[Trade]) -> list[int]:
    return [each.last for each in trades]


class Exchange:
    """Makes trades, and passes some of them to a series: over the feed, or as answers to requests."""

    def __init__(self, *, consecutive: bool = True) -> None:
        self.consecutive = consecutive
        self.series = Series(consecutive=consecutive)
        self.made: list[Trade] = []
        self.sent: list[int] = []
        #: The highest ID at which trades were sent early. Only trades up to there may be late.
        self.late_until = 0
        self._next = 1

    def make(self, count: int = 1, step: int = 1) -> Trade:
        last = self._next + count - 1 + (0 if self.consecutive else step)
        self._next = last + 1
        self.made.append(made := trade(last, count))
        return made

    def take(self, trades: list[Trade]) -> None:
        for each in trades:
            newest = max(self.sent, default=0)
            assert each.last > newest or each.last <= self.late_until, f"{each.last} after {newest}"
            self.sent.append(each.last)
            if any(gap.late for gap in self.series.gaps):
                self.late_until = max(self.late_until, each.last)
        assert len(set(self.sent)) == len(self.sent), "a trade was sent twice"

    def feed(self, made: Trade, *, old: bool = False) -> None:
        self.take(self.series.add(made, 0.0, old=old))

    def release(self) -> None:
        self.take(self.series.release())

    def answer(self, gap: Gap, known: int | None = None, single: bool = False) -> None:
        """Answer a request for a gap with the trades up to an ID, one by one with the individual IDs of each."""
        high = gap.high if gap.high is not None else self._next
        found = [
            trade(each)
            for made in self.made
            for each in (range(made.first, made.last + 1) if single else [made.last])
            if gap.low <= each and (not self.consecutive or each <= high) and (known is None or each <= known)
        ]
        if not single:
            by_id = {made.last: made for made in self.made}
            found = [by_id[each.last] for each in found]
        sent, _ = self.series.fill(gap, found)
        self.take(sent)
        self.take(self.series.answer(gap, max(ids(found), default=gap.low - 1)))

    def answer_all(self) -> None:
        for _ in range(1_000):
            if not self.series.gaps:
                return
            gap = self.series.gaps[0]
            self.answer(gap)
            if gap.high is None:
                # A quiet pair: the driver closes it.
                self.take(self.series.close(gap))
        raise AssertionError("the gaps were never filled")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["live", "miss", "swap", "again", "interrupt", "answer", "answer partly", "release"]),
        st.integers(1, 5),
    ),
    max_size=60,
)


def run(exchange: Exchange, actions: list[tuple[str, int]]) -> None:
    exchange.feed(exchange.make())
    connected = True
    for name, number in actions:
        note(f"{name} {number}: gaps {exchange.series.gaps}, sent {exchange.sent}")
        gaps = exchange.series.gaps
        if name == "live":
            exchange.feed(exchange.make(step=number))
        elif name == "miss":
            exchange.make(step=number)
            # IDs don't tell where they have holes: a trade is only missed while there is no connection.
            connected = connected and exchange.consecutive
        elif name == "swap":
            first, second = exchange.make(), exchange.make()
            if not exchange.consecutive:
                # IDs don't tell that the first one is missing, so it is late.
                exchange.late_until = max(exchange.late_until, first.last)
            exchange.feed(second)
            exchange.feed(first)
        elif name == "again":
            for made in exchange.made[-number:]:
                if made.last in exchange.sent:
                    exchange.feed(made, old=True)
        elif name == "interrupt":
            exchange.series.interrupt(0.0)
            connected = True
        elif name == "answer" and gaps:
            exchange.answer(gaps[number % len(gaps)])
        elif name == "answer partly" and gaps:
            gap = gaps[number % len(gaps)]
            exchange.answer(gap, known=gap.low + number)
        elif name == "release":
            exchange.release()
        if not connected:
            exchange.series.interrupt(0.0)
            connected = True


@settings(max_examples=400)
@given(ACTIONS)
def test_nothing_is_lost_or_sent_twice(actions: list[tuple[str, int]]) -> None:
    """With consecutive IDs, in any order of events. Trades are in order, unless they were released early."""
    exchange = Exchange()
    run(exchange, actions)
    # The next trade tells whether some were missed.
    exchange.feed(exchange.make())
    exchange.answer_all()
    assert sorted(exchange.sent) == [made.last for made in exchange.made]
    assert exchange.series.lost == 0
    assert exchange.series.state is State.LIVE
    assert exchange.series.held == 0


@settings(max_examples=400)
@given(ACTIONS)
def test_nothing_is_lost_without_consecutive_ids(actions: list[tuple[str, int]]) -> None:
    """A trade that is missed without a lost connection can't be known."""
    exchange = Exchange(consecutive=False)
    run(exchange, actions)
    exchange.feed(exchange.make())
    exchange.answer_all()
    assert sorted(exchange.sent) == [made.last for made in exchange.made]
    assert exchange.series.state is State.LIVE
    assert exchange.series.held == 0


@settings(max_examples=400)
@given(ACTIONS)
def test_losses_are_exact(actions: list[tuple[str, int]]) -> None:
    """If the exchange never returns what is missing, the number of lost trades is that of the missing IDs."""
    exchange = Exchange()
    run(exchange, [each for each in actions if not each[0].startswith("answer")])
    exchange.feed(exchange.make())
    unfilled = 0
    for gap in list(exchange.series.gaps):
        exchange.take(exchange.series.close(gap))
        unfilled += not exchange.series.is_filled(gap)
    missing = len(exchange.made) - len(exchange.sent)
    assert exchange.series.lost == missing
    assert (unfilled > 0) == (missing > 0)


def test_the_first_snapshot_sets_the_position() -> None:
    """Its trades were before the start."""
    exchange = Exchange()
    old = [exchange.make() for _ in range(3)]
    for each in old:
        exchange.feed(each, old=True)
    assert exchange.sent == []
    exchange.feed(exchange.make())
    assert exchange.sent == [4]
    exchange.series.interrupt(0.0)
    missed = exchange.make()
    for each in [*old, missed]:
        exchange.feed(each, old=True)
    assert exchange.sent == [4, 5]
    assert exchange.series.gaps == []


def test_a_missed_trade_between_snapshot_and_feed() -> None:
    exchange = Exchange()
    exchange.feed(exchange.make(), old=True)
    exchange.make()
    exchange.feed(exchange.make())
    assert exchange.sent == []
    exchange.answer_all()
    assert exchange.sent == [2, 3]


def test_trades_reported_as_one_count_once() -> None:
    """OKX reports several trades as one, and returns them one by one."""
    exchange = Exchange()
    exchange.feed(exchange.make())
    exchange.feed(exchange.make(count=3))
    assert (exchange.sent, exchange.series.gap_count) == ([1, 4], 0)
    exchange.make(count=2)
    exchange.feed(exchange.make(count=3))
    assert exchange.series.state is State.HELD
    [gap] = exchange.series.gaps
    assert (gap.low, gap.high) == (5, 6)
    exchange.answer(gap, single=True)
    assert exchange.sent == [1, 4, 5, 6, 9]
    # The snapshot of a further subscription, one by one.
    for each in range(1, 10):
        exchange.feed(trade(each), old=True)
    assert exchange.sent == [1, 4, 5, 6, 9]


def test_the_interrupted_pair_goes_on_at_once_if_nothing_was_missed() -> None:
    exchange = Exchange()
    exchange.feed(exchange.make())
    exchange.series.interrupt(0.0)
    exchange.feed(exchange.make())
    assert (exchange.sent, exchange.series.gaps, exchange.series.gap_count) == ([1, 2], [], 1)


def test_an_exchange_that_counts_again_from_the_start() -> None:
    """After a while, its new trades no longer count as old ones."""
    series = Series(consecutive=True)
    assert ids(series.add(trade(1_000_000), 0.0)) == [1_000_000]
    sent: list[Any] = []
    for number in range(1, 3_001):
        sent += ids(series.add(trade(number), 0.0))
    assert sent == list(range(1_000, 3_001))


def test_remembered_holes_are_bounded() -> None:
    """The count of lost trades stays exact."""
    series = Series(consecutive=True)
    sent = len(series.add(trade(0), 0.0))
    for number in range(2, 20_000, 2):
        sent += len(series.add(trade(number), 0.0))
        sent += len(series.release())
        for gap in list(series.gaps):
            series.close(gap)
    assert (sent, series.lost) == (10_000, 9_999)
    assert len(series.holes._ranges) <= 2_000


@given(
    st.booleans(), st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1), st.integers(0, 5), st.randoms()
)
@settings(max_examples=500)
def test_what_an_earlier_run_has_not_sent_is_sent_once(
    consecutive: bool, made: list[tuple[int, bool]], more: int, random: Any
) -> None:
    exchange = Exchange(consecutive=consecutive)
    known = [exchange.make(1)]
    for count, is_known in made:
        trade = exchange.make(count if consecutive else 1, step=count)
        if is_known:
            known.append(trade)
    # One of several publishers may have been late.
    exchange.late_until = max(each.last for each in known)
    random.shuffle(known)
    exchange.series.begin_after(known, 0.0)
    exchange.series.interrupt(0.0)
    for _ in range(more):
        exchange.feed(exchange.make())
    exchange.answer_all()
    exchange.feed(exchange.make())
    exchange.answer_all()
    assert sorted(exchange.sent + ids(known)) == ids(exchange.made)
    assert exchange.series.state is State.LIVE
    assert (exchange.series.lost, exchange.series.gap_count) == (0, 1)


def test_a_new_numbering_since_an_earlier_run_is_live_at_once() -> None:
    """It shows in the time."""
    later = Trade(5, 5, "5", "2026-11-29", "08:01:00.001Z")
    for known in ([trade(1_000)], [trade(900), trade(1_000)]):
        series = Series(consecutive=True)
        series.begin_after(known, 0.0)
        series.interrupt(0.0)
        gap = series.gaps[0]
        assert ids(series.add(later._replace(first=4, last=4, time="08:01:00Z"), 0.0)) == []
        assert ids(series.add(later, 0.0)) == [5]
        assert (series.state, series.is_filled(gap)) == (State.LIVE, False)
        assert ids(series.add(later._replace(first=6, last=6), 0.0)) == [6]


def test_an_earlier_run_may_have_seen_the_new_numbering() -> None:
    later = Trade(5, 5, "5", "2026-11-29", "08:00:01.000Z")
    series = Series(consecutive=True)
    series.begin_after([trade(1_000), trade(1_001), later], 0.0)
    series.interrupt(0.0)
    assert (series.gaps[0].low, series.lost) == (6, 0)
    assert ids(series.add(trade(6), 0.0)) == [6]
