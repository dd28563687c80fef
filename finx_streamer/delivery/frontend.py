"""What a listener needs from its surroundings, a script or a notebook, and what the notebook needs from a listener."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, Self

import attrs

from ..errors import ConfigurationError, FinxStreamerError
from ..values import Greeks, State
from .recent import Recent
from .stats import ListenerStats


class Place(Protocol):
    """One run of a notebook cell."""

    def route(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a callback so that its output appears in this cell, on any thread."""

    def redefines(self, callback: Callable[..., Any], place: Self, earlier: Callable[..., Any]) -> bool:
        """Whether a callback registered here replaces one that was registered for the same event at `place`."""


class Origin(Protocol):
    """Who started a listener."""

    def replaces(self, earlier: Self) -> bool:
        """Whether a listener of this origin replaces an earlier one."""


class LiveView(Protocol):
    """A live view in a notebook. `StreamListener.live` returns one."""

    def close(self) -> None:
        """Draw once more, then stop drawing. The listener keeps running."""


class ListenerView(Protocol):
    """The part of a listener that views show."""

    @property
    def name(self) -> str: ...
    @property
    def symbols(self) -> tuple[str, ...]: ...
    @property
    def state(self) -> State: ...
    @property
    def stats(self) -> ListenerStats: ...
    def greeks(self) -> dict[str, Greeks]: ...
    def start(self) -> object: ...
    def stop(self) -> bool: ...


#: Registers a function to call, on any thread, when a listener starts or ends. Returns what undoes the registration.
Watch = Callable[[Callable[[], None]], Callable[[], None]]


@attrs.frozen
class LiveSettings:
    """What a live view shows, and how.

    Attributes:
        recent: The last ticks of the listener.
        pairs: Those with a chart. Empty chooses the first one.
        rate: Frames per second at most.
        watch: Has a function called when the listener starts or ends.
        bars: The length of a candle. None draws lines.
    """

    recent: Recent
    pairs: list[str]
    rate: float
    watch: Watch
    bars: timedelta | None


class Frontend:
    """What a listener needs from its surroundings. This is the one for scripts.

    `jupyter.frontend()` returns a subclass in a notebook.
    """

    #: How many ticks a listener keeps if its `keep` is None. More than the processor's caches hold slow bursts down.
    default_keep = 1_000

    def place(self) -> Place | None:
        """Return the running cell. None outside of cells."""
        return None

    def origin(self, name: str | None, symbols: frozenset[str]) -> Origin | None:
        """Return the origin of a listener that starts now. `name` is None unless the user chose it."""
        return None

    def error_display(
        self, place_of: Callable[[Callable[..., Any]], Any]
    ) -> Callable[[FinxStreamerError], None] | None:
        """Return a function that shows errors if there is no `on_error` callback. None: log them.

        `place_of` returns the cell that registered a callback.
        """
        return None

    def live(self, listener: ListenerView, settings: LiveSettings) -> LiveView:
        """Start a live view. Raises `ConfigurationError` outside of notebooks."""
        raise ConfigurationError("live() works only in Jupyter notebooks. Here, use callbacks or recent()")
