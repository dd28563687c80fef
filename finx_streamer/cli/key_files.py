"""API keys from the environment and from files, never from arguments: other users of the machine can see those."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from .. import ConfigurationError
from ..config.api_key import ENVIRONMENT_VARIABLE, from_environment
from ..config.redaction import remember
from .terminal import say


class KeyFileError(Exception):
    """The key file can't be read at the moment. A later attempt may succeed."""


def api_key(file: Path | None) -> str | Callable[[], str]:
    """Return the key from the environment, or a callable that reads the file at each connection attempt.

    Raises:
        ConfigurationError: There is no key at the moment.
    """
    if file is None:
        key = from_environment()
        if not key:
            raise ConfigurationError(f"no API key: set {ENVIRONMENT_VARIABLE}, or pass --api-key-file FILE")
        # From now on, errors about other options mask it.
        remember(key)
        return key
    try:
        key = _read_key(file)
    except KeyFileError as unreadable:
        raise ConfigurationError(str(unreadable)) from None
    with contextlib.suppress(OSError):
        # A pipe, as in `--api-key-file <(pass finx)`, can be read only once.
        if stat.S_ISREG(file.stat().st_mode):
            warn_if_exposed("--api-key-file", file)
            return lambda: _read_key(file)
    return key


def accepted_keys(file: Path) -> dict[str, int]:
    """Return the keys that a server accepts, one per line, with the number of its line. Blank lines are ignored.

    Raises:
        ConfigurationError: The file can't be read, or has no keys.
    """
    try:
        lines = read_text("--keys-file", file).splitlines()
    except KeyFileError as unreadable:
        raise ConfigurationError(str(unreadable)) from None
    keys = {key: number for number, line in reversed(list(enumerate(lines, 1))) if (key := line.strip())}
    if not keys:
        raise ConfigurationError(f"--keys-file {file}: the file has no keys; expected one per line")
    warn_if_exposed("--keys-file", file)
    return keys


def _read_key(file: Path) -> str:
    key = read_text("--api-key-file", file).strip()
    if not key:
        raise KeyFileError(f"--api-key-file {file}: the file is empty")
    return key


def read_text(option: str, file: Path) -> str:
    """Return a file's text. Raises `KeyFileError`."""
    reason = "the file isn't UTF-8 text"
    try:
        with contextlib.suppress(UnicodeDecodeError):
            return file.read_text("utf-8-sig")  # editors on Windows write a byte order mark
    except OSError as cause:
        reason = cause.strerror or type(cause).__name__
    # Raised outside of the handlers: a UnicodeDecodeError holds the key, and would become this error's context.
    raise KeyFileError(f"{option} {file}: {reason}")


def warn_if_exposed(option: str, file: Path, allowed: int = 0o600) -> None:
    """Warn if a mode allows other users of this machine more than `allowed`."""
    with contextlib.suppress(OSError):
        mode = file.stat().st_mode
        if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077 & ~allowed:
            say(f"warning: {option} {file}: other users can read or change this file; run chmod {allowed:o} on it")
