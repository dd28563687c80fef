"""A monotonic clock that goes on while a test has frozen time.

freezegun replaces `time.monotonic` in every module, and a timeout on a frozen clock never passes. It finds the function
by identity. So the functions of a second copy of the module `time` stay as they are, even if this module is imported
while time is frozen. time-machine leaves monotonic clocks alone.

Wall-clock times still come from `time` and `datetime`: a test that sets them wants to see them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import module_from_spec
from types import ModuleType


def _copy_of_time() -> ModuleType:
    spec = time.__spec__
    assert spec is not None
    assert spec.loader is not None
    copy = module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


#: Like `time.monotonic`.
monotonic: Callable[[], float] = _copy_of_time().monotonic
