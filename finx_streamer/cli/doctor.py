"""`finx-streamer doctor`: prints each check as soon as it is done."""

from __future__ import annotations

import sys
from pathlib import Path

from .. import Endpoint
from ..diagnosis.checkup import Doctor
from ..diagnosis.report import Report
from .key_files import api_key
from .terminal import encodable


def examine(
    pair: str,
    endpoint: str | Endpoint,
    api_key_file: Path | None,
    proxy: str | None,
    allow_insecure: bool,
    as_json: bool,
) -> int:
    """Run all checks. Return the exit code: 1 if something is wrong, else 0."""
    # A missing key is one of the findings.
    key = None if api_key_file is None else api_key(api_key_file)
    doctor = Doctor(pair, endpoint, key, proxy, None, allow_insecure, f"the file {api_key_file}")
    if as_json:
        report = doctor.report()
        _print(report.to_json())
    else:
        report = _print_each(doctor)
    return 0 if report.ok else 1


def _print_each(doctor: Doctor) -> Report:
    checks, assumptions = [], []
    for check in doctor.checks():
        checks.append(check)
        _print(str(check))
    for number, check in enumerate(doctor.assumptions()):
        if number == 0:
            _print(f"\n{Report.HEADING}")
        assumptions.append(check)
        _print(str(check))
    report = Report(tuple(checks), tuple(assumptions))
    _print(f"\n{report.summary}")
    return report


def _print(text: str) -> None:
    print(encodable(text, sys.stdout.encoding), flush=True)
