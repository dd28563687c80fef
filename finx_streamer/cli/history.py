"""`finx-streamer history` and `snap`: past ticks as lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from .. import ConfigurationError, FinxStreamerError, FunctionClient, Tick
from ..config.checks import moment
from .follow import terminate_as_interrupt
from .lines import CSV_HEADER, csv_line, json_line
from .output import Output
from .text import brief, count, say

#: What a shell makes of Ctrl-C.
INTERRUPTED = 130
_FORMS: dict[str, tuple[Callable[[Tick], str], str]] = {"json": (json_line, ""), "csv": (csv_line, CSV_HEADER)}
_Advance = Callable[[datetime], None]


def fetch(
    client: FunctionClient,
    pair: str,
    start: str,
    end: str | None,
    exchange: str | None,
    format: str,
    path: Path | None,
) -> int:
    """Write the ticks of an interval. Returns the exit code."""
    since = moment("--start", start)
    until = moment("--end", end) if end is not None else datetime.now(UTC)
    if until < since:
        raise ConfigurationError(f"--end: {until.isoformat()} is before --start, which is {since.isoformat()}")
    form, header = _FORMS[format]
    output = Output(path)
    ticks = client.iter_tick_history(pair, since, until, exchange)
    written = 0
    try:
        with (
            contextlib.suppress(BrokenPipeError),
            terminate_as_interrupt(),
            output.opened() as file,
            _bar(pair, since, until, alone=not file.isatty()) as advance,
        ):
            file.write(header)
            for written, tick in enumerate(ticks, 1):
                file.write(form(tick))
                if not written % 1_000:
                    advance(tick["timestamp"])
            file.flush()
    except KeyboardInterrupt:
        client.close()
        say(f"interrupted{_so_far(written, output)}")
        return INTERRUPTED
    except FinxStreamerError as error:
        say(brief(f"error: {error}"))
        if written:
            say(f"ended{_so_far(written, output)}")
        return 1
    return 0


def _so_far(written: int, output: Output) -> str:
    return f" after {count(written, 'tick')}" + (f"; {output.file} is not written" if output.file else "")


def show(client: FunctionClient, pair: str, at: str | None, format: str) -> int:
    """Write the last tick at or before a time. Returns the exit code."""
    form, header = _FORMS[format]
    try:
        with terminate_as_interrupt():
            tick = client.tick_snap(pair, moment("AT", at) if at is not None else None)
        with contextlib.suppress(BrokenPipeError), Output(None).opened() as file:
            file.write(header + form(tick))
            file.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def _bar(pair: str, start: datetime, end: datetime, *, alone: bool) -> Iterator[_Advance]:
    """What is to be told of the time that has been reached. Shown on standard error, where ticks are not in the way."""
    if sys.stderr is None or not (alone and sys.stderr.isatty()):
        yield lambda reached: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(pair, total=(end - start).total_seconds())
        yield lambda reached: progress.update(task, completed=(reached - start).total_seconds())
