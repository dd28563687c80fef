"""The three overflow policies, against models that are too simple to be wrong, and under two threads."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finx_streamer.delivery.queues import QUEUES, BlockQueue, DropOldestQueue, Entry, LatestQueue, TickQueue
from finx_streamer.values import NO_BOUND, Event, State, Tick

PAIRS = ("A:X", "B:X", "C:X")
PATIENCE = 50.0


def taken(queue: TickQueue) -> Entry | None:
    """The oldest entry; None where there is none."""
    try:
        return queue.pop()
    except IndexError:
        return None


def ticks_of(pair: str, first: int, count: int) -> list[Tick]:
    """Ticks that are told apart by their numbers."""
    return [{"pair": pair, "price": number} for number in range(first, first + count)]  # type: ignore[typeddict-item]


def shown(entry: Entry) -> str:
    """An entry, briefly: its pair and number, or its event's."""
    return f"event {entry.symbol}" if isinstance(entry, Event) else f"{entry['pair']} {entry['price']}"


class Block:
    """Nothing is ever dropped."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[Entry] = []

    def put(self, ticks: list[Tick]) -> dict[str, int]:
        self.entries += ticks
        return {}

    def room(self) -> int:
        return self.size - len(self.entries)

    def events(self) -> int:
        return sum(isinstance(entry, Event) for entry in self.entries)


class DropOldest(Block):
    """The oldest ticks go until `size` are left."""

    def put(self, ticks: list[Tick]) -> dict[str, int]:
        self.entries += ticks
        dropped: Counter[str] = Counter()
        while len(self.entries) - self.events() > self.size:
            oldest = next(entry for entry in self.entries if not isinstance(entry, Event))
            self.entries.remove(oldest)
            dropped[oldest["pair"]] += 1
        return dropped

    def room(self) -> int:
        return NO_BOUND if self.events() < self.size else 0


class Latest(DropOldest):
    """A tick takes the place of its pair's older one, if that stands behind the last event."""

    def put(self, ticks: list[Tick]) -> dict[str, int]:
        dropped: Counter[str] = Counter()
        for tick in ticks:
            for at in reversed(range(len(self.entries))):
                entry = self.entries[at]
                if isinstance(entry, Event):
                    self.entries.append(tick)
                    break
                if entry["pair"] == tick["pair"]:
                    self.entries[at] = tick
                    dropped[tick["pair"]] += 1
                    break
            else:
                self.entries.append(tick)
        return dropped


MODELS: dict[str, type[Block]] = {"block": Block, "drop_oldest": DropOldest, "latest": Latest}
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(PAIRS), st.integers(1, 6)),
        st.tuples(st.just("event"), st.just(""), st.just(1)),
        st.tuples(st.just("take"), st.just(""), st.integers(1, 6)),
        st.tuples(st.just("clear"), st.just(""), st.just(1)),
    ),
    max_size=40,
)


def test_there_is_a_model_of_each_policy() -> None:
    """No policy is left out of the tests below."""
    assert QUEUES.keys() == MODELS.keys()


@pytest.mark.parametrize("policy", MODELS)
@given(size=st.integers(1, 8), given_steps=steps)
@settings(deadline=None, max_examples=250)
def test_a_queue_does_what_its_model_does(policy: str, size: int, given_steps: list[tuple[str, str, int]]) -> None:
    """Order, room, depths and counts of what is dropped are the model's after every step."""
    queue, model = QUEUES[policy](size), MODELS[policy](size)
    number = 0
    for kind, pair, count in given_steps:
        number += count
        if kind == "put":
            ticks = ticks_of(pair, number, count)
            assert model.put(list(ticks)) == queue.put_ticks(ticks)
        elif kind == "event":
            event = Event(State.STREAMING, str(number))
            queue.put_event(event)
            model.entries.append(event)
        elif kind == "clear":
            queue.clear()
            model.entries.clear()
        else:
            for _ in range(count):
                assert (model.entries.pop(0) if model.entries else None) == taken(queue)
        assert len(model.entries) == queue.depth()
        assert model.room() == queue.room()
        for name in PAIRS:
            expected = sum(not isinstance(entry, Event) and entry["pair"] == name for entry in model.entries)
            assert expected == queue.depths().get(name, 0)
    assert [*map(shown, model.entries)] == [*map(shown, everything(queue))]


def everything(queue: TickQueue) -> Iterator[Entry]:
    """What is in the queue, taken out."""
    while (entry := taken(queue)) is not None:
        yield entry


def fill(queue: TickQueue) -> dict[str, int]:
    """Two of A, an event, two of B, an event, three of A; what was dropped in all."""
    dropped: Counter[str] = Counter(queue.put_ticks(ticks_of("A", 1, 2)))
    queue.put_event(Event(State.STREAMING, "one"))
    dropped.update(queue.put_ticks(ticks_of("B", 3, 2)))
    queue.put_event(Event(State.STREAMING, "two"))
    dropped.update(queue.put_ticks(ticks_of("A", 5, 3)))
    return dict(dropped)


