"""Whether this is a Jupyter kernel, found out without importing anything for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .notebook.cells import Cell


def in_kernel() -> bool:
    """Whether the code is run by an IPython kernel. A script pays for the look into a dict."""
    if "ipykernel" not in sys.modules:
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def this_cell() -> Cell | None:
    """The cell that is being run; None outside of kernels."""
    if not in_kernel():
        return None
    from .notebook import cells

    return cells.this_cell()
