"""Kill a recorder again and again, fill its disk, set its clock, and compare its archive with what was sent.

Tests run a short torture. `python -m tests.support.torture` kills the recorder 200 times.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from finx_streamer.archive import Archive, Coverage
from finx_streamer.server import LocalServer
from tests.support.program import program_command, program_environment

HOUR_NS = 3_600_000_000_000
#: How far the clock is set.
JUMPS = (HOUR_NS, -HOUR_NS, 24 * HOUR_NS, -24 * HOUR_NS, 90_000_000_000, -5_000_000_000)
Row = tuple[str, str, str, str]


class Market:
    """A source of ticks at the present time, which keeps what it sent. Some ticks are equal."""

    paced = True

    def __init__(self, pairs: int, rate: float, seed: int) -> None:
        self.pairs = frozenset(f"C{number:02}:USDC" for number in range(pairs))
        self.wait_for = pairs
        self.sent: dict[str, list[Row]] = {pair: [] for pair in self.pairs}
        self.ended = False
        self._rate = rate
        self._rng = random.Random(seed)

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        names, last, number = sorted(self.pairs), datetime.now(UTC), 0
        pair, row = names[0], ("", "", "", "")
        while not self.ended:
            if not number or self._rng.random() > 0.02:
                last = max(datetime.now(UTC), last + timedelta(microseconds=1))
                text = last.replace(tzinfo=None).isoformat("T", "microseconds")
                pair = self._rng.choice(names)
                price = f"{self._rng.randrange(1, 10**7) / 100:.2f}"
                row = text[:10], text[11:] + "Z", self._rng.choice(("BINANCE", "OKX")), price
            yield number / self._rate, {"pair": pair, **dict(zip(FIELDS, row, strict=True))}
            # It has been sent when the next one is requested.
            self.sent[pair].append(row)
            number += 1


FIELDS = ("date", "time", "exchange", "price")


@attrs.define
class Result:
    """What happened, and what the archive has."""

    seconds: float = 0.0
    kills: int = 0
    full_disks: int = 0
    set_clocks: int = 0
    sent: int = 0
    recorded: int = 0
    backfilled: int = 0
    missing: int = 0
    #: Missing ticks in time that the ledger doesn't call complete.
    explained: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    #: What `verify` found damaged or missing, apart from gaps.
    damaged: int = 0
    #: Whether `verify` says that something is incomplete.
    incomplete: bool = False
    exit_code: int = 0
    output: str = attrs.field(default="", repr=False)

    def mistakes(self) -> list[str]:
        """Describe what isn't as promised."""
        found = []
        for name in ("duplicated", "out_of_order", "damaged", "exit_code"):
            if number := getattr(self, name):
                found.append(f"{name}: {number}")
        if self.missing > self.explained:
            found.append(f"missing, but the ledger calls it complete: {self.missing - self.explained}")
        if self.missing and not self.incomplete:
            found.append("verify says that all is complete")
        return found

    def __str__(self) -> str:
        rows = [
            ("kills", self.kills),
            ("full disks", self.full_disks),
            ("clock set", self.set_clocks),
            ("ticks sent", self.sent),
            ("ticks recorded", self.recorded),
            ("of them backfilled", self.backfilled),
            ("missing", self.missing),
            ("missing, and in the ledger", self.explained),
            ("duplicated", self.duplicated),
            ("seconds", round(self.seconds)),
        ]
        return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {number:,} |" for name, number in rows)])


class _Recorder:
    """`finx-streamer record` in a process of its own."""

    def __init__(self, folder: Path, archive: Path, url: str, pairs: list[str]) -> None:
        self._clock = folder / "clock"
        self.set_clock(0)
        self._log = folder / "output"
        arguments = ["record", *pairs, "--to", str(archive), "--endpoint", url]
        self._command = program_command("record_with_clock", self._clock, *arguments)
        self.offset = 0
        self.process: subprocess.Popen[bytes] | None = None

    def set_clock(self, offset: int) -> None:
        """Set its clock, also while it runs."""
        with open(self._clock, "r+b" if self._clock.exists() else "w+b") as file:
            file.write(struct.pack("=q", offset))
        self.offset = offset

    def start(self) -> None:
        with open(self._log, "ab") as log:
            environment = program_environment(FINX_API_KEY="demo")
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=log, env=environment)

    def end(self, signum: int) -> int:
        """End it. Return its exit code."""
        assert self.process is not None
        self.process.send_signal(signum)
        try:
            return self.process.wait(60.0)
        finally:
            self.process.kill()

    @property
    def output(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A file system of that size. None without root, or elsewhere than on Linux."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Use all its space."""
    with open(disk / "filler", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))


