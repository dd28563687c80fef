"""Kill and stop every part of a system with JetStream at random, and compare what listeners got with what was sent.

A source of ticks, two publishers, a NATS cluster of three, three gateways, and listeners that know all gateways. Tests
run a short one. `python -m tests.support.chaos` runs it for 20 minutes. Its exit code is 1 if a tick was lost without a
report, came twice or was changed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import tempfile
import threading
import time
import urllib.request
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from finx_streamer import FinxStreamerError, Gap, Notice, ReconnectPolicy, StreamListener, Tick
from finx_streamer.server import LocalServer
from tests.support.nats import NatsCluster, lasting_port
from tests.support.program import Restartable

EXCHANGES = ("BINANCE", "KRAKEN", "OKX")
#: The price of ticks that are sent before all listeners are connected. They aren't counted.
WARM_UP = "0.5"
#: How late a tick can be, in seconds. Listeners allow for 1 s by default.
_LATE = 0.7
#: How long each thing may take that the end waits for, in seconds.
_PATIENCE = 180.0
#: Listeners have everything that will come when nothing has come for this many seconds.
_CALM = 40.0
#: How long something is killed, and stopped.
_KILLED, _STOPPED = (0.0, 6.0), (1.0, 15.0)
#: What trouble befalls, and how often. Without two nodes of three, the cluster can't store anything.
_TROUBLE = {"a publisher": 6, "both publishers": 2, "a gateway": 6, "a node": 6, "two nodes": 1}


def pair_names(count: int) -> list[str]:
    return [f"C{number:02}:USDC" for number in range(count)]


class Market:
    """A source that keeps what it sent. Each tick's price is its number, which equal ticks share."""

    paced = True
    wait_for = 0

    def __init__(self, pairs: int, rate: float, seed: int) -> None:
        self.pairs = frozenset(pair_names(pairs))
        #: Set these to count ticks from now on, and to end.
        self.counting = self.ended = False
        #: All but the price of each number's ticks.
        self.ticks: list[dict[str, str]] = []
        #: The numbers that were sent, in order.
        self.sent = array("L")
        self._rate = rate
        self._rng = random.Random(seed)

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        names, rng = sorted(self.pairs), self._rng
        recent = deque[tuple[float, int]]()
        for turn in itertools.count():
            if self.ended:
                return
            now, due = clock(), turn / self._rate
            while recent and recent[0][0] < now - _LATE:
                recent.popleft()
            if not self.counting:
                yield due, {**self._tick(names[turn % len(names)], EXCHANGES[turn % 3], now), "price": WARM_UP}
                continue
            if recent and rng.random() < 0.03:
                # An equal tick, after others in half of the cases.
                number = rng.choice((recent[-1], rng.choice(recent)))[1]
            else:
                number = len(self.ticks)
                late = rng.uniform(0.0, _LATE) if rng.random() < 0.02 else 0.0
                self.ticks.append(self._tick(rng.choice(names), rng.choice(EXCHANGES), now - late))
                if not late:
                    recent.append((now, number))
            yield from self.send(due, number)

    def send(self, due: float, number: int) -> Iterator[tuple[float, Any]]:
        yield due, {**self.ticks[number], "price": str(number)}
        # It has been sent when the next one is requested.
        self.sent.append(number)

    @staticmethod
    def _tick(pair: str, exchange: str, moment: float) -> dict[str, str]:
        # Many ticks share a millisecond.
        date, time = datetime.fromtimestamp(moment, UTC).isoformat("T", "milliseconds")[:23].split("T")
        return {"pair": pair, "date": date, "time": f"{time}Z", "exchange": exchange}


class Witness:
    """A listener that keeps what it got."""

    def __init__(self, market: Market, endpoints: Sequence[str], **settings: Any) -> None:
        self.name = endpoints[0]
        self.numbers = array("L")
        self.gaps: list[Gap] = []
        self.errors: list[FinxStreamerError] = []
        self.notices: list[Notice] = []
        self.changed = self.backfilled = 0
        #: Set when each pair has sent something.
        self.begun = threading.Event()
        #: When it got its last tick, and the longest time between two, in seconds.
        self.last, self.silence = time.monotonic(), 0.0
        self._market, self._silent = market, set(market.pairs)
        self.listener = StreamListener(
            *sorted(market.pairs),
            api_key="demo",
            endpoint=endpoints[0] if len(endpoints) == 1 else list(endpoints),
            parse_price=str,
            on_tick=self._keep,
            on_gap=self.gaps.append,
            on_error=self.errors.append,
            on_notice=self.notices.append,
            reconnect=ReconnectPolicy(initial=0.1, maximum=2.0),
            ping_interval=2.0,
            ping_timeout=2.0,
            **settings,
        )

    def _keep(self, tick: Tick) -> None:
        now = time.monotonic()
        self.last, self.silence = now, max(self.silence, now - self.last)
        if self._silent:
            self._silent.discard(tick["pair"])
            if not self._silent:
                self.begun.set()
        if tick["price"] == WARM_UP:
            return
        number = int(tick["price"])
        self.numbers.append(number)
        self.backfilled += tick["backfilled"]
        self.changed += any(tick[field] != text for field, text in self._market.ticks[number].items())  # type: ignore[literal-required]


