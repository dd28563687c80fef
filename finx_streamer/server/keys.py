"""The API keys that the server accepts."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from ..errors import ConfigurationError


class KeyRing:
    """The accepted keys. With `None`, every key is accepted unless it is empty or revoked.

    The values of a mapping are the numbers by which the request log identifies its keys.
    """

    def __init__(self, keys: Iterable[str] | None) -> None:
        self._accepted: dict[bytes, int | None] | None
        self._revoked: set[bytes]
        self.replace(keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {'any key' if self._accepted is None else len(self._accepted)}>"

    def accepts(self, key: str) -> bool:
        """Whether the key is accepted. The comparison takes constant time."""
        offered = key.encode("utf-8", "surrogatepass")
        if not offered or _contains(self._revoked, offered):
            return False
        return self._accepted is None or _contains(self._accepted, offered)

    def number_of(self, key: str) -> int | None:
        """The number of an accepted key, if it has one."""
        return None if self._accepted is None else self._accepted.get(_encode(key))

    def replace(self, keys: Iterable[str] | None) -> None:
        """Accept exactly these keys. Raises `ConfigurationError` if they are malformed; then nothing changes."""
        if isinstance(keys, str):
            raise ConfigurationError(
                "keys is a str; expected a collection of keys, as in {'demo'}, or None for any key"
            )
        self._accepted = None if keys is None else _encode_all(keys)
        self._revoked = set()

    def add(self, key: str) -> None:
        """Accept the key, even if it was revoked. Raises `ConfigurationError` if it is empty."""
        encoded = _encode(key)
        self._revoked.discard(encoded)
        if self._accepted is not None:
            self._accepted.setdefault(encoded, None)

    def revoke(self, key: str) -> None:
        """Stop accepting the key. Raises `ConfigurationError` if it is empty."""
        encoded = _encode(key)
        self._revoked.add(encoded)
        if self._accepted is not None:
            self._accepted.pop(encoded, None)


def _encode_all(keys: Iterable[str]) -> dict[bytes, int | None]:
    if not isinstance(keys, Mapping):
        return dict.fromkeys(map(_encode, keys))
    if not all(isinstance(number, int) for number in keys.values()):
        # Else names would be taken for keys, and keys would be in the log.
        raise ConfigurationError("keys is a dict whose values aren't all numbers; expected {key: number}")
    return {_encode(key): number for key, number in keys.items()}


def _contains(keys: Iterable[bytes], offered: bytes) -> bool:
    # Unlike any(), the sum compares all keys, so that the time taken reveals nothing.
    return sum(hmac.compare_digest(offered, key) for key in keys) > 0


def _encode(key: str) -> bytes:
    if not isinstance(key, str) or not key:
        raise ConfigurationError("an API key must be a str that is not empty")
    return key.encode("utf-8", "surrogatepass")
