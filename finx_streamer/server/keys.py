"""The API keys that the server accepts."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from ..errors import ConfigurationError


class KeyRing:
    """The accepted keys. With `None`, every key is accepted unless it is empty or revoked."""

    def __init__(self, keys: Iterable[str] | None) -> None:
        if isinstance(keys, str):
            raise ConfigurationError(
                "keys is a str; expected a collection of keys, as in {'demo'}, or None for any key"
            )
        self._accepted = None if keys is None else {_encode(key) for key in keys}
        self._revoked: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<KeyRing of {'any key' if self._accepted is None else len(self._accepted)}>"

    def accepts(self, key: str) -> bool:
        """Whether the key is accepted. The comparison takes constant time."""
        offered = key.encode("utf-8", "surrogatepass")
        if not offered or _contains(self._revoked, offered):
            return False
        return self._accepted is None or _contains(self._accepted, offered)

    def add(self, key: str) -> None:
        """Accept the key, even if it was revoked. Raises `ConfigurationError` if it is empty."""
        encoded = _encode(key)
        self._revoked.discard(encoded)
        if self._accepted is not None:
            self._accepted.add(encoded)

    def revoke(self, key: str) -> None:
        """Stop accepting the key. Raises `ConfigurationError` if it is empty."""
        encoded = _encode(key)
        self._revoked.add(encoded)
        if self._accepted is not None:
            self._accepted.discard(encoded)


def _contains(keys: Iterable[bytes], offered: bytes) -> bool:
    # Unlike any(), the sum compares all keys, so that the time taken reveals nothing.
    return sum(hmac.compare_digest(offered, key) for key in keys) > 0


def _encode(key: str) -> bytes:
    if not isinstance(key, str) or not key:
        raise ConfigurationError("an API key must be a str that is not empty")
    return key.encode("utf-8", "surrogatepass")
