"""Text for people: made harmless for a terminal, and written where the data does not go."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from .. import Gap
from ..errors import make_printable

#: How much of a server's words is shown, in characters.
_SHOWN = 300


def filled(gap: Gap) -> str:
    """That a stream is back, and what it has missed."""
    seconds = max(0.0, (gap.until - gap.since).total_seconds())
    return f"{gap.symbol}: back after {seconds:,.1f} s; {count(gap.ticks, 'missed tick')} fetched"


def brief(text: str) -> str:
    """What a server may have composed, harmless and short enough to be read: a message may have megabytes."""
    # Cut before it is escaped, which takes its time, and after, for an escape is longer than what it stands for.
    shown = make_printable(text[: _SHOWN + 1])
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"


def say(text: str) -> None:
    """One line on standard error. That nobody reads it is no reason to fail."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"finx-streamer: {make_printable(text)}", file=sys.stderr, flush=True)


def warn_of_readers(option: str, file: Path) -> None:
    """Say so where others on this machine may read or write a file of keys. A file that can't be looked at is another's
    matter."""
    with contextlib.suppress(OSError):
        found = os.stat(file).st_mode
        if os.name == "posix" and stat.S_ISREG(found) and found & 0o077:
            say(f"warning: {option} {file}: others can get at the keys in it; chmod 600 keeps them yours")


def count(number: int, noun: str) -> str:
    """`1 tick`, `2 ticks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
