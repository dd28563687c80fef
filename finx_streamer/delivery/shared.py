"""`Shared`: a value that any thread may read and replace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """A value that is replaced and never modified, so that reading it needs no lock."""

    def __init__(self, value: _T) -> None:
        self.value = value
        # Reentrant: the garbage collector may drop a loop, which changes what is shared, at any moment.
        self._lock = threading.RLock()

    def change(self, changed: Callable[[_T], _T]) -> None:
        """Replace the value by what `changed` returns for it. `changed` may be called more than once."""
        with self._lock:
            while True:
                before = self.value
                after = changed(before)
                # Otherwise the garbage collector has changed it meanwhile.
                if self.value is before:
                    self.value = after
                    return
