"""Run benchmarks and print Markdown tables: `make bench`, or `python tests/benchmarks/run.py burst latency`.

Contenders take turns on loopback, each in a fresh process next to a load server in its own process. Runs that other
processes disturbed are repeated. The tables show medians over the rounds. The last one compares them with targets.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path

from harness import Checked, Options, Results, machine, note, take_results, targets

BENCHMARKS = (
    "burst",
    "tls",
    "latency",
    "low",
    "idle",
    "scale",
    "pongs",
    "ahead",
    "reconnects",
    "memory",
    "pairs",
    "shared",
    "ingest",
    "functions",
    "gap",
    "exchanges",
    "archive",
    "jetstream",
)


def main() -> None:
    """Run the benchmarks that the command line names."""
    names, options, path = _arguments()
    print(f"{machine()}\n{options.rounds} rounds, medians", flush=True)
    checked: list[Checked] = []
    results: dict[str, Results] = {}
    for name in names:
        module = import_module(name)
        note(f"{name} …")
        start = time.monotonic()
        text = module.benchmark(options)
        note("")
        print(f"\n## {module.TITLE}\n\n{text}\n\n({name}: {time.monotonic() - start:.0f} s)", flush=True)
        results[name] = take_results()
        if hasattr(module, "goals"):
            checked += [goal.check(results[name]) for goal in module.goals(options)]
        if path:
            path.write_text(json.dumps({"machine": machine(), "results": results, "targets": checked}, indent=1))
    if checked:
        print(f"\n## Targets\n\n{targets(checked)}")


def _arguments() -> tuple[list[str], Options, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"any of {', '.join(BENCHMARKS)} [all]")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender [%(default)s]")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a burst [%(default)s]")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="run only contenders whose name contains this"
    )
    parser.add_argument(
        "--memory-ticks",
        type=int,
        default=10_000_000,
        help="ticks of the memory benchmark, slow callback [%(default)s]",
    )
    parser.add_argument(
        "--fast-ticks", type=int, default=100_000_000, help="ticks of the memory benchmark, fast callback [%(default)s]"
    )
    parser.add_argument(
        "--archive-ticks", type=int, default=5_000_000, help="ticks of the archive benchmark [%(default)s]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all runs to this file")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        type=_checkout,
        metavar="PATH",
        help="compare with the finx_streamer of another checkout, in the same rounds",
    )
    given = parser.parse_args()
    unknown = set(given.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")
    options = Options(
        given.rounds,
        given.seconds,
        tuple(given.only),
        given.memory_ticks,
        given.fast_ticks,
        tuple(given.against),
        given.archive_ticks,
    )
    return given.benchmarks or list(BENCHMARKS), options, given.json


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "finx_streamer").is_dir():
        raise argparse.ArgumentTypeError(f"{text} has no folder finx_streamer")
    return path


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"\nbenchmark: {error}")
