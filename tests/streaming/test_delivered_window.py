"""The window of delivered ticks: what it remembers, and what it says about the rest."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.streaming.delivered_window import _TRIM_EVERY, DeliveredWindow, Key, LastTickTime
from finx_streamer.values import Tick
from finx_streamer.wire.names import _MOST, _names
from tests.support.effort import examples
from tests.support.recovery import at, keys_of, tick, window_of

SECOND = timedelta(seconds=1)


def test_remembers_nothing_from_before_the_first_tick() -> None:
    """Ticks before the stream's first one can't be missing."""
    window = window_of(tick(5), tick(5.1))
    assert window.snapshot() == (at(5), keys_of(tick(5), tick(5.1)))


def test_forgets_ticks_older_than_the_lateness() -> None:
    """Only ticks that a gap may need are kept."""
    window = window_of(*(tick(number * 0.1) for number in range(100)))
    start, keys = window.snapshot()
    assert start == at(8.9)
    assert keys == keys_of(*(tick(number * 0.1) for number in range(89, 100)))


def test_evicts_the_oldest_ticks_beyond_its_size() -> None:
    """It then starts later, so that it holds every tick from its start on."""
    window = DeliveredWindow(SECOND, size=10)
    for number in range(50):
        window.extend([tick(number * 0.001), tick(number * 0.001, 2.0)])
    start, keys = window.snapshot()
    assert at(0.045) < start < at(0.049)
    every = [tick(number * 0.001, price) for number in range(50) for price in (1.0, 2.0)]
    assert keys == keys_of(*(each for each in every if each["timestamp"] >= start))


def test_overruns_when_one_time_has_too_many_ticks() -> None:
    """If it can't remember every tick of the last time, it says so."""
    assert not window_of(*[tick(5)] * 10, size=10).overrun
    assert window_of(*[tick(5)] * 30, size=10).overrun
    assert not window_of(*[tick(5)] * 30, tick(5.1), size=10).overrun


def test_restart_forgets_the_ticks_up_to_the_next_one() -> None:
    """Ticks of a gap that was given up are not found later, out of order."""
    window = window_of(*(tick(number * 0.1) for number in range(20)))
    window.restart(at(2.5))
    assert window.last is None
    window.extend([tick(2.5), tick(2.6)])
    start, keys = window.snapshot()
    assert at(2.5) < start < at(2.6)
    assert keys == keys_of(tick(2.6))


def test_restart_keeps_the_floor() -> None:
    """How far the stream got is known after a restart, too."""
    window = window_of(*(tick(number * 0.1) for number in range(20)))
    assert window.floor == at(0.8)
    window.restart(at(2.5))
    assert window.floor == at(0.8)


def test_one_wrong_time_does_not_move_the_floor() -> None:
    """A single tick far ahead of the others does not count as the stream's time."""
    window = window_of(tick(1), tick(1.1), tick(9e6), tick(1.2))
    assert window.floor == at(0.2)


def test_survives_the_ends_of_the_calendar() -> None:
    """The earliest and the latest date cause no overflow."""
    window = DeliveredWindow(SECOND)
    for time in (at(0).replace(year=1, month=1, day=1), at(0).replace(year=9999, month=12, day=31)):
        window.extend([{**tick(0), "timestamp": time}] * 5)
    assert window.floor is not None
    assert window.snapshot()[1] != []


def test_does_not_accumulate_exchange_names() -> None:
    """A server that invents exchanges doesn't fill the memory."""
    window = DeliveredWindow()
    for number in range(5 * _MOST):
        window.extend([tick(number, exchange=f"X{number}")])
    assert len(_names) <= _MOST + _TRIM_EVERY


def test_unhashable_prices_can_be_counted() -> None:
    """A price without a hash gets a key that equals no other."""
    (first, second) = window_of(tick(1, [1.0]), tick(1, [1.0])).snapshot()[1]
    assert len({first, second}) == 2


