"""Ask the advisory service about everything that finx-streamer[all] installs, in the environment that this runs in.

Exit code 1 where a version has a known vulnerability. Where the service is out of reach nothing is known: that is said,
and is no failure, unless --strict is given.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata

from packaging.requirements import Requirement

ROOT = "finx-streamer"


def installed(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """Add what is installed of a distribution's requirements, and of theirs, to `found`."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    if name != ROOT:
        found[distribution.name] = distribution.version
    for line in distribution.requires or ():
        required = Requirement(line)
        asked = any(required.marker is None or required.marker.evaluate({"extra": each}) for each in {"", *extras})
        if asked and (required.name == ROOT or required.name not in found):
            installed(required.name, frozenset(required.extras), found)


def main() -> int:
    """Returns the exit code."""
    found: dict[str, str] = {}
    installed(ROOT, frozenset({"all"}), found)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as list_:
        list_.write("".join(f"{name}=={version}\n" for name, version in sorted(found.items())))
        list_.flush()
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-f", "json", "-r", list_.name]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        except subprocess.TimeoutExpired:
            return unknown("the advisory service did not answer within 180 s")
    try:
        answers = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        return unknown((asked.stderr.strip().splitlines() or ["no answer"])[-1])
    bad = [(each["name"], each["version"], one["id"]) for each in answers for one in each.get("vulns", ())]
    for name, version, advisory in bad:
        print(f"audit: {name} {version}: {advisory}")
    skipped = [each["name"] for each in answers if "skip_reason" in each]
    if bad:
        return 1
    if skipped:
        return unknown(f"the advisory service knows nothing of {', '.join(skipped)}: is it within reach?")
    print(f"audit: no known vulnerabilities in {len(answers)} packages")
    return 0


def unknown(why: str) -> int:
    """Nothing is known."""
    print(f"audit: NOT AUDITED: {why}")
    return int("--strict" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
