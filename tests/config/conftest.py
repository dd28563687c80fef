"""Fixtures for the tests of the configuration."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from finx_streamer.config import redaction


@pytest.fixture
def no_remembered_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without remembered keys, and leave none behind."""
    monkeypatch.setattr(redaction, "_keys", OrderedDict())
