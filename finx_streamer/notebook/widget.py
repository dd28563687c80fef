"""The live view as a Jupyter widget: a model here, `live.js` in the page, and messages in between.

From the page: `hello` (it wants a full picture), `look` and `away` (whether it is seen), `chart` (which pairs to draw),
`stop`. To the page: `full`, `frame`, and `stopping` as the answer to a stop.

Messages from pages are handled by the kernel's main thread, which a running cell keeps busy, unless page and kernel
have subshells for them. So a stop that is not answered at once is sent again over the kernel's control channel, which
is always open: `control_stop`. Frames are sent in the context of the page's own last message: by it a kernel with
subshells knows where the page's answers are to be handled.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from ipykernel.connect import get_connection_file
from IPython.core.getipython import get_ipython

from ..delivery.frontend import ListenerView, Watch
from ..delivery.recent import Recent
from .hearing import keep_hearing
from .live import Live

logger = logging.getLogger("finx_streamer")

#: A page that has not said for so many seconds that it is seen is not. It says so every two.
_SEEN = 5.0
#: Seconds between two frames to a page of which nothing can be got_tick, since a cell is running.
_UNHEARD = 0.5
#: Seconds between two frames at least, while a page looks: it can tell a quiet market from a dead kernel by it.
_PULSE = 1.0
#: Seconds between two looks while no page looks.
_UNSEEN = 0.5
#: The type of our message on the control channel.
CONTROL_STOP = "finx_streamer_stop"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


class _Model(anywidget.AnyWidget):
    """What Jupyter knows of the view. `saved` is a full picture, for pages without a kernel; `kernel` and `view_id` are
    what a stop over the control channel needs."""

    _esm = _file("uPlot.min.js") + "\n" + _file("live.js")
    _css = _file("uPlot.min.css") + "\n" + _file("live.css")
    saved = traitlets.Dict().tag(sync=True)
    kernel = traitlets.Unicode().tag(sync=True)
    view_id = traitlets.Unicode().tag(sync=True)


class LiveWidget(Live):
    """See the module."""

    def __init__(self, listener: ListenerView, recent: Recent, pairs: list[str], rate: float, watch: Watch) -> None:
        super().__init__(listener, recent, pairs, rate, watch)
        with self.lock:
            self.picture.look()
            saved = self.picture.full()
        self._model = _Model(saved=saved, kernel=_kernel_id())
        self._model.view_id = self._model.model_id
        self._model.on_msg(self._received)
        self._context = contextvars.copy_context()
        #: Until when each page counts as seen.
        self._seen_until: dict[str, float] = {}
        self._sent_at = 0.0
        self._wants_full = False
        self._stopping = False
        _by_model[self._model.model_id] = self
        _listen_to_control()
        keep_hearing()
        _busy()

    def close(self) -> None:
        super().close()
        _by_model.pop(self._model.model_id, None)

    def bundle(self) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self._model.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "text/html": self.still(),
            "text/plain": repr(self.listener),
        }

    def draw(self) -> None:
        now = time.monotonic()
        if not self._wants_full and not self._is_seen(now):
            return
        with self.lock:
            if self._wants_full:
                self._wants_full = False
                frame = self.picture.full()
            elif (changes := self.picture.frame()) is not None:
                frame = changes
            elif now - self._sent_at >= _PULSE:
                frame = {"kind": "frame", "now": time.time(), "rows": {}, "points": {}}
            else:
                return
        self._sent_at = now
        self._send(frame)

    def redisplay(self) -> None:
        with self.lock:
            saved = self.picture.full()
            self._wants_full = True
        self._context.copy().run(setattr, self._model, "saved", saved)
        super().redisplay()

    def pause(self) -> float:
        now = time.monotonic()
        if not self._is_seen(now):
            return _UNSEEN
        return self.interval if self._is_heard(now) else _UNHEARD

    def stop(self) -> None:
        """Stop the listener, as the button does. Returns at once."""
        if not self._stopping:
            self._stopping = True
            threading.Thread(target=self._stop, name=f"{self.listener.name}-stop", daemon=True).start()
        self._send({"kind": "stopping"})

    def _stop(self) -> None:
        try:
            self.listener.stop()
        finally:
            self._stopping = False
            self.wake()

    # What pages say.

    def _received(self, _: Any, content: Any, __: Any) -> None:
        """From whichever thread handles messages: none of it takes long."""
        if not isinstance(content, dict):
            return
        self._context = contextvars.copy_context()
        page = str(content.get("page", ""))[:64]
        match content.get("kind"):
            case "hello":
                self._wants_full = True
                self._look_of(page)
            case "look":
                self._look_of(page)
            case "away":
                self._seen_until.pop(page, None)
            case "chart":
                self._choose(content.get("pairs"))
            case "stop":
                self.stop()

    def _look_of(self, page: str) -> None:
        now = time.monotonic()
        was_seen = self._is_seen(now)
        self._seen_until = {other: until for other, until in self._seen_until.items() if until > now}
        self._seen_until[page] = now + _SEEN
        if not was_seen or self._wants_full:
            self._wants_full = True
            self.wake()

    def _choose(self, pairs: Any) -> None:
        if not isinstance(pairs, list) or not all(isinstance(pair, str) for pair in pairs):
            return
        with self.lock:
            self.picture.choose(pairs)
            self._wants_full = True
        self.wake()

    def _is_heard(self, now: float) -> bool:
        return any(until > now for until in tuple(self._seen_until.values()))

    def _is_seen(self, now: float) -> bool:
        """Whether a page looks, as far as can be known: while a cell is running, pages may talk in vain."""
        return self._is_heard(now) or (bool(self._seen_until) and _busy().is_set())

    def _send(self, message: dict[str, Any]) -> None:
        self._context.copy().run(self._model.send, message)


_by_model: dict[str, LiveWidget] = {}


@cache
def _busy() -> threading.Event:
    """Set while a cell is running."""
    busy = threading.Event()
    # The first view is made by a cell.
    busy.set()
    events = getattr(get_ipython(), "events", None)
    if events is not None:
        events.register("pre_execute", busy.set)
        events.register("post_execute", busy.clear)
    return busy


def _kernel_id() -> str:
    """As a Jupyter server names this kernel; it makes the connection file's name out of it."""
    try:
        return Path(get_connection_file()).stem.removeprefix("kernel-")
    except RuntimeError:
        return ""


@cache
def _listen_to_control() -> None:
    """Have the kernel take our message on its control channel, too."""
    kernel = getattr(get_ipython(), "kernel", None)
    handlers = getattr(kernel, "control_handlers", None)
    if isinstance(handlers, dict):
        handlers.setdefault(CONTROL_STOP, control_stop)


def control_stop(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
    """A stop that came over the control channel."""
    content = parent.get("content") or {}
    view = _by_model.get(str(content.get("view")))
    if view is not None:
        view.stop()
    kernel: Any = getattr(get_ipython(), "kernel", None)
    kernel.session.send(stream, f"{CONTROL_STOP}_reply", {"stopped": view is not None}, parent, ident)
