"""The soak test: many pairs, many ticks, slow callbacks, and a fault every few seconds, for half an hour.

`python -m tests.support.soak` runs the server in a separate process and kills it now and then. Each tick is checked as
it arrives. Measurements are written and drawn. The exit code is 1 if ticks were lost, duplicated or out of order, or if
threads, descriptors or memory grew.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import itertools
import mmap
import os
import random
import resource
import select
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from finx_streamer import FinxStreamerError, Gap, GapNotFilled, ReconnectPolicy, StreamListener, Tick
from finx_streamer.server import LocalServer
from tests.support.peers import free_port
from tests.support.storm import fault

#: The number of a pair's ticks that share a time. The last two are equal, like some real trades.
GROUP = 4
#: The sum of a complete group: two bits for each kind of tick.
WHOLE = 0b10_01_01
_COUNTED = {str(kind): 1 << (2 * kind) for kind in range(3)}
BEGIN = datetime(2022, 7, 2, 23, 50, tzinfo=UTC)
#: The history that the server keeps, in seconds. All outages are much shorter.
KEPT = 120
#: The allowed growth of the process, in MiB.
GROWTH = 8.0
_POSITION = struct.Struct("=q")


@attrs.frozen
class Course:
    """The ticks of the market. Each follows from its number. The pairs take turns, one group at a time."""

    pairs: int
    rate: float

    def names(self) -> list[str]:
        return [f"P{number:03}:USDC" for number in range(self.pairs)]

    def tick(self, number: int) -> dict[str, str]:
        group, member = divmod(number, GROUP)
        turn, pair = divmod(group, self.pairs)
        moment = self.moment(turn)
        kind = min(member, 2)
        return {
            "pair": f"P{pair:03}:USDC",
            "date": moment.date().isoformat(),
            "time": moment.time().isoformat("microseconds") + "Z",
            "exchange": ("BINANCE", "OKX", "KRAKEN")[kind],
            "price": f"{turn + 1}.{kind}",
        }

    def moment(self, turn: int) -> datetime:
        """All pairs' ticks of one turn have the same time."""
        moment = BEGIN + timedelta(seconds=turn * GROUP * self.pairs / self.rate)
        # More than one tick at exactly midnight is more than history can be asked for.
        at_midnight = moment.time().isoformat("milliseconds") == "00:00:00.000"
        return moment + timedelta(milliseconds=at_midnight)


class Ledger:
    """Checks each tick as it arrives: every group complete, once, and in order. Its memory doesn't grow."""

    def __init__(self, course: Course) -> None:
        self.count = 0
        self.mistakes: list[str] = []
        self._groups: dict[str, list[int]] = {name: [1, 0] for name in course.names()}
        #: How long each call takes, in seconds.
        self.delay = 0.0

    def take(self, tick: Tick) -> None:
        if self.delay:
            time.sleep(self.delay)
        self.count += 1
        turn, _, kind = str(tick["price"]).partition(".")
        state = self._groups[tick["pair"]]
        if int(turn) != state[0]:
            if int(turn) != state[0] + 1 or state[1] != WHOLE:
                self._mistake(f"{tick['pair']}: group {turn} came when {state[0]} was at {state[1]:06b}")
            state[:] = int(turn), 0
        state[1] += _COUNTED[kind]

    def check(self, sent: int) -> None:
        """Check at the end that all ticks have arrived, each once."""
        if self.count != sent:
            self._mistake(f"{sent} ticks were sent, {self.count} came")
        for pair, (turn, amount) in self._groups.items():
            if amount != WHOLE:
                self._mistake(f"{pair}: the last group, {turn}, was at {amount:06b}")

    def _mistake(self, text: str) -> None:
        if len(self.mistakes) < 100:
            self.mistakes.append(text)


# The server's process.


