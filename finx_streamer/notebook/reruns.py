"""What a rerun of a cell replaces, so that no rerun leaves anything behind."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import attrs

from .cells import Cell


@attrs.frozen
class Origin:
    """Who started a listener. `name` is None where the user gave it none."""

    cell: Cell
    name: str | None
    symbols: frozenset[str]

    def replaces(self, earlier: Origin) -> bool:
        """Whether a listener of this origin takes an earlier one's place: one of the same name; or, without one, of
        the same symbols and started by an earlier run of the same cell."""
        if self.name is not None or earlier.name is not None:
            return self.name == earlier.name
        return self.symbols == earlier.symbols and self.cell.reruns(earlier.cell)


def redefines(cell: Cell, callback: Callable[..., Any], earlier_cell: Cell, earlier: Callable[..., Any]) -> bool:
    """Whether a callback takes the place of one that was registered for the same before.

    A function of a name of its own in the notebook does, wherever it is defined again. Lambdas, local functions and
    methods share their names with others: they replace what an earlier run of their cell has registered.
    """
    names = _name(callback), _name(earlier)
    if names[0] != names[1]:
        return False
    return cell.reruns(earlier_cell) or all(map(_is_of_the_notebook, (callback, earlier)))


def _name(callback: Callable[..., Any]) -> tuple[str, str]:
    of = callback if hasattr(callback, "__qualname__") else type(callback)
    return str(getattr(of, "__module__", "")), str(getattr(of, "__qualname__", ""))


def _is_of_the_notebook(callback: Callable[..., Any]) -> bool:
    """Whether it is a function that the notebook has by its name."""
    return (
        isinstance(callback, types.FunctionType)
        and callback.__module__ == "__main__"
        and "<" not in callback.__qualname__
    )
