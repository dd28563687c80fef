"""Runs the targets under libFuzzer, one after another: `make fuzz`, or `python -m tests.fuzz frames --seconds 60`.

Each target has its time and stops by itself. All that is written is beneath build/fuzz: what was found to reach new
code (and is the beginning of the next run), the logs, and the inputs that broke something. The exit status is 1 where
there are such; `--reproduce FILE` runs one of them again, for which atheris is not needed.
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
#: The bounds of one input: bytes and seconds; and of the process, in MiB. What hangs or swells is a finding, too.
LONGEST, SLOWEST, LARGEST = 4_096, 20, 2_048
#: How much longer than asked for a run may take, in seconds, before it is ended: it has to begin, and to sum up.
_PATIENCE = 180.0
_STATE = re.compile(r"^#\d+\s.*\bcov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)


@attrs.frozen
class Outcome:
    """What came of one target's run."""

    name: str
    seconds: float
    executions: int
    #: How many places in the code were reached, and how many inputs it takes to reach them.
    coverage: int
    inputs: int
    findings: list[Path]
    #: What went wrong with the run itself, where something did.
    fault: str = ""


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(targets.NAMES)} [all]")
    parser.add_argument("--seconds", type=_positive, default=600, help="how long each of them is run [600]")
    parser.add_argument("--side-by-side", type=_positive, default=1, metavar="N", help="how many at once [1]")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run the one TARGET with this input, and end")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in targets.NAMES]:
        parser.error(f"there is no target {unknown[0]!r}; there are {', '.join(targets.NAMES)}")
    if given.reproduce is not None:
        if len(given.targets) != 1:
            parser.error("--reproduce takes the one target that the input is for")
        targets.load(given.targets[0]).run(given.reproduce.read_bytes())
        print(f"{given.reproduce}: nothing wrong")
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed; `make fuzz` brings it, or: pip install 'finx-streamer[fuzz]'")
    names = list(dict.fromkeys(given.targets)) or list(targets.NAMES)
    print(f"{_versions()}; {given.seconds} s each\n", flush=True)
    with ThreadPoolExecutor(given.side_by_side) as pool:
        outcomes = [*pool.map(lambda name: fuzz(name, given.seconds), names)]
    for outcome in outcomes:
        for path in outcome.findings:
            print(f"\n{outcome.name}: FOUND {path}")
            print(f"  what it broke: {FOLDER / outcome.name}.log")
            print(f'  once again: make fuzz ARGS="{outcome.name} --reproduce {path}"')
        if outcome.fault:
            print(f"\n{outcome.name}: {outcome.fault}; see {FOLDER / outcome.name}.log")
    return 1 if any(outcome.findings or outcome.fault for outcome in outcomes) else 0


def fuzz(name: str, seconds: int) -> Outcome:
    """One target for so long, from its seeds and what earlier runs have left. Prints a line when it is done."""
    corpus, seeds, began = FOLDER / "corpus" / name, _write_seeds(name), time.monotonic()
    corpus.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    before = _findings(name)
    status, log = _run(name, [*_limits(name), f"-max_total_time={seconds}", str(corpus), str(seeds)], seconds)
    found, fault = sorted(_findings(name) - before), ""
    if status is None:
        fault = "did not stop when its time was over"
    elif status and not found:
        fault = f"ended with status {status}"
    if not fault and not found:
        fault = _shrink(name, corpus, seeds)
    states, executed = _STATE.findall(log), _EXECUTED.search(log)
    coverage = int(states[-1][0]) if states else 0
    inputs = len([*corpus.iterdir()])
    outcome = Outcome(
        name, time.monotonic() - began, int(executed[1]) if executed else 0, coverage, inputs, found, fault
    )
    print(
        f"{name:10} {outcome.executions:>11,} executions, {coverage:>6,} places reached by {inputs:,} inputs, "
        f"{len(found)} findings, {outcome.seconds:.0f} s",
        flush=True,
    )
    return outcome


def _limits(name: str) -> list[str]:
    words = FOLDER / f"{name}.dict"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in targets.load(name).WORDS), encoding="ascii")
    return [
        f"-max_len={LONGEST}",
        f"-timeout={SLOWEST}",
        f"-rss_limit_mb={LARGEST}",
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
    """The exit status, None where it had to be ended; and what it printed."""
    path = FOLDER / f"{name}{log}"
    # What a finding prints can hold any characters.
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
                timeout=seconds + _PATIENCE,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    return status, path.read_text(encoding="utf-8", errors="replace")


def _program(name: str) -> Path:
    """What runs the target, for us and for libFuzzer."""
    path = FOLDER / f"run-{name}"
    command = shlex.join([sys.executable, "-m", "tests.fuzz.child", str(path), name])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def _shrink(name: str, corpus: Path, seeds: Path) -> str:
    """Leave of the inputs as many as reach all that is reached, and not the seeds. Returns what went wrong."""
    merged = FOLDER / "corpus" / f"{name}.merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    status, _ = _run(name, [*_limits(name), "-merge=1", str(merged), str(corpus), str(seeds)], 600.0, ".merge.log")
    if status != 0:
        shutil.rmtree(merged)
        return "its inputs could not be merged"
    shutil.rmtree(corpus)
    merged.rename(corpus)
    return ""


def _versions() -> str:
    names = ("atheris", "finx-streamer", "websocket-client", "msgspec")
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([f"Python {python}", *(f"{name} {installed.get(name, 'missing')}" for name in names)])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return number


if __name__ == "__main__":
    sys.exit(main())
