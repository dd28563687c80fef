"""Look for known vulnerabilities in everything that finx-streamer[all] installs into this environment.

The exit code is 1 if there are any. If the advisory service can't be reached, this is printed; with --strict, it fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata

from packaging.requirements import Requirement

ROOT = "finx-streamer"
TIMEOUT = 180


def collect_versions(name: str, extras: frozenset[str], versions: dict[str, str]) -> None:
    """Add the installed requirements of a distribution to `versions`, recursively."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    if name != ROOT:
        versions[distribution.name] = distribution.version
    for line in distribution.requires or ():
        required = Requirement(line)
        applies = any(required.marker is None or required.marker.evaluate({"extra": each}) for each in {"", *extras})
        if applies and (required.name == ROOT or required.name not in versions):
            collect_versions(required.name, frozenset(required.extras), versions)


def report_unknown(reason: str) -> int:
    """Print that nothing was audited. Return the exit code."""
    print(f"audit: NOT AUDITED: {reason}")
    return int("--strict" in sys.argv)


def main() -> int:
    """Run the audit. Return the exit code."""
    versions: dict[str, str] = {}
    collect_versions(ROOT, frozenset({"all"}), versions)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write("".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
        pins.flush()
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-f", "json", "-r", pins.name]
        try:
            audit = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            return report_unknown(f"the advisory service did not answer within {TIMEOUT} s")
    try:
        results = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):
        return report_unknown((audit.stderr.strip().splitlines() or ["no answer"])[-1])
    findings = [(each["name"], each["version"], one["id"]) for each in results for one in each.get("vulns", ())]
    for name, version, advisory in findings:
        print(f"audit: {name} {version}: {advisory}")
    skipped = [each["name"] for each in results if "skip_reason" in each]
    if findings:
        return 1
    if skipped:
        names = ", ".join(skipped)
        return report_unknown(f"the advisory service has no data on {names}. Can this machine reach it?")
    print(f"audit: no known vulnerabilities in {len(results)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
