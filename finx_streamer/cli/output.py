"""Where past ticks are written: standard output, a pipe or device, or a file that is complete or absent."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .. import ConfigurationError


class Output:
    """What `--output` names; None is standard output. Raises `ConfigurationError` for a directory, else `OSError`."""

    def __init__(self, path: Path | None) -> None:
        found = _found(path) if path is not None else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"--output {path}: it is a directory; expected a file")
        if found is not None and _is_standard_output(found):
            path = None
        #: What appears when it is complete; None: ticks go straight to where they are read.
        self.file: Path | None = None
        self._path = path
        self._mode: int | None = None
        if path is not None and (found is None or stat.S_ISREG(found.st_mode)):
            self.file = Path(os.path.realpath(path))
            self._mode = None if found is None else found.st_mode & 0o777

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[str]]:
        """The file to write to. Raises `BrokenPipeError` where a pipe has lost its reader."""
        if self.file is not None:
            with _replacing(self.file, self._mode) as file:
                yield file
        elif self._path is not None:
            with open(self._path, "w", encoding="utf-8", newline="") as file, _let_go_of(file):
                yield file
        elif sys.stdout is None:
            raise ConfigurationError("standard output is closed")
        else:
            with _let_go_of(sys.stdout):
                yield sys.stdout


@contextlib.contextmanager
def _replacing(target: Path, mode: int | None) -> Iterator[IO[str]]:
    """A file beside the target, which takes its name and its mode once all is written, and else is removed."""
    beside = target.with_name(f".finx-streamer-{secrets.token_hex(8)}.part")
    # From the first moment on nobody may read it who may not read the target.
    opener = functools.partial(os.open, mode=0o666 if mode is None else mode)
    try:
        with open(beside, "x", encoding="utf-8", newline="", opener=opener) as file:
            if mode is not None:
                os.chmod(beside, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


@contextlib.contextmanager
def _let_go_of(file: IO[str]) -> Iterator[None]:
    """What a pipe has not taken by Ctrl-C, or when its reader is gone, must not be tried again when the file closes."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, file.fileno())
            os.close(null)
        raise


def _found(path: Path) -> os.stat_result | None:
    """What is there, links followed. Through `/proc` they lead to pipes, which have no name to resolve."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_standard_output(found: os.stat_result) -> bool:
    """Whether it is where standard output goes already, as `/dev/stdout` is, and must not be replaced."""
    return sys.stdout is not None and os.path.samestat(found, os.fstat(sys.stdout.fileno()))
