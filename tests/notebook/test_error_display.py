"""How a cell shows errors without an `on_error` callback."""

from __future__ import annotations

import contextvars
import logging

import pytest

from finx_streamer.errors import CallbackError
from finx_streamer.notebook.cells import Cell
from finx_streamer.notebook.error_display import ErrorDisplay


def test_escapes_control_characters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback's exception may quote the server; the traceback keeps its line breaks."""

    def quotes(tick: object) -> None:
        raise ValueError("unknown exchange \x1b]0;title\x07\nsecond line")

    error = CallbackError(quotes)
    try:
        quotes(None)
    except ValueError as cause:
        error.__cause__ = cause
    # Otherwise pytest's own log handler would take the error.
    monkeypatch.setattr(logging.getLogger("finx_streamer"), "propagate", False)
    ErrorDisplay(Cell("a", "1", {}, contextvars.copy_context()), lambda callback: None)(error)
    shown = capsys.readouterr().err
    assert shown.startswith("finx_streamer: CallbackError: callback ")
    assert shown.endswith("\nValueError: unknown exchange \\x1b]0;title\\x07\nsecond line\n")
    assert [line for line in shown.split("\n") if not line.isprintable()] == []