def test_the_keys_of_a_long_run_are_made_only_for_a_gap() -> None:
    """In a burst, nearly all ticks leave the window before that. The keys are made once."""
    window, made = DeliveredWindow(SECOND, size=100), []

    def keys(run: list[Tick]) -> list[Key]:
        made.append(run)
        return keys_of(*run)

    runs = [[tick(number + n / 1_000, n) for n in range(50)] for number in range(20)]
    for run in runs:
        window.extend(run, partial(keys, run))
    assert made == []
    for _ in range(2):
        assert window.snapshot()[1][-50:] == keys_of(*runs[-1])
        assert len(made) <= 3


def test_last_tick_time_remembers_one_time() -> None:
    """Without backfill, the time of the last tick is enough."""
    last = LastTickTime()
    assert last.last is None
    last.extend([tick(2), tick(1)])
    assert last.last == at(1)
    last.add("BINANCE", at(3), 1.0)
    assert last.last == at(3)


def add_to(window: DeliveredWindow, each: Tick) -> None:
    """Add one tick by its parts."""
    window.add(each["exchange"], each["timestamp"], each["price"])


def deliver_at_random(window: DeliveredWindow, seed: int, pause: float, late: float) -> list[Tick]:
    """Fill the window with single ticks, and with short and long runs, whose keys are made at once or later.

    Pauses take up to `pause` seconds, and ticks are up to `late` seconds late.
    """
    rng = random.Random(seed)
    delivered: list[Tick] = []
    now = 10.0
    for _ in range(rng.randint(1, 60)):
        run: list[Tick] = []
        now += rng.choice([0.0, 0.0, 0.5])
        for _ in range(rng.choice([1, 1, 2, 5, 15, 16, 40, 200])):
            now += pause * rng.random()
            run.append(tick(now - late * rng.choice([0, 0, 1]) * rng.random(), len(delivered) + len(run)))
        delivered += run
        if rng.random() < 0.5:
            window.extend(run)
        elif len(run) == 1:
            add_to(window, run[0])
        else:
            window.extend(run, partial(keys_of, *run))
    return delivered


PAUSES = st.sampled_from([0.000_1, 0.002, 0.03])
SEEDS = st.integers(0, 1_000_000)


@given(SEEDS, PAUSES, st.sampled_from([64, 256]))
@examples(250)
def test_remembers_every_tick_from_its_start_on(seed: int, pause: float, size: int) -> None:
    """In a stream that is in order, though it evicts ticks."""
    window = DeliveredWindow(SECOND, size)
    delivered = deliver_at_random(window, seed, pause, late=0.0)
    start, keys = window.snapshot()
    assert keys == keys_of(*(each for each in delivered if each["timestamp"] >= start))


@given(SEEDS, PAUSES)
@examples(250)
def test_remembers_late_ticks_from_its_start_on(seed: int, pause: float) -> None:
    """In a stream with late ticks, as long as it evicts none."""
    window = DeliveredWindow(SECOND, size=100_000)
    delivered = deliver_at_random(window, seed, pause, late=1.0)
    start, keys = window.snapshot()
    assert start <= max(delivered[0]["timestamp"], max(each["timestamp"] for each in delivered) - SECOND)
    assert keys == keys_of(*(each for each in delivered if each["timestamp"] >= start))


@given(st.lists(st.floats(-2.0, 0.5), min_size=1, max_size=150), st.sampled_from([10, 1_024]))
@examples(250)
def test_one_tick_is_a_run_of_one(offsets: list[float], size: int) -> None:
    """Where ticks are added one by one, the window remembers no less than after runs of one.

    If it evicts some, that holds for a stream in order.
    """
    added, extended = DeliveredWindow(SECOND, size), DeliveredWindow(SECOND, size)
    for number, offset in enumerate(offsets):
        each = tick(number * 0.05 + (offset if size > 150 else 0.0), number)
        add_to(added, each)
        extended.extend([each])
    assert (added.last, added.floor) == (extended.last, extended.floor)
    (start, keys), (later_start, fewer) = added.snapshot(), extended.snapshot()
    assert start <= later_start
    assert [key for key in keys if key[1] >= later_start] == fewer
    assert added.overrun <= extended.overrun