@attrs.define
class Verdict:
    """How one listener's ticks differ from the source's."""

    name: str
    got: int
    backfilled: int
    lost: list[int]
    #: Lost ticks that are in an unfilled gap.
    in_gaps: int
    doubled: list[int]
    changed: int
    #: Ticks that came after a later one of their pair and exchange.
    disordered: int
    gaps: int
    unfilled: int
    silence: float
    errors: Counter[str]
    notices: int


def judge(market: Market, witness: Witness) -> Verdict:
    """Compare."""
    sent, got = Counter(market.sent), Counter(witness.numbers)
    lost = sorted((sent - got).elements())
    unfilled = [gap for gap in witness.gaps if not gap.filled]
    latest: dict[tuple[str, str], int] = {}
    disordered = 0
    for number in witness.numbers:
        # The order of equal ticks isn't defined.
        if sent[number] == 1:
            series = market.ticks[number]["pair"], market.ticks[number]["exchange"]
            disordered += number < latest.get(series, 0)
            latest[series] = max(number, latest.get(series, 0))
    return Verdict(
        name=witness.name,
        got=len(witness.numbers),
        backfilled=witness.backfilled,
        lost=lost,
        in_gaps=sum(any(_covers(gap, market.ticks[number]) for gap in unfilled) for number in lost),
        doubled=sorted((got - sent).elements()),
        changed=witness.changed,
        disordered=disordered,
        gaps=len(witness.gaps),
        unfilled=len(unfilled),
        silence=witness.silence,
        errors=Counter(type(error).__name__ for error in witness.errors),
        notices=len(witness.notices),
    )


def _covers(gap: Gap, tick: Mapping[str, str]) -> bool:
    moment, late = datetime.fromisoformat(f"{tick['date']}T{tick['time']}"), timedelta(seconds=1.0)
    return gap.symbol == tick["pair"] and gap.since - late <= moment <= gap.until + late


class Troublemaker:
    """Kills and stops pieces at random, and brings them back."""

    def __init__(
        self,
        rng: random.Random,
        publishers: Sequence[Restartable],
        gateways: Sequence[Restartable],
        nodes: Sequence[Restartable],
        note: Callable[[str], object],
        most_nodes: int,
    ) -> None:
        self.counts = Counter[str]()
        #: How often a piece had ended by itself.
        self.ended = Counter[str]()
        self._rng, self._note = rng, note
        self._weights = {kind: weight for kind, weight in _TROUBLE.items() if kind != "two nodes" or most_nodes > 1}
        #: Each kind comes once at first, so that short runs have all of them.
        self._first = rng.sample([*self._weights], len(self._weights))
        self._kinds: dict[str, Sequence[Restartable]] = {"publisher": publishers, "gateway": gateways, "node": nodes}
        #: What is away: until when, and whether it's only stopped.
        self._away: dict[str, tuple[float, bool, Restartable]] = {}

    def bring_back(self, now: float = float("inf")) -> None:
        """End the trouble whose time has come. Without an argument, all of it."""
        for name, (until, stopped, piece) in [*self._away.items()]:
            if until <= now:
                del self._away[name]
                self._note(f"{name} is back")
                if stopped:
                    piece.resume()
                else:
                    piece.launch()
        for piece in itertools.chain(*self._kinds.values()):
            if piece.name not in self._away and not piece.running:
                self.ended[piece.name] += 1
                self._note(f"{piece.name} has ended")
                piece.launch()

    def cause(self, now: float) -> None:
        """Cause some, unless what it would befall is away already."""
        rng = self._rng
        kind = self._first.pop() if self._first else rng.choices([*self._weights], [*self._weights.values()])[0]
        pieces = self._kinds[kind.split()[1].rstrip("s")]
        there = [piece for piece in pieces if piece.name not in self._away]
        number = 2 if kind.startswith(("both", "two")) else 1
        if number > len(there) or (kind.endswith(("node", "nodes")) and len(there) < len(pieces)):
            return
        stop = rng.random() < 0.4
        self.counts[f"{'stop' if stop else 'kill'} {kind}"] += 1
        for piece in rng.sample(there, number):
            lasting = rng.uniform(*(_STOPPED if stop else _KILLED))
            self._note(f"{'stop' if stop else 'kill'} {piece.name} for {lasting:.1f} s")
            if stop:
                piece.pause()
            else:
                piece.kill()
            self._away[piece.name] = now + lasting, stop, piece


