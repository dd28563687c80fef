"""`finx-streamer record`: run a listener that records, and show its progress in one line."""

from __future__ import annotations

import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

from .. import FinxStreamerError, Gap, Greeks, ListenerStats, Notice, RecordingError, Tick
from ..base_listener import BaseListener
from ..clock import monotonic
from .listening import ListenRun
from .terminal import count, describe_filled_gap, say, shorten

#: Seconds between two progress lines: in a terminal, and elsewhere.
_REDRAW, _REPEAT = 1.0, 60.0
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


class ProgressView:
    """Shows how something goes on: a line that is redrawn in a terminal, or a line per minute."""

    def __init__(self) -> None:
        self._in_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._woken = threading.Event()
        #: Callbacks print messages, and the main thread draws.
        self._lock = threading.Lock()
        self._has_line = False
        self._next = monotonic() + (0.0 if self._in_terminal else _REPEAT)
        self._unfilled = 0

    def on_tick(self, tick: Tick) -> bool:
        return True

    def on_greeks(self, greeks: Greeks) -> bool:
        return True

    def on_error(self, message: str) -> None:
        self._say(shorten(message))

    def on_notice(self, notice: Notice) -> None:
        """Do nothing: notices are recorded."""

    def on_filled_gap(self, gap: Gap) -> None:
        self._say(describe_filled_gap(gap))

    def count_unfilled(self) -> None:
        """Count a gap that wasn't filled."""
        self._unfilled += 1

    def wake(self) -> None:
        self._woken.set()

    def missing(self) -> str | None:
        return None

    def refresh(self, listener: BaseListener, seconds: float) -> None:
        """Wait, and show the progress now and then."""
        self._woken.wait(seconds)
        self._woken.clear()
        if (now := monotonic()) >= self._next:
            self._next = now + (_REDRAW if self._in_terminal else _REPEAT)
            stats = listener.stats
            self._draw(f"{self.describe(stats)}, {stats.rate:,.0f} ticks/s")

    def finish(self, listener: BaseListener, interrupted: bool) -> None:
        """Remove the line."""
        self._draw("")

    def describe(self, stats: ListenerStats) -> str:
        """Return what has been done so far."""
        raise NotImplementedError

    def gaps(self, stats: ListenerStats) -> str:
        """Return how many gaps there were."""
        return count(stats.gaps, "gap") + (f" ({self._unfilled:,} not filled)" if self._unfilled else "")

    def _say(self, text: str) -> None:
        self._draw("")
        say(text)

    def _draw(self, text: str) -> None:
        if not self._in_terminal:
            if text:
                say(text)
            return
        with self._lock, suppress(OSError):
            if text or self._has_line:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)
            self._has_line = bool(text)


class RecordingView(ProgressView):
    """Shows what was recorded."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._size = disk_use(directory)
        self._problems = 0

    def count_problem(self) -> None:
        """Count a problem of the archive, such as dropped entries."""
        self._problems += 1

    def describe(self, stats: ListenerStats) -> str:
        """Return what was recorded so far. What waits for callbacks, or was dropped before them, is recorded, too."""
        ticks = stats.ticks + stats.queue_depth + stats.dropped
        size = disk_use(self._directory)
        # Sealing makes files smaller: early in a run, the archive may shrink.
        each = f" ({(size - self._size) / ticks:,.1f} bytes per tick)" if ticks and size > self._size else ""
        problems = f", {count(self._problems, 'problem')} of the archive" if self._problems else ""
        return f"{count(ticks, 'tick')}, {size_text(size)} on disk{each}, {self.gaps(stats)}{problems}"


class ProgressRun(ListenRun):
    """One run of a listener that shows no ticks, but its progress."""

    _stop_timeout = 10.0

    def __init__(self, progress: ProgressView, duration: float | None) -> None:
        self._progress = progress
        super().__init__(progress, None, duration)

    def _watch_values(self, listener: BaseListener) -> None:
        """Do nothing: the listener counts, and callbacks would take time."""

    def _on_gap(self, gap: Gap) -> None:
        # It continues an earlier run: its first gap is an outage, too.
        if gap.filled:
            self._progress.on_filled_gap(gap)
        else:
            self._progress.count_unfilled()

    def _summary(self, stats: ListenerStats, seconds: float) -> str:
        ended = f"{count(stats.reconnects, 'reconnect')}, {count(self._errors, 'error')}"
        return f"{self._progress.describe(stats)}, in {seconds:,.1f} s; {ended}"


class RecordRun(ProgressRun):
    """One run of a listener that records."""

    def __init__(self, directory: Path, duration: float | None) -> None:
        self._recording = RecordingView(directory)
        super().__init__(self._recording, duration)

    def _on_error(self, error: FinxStreamerError) -> None:
        super()._on_error(error)
        if isinstance(error, RecordingError):
            self._recording.count_problem()


def disk_use(directory: Path) -> int:
    """Return the size of all files of an archive."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):  # sealed or merged meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def size_text(size: float) -> str:
    """Return a size for people."""
    unit = 0
    while size >= 1_000 and unit < len(_UNITS) - 1:
        size /= 1_000
        unit += 1
    return f"{size:,.1f} {_UNITS[unit]}" if unit else f"{size:,.0f} bytes"
