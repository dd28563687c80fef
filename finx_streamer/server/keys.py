"""Which API keys the server accepts."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from ..errors import ConfigurationError


class KeyRing:
    """The accepted keys. `None` accepts every key that is not empty and not revoked."""

    def __init__(self, keys: Iterable[str] | None) -> None:
        if isinstance(keys, str):
            raise ConfigurationError("keys is a str; expected a collection of keys, as in {'demo'}, or None for any")
        self._accepted = None if keys is None else {_encoded(key) for key in keys}
        self._revoked: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<KeyRing of {'any key' if self._accepted is None else len(self._accepted)}>"

    def accepts(self, key: str) -> bool:
        """Whether the key is good. Takes as long for a nearly right key as for any other."""
        offered = key.encode("utf-8", "surrogatepass")
        if not offered or _among(offered, self._revoked):
            return False
        return self._accepted is None or _among(offered, self._accepted)

    def add(self, key: str) -> None:
        """Accept the key from now on, also if it had been revoked. Raises `ConfigurationError` for an empty one."""
        encoded = _encoded(key)
        self._revoked.discard(encoded)
        if self._accepted is not None:
            self._accepted.add(encoded)

    def revoke(self, key: str) -> None:
        """Accept the key no longer."""
        encoded = _encoded(key)
        self._revoked.add(encoded)
        if self._accepted is not None:
            self._accepted.discard(encoded)


def _among(offered: bytes, keys: Iterable[bytes]) -> bool:
    # The sum compares them all, whichever fits: the time taken tells nothing.
    return sum(hmac.compare_digest(offered, key) for key in keys) > 0


def _encoded(key: str) -> bytes:
    if not isinstance(key, str) or not key:
        raise ConfigurationError("an API key is a str that is not empty")
    return key.encode("utf-8", "surrogatepass")