@attrs.define
class Outcome:
    """What happened, and what each listener got."""

    seed: int
    rate: float
    seconds: float
    sent: int
    trouble: Counter[str]
    ended: Counter[str]
    #: How many ticks the publishers reported as lost.
    reported: float
    #: How often a gateway said that NATS itself had lost entries.
    shrunk: int
    verdicts: list[Verdict]

    def mistakes(self) -> list[str]:
        """Describe what isn't as promised."""
        found = [f"{name} ended by itself, {count} x" for name, count in self.ended.items()]
        if self.shrunk:
            found.append(f"gateways say {self.shrunk} x that NATS has lost entries that it had stored")
        for each in self.verdicts:
            silent = len(each.lost) - max(each.in_gaps, self.reported)
            if silent > 0:
                found.append(f"{each.name}: {silent:,.0f} ticks lost without a report, such as {each.lost[:10]}")
            if each.doubled:
                found.append(f"{each.name}: {len(each.doubled)} ticks doubled, such as {each.doubled[:10]}")
            if each.changed:
                found.append(f"{each.name}: {each.changed} ticks changed")
        return found

    def __str__(self) -> str:
        rows: dict[str, Iterable[object]] = {
            "ticks": (each.got for each in self.verdicts),
            "of them backfilled": (each.backfilled for each in self.verdicts),
            "lost": (len(each.lost) for each in self.verdicts),
            "of them in a gap that was reported": (each.in_gaps for each in self.verdicts),
            "doubled": (len(each.doubled) for each in self.verdicts),
            "changed": (each.changed for each in self.verdicts),
            "after a later one of its pair and exchange": (each.disordered for each in self.verdicts),
            "gaps": (each.gaps for each in self.verdicts),
            "of them not filled": (each.unfilled for each in self.verdicts),
            "notices": (each.notices for each in self.verdicts),
            "longest silence, seconds": (f"{each.silence:.1f}" for each in self.verdicts),
        }
        about = [
            f"seed {self.seed}, {self.rate:,.0f} ticks/s, {self.seconds:,.0f} seconds: {self.sent:,} ticks sent",
            "trouble: " + ", ".join(f"{count} x {name}" for name, count in sorted(self.trouble.items())),
            f"reported as lost by publishers: {self.reported:,.0f}",
            "errors reported to listeners: " + str(dict(sum((each.errors for each in self.verdicts), Counter()))),
            "",
            "| | " + " | ".join(f"listener {number}" for number, _ in enumerate(self.verdicts, start=1)) + " |",
            "|---|" + "---:|" * len(self.verdicts),
        ]
        return "\n".join(about + [f"| {name} | {' | '.join(map(str, values))} |" for name, values in rows.items()])


