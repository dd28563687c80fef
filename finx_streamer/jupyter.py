"""The only way into `notebook`: a script imports nothing from there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .delivery.frontend import Frontend, ListenerView
from .errors import ConfigurationError


class Script:
    """The frontend outside of notebooks: output, errors and reruns need no care."""

    #: More ticks than fit into the processor's caches would slow a burst down.
    default_keep = 1_000

    def place(self) -> None:
        return None

    def origin(self, name: str | None, symbols: frozenset[str]) -> None:
        return None

    def error_display(self, place_of: Callable[[Callable[..., Any]], Any]) -> None:
        return None

    def live(self, *_: object) -> NoReturn:
        raise ConfigurationError("live() works only in Jupyter notebooks. Here, use callbacks or recent()")


def frontend() -> Frontend:
    """The frontend of this process."""
    if not in_kernel():
        return Script()
    from .notebook.frontend import Notebook

    return Notebook()


def snapshot(listener: ListenerView) -> str:
    """A listener's current state as static HTML. Works without a kernel."""
    from .notebook import snapshot as html

    return html.snapshot(listener)


def in_kernel() -> bool:
    """Whether an IPython kernel runs this code. Costs a script one dict lookup, and no import."""
    if "ipykernel" not in sys.modules:
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
