"""The live view as a Jupyter widget: a model here, `live.js` in the page, and messages between them."""

from __future__ import annotations

import contextvars
import threading
import time
import warnings
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from ipykernel.connect import get_connection_file
from IPython.core.getipython import get_ipython

from ..clock import monotonic
from ..delivery.frontend import ListenerView, LiveSettings
from .live import Live

#: A page counts as visible for this many seconds after its last message. It sends one every two seconds.
_VISIBLE_FOR = 5.0
#: Seconds between two pictures while no page has answered since the view was displayed.
_UNANSWERED_INTERVAL = 0.5
#: For this many seconds after the display, each of them is the full state, because a page misses what comes before it
#: has loaded.
_LOADING = 10.0
#: The longest time between two frames to a visible page, in seconds. It shows that the kernel is alive.
_PULSE = 1.0
#: Seconds between two updates while no page is visible.
_HIDDEN_INTERVAL = 0.5
#: The type of our message on the control channel.
CONTROL = "finx_streamer_page"
#: The highest number of pages whose last message is known.
_PAGES = 100


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


class _Widget(anywidget.AnyWidget):
    """The state that Jupyter stores and sends to each page.

    `saved` is the full state, for pages without a kernel. Messages on the control channel need `kernel` and `view_id`.
    """

    _esm = _file("uPlot.min.js") + "\n" + _file("live.js")
    _css = _file("uPlot.min.css") + "\n" + _file("live.css")
    saved = traitlets.Dict().tag(sync=True)
    kernel = traitlets.Unicode().tag(sync=True)
    view_id = traitlets.Unicode().tag(sync=True)


class LiveWidget(Live):
    """A live view that draws tables and charts in the page."""

    def __init__(self, listener: ListenerView, settings: LiveSettings) -> None:
        super().__init__(listener, settings)
        with self.lock:
            self.view_model.update()
            saved = self._full()
        self._widget = _Widget(saved=saved, kernel=_kernel_id())
        self._widget.view_id = self._widget.model_id
        self._widget.on_msg(self._receive)
        #: The context of the last message from a page. A kernel with subshells finds the right one for replies in it.
        self._context = contextvars.copy_context()
        #: Until when each page counts as visible.
        self._visible_until: dict[str, float] = {}
        #: When the view was displayed, until a page answers.
        self._displayed_at: float | None = None
        #: The number of each page's last message.
        self._heard: dict[str, int] = {}
        self._sent_at = 0.0
        self._wants_full = False
        self._stopping = False
        _by_id[self._widget.model_id] = self
        _serve_control_channel()
        _warn_about_ipykernel()
        _cells()

    def mime_bundle(self) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": view,
            "text/html": self.static_html(),
            "text/plain": repr(self.listener),
        }

    def _ipython_display_(self) -> None:
        self._displayed_at = monotonic()
        super()._ipython_display_()

    def draw(self) -> None:
        now = monotonic()
        if not self._wants_full and not self._is_visible(now):
            return
        with self.lock:
            if self._wants_full or self._is_loading(now):
                self._wants_full = False
                frame = self._full()
            elif (changes := self.view_model.frame()) is not None:
                frame = changes
            elif now - self._sent_at >= _PULSE:
                frame = {"kind": "frame", "now": time.time(), "rows": {}, "points": {}}
            else:
                return
        self._sent_at = now
        self._send(frame)

    def redisplay(self) -> None:
        with self.lock:
            saved = self._full()
            self._wants_full = True
        # nbclient reads only messages of the running cell.
        _cells().context.copy().run(setattr, self._widget, "saved", saved)
        super().redisplay()

    def pause(self) -> float:
        if not self._is_visible(monotonic()):
            return _HIDDEN_INTERVAL
        return self.interval if self._displayed_at is None else _UNANSWERED_INTERVAL

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

    # Messages from a page: `hello` (it needs the full state), `visible`, `hidden`, `chart` (the pairs to draw),
    # `expiry` (the chain to show), `stop`.
    # A page numbers them, because one without an answer comes again on the control channel.
    # Messages to it: `full`, `frame`, `heard`, which confirms a number, and `stopping`, which confirms a stop.

    def _receive(self, _: Any, content: Any, __: Any) -> None:
        if isinstance(content, dict):
            self._context = contextvars.copy_context()
            self.receive(content)

    def receive(self, content: dict[str, Any]) -> None:
        """Handle a message, quickly, on the thread that received it."""
        page, number = str(content.get("page", ""))[:64], content.get("n")
        if not isinstance(number, int):
            self._handle(page, content)
            return
        with self.lock:
            last = self._heard.pop(page, -1)
            self._heard[page] = max(number, last)
            if len(self._heard) > _PAGES:
                self._heard.pop(next(iter(self._heard)))
        if number > last:
            self._handle(page, content)
        self._send({"kind": "heard", "page": page, "n": number})

    def _handle(self, page: str, content: dict[str, Any]) -> None:
        match content.get("kind"):
            case "hello":
                self._wants_full = True
                self._set_visible(page)
            case "visible":
                self._set_visible(page)
            case "hidden":
                self._visible_until.pop(page, None)
                self._displayed_at = None
            case "chart":
                self._choose(content.get("pairs"))
            case "expiry":
                self._choose_expiry(content.get("expiry"))
            case "stop":
                self.stop()

    def _set_visible(self, page: str) -> None:
        now = monotonic()
        was_visible = self._is_confirmed_visible(now)
        self._visible_until = {other: until for other, until in self._visible_until.items() if until > now}
        self._visible_until[page] = now + _VISIBLE_FOR
        self._displayed_at = None
        if not was_visible or self._wants_full:
            self._wants_full = True
            self._draw_soon()

    def _draw_soon(self) -> None:
        """Draw on the view's thread. After `close`, draw here, because that thread draws no more."""
        if self.closed:
            self.draw()
        self.wake()

    def _choose(self, pairs: Any) -> None:
        if not isinstance(pairs, list) or not all(isinstance(pair, str) for pair in pairs):
            return
        with self.lock:
            self.view_model.choose(pairs)
        self._draw_soon()

    def _choose_expiry(self, expiry: Any) -> None:
        with self.lock:
            self.view_model.choose_expiry(str(expiry))
        self._draw_soon()

    def _full(self) -> dict[str, Any]:
        return {**self.view_model.full(), "closed": self.closed}

    def _is_loading(self, now: float) -> bool:
        displayed_at = self._displayed_at
        return displayed_at is not None and now < displayed_at + _LOADING

    def _is_confirmed_visible(self, now: float) -> bool:
        return any(until > now for until in tuple(self._visible_until.values()))

    def _is_visible(self, now: float) -> bool:
        """Whether a page shows the view, as far as we know: while a cell runs, messages may not get through.

        Then a page stays visible until it says otherwise, and so does a view that was displayed.
        """
        if self._is_confirmed_visible(now):
            return True
        return _cells().running.is_set() and (bool(self._visible_until) or self._displayed_at is not None)

    def _send(self, message: dict[str, Any]) -> None:
        self._context.copy().run(self._widget.send, message)


