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

#: Versions of ipykernel and what else they need. `notebook` excludes 7.0 to 7.3. The last pair is that of Colab.
VERSIONS = {
    "installed": [],
    "6.31.0": ["ipykernel==6.31.0", "nest_asyncio"],
    "6.17.1": ["ipykernel==6.17.1", "ipython==7.34.0", "nest_asyncio", "backcall", "decorator", "pickleshare"],
}


@pytest.fixture(scope="session", params=[*list(VERSIONS)[:2], pytest.param("6.17.1", marks=pytest.mark.slow)])
def version_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder with a version of ipykernel. None for the installed one."""
    requirements = VERSIONS[request.param]
    return install(requirements, tmp_path_factory.mktemp("ipykernel")) if requirements else None


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
