"""Fixtures and Hypothesis profiles for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from finx_streamer.connection import relief
from tests.support import effort  # noqa: F401 (registers the profiles)
from tests.support.nats import NatsCluster, NatsServer
from tests.support.peers import Seen
from tests.support.turns import TURNS

#: Recorded trades, next to the checkout. They aren't part of the project, so other clones don't have them.
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

#: Fixtures that start a kernel or a browser. The tests of each run in one process, so that it starts only once.
SHARED_FIXTURES = ("lab", "any_kernel", "shared_kernel")

# `.ci/run` overrides this with --hypothesis-profile.
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that share an expensive fixture."""
    for item in items:
        for fixture in SHARED_FIXTURES:
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(fixture))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded trades. Skips the test if it doesn't exist."""
    if not (SHARED_DATA / "tape-small.jsonl").exists():
        pytest.skip(f"no recorded trades at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running NATS server with JetStream."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Three running NATS servers with one JetStream."""
    with NatsCluster(tmp_path / "nats") as cluster:
        yield cluster


@pytest.fixture
def seen() -> Seen:
    """Records what the test's listener passes to its callbacks."""
    return Seen()


@pytest.fixture(params=["thread", "thread, always relieved", "thread, changing hands", "inline"])
def dispatch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two ways to run callbacks, and of the ways in which two threads take turns."""
    way, _, turns = str(request.param).partition(", ")
    if turns:
        monkeypatch.setattr(relief, "TIMING", TURNS[turns])
    return way


@pytest.fixture(params=["as they need", "always relieved", "changing hands"])
def turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which the two threads of a listener take turns."""
    if request.param in TURNS:
        monkeypatch.setattr(relief, "TIMING", TURNS[request.param])


@pytest.fixture
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy variables of this machine."""
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "wss_proxy", "ws_proxy")
    for name in (*names, *map(str.upper, names), "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
