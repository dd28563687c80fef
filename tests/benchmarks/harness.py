"""Shared parts of the benchmarks: processes, rounds, tables, and a description of the machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
#: The checkout that the benchmarks belong to.
CHECKOUT = HERE.parents[1]
PACKAGES = (
    "finx-streamer",
    "websocket-client",
    "attrs",
    "msgspec",
    "orjson",
    "websockets",
    "aiohttp",
    "picows",
    "aiofastnet",
    "uvloop",
)
#: A run is disturbed if other processes took more than this share of all CPUs.
DISTURBANCE = 0.05
#: How often a disturbed run is repeated. After that, the least disturbed one counts.
REPEATS = 2
#: The maximum share of repeated runs, so that a benchmark ends on a busy machine, too.
_MAX_REPEATED = 0.25
_CALM_DOWN = 1.0
#: Seconds that a `Process` may take to answer.
_PATIENCE = 60.0
#: A figure that is no worse than before may still be this part of it, since two runs differ.
_NO_WORSE = 0.97
#: Contenders that use this project, and can be run from another checkout.
_OURS = ("StreamListener", "FunctionClient")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Figures = dict[str, Any]
#: The figures of all rounds, by job.
Results = dict[str, list[Figures]]
_results: Results = {}


class Options(NamedTuple):
    """The options of all benchmarks."""

    rounds: int
    #: Approximate length of one run.
    seconds: float
    #: Run only contenders whose name contains one of these. Empty means all.
    only: tuple[str, ...]
    #: Ticks of the memory benchmark: with a slow callback, and with a fast one.
    memory_ticks: int
    fast_ticks: int
    #: Other checkouts to compare with.
    against: tuple[Path, ...] = ()
    #: Ticks of the archive benchmark.
    archive_ticks: int = 5_000_000

    def chosen(self, names: Iterable[str], always: Sequence[str] = ()) -> list[str]:
        """Return the names that the user selected. Add those of other checkouts after each of ours."""
        return [
            name
            for given in names
            for name in (given, *(name_from(given, path) for path in self.against if given.startswith(_OURS)))
            if name in always or not self.only or any(part in name for part in self.only)
        ]


def name_from(contender: str, checkout: Path) -> str:
    """Return the name of a contender that is run from another checkout."""
    return f"{contender} ({checkout})"


def _split(name: str) -> tuple[str, Path]:
    """Return the contender that a name means, and its checkout."""
    if name.startswith(_OURS) and name.endswith(")"):
        contender, _, path = name[:-1].partition(" (")
        return contender, Path(path)
    return name, CHECKOUT


# Processes.


class Server:
    """The process of a load server. Its arguments are the fields of `load_server.Settings`."""

    def __init__(self, **settings: Any) -> None:
        self._process = _start("load_server.py", settings)
        self.port = int(self._line(10.0))

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_open(self, timeout: float) -> None:
        """Wait until all clients are connected."""
        line = self._line(timeout)
        if line != "open":
            raise RuntimeError(f"the load server printed {line!r}; expected 'open'")

    def drop(self, seconds: float) -> None:
        """Close all connections, and refuse new ones for some seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"drop {seconds}\n")
        self._process.stdin.flush()

    def finish(self) -> Figures:
        """Stop the server and return its figures."""
        output, _ = self._process.communicate(timeout=30.0)
        return dict(json.loads(output.splitlines()[-1]))

    def kill(self) -> None:
        _kill(self._process)

    def _line(self, timeout: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise RuntimeError(f"the load server printed nothing for {timeout:g} s")
        return self._process.stdout.readline().strip()


class Process:
    """A process that answers lines with lines of JSON."""

    def __init__(self, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first = self._line()

    def ask(self, line: str = "") -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], _PATIENCE)[0]:
            raise RuntimeError(f"{self.process.args!r} printed nothing for {_PATIENCE:g} s")
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """Run a load server for the length of the block."""
    server = Server(**settings)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def client(script: str = "client.py", **job: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a client process for the length of the block. `job` has the fields of `client.Job`."""
    checkout = CHECKOUT
    if "contender" in job:
        job["contender"], checkout = _split(job["contender"])
    process = _start(script, job, checkout)
    try:
        yield process
    finally:
        _kill(process)


def wait_for(process: subprocess.Popen[str], what: str, timeout: float) -> Figures:
    """Wait for a client to end and return its figures."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{what} did not end within {timeout:g} s") from None
    if process.returncode:
        raise RuntimeError(f"{what}: {errors.strip()[-2_000:]}")
    return dict(json.loads(output))