def torture(
    folder: Path, pairs: int = 20, rate: float = 5_000, kills: int = 200, seed: int = 1, resumable: bool = True
) -> Result:
    """Record while terrible things happen. Then compare.

    `resumable`: the server numbers its ticks. If not, a recorder that starts again compares them with history.
    """
    rng = random.Random(seed)
    market = Market(pairs, rate, seed)
    result = Result()
    (folder / "disk").mkdir()
    begin = time.monotonic()
    with (
        small_disk(folder / "disk", 2_048) as disk,
        LocalServer(market, keys={"demo"}, resumable=resumable) as server,
    ):
        archive = folder / "disk" / "ticks"
        recorder = _Recorder(folder, archive, server.url, sorted(market.pairs))
        recorder.start()
        try:
            # Ticks before a stream's first one aren't promised.
            server.wait_connected(pairs, timeout=60.0)
            time.sleep(2.0)
            for _ in range(kills):
                _trouble(rng, recorder, disk, result)
                recorder.end(signal.SIGKILL)
                result.kills += 1
                if disk is not None and rng.random() < 0.8:
                    (disk / "filler").unlink(missing_ok=True)
                time.sleep(rng.choice((0.0, 0.0, 0.3)))
                recorder.start()
            if disk is not None:
                (disk / "filler").unlink(missing_ok=True)
            server.wait_connected(pairs, timeout=60.0)
            time.sleep(3.0)
            market.ended = True
            server.wait_finished(60.0)
            _wait_until_calm(archive)
            result.exit_code = recorder.end(signal.SIGTERM)
        finally:
            recorder.end(signal.SIGKILL)
            result.output = recorder.output
        result.seconds = time.monotonic() - begin
        compare(Archive(archive), market.sent, result)
    return result


def _wait_until_calm(archive: Path) -> None:
    """Wait until the recorder has caught up: nothing was written for 3 s."""
    limit, size, since = time.monotonic() + 300.0, -1, 0.0
    while time.monotonic() < min(limit, since + 3.0) or size < 0:
        found = sum(path.stat().st_size for path in (archive / "journal").iterdir())
        if found != size:
            size, since = found, time.monotonic()
        time.sleep(0.2)


def _trouble(rng: random.Random, recorder: _Recorder, disk: Path | None, result: Result) -> None:
    time.sleep(rng.uniform(0.1, 2.5))
    if rng.random() < 0.1:
        recorder.set_clock(recorder.offset + rng.choice(JUMPS))
        result.set_clocks += 1
        time.sleep(rng.uniform(0.0, 1.0))
    if disk is not None and rng.random() < 0.1:
        fill(disk)
        result.full_disks += 1
        time.sleep(rng.uniform(0.0, 2.0))
        if rng.random() < 0.5:
            (disk / "filler").unlink(missing_ok=True)
            time.sleep(rng.uniform(0.0, 1.0))


def compare(archive: Archive, sent: dict[str, list[Row]], result: Result) -> None:
    """Compare an archive with what was sent."""
    recorded: dict[str, list[Row]] = {pair: [] for pair in sent}
    for tick in archive.ticks(parse_price=str):
        recorded[tick["pair"]].append((tick["date"], tick["time"], tick["exchange"], tick["price"]))
        result.backfilled += tick["backfilled"]
    for pair, rows in sent.items():
        found = recorded[pair]
        result.sent += len(rows)
        result.recorded += len(found)
        missing, doubled = Counter(rows) - Counter(found), Counter(found) - Counter(rows)
        result.missing += missing.total()
        result.duplicated += doubled.total()
        if missing:
            coverage = archive.coverage(pair)
            starts = [part.start for part in coverage]
            result.explained += sum(number for row, number in missing.items() if not _complete(row, coverage, starts))
        # Equal ticks are equal: no one can tell their order.
        left = Counter(found)
        expected = [row for row in rows if _take(left, row)]
        result.out_of_order += not doubled and expected != found
    verification = archive.verify()
    result.damaged = len(verification.missing) + sum(len(each.problems) for each in verification.files)
    result.incomplete = not verification.ok


def _take(left: Counter[Row], row: Row) -> bool:
    left[row] -= 1
    return left[row] >= 0


def _complete(row: Row, coverage: list[Coverage], starts: list[datetime]) -> bool:
    moment = datetime.fromisoformat(f"{row[0]}T{row[1]}")
    at = bisect_right(starts, moment) - 1
    return at >= 0 and moment < coverage[at].end and coverage[at].complete


def main() -> int:
    """Print a table of what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=5_000, help="ticks per second [%(default)s]")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--history", action="store_true", help="missed ticks are found by comparing with history")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write what the recorders printed to this file")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = torture(Path(folder), given.pairs, given.rate, given.kills, given.seed, not given.history)
    if given.keep:
        given.keep.write_text(result.output)
    print(result)
    for mistake in result.mistakes():
        print(f"wrong: {mistake}")
    return bool(result.mistakes())


if __name__ == "__main__":
    sys.exit(main())
