"""Burst throughput: how many ticks a second each contender takes from a server that never waits.

`make bench`, or `python tests/benchmarks/burst.py --help`. Contenders run one after another in each round, each in a
fresh process, starting with another one in each round, so that a busy minute of the machine strikes all alike. The
table shows medians over the rounds. `drain` reads the same bytes and ignores them: as long as it is far ahead, the
load server is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

from contenders import CONTENDERS

HERE = Path(__file__).parent
BASELINE = "plain WebSocketApp"
PACKAGES = ("finx-streamer", "websocket-client", "attrs", "msgspec")


class Taken(NamedTuple):
    """What one contender took in one round, in seconds."""

    seconds: float
    cpu: float


def main() -> None:
    options = _options()
    names = [name for name in CONTENDERS if name == BASELINE or options.only in name]
    results: dict[str, list[Taken]] = {name: [] for name in names}
    with _load_server(options.count) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds} …", file=sys.stderr, flush=True)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                results[name].append(_run(name, port, options.count, options.timeout))
        server.communicate()
    print(_report(results, options.count, options.rounds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="ticks a contender and round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a contender may take [%(default)s]")
    parser.add_argument("--only", default="", help="contenders whose name holds this, and the plain one")
    return parser.parse_args()


def _load_server(count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "load_server.py"), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _run(name: str, port: str, count: int, timeout: float) -> Taken:
    command = [sys.executable, str(HERE / "contenders.py"), name, port, str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if ended.returncode:
        sys.exit(f"{name}: {ended.stderr.strip()}")
    return Taken(**json.loads(ended.stdout))


def _report(results: dict[str, list[Taken]], count: int, rounds: int) -> str:
    baseline = median(taken.seconds for taken in results[BASELINE])
    lines = [
        f"{count:,} ticks a round, median of {rounds} rounds; {_machine()}",
        ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "",
        "| contender | ticks/s | slowest to fastest | x plain | CPU us/tick |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, all_taken in results.items():
        seconds = [taken.seconds for taken in all_taken]
        rate, slowest, fastest = (count / value for value in (median(seconds), max(seconds), min(seconds)))
        cpu = median(taken.cpu for taken in all_taken) / count * 1e6
        lines.append(
            f"| {name} | {rate:,.0f} | {slowest:,.0f} to {fastest:,.0f} | "
            f"{baseline / median(seconds):.2f} | {cpu:.2f} |"
        )
    return "\n".join(lines)


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"Python {platform.python_version()}, {platform.system()}, {len(models) or '?'} x {(models or [cpu])[0]}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
