"""The three overflow policies, compared with simple models, and used by two threads."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.delivery.queues import QUEUES, BlockQueue, DropOldestQueue, Entry, LatestQueue, TickQueue
from finx_streamer.values import NO_BOUND, Event, State, Tick
from tests.support.effort import examples
from tests.support.queue_models import MODELS, PAIRS, Step, mixed, shown, steps, taken, ticks_of

PATIENCE = 50.0


def test_every_policy_has_a_model() -> None:
    """The tests below leave out no policy."""
    assert QUEUES.keys() == MODELS.keys()


@pytest.mark.parametrize("policy", MODELS)
@given(size=st.integers(1, 8), given_steps=steps)
@examples(250)
def test_a_queue_behaves_like_its_model(policy: str, size: int, given_steps: list[Step]) -> None:
    """After every step, order, room, depths and dropped counts equal those of the model."""
    queue, model = QUEUES[policy](size), MODELS[policy](size)
    for number, step in enumerate(given_steps):
        if isinstance(step, list):
            ticks = mixed(step, number * 10)
            expected_drops = model.put(list(ticks))
            assert queue.put_ticks(ticks) == expected_drops
        elif step is None:
            event = Event(State.STREAMING, str(number))
            queue.put_event(event)
            model.entries.append(event)
        else:
            for _ in range(step):
                expected_entry = model.entries.pop(0) if model.entries else None
                assert taken(queue) == expected_entry
        assert queue.depth() == len(model.entries)
        assert queue.room() == model.room()
        for name in PAIRS:
            expected = sum(not isinstance(entry, Event) and entry["pair"] == name for entry in model.entries)
            assert queue.depths().get(name, 0) == expected
    assert [*map(shown, everything(queue))] == [*map(shown, model.entries)]


def everything(queue: TickQueue) -> Iterator[Entry]:
    """Take all entries out of a queue."""
    while (entry := taken(queue)) is not None:
        yield entry


def fill(queue: TickQueue) -> dict[str, int]:
    """Put two ticks of A, an event, two of B, an event and three of A. Return what was dropped in total."""
    dropped: Counter[str] = Counter(queue.put_ticks(ticks_of("A", 1, 2)))
    queue.put_event(Event(State.STREAMING, "one"))
    dropped.update(queue.put_ticks(ticks_of("B", 3, 2)))
    queue.put_event(Event(State.STREAMING, "two"))
    dropped.update(queue.put_ticks(ticks_of("A", 5, 3)))
    return dict(dropped)


def test_block_keeps_everything_in_order_and_reports_its_room() -> None:
    """It accepts more ticks than its size, because they were already read. Its room is 0 or less then."""
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
    """It counts dropped ticks by pair, and events keep their places among the remaining ticks."""
    queue = DropOldestQueue(4)
    assert fill(queue) == {"A": 2, "B": 1}
    assert [*map(shown, everything(queue))] == ["event one", "B 4", "event two", "A 5", "A 6", "A 7"]


def test_latest_keeps_one_tick_per_pair_and_never_overtakes_an_event() -> None:
    """The newest tick replaces its predecessor, unless an event came in between."""
    queue = LatestQueue(4)
    assert fill(queue) == {"A": 3, "B": 1}
    assert [*map(shown, everything(queue))] == ["A 2", "event one", "B 4", "event two", "A 7"]


def test_latest_keeps_one_tick_of_each_pair_of_a_mixed_list() -> None:
    """On a shared connection, one read has ticks of many pairs."""
    queue = LatestQueue(4)
    assert queue.put_ticks(mixed(["A", "B", "A", "C"], 1)) == {"A": 1}
    assert queue.put_ticks(mixed(["B", "B"], 5)) == {"B": 2}
    assert [*map(shown, everything(queue))] == ["A 3", "B 6", "C 4"]


def test_latest_keeps_the_order_of_the_pairs() -> None:
    """A busy pair doesn't push the others back."""
    queue = LatestQueue(4)
    for number in range(3):
        queue.put_ticks(ticks_of("A", number, 1))
        queue.put_ticks(ticks_of("B", number, 1))
    assert [*map(shown, everything(queue))] == ["A 2", "B 2"]


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_dropping_policies_run_out_of_room_only_through_events(policy: str) -> None:
    """Events are never dropped, so too many of them must stop reading."""
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
def frequent_switches() -> Iterator[None]:
    """Switch threads as often as possible, so that races become likely."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def exchange(queue: TickQueue, batches: list[list[Tick]], respect_room: bool) -> tuple[list[Entry], Counter[str]]:
    """Put batches on another thread, an event after each, and take them here. Return what was taken and dropped."""
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


@pytest.mark.usefixtures("frequent_switches")
def test_block_delivers_everything_in_order_between_two_threads() -> None:
    """The consumer takes everything that the producer puts."""
    queue = BlockQueue(20)
    taken, dropped = exchange(queue, BATCHES, respect_room=True)
    expected = [entry for batch in BATCHES for entry in (*map(shown, batch), f"event {batch[0]['pair']}")]
    assert [*map(shown, taken)] == expected
    assert not dropped
    assert (queue.depth(), queue.room()) == (0, 20)


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_dropping_policies_account_for_every_tick_between_two_threads(policy: str) -> None:
    """Every tick is taken or counted as dropped, ticks stay in order, and no event is lost."""
    queue = QUEUES[policy](5)
    taken, dropped = exchange(queue, BATCHES, respect_room=False)
    ticks = [entry for entry in taken if not isinstance(entry, Event)]
    put = Counter(tick["pair"] for batch in BATCHES for tick in batch)
    assert Counter(tick["pair"] for tick in ticks) + dropped == put
    numbers = [tick["price"] for tick in ticks]
    assert numbers == sorted(numbers)
    assert ticks[-1] == BATCHES[-1][-1]
    assert len(taken) - len(ticks) == len(BATCHES)
    assert queue.depth() == 0
    assert sum(queue.depths().values()) == 0
