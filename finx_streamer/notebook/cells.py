"""The running cell, and how code on other threads writes to its output.

Kernels find the cell that output belongs to through context variables, which our threads don't have. So each callback
runs in the context of the cell that registered it. Old kernels send all output to the cell that ran last, so there we
replace the methods of their streams.
"""

from __future__ import annotations

import contextvars
import hashlib
import sys
import threading
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import attrs
from ipykernel.iostream import OutStream
from IPython.core.getipython import get_ipython

#: Before version 7, kernels send displayed objects to the cell that ran last, in spite of the context.
_DISPLAY_IGNORES_CONTEXT = int(metadata.version("ipykernel").partition(".")[0]) < 7

#: Before version 6.29, the same is true of what is printed.
_PRINT_IGNORES_CONTEXT = not isinstance(getattr(OutStream, "parent_header", None), property)

_cell: contextvars.ContextVar[Cell | None] = contextvars.ContextVar("finx_streamer_cell", default=None)
_hooked = threading.local()


@attrs.frozen(eq=False, repr=False)
class Cell:
    """One run of a cell. All runs of a cell have the same `id`, and each has its own `execution`."""

    id: str
    execution: str
    parent: dict[str, Any]
    context: contextvars.Context
    #: For old kernels: streams whose output appears in this cell, by name.
    streams: dict[str, Any] = attrs.field(factory=dict)

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
        """Call a function on this thread, with its output in this cell."""
        if _DISPLAY_IGNORES_CONTEXT and not getattr(_hooked, "done", False):
            _hook_display()
        return self.context.copy().run(function, *arguments)

    def stream(self, original: Any) -> Any:
        """Return this cell's own stream in place of stdout or stderr. For old kernels only."""
        if original.name not in self.streams:
            create: Any = OutStream
            own = create(original.session, original.pub_thread, original.name, watchfd=False)
            own.set_parent(self.parent)
            # Another thread may have been faster.
            self.streams.setdefault(original.name, own)
        return self.streams[original.name]

    def route(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a callback so that its output appears in this cell, on any thread."""
        # Each call enters a copy, because two threads can't be in the same context.
        if _DISPLAY_IGNORES_CONTEXT:
            return lambda *arguments: self.run(callback, *arguments)
        copy = self.context.copy
        return lambda *arguments: copy().run(callback, *arguments)


def this_cell() -> Cell | None:
    """Return the running cell or, in a callback, the cell that registered it. None outside of cells."""
    shell: Any = get_ipython()
    if (known := _cell.get()) is not None and threading.current_thread() is not threading.main_thread():
        return known
    try:
        parent = shell.get_parent() if shell is not None else None
    except (AttributeError, LookupError):
        # A shell of another kind, or a thread without the kernel's context.
        return None
    if not parent or "header" not in parent:
        return None
    cell = Cell(_id(parent), str(parent["header"].get("msg_id", "")), parent, contextvars.copy_context())
    cell.context.run(_cell.set, cell)
    if _PRINT_IGNORES_CONTEXT:
        _route_streams()
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
    """Return the front end's ID of the cell. Without one, hash the code: then an edited cell counts as another cell."""
    about = parent.get("metadata") or {}
    given = about.get("cellId") or about.get("cell_id")
    if given:
        return str(given)
    code = str((parent.get("content") or {}).get("code", ""))
    return hashlib.sha256(code.encode("utf-8", "replace")).hexdigest()


def _hook_display() -> None:
    """Route objects that this thread displays to the cell whose context it runs in."""
    _hooked.done = True
    publisher: Any = getattr(get_ipython(), "display_pub", None)
    if hasattr(publisher, "register_hook"):
        publisher.register_hook(_route_message)


def _route_message(message: dict[str, Any]) -> dict[str, Any]:
    cell = _cell.get()
    if cell is not None:
        message["parent_header"] = cell.parent["header"]
    return message


def _route_streams() -> None:
    """Route what is printed, on any thread, to the cell whose context prints it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, OutStream) and "write" not in vars(stream):
            for name in ("write", "flush"):
                setattr(stream, name, _routed(stream, getattr(stream, name)))


def _routed(stream: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that uses a stream of the cell's own, if it is called in the context of a cell."""

    def act(*arguments: Any) -> Any:
        cell = _cell.get()
        own = method if cell is None else getattr(cell.stream(stream), method.__name__)
        return own(*arguments)

    return act