class Market:
    """A source that plays the course, and saves its position before it sends a tick."""

    paced = True

    def __init__(self, course: Course, position: mmap.mmap) -> None:
        self.pairs = frozenset(course.names())
        self.ending = threading.Event()
        self._course = course
        self._position = position
        self.at = int(_POSITION.unpack_from(position)[0])

    @property
    def wait_for(self) -> int:
        """Wait for all clients at the start, and for none later."""
        return 0 if self.at else len(self.pairs)

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        begin, course = self.at, self._course
        while self.at % (GROUP * course.pairs) or not self.ending.is_set():
            _POSITION.pack_into(self._position, 0, self.at + 1)
            yield (self.at - begin) / course.rate, course.tick(self.at)
            # The next tick is requested only after this one was sent. A stopped server doesn't get here.
            self.at += 1


@contextlib.contextmanager
def _mapped(folder: Path) -> Iterator[mmap.mmap]:
    with (folder / "position").open("r+b") as file, mmap.mmap(file.fileno(), 0) as position:
        yield position


def _stored(file: Path) -> int:
    """How many ticks were ever stored. Their numbers have no gaps."""
    if not file.exists():
        return 0
    with contextlib.closing(sqlite3.connect(file)) as database:
        return int(database.execute("SELECT ifnull(max(id), 0) FROM tick").fetchone()[0])


def serve(course: Course, folder: Path, port: int, seed: int, missed: int) -> None:
    """Run one life of the server. It executes the command in each line of its input, and prints when it's done."""
    rng, pause = random.Random(seed), threading.Event()
    store = folder / "ticks.db"
    with _mapped(folder) as position:
        # Like an exchange, import the ticks that it missed while dead, and those that it sent but didn't store.
        stored = _stored(store)
        _POSITION.pack_into(position, 0, _POSITION.unpack_from(position)[0] + missed)
        market = Market(course, position)
        limit = int(course.rate * KEPT)
        server = LocalServer(
            market, keys={"demo"}, port=port, store=store, store_limit=limit, close_timeout=0.5, resumable=False
        )
        server.import_ticks(course.tick(number) for number in range(stored, market.at))
        with server:
            print("ready", flush=True)
            for line in sys.stdin:
                if line.strip() == "end":
                    market.ending.set()
                    server.wait_finished(60.0)
                    print(server.stats.slow_clients, flush=True)
                else:
                    print(fault(server, rng, pause, seconds=(0.05, 0.5, 4.0)), flush=True)


class Remote:
    """Controls the server from the client's process."""

    def __init__(self, course: Course, folder: Path, seed: int) -> None:
        self.port = free_port()
        self._folder = folder
        self._course = course
        self._rng = random.Random(seed)
        (folder / "position").write_bytes(bytes(_POSITION.size))
        self._process: subprocess.Popen[str] | None = None

    @property
    def position(self) -> int:
        return int(_POSITION.unpack((self._folder / "position").read_bytes())[0])

    @property
    def resident(self) -> float:
        return 0.0 if self._process is None else resident_memory(self._process.pid)

    def start(self, missed: int = 0) -> None:
        about = {
            "serve": self._folder, "port": self.port, "seed": self._rng.randrange(1 << 30), "missed": missed,
            "pairs": self._course.pairs, "rate": self._course.rate,
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.support.soak", *(f"--{name}={value}" for name, value in about.items())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._answer() == "ready"

    def ask(self, line: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        return self._answer()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], 120.0)[0]:
            raise TimeoutError("the server's process does not answer")
        return self._process.stdout.readline().strip()


# Measurements.


@attrs.frozen
class Sample:
    """One measurement. `minutes` are since the start, memory is in MiB."""

    minutes: float
    ticks: int
    resident: float
    server_resident: float
    descriptors: int
    threads: int
    waiting: int
    connected: int
    reconnects: int
    gaps: int
    filled: int


def resident_memory(process: int | str) -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize() / 2**20
    return 0.0


