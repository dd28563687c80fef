"""Where past ticks are written: standard output, a pipe or device, or a file that is complete or absent.

A name that ends in `.gz` is written with gzip.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .. import ConfigurationError
from .encoding import encode
from .formats import LineFormat
from .part_file import PartFile

#: Without it, Windows changes line ends, which damages compressed files.
_BINARY = getattr(os, "O_BINARY", 0)


class Output:
    """The destination that `--output` names. None means standard output.

    Raises:
        ConfigurationError: The path is a directory.
        OSError: The path can't be looked at.
    """

    def __init__(self, path: Path | None) -> None:
        found = _stat(path) if path is not None else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"--output {path}: is a directory; expected a file")
        if found is not None and _is_standard_output(found):
            path = None
        #: The file that appears when it is complete. None: ticks go straight to a pipe, a device or standard output.
        self.file: Path | None = None
        self._path = path
        #: Whether to compress with gzip.
        self.packed = path is not None and path.suffix.lower() == ".gz"
        self._mode: int | None = None
        if path is not None and (found is None or stat.S_ISREG(found.st_mode)):
            self.file = Path(os.path.realpath(path))
            self._mode = None if found is None else found.st_mode & 0o777

    def part(self, line_format: LineFormat) -> PartFile | None:
        """Return what writes the file. None if ticks go straight to a pipe, a device or standard output: `open` it."""
        return PartFile(self.file, self._mode, self.packed, line_format) if self.file is not None else None

    def open_now(self) -> int:
        """Empty the file and return its descriptor. What is written stays there, even after a failure."""
        if self._path is not None:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
        if sys.stdout is None:
            raise ConfigurationError("standard output is closed")
        return sys.stdout.fileno()

    @property
    def encoding(self) -> str:
        """That of standard output, or UTF-8."""
        return sys.stdout.encoding if self._path is None and sys.stdout is not None else "utf-8"

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[str]]:
        """Open standard output, a pipe or a device for writing.

        Raises:
            BrokenPipeError: The reader of a pipe is gone.
        """
        if self._path is not None:
            with open(self._path, "wb") as raw, encode(raw, self.packed) as file, _drop_unwritten(file):
                yield file
        elif sys.stdout is None:
            raise ConfigurationError("standard output is closed")
        else:
            with _drop_unwritten(sys.stdout):
                yield sys.stdout


@contextlib.contextmanager
def _drop_unwritten(file: IO[str]) -> Iterator[None]:
    """After Ctrl-C or a closed pipe, drop the buffered rest: closing the file would try to write it again."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, file.fileno())
            os.close(null)
        raise


def _stat(path: Path) -> os.stat_result | None:
    """Follow links with `stat`, not by name: links in `/proc` lead to pipes, which have no name."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_standard_output(found: os.stat_result) -> bool:
    """Return whether this is standard output by another name, such as `/dev/stdout`, and must not be replaced."""
    return sys.stdout is not None and os.path.samestat(found, os.fstat(sys.stdout.fileno()))
