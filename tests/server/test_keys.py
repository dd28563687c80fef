"""The ring of API keys."""

from __future__ import annotations

import pytest

from finx_streamer.errors import ConfigurationError
from finx_streamer.server.keys import KeyRing


def test_only_the_given_keys_are_accepted() -> None:
    """A ring knows its keys, of any script, and no others."""
    ring = KeyRing(["demo", "schlüssel"])
    assert [ring.accepts(key) for key in ("demo", "schlüssel", "dem", "demo ", "")] == [True, True, False, False, False]


def test_any_key_is_accepted_without_a_list() -> None:
    """With no keys given every key will do, the empty one excepted."""
    ring = KeyRing(None)
    assert ring.accepts("anything")
    assert not ring.accepts("")


def test_an_empty_list_accepts_none() -> None:
    """No keys is not the same as any key."""
    assert not KeyRing([]).accepts("demo")


@pytest.mark.parametrize("keys", [None, ["demo"]])
def test_a_revoked_key_can_be_added_again(keys: list[str] | None) -> None:
    """Revoking and adding undo each other."""
    ring = KeyRing(keys)
    ring.revoke("demo")
    assert not ring.accepts("demo")
    ring.add("demo")
    assert ring.accepts("demo")


@pytest.mark.parametrize("keys", ["demo", [""], [7], [None]])
def test_what_is_no_collection_of_keys(keys: object) -> None:
    """A lone text is an iterable of letters, and an empty key no key."""
    with pytest.raises(ConfigurationError):
        KeyRing(keys)


def test_a_ring_does_not_show_its_keys() -> None:
    """No key is printed by accident."""
    assert "demo" not in repr(KeyRing(["demo"]))
