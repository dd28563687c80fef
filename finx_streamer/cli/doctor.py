"""`finx-streamer doctor`: prints each check as soon as it is done."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from .. import ConfigurationError, Endpoint
from ..diagnosis.checkup import Doctor
from ..diagnosis.exchanges import exchange_checks
from ..diagnosis.report import Report
from .key_files import api_key
from .live_market import parse_names, parse_urls
from .terminal import encodable


def examine(
    pairs: list[str] | None,
    live: bool,
    exchanges: str | None,
    exchange_urls: list[str] | None,
    endpoint: str | Endpoint,
    api_key_file: Path | None,
    proxy: str | None,
    allow_insecure: bool,
    as_json: bool,
) -> int:
    """Run all checks, or those of the exchanges. Return the exit code: 1 if something is wrong, else 0."""
    if live:
        return _examine_exchanges(pairs or ["BTC:USDT"], parse_names(exchanges), parse_urls(exchange_urls), as_json)
    if exchanges is not None or exchange_urls or len(pairs or ()) > 1:
        raise ConfigurationError(
            "more than one pair, --exchanges, and --exchange-url need --live; add it, or name one pair"
        )
    pair = pairs[0] if pairs else "BTC:USDC"
    # A missing key is one of the findings.
    key = None if api_key_file is None else api_key(api_key_file)
    doctor = Doctor(pair, endpoint, key, proxy, None, allow_insecure, f"the file {api_key_file}")
    if as_json:
        report = doctor.report()
        _print(report.to_json())
    else:
        report = _print_each(doctor)
    return 0 if report.ok else 1


def _examine_exchanges(
    pairs: list[str], exchanges: tuple[str, ...] | None, base_urls: dict[str, str], as_json: bool
) -> int:
    # The lines of the report say the same.
    logging.getLogger("finx_streamer.server.exchanges").setLevel(logging.ERROR)
    checks = []
    for check in exchange_checks(pairs, exchanges, base_urls):
        checks.append(check)
        if not as_json:
            _print(str(check))
    report = Report(tuple(checks))
    _print(report.to_json() if as_json else f"\n{report.summary}")
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
