"""A full queue on a shared connection: a gap whose recovery waits for an unread answer is filled in the end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer import Endpoint, GapNotFilled, StreamListener
from finx_streamer.connection import relief
from tests.support.effort import examples
from tests.support.market import OTHER, PAIR, tick
from tests.support.peers import PATIENCE, Seen
from tests.support.second_wire import SecondWire
from tests.support.turns import TURNS

QUIET = "QUIET:USDC"
#: Publish this many ticks of a pair, or "block" and "unblock" the user's code, or "drop" the connection.
Step = tuple[str, int] | str
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([PAIR, OTHER]), st.integers(1, 300)),
        st.tuples(st.just(QUIET), st.just(1)),
        st.sampled_from(["block", "unblock", "drop", "drop"]),
    ),
    min_size=4,
    max_size=14,
)


class Consumer:
    """The user's code: takes ticks, unless it is blocked."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.seen = Seen()

    def __call__(self, each: Any) -> None:
        assert self.go_on.wait(PATIENCE)
        self.seen.on_tick(each)

    def numbers(self, pair: str) -> list[int]:
        return [int(each["price"]) - 19_200 for each in list(self.seen.ticks) if each["pair"] == pair]


def by_callback(listener: StreamListener, consumer: Consumer) -> threading.Thread | None:
    """Take ticks in a callback."""
    listener.on_tick(consumer)
    return None


def by_loop(listener: StreamListener, consumer: Consumer) -> threading.Thread:
    """Take ticks in a `for` loop."""
    begun = threading.Event()

    def loop() -> None:
        with listener:
            ticks = iter(listener)
            begun.set()
            for each in ticks:
                consumer(each)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    assert begun.wait(PATIENCE)
    return thread


Consume = Callable[[StreamListener, Consumer], threading.Thread | None]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("dispatch", "consume"),
    [("thread", by_callback), ("thread, changing hands", by_callback), ("thread", by_loop), ("inline", by_loop)],
    ids=["callback", "changing hands", "loop", "inline loop"],
)
@given(given_steps=steps, queue_size=st.sampled_from([1, 2, 10, 100]), confirms=st.booleans())
@example(["block", (PAIR, 300), "drop", (PAIR, 300), (OTHER, 300), "drop", (QUIET, 1), (OTHER, 300)], 10, True)
@example([(PAIR, 300), "block", "drop", (OTHER, 300), (PAIR, 300), "unblock", "drop", "block", (PAIR, 300)], 1, False)
@examples(30)
def test_nothing_is_lost_or_stuck(
    dispatch: str, consume: Consume, given_steps: list[Step], queue_size: int, confirms: bool
) -> None:
    """Whenever callbacks block, connections drop, and a pair is quiet: each tick arrives once and in order."""
    consumer, published = Consumer(), Counter[str]()
    pairs = (PAIR, OTHER, QUIET)
    dispatch, _, turns = dispatch.partition(", ")
    with SecondWire(confirms=confirms) as service, pytest.MonkeyPatch.context() as patch:
        if turns:
            patch.setattr(relief, "TIMING", TURNS[turns])
        listener = consumer.seen.listener(
            Endpoint(service.url, wire="subscribe"),
            *pairs,
            backfill=True,
            dispatch=dispatch,
            queue_size=queue_size,
            on_tick=None,
        )

        def publish(pair: str, count: int) -> None:
            first = published[pair] + 1
            published[pair] += count
            service.publish(*(tick(number, pair) for number in range(first, first + count)))

        thread = consume(listener, consumer)
        listener.start()
        service.wait_subscribed(3)
        for pair in pairs:
            publish(pair, 1)
        consumer.seen.wait_ticks(3)
        for step in given_steps:
            match step:
                case "block":
                    consumer.go_on.clear()
                case "unblock":
                    consumer.go_on.set()
                case "drop":
                    service.drop()
                case (str(pair), int(count)):
                    publish(pair, count)
        consumer.go_on.set()
        # Without confirmations, missed ticks are fetched once a live one shows that the stream is back.
        service.wait_subscribed(3)
        for pair in pairs:
            publish(pair, 1)
        consumer.seen.wait_ticks(published.total())
        assert listener.stop()
        if thread is not None:
            thread.join(PATIENCE)
    for pair in pairs:
        assert consumer.numbers(pair) == list(range(1, published[pair] + 1))
    assert consumer.seen.of_type(GapNotFilled) == []
