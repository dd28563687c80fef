"""The resequencer: which tick goes out when, in each of its phases."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from finx_streamer.clock import monotonic
from finx_streamer.errors import ConnectionFailed, GapNotFilled
from finx_streamer.streaming import resequencer as resequencer_module
from finx_streamer.streaming.backfill import Job
from finx_streamer.streaming.counters import Counters
from finx_streamer.streaming.recovery import FIRST_TICK_TIMEOUT, HOLD_TIMEOUT
from finx_streamer.streaming.resequencer import Resequencer
from finx_streamer.streaming.settings import Allowance
from finx_streamer.values import NEVER, NO_BOUND, Event, Gap, Notice
from tests.support.recovery import PAIR, at, history, tick

NOTICE = Event(Notice(PAIR, {"keepAlive": True}, 0), PAIR)


class FakeDelivery:
    """Accepts `free` ticks, and keeps what it gets."""

    def __init__(self) -> None:
        self.free = NO_BOUND
        self.got: list[Any] = []
        self.room_wanted = 0

    def room(self) -> int:
        return self.free

    def want_room(self) -> None:
        self.room_wanted += 1

    def put_ticks(self, ticks: list[Any], pairs: list[str] | None = None) -> None:
        self.free -= len(ticks)
        self.got += ticks

    def put_event(self, event: Event) -> None:
        self.got.append(event.payload)


class FakeHost:
    """Counts requests."""

    def __init__(self) -> None:
        self.probes = self.resumed = self.rescheduled = self.connected = 0
        self.reported: list[ConnectionFailed] = []
        self.busy = False
        self.starved_at = -math.inf

    def send_probe(self) -> None:
        self.probes += 1

    def connect(self) -> None:
        self.connected += 1

    def report(self, error: ConnectionFailed) -> None:
        self.reported.append(error)

    def resume_reading(self) -> None:
        self.resumed += 1

    def reschedule(self) -> None:
        self.rescheduled += 1

    def set_busy(self, busy: bool) -> None:
        self.busy = busy


class FakeBackfiller:
    """Keeps the jobs."""

    def __init__(self) -> None:
        self.is_busy = False
        self.jobs: list[Job] = []

    def fetch(self, job: Job) -> None:
        """It has a free worker."""
        job.started = not self.is_busy
        self.jobs.append(job)


class Stream:
    """A resequencer and its surroundings."""

    def __init__(self, backfill: bool = True, exchanges: frozenset[str] | None = None, allowance: int = 100) -> None:
        self.delivery, self.host, self.counters = FakeDelivery(), FakeHost(), Counters()
        self.allowance = Allowance(allowance)
        self.backfiller = FakeBackfiller()
        backfiller: Any = self.backfiller if backfill else None
        self.resequencer = Resequencer(
            PAIR, self.delivery, self.counters, self.allowance, exchanges, backfiller, self.host
        )

    def put(self, *ticks: Any) -> bool:
        """As a stream does. Return whether any tick was wanted."""
        wanted = self.resequencer.wanted(list(ticks))
        if wanted and (live := self.resequencer.take_ticks(wanted, 0.0)):
            self.delivery.put_ticks(live)
        return bool(wanted)

    def interrupt(self) -> None:
        self.resequencer.lost(0.0)
        self.resequencer.opened(0.0)

    def answer(self, *ticks: Any) -> None:
        """History answers the last job."""
        job = self.backfiller.jobs[-1]
        job.hand_over(history(*ticks))
        job.finish(None)

    def recover(self, *ticks: Any) -> None:
        """History and the server answer."""
        self.answer(*ticks)
        self.resequencer.probe_answered(0.0)

    @property
    def got(self) -> list[Any]:
        return self.delivery.got


def missed(seconds: float) -> Any:
    """A tick that comes from history."""
    return tick(seconds, backfilled=True)


def gap(since: float, until: float, filled: bool, ticks: int) -> Gap:
    return Gap(PAIR, at(since), at(until), filled, ticks)


def test_live_ticks_are_delivered_at_once() -> None:
    """They are counted, and take nothing from the allowance."""
    stream = Stream()
    assert stream.put(tick(1), tick(2))
    assert stream.got == [tick(1), tick(2)]
    assert stream.resequencer.is_live
    assert (stream.counters.ticks, stream.allowance.used) == (2, 0)


def test_unwanted_exchanges_are_discarded() -> None:
    """The result says whether any tick was wanted."""
    stream = Stream(exchanges=frozenset({"OKX"}))
    assert not stream.put(tick(1))
    assert stream.put(tick(2), tick(3, exchange="OKX"))
    assert stream.got == [tick(3, exchange="OKX")]


@pytest.mark.parametrize("backfill", [False, True])
def test_before_the_first_tick_there_is_no_gap(backfill: bool) -> None:
    """A new connection then changes nothing."""
    stream = Stream(backfill)
    stream.resequencer.opened(0.0)
    stream.put(tick(1))
    assert (stream.got, stream.backfiller.jobs) == ([tick(1)], [])


def test_without_backfill_the_next_tick_ends_the_gap() -> None:
    """Each interruption is reported, before the first live tick. Several without a tick between them are one gap."""
    stream = Stream(backfill=False)
    stream.put(tick(1))
    stream.interrupt()
    stream.resequencer.put_event(NOTICE)
    stream.interrupt()
    assert not stream.resequencer.is_live
    stream.put(tick(2), tick(3))
    assert stream.got == [tick(1), NOTICE.payload, gap(1, 2, False, 0), tick(2), tick(3)]
    assert stream.resequencer.is_live
    assert stream.counters.gaps == 1


def test_missed_ticks_come_before_the_gap_and_the_held_ticks() -> None:
    """Live ticks and events are held until history and the server have answered."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(4))
    stream.resequencer.put_event(NOTICE)
    assert stream.got == [tick(1)]
    assert (stream.counters.held, stream.allowance.used) == (2, 2)
    stream.answer(tick(1), tick(2), tick(3), tick(4))
    assert stream.host.probes == 1
    stream.resequencer.probe_answered(0.0)
    assert stream.got == [tick(1), missed(2), missed(3), gap(1, 4, True, 2), tick(4), NOTICE.payload]
    assert stream.resequencer.is_live
    assert (stream.counters.held, stream.allowance.used) == (0, 0)
    assert (stream.counters.ticks, stream.counters.gaps, stream.counters.filled_ticks) == (4, 1, 2)


