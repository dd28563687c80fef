"""Run benchmarks and print Markdown tables: `make bench`, or `python tests/benchmarks/run.py burst latency`.

Contenders take turns on loopback, each in a fresh process next to a load server in its own process. Runs that other
processes disturbed are repeated. The tables show medians over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module

from harness import Options, machine, note

BENCHMARKS = (
    "burst",
    "tls",
    "latency",
    "idle",
    "scale",
    "reconnects",
    "memory",
    "pairs",
    "shared",
    "ingest",
    "functions",
    "gap",
    "exchanges",
)


def main() -> None:
    """Run the benchmarks that the command line names."""
    names, options = _arguments()
    print(f"{machine()}\n{options.rounds} rounds, medians", flush=True)
    for name in names:
        module = import_module(name)
        note(f"{name} …")
        start = time.monotonic()
        text = module.benchmark(options)
        note("")
        print(f"\n## {module.TITLE}\n\n{text}\n\n({name}: {time.monotonic() - start:.0f} s)", flush=True)


def _arguments() -> tuple[list[str], Options]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"any of {', '.join(BENCHMARKS)} [all]")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender [%(default)s]")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a burst [%(default)s]")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="run only contenders whose name contains this"
    )
    parser.add_argument(
        "--memory-ticks", type=int, default=10_000_000, help="ticks of the memory benchmark [%(default)s]"
    )
    given = parser.parse_args()
    unknown = set(given.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")
    return given.benchmarks or list(BENCHMARKS), Options(
        given.rounds, given.seconds, tuple(given.only), given.memory_ticks
    )


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"\nbenchmark: {error}")
