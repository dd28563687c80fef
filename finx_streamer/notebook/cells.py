"""The cell that is being run, and how code on other threads writes into its output.

A kernel finds the cell to which output belongs by context variables, which a thread of ours does not have; what it does
without them differs from version to version. So a callback is called in a copy of the context of the cell that
registered it. (A copy for each call, because a context can't be entered by two threads at a time.)
"""

from __future__ import annotations

import contextvars
import hashlib
import threading
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import attrs
from IPython.core.getipython import get_ipython

#: Kernels before 7 send what is displayed to the last cell that was run, whatever the context.
_DISPLAY_IGNORES_CONTEXT = int(metadata.version("ipykernel").partition(".")[0]) < 7

_cell: contextvars.ContextVar[Cell | None] = contextvars.ContextVar("finx_streamer_cell", default=None)
_hooked = threading.local()


@attrs.frozen(eq=False, repr=False)
class Cell:
    """A cell in one of its runs: `id` is the same in each, `execution` is not."""

    id: str
    execution: str
    parent: dict[str, Any]
    context: contextvars.Context

    def reruns(self, other: Cell) -> bool:
        """Whether this is a later run of the same cell."""
        return self.id == other.id and self.execution != other.execution

    def redefines(self, callback: Callable[..., Any], place: Cell, earlier: Callable[..., Any]) -> bool:
        """Whether a callback registered here replaces one that was registered for the same event at `place`.

        A named function of the notebook replaces its earlier definition, in any cell. Lambdas, local functions and
        methods share their names with others, so they replace only callbacks from earlier runs of their cell.
        """
        if _qualified_name(callback) != _qualified_name(earlier):
            return False
        return self.reruns(place) or all(map(_is_notebook_function, (callback, earlier)))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call on the calling thread, with output going to this cell."""
        if _DISPLAY_IGNORES_CONTEXT and not getattr(_hooked, "done", False):
            _hook_display()
        return self.context.copy().run(function, *arguments)

    def route(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a callback so that its output appears in this cell, on any thread."""
        if _DISPLAY_IGNORES_CONTEXT:
            return lambda *arguments: self.run(callback, *arguments)
        copy = self.context.copy
        return lambda *arguments: copy().run(callback, *arguments)


def this_cell() -> Cell | None:
    """The cell that is being run, or whose callback is; None outside of cells."""
    shell: Any = get_ipython()
    if (known := _cell.get()) is not None and threading.current_thread() is not threading.main_thread():
        return known
    try:
        parent = shell.get_parent() if shell is not None else None
    except (AttributeError, LookupError):
        # A subclass of the kernel's, or a thread without a context in a kernel that has no fallback.
        return None
    if not parent or "header" not in parent:
        return None
    cell = Cell(_id(parent), str(parent["header"].get("msg_id", "")), parent, contextvars.copy_context())
    cell.context.run(_cell.set, cell)
    return cell


def _qualified_name(callback: Callable[..., Any]) -> tuple[str, str]:
    named = callback if hasattr(callback, "__qualname__") else type(callback)
    return str(getattr(named, "__module__", "")), str(getattr(named, "__qualname__", ""))


def _is_notebook_function(callback: Callable[..., Any]) -> bool:
    """Whether it is a top-level function defined in the notebook, and not a lambda or a local function."""
    return (
        isinstance(callback, types.FunctionType)
        and callback.__module__ == "__main__"
        and "<" not in callback.__qualname__
    )


def _id(parent: dict[str, Any]) -> str:
    """The front end's own name of the cell; where it gives none, its code: an edited cell is another one then."""
    about = parent.get("metadata") or {}
    named = about.get("cellId") or about.get("cell_id")
    if named:
        return str(named)
    code = str((parent.get("content") or {}).get("code", ""))
    return hashlib.sha256(code.encode("utf-8", "replace")).hexdigest()


def _hook_display() -> None:
    """Have what this thread displays go to the cell whose context it is in."""
    _hooked.done = True
    publisher: Any = getattr(get_ipython(), "display_pub", None)
    if hasattr(publisher, "register_hook"):
        publisher.register_hook(_to_cell)


def _to_cell(message: dict[str, Any]) -> dict[str, Any]:
    cell = _cell.get()
    if cell is not None:
        message["parent_header"] = cell.parent["header"]
    return message
