"""One object for each exchange name, because thousands of ticks are remembered."""

from __future__ import annotations

_MOST = 1_024
#: Not `sys.intern`: Python 3.12 never frees interned strings.
_names: dict[str, str] = {}
#: Returns the shared object for a name: `share(name, name)`. The method itself, because each tick calls it.
share = _names.setdefault


def limit() -> None:
    """Forget all names if there are too many: a server may invent them. To be called now and then."""
    if len(_names) > _MOST:
        _names.clear()
