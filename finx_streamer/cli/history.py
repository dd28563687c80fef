"""`finx-streamer history` and `snap`: past ticks, one per line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from .. import ConfigurationError, FinxStreamerError, FunctionClient, Tick
from ..config.checks import moment, refusal
from .formats import LineFormat
from .output import Output
from .part_file import PartFile, Request
from .quantities import parse_duration
from .terminal import count, say, say_error, signals_as_ctrl_c

#: The exit code that shells use for Ctrl-C.
INTERRUPTED = 130
_UPDATE_EVERY = 1_000
_WORDS: dict[str, Callable[[datetime], datetime]] = {
    "now": lambda now: now,
    "today": lambda now: datetime(now.year, now.month, now.day, tzinfo=UTC),
    "yesterday": lambda now: datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=1),
}


class PastTicks(Protocol):
    """A `FunctionClient`, or an archive."""

    @property
    def bad_ticks(self) -> int:
        """How many ticks couldn't be read."""

    def iter_tick_history(self, pair: str, start: datetime, end: datetime, exchange: str | None) -> Iterator[Tick]:
        """Return the ticks of an interval."""

    def close(self) -> None:
        """Interrupt what is going on."""


def write_history(
    client: PastTicks,
    pair: str,
    start: str,
    end: str | None,
    exchange: str | None,
    line_format: LineFormat,
    path: Path | None,
    resume: bool,
) -> int:
    """Write the ticks of an interval. `resume`: continue an interrupted run. Return the exit code."""
    now = datetime.now(UTC)
    since = parse_time("--start", start, now)
    until = parse_time("--end", end, now) if end is not None else now
    if until < since:
        raise ConfigurationError(f"--end {until.isoformat()} is before --start {since.isoformat()}")
    client.iter_tick_history(pair, since, until, exchange)  # checks the arguments
    part = (output := Output(path)).part(line_format)
    if resume and part is None:
        raise ConfigurationError("--resume continues a file; name it with --output FILE")
    request = Request(pair, exchange, line_format.name, start, end, since, until)
    written = 0
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(BrokenPipeError))
            stack.enter_context(signals_as_ctrl_c())
            if part is None:
                file = stack.enter_context(output.open())
                file.write(line_format.header)
                begin = since
            else:
                file, request = stack.enter_context(part.open(request, resume=resume))
                begin = part.resume_at or request.since
            show_progress = stack.enter_context(_progress_bar(pair, begin, request.until, hidden=file.isatty()))
            for tick in client.iter_tick_history(pair, begin, request.until, exchange):
                file.write(line_format.format_tick(tick))
                written += 1
                if written % _UPDATE_EVERY == 0:
                    show_progress(tick["timestamp"])
            file.flush()
    except KeyboardInterrupt:
        client.close()
        say(f"interrupted{_describe_end(written, part)}")
        return INTERRUPTED
    except ConfigurationError:
        raise
    except FinxStreamerError as error:
        say_error(error)
        if written:
            say(f"failed{_describe_end(written, part)}")
        return 1
    except OSError:
        if written:
            say(f"failed{_describe_end(written, part)}")
        raise
    finally:
        if client.bad_ticks:
            say(f"left out {count(client.bad_ticks, 'tick')} that can't be read")
    return 0


def write_snap(client: FunctionClient, pair: str, at: str | None, line_format: LineFormat) -> int:
    """Write the last tick at or before a time. Return the exit code."""
    try:
        with signals_as_ctrl_c():
            tick = client.tick_snap(pair, parse_time("TIME", at, datetime.now(UTC)) if at is not None else None)
        with contextlib.suppress(BrokenPipeError), Output(None).open() as file:
            file.write(line_format.header + line_format.format_tick(tick))
            file.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def parse_time(name: str, text: str, now: datetime) -> datetime:
    """Return the time that an option names: ISO text, `today` and `yesterday` in UTC, `now`, or `1h` for an hour ago.

    Raises:
        ConfigurationError: It's none of these.
    """
    if not text:  # typer 0.16 with a newer click doesn't require options
        raise ConfigurationError(f"{name}: missing; expected a time, such as 2022-07-02 or 1h")
    word = text.strip().lower()
    try:
        if (ago := parse_duration(word)) is not None:
            return moment(name, now - ago)
        if word in _WORDS:
            return _WORDS[word](now)
        return moment(name, text)
    except (ConfigurationError, OverflowError):
        expected = "a time from 1970 on, such as 2022-07-02, 2022-07-02T15:30:55.817Z, yesterday, today or 1h (ago)"
        raise refusal(name, text, expected) from None


def parse_since(text: str | None) -> datetime | None:
    """Return the value of `--since`. Raises `ConfigurationError`."""
    return None if text is None else parse_time("--since", text, datetime.now(UTC))


def _describe_end(written: int, part: PartFile | None) -> str:
    if part is None:
        return f" after {count(written, 'tick')}"
    total = count(part.kept + written, "tick")
    if not part.path.exists():
        return f" after {total}; {part.target} was not written"
    return f" after {total}, kept in {part.path}; repeat the command with --resume to continue"


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
