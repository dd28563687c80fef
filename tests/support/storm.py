"""Storms of faults between a server, whose market goes on, and a listener.

Tests run short ones. `python -m tests.support.storm --minutes N` runs them for N minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import attrs

from finx_streamer import Endpoint, FinxStreamerError, Gap, GapNotFilled, ReconnectPolicy, StreamListener, Tick
from finx_streamer.server import LocalServer
from tests.support.peers import free_port
from tests.support.second_wire import SecondWire

#: Keeps outages as short as possible.
QUICK = ReconnectPolicy(initial=0.01, maximum=0.05)


class Feed:
    """A market source that sends `rate` ticks per second, and continues after a restart of its server."""

    paced = True

    def __init__(self, ticks: Iterable[Mapping[str, str]], rate: float) -> None:
        self.ticks = [dict(tick) for tick in ticks]
        self.pairs = frozenset(tick["pair"] for tick in self.ticks)
        self.wait_for = len(self.pairs)
        self._at = 0
        self._rate = rate

    def skip(self, count: int) -> None:
        """Begin with a later tick, without waiting for streams."""
        self._at, self.wait_for = count, 0

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        begin = self._at
        while self._at < len(self.ticks):
            yield (self._at - begin) / self._rate, self.ticks[self._at]
            # This one has been sent when the next one is requested.
            self._at += 1


def bursts(pairs: Iterable[str], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Ticks in time order across midnight. Many are equal, and many are within one millisecond."""
    moment = datetime(2022, 7, 2, 23, 59, 58, tzinfo=UTC)
    ticks: list[dict[str, str]] = []
    names = list(pairs)
    while len(ticks) < count:
        moment += timedelta(microseconds=rng.choice([0, 0, 300, 1_000, 1_000, 7_000]))
        # History can't be asked for several ticks at exactly midnight.
        if moment.time().isoformat("milliseconds") == "00:00:00.000":
            moment += timedelta(milliseconds=1)
        line = {
            "date": moment.date().isoformat(),
            "time": moment.time().isoformat("microseconds") + "Z",
            "exchange": rng.choice(["BINANCE", "OKX"]),
            "price": rng.choice(["19200.84", "19200.85"]),
        }
        ticks += [{"pair": rng.choice(names), **line} for _ in range(rng.choice([1, 1, 1, 2, 5]))]
    return ticks[:count]