def test_unwanted_exchanges_are_not_filled() -> None:
    """`exchanges` applies to history, too."""
    stream = Stream(exchanges=frozenset({"OKX"}))
    okx = [tick(number, exchange="OKX") for number in range(4)]
    stream.put(okx[0])
    stream.interrupt()
    stream.put(okx[3])
    stream.recover(okx[0], tick(1), okx[2], okx[3])
    assert stream.got == [okx[0], {**okx[2], "backfilled": True}, gap(0, 3, True, 1), okx[3]]


def test_the_queue_drains_as_the_delivery_has_room() -> None:
    """Ticks that arrive meanwhile go behind it. The stream is live when it is empty, and reading resumes."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(4))
    stream.delivery.free = 1
    stream.recover(tick(1), tick(2), tick(3), tick(4))
    assert stream.got == [tick(1), missed(2)]
    assert (stream.delivery.room_wanted, stream.host.resumed) == (1, 0)
    stream.put(tick(5))
    stream.resequencer.put_event(NOTICE)
    assert stream.allowance.used == 5
    stream.delivery.free = 2
    stream.resequencer.drain()
    assert stream.got[2:] == [missed(3), gap(1, 4, True, 2), tick(4)]
    assert not stream.resequencer.is_live
    stream.delivery.free = 1
    stream.resequencer.drain()
    assert stream.got[5:] == [tick(5)]
    stream.delivery.free = 1
    stream.resequencer.drain()
    assert stream.got[6:] == [NOTICE.payload]
    assert stream.resequencer.is_live
    assert (stream.allowance.used, stream.host.resumed) == (0, 1)


def test_a_second_interruption_while_the_queue_drains_is_a_new_gap() -> None:
    """Its gap begins at the last queued tick."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(4))
    stream.delivery.free = 0
    stream.recover(tick(1), tick(4))
    stream.interrupt()
    stream.put(tick(6))
    stream.recover(tick(4), tick(5), tick(6))
    stream.delivery.free = NO_BOUND
    stream.resequencer.drain()
    assert stream.got[1:] == [gap(1, 4, True, 0), tick(4), missed(5), gap(4, 6, True, 1), tick(6)]


