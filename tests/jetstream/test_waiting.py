"""`Waiting`: a bounded queue that makes its sources wait, and then drops."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer import PublishError
from finx_streamer.jetstream import waiting as waiting_module
from finx_streamer.jetstream.message import Message
from finx_streamer.jetstream.waiting import Waiting


def message(number: int) -> Message:
    return Message("s", b"", str(number), "MINE", "2026-11-29T08:00:00", 0, "s")


class Signals:
    """What a queue reports."""

    def __init__(self) -> None:
        self.woken = self.full = 0

    def wake(self) -> None:
        self.woken += 1

    def on_full(self) -> None:
        self.full += 1


@pytest.fixture
def signals() -> Signals:
    return Signals()


@pytest.fixture
def queue(signals: Signals) -> Iterator[Waiting]:
    waiting = Waiting(4, signals.wake, signals.on_full)
    yield waiting
    waiting.close()


def ids(messages: list[Message]) -> list[str]:
    return [each.message_id for each in messages]


def test_it_keeps_the_order_and_wakes_the_sender_once(queue: Waiting, signals: Signals) -> None:
    assert queue.take(10) == []
    for number in range(3):
        queue.put(message(number))
    assert (signals.woken, len(queue)) == (1, 3)
    assert (ids(queue.take(2)), ids(queue.take(2))) == (["0", "1"], ["2"])


def test_a_full_queue_makes_the_source_wait(queue: Waiting, signals: Signals) -> None:
    def put_all() -> None:
        for number in range(1_000):
            queue.put(message(number))

    thread = threading.Thread(target=put_all)
    thread.start()
    taken: list[str] = []
    while len(taken) < 1_000:
        assert len(queue) <= 4
        taken += ids(queue.take(3))
    thread.join()
    assert taken == [str(number) for number in range(1_000)]
    assert (signals.full, queue.take_dropped()) == (0, 0)


def test_after_a_while_it_drops_until_there_is_room(
    queue: Waiting, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning is reported once, and the number at the end."""
    monkeypatch.setattr(waiting_module, "PATIENCE", 0.01)
    for number in range(10):
        queue.put(message(number))
    assert (signals.full, len(queue), queue.take_dropped()) == (1, 4, 0)
    queue.take(1)
    queue.put(message(10))
    assert (signals.full, queue.take_dropped()) == (1, 0)
    queue.take(1)
    assert (queue.take_dropped(), queue.take_dropped()) == (7, 0)
    queue.put(message(11))
    assert ids(queue.take(10)) == ["2", "3", "11"]


def test_it_recovers_if_it_was_emptied_before_the_drop(queue: Waiting) -> None:
    queue.drop()
    assert queue.take(10) == []
    assert queue.take_dropped() == 1
    queue.put(message(1))
    assert ids(queue.take(10)) == ["1"]


def test_after_its_end_a_source_gets_an_error(queue: Waiting) -> None:
    queue.put(message(1))
    queue.close()
    with pytest.raises(PublishError, match="closed"):
        queue.put(message(2))
    assert (queue.end(), len(queue)) == (1, 0)
