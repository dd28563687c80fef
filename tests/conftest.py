"""What several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.peers import Seen

#: Recorded trades, beside the checkout. They are not part of the project: a clone elsewhere has none.
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded trades; skips the test where it is absent."""
    if not (SHARED_DATA / "tape-small.jsonl").exists():
        pytest.skip(f"no recorded trades at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def seen() -> Seen:
    """What the listener of the test calls back with."""
    return Seen()


@pytest.fixture(params=["thread", "inline"])
def dispatch(request: pytest.FixtureRequest) -> str:
    """Both ways in which callbacks can be run."""
    return str(request.param)
