"""Run the fuzz targets under libFuzzer: `make fuzz`, or `python -m tests.fuzz frames --seconds 60`.

All files go to build/fuzz: the corpus, which the next run starts from, the logs, and the findings. The exit status is 1
if there are findings. `--reproduce FILE` runs a finding again, even without atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import attrs

from tests.fuzz import targets

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "fuzz"
FINDINGS = FOLDER / "findings"
#: The limits of an input (bytes, seconds) and of the process (MiB). Exceeding one is a finding.
MAX_BYTES, MAX_SECONDS, MAX_MEMORY = 4_096, 20, 2_048
#: Extra seconds for the start and end of a run. After that, it's killed.
_GRACE = 180.0
_STATE = re.compile(r"^#\d+\s.*\bcov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)


@attrs.frozen
class Outcome:
    """The result of one target's run."""

    name: str
    seconds: float
    executions: int
    #: How many branches were reached, and how many inputs that takes.
    coverage: int
    inputs: int
    findings: list[Path]
    #: What went wrong with the run itself, if anything.
    failure: str = ""


def main() -> int:
    """Run the targets that the command line names. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(targets.NAMES)} [all]")
    parser.add_argument("--seconds", type=_positive, default=600, help="how long to run each target [600]")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="how many targets to run at once [1]")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run TARGET once, with this input")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in targets.NAMES]:
        parser.error(f"unknown target {unknown[0]!r}; expected one of {', '.join(targets.NAMES)}")
    if given.reproduce is not None:
        if len(given.targets) != 1:
            parser.error("--reproduce needs exactly one target: the one that the input is for")
        targets.load(given.targets[0]).run(given.reproduce.read_bytes())
        print(f"{given.reproduce}: no error")
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed. Run `make fuzz`, or: pip install 'finx-streamer[fuzz]'")
    names = list(dict.fromkeys(given.targets)) or list(targets.NAMES)
    print(f"{_versions()}; {given.seconds} s each\n", flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = [*pool.map(lambda name: fuzz(name, given.seconds), names)]
    for outcome in outcomes:
        for path in outcome.findings:
            print(f"\n{outcome.name}: FOUND {path}")
            print(f"  log: {FOLDER / outcome.name}.log")
            print(f'  reproduce: make fuzz ARGS="{outcome.name} --reproduce {path}"')
        if outcome.failure:
            print(f"\n{outcome.name}: {outcome.failure}; see {FOLDER / outcome.name}.log")
    return 1 if any(outcome.findings or outcome.failure for outcome in outcomes) else 0


def fuzz(name: str, seconds: int) -> Outcome:
    """Run one target from its seeds and the corpus of earlier runs. Print a line at the end."""
    corpus, seeds, start = FOLDER / "corpus" / name, _write_seeds(name), time.monotonic()
    corpus.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    before = _findings(name)
    status, log = _run(name, [*_limits(name), f"-max_total_time={seconds}", str(corpus), str(seeds)], seconds)
    found, failure = sorted(_findings(name) - before), ""
    if status is None:
        failure = "did not end in time"
    elif status and not found:
        failure = f"ended with status {status}"
    if not failure and not found:
        failure = _shrink(name, corpus, seeds)
    states, executed = _STATE.findall(log), _EXECUTED.search(log)
    coverage = int(states[-1][0]) if states else 0
    inputs = len([*corpus.iterdir()])
    outcome = Outcome(
        name, time.monotonic() - start, int(executed[1]) if executed else 0, coverage, inputs, found, failure
    )
    print(
        f"{name:10} {outcome.executions:>11,} executions, {coverage:>6,} branches reached by {inputs:,} inputs, "
        f"{len(found)} findings, {outcome.seconds:.0f} s",
        flush=True,
    )
    return outcome


def _limits(name: str) -> list[str]:
    words = FOLDER / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in targets.load(name).WORDS), encoding="ascii")
    return [
        f"-max_len={MAX_BYTES}",
        f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_MEMORY}",
        f"-dict={words}",
        f"-artifact_prefix={FINDINGS / name}-",
        "-print_final_stats=1",
    ]


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _write_seeds(name: str) -> Path:
    folder = FOLDER / "seeds" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for seed in targets.load(name).SEEDS:
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    return folder


def _findings(name: str) -> set[Path]:
    return set(FINDINGS.glob(f"{name}-*"))


def _run(name: str, arguments: list[str], seconds: float, log: str = ".log") -> tuple[int | None, str]:
    """Return the exit status, or None if it was killed, and the log."""
    path = FOLDER / f"{name}{log}"
    # A finding may print any characters.
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}
    with path.open("wb") as out:
        try:
            status: int | None = subprocess.run(
                [str(_program(name)), *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=seconds + _GRACE,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    return status, path.read_text(encoding="utf-8", errors="replace")


def _program(name: str) -> Path:
    """Write an executable that runs the target. libFuzzer needs one, too."""
    path = FOLDER / f"run-{name}"
    command = shlex.join([sys.executable, "-m", "tests.fuzz.child", str(path), name])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def _shrink(name: str, corpus: Path, seeds: Path) -> str:
    """Keep only inputs that reach other branches than the seeds and each other. Return what went wrong, if anything."""
    merged = FOLDER / "corpus" / f"{name}.merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    status, _ = _run(name, [*_limits(name), "-merge=1", str(merged), str(corpus), str(seeds)], 600.0, ".merge.log")
    if status != 0:
        shutil.rmtree(merged)
        return "merging the corpus failed"
    shutil.rmtree(corpus)
    merged.rename(corpus)
    return ""


def _versions() -> str:
    names = ("atheris", "finx-streamer", "websocket-client")
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([f"Python {python}", *(f"{name} {installed.get(name, 'missing')}" for name in names)])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