def chaos(
    folder: Path,
    minutes: float,
    seed: int,
    *,
    rate: float = 700.0,
    pairs: int = 20,
    every: float = 4.0,
    most_nodes: int = 1,
) -> Outcome:
    """Run the system for `minutes`, with trouble every `every` seconds or so. Then compare.

    `most_nodes`: how many nodes of NATS may be away at the same time. With two, NATS 2.9 may lose what it has stored.
    """
    rng = random.Random(seed)
    market = Market(pairs, rate, seed)
    begin = time.monotonic()
    with ExitStack() as ending:
        cluster = ending.enter_context(NatsCluster(folder / "nats"))
        server = ending.enter_context(LocalServer(market, keys={"demo"}, store=folder / "source.db"))
        publishing = ["publish", *sorted(market.pairs), "--to", cluster.url, "--endpoint", server.url, "--replicas=3"]
        publishers = [_command(folder, f"publisher{number}", *publishing) for number in (1, 2)]
        ports = [lasting_port() for _ in range(3)]
        gateways = [
            _command(folder, f"gateway{number}", "serve", "--from", cluster.url, "--port", str(port))
            for number, port in enumerate(ports, start=1)
        ]
        # The others keep ticks in memory.
        gateways[0].command += ["--store", str(folder / "gateway.db")]
        for command in publishers + gateways:
            ending.callback(command.kill)
        for command in publishers:
            command.launch()
        _wait_for(lambda: (cluster.nodes[0].about("jsz") or {}).get("messages"), "the first ticks in NATS")
        for command in gateways:
            command.launch()
        urls = [f"ws://127.0.0.1:{port}/" for port in ports]
        for url in urls:
            _wait_for(lambda url=url: _is_well(url), f"the gateway at {url}")
        witnesses = [Witness(market, urls[first:] + urls[:first]) for first in range(len(urls))]
        for witness in witnesses:
            ending.enter_context(witness.listener)
        for witness in witnesses:
            _wait_for(witness.begun.is_set, "the listeners' first ticks")
        market.counting = True
        notes = ending.enter_context(open(folder / "trouble.log", "w", buffering=1))

        def note(text: str) -> None:
            notes.write(f"{datetime.now():%H:%M:%S.%f} {text}\n")

        trouble = Troublemaker(rng, publishers, gateways, cluster.nodes, note, most_nodes)
        ends, due = time.monotonic() + minutes * 60, 0.0
        while (now := time.monotonic()) < ends:
            trouble.bring_back(now)
            if now >= due:
                trouble.cause(now)
                due = now + rng.uniform(0.0, 2 * every)
            time.sleep(0.05)
        trouble.bring_back()
        cluster.wait_ready()
        market.ended = True
        server.wait_finished(60.0)
        wait_until_complete(market, witnesses)
        reported = sum(map(lost_ticks, publishers))
        shrunk = sum(gateway.log.count("ERROR the market source failed: the JetStream stream") for gateway in gateways)
    seconds = time.monotonic() - begin
    verdicts = [judge(market, witness) for witness in witnesses]
    return Outcome(seed, rate, seconds, len(market.sent), trouble.counts, trouble.ended, reported, shrunk, verdicts)


def _command(folder: Path, name: str, *arguments: str) -> Restartable:
    command = [sys.executable, "-m", "finx_streamer", *arguments]
    return Restartable(name, command, folder / f"{name}.log", FINX_API_KEY="demo")


def lost_ticks(publisher: Restartable) -> float:
    """How many ticks a publisher reported as lost. Infinite if it was killed before it knew how many."""
    numbers = re.findall(r"([\d,]+) ticks (?:were lost|weren't acknowledged)", publisher.log)
    lost = sum(int(number.replace(",", "")) for number in numbers) + publisher.log.count(" is lost: ")
    # Each loss is announced, and counted when it is over.
    unknown = publisher.log.count("from now on, ticks are lost") > publisher.log.count("ticks were lost")
    return float("inf") if unknown else lost


def wait_until_complete(market: Market, witnesses: Sequence[Witness], calm: float = _CALM) -> None:
    """Wait until all have got as many ticks as were sent, or nothing has come for `calm` seconds."""
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + _PATIENCE:
        complete = all(len(witness.numbers) >= len(market.sent) for witness in witnesses)
        # Doubled ticks would come with the last ones.
        if now - max(begin, *(witness.last for witness in witnesses)) > (1.0 if complete else calm):
            return
        time.sleep(0.1)


def _is_well(url: str) -> bool:
    """Whether a gateway serves the log."""
    try:
        with urllib.request.urlopen(f"{url.replace('ws:', 'http:')}health", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {_PATIENCE:g} s for {what}")
        time.sleep(0.05)


def main() -> None:
    """Run it, print the table, and set the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=700.0, help="ticks per second")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two troubles")
    parser.add_argument("--most-nodes", type=int, default=1, help="how many nodes of NATS may be away at once")
    parser.add_argument("--folder", type=Path, help="keep the logs here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"rate": given.rate, "pairs": given.pairs, "every": given.every, "most_nodes": given.most_nodes}
        outcome = chaos(folder, given.minutes, given.seed, **settings)
    print(outcome)
    mistakes = outcome.mistakes()
    print("", *mistakes, "verdict: FAILED" if mistakes else "verdict: as promised", sep="\n")
    sys.exit(bool(mistakes))


if __name__ == "__main__":
    main()
