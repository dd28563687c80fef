"""Message IDs: each tick of the source is in the log once, although publishers miss and repeat ticks."""

from __future__ import annotations

import json
from collections import Counter, deque
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer.jetstream import counts as counts_module
from finx_streamer.jetstream.counts import Counts, stamp_of
from finx_streamer.jetstream.feed import Feed
from finx_streamer.jetstream.message import CLOCKS_DIFFER, Message
from finx_streamer.jetstream.waiting import Waiting
from finx_streamer.values import Gap, Tick

_START = datetime(2026, 11, 29, 8, tzinfo=UTC)
#: NATS's duplicate window.
_WINDOW = timedelta(seconds=120)
#: How many messages are in flight.
_IN_FLIGHT = 4


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("15:30:55Z", "15:30:55.1Z"), ("15:30:55.09Z", "15:30:55.1Z"), ("15:30:55.817Z", "15:30:55.8171")],
)
def test_stamps_sort_by_time(earlier: str, later: str) -> None:
    assert stamp_of("2022-07-02", earlier) < stamp_of("2022-07-02", later)


@pytest.mark.parametrize("time", ["15:30:55.8Z", "15:30:55.80Z", "15:30:55.800", "15:30:55.8"])
def test_equal_times_have_equal_stamps(time: str) -> None:
    assert stamp_of("2022-07-02", time) == "2022-07-02T15:30:55.8"


def test_whole_seconds_have_equal_stamps() -> None:
    assert {stamp_of("2022-07-02", time) for time in ("15:30:00Z", "15:30:00.000Z")} == {"2022-07-02T15:30:00"}


def test_ticks_of_the_first_time_are_not_certified() -> None:
    counts = Counts()
    added = [counts.add(stamp, "1") for stamp in ("b", "b", "a", "c", "c")]
    assert added == [(0, False), (1, False), (0, False), (0, True), (1, True)]


def test_ticks_after_a_gap_are_not_certified_and_go_on_counting() -> None:
    counts = Counts()
    for stamp in ("a", "b", "c"):
        counts.add(stamp, "1")
    counts.join()
    assert [counts.add(stamp, "1") for stamp in ("c", "b", "d")] == [(1, False), (1, False), (0, True)]


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from("12")), max_size=200))
def test_what_is_certified_was_counted_in_full(added: list[tuple[int, str]]) -> None:
    """Forgetting makes counts uncertified, and keeps memory bounded."""
    counts, model = Counts(), Counter[tuple[str, str]]()
    most, counts_module.MOST = counts_module.MOST, 8
    try:
        for number, price in added:
            key = (f"{number:02}", price)
            ordinal, certified = counts.add(*key)
            assert ordinal <= model[key]
            if certified:
                assert ordinal == model[key]
            model[key] += 1
            assert len(counts._counts) <= 8
    finally:
        counts_module.MOST = most


def make_tick(moment: datetime, price: str, received_ns: int = 0, backfilled: bool = False) -> Tick:
    date, time = moment.replace(tzinfo=None).isoformat("T", "milliseconds").split("T")
    return Tick(
        pair="BTC:USDC",
        date=date,
        time=f"{time}Z",
        exchange="MINE",
        price=price,
        timestamp=moment,
        received_ns=received_ns,
        backfilled=backfilled,
    )


class Publisher:
    """A real feed. It has seen the source's ticks up to `seen`, and sends to a model of NATS."""

    def __init__(self, world: World, begin: datetime | None) -> None:
        self.world = world
        self.waiting = Waiting(100_000, lambda: None, lambda: None)
        self.feed = Feed(self.waiting)
        self.queue = deque[Message]()
        self.seen = len(world.source)
        if begin is not None:
            self.deliver([tick for tick in world.source if tick[0] > begin], backfilled=True)

    def deliver(self, ticks: list[tuple[datetime, str]], *, backfilled: bool) -> None:
        received_ns = int(self.world.now.timestamp() * 1e9)
        for moment, price in sorted(ticks, key=lambda tick: tick[0]) if backfilled else ticks:
            self.feed.on_tick(make_tick(moment, price, received_ns, backfilled))
        self.queue.extend(self.waiting.take(100_000))

    def receive(self, most: int) -> None:
        """Get live ticks."""
        ticks = self.world.source[self.seen : self.seen + most]
        self.seen += len(ticks)
        self.deliver(ticks, backfilled=False)

    def fill_gap(self) -> None:
        """Miss ticks, and get them from history."""
        ticks = self.world.source[self.seen :]
        self.seen = len(self.world.source)
        self.deliver(ticks, backfilled=True)

    def miss(self, most: int) -> None:
        """Miss ticks for good."""
        self.seen = min(self.seen + most, len(self.world.source))
        self.feed.on_gap(Gap("BTC:USDC", _START, _START, False, 0))

    def send(self, most: int) -> None:
        for _ in range(min(most, len(self.queue))):
            self.world.store(self.queue.popleft())

    def die(self, stored: set[int]) -> None:
        """Of the messages in flight, NATS gets only some."""
        for number, message in enumerate(list(self.queue)[:_IN_FLIGHT]):
            if number in stored:
                self.world.store(message)


