"""What the system says about the store's files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: A file's device and inode.
Identity = tuple[int, int]


def access_error(path: Path) -> int:
    """The error code with which the system would deny writing the file; 0 if it wouldn't.

    This doesn't open the file: closing it would release this process's SQLite locks.
    """
    if path.is_dir():
        return errno.EISDIR
    if not path.parent.exists():
        return errno.ENOENT
    if not path.parent.is_dir():
        return errno.ENOTDIR
    # SQLite also creates files beside it.
    places = [path.parent, path] if path.exists() else [path.parent]
    if hasattr(os, "statvfs") and any(os.statvfs(place).f_flag & os.ST_RDONLY for place in places):
        return errno.EROFS
    return 0 if all(os.access(place, os.W_OK) for place in places) else errno.EACCES


def identify(path: Path) -> Identity | None:
    """What distinguishes a file from others of the same name; None if it doesn't exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def wal_path(path: Path) -> Path:
    return Path(f"{os.path.realpath(path)}-wal")
