"""Fixtures for the tests of the archive."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests keep the machine busy. A process that yields to them would take minutes."""
    from finx_streamer.archive import sealer

    monkeypatch.setattr(sealer, "NICENESS", 0)
