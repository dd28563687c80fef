"""The accepted API keys."""

from __future__ import annotations

import hmac

import pytest

from finx_streamer.errors import ConfigurationError
from finx_streamer.server.keys import KeyRing


def test_accepts_only_the_given_keys() -> None:
    """A key ring accepts its keys, in any script, and no others."""
    ring = KeyRing(["demo", "schlüssel"])
    assert [ring.accepts(key) for key in ("demo", "schlüssel", "dem", "demo ", "")] == [True, True, False, False, False]


def test_none_accepts_any_key() -> None:
    """With None, every key except the empty one is accepted."""
    ring = KeyRing(None)
    assert ring.accepts("anything")
    assert not ring.accepts("")


def test_empty_list_accepts_no_key() -> None:
    """An empty list differs from None."""
    assert not KeyRing([]).accepts("demo")


@pytest.mark.parametrize("keys", [None, ["demo"]])
def test_revoked_key_can_be_added_again(keys: list[str] | None) -> None:
    """Adding a key undoes its revocation."""
    ring = KeyRing(keys)
    ring.revoke("demo")
    assert not ring.accepts("demo")
    ring.add("demo")
    assert ring.accepts("demo")


@pytest.mark.parametrize("keys", ["demo", [""], [7], [None]])
def test_rejects_malformed_keys(keys: object) -> None:
    """A single str and empty keys are errors."""
    with pytest.raises(ConfigurationError):
        KeyRing(keys)


def test_repr_hides_the_keys() -> None:
    """The repr contains no key."""
    assert "demo" not in repr(KeyRing(["demo"]))


def test_compares_with_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of constant-time comparisons doesn't depend on the offered key."""
    ring = KeyRing(f"key-number-{number}" for number in range(50))
    comparisons = 0

    def compare(first: bytes, second: bytes) -> bool:
        nonlocal comparisons
        comparisons += 1
        return first == second

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in ("key-number-0", "key-number-49", "key-number-", "x", "x" * 5_000, "\ud800"):
        comparisons = 0
        ring.accepts(key)
        assert comparisons == 50
