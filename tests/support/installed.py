"""The package as users install it: from a copy of this checkout or from a wheel, into a new virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.support.program import ROOT


def copy_of_source(folder: Path) -> Path:
    """Copy what a build reads. Builds write into the source folder, so parallel ones need separate copies."""
    source = folder / "source"
    shutil.copytree(ROOT / "finx_streamer", source / "finx_streamer")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


def build_wheel(folder: Path) -> Path:
    """Build a wheel of this checkout."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(copy_of_source(folder))]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


class Installation:
    """An empty virtual environment, and commands that run in it as in a new user's shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=True)
        self._bin = folder / "venv" / "bin"
        ours = ("FINX_API_KEY", "PYTHONPATH", "VIRTUAL_ENV")
        self._environment = {name: value for name, value in os.environ.items() if name not in ours}
        self._environment |= {"PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}

    def install(self, *requirements: str) -> None:
        """Install from the package index, or from paths."""
        self.run("pip", "--disable-pip-version-check", "install", "--quiet", *requirements).check_returncode()

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end."""
        environment: Mapping[str, str] = self._environment | variables
        command = [str(self._bin / program), *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