def run(contender: str, server: Mapping[str, Any], job: Mapping[str, Any], timeout: float = 60.0) -> Figures:
    """Run one client with one server. Return the figures of both, and how disturbed the run was."""
    with serving(**server) as serves, client(contender=contender, port=serves.port, **job) as process:
        watch = Watch(serves.pid, process.pid)
        figures = wait_for(process, contender, timeout)
        figures["disturbed"] = watch.disturbance()
        served = serves.finish()
    # A float holds a stamp to less than a nanosecond.
    if "stamps" in figures and figures["stamps"] != served["stamps"]:
        raise RuntimeError(f"{contender}: the stamps add up to {figures['stamps']}, not {served['stamps']}")
    return {"server": served, **figures}


def _start(script: str, arguments: Mapping[str, Any], checkout: Path = CHECKOUT) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / script), json.dumps(arguments)]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


@functools.cache
def certificates() -> tuple[str, str]:
    """Return the paths of a certificate (with key) for 127.0.0.1, and of the authority that signed it."""
    import trustme

    folder = Path(_folder().name)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    for part in (issued.private_key_pem, *issued.cert_chain_pems):
        part.write_to_path(str(folder / "server.pem"), append=True)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return str(folder / "server.pem"), str(folder / "authority.pem")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-")


# Rounds.


class Watch:
    """Measures how busy other processes keep the machine during a run."""

    def __init__(self, *own: int) -> None:
        self._own = {os.getpid(), *own}
        self._start, self._before = time.monotonic(), self._others()

    def disturbance(self) -> float:
        """Return the share of all CPUs that other processes took, or other machines on the same host."""
        used = max(0.0, self._others() - self._before)
        return used / (time.monotonic() - self._start) / (os.cpu_count() or 1)

    def _others(self) -> float:
        """Return the CPU seconds of all other processes so far, with their ended children and stolen time."""
        used = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
        for folder in Path("/proc").glob("[0-9]*"):
            if int(folder.name) not in self._own:
                with contextlib.suppress(OSError):
                    # The name in brackets may contain spaces.
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    used += sum(map(int, fields[11:15]))
        return used / _TICKS_PER_SECOND


def rounds(jobs: Mapping[str, Callable[[], Figures]], count: int) -> Results:
    """Run all jobs in turn, `count` times, each time starting with another one. Repeat disturbed runs."""
    results: Results = {name: [] for name in jobs}
    names = list(jobs)
    repeats = int(_MAX_REPEATED * count * len(names))
    for number in range(count if names else 0):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            note(f"round {number + 1} of {count}: {name}")
            figures = _calm_run(jobs[name], min(repeats, REPEATS))
            repeats -= figures["repeats"]
            results[name].append(figures)
    note("")
    keep(results)
    return results


def keep(results: Results) -> None:
    """Add figures to those that `take_results` returns."""
    _results.update(results)


def take_results() -> Results:
    """Return the figures of all rounds since the last call."""
    results = dict(_results)
    _results.clear()
    return results


def _calm_run(job: Callable[[], Figures], repeats: int) -> Figures:
    """Run a job until a run isn't disturbed. Return that run, or the least disturbed one."""
    runs = []
    for attempt in range(1 + repeats):
        if attempt:
            time.sleep(_CALM_DOWN)
        runs.append(job())
        if runs[-1]["disturbed"] <= DISTURBANCE:
            break
    best = min(runs, key=lambda figures: figures["disturbed"])
    return {**best, "repeats": len(runs) - 1}


