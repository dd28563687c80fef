"""The frontend inside a Jupyter kernel. Imported by `jupyter.frontend()` only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..delivery.frontend import Frontend, ListenerView, LiveSettings
from .cells import Cell, this_cell
from .error_display import ErrorDisplay
from .reruns import Origin

if TYPE_CHECKING:
    from .live import Live


class Notebook(Frontend):
    """Routes output to cells, replaces what an earlier run of a cell left behind, and makes live views."""

    default_keep = 10_000

    def place(self) -> Cell | None:
        return this_cell()

    def origin(self, name: str | None, symbols: frozenset[str]) -> Origin | None:
        cell = this_cell()
        return None if cell is None else Origin(cell, name, symbols)

    def error_display(self, place_of: Callable[[Callable[..., Any]], Cell | None]) -> ErrorDisplay | None:
        cell = this_cell()
        return None if cell is None else ErrorDisplay(cell, place_of)

    def live(self, listener: ListenerView, settings: LiveSettings) -> Live:
        listener.start()
        # Imported only here, because only live views need them and the widget's libraries are an extra.
        kind: type[Live]
        try:
            from .widget import LiveWidget as kind
        except ImportError:
            from .live import LiveTable as kind
        return kind(listener, settings).start()
