"""`listener.live()`: a view of a listener that updates itself in a notebook.

Each view has a thread that collects new ticks and draws them, so that it works while the kernel is busy. While no page
shows the view, it collects and sends nothing.
"""

from __future__ import annotations

import atexit
import threading
import uuid
from abc import ABC, abstractmethod
from typing import Any, Self

from IPython.display import display, update_display

from ..delivery.frontend import ListenerView, Watch
from ..delivery.recent import Recent
from .cells import Cell, this_cell
from .snapshot import snapshot
from .view_model import ViewModel

#: Seconds between two updates of the HTML table. Each sends the whole table, so more would slow down the page.
_TABLE_INTERVAL = 0.5
#: How long `close` waits for the last update, in seconds.
_CLOSE_TIMEOUT = 1.0

HINT = 'For a table that updates itself, with charts: pip install "finx-streamer[notebook]", then restart the kernel.'


class Live(ABC):
    """A live view of a listener: show it as the last expression of a cell, or with `display`.

    You can show it more than once. `close()` ends it, and so does a rerun of its cell. The listener keeps running.
    """

    def __init__(self, listener: ListenerView, recent: Recent, pairs: list[str], rate: float, watch: Watch) -> None:
        self.listener = listener
        self.cell: Cell | None = this_cell()
        self.view_model = ViewModel(listener, recent, pairs or listener.symbols[:1])
        #: Guards the view model. Never held while sending.
        self.lock = threading.Lock()
        self.interval = 1.0 / rate
        self._watch = watch
        self._display_id = uuid.uuid4().hex
        self._wake = threading.Event()
        self._closed = False
        self._shown = False
        self._thread = threading.Thread(target=self._main, name=f"{listener.name}-view", daemon=True)

    def start(self) -> Self:
        """Start drawing. Closes views that an earlier run of the cell left behind."""
        for earlier in tuple(_views):
            if self.cell is not None and earlier.cell is not None and self.cell.reruns(earlier.cell):
                earlier.close()
        _views.add(self)
        self._unwatch = self._watch(self.wake)
        self._thread.start()
        return self

    def close(self) -> None:
        """Draw once more, then stop drawing. The listener keeps running."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        self._unwatch()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_TIMEOUT)
        _views.discard(self)

    def wake(self) -> None:
        """Update now."""
        self._wake.set()

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
            digits, lines = self.view_model.digits(), self.view_model.sparklines()
        return snapshot(self.listener, digits, lines)

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
        ended = False
        while not self._closed:
            self._update()
            has_ended = self.listener.state.ended
            if has_ended and not ended:
                self.redisplay()
                self.draw()
            ended = has_ended
            # After the listener's end, nothing changes until `wake` is called.
            self._wake.wait(None if ended else self.pause())
            self._wake.clear()
        if not _exiting and not ended:
            self.redisplay()

    def _update(self) -> None:
        with self.lock:
            if self.listener.state.ended:
                self.view_model.update_stats()
            self.view_model.update()
        self.draw()


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


def _close_all() -> None:
    global _exiting
    _exiting = True
    for view in tuple(_views):
        view.close()


atexit.register(_close_all)
