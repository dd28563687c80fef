"""`Silence`: when a stream counts as stale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import StaleStream
from finx_streamer.streaming.silence import Silence
from finx_streamer.values import NEVER


def run_until(silence: Silence, end: float, paused: bool = False) -> list[tuple[float, StaleStream]]:
    """Check at each deadline. Return what was reported, and when."""
    reports = []
    while silence.deadline <= end:
        now = silence.deadline
        if (report := silence.check(now, paused)) is not None:
            reports.append((now, report))
    return reports


def test_each_silence_is_reported_once() -> None:
    """After the limit. The next tick starts the clock again."""
    silence = Silence(5.0)
    for begin in (0.0, 100.0, 200.0):
        silence.begin(begin)
        match run_until(silence, begin + 99.0):
            case [(now, StaleStream() as report)]:
                assert (now, report.seconds, report.symbol) == (begin + 5.0, 5.0, None)
            case reports:
                pytest.fail(f"{reports}")
        assert silence.is_over


def test_ticks_postpone_the_report() -> None:
    """A stream with ticks is not stale."""
    silence = Silence(5.0)
    for second in range(100):
        assert run_until(silence, float(second)) == []
        silence.begin(float(second))


@pytest.mark.parametrize("limit", [None, 5.0])
def test_without_a_clock_nothing_is_due(limit: float | None) -> None:
    """Before the first connection, after a loss, and without a limit."""
    silence = Silence(limit)
    assert silence.deadline == NEVER
    silence.begin(0.0)
    silence.end()
    assert silence.deadline == NEVER
    assert Silence(None).check(1e9, paused=False) is None


def test_while_reading_is_paused_nothing_is_reported() -> None:
    """A tick may be unread. What follows the pause counts."""
    silence = Silence(5.0)
    silence.begin(0.0)
    assert run_until(silence, 60.0, paused=True) == []
    match run_until(silence, 1_000.0):
        case [(now, StaleStream(seconds=5.0))]:
            assert 60.0 < now <= 65.0
        case reports:
            pytest.fail(f"{reports}")


def test_a_pause_does_not_end_a_silence() -> None:
    """A silence that was reported is not reported again before a tick arrives."""
    silence = Silence(5.0)
    silence.begin(0.0)
    run_until(silence, 6.0)
    assert run_until(silence, 1e9, paused=True) == []
    assert silence.deadline == NEVER


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.sampled_from(["tick", "loss", "check"]), st.booleans())))
def test_a_report_is_never_early(events: list[tuple[float, str, bool]]) -> None:
    """It says how long the stream has been silent, which is at least the limit. An early check does nothing."""
    silence, now, heard = Silence(5.0), 0.0, -NEVER
    for passed, event, paused in events:
        now += passed
        if event == "tick":
            silence.begin(now)
            heard = now
        elif event == "loss":
            silence.end()
            heard = -NEVER
        elif (report := silence.check(now, paused)) is not None:
            assert not paused
            assert 5.0 <= report.seconds <= now - heard + 1e-9
            assert silence.is_over