def note(text: str) -> None:
    """Show progress on one line of the terminal. Print nothing to a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def median(results: Iterable[Figures], key: str | Callable[[Figures], float]) -> float:
    """Return the median of one figure."""
    return statistics.median(figures[key] if isinstance(key, str) else key(figures) for figures in results)


def spread(results: Iterable[Figures], key: Callable[[Figures], float], form: str = ",.0f") -> str:
    """Return the minimum and maximum of one figure, as text."""
    values = [key(figures) for figures in results]
    return f"{min(values):{form}} to {max(values):{form}}"


def rate(figures: Figures) -> float:
    """Return the ticks (or calls) per second."""
    return float(figures["count"] / figures["seconds"])


# Targets.


class Goal(NamedTuple):
    """A target: a figure, and its limit."""

    what: str
    #: Whether the limit is a minimum.
    at_least: bool
    limit: float
    unit: str
    #: Returns the figure. A job that wasn't run raises `KeyError`.
    figure: Callable[[Results], float]

    def check(self, results: Results) -> Checked:
        """Compare the figure with the limit."""
        goal = f"{'>=' if self.at_least else '<='} {self.limit:,g} {self.unit}".rstrip()
        try:
            value = self.figure(results)
        except KeyError:
            return Checked(self.what, goal, "-", "not measured")
        met = value >= self.limit if self.at_least else value <= self.limit
        text = f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
        return Checked(self.what, goal, text, "met" if met else "MISSED")


class Checked(NamedTuple):
    """A target and what came of it."""

    what: str
    goal: str
    result: str
    verdict: str


def targets(checked: Iterable[Checked]) -> str:
    """Return a table of targets. Those with the same text share a row; parts that are all the same are shown once."""
    rows: dict[str, list[Checked]] = {}
    for target in checked:
        rows.setdefault(target.what, []).append(target)

    def joined(parts: list[str]) -> str:
        return parts[0] if len(set(parts)) == 1 else " / ".join(parts)

    return table(
        ("target", "goal", "result", "verdict"),
        (
            (
                what,
                joined([part.goal for part in parts]),
                " / ".join(part.result for part in parts),
                joined([part.verdict for part in parts]),
            )
            for what, parts in rows.items()
        ),
    )


def at_least(what: str, limit: float, unit: str, figure: Callable[[Results], float]) -> Goal:
    """Return a target with a minimum."""
    return Goal(what, True, limit, unit, figure)


def at_most(what: str, limit: float, unit: str, figure: Callable[[Results], float]) -> Goal:
    """Return a target with a maximum."""
    return Goal(what, False, limit, unit, figure)


def no_worse(
    what: str, options: Options, name: str, figure: Callable[[str, str], Callable[[Results], float]]
) -> list[Goal]:
    """Return a target for each other checkout: `figure` gets our contender's name and the other's."""
    return [at_least(what, _NO_WORSE, f"x {path}", figure(name, name_from(name, path))) for path in options.against]


def ratio(name: str, base: str, key: str | Callable[[Figures], float]) -> Callable[[Results], float]:
    """Return a figure for a `Goal`: the median of one job divided by that of another one."""
    return lambda results: median(results[name], key) / median(results[base], key)


# Output.


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. The first column is aligned left, the others right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def disturbed(results: Results) -> str:
    """Return a sentence about repeated and disturbed runs."""
    runs = [figures for all_runs in results.values() for figures in all_runs]
    repeats = sum(figures["repeats"] for figures in runs)
    left = sum(figures["disturbed"] > DISTURBANCE for figures in runs)
    return (
        f"{len(runs)} runs; {repeats} were repeated because other processes took more than {DISTURBANCE:.0%} of the "
        f"machine, and {left} disturbed ones remain."
    )


def machine() -> str:
    """Return a description of the machine and of the installed packages."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{os.cpu_count()} x {models[0] if models else platform.processor() or platform.machine()}"
    return "\n".join(
        (
            f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {cpu}",
            ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        )
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
