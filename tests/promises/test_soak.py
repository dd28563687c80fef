"""A short version of `make soak`, and the mistakes that its ledger finds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.soak import GROUP, Course, Ledger, soak

COURSE = Course(pairs=3, rate=300.0)
TURNS = 4


def course() -> list[Any]:
    return [COURSE.tick(number) for number in range(TURNS * GROUP * COURSE.pairs)]


def mistakes(ticks: list[Any]) -> list[str]:
    ledger = Ledger(COURSE)
    for tick in ticks:
        ledger.take(tick)
    ledger.check(len(course()))
    return ledger.mistakes


@given(st.randoms(use_true_random=False))
def test_the_ledger_accepts_a_correct_course(rng: Any) -> None:
    """Ticks with the same time may come in any order, because history doesn't keep it."""
    ticks = course()
    ticks.sort(key=lambda tick: (tick["date"], tick["time"], rng.random()))
    assert mistakes(ticks) == []


@given(st.integers(0, TURNS * GROUP * COURSE.pairs - 1))
def test_the_ledger_finds_a_lost_tick(at: int) -> None:
    """The ledger finds any single lost tick."""
    ticks = course()
    del ticks[at]
    assert mistakes(ticks)


@given(st.integers(0, TURNS * GROUP * COURSE.pairs - 1), st.integers(0, TURNS * GROUP * COURSE.pairs))
def test_the_ledger_finds_a_duplicate(at: int, later: int) -> None:
    """The ledger finds a duplicate anywhere, even in place of a lost tick."""
    ticks = course()
    ticks.insert(later, ticks[at])
    assert mistakes(ticks)
    ticks.remove(next(tick for tick in ticks if tick != ticks[later]))
    assert mistakes(ticks)


def test_the_ledger_finds_a_late_tick() -> None:
    """The ledger finds a tick that is late by a group."""
    ticks = course()
    ticks[0], ticks[GROUP * COURSE.pairs] = ticks[GROUP * COURSE.pairs], ticks[0]
    assert mistakes(ticks)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("minutes", "faults"), [(0.06, 2), pytest.param(0.15, 4, marks=pytest.mark.slow)])
def test_a_short_soak(minutes: float, faults: int) -> None:
    """A short soak loses no tick and leaves no descriptor and no thread. Only a long one can judge memory."""
    report = soak(Course(pairs=20, rate=2_000.0), minutes=minutes, seed=8, every=0.7)
    print(report)
    assert report.mistakes == []
    assert report.before == report.after
    assert sum(report.faults.values()) >= faults
