"""A Python 2.7 with the Autobahn test suite in it: it exists for that version alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "autobahntestsuite==25.10.1"
#: The last that makes environments of Python 2.7.
VIRTUALENV = "virtualenv<20.22"
#: Some of the suite's packages have to be compiled.
_LONGEST_INSTALL = 900.0


class CannotRun(Exception):
    """Something is missing; the text says what."""


def prepared(folder: Path) -> Path:
    """The environment's interpreter; the environment is made in `folder` unless it is there. Raises `CannotRun`."""
    python, stamp = folder / "python2.7" / "bin" / "python", folder / "python2.7" / ".installed"
    if stamp.exists() and stamp.read_text() == SUITE and _is_python27(str(python)):
        return python
    found = _find()
    print(f"installing {SUITE} for {found} into {folder} …", file=sys.stderr)
    shutil.rmtree(python.parents[1], ignore_errors=True)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    maker = folder / "virtualenv"
    _run([sys.executable, *pip, "--upgrade", "--target", str(maker), VIRTUALENV])
    _run([sys.executable, "-m", "virtualenv", "--quiet", "--python", found, str(python.parents[1])], PYTHONPATH=maker)
    _run([str(python), *pip, SUITE], PYTHONWARNINGS="ignore")
    stamp.write_text(SUITE)
    return python


def _find() -> str:
    """A Python 2.7 of this machine: $PYTHON2, or else the one in PATH, or one of pyenv's."""
    if given := os.environ.get("PYTHON2"):
        if _is_python27(given):
            return given
        raise CannotRun(f"PYTHON2={given} is no Python 2.7 that runs")
    for candidate in [shutil.which("python2.7"), shutil.which("python2"), *_of_pyenv()]:
        if candidate and _is_python27(candidate):
            return candidate
    raise CannotRun(
        "the Autobahn test suite needs Python 2.7: none is in PATH as python2.7, and none is among pyenv's versions.\n"
        "Try: pyenv install 2.7.18 (https://github.com/pyenv/pyenv), or: make autobahn PYTHON2=/path/to/python2.7"
    )


def _of_pyenv() -> list[str]:
    """pyenv's own, also where no shim leads to them."""
    root = os.environ.get("PYENV_ROOT", "")
    if not root and (pyenv := shutil.which("pyenv")):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
    return sorted(map(str, Path(root or Path.home() / ".pyenv").glob("versions/2.7*/bin/python2.7")), reverse=True)


def _is_python27(python: str) -> bool:
    """Whether it runs, too: a shim of pyenv's may lead nowhere."""
    command = [python, "-c", "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout == "2.7"
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], **environment: object) -> None:
    settings = os.environ | {name: str(value) for name, value in environment.items()}
    try:
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=_LONGEST_INSTALL)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{' '.join(command)} took more than {_LONGEST_INSTALL:.0f} s") from None
    if done.returncode:
        raise CannotRun(
            f"{' '.join(command)} failed:\n{done.stderr.strip()}\n"
            "Is PyPI within reach? Some packages need a C compiler and the headers of Python 2.7."
        )
