"""`finx-streamer history` and `snap`: past ticks, one per line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from .. import ConfigurationError, FinxStreamerError, FunctionClient
from ..config.checks import moment, refusal
from .formats import LineFormat
from .output import Output
from .terminal import count, say, say_error, sigterm_as_ctrl_c

#: The exit code that shells use for Ctrl-C.
INTERRUPTED = 130
_UPDATE_EVERY = 1_000


def write_history(
    client: FunctionClient,
    pair: str,
    start: str,
    end: str | None,
    exchange: str | None,
    line_format: LineFormat,
    path: Path | None,
) -> int:
    """Write the ticks of an interval. Return the exit code."""
    since = _parse_time("--start", start)
    until = _parse_time("--end", end) if end is not None else datetime.now(UTC)
    if until < since:
        raise ConfigurationError(f"--end {until.isoformat()} is before --start {since.isoformat()}")
    output = Output(path)
    ticks = client.iter_tick_history(pair, since, until, exchange)
    written = 0
    try:
        with (
            contextlib.suppress(BrokenPipeError),
            sigterm_as_ctrl_c(),
            output.open() as file,
            _progress_bar(pair, since, until, hidden=file.isatty()) as show_progress,
        ):
            file.write(line_format.header)
            for written, tick in enumerate(ticks, 1):
                file.write(line_format.format_tick(tick))
                if written % _UPDATE_EVERY == 0:
                    show_progress(tick["timestamp"])
            file.flush()
    except KeyboardInterrupt:
        client.close()
        say(f"interrupted{_describe_end(written, output)}")
        return INTERRUPTED
    except FinxStreamerError as error:
        say_error(error)
        if written:
            say(f"failed{_describe_end(written, output)}")
        return 1
    return 0


def write_snap(client: FunctionClient, pair: str, at: str | None, line_format: LineFormat) -> int:
    """Write the last tick at or before a time. Return the exit code."""
    try:
        with sigterm_as_ctrl_c():
            tick = client.tick_snap(pair, _parse_time("TIME", at) if at is not None else None)
        with contextlib.suppress(BrokenPipeError), Output(None).open() as file:
            file.write(line_format.header + line_format.format_tick(tick))
            file.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parse_time(name: str, text: str) -> datetime:
    try:
        return moment(name, text)
    except ConfigurationError:
        raise refusal(name, text, "a time from 1970 on, such as 2022-07-02 or 2022-07-02T15:30:55.817Z") from None


def _describe_end(written: int, output: Output) -> str:
    return f" after {count(written, 'tick')}" + (f"; {output.file} was not written" if output.file else "")


@contextlib.contextmanager
def _progress_bar(pair: str, start: datetime, end: datetime, *, hidden: bool) -> Iterator[Callable[[datetime], None]]:
    """Show a bar on standard error, if that is a terminal. Yield a function that takes the time reached."""
    if hidden or sys.stderr is None or not sys.stderr.isatty():
        yield lambda reached: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(pair, total=(end - start).total_seconds())
        yield lambda reached: progress.update(task, completed=(reached - start).total_seconds())
