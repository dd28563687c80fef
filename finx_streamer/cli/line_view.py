"""The view for pipes and files: one line per tick."""

from __future__ import annotations

import codecs
import os
import select
import threading

from .. import Gap, Notice, StreamListener, Tick
from .formats import LineFormat, to_json
from .terminal import REPLACE, describe_filled_gap, say, shorten

#: How many lines may wait to be written.
_MAX_PENDING = 10_000


class LineView:
    """Writes each tick as a line to a file descriptor.

    Callbacks format the lines, the main thread writes them: each at once, or many together if they arrive faster than
    that. A reader that stops makes the callbacks wait, and finally the server. Ctrl-C still works, because the main
    thread does the writing.
    """

    def __init__(self, line_format: LineFormat, fd: int, encoding: str = "utf-8") -> None:
        self._format_tick = line_format.format_tick
        self._fd = fd
        self._encode = codecs.getincrementalencoder(encoding)(REPLACE).encode
        self._pending = [line_format.header] if line_format.header else []
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._writing = False

    def on_tick(self, tick: Tick) -> None:
        line = self._format_tick(tick)
        with self._changed:
            while len(self._pending) >= _MAX_PENDING and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._pending.append(line)
                self._changed.notify_all()

    def on_error(self, message: str) -> None:
        say(shorten(message))

    def on_notice(self, notice: Notice) -> None:
        say(shorten(f"notice: {to_json(notice.message)}"))

    def on_filled_gap(self, gap: Gap) -> None:
        say(describe_filled_gap(gap))

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def refresh(self, listener: StreamListener, seconds: float) -> None:
        """Write the pending lines. If there are none, wait for some."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._woken, seconds)
            self._woken = False
        if not self._write_pending() and self._reader_is_gone():
            raise BrokenPipeError

    def finish(self, listener: StreamListener, interrupted: bool) -> None:
        """Write the rest, unless Ctrl-C interrupted a write: a part of those lines may be out already."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not (interrupted and self._writing):
            self._write_pending()

    def _write_pending(self) -> bool:
        """Return whether there was a line to write."""
        with self._changed:
            lines, self._pending = self._pending, []
            self._changed.notify_all()
        data = memoryview(self._encode("".join(lines)))
        while data:
            self._writing = True
            data = data[os.write(self._fd, data) :]
        self._writing = False
        return bool(lines)

    def _reader_is_gone(self) -> bool:
        """Return whether a pipe has lost its reader. In a quiet market no write would notice."""
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
