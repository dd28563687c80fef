"""`listener.live()`: a view of a listener that updates itself in a notebook.

Each view has a thread that collects new ticks and draws them, so that it works while the kernel is busy. While no page
shows the view, it collects and sends nothing.
"""

from __future__ import annotations

import atexit
import threading
import uuid
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, Self

from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

from ..delivery.frontend import ListenerView, LiveSettings
from .cells import Cell, this_cell
from .snapshot import snapshot
from .view_model import ViewModel, first_charted

#: Seconds between two updates of the HTML table. Each sends the whole table, so more would slow down the page.
_TABLE_INTERVAL = 0.5
#: How long `close` and the end of a cell wait for the last picture, in seconds.
_CLOSE_TIMEOUT = 5.0

HINT = 'For a table that updates itself, with charts: pip install "finx-streamer[notebook]", then restart the kernel.'


class Live(ABC):
    """A live view of a listener: show it as the last expression of a cell, or with `display`.

    You can show it more than once. `close()` ends it, and so does a rerun of its cell. The listener keeps running.
    """

    def __init__(self, listener: ListenerView, settings: LiveSettings) -> None:
        self.listener = listener
        self.cell: Cell | None = this_cell()
        charts = settings.pairs or first_charted(listener.symbols)
        self.view_model = ViewModel(listener, settings.recent, charts, settings.bars)
        #: Guards the view model. Never held while sending.
        self.lock = threading.Lock()
        self.interval = 1.0 / settings.rate
        self._watch = settings.watch
        self._display_id = uuid.uuid4().hex
        self._wake = threading.Event()
        self.closed = False
        self._shown = False
        #: Cleared when the listener has ended, until the last picture is drawn.
        self._last_drawn = threading.Event()
        self._last_drawn.set()
        self._thread = threading.Thread(target=self._main, name=f"{listener.name}-view", daemon=True)

    def start(self) -> Self:
        """Start drawing. Closes views that an earlier run of the cell left behind."""
        for earlier in tuple(_views):
            if self.cell is not None and earlier.cell is not None and self.cell.reruns(earlier.cell):
                earlier.close()
        _views.add(self)
        _register_cell_end()
        self._unwatch = self._watch(self._listener_changed)
        # It may have ended before the watch began.
        self._listener_changed()
        self._thread.start()
        return self

    def close(self) -> None:
        """Draw once more, then stop drawing. The listener keeps running."""
        if self.closed:
            return
        self.closed = True
        self.wake()
        self._unwatch()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_TIMEOUT)
        _views.discard(self)

    def wake(self) -> None:
        """Update now."""
        self._wake.set()

    def wait_drawn(self) -> None:
        """If the listener has ended, wait until the last picture is drawn."""
        if self._thread.is_alive():
            self._last_drawn.wait(_CLOSE_TIMEOUT)

    def _listener_changed(self) -> None:
        """The listener has started or ended. Called on any thread."""
        if self.listener.state.ended:
            self._last_drawn.clear()
        self.wake()

    @abstractmethod
    def mime_bundle(self) -> dict[str, Any]:
        """Return the content to display, by MIME type. Called without the lock."""

    @abstractmethod
    def draw(self) -> None:
        """Draw changes, if a page shows the view."""

    @abstractmethod
    def pause(self) -> float:
        """Return the seconds until the next update."""

    def static_html(self) -> str:
        """Return the current state as HTML, which stays in an exported notebook."""
        with self.lock:
            digits, lines, expiry = self.view_model.digits(), self.view_model.sparklines(), self.view_model.expiry
        return snapshot(self.listener, digits, lines, expiry)

    def _ipython_display_(self) -> None:
        self._shown = True
        display(self.mime_bundle(), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    def redisplay(self) -> None:
        """Replace the displayed content with the current one."""
        # Front ends find it by its ID. Run without a cell's context: nbclient accepts updates only from the running
        # cell, and kernels attribute output of threads without a context to that cell.
        if self._shown:
            update_display(self.mime_bundle(), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    def _main(self) -> None:
        closed = at_end = False
        while not closed:
            self._wake.clear()
            # First whether this is the last picture, then what it shows.
            closed = self.closed
            is_last = not self._last_drawn.is_set()
            ended = self.listener.state.ended
            self._update(read_stats=closed or ended)
            if not _exiting:
                if closed or (is_last and ended):
                    self.redisplay()
                self.draw()
            # After `stop()`, `ended` is true while callbacks still run. `is_last` follows when they are done.
            at_end = ended and (at_end or is_last)
            if is_last:
                self._last_drawn.set()
            if not closed:
                # After the listener's end, nothing changes until `wake` is called.
                self._wake.wait(None if at_end else self.pause())

    def _update(self, read_stats: bool) -> None:
        with self.lock:
            if read_stats:
                self.view_model.update_stats()
            self.view_model.update()


class LiveTable(Live):
    """The fallback without the `notebook` extra: an HTML table, replaced twice a second."""

    def mime_bundle(self) -> dict[str, Any]:
        html = f'{self.static_html()}<div style="opacity:.75;font-size:90%">{HINT}</div>'
        return {"text/html": html, "text/plain": repr(self.listener)}

    def draw(self) -> None:
        self.redisplay()

    def pause(self) -> float:
        return _TABLE_INTERVAL


_views: set[Live] = set()
_exiting = False


@cache
def _register_cell_end() -> None:
    """Let each cell end with the last pictures drawn: nbclient reads nothing that comes later."""
    events = getattr(get_ipython(), "events", None)
    if events is not None:
        events.register("post_execute", _wait_drawn)


def _wait_drawn() -> None:
    for view in tuple(_views):
        view.wait_drawn()


def _close_all() -> None:
    global _exiting
    _exiting = True
    for view in tuple(_views):
        view.close()


atexit.register(_close_all)
