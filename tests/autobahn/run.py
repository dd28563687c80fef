"""Runs the Autobahn test suite against the transport: `make autobahn`, or `python tests/autobahn/run.py '6.*' 7.1.1`.

Compression (12.*, 13.*) is left out: FinX does not use it, and the client does not offer it. All that is installed or
written is beneath build/autobahn. The exit status is 1 where a case did not go as required.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import report
import trustme
from echo import echo, echo_plainly
from environment import CannotRun, prepared

FOLDER = Path(__file__).resolve().parents[2] / "build" / "autobahn"
COMPRESSION = ["12.*", "13.*"]
#: What the server calls us.
AGENT = "finx-streamer"
#: How many messages the network thread takes at once.
RUN = 64
#: How long the server may take to end, in seconds.
_PATIENCE = 30.0


@attrs.frozen
class Mode:
    """One way to run the cases. `client` is given a base URL, a path, and a TLS context."""

    name: str
    client: Callable[[str, str, ssl.SSLContext], None]
    secure: bool = False
    #: Whether it is ours, and may not fail.
    counts: bool = True

    @property
    def reports(self) -> Path:
        return FOLDER / "reports" / self.name.replace(",", "").replace(" ", "-")


MODES = (
    Mode("one message at a time", lambda *where: echo(*where, at_once=1)),
    Mode("in runs, as streams are read", lambda *where: echo(*where, at_once=RUN)),
    Mode("one message at a time, over TLS", lambda *where: echo(*where, at_once=1), secure=True),
)
PLAIN = Mode("plain WebSocketApp", lambda base, path, _: echo_plainly(base, path), counts=False)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="patterns such as '6.*' [all]")
    parser.add_argument("--plain", action="store_true", help="also run a plain WebSocketApp, to compare with")
    given = parser.parse_args()
    if unreadable := [case for case in given.cases if not re.fullmatch(r"[0-9]+(\.([0-9]+|\*))*", case)]:
        parser.error(f"{unreadable[0]!r} is neither a case such as 7.1.1 nor a pattern such as '6.*'")
    python, authority = prepared(FOLDER), trustme.CA()
    certificate, context = FOLDER / "certificate.pem", ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    failures = 0
    for mode in (*MODES, PLAIN) if given.plain else MODES:
        shutil.rmtree(mode.reports, ignore_errors=True)
        spec = {"outdir": str(mode.reports), "cases": given.cases or ["*"], "exclude-cases": COMPRESSION}
        with serving(python, {"spec": spec, "certificate": str(certificate) if mode.secure else None}) as server:
            found = examine(mode, server, context)
        failures += found if mode.counts else 0
    return 1 if failures else 0


def examine(mode: Mode, server: dict[str, Any], context: ssl.SSLContext) -> int:
    """Run all cases and print what came of it. Returns how many were not as required."""
    if not server["cases"]:
        raise CannotRun("the suite has no such cases, compression apart")
    began = time.monotonic()
    faults = run(mode, server, context)
    verdicts = report.read(mode.reports, AGENT, server["cases"])
    if mode is MODES[0]:
        ours = [f"{name} {metadata.version(name)}" for name in ("finx-streamer", "websocket-client")]
        print(", ".join([*server["versions"], *ours]))
    print(f"\n{mode.name} ({time.monotonic() - began:.0f} s)\n\n{report.table(verdicts)}\n")
    print("\n".join([*report.notable(verdicts), *faults, f"reports: {mode.reports / 'index.html'}"]), flush=True)
    return len(faults) + sum(found in report.NOT_AS_REQUIRED for found in verdicts.values())


def run(mode: Mode, server: dict[str, Any], context: ssl.SSLContext) -> list[str]:
    """All cases, one after another. Returns what the client raised, where it did."""
    base = f"{'wss' if mode.secure else 'ws'}://127.0.0.1:{server['port']}/"
    faults = []
    for path in [*(f"runCase?casetuple={case}" for case in server["cases"]), "updateReports?"]:
        if sys.stderr.isatty():
            print(f"\r\033[K{mode.name}: {path}", end="\r", file=sys.stderr, flush=True)
        try:
            mode.client(base, f"{path}&agent={AGENT}", context)
        except Exception as fault:
            faults.append(f"{path}: {type(fault).__name__}: {fault}")
    return faults


@contextlib.contextmanager
def serving(python: Path, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A fuzzing server, and what it said of itself."""
    command = [str(python), str(Path(__file__).with_name("fuzzing_server.py")), json.dumps(told)]
    log = FOLDER / "server.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise CannotRun(f"the fuzzing server did not start:\n{log.read_text(encoding='utf-8')}")
            yield json.loads(line)
        finally:
            process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    # What a plain WebSocketApp says of each failure is in the table.
    logging.getLogger("websocket").setLevel(logging.CRITICAL)
    try:
        sys.exit(main())
    except CannotRun as fault:
        sys.exit(f"autobahn: {fault}")
