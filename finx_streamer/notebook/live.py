"""`listener.live()`: a view in a notebook that moves.

A thread of its own takes in what has come and has it drawn, so that a busy kernel does not stand in its way. While no
page looks it takes note and sends nothing.
"""

from __future__ import annotations

import atexit
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from IPython.display import display, update_display

from ..delivery.frontend import ListenerView, Watch
from ..delivery.recent import Recent
from .cells import Cell, this_cell
from .snapshot import snapshot
from .view_model import ViewModel

#: Seconds between two pictures where each is a whole table of HTML: more would hold up the page.
_TABLE = 0.5
#: Seconds for the last picture, when a view is closed.
_LAST = 1.0

HINT = 'A table that moves by itself, with charts: pip install "finx-streamer[notebook]", then restart the kernel.'


class Live(ABC):
    """A view of a listener: show it as the last expression of a cell, or by `display`.

    It can be shown more than once. `close()` ends it, and leaves the listener as it is; so does a rerun of its cell.
    """

    def __init__(self, listener: ListenerView, recent: Recent, pairs: list[str], rate: float, watch: Watch) -> None:
        self.listener = listener
        self._watch = watch
        self.cell: Cell | None = this_cell()
        self.picture = ViewModel(listener, recent, pairs or listener.symbols[:1])
        #: Guards the picture. Never held while anything is sent.
        self.lock = threading.Lock()
        self.interval = 1.0 / rate
        self._display_id = uuid.uuid4().hex
        self._wake = threading.Event()
        self._closed = False
        self._shown = False
        self._thread = threading.Thread(target=self._main, name=f"{listener.name}-view", daemon=True)

    def start(self) -> None:
        self._unwatch = self._watch(self.wake)
        self._thread.start()

    def close(self) -> None:
        """Draw once more, and no further."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        self._unwatch()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_LAST)
        _views.discard(self)

    def wake(self) -> None:
        """Look now: something has changed that is not to wait for its turn."""
        self._wake.set()

    @abstractmethod
    def bundle(self) -> dict[str, Any]:
        """What to display, by type. Called without the lock."""

    @abstractmethod
    def draw(self) -> None:
        """Have what is new drawn, if anybody looks."""

    @abstractmethod
    def pause(self) -> float:
        """Seconds until the next look."""

    def still(self) -> str:
        """A picture of this moment in HTML, which stays in an exported notebook."""
        with self.lock:
            lines = self.picture.sparks()
        return snapshot(self.listener, lines)

    def _ipython_display_(self) -> None:
        self._shown = True
        display(self.bundle(), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    def redisplay(self) -> None:
        """Put what there is now in the place of what was displayed."""
        if not self._shown:
            return
        # Front ends find the place by its id. nbclient takes notice only of what the running cell sends, and that is
        # for kernels whatever comes from a thread without a context; but 7.0 refuses it from there.
        try:
            self._update()
        except LookupError:
            if self.cell is not None:
                self.cell.run(self._update)

    def _update(self) -> None:
        update_display(self.bundle(), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    def _main(self) -> None:
        ended = False
        while not self._closed:
            self._look()
            is_over = self.listener.state.ended
            if is_over and not ended:
                self.redisplay()
                self.draw()
            ended = is_over
            # Where the listener has ended nothing comes of itself.
            self._wake.wait(None if ended else self.pause())
            self._wake.clear()
        if not _exiting and not ended:
            self.redisplay()

    def _look(self) -> None:
        with self.lock:
            if self.listener.state.ended:
                self.picture.count()
            self.picture.look()
        self.draw()


class LiveTable(Live):
    """The plain way, for notebooks without the extra: a table of HTML, drawn anew twice a second."""

    def bundle(self) -> dict[str, Any]:
        html = f'{self.still()}<div style="opacity:.75;font-size:90%">{HINT}</div>'
        return {"text/html": html, "text/plain": repr(self.listener)}

    def draw(self) -> None:
        self.redisplay()

    def pause(self) -> float:
        return _TABLE


def live(listener: ListenerView, recent: Recent, pairs: list[str], rate: float, watch: Watch) -> Live:
    """Make a view and start what belongs to it; see `StreamListener.live`."""
    listener.start()
    kind: Callable[[ListenerView, Recent, list[str], float, Watch], Live]
    try:
        from .widget import LiveWidget as kind
    except ImportError:
        kind = LiveTable
    view = kind(listener, recent, pairs, rate, watch)
    for earlier in tuple(_views):
        if view.cell is not None and earlier.cell is not None and view.cell.reruns(earlier.cell):
            earlier.close()
    _views.add(view)
    view.start()
    return view


_views: set[Live] = set()
_exiting = False


def _close_all() -> None:
    global _exiting
    _exiting = True
    for view in tuple(_views):
        view.close()


atexit.register(_close_all)
