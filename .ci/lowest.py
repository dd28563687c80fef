"""Print, as pip constraints, the lowest versions that setup.cfg allows of what it requires.

Of the base and of the extras named as arguments; extras that those refer to are included.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

SETTINGS = Path(__file__).resolve().parents[1] / "setup.cfg"
_BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][^;,\s]*)")
_EXTRA = re.compile(r"finx-streamer\[(.+)\]")


def lowest(extras: list[str]) -> list[str]:
    """The constraints, sorted. Raises ValueError for a requirement without a lower bound."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(SETTINGS, encoding="utf-8")
    wanted = settings["options"]["install_requires"].split("\n")
    left, seen = list(extras), set(extras)
    while left:
        for line in settings["options.extras_require"][left.pop()].split("\n"):
            if another := _EXTRA.fullmatch(line.strip()):
                left += {another[1]} - seen
                seen.add(another[1])
            else:
                wanted.append(line)
    found = set()
    for line in filter(None, map(str.strip, wanted)):
        if line.startswith("#"):
            continue
        bound = _BOUND.match(line)
        if bound is None:
            raise ValueError(f"setup.cfg: {line!r} has no lower bound")
        found.add(f"{bound[1]}=={bound[2]}")
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
