"""Durations and sizes as options have them: `7d`, `2GB`."""

from __future__ import annotations

import re
from datetime import timedelta

from .. import ConfigurationError

_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_DURATION = re.compile(rf"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>{'|'.join(_UNITS)})")
_SIZE = re.compile(rf"(?P<number>[0-9]+(\.[0-9]+)?) ?(?P<unit>{'|'.join(_SIZES)})")


def parse_duration(text: str) -> timedelta | None:
    """Return a duration such as `90s`, `15m`, `1h`, `7d` or `1w`; None for other text. Raises `OverflowError`."""
    found = _DURATION.fullmatch(text.strip().lower())
    return float(found["number"]) * _UNITS[found["unit"]] if found else None


def parse_run_time(text: str | None) -> float | None:
    """Return the value of `record --for` in seconds.

    Raises:
        ConfigurationError: It isn't a duration.
    """
    if text is None:
        return None
    try:
        time = parse_duration(text if text.strip()[-1:].isalpha() else f"{text.strip()}s")
    except OverflowError:
        time = None
    if not time:
        raise ConfigurationError(f"--for: {text!r} is not allowed; expected a duration such as 8h, 30m or 90s")
    return time.total_seconds()


def parse_age(option: str, text: str | None) -> timedelta | None:
    """Return the value of an option such as `--store-age`.

    Raises:
        ConfigurationError: It isn't a duration.
    """
    if text is None:
        return None
    try:
        age = parse_duration(text)
    except OverflowError:
        age = None
    if not age:
        raise ConfigurationError(f"{option}: {text!r} is not allowed; expected a duration such as 12h, 7d or 4w")
    return age


def parse_size(option: str, text: str | None) -> int | None:
    """Return the value of an option such as `--store-size`, in bytes.

    Raises:
        ConfigurationError: It isn't a size.
    """
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip().upper())
    if found is None:
        raise ConfigurationError(f"{option}: {text!r} is not allowed; expected a size such as 500MB or 2GB")
    return int(float(found["number"]) * _SIZES[found["unit"]])