class World(RuleBasedStateMachine):
    """A source, two publishers and a model of NATS."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _START
        self.source: list[tuple[datetime, str]] = []
        self.log: list[Message] = []
        #: When NATS got each ID.
        self.known: dict[str, datetime] = {}
        self.publishers: list[Publisher | None] = [None, None]

    def store(self, message: Message) -> None:
        """What the sender and NATS do together."""
        is_old = message.born < (self.now - _WINDOW / 2).timestamp() * 1e9
        if is_old and message.message_id in {each.message_id for each in self.log}:
            return
        if self.now - self.known.get(message.message_id, _START - _WINDOW) < _WINDOW:
            return
        self.known[message.message_id] = self.now
        self.log.append(message)

    def begin(self) -> datetime | None:
        """Where a publisher begins."""
        if not self.log:
            return None
        tail = self.log[-4 * _IN_FLIGHT :]
        return datetime.fromisoformat(tail[0].stamp).replace(tzinfo=UTC) - CLOCKS_DIFFER

    @initialize()
    def start_first(self) -> None:
        """A pair without ticks in the log begins live."""
        self.publishers[0] = first = Publisher(self, None)
        self.source.append((self.now, "1"))
        first.receive(1)
        first.send(1)

    @rule(
        step=st.sampled_from([0, 0, 0, 1, 500, 5_000]),
        price=st.sampled_from("12"),
        late=st.sampled_from([0, 0, 1, 2_000]),
    )
    def trade(self, step: int, price: str, late: int) -> None:
        self.now += timedelta(milliseconds=step)
        self.source.append((self.now - timedelta(milliseconds=late), price))

    @rule(price=st.sampled_from("12"), seconds=st.sampled_from([50, 100, 300]))
    def pass_time(self, price: str, seconds: int) -> None:
        """Live ticks arrive in time: only what is in history may be old."""
        for publisher in self.living():
            publisher.receive(len(self.source))
        self.now += timedelta(seconds=seconds)
        self.source.append((self.now, price))

    def living(self) -> list[Publisher]:
        return [publisher for publisher in self.publishers if publisher is not None]

    @rule(which=st.integers(0, 1), most=st.integers(1, 5))
    def receive(self, which: int, most: int) -> None:
        if (publisher := self.publishers[which]) is not None:
            publisher.receive(most)

    @rule(which=st.integers(0, 1), most=st.integers(1, 8))
    def send(self, which: int, most: int) -> None:
        if (publisher := self.publishers[which]) is not None:
            publisher.send(most)

    @rule(which=st.integers(0, 1))
    def fill_gap(self, which: int) -> None:
        if (publisher := self.publishers[which]) is not None:
            publisher.fill_gap()

    @rule(which=st.integers(0, 1), stored=st.sets(st.integers(0, _IN_FLIGHT - 1)))
    def kill(self, which: int, stored: set[int]) -> None:
        if (publisher := self.publishers[which]) is not None:
            publisher.die(stored)
            self.publishers[which] = None

    @rule(which=st.integers(0, 1))
    def start(self, which: int) -> None:
        if self.publishers[which] is None:
            self.publishers[which] = Publisher(self, self.begin())

    def teardown(self) -> None:
        """In the end, one publisher runs until it has sent everything."""
        if not self.source:
            return
        for publisher in self.living() or [Publisher(self, self.begin())]:
            publisher.receive(len(self.source))
            publisher.send(len(publisher.queue))
        self.check()

    def check(self) -> None:
        ticks = [make_tick(*each) for each in self.source]
        expected = Counter((stamp_of(tick["date"], tick["time"]), tick["price"]) for tick in ticks)
        assert Counter((each.stamp, json.loads(each.payload)["price"]) for each in self.log) == expected


class OneThatMisses(World):
    """One publisher sees everything, and the other one misses ticks for good."""

    @rule(most=st.integers(1, 4))
    def miss(self, most: int) -> None:
        if (publisher := self.publishers[1]) is not None:
            publisher.miss(most)

    @rule(stored=st.sets(st.integers(0, _IN_FLIGHT - 1)))
    def kill(self, stored: set[int]) -> None:
        if (publisher := self.publishers[1]) is not None:
            publisher.die(stored)
            self.publishers[1] = None

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A tick arrives that equals one of any age. Nothing is certain until a new one has arrived."""
        self.source.append((self.now, "1"))
        for publisher in self.living():
            publisher.receive(len(self.source))
        self.source.append(data.draw(st.sampled_from(self.source)))

    @precondition(lambda self: self.publishers[1] is None)
    @rule()
    def join_live(self) -> None:
        """Join at any moment."""
        self.publishers[1] = Publisher(self, None)


TestWorld = World.TestCase
TestOneThatMisses = OneThatMisses.TestCase
