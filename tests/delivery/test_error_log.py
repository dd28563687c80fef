"""The log of errors for which there is no `on_error` callback."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.delivery.error_log import FRESH_AFTER, ErrorLog, Repeats
from finx_streamer.errors import CallbackError, ConnectionFailed, FinxStreamerError, SlowConsumer
from tests.support.effort import examples


@examples(100)
@given(st.lists(st.sampled_from(["a", "b"]), max_size=300))
def test_shows_the_1st_10th_and_100th_error_of_a_kind(kinds: list[str]) -> None:
    """Each callback's errors count separately."""
    callbacks = {"a": lambda: None, "b": lambda: None}
    repeats, seen = Repeats(), Counter[str]()
    for kind in kinds:
        seen[kind] += 1
        shown = repeats.count(CallbackError(callbacks[kind]))
        assert shown == (seen[kind] if seen[kind] in (1, 10, 100) else 0)


def test_an_error_after_a_quiet_time_is_shown_again() -> None:
    """A later outage isn't a repetition of an earlier one."""
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    shown = []
    for step in (1.0, 1.0, FRESH_AFTER + 1.0, FRESH_AFTER - 1.0):
        now[0] += step
        shown.append(repeats.count(ConnectionFailed("the line is cut")))
    assert shown == [1, 0, 1, 0]


def test_says_how_often_an_error_has_occurred(caplog: pytest.LogCaptureFixture) -> None:
    """From the second line on."""
    log = ErrorLog()
    for _ in range(100):
        log(SlowConsumer(9, 10))
    text = str(SlowConsumer(9, 10))
    assert [record.getMessage() for record in caplog.records] == [
        text,
        f"{text} (10 times so far)",
        f"{text} (100 times so far)",
    ]


@pytest.mark.parametrize("error", [ConnectionFailed("the line is cut", symbol="BTC:USDC"), SlowConsumer(9, 10)])
def test_prints_the_first_error_if_the_logger_is_disabled(
    error: FinxStreamerError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by `logging.config.dictConfig` with its default. The line says how to avoid that."""
    monkeypatch.setattr(logging.getLogger("finx_streamer"), "disabled", True)
    log = ErrorLog()
    log(error)
    log(CallbackError(print))
    printed = capsys.readouterr().err
    assert printed.startswith(f"finx_streamer: {error}. ")
    assert "disable_existing_loggers=False" in printed
    assert len(printed.splitlines()) == 1