def test_without_history_the_held_ticks_are_released() -> None:
    """The gap is reported with its reason. A later one doesn't ask for the missed ticks again."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(1.5))
    stream.backfiller.jobs[-1].finish("no rights")
    first, reported, error, live = stream.got
    assert (first, reported, live) == (tick(1), gap(1, 1.5, False, 0), tick(1.5))
    assert isinstance(error, GapNotFilled)
    assert str(error) == f"{PAIR}: gap not filled: no rights"
    stream.interrupt()
    stream.put(tick(2))
    assert at(1.5) < stream.backfiller.jobs[-1].start


def test_a_gap_given_up_without_a_live_tick_stays_given_up() -> None:
    """The next tick is delivered, and later gaps begin behind it."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.resequencer.wake(stream.resequencer.deadline)
    stream.backfiller.jobs[-1].finish("no rights")
    assert not stream.resequencer.is_live
    stream.put(tick(1.5))
    assert stream.got[-1] == tick(1.5)
    assert stream.resequencer.is_live
    stream.interrupt()
    stream.put(tick(2))
    assert at(1.5) < stream.backfiller.jobs[-1].start


def test_an_interruption_right_after_a_given_up_gap_covers_both() -> None:
    """Without a tick between them there is one hole, and history may fill it now."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.resequencer.wake(stream.resequencer.deadline)
    stream.backfiller.jobs[-1].finish("no rights")
    stream.interrupt()
    stream.put(tick(3))
    stream.recover(tick(1), tick(2), tick(3))
    assert stream.got[-3:] == [missed(2), gap(1, 3, True, 1), tick(3)]


def test_a_new_connection_drops_the_old_answer() -> None:
    """Pages and ends of an earlier job are ignored."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3))
    old = stream.backfiller.jobs[-1]
    stream.interrupt()
    stream.put(tick(5))
    assert old.cancelled
    old.hand_over(history(tick(1), tick(2), tick(3)))
    old.finish("interrupted")
    stream.recover(tick(1), tick(2), tick(3), tick(4), tick(5))
    assert stream.got[1:] == [missed(2), gap(1, 5, True, 2), tick(3), missed(4), tick(5)]


def test_pages_are_acknowledged_when_they_are_delivered() -> None:
    """History is fetched no faster than the delivery takes it."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(100))
    stream.delivery.free = 0
    job = stream.backfiller.jobs[-1]
    for page in (history(tick(1), tick(2), tick(20)), history(tick(30), tick(40))):
        assert job.room.acquire(blocking=False)
        job.hand_over(page)
    assert not job.room.acquire(blocking=False)
    stream.delivery.free = NO_BOUND
    stream.resequencer.drain()
    assert [job.room.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    assert stream.got[1:] == [missed(2), missed(20), missed(30)]


def test_held_ticks_are_released_after_a_timeout() -> None:
    """If history doesn't answer, the gap is given up."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3))
    assert stream.resequencer.deadline == HOLD_TIMEOUT
    stream.resequencer.wake(HOLD_TIMEOUT)
    assert stream.got[1] == gap(1, 3, False, 0)
    assert "history did not answer" in str(stream.got[2])
    assert stream.got[3] == tick(3)


def test_the_wait_for_history_does_not_count_towards_the_timeout() -> None:
    """With many gaps at once, a fetch waits for its turn. The time starts with it."""
    stream = Stream()
    stream.backfiller.is_busy = True
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3))
    assert stream.resequencer.deadline == NEVER
    before = monotonic()
    stream.backfiller.jobs[0].begin()
    assert before + HOLD_TIMEOUT <= stream.resequencer.deadline <= monotonic() + HOLD_TIMEOUT