def median_growth(samples: Sequence[float]) -> float:
    """The median of the last tenth of the samples minus that of the second tenth."""
    tenth = max(1, len(samples) // 10)
    return statistics.median(samples[-tenth:]) - statistics.median(samples[tenth : 2 * tenth] or samples)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Sampler:
    """Takes a sample every few seconds, in its own thread."""

    def __init__(self, listener: StreamListener, server: Remote, every: float = 2.0) -> None:
        self.samples: list[Sample] = []
        self._listener, self._server, self._every = listener, server, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="sampler")

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _main(self) -> None:
        begin = time.monotonic()
        while not self._ended.wait(self._every):
            stats = self._listener.stats
            self.samples.append(
                Sample(
                    minutes=round((time.monotonic() - begin) / 60, 3),
                    ticks=stats.ticks,
                    resident=round(resident_memory("self"), 2),
                    server_resident=round(self._server.resident, 2),
                    descriptors=_descriptors(),
                    threads=threading.active_count(),
                    waiting=stats.queue_depth,
                    connected=sum(stream.connected_since is not None for stream in stats.streams.values()),
                    reconnects=stats.reconnects,
                    gaps=stats.gaps,
                    filled=stats.filled_ticks,
                )
            )


@attrs.define
class Report:
    """The result of a soak test."""

    course: Course
    seed: int
    minutes: float
    sent: int
    faults: Mapping[str, int]
    samples: list[Sample]
    before: tuple[int, int]
    after: tuple[int, int]
    errors: Mapping[str, int]
    slow_clients: int
    stopped_in: float
    mistakes: list[str]

    @property
    def growth(self) -> float:
        """The growth of resident memory in MiB: the median of the last tenth of the time minus that of the second.

        In the first tenth, the allocator finds its size.
        """
        return median_growth([sample.resident for sample in self.samples])

    def judge(self) -> list[str]:
        found = list(self.mistakes)
        if self.before != self.after:
            found.append(f"descriptors and threads were {self.before} before, {self.after} after")
        if self.growth > GROWTH:
            found.append(f"resident memory grew by {self.growth:.1f} MiB")
        if GapNotFilled.__name__ in self.errors:
            found.append(f"{self.errors[GapNotFilled.__name__]} gaps were not filled")
        return found

    def __str__(self) -> str:
        last = self.samples[-1]
        rows = {
            "pairs, ticks a second, seed": f"{self.course.pairs}, {self.course.rate:,.0f}, {self.seed}",
            "time": f"{self.minutes:.1f} minutes",
            "ticks sent and received": f"{self.sent:,}",
            "faults": ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items())),
            "reconnects": f"{last.reconnects:,}",
            "gaps, ticks that filled them": f"{last.gaps:,}, {last.filled:,}",
            "most ticks waiting for callbacks": f"{max(sample.waiting for sample in self.samples):,}",
            "errors reported": ", ".join(f"{count:,} x {name}" for name, count in sorted(self.errors.items())),
            "clients too slow for the server": f"{self.slow_clients}, in the server's last life",
            "resident memory": f"{self.growth:+.1f} MiB from the second tenth of the time to the last, "
            f"at most {max(sample.resident for sample in self.samples):.0f} MiB",
            "descriptors, threads": "{}, {} before; {}, {} after".format(*self.before, *self.after),
            "stop()": f"{self.stopped_in:.2f} s",
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def soak(course: Course, minutes: float, seed: int, every: float) -> Report:
    """Play the course for `minutes`, with a fault about every `every` seconds, and wait for all ticks."""
    rng = random.Random(seed)
    ledger, faults, errors, gaps = Ledger(course), Counter[str](), Counter[str](), Counter[bool]()
    pause = threading.Event()

    def note_error(error: FinxStreamerError) -> None:
        # The test may end while a stream still fills a gap.
        if not (isinstance(error, GapNotFilled) and "stopped" in str(error)):
            errors[type(error).__name__] += 1

    def note_gap(gap: Gap) -> None:
        gaps[gap.filled] += 1

    with tempfile.TemporaryDirectory() as name:
        server = Remote(course, Path(name), seed)
        server.start()
        listener = StreamListener(
            *course.names(),
            api_key="demo",
            endpoint=f"ws://127.0.0.1:{server.port}/",
            on_tick=ledger.take,
            on_gap=note_gap,
            on_error=note_error,
            parse_price=str,
            reconnect=ReconnectPolicy(initial=0.1, maximum=2.0),
            ping_interval=1.0,
            ping_timeout=1.0,
        )
        gc.collect()
        before = _descriptors(), threading.active_count()
        begin = time.monotonic()
        ends = begin + minutes * 60
        try:
            with Sampler(listener, server) as sampler:
                listener.start()
                while time.monotonic() < ends:
                    pause.wait(rng.uniform(0.5, 1.5) * every)
                    kind = rng.choices(["slow", "kill", "other"], [3, 1, 12])[0]
                    if kind == "slow":
                        ledger.delay = rng.choice([0.0002, 0.001])
                        pause.wait(3.0)
                        ledger.delay = 0.0
                        faults["slow callbacks"] += 1
                    elif kind == "kill":
                        server.kill()
                        pause.wait(rng.choice([0.0, 1.0]))
                        # Only the exchange has these ticks.
                        server.start(missed=rng.randrange(int(course.rate)))
                        faults["kill"] += 1
                    else:
                        faults[server.ask("fault")] += 1
                slow_clients = int(server.ask("end"))
                sent = server.position
                deadline = time.monotonic() + 120
                while ledger.count < sent and time.monotonic() < deadline:
                    pause.wait(0.1)
            took = time.monotonic() - begin
            stopping = time.monotonic()
            listener.stop()
            stopped_in = time.monotonic() - stopping
        finally:
            listener.stop()
            server.kill()
    ledger.check(sent)
    gc.collect()
    after = _descriptors() + 2, threading.active_count()
    # Two of the descriptors before were the pipes to the server, which has ended.
    return Report(
        course, seed, took / 60, sent, faults, sampler.samples, before, after, errors, slow_clients, stopped_in,
        ledger.mistakes,
    )  # fmt: skip


