"""The view for pipes and files: one line per tick, or per message with Greeks."""

from __future__ import annotations

import codecs
import os
import select
import stat
import threading
import zlib

from .. import Gap, Greeks, Notice, Tick
from ..base_listener import BaseListener
from .formats import LineFormat, to_json
from .terminal import REPLACE, describe_filled_gap, say, shorten

#: How many lines may wait to be written.
_MAX_PENDING = 10_000
#: Seconds that Ctrl-C waits for a reader.
_LAST_WRITE = 0.5
#: For zlib: the largest window, with a header of gzip.
_GZIP = 31


class LineView:
    """Writes each tick as a line to a file descriptor, in UTF-8 or in another encoding, with gzip if `packed`.

    Callbacks format the lines, a thread writes them: each at once, or many together if they arrive faster than that. A
    reader that stops makes the callbacks wait, and finally the server. Ctrl-C still works, because it doesn't interrupt
    the thread. The descriptor stays open.
    """

    def __init__(
        self, line_format: LineFormat, fd: int, encoding: str = "utf-8", packed: bool = False, greeks: bool = False
    ) -> None:
        self._format = line_format
        self._fd = fd
        self._encode = codecs.getincrementalencoder(encoding)(REPLACE).encode
        self._packer = zlib.compressobj(wbits=_GZIP) if packed else None
        header = line_format.greeks_header if greeks else line_format.header
        self._pending = [header] if header else []
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._failure: OSError | None = None
        # A daemon: it may wait forever for a reader.
        self._writer = threading.Thread(target=self._write_until_closed, name="finx-streamer-output", daemon=True)
        self._writer.start()

    def on_tick(self, tick: Tick) -> bool:
        return self._put(self._format.format_tick(tick))

    def on_greeks(self, greeks: Greeks) -> bool:
        return self._put(self._format.format_greeks(greeks))

    def _put(self, line: str) -> bool:
        with self._changed:
            while len(self._pending) >= _MAX_PENDING and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._pending.append(line)
            self._changed.notify_all()
        return True

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

    def refresh(self, listener: BaseListener, seconds: float) -> None:
        """Wait. Raises `OSError` if the lines can't be written."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._failure, seconds)
            self._woken = False
        self._raise_failure()
        if self._reader_is_gone():
            raise BrokenPipeError

    def missing(self) -> str | None:
        return None

    def finish(self, listener: BaseListener, interrupted: bool) -> None:
        """Write the rest. After Ctrl-C, don't wait for a reader that has stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        may_block = not stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._writer.join(_LAST_WRITE if interrupted and may_block else None)
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write_until_closed(self) -> None:
        closed = False
        try:
            while not closed:
                with self._changed:
                    self._changed.wait_for(lambda: self._pending or self._closed)
                    lines, self._pending, closed = self._pending, [], self._closed
                    self._changed.notify_all()
                self._write(self._pack("".join(lines), closed))
        except OSError as error:
            with self._changed:
                self._failure, self._closed = error, True
                self._changed.notify_all()

    def _pack(self, text: str, last: bool) -> bytes:
        data = self._encode(text)
        if self._packer is None:
            return data
        # Flushed each time: after a crash, everything up to here can be read.
        return self._packer.compress(data) + self._packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)

    def _write(self, data: bytes) -> None:
        unwritten = memoryview(data)
        while unwritten:
            unwritten = unwritten[os.write(self._fd, unwritten) :]

    def _reader_is_gone(self) -> bool:
        """Return whether a pipe has lost its reader. In a quiet market no write would notice."""
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
