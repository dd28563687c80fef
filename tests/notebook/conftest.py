"""Kernels that test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

try:
    from tests.notebook.kernels import SERVED, Kernel, install
except ImportError:
    # Without the extra `dev` there are no kernels to test with.
    collect_ignore_glob = ["test_*.py"]

#: The installed one, the last of the 6 series, and one between.
VERSIONS = ("installed", "6.31.0", "7.1.0")


@pytest.fixture(scope="session", params=VERSIONS)
def version_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A folder with a version of ipykernel; None for the installed one."""
    if request.param == "installed":
        return None
    return install([f"ipykernel=={request.param}", "nest_asyncio"], tmp_path_factory.mktemp("ipykernel"))


@pytest.fixture(scope="module")
def any_kernel(version_path: object) -> Iterator[Kernel]:
    """A kernel of each version, with a server of ticks in it."""
    with Kernel(version_path) as kernel:  # type: ignore[arg-type]
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
    """The same, in which nothing runs at the beginning of a test."""
    yield shared_kernel
    shared_kernel.run("finx_streamer.stop_all()")
