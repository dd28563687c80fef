"""Print the lowest dependency versions that setup.cfg allows, as pip constraints.

Covers the base requirements, the extras given as arguments, and the extras that those include.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

SETTINGS = Path(__file__).resolve().parents[1] / "setup.cfg"
_BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][^;,\s]*)")
_EXTRA = re.compile(r"finx-streamer\[(.+)\]")


def lowest_versions(extras: list[str]) -> list[str]:
    """Return the constraints, sorted. Raise ValueError if a requirement has no lower bound."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(SETTINGS, encoding="utf-8")
    requirements = settings["options"]["install_requires"].split("\n")
    pending, seen = list(extras), set(extras)
    while pending:
        for line in settings["options.extras_require"][pending.pop()].split("\n"):
            if included := _EXTRA.fullmatch(line.strip()):
                pending += {included[1]} - seen
                seen.add(included[1])
            else:
                requirements.append(line)
    constraints = set()
    for line in filter(None, map(str.strip, requirements)):
        if line.startswith("#"):
            continue
        bound = _BOUND.match(line)
        if bound is None:
            raise ValueError(f"setup.cfg: {line!r} has no lower bound")
        constraints.add(f"{bound[1]}=={bound[2]}")
    return sorted(constraints)


if __name__ == "__main__":
    print("\n".join(lowest_versions(sys.argv[1:])))