def with_outages(ticks: Sequence[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """Reorder the ticks: now and then an exchange is away, and what it missed comes at once when it is back."""
    sent: list[dict[str, str]] = []
    waiting: list[dict[str, str]] = []
    away, left = "", 0
    for tick in ticks:
        if not left:
            sent += waiting
            waiting, left = [], rng.randrange(50, 400)
            away = "" if away else rng.choice(["BINANCE", "OKX"])
        left -= 1
        (waiting if tick["exchange"] == away else sent).append(tick)
    return sent + waiting


@attrs.define
class Outcome:
    """What a storm did, and what the listener got."""

    seed: int
    faults: Counter[str]
    sent: list[dict[str, str]]
    got: list[Tick] = attrs.field(factory=list)
    gaps: list[Gap] = attrs.field(factory=list)
    #: Ticks and gaps as they came.
    order: list[Tick | Gap] = attrs.field(factory=list)
    errors: list[FinxStreamerError] = attrs.field(factory=list)
    #: The same for a pair that wasn't always listened to.
    others: list[Tick] = attrs.field(factory=list)
    others_sent: list[dict[str, str]] = attrs.field(factory=list)
    #: Whether streams were resumed by ID, which keeps the order of arrival. History orders ticks by their times.
    resumed: bool = False

    def mistakes(self) -> list[str]:
        """Describe what was lost, doubled or out of order, and gaps that were not filled, one line each."""
        # The storm may have ended during a gap, or a removed pair may have had one.
        unfilled = [error.reason for error in self.errors if isinstance(error, GapNotFilled)]
        found = [reason for reason in unfilled if "stopped" not in reason and "removed" not in reason]
        doubled_others = Counter(map(_line, self.others)) - Counter(map(_line, self.others_sent))
        found += [f"{_OTHER} doubled: {line} x {count}" for line, count in doubled_others.items()]
        for pair in sorted({tick["pair"] for tick in self.sent}):
            sent = [_line(tick) for tick in self.sent if tick["pair"] == pair]
            got = [_line(tick) for tick in self.got if tick["pair"] == pair]
            lost, doubled = Counter(sent) - Counter(got), Counter(got) - Counter(sent)
            found += [f"{pair} lost: {line} x {count}" for line, count in lost.items()]
            found += [f"{pair} doubled: {line} x {count}" for line, count in doubled.items()]
            # History doesn't order ticks of the same time, so compare only the times.
            size = None if self.resumed else 2
            if not lost and not doubled and [line[:size] for line in sent] != [line[:size] for line in got]:
                found.append(f"{pair} out of order")
            live = [_line(tick) for tick in self.got if tick["pair"] == pair and not tick["backfilled"]]
            rest = iter(sent)
            if not all(line in rest for line in live):
                found.append(f"{pair}: live ticks out of order")
        return found

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        backfilled = sum(tick["backfilled"] for tick in self.got)
        return (
            f"seed {self.seed}: {len(self.sent)} ticks, {faults}; {len(self.gaps)} gaps, {backfilled} ticks backfilled"
        )


def _line(tick: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(tick[field] for field in ("date", "time", "exchange", "price"))


def _time_of(tick: Mapping[str, str]) -> datetime:
    return datetime.fromisoformat(f"{tick['date']}T{tick['time']}")


class KillableServer:
    """A server in its own process, which can be killed. It has a store in a file and keeps its port.

    The market's position is kept outside of it, as an exchange would. After a kill, the next start reads from there
    what the store had not got yet.
    """

    def __init__(self, folder: Path, ticks: Iterable[Mapping[str, str]], rate: float) -> None:
        self.port = free_port()
        self.ticks = [dict(tick) for tick in ticks]
        self._folder = folder
        self._rate = rate
        (folder / "ticks.json").write_text(json.dumps(self.ticks))
        (folder / "position").write_bytes(bytes(_POSITION.size))
        self._process: subprocess.Popen[str] | None = None

    @property
    def position(self) -> int:
        """How many ticks have gone out, or are about to."""
        return int(_POSITION.unpack((self._folder / "position").read_bytes())[0])

    def start(self, missed: int = 0) -> None:
        """Start the server. `missed` ticks passed since it was killed."""
        command = [sys.executable, "-m", "tests.support.storm", "--serve", str(self._folder)]
        arguments = ["--port", str(self.port), "--rate", str(self._rate), "--missed", str(missed)]
        self._process = subprocess.Popen(command + arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


_POSITION = struct.Struct("=q")


class _PersistentFeed(Feed):
    """A feed that writes down its position before anything goes out."""

    def __init__(self, ticks: list[dict[str, str]], rate: float, file: Path) -> None:
        super().__init__(ticks, rate)
        self._file = file.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._at = _POSITION.unpack_from(self._map)[0]

    @property
    def position(self) -> int:
        return self._at

    def leap(self, count: int) -> None:
        self._at = min(self._at + count, len(self.ticks))
        _POSITION.pack_into(self._map, 0, self._at)

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        for due, tick in super().play(clock):
            _POSITION.pack_into(self._map, 0, self._at + 1)
            yield due, tick


def serve(folder: Path, port: int, rate: float, missed: int) -> None:
    """Run a `KillableServer`'s server until it is killed."""
    feed = _PersistentFeed(json.loads((folder / "ticks.json").read_text()), rate, folder / "position")
    feed.leap(missed)
    server = LocalServer(feed, keys={"demo"}, port=port, store=folder / "store.db", store_batch=200, resumable=False)
    server.import_ticks(feed.ticks[server.stats.ticks_stored : feed.position])
    with server:
        print("ready", flush=True)
        threading.Event().wait()


def killings(folder: Path, ticks: Iterable[Mapping[str, str]], rate: float, kills: int, seed: int) -> Outcome:
    """Play the ticks, kill the server `kills` times at random moments, and wait until everything has arrived."""
    rng = random.Random(seed)
    server = KillableServer(folder, ticks, rate)
    outcome = Outcome(seed, Counter(), server.ticks)
    recorder = _Recorder(outcome)
    pause = threading.Event()
    server.start()
    try:
        with recorder.listener(f"ws://127.0.0.1:{server.port}/"):
            recorder.begun.wait(30.0)
            for _ in range(kills):
                pause.wait(rng.choice([0.1, 0.3, 0.5]))
                server.kill()
                pause.wait(rng.choice([0.0, 0.2]))
                server.start(missed=rng.choice([0, 10, 300]))
                outcome.faults["kill"] += 1
            recorder.complete.wait(120.0)
    finally:
        server.kill()
    return outcome


class _Recorder:
    """Records what arrives. Signals when every stream has begun, and when everything has arrived."""

    def __init__(self, outcome: Outcome) -> None:
        self.begun, self.complete = threading.Event(), threading.Event()
        self._outcome = outcome
        self._pairs = {tick["pair"] for tick in outcome.sent}
        self._silent = set(self._pairs)

    def listener(self, endpoint: str | Endpoint, **settings: Any) -> StreamListener:
        return StreamListener(
            *sorted(self._silent),
            api_key="demo",
            endpoint=endpoint,
            on_tick=self._keep,
            on_gap=self._keep_gap,
            on_error=self._outcome.errors.append,
            parse_price=str,
            reconnect=QUICK,
            ping_interval=0.1,
            ping_timeout=0.2,
            **settings,
        )

    def _keep_gap(self, gap: Gap) -> None:
        self._outcome.gaps.append(gap)
        self._outcome.order.append(gap)

    def _keep(self, tick: Tick) -> None:
        if tick["pair"] not in self._pairs:
            self._outcome.others.append(tick)
            return
        self._outcome.got.append(tick)
        self._outcome.order.append(tick)
        if self._silent:
            self._silent.discard(tick["pair"])
            if not self._silent:
                self.begun.set()
        if len(self._outcome.got) == len(self._outcome.sent):
            self.complete.set()


def storm(
    ticks: Iterable[Mapping[str, str]],
    rate: float,
    faults: int,
    seed: int,
    wire: Literal["url", "subscribe"] = "url",
    resumable: bool = True,
    past: int = 0,
    **settings: Any,
) -> Outcome:
    """Play the ticks, cause `faults` faults at random moments, and wait until everything has arrived.

    `resumable`: gaps are filled by the IDs of ticks. If not, by comparing history. `past`: how many ticks are history
    before the listener starts. It begins with them, and the others are played meanwhile.
    """
    rng = random.Random(seed)
    feed = Feed(ticks, rate)
    outcome = Outcome(seed, Counter(), feed.ticks, resumed=resumable and not past)
    recorder = _Recorder(outcome)
    pause = threading.Event()
    server = LocalServer(feed, keys={"demo"}, close_timeout=0.2, resumable=resumable)
    if past:
        server.import_ticks(feed.ticks[:past])
        feed.skip(past)
        settings["since"] = _time_of(feed.ticks[0])
    with (
        server,
        recorder.listener(Endpoint(server.url, wire=wire), **settings),
    ):
        # Ticks before a stream's first one are not promised.
        recorder.begun.wait(30.0)
        while sum(outcome.faults.values()) < faults and not server.stats.finished:
            pause.wait(rng.choice([0.0, 0.01, 0.05, 0.2]))
            outcome.faults[fault(server, rng, pause)] += 1
        server.wait_finished(300.0)
        recorder.complete.wait(30.0)
        # Doubled ticks arrive with the rest, which is delivered at the end.
    return outcome


def shared_storm(
    ticks: Iterable[Mapping[str, str]], faults: int, seed: int, confirms: bool, past: int = 0, **settings: Any
) -> Outcome:
    """Publish the ticks on FinX's second wire, and cause faults in between. Wait until everything has arrived.

    Another pair is added and removed meanwhile. Its ticks are in `Outcome.others`. `past`: as for `storm`.
    """
    rng = random.Random(seed)
    outcome = Outcome(seed, Counter(), [dict(tick) for tick in ticks])
    recorder = _Recorder(outcome)
    left, last = iter(outcome.sent[:-_CALM]), outcome.sent[-_CALM:]
    pairs = {tick["pair"] for tick in outcome.sent}
    with SecondWire(confirms=confirms, delay=0.002) as service:
        endpoint = Endpoint(service.url, wire="subscribe")
        if past:
            service.publish(*itertools.islice(left, past))
            settings["since"] = _time_of(outcome.sent[0])
        with recorder.listener(endpoint, **settings) as listener:
            service.wait_subscribed(len(pairs))
            # Ticks before a stream's first one are not promised.
            while not recorder.begun.wait(0.01):
                service.publish(*itertools.islice(left, 10))
            each = max(1, len(outcome.sent) // (faults + 1))
            while published := [*itertools.islice(left, rng.randint(1, 2 * each))]:
                for at in range(0, len(published), 20):
                    outcome.others_sent.append({**published[at], "pair": _OTHER})
                    service.publish(*published[at : at + 20], outcome.others_sent[-1])
                    threading.Event().wait(rng.choice([0.0, 0.0, 0.01]))
                outcome.faults[_shared_fault(service, listener, rng)] += 1
            # Without confirmations, missed ticks are fetched once a live one shows that the stream is back.
            service.wait_subscribed(len(pairs))
            service.publish(*last)
            recorder.complete.wait(60.0)
    if past:
        outcome.others.clear()  # each time that it is added, it begins with its history
    return outcome


#: How many ticks are published after the last fault: some of each pair.
_CALM = 50
#: A pair that is added and removed during a storm.
_OTHER = "OTHER:USDC"


def _shared_fault(service: SecondWire, listener: StreamListener, rng: random.Random) -> str:
    """Cause one fault, and end it unless the listener does. Return its name."""
    pause, lasting = threading.Event(), rng.choice([0.0, 0.01, 0.1, 0.3])
    match name := rng.choice(["cut", "cut", "refuse", "silence", "slow reading", "remove", "add"]):
        case "cut":
            service.drop()
        case "refuse":
            service.refusing = True
            service.drop()
            pause.wait(lasting)
            service.refusing = False
        case "silence":
            service.go_silent()
            pause.wait(lasting)
        case "slow reading":
            service.read(False)
            pause.wait(lasting)
            service.read(True)
        case "remove" if _OTHER in listener.symbols:
            listener.remove(_OTHER)
        case "add" if _OTHER not in listener.symbols:
            listener.add(_OTHER)
    return name


def fault(
    server: LocalServer, rng: random.Random, pause: threading.Event, seconds: Sequence[float] = (0.01, 0.1, 0.4)
) -> str:
    """Cause one fault to all streams or to one, and end it. Return its name."""
    symbol = rng.choice([None, *sorted(server.stats.symbols)])
    lasting = rng.choice(seconds)
    match name := rng.choice(["cut", "reset", "close", "silence", "refuse", "stall", "drop calls", "restart"]):
        case "cut":
            server.drop_connections(symbol)
        case "reset":
            server.drop_connections(symbol, reset=True)
        case "close":
            server.close_connections(rng.choice([1000, 1001, 1011, 1012, 1013]), symbol=symbol)
        case "silence":
            server.go_silent(symbol)
            pause.wait(lasting)
            server.resume()
        case "refuse":
            server.refuse_next(rng.randint(1, 3), 503)
            server.drop_connections(symbol)
        case "stall":
            server.stall_next(rng.randint(1, 3))
            server.drop_connections(symbol)
            pause.wait(lasting)
            server.stall_next(0)
            server.resume()
        case "drop calls":
            server.drop_functions(rng.randint(1, 3), reset=rng.random() < 0.5)
            server.drop_connections(symbol)
        case "restart":
            server.stop()
            pause.wait(lasting)
            server.start()
    return name


def main() -> None:
    """Run storms with increasing seeds until the time is over. Exit with 1 at the first mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=100, help="of each storm, at most")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--missed", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve, given.port, given.rate, given.missed)
    ends = time.monotonic() + given.minutes * 60
    for seed in itertools.count(given.seed):
        rng = random.Random(seed)
        pairs = ["BTC:USDC", "ETH:USDC", "SOL:USDC"][: rng.randint(1, 3)]
        settings = {
            "dispatch": rng.choice(["thread", "inline"]),
            "queue_size": rng.choice([64, 1_000, 65_536]),
        }
        rate, resumable = rng.choice([500.0, 2_000.0]), rng.random() < 0.5
        outcome = storm(bursts(pairs, 20_000, rng), rate, given.faults, seed, resumable=resumable, **settings)
        _judge(outcome)
        _judge(storm(bursts(pairs, 20_000, rng), 2_000.0, given.faults, seed, "subscribe", **settings))
        _judge(shared_storm(bursts(pairs, 20_000, rng), given.faults, seed, rng.random() < 0.5, **settings))
        with tempfile.TemporaryDirectory() as folder:
            _judge(killings(Path(folder), bursts(pairs, 6_000, rng), 1_000.0, 10, seed))
        if time.monotonic() > ends:
            return


def _judge(outcome: Outcome) -> None:
    print(outcome, flush=True)
    if mistakes := outcome.mistakes():
        print(*mistakes[:20], *outcome.errors[-5:], sep="\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