def test_block_keeps_all_in_order_and_tells_how_much_room_there_is() -> None:
    """Beyond its size it takes what was read already, and its room is 0 or less."""
    queue = BlockQueue(8)
    assert queue.room() == 8
    assert fill(queue) == {}
    assert queue.room() == -1
    assert [*map(shown, everything(queue))] == [
        "A 1",
        "A 2",
        "event one",
        "B 3",
        "B 4",
        "event two",
        "A 5",
        "A 6",
        "A 7",
    ]
    assert queue.room() == 8


def test_drop_oldest_keeps_the_newest_ticks_and_every_event() -> None:
    """What was dropped is counted a pair; events keep their places among the ticks that are left."""
    queue = DropOldestQueue(4)
    assert fill(queue) == {"A": 2, "B": 1}
    assert [*map(shown, everything(queue))] == ["event one", "B 4", "event two", "A 5", "A 6", "A 7"]


def test_latest_keeps_one_tick_a_pair_that_overtakes_no_event() -> None:
    """The newest tick takes its predecessor's place, but never one before an event that it came after."""
    queue = LatestQueue(4)
    assert fill(queue) == {"A": 3, "B": 1}
    assert [*map(shown, everything(queue))] == ["A 2", "event one", "B 4", "event two", "A 7"]


def test_latest_keeps_the_place_of_the_pair_that_waits_longest() -> None:
    """A busy pair does not push the others back."""
    queue = LatestQueue(4)
    for number in range(3):
        queue.put_ticks(ticks_of("A", number, 1))
        queue.put_ticks(ticks_of("B", number, 1))
    assert [*map(shown, everything(queue))] == ["A 2", "B 2"]


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_a_policy_that_drops_ticks_stops_reading_for_events_alone(policy: str) -> None:
    """Events are never dropped, so a flood of them has to be held back."""
    queue = QUEUES[policy](2)
    queue.put_ticks(ticks_of("A", 0, 100))
    queue.put_event(Event(State.STREAMING, "one"))
    assert queue.room() == NO_BOUND
    queue.put_event(Event(State.STREAMING, "two"))
    assert queue.room() == 0
    list(everything(queue))
    assert queue.room() == NO_BOUND


# Two threads.


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    """Threads take turns as often as possible, so that they meet in the middle of things."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def exchange(queue: TickQueue, batches: list[list[Tick]], respect_room: bool) -> tuple[list[Entry], Counter[str]]:
    """One thread puts the batches, an event after each, while this one takes; what was taken, and what was dropped."""
    dropped: Counter[str] = Counter()
    done = threading.Event()

    def put() -> None:
        try:
            for batch in batches:
                while respect_room and queue.room() < len(batch):
                    queue.depths()
                dropped.update(queue.put_ticks(batch))
                queue.put_event(Event(State.STREAMING, batch[0]["pair"]))
        finally:
            done.set()

    producer = threading.Thread(target=put)
    producer.start()
    taken: list[Entry] = []
    while not done.is_set():
        taken += everything(queue)
    producer.join(PATIENCE)
    taken += everything(queue)
    return taken, dropped


BATCHES = [ticks_of(PAIRS[number % 3], number * 7, number % 7 + 1) for number in range(1_500)]


@pytest.mark.usefixtures("impatient_threads")
def test_block_loses_and_mixes_up_nothing_between_two_threads() -> None:
    """What one thread puts, the other takes: all of it, in order."""
    queue = BlockQueue(20)
    taken, dropped = exchange(queue, BATCHES, respect_room=True)
    expected = [entry for batch in BATCHES for entry in (*map(shown, batch), f"event {batch[0]['pair']}")]
    assert expected == [*map(shown, taken)]
    assert not dropped
    assert (queue.depth(), queue.room()) == (0, 20)


@pytest.mark.usefixtures("impatient_threads")
@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_what_is_dropped_and_what_is_taken_are_all_there_was_between_two_threads(policy: str) -> None:
    """Every tick is taken or counted as dropped, a pair's order is kept, and no event is lost."""
    queue = QUEUES[policy](5)
    taken, dropped = exchange(queue, BATCHES, respect_room=False)
    ticks = [entry for entry in taken if not isinstance(entry, Event)]
    put = Counter(tick["pair"] for batch in BATCHES for tick in batch)
    assert put == Counter(tick["pair"] for tick in ticks) + dropped
    numbers = [tick["price"] for tick in ticks]
    assert sorted(numbers) == numbers
    assert BATCHES[-1][-1] == ticks[-1]
    assert len(BATCHES) == len(taken) - len(ticks)
    assert 0 == queue.depth() == sum(queue.depths().values())
