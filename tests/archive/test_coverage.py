"""What the ledger says about a pair."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason='needs the extra: pip install "finx-streamer[archive]"')

from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.archive.coverage import Coverage, coverage, paint
from finx_streamer.archive.journal import Entry

START = datetime(2026, 8, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 20)


def at(second: int) -> datetime:
    """A moment."""
    return START + timedelta(seconds=second)


def entry(second: int, kind: str, symbol: str | None = "BTC:USDC", **fields: Any) -> Entry:
    """An entry of the ledger."""
    return Entry(int(at(second).timestamp()) * 10**9, kind, symbol, fields, "")


def gap(second: int, since: int, until: int, filled: bool, symbol: str | None = "BTC:USDC") -> Entry:
    """A gap."""
    return entry(second, "gap", symbol, since=at(since).isoformat(), until=at(until).isoformat(), filled=filled)


def seconds(ledger: list[Entry], last: int) -> list[tuple[int, int, bool, str]]:
    """The coverage in seconds."""
    found = coverage(ledger, "BTC:USDC", at(last))
    return [(*((when - START).seconds for when in (part.start, part.end)), part.complete, part.why) for part in found]


@given(st.lists(st.tuples(MOMENTS, MOMENTS, st.booleans(), st.sampled_from("abc"))))
def test_later_paint_covers_earlier_paint(strokes: list[tuple[int, int, bool, str]]) -> None:
    """The intervals agree with a list of seconds, don't overlap, and equal neighbours are one."""
    parts: list[Coverage] = []
    wall: dict[int, tuple[bool, str]] = {}
    for start, end, complete, why in strokes:
        parts = paint(parts, Coverage(at(start), at(end), complete, why))
        wall |= dict.fromkeys(range(start, end), (complete, why))
    painted = {
        second: (part.complete, part.why)
        for part in parts
        for second in range((part.start - START).seconds, (part.end - START).seconds)
    }
    assert painted == wall
    for first, second in pairwise(parts):
        assert first.end <= second.start
        assert first.end < second.start or (first.complete, first.why) != (second.complete, second.why)


def test_an_outage_that_was_filled_is_complete() -> None:
    """Also if the last missed tick was before the reconnect."""
    ledger = [
        entry(0, "state", state="streaming"),
        entry(5, "state", state="reconnecting"),
        entry(8, "state", state="streaming"),
        gap(8, 4, 6, True),
    ]
    assert seconds(ledger, 10) == [(0, 4, True, "live"), (4, 8, True, "filled"), (8, 10, True, "live")]


def test_an_outage_that_was_not_filled_is_incomplete() -> None:
    """From the last tick before to the first tick after it. Without a gap in the ledger, it's the state's time."""
    outage = [
        entry(0, "state", state="streaming"),
        entry(5, "state", state="reconnecting"),
        entry(8, "state", state="streaming"),
    ]
    assert seconds(outage, 10)[1] == (5, 8, False, "not connected: reconnecting")
    found = seconds([*outage, gap(8, 4, 9, False)], 10)
    assert found[1] == (4, 9, False, "the gap wasn't filled")


def test_a_crash_ends_what_was_live() -> None:
    """The next recorder says how far the journal reaches. Its gap fills the time."""
    crash = [
        entry(0, "state", state="streaming"),
        entry(7, "open", None, last_ns=int(at(5).timestamp()) * 10**9, cut=10),
        entry(8, "state", state="streaming"),
    ]
    assert seconds(crash, 9) == [
        (0, 5, True, "live"),
        (5, 8, False, "not recorded: the recorder was killed"),
        (8, 9, True, "live"),
    ]
    assert all(complete for *_, complete, _ in seconds([*crash, gap(8, 5, 7, True)], 9))


def test_dropped_entries_concern_all_pairs() -> None:
    """A gap without a symbol, in the middle of a live stream."""
    ledger = [entry(0, "state", state="streaming"), gap(6, 3, 5, False, symbol=None)]
    assert [part[:3] for part in seconds(ledger, 9)] == [(0, 3, True), (3, 5, False), (5, 9, True)]


def test_other_pairs_do_not_matter() -> None:
    """A gap of another pair."""
    assert seconds([entry(0, "state", state="streaming"), gap(6, 3, 5, False, symbol="ETH:USDC")], 9) == [
        (0, 9, True, "live")
    ]


def test_missing_ticks_end_what_a_wrong_clock_claimed() -> None:
    """The recorder's clock was ahead, and is behind now: nothing after the last tick is complete."""
    ledger = [
        entry(0, "state", state="streaming"),
        entry(100, "open", None, last_ns=int(at(2).timestamp()) * 10**9, cut=0),
        entry(100, "state", state="streaming"),
        gap(100, 2, 4, True),
        entry(-50, "open", None, last_ns=None, cut=0),
        entry(-50, "state", state="streaming"),
        entry(-50, "missing", since=at(5).isoformat()),
    ]
    assert not any(part.complete and part.end > at(5) for part in coverage(ledger, "BTC:USDC", at(-48)))
