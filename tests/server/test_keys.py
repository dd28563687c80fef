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


def test_a_mapping_numbers_the_keys() -> None:
    """Other keys have no number, and neither has a key that isn't accepted."""
    ring = KeyRing({"first": 3, "second": 7})
    ring.add("third")
    assert [ring.number_of(key) for key in ("first", "second", "third", "fourth")] == [3, 7, None, None]
    assert KeyRing(None).number_of("first") is None
    assert KeyRing(["first"]).number_of("first") is None


def test_names_are_no_numbers() -> None:
    """Names as keys and keys as names are a likely mistake. It would let names in, and log keys."""
    with pytest.raises(ConfigurationError, match=r"expected \{key: number\}") as caught:
        KeyRing({"alice": "a-secret"})
    assert "a-secret" not in str(caught.value)


def test_replaced_keys_are_no_longer_accepted() -> None:
    """A revoked key is accepted if it is among the new ones. Malformed keys change nothing."""
    ring = KeyRing({"first": 1, "second": 2})
    ring.revoke("second")
    ring.replace({"second": 5, "third": 6})
    for malformed in ("second", [""], {"fourth": "x"}):
        with pytest.raises(ConfigurationError):
            ring.replace(malformed)
    assert [ring.accepts(key) for key in ("first", "second", "third")] == [False, True, True]
    assert ring.number_of("second") == 5


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
