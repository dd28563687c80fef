"""What all commands share: messages on standard error, and the terminal's signals."""

from __future__ import annotations

import codecs
import contextlib
import enum
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from .. import ConnectionFailed, Gap
from ..config.reconnect import is_unreachable
from ..errors import make_printable

#: How many characters of a server's text are shown.
_MAX_LENGTH = 300
#: What is printed instead of a character that can't be encoded. Each is one column wide, so that tables stay aligned.
_LOOK_ALIKES = {"▲": "^", "▼": "v", "·": "-", "…": "~"}
#: Arguments of the Python API that errors may name, and the options of the command line.
OPTIONS = {
    "allow_insecure": "--allow-insecure",
    "api_key": "--api-key-file",
    "endpoint": "--endpoint",
    "exchange": "--exchange",
    "exchanges": "--exchange",
    "keep_alive": "--keep-alive",
    "max_pause": "--max-pause",
    "prefix": "--prefix",
    "proxy": "--proxy",
    "record": "--to",
    "speed": "--speed",
    "timeout": "--timeout",
}
#: `name:` at the start; `name=True`, `name='…'` and `name=`; the callable that reads a key file; and advice to pass an
#: argument that has no option.
_ARGUMENT = re.compile(
    rf"^(?P<subject>{'|'.join(OPTIONS)})(?=:)|\b(?P<given>{'|'.join(OPTIONS)})=(True\b|(?P<value>(?='))|)"
    r"|(?P<callable>the api_key callable)|,? or pass ssl_context=\S*"
)
#: The name of the error handler that prints them.
REPLACE = "finx-streamer.replace"


def replace_unencodable() -> None:
    """From now on, print a look-alike or an escape for each character that an output's encoding doesn't have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=REPLACE)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    shown = (_LOOK_ALIKES.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(shown), error.end


codecs.register_error(REPLACE, _replace)


def encodable(text: str, encoding: str) -> str:
    """Return the text as an output with this encoding shows it: rich measures the width of what it gets."""
    return text.encode(encoding, REPLACE).decode(encoding)


def say(text: str) -> None:
    """Print one line on standard error. If it is closed, the line is lost."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"finx-streamer: {make_printable(text)}", file=sys.stderr, flush=True)


class LogLevel(enum.StrEnum):
    """How much a server logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _LogHandler(logging.Handler):
    """Prints log records like all messages of the command line."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            say(line)


def show_log(level: LogLevel) -> None:
    """Print what this package logs, from this level on."""
    handler = _LogHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("finx_streamer")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def say_error(error: Exception) -> None:
    """Print the error that ends a command."""
    say(shorten(f"error: {with_options(str(error))}") + _what_to_check(error))


def _what_to_check(error: Exception) -> str:
    if not isinstance(error, ConnectionFailed) or not is_unreachable(error):
        return ""
    return "; check --endpoint and --proxy" + (", or wait with --retry" if error.attempt == 1 else "")


def with_options(text: str) -> str:
    """Name options in an error where it names arguments of the Python API."""
    return _ARGUMENT.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    if found["callable"]:
        return "reading --api-key-file"
    name = found["subject"] or found["given"]
    return (OPTIONS[name] + (" " if found["value"] is not None else "")) if name else ""


def shorten(text: str) -> str:
    """Return the text, safe for a terminal and of readable length: a server may have sent megabytes."""
    # Cut before escaping, which takes time, and afterwards, because escapes are longer than the characters.
    safe = make_printable(text[: _MAX_LENGTH + 1])
    return safe if len(safe) <= _MAX_LENGTH else safe[:_MAX_LENGTH] + "…"


def count(number: int, noun: str) -> str:
    """Return `1 tick` or `2 ticks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe_filled_gap(gap: Gap) -> str:
    seconds = max(0.0, (gap.until - gap.since).total_seconds())
    return f"{gap.symbol}: back after {seconds:,.1f} s; {count(gap.ticks, 'missed tick')} fetched"


def can_draw_table() -> bool:
    """Return whether standard output is a terminal on which a table can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextlib.contextmanager
def signals_as_ctrl_c(on_hangup: Callable[[], object] | None = None) -> Iterator[None]:
    """Let SIGTERM and SIGHUP, the end of the terminal, end a command the way Ctrl-C does.

    `on_hangup` is called instead, in the middle of anything, for a SIGHUP that isn't the end of the terminal.
    """
    had_terminal = _has_terminal()

    def hang_up(signum: int, frame: FrameType | None) -> None:
        if on_hangup is None or (had_terminal and not _has_terminal()):
            signal.default_int_handler(signum, frame)
        else:
            on_hangup()

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]]
    handlers = {signal.SIGTERM: signal.default_int_handler}
    # `nohup` ignores it.
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = hang_up
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True
