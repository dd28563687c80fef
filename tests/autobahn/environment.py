"""Set up a Python 2.7 environment with the Autobahn test suite, which needs that version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "autobahntestsuite==25.10.1"
#: The last version that supports Python 2.7.
VIRTUALENV = "virtualenv<20.22"
#: In seconds. Some of the suite's packages are compiled.
_INSTALL_TIMEOUT = 900.0


class CannotRun(Exception):
    """Something is missing. The text says what."""


def prepare(folder: Path) -> Path:
    """Return the environment's interpreter. Create the environment in `folder` if necessary. Raises `CannotRun`."""
    python, stamp = folder / "python2.7" / "bin" / "python", folder / "python2.7" / ".installed"
    if stamp.exists() and stamp.read_text() == SUITE and _is_python27(str(python)):
        return python
    found = _find_python27()
    print(f"installing {SUITE} for {found} into {folder} …", file=sys.stderr)
    shutil.rmtree(python.parents[1], ignore_errors=True)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    maker = folder / "virtualenv"
    _run([sys.executable, *pip, "--upgrade", "--target", str(maker), VIRTUALENV])
    _run([sys.executable, "-m", "virtualenv", "--quiet", "--python", found, str(python.parents[1])], PYTHONPATH=maker)
    _run([str(python), *pip, SUITE], PYTHONWARNINGS="ignore")
    stamp.write_text(SUITE)
    return python


def _find_python27() -> str:
    """Return a Python 2.7 of this machine: $PYTHON2, the one in PATH, or one of pyenv's."""
    if given := os.environ.get("PYTHON2"):
        if _is_python27(given):
            return given
        raise CannotRun(f"PYTHON2={given} is not a working Python 2.7")
    for candidate in [shutil.which("python2.7"), shutil.which("python2"), *_pyenv_pythons()]:
        if candidate and _is_python27(candidate):
            return candidate
    raise CannotRun(
        "the Autobahn test suite needs Python 2.7, which is neither in PATH nor among pyenv's versions.\n"
        "Try: pyenv install 2.7.18 (https://github.com/pyenv/pyenv), or: make autobahn PYTHON2=/path/to/python2.7"
    )


def _pyenv_pythons() -> list[str]:
    """Return pyenv's interpreters, even those without a shim."""
    root = os.environ.get("PYENV_ROOT", "")
    if not root and (pyenv := shutil.which("pyenv")):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
    return sorted(map(str, Path(root or Path.home() / ".pyenv").glob("versions/2.7*/bin/python2.7")), reverse=True)


def _is_python27(python: str) -> bool:
    """Return whether it runs: a shim of pyenv may point to nothing."""
    command = [python, "-c", "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout == "2.7"
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], **environment: object) -> None:
    settings = os.environ | {name: str(value) for name, value in environment.items()}
    try:
        result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{' '.join(command)} took more than {_INSTALL_TIMEOUT:.0f} s") from None
    if result.returncode:
        raise CannotRun(
            f"{' '.join(command)} failed:\n{result.stderr.strip()}\n"
            "Check that PyPI is reachable. Some packages need a C compiler and the headers of Python 2.7."
        )
