"""Which listener a rerun of a cell replaces."""

from __future__ import annotations

import attrs

from .cells import Cell


@attrs.frozen
class Origin:
    """Who started a listener. `name` is None unless the user chose it."""

    cell: Cell
    name: str | None
    symbols: frozenset[str]

    def replaces(self, earlier: Origin) -> bool:
        """Whether a listener of this origin replaces an earlier one.

        A named listener replaces one of the same name. An unnamed one replaces one with the same symbols that an
        earlier run of the same cell started.
        """
        if self.name is not None or earlier.name is not None:
            return self.name == earlier.name
        return self.symbols == earlier.symbols and self.cell.reruns(earlier.cell)