def test_unread_answers_do_not_count_towards_the_timeout() -> None:
    """While reading waits for slow callbacks, the answer to the ping may be unread."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3))
    stream.answer(tick(1), tick(2), tick(3))
    stream.host.starved_at = HOLD_TIMEOUT - 1.0
    stream.resequencer.wake(HOLD_TIMEOUT)
    assert stream.resequencer.deadline == 2 * HOLD_TIMEOUT
    stream.resequencer.probe_answered(HOLD_TIMEOUT + 1.0)
    assert stream.got == [tick(1), missed(2), gap(1, 3, True, 1), tick(3)]


def test_outages_do_not_count_towards_the_timeout() -> None:
    """A server that is away can't answer. A new connection doesn't restart the timeout either."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3))
    stream.resequencer.lost(10.0)
    assert stream.resequencer.deadline == NEVER
    stream.resequencer.opened(100.0)
    stream.resequencer.take_ticks([tick(4)], 101.0)
    stream.resequencer.lost(105.0)
    stream.resequencer.opened(200.0)
    stream.resequencer.wake(200.0 + FIRST_TICK_TIMEOUT)
    assert stream.resequencer.deadline == 200.0 + HOLD_TIMEOUT - 10.0 - 5.0
    stream.resequencer.wake(215.0)
    assert "history did not answer" in str(stream.got[2])
    assert stream.got[3:] == [tick(3), tick(4)]


def test_slow_callbacks_do_not_count_towards_the_timeout() -> None:
    """While found ticks wait for room, the gap is not given up."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(100))
    stream.delivery.free = 0
    stream.backfiller.jobs[-1].hand_over(history(tick(1), tick(2), tick(20)))
    due = stream.resequencer.deadline
    stream.resequencer.wake(due)
    assert stream.got == [tick(1)]
    assert stream.resequencer.deadline == due + HOLD_TIMEOUT


def test_reading_stops_when_enough_is_held() -> None:
    """There is no bound until every tick that could equal a missed one was read. Then the allowance counts."""
    stream = Stream(allowance=2)
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3), tick(3), tick(3))
    assert stream.resequencer.room() == NO_BOUND
    stream.put(tick(5.1))
    assert stream.resequencer.room() == -2
    stream.resequencer.reading_paused(0.0)
    stream.answer(tick(1), tick(2), tick(3), tick(3), tick(3))
    assert stream.host.probes == 0
    assert stream.got[1:] == [missed(2), gap(1, 3, True, 1), *[tick(3)] * 3, tick(5.1)]


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ticks' own time doesn't advance, the gap is given up."""
    monkeypatch.setattr(resequencer_module, "MAX_HELD", 10)
    stream = Stream(allowance=2)
    stream.put(tick(1))
    stream.interrupt()
    stream.put(*[tick(3)] * 10)
    assert stream.got == [tick(1)]
    stream.resequencer.put_event(NOTICE)
    assert "more arrived during the gap than can be held" in str(stream.got[2])
    assert stream.got[3:] == [*[tick(3)] * 10, NOTICE.payload]


def test_the_end_delivers_everything() -> None:
    """A recovery is given up with the reason, and room doesn't matter."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3), tick(4))
    stream.delivery.free = 0
    stream.resequencer.end("the stream was removed")
    assert stream.got[1] == gap(1, 3, False, 0)
    assert "the stream was removed" in str(stream.got[2])
    assert stream.got[3:] == [tick(3), tick(4)]
    assert stream.backfiller.jobs[-1].cancelled


def test_phases_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, with the symbol."""
    stream = Stream()
    stream.put(tick(1))
    with caplog.at_level(logging.DEBUG, "finx_streamer"):
        stream.interrupt()
        stream.put(tick(2))
        stream.recover(tick(1), tick(2))
    phases = ["recovering", "draining", "live"]
    assert caplog.messages == [f"{PAIR}: resequencer: {phase}" for phase in phases]


def test_a_gap_goes_on_while_a_requested_stream_may_have_ticks_in_transit() -> None:
    """Tick 4 is in history before it arrives on the new connection, which has not joined yet. It comes once."""
    stream = Stream()
    stream.put(tick(1))
    stream.interrupt()
    stream.put(tick(3))
    stream.resequencer.lost(0.0)
    stream.resequencer.requested(0.0)
    stream.answer(tick(1), missed(2), tick(3), missed(4))
    assert stream.got == [tick(1)]
    stream.resequencer.opened(0.0)
    stream.put(tick(4))
    stream.recover(tick(1), missed(2), tick(3), missed(4))
    assert stream.got == [tick(1), missed(2), gap(1, 4, True, 1), tick(3), tick(4)]
