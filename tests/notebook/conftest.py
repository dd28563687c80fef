"""The kernels of the notebook tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    from tests.support.kernels import SERVED, Kernel, install
except ImportError:
    # The `dev` extra isn't installed, so there are no kernels.
    collect_ignore_glob = ["test_*.py"]

#: The installed version, and the last of the 6 series. Earlier 7 versions are excluded by the `notebook` extra.
VERSIONS = ("installed", "6.31.0")


@pytest.fixture(scope="session", params=VERSIONS)
def version_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder with a version of ipykernel. None for the installed one."""
    if request.param == "installed":
        return None
    return install([f"ipykernel=={request.param}", "nest_asyncio"], tmp_path_factory.mktemp("ipykernel"))


@pytest.fixture(scope="module")
def any_kernel(version_path: Path | None) -> Iterator[Kernel]:
    """A kernel of each version, with a server of ticks in it."""
    with Kernel(version_path) as kernel:
        kernel.run(SERVED)
        yield kernel


@pytest.fixture(scope="module")
def shared_kernel() -> Iterator[Kernel]:
    """A kernel of the installed version, with a server of ticks in it."""
    with Kernel() as kernel:
        kernel.run(SERVED)
        yield kernel


@pytest.fixture
def kernel(shared_kernel: Kernel) -> Iterator[Kernel]:
    """A kernel of the installed version, without running listeners."""
    yield shared_kernel
    shared_kernel.run("finx_streamer.stop_all()")
