"""What has counters registers itself here, so that `metrics` finds it. This module imports nothing of the package."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

_numbers = itertools.count()
#: The objects of each kind, in the order in which they were registered. No lock: each operation is atomic.
_metered: dict[str, WeakValueDictionary[int, Any]] = {}


def register(kind: str, owner: object) -> None:
    """Show the counters of an object as long as it exists.

    Args:
        kind: "server" or "publisher": which metrics it has. See `metrics.families`.
        owner: What has the counters: a property `stats`, which any thread may read, and a `name`.
    """
    _metered.setdefault(kind, WeakValueDictionary())[next(_numbers)] = owner


def registered(kind: str) -> list[Any]:
    """Return the objects of a kind, the oldest first."""
    found = (reference() for reference in _metered.get(kind, WeakValueDictionary()).valuerefs())
    return [owner for owner in found if owner is not None]