_by_id: dict[str, LiveWidget] = {}


class _Cells:
    """Whether a cell runs, and the context of the last one."""

    def __init__(self) -> None:
        # A cell creates the first view.
        self.running = threading.Event()
        self._begin()
        events = getattr(get_ipython(), "events", None)
        if events is not None:
            events.register("pre_execute", self._begin)
            events.register("post_execute", self.running.clear)

    def _begin(self) -> None:
        self.context = contextvars.copy_context()
        self.running.set()


_cells = cache(_Cells)


@cache
def _warn_about_ipykernel() -> None:
    """Warn once per process about kernels that may stop reading requests (ipykernel issue 1554)."""
    version = metadata.version("ipykernel")
    if [7, 0] <= [int(part) for part in version.split(".")[:2]] < [7, 4]:
        warnings.warn(
            f"ipykernel {version} can stop responding while a live view is open: it may miss a request that arrives "
            "while it sends a reply. Run pip install --upgrade ipykernel, then restart the kernel.",
            RuntimeWarning,
            stacklevel=2,
        )


def _kernel_id() -> str:
    """Return the kernel's ID in the Jupyter server, which the name of the connection file contains."""
    try:
        return Path(get_connection_file()).stem.removeprefix("kernel-")
    except RuntimeError:
        return ""


@cache
def _serve_control_channel() -> None:
    """Register `receive_control` with the kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    handlers = getattr(kernel, "control_handlers", None)
    if isinstance(handlers, dict):
        handlers.setdefault(CONTROL, receive_control)


def receive_control(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
    """Handle a page's message from the control channel.

    A running cell keeps the thread busy that handles messages, unless page and kernel support subshells. So a page
    repeats an unanswered message on the control channel, which is always served.
    """
    content = parent.get("content") or {}
    view, message = _by_id.get(str(content.get("view"))), content.get("message")
    if view is not None and isinstance(message, dict):
        view.receive(message)
    kernel: Any = getattr(get_ipython(), "kernel", None)
    kernel.session.send(stream, f"{CONTROL}_reply", {"found": view is not None}, parent, ident)
