"""The only way into `notebook`: a script imports nothing from there."""

from __future__ import annotations

import sys

from .delivery.frontend import Frontend, ListenerView
from .delivery.recent import Recent


def frontend() -> Frontend:
    """The frontend of this process."""
    if not in_kernel():
        return Frontend()
    from .notebook.frontend import Notebook

    return Notebook()


def snapshot(listener: ListenerView, recent: Recent | None) -> str:
    """A listener's current state as static HTML. Works without a kernel."""
    from .notebook import snapshot as html

    return html.snapshot_of(listener, recent)


def in_kernel() -> bool:
    """Whether an IPython kernel runs this code. Costs a script one dict lookup, and no import."""
    if "ipykernel" not in sys.modules:
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
