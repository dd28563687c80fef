"""How a cell shows errors without an `on_error` callback."""

from __future__ import annotations

import contextvars
import logging

import pytest

from finx_streamer.errors import CallbackError
from finx_streamer.notebook.cells import Cell
from finx_streamer.notebook.error_display import ErrorDisplay
from tests.support.kernels import Kernel


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


NO_KEY = "AuthenticationError: BTC:USDC: no API key: pass api_key= or set the environment variable FINX_API_KEY"
WITHOUT_KEY = "os.environ.pop('FINX_API_KEY', None); lost = finx_streamer.StreamListener('BTC:USDC')"


@pytest.mark.parametrize("wait", ["lost.start().join()", "for tick in lost: pass", "with lost: lost.join()"])
def test_a_missing_key_is_shown_once_in_one_line(any_kernel: Kernel, wait: str) -> None:
    """The cell that waits raises it. There is no traceback, because the fault isn't in the code."""
    run = any_kernel.begin(f"import os, time; {WITHOUT_KEY}\ntry:\n    {wait}\nfinally:\n    time.sleep(1)")
    any_kernel.wait_idle(run)
    (traceback,) = any_kernel.errors(run)
    assert traceback.startswith(NO_KEY)
    assert "\n" not in traceback
    assert any_kernel.text(run, "stderr") == ""


def test_a_missing_key_is_shown_even_if_no_cell_waits(kernel: Kernel) -> None:
    """In the cell that started the listener."""
    run = kernel.run(f"import os; {WITHOUT_KEY}.start()")
    kernel.wait(lambda: kernel.text(run, "stderr").startswith(f"finx_streamer: {NO_KEY}"), "the error")
    assert kernel.text(run, "stderr").count("\n") == 1
