"""The counters of a stream: ticks, their rate and lag."""

from __future__ import annotations

import pytest

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


def test_the_memory_for_the_rate_is_bounded() -> None:
    """A long stream needs no more memory than a short one."""
    counters = Counters()
    for second in range(1_000):
        counters.count_ticks([tick(1)], float(second))
    assert len(counters._per_second) == RATE_WINDOW + 1
