"""Runs benchmarks: `make bench`, or `python tests/benchmarks/run.py burst latency`. Prints tables in Markdown.

Everything is on loopback and bounded in count and time. Each contender runs in a fresh process beside a load server in
a process of its own. Contenders take turns, another one first in each round; runs during which other processes kept
the machine busy are repeated; the tables show medians over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module

from harness import Options, machine, note

BENCHMARKS = ("burst", "tls", "latency", "idle", "scale", "reconnects", "memory", "pairs", "ingest", "functions")


def main() -> None:
    """Run what the command line asks for."""
    names, options = _arguments()
    print(f"{machine()}\n{options.rounds} rounds, medians", flush=True)
    for name in names:
        module = import_module(name)
        note(f"{name} …")
        began = time.monotonic()
        text = module.benchmark(options)
        note("")
        print(f"\n## {module.TITLE}\n\n{text}\n\n({name}: {time.monotonic() - began:.0f} s)", flush=True)


def _arguments() -> tuple[list[str], Options]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)} [all]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=1.0, help="a burst's length [%(default)s]")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="contenders whose name holds this")
    parser.add_argument("--memory-ticks", type=int, default=10_000_000, help="[%(default)s]")
    given = parser.parse_args()
    unknown = set(given.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return given.benchmarks or list(BENCHMARKS), Options(
        given.rounds, given.seconds, tuple(given.only), given.memory_ticks
    )


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as fault:
        sys.exit(f"\nbenchmark: {fault}")
