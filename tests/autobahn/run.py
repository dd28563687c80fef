"""Run the Autobahn test suite against our client: `make autobahn`, or `python tests/autobahn/run.py '6.*' 7.1.1`.

Compression (12.*, 13.*) is excluded, because the client doesn't offer it. All files go to build/autobahn. The exit
status is 1 if a case doesn't pass.
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
from echo import echo, echo_with_library
from environment import CannotRun, prepare

from finx_streamer import __version__

FOLDER = Path(__file__).resolve().parents[2] / "build" / "autobahn"
COMPRESSION = ["12.*", "13.*"]
#: Our name in the server's reports.
AGENT = "finx-streamer"
#: How many messages the network thread reads at once.
BATCH = 64
#: How long to wait for the server to end, in seconds.
_END_TIMEOUT = 30.0


@attrs.frozen
class Mode:
    """One way to run the cases. `client` takes a base URL, a path, and a TLS context."""

    name: str
    client: Callable[[str, str, ssl.SSLContext], None]
    secure: bool = False
    #: Whether a failed case fails the run.
    must_pass: bool = True

    @property
    def reports(self) -> Path:
        return FOLDER / "reports" / self.name.replace(",", "").replace(" ", "-")


MODES = (
    Mode("one message at a time", lambda *where: echo(*where, batch=1)),
    Mode("in batches, as streams are read", lambda *where: echo(*where, batch=BATCH)),
    Mode("one message at a time, over TLS", lambda *where: echo(*where, batch=1), secure=True),
)
PLAIN = Mode("plain WebSocketApp", lambda base, path, _: echo_with_library(base, path), must_pass=False)


def main() -> int:
    """Run the cases that the command line names. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="patterns such as '6.*' [all]")
    parser.add_argument("--plain", action="store_true", help="also run a plain WebSocketApp, for comparison")
    given = parser.parse_args()
    if invalid := [case for case in given.cases if not re.fullmatch(r"[0-9]+(\.([0-9]+|\*))*", case)]:
        parser.error(f"{invalid[0]!r} is neither a case such as 7.1.1 nor a pattern such as '6.*'")
    python, authority = prepare(FOLDER), trustme.CA()
    certificate, context = FOLDER / "certificate.pem", ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    failures = 0
    for mode in (*MODES, PLAIN) if given.plain else MODES:
        shutil.rmtree(mode.reports, ignore_errors=True)
        spec = {"outdir": str(mode.reports), "cases": given.cases or ["*"], "exclude-cases": COMPRESSION}
        with serving(python, {"spec": spec, "certificate": str(certificate) if mode.secure else None}) as server:
            found = examine(mode, server, context)
        failures += found if mode.must_pass else 0
    return 1 if failures else 0


def examine(mode: Mode, server: dict[str, Any], context: ssl.SSLContext) -> int:
    """Run all cases and print the results. Return the number of failures."""
    if not server["cases"]:
        raise CannotRun("the suite has no such cases outside compression")
    start = time.monotonic()
    errors = run(mode, server, context)
    verdicts = report.read(mode.reports, AGENT, server["cases"])
    if mode is MODES[0]:
        ours = [f"finx-streamer {__version__}", f"websocket-client {metadata.version('websocket-client')}"]
        print(", ".join([*server["versions"], *ours]))
    print(f"\n{mode.name} ({time.monotonic() - start:.0f} s)\n\n{report.table(verdicts)}\n")
    print("\n".join([*report.notable(verdicts), *errors, f"reports: {mode.reports / 'index.html'}"]), flush=True)
    return len(errors) + sum(found in report.NOT_PASSED for found in verdicts.values())


def run(mode: Mode, server: dict[str, Any], context: ssl.SSLContext) -> list[str]:
    """Run all cases, one after another. Return the client's exceptions as text."""
    base = f"{'wss' if mode.secure else 'ws'}://127.0.0.1:{server['port']}/"
    errors = []
    for path in [*(f"runCase?casetuple={case}" for case in server["cases"]), "updateReports?"]:
        if sys.stderr.isatty():
            print(f"\r\033[K{mode.name}: {path}", end="\r", file=sys.stderr, flush=True)
        try:
            mode.client(base, f"{path}&agent={AGENT}", context)
        except Exception as error:
            errors.append(f"{path}: {type(error).__name__}: {error}")
    return errors


@contextlib.contextmanager
def serving(python: Path, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a fuzzing server for the length of the block. Yield the JSON that it printed."""
    command = [str(python), str(Path(__file__).with_name("fuzzing_server.py")), json.dumps(settings)]
    log = FOLDER / "server.log"
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
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
                process.wait(_END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    # A plain WebSocketApp logs each failure, which the table shows anyway.
    logging.getLogger("websocket").setLevel(logging.CRITICAL)
    try:
        sys.exit(main())
    except CannotRun as error:
        sys.exit(f"autobahn: {error}")