def draw(samples: list[Sample], file: Path) -> None:
    """Draw resident memory, ticks per second and the queue's length."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "soak", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    minutes = [sample.minutes for sample in samples]
    rates = [0.0] + [
        (later.ticks - earlier.ticks) / (later.minutes - earlier.minutes) / 60
        for earlier, later in itertools.pairwise(samples)
    ]
    blue, orange, green, grey = "#1f6feb", "#d1690e", "#2da44e", "#999999"
    plots: list[tuple[str, list[tuple[str, str, list[float]]]]] = [
        (
            "resident memory, MiB",
            [("client", blue, [s.resident for s in samples]), ("server", grey, [s.server_resident for s in samples])],
        ),
        ("ticks/s handed on", [("", blue, rates)]),
        ("ticks waiting for callbacks", [("", orange, [s.waiting for s in samples])]),
        (
            "number",
            [
                ("connected streams", green, [s.connected for s in samples]),
                ("descriptors", grey, [s.descriptors for s in samples]),
                ("threads", orange, [s.threads for s in samples]),
            ],
        ),
    ]
    figure, axes = pyplot.subplots(len(plots), 1, sharex=True, figsize=(8, 8), layout="constrained")
    for axis, (label, lines) in zip(axes, plots, strict=True):
        for name, colour, values in lines:
            axis.plot(minutes, values, color=colour, linewidth=0.8, label=name)
        axis.set(ylabel=label, ylim=(0, None))
        if lines[0][0]:
            axis.legend(loc="lower right", frameon=False)
    axes[-1].set_xlabel("minutes")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run the soak test, write the report and the figure, and set the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20_000.0, help="ticks per second in total")
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("build/soak"), help="the folder for report, samples and figure"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--missed", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    course = Course(given.pairs, given.rate)
    if given.serve is not None:
        serve(course, given.serve, given.port, given.seed, given.missed)
        return
    report = soak(course, given.minutes, given.seed, given.every)
    print(report)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "soak.md").write_text(f"{report}\n")
    with (given.output / "soak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in attrs.fields(Sample))
        writer.writerows(attrs.astuple(sample) for sample in report.samples)
    draw(report.samples, given.output / "soak.svg")
    if mistakes := report.judge():
        print(*mistakes[:20], sep="\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
