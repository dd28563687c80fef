"""The counters of a stream: ticks, their rate and lag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.streaming.counters import RATE_WINDOW, Counters
from tests.support.recovery import at, tick


def test_counts_ticks() -> None:
    """The last tick is kept, and the lag is its own."""
    counters = Counters()
    last = tick(2)
    last["received_ns"] = int((at(2).timestamp() + 1.5) * 1e9)
    counters.count_ticks([tick(1), last], 100.0)
    assert counters.ticks == 2
    assert counters.last_tick is last
    assert counters.lag == pytest.approx(1.5, abs=1e-6)


def test_backfilled_ticks_change_neither_rate_nor_lag() -> None:
    """They say nothing about the stream's current state."""
    counters = Counters()
    counters.count_ticks([tick(1, backfilled=True)], 100.0)
    assert (counters.ticks, counters.rate(100.0), counters.lag) == (1, 0.0, None)


@pytest.mark.parametrize("now", [30.0, 30.5, 30.999])
def test_a_steady_stream_has_its_rate(now: float) -> None:
    """Ten ticks per second are a rate of ten at any moment within a second."""
    counters = Counters()
    for tenth in range(int(now * 10)):
        counters.count_ticks([tick(1)], tenth / 10)
    assert counters.rate(now) == pytest.approx(10.0, rel=0.05)


def test_the_rate_falls_to_zero_when_ticks_stop() -> None:
    """Ten seconds after the last tick, the rate is 0."""
    counters = Counters()
    counters.count_ticks([tick(1)] * 50, 100.0)
    assert [counters.rate(now) for now in (100.5, 105.0, 110.0, 111.0)] == [50.0, 10.0, 5.0, 0.0]


@given(st.lists(st.tuples(st.floats(0, 15), st.integers(1, 5)), min_size=1, max_size=60), st.floats(0, 25))
def test_the_rate_covers_the_last_seconds(pauses: list[tuple[float, int]], later: float) -> None:
    """It is the number of ticks in the last ten whole seconds and this one, by the time since the first one's begin."""
    counters, now = Counters(), 0.0
    counted: dict[int, int] = {}
    for pause, count in pauses:
        now += pause
        counters.count_ticks([tick(1)] * count, now)
        counted[int(now)] = counted.get(int(now), 0) + count
        recent = {second: count for second, count in counted.items() if now - second <= RATE_WINDOW}
        assert counters.rate(now) == sum(recent.values()) / max(1.0, now - min(recent))
    recent = {second: count for second, count in counted.items() if now + later - second <= RATE_WINDOW}
    expected = sum(recent.values()) / max(1.0, now + later - min(recent)) if recent else 0.0
    assert counters.rate(now + later) == pytest.approx(expected)
