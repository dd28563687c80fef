"""The soak test of live exchanges: six loopback exchanges, a server with a file as its store, and a client.

`python -m tests.support.live_soak` runs the server and the client in processes of their own. Every few seconds,
exchanges or clients lose their connections, exchanges leave trades out, or the server's process is killed with SIGKILL.
Every trade is checked by its price, which no other trade of its pair and exchange has. The exit code is 1 if a trade is
missing or came twice, or if memory grew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from finx_streamer import FinxStreamerError, GapNotFilled, StreamListener
from finx_streamer.server import ExchangeMarket, LocalServer
from tests.support.exchanges import LoopbackExchanges, RestFault
from tests.support.peers import free_port
from tests.support.soak import median_growth, resident_memory

PAIRS = ("BTC:USDT", "ETH:USDT")
#: The allowed growth of a process, in MiB.
GROWTH = 8.0
#: Trades that the server had received less than this many seconds before SIGKILL may be neither sent nor stored.
UNWRITTEN = 1.0
_PATIENCE = 120.0
_FAULTS = {"drop": 6, "leave out": 4, "limit": 1, "cut": 3, "reset": 3, "close": 2, "refuse": 2, "kill": 2}


def serve(port: int, store: Path, base_urls: Mapping[str, str]) -> None:
    """Run one life of the server. Each line of the input is a fault on the clients' side, or asks for the counters."""
    market = ExchangeMarket(PAIRS, base_urls=base_urls)
    with LocalServer(market, port=port, store=store) as server:
        print("ready", flush=True)
        for line in sys.stdin:
            match line.strip():
                case "cut":
                    server.drop_connections()
                case "reset":
                    server.drop_connections(reset=True)
                case "close":
                    server.close_connections(1012)
                case "refuse":
                    server.refuse_next(2, 503)
                    server.drop_connections()
            stats = server.stats
            about = {"streams": stats.streams, "exchanges": {k: attrs.asdict(v) for k, v in stats.exchanges.items()}}
            print(json.dumps(about), flush=True)


def listen(url: str) -> None:
    """Run the client, with default settings. Print each tick, until the input ends. Then print the counters."""
    write = sys.stdout.write
    errors, gaps = Counter[str](), Counter[bool]()

    def note_error(error: FinxStreamerError) -> None:
        errors[type(error).__name__] += 1
        if isinstance(error, GapNotFilled):
            print(error, file=sys.stderr)

    listener = StreamListener(
        *PAIRS,
        api_key="demo",
        endpoint=url,
        parse_price=str,
        on_tick=lambda tick: write(f"{tick['exchange']} {tick['pair']} {tick['price']}\n"),
        on_error=note_error,
        on_gap=lambda gap: gaps.update([gap.filled]),
    )
    with listener:
        while not sys.stdin.closed:
            line = sys.stdin.readline()
            sys.stdout.flush()
            if not line:
                break
    about = {"errors": errors, "filled gaps": gaps[True], "unfilled gaps": gaps[False]}
    print(json.dumps({**about, "reconnects": listener.stats.reconnects}), flush=True)


class Process:
    """A process of this module."""

    def __init__(self, **arguments: object) -> None:
        command = [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def ask(self, line: str) -> str:
        self.stdin.write(f"{line}\n")
        return self.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


class Ledger:
    """How often each trade arrived: one byte for each."""

    def __init__(self, exchanges: LoopbackExchanges) -> None:
        self._exchanges = exchanges
        self._counts = {(each.name, pair): bytearray() for each in exchanges for pair in PAIRS}
        self._begins = {key: self._prices(*key) for key in self._counts}
        #: Ranges of trades that a server couldn't know, because it was dead, or couldn't keep.
        self._excused: dict[str, dict[tuple[str, str], list[tuple[int, int]]]] = {"down": {}, "unwritten": {}}
        self.received = 0
        self._begin = time.monotonic()
        #: When, in seconds, each series was where.
        self._positions: list[tuple[float, dict[tuple[str, str], int]]] = []
        #: The trades that are missing, since `result`.
        self._lost: dict[tuple[str, str], list[int]] = {}
        #: When a fault was caused.
        self._faults: list[tuple[float, str]] = []

    def note_position(self) -> None:
        self._positions.append((time.monotonic() - self._begin, self.position()))

    def note_fault(self, name: str) -> None:
        self._faults.append((time.monotonic() - self._begin, name))

    def missing_by_exchange(self) -> dict[str, int]:
        """How many trades of each exchange were missing at the last `result`."""
        found = Counter[str]()
        for (name, _), numbers in self._lost.items():
            found[name] += len(numbers)
        return dict(found)

    def missing(self) -> list[str]:
        """Describe each range of missing trades, one line each: when they were made, and the faults around."""
        lines = []
        self.result()
        for key, numbers in self._lost.items():
            for _, group in itertools.groupby(enumerate(numbers), lambda item: item[1] - item[0]):
                run = [number for _, number in group]
                made = [at for at, where in self._positions if where[key] >= run[0]][:1] or [0.0]
                around = [f"{name} at {at:.1f}" for at, name in self._faults if abs(at - made[0]) < 20.0]
                lines.append(
                    f"missing: {' '.join(key)} {run[0]}-{run[-1]}, made by {made[0]:.1f} s; {', '.join(around)}"
                )
        return lines

    def take(self, line: str) -> None:
        name, pair, price = line.split()
        number, counts = self._exchanges[name].number(pair, price), self._counts[name, pair]
        if number >= len(counts):
            counts.extend(bytes(number + 1_000 - len(counts)))
        counts[number] += counts[number] < 255
        self.received += 1

    def excuse(self, why: str, begins: Mapping[tuple[str, str], int], ends: Mapping[tuple[str, str], int]) -> None:
        """Note trades that were made while no server could keep them."""
        for key, begin in begins.items():
            self._excused[why].setdefault(key, []).append((begin + 1, ends[key]))

    def position(self) -> dict[tuple[str, str], int]:
        """The newest trade of each series."""
        return {key: self._prices(*key) for key in self._counts}

    def result(self) -> dict[str, int]:
        """Count what became of all trades since the beginning."""
        found = Counter(made=0, missing=0, twice=0, down=0, unwritten=0)
        self._lost = {}
        for key, counts in self._counts.items():
            ends = self._prices(*key)
            found["made"] += ends - self._begins[key]
            excused = {
                number: why
                for why, ranges in self._excused.items()
                for begin, end in ranges.get(key, ())
                for number in range(begin, end + 1)
            }
            for number in range(self._begins[key] + 1, ends + 1):
                count = counts[number] if number < len(counts) else 0
                found["twice"] += count > 1
                if not count:
                    found[why := excused.get(number, "missing")] += 1
                    if why == "missing":
                        self._lost.setdefault(key, []).append(number)
        return dict(found)

    def _prices(self, name: str, pair: str) -> int:
        return self._exchanges[name].books[pair].prices


@attrs.define
class Report:
    """The result."""

    seed: int
    rate: float
    minutes: float
    counts: Mapping[str, int]
    #: How many trades of each exchange are missing, and how many the server reported as lost.
    missing: Mapping[str, int]
    lost: Mapping[str, int]
    received: int
    faults: Mapping[str, int]
    client: Mapping[str, Any]
    exchanges: Mapping[str, Mapping[str, Any]]
    #: Resident memory of the server and the client, in MiB.
    server_memory: list[float]
    client_memory: list[float]

    def judge(self) -> list[str]:
        found = [f"{count} trades twice" for count in [self.counts["twice"]] if count]
        for name, count in self.missing.items():
            if count > self.lost.get(name, 0):
                found.append(f"{count} trades of {name} missing, {self.lost.get(name, 0)} of them reported")
        grown = {"client": self.client_memory}
        if not self.faults.get("kill"):
            # Each life of the server begins small.
            grown["server"] = self.server_memory
        for name, samples in grown.items():
            if (growth := median_growth(samples)) > GROWTH:
                found.append(f"the {name}'s memory grew by {growth:.1f} MiB")
        return found

    def __str__(self) -> str:
        counts = self.counts
        rows = {
            "trades a second, seed": f"{self.rate:,.0f}, {self.seed}",
            "time": f"{self.minutes:.1f} minutes",
            "faults": ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items())),
            "trades made": f"{counts['made']:,}",
            "ticks received": f"{self.received:,}",
            "trades missing": f"{counts['missing']:,}",
            "reported as lost, because an exchange's REST interface doesn't reach back": (
                ", ".join(f"{count:,} of {name}" for name, count in self.lost.items()) or "0"
            ),
            "trades received twice": f"{counts['twice']:,}",
            "made while the server was down, not received": f"{counts['down']:,}",
            f"made in the {UNWRITTEN:g} s before SIGKILL, not received": f"{counts['unwritten']:,}",
            "client": ", ".join(f"{name} {value}" for name, value in self.client.items()),
            "exchanges, in the server's last life": ", ".join(
                f"{sum(each[name] for each in self.exchanges.values()):,} {name}"
                for name in ("trades", "reconnects", "gaps", "filled", "unfilled", "lost")
            ),
        }
        for name, samples in (("server", self.server_memory), ("client", self.client_memory)):
            rows[f"memory of the {name}"] = (
                f"{median_growth(samples):+.1f} MiB from the second tenth of the time to the last, "
                f"at most {max(samples):.0f} MiB"
            )
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


class Soak:
    """One run."""

    def __init__(self, exchanges: LoopbackExchanges, folder: Path, seed: int, kills: bool) -> None:
        self._weights = _FAULTS if kills else {name: weight for name, weight in _FAULTS.items() if name != "kill"}
        self.exchanges, self.ledger = exchanges, Ledger(exchanges)
        self.faults = Counter[str]()
        #: What each exchange's REST interface didn't return, in all of the server's lives.
        self.lost = Counter[str]()
        self._rng = random.Random(seed)
        self._arguments = {
            "serve": folder / "ticks.db",
            "port": free_port(),
            "urls": json.dumps(exchanges.base_urls),
        }
        self.server = self._start_server()
        for pair in PAIRS:
            exchanges.wait_subscribed(pair=pair)
        self.client = Process(listen=f"ws://127.0.0.1:{self._arguments['port']}/")
        self.client_says: Mapping[str, Any] = {}
        self._reader = threading.Thread(target=self._read, name="reader")
        self._reader.start()
        self._wait_for(lambda about: about["streams"] == len(PAIRS))

    def _start_server(self) -> Process:
        server = Process(**self._arguments)
        assert server.stdout.readline() == "ready\n"
        return server

    def _read(self) -> None:
        for line in self.client.stdout:
            if line.startswith("{"):
                self.client_says = json.loads(line)
            else:
                self.ledger.take(line)

    def flush(self) -> None:
        """Have the client print what it has received."""
        self.client.stdin.write("\n")

    def fault(self) -> None:
        """Cause one fault."""
        name = self._rng.choices(list(self._weights), list(self._weights.values()))[0]
        self.faults[name] += 1
        exchange, pair = self._rng.choice(list(self.exchanges)), self._rng.choice(PAIRS)
        self.ledger.note_fault(f"{name} ({exchange.name} {pair})")
        match name:
            case "drop":
                self.exchanges.call(exchange.drop, self._rng.choice(["fin", "rst", "close"]))
            case "leave out":
                if exchange.name != "BITSTAMP":
                    self.exchanges.make(exchange.name, pair, self._rng.randint(1, 20), send=False)
            case "limit":
                exchange.rest_fault = RestFault(429, {"Retry-After": "1"})
                self.exchanges.call(exchange.drop, "rst")
            case "kill":
                self._kill()
            case _:
                self.server.ask(name)

    def _kill(self) -> None:
        """Kill the server and start it again. What was made meanwhile can't be known to it."""
        # Gaps that it is filling would be lost with it, so let it finish.
        self._wait_until_filled()
        self._note_lost()
        before = self.ledger.position()
        time.sleep(UNWRITTEN)
        self.server.process.kill()
        self.server.process.wait()
        killed = self.ledger.position()
        self.server.kill()
        time.sleep(self._rng.choice([0.0, 1.0, 3.0]))
        joined = self.joined()
        self.server = self._start_server()
        self.exchanges.wait_until(lambda: self._has_joined(joined))
        self.ledger.excuse("unwritten", before, killed)
        self.ledger.excuse("down", killed, self.joined())

    def _wait_for(self, condition: Callable[[Any], bool]) -> Any:
        """Wait for a condition on the server's counters, and return them."""
        end = time.monotonic() + _PATIENCE
        while not condition(about := json.loads(self.server.ask("stats"))) and time.monotonic() < end:
            time.sleep(0.2)
        return about

    def _wait_until_filled(self) -> None:
        # A jump shows with the next trade, and an outage after a moment.
        time.sleep(2.0)
        self._wait_for(
            lambda about: all(
                each["connected"] and (each["unfilled"] or not each["lost"]) for each in about["exchanges"].values()
            )
        )

    def _note_lost(self) -> Mapping[str, Mapping[str, Any]]:
        counters: Mapping[str, Mapping[str, Any]] = json.loads(self.server.ask("stats"))["exchanges"]
        self.lost.update({name: each["lost"] for name, each in counters.items() if each["lost"]})
        return counters

    def joined(self) -> dict[tuple[str, str], int]:
        return {(each.name, pair): each.joined[pair] for each in self.exchanges for pair in PAIRS}

    def _has_joined(self, before: Mapping[tuple[str, str], int]) -> bool:
        now = self.joined()
        return all(
            self.exchanges[name].subscribed(pair) and now[name, pair] > number
            for (name, pair), number in before.items()
        )

    def finish(self) -> Mapping[str, Mapping[str, Any]]:
        """Wait until all trades have arrived, and end the client. Returns the exchanges' counters."""
        end = time.monotonic() + _PATIENCE
        while self.ledger.result()["missing"] > sum(self.lost.values()) and time.monotonic() < end:
            time.sleep(1.0)
            self.flush()
        counters = self._note_lost()
        self.client.stdin.close()
        self._reader.join(_PATIENCE)
        return dict(counters)

    def close(self) -> None:
        self.client.process.kill()
        self._reader.join(_PATIENCE)
        self.client.kill()
        self.server.kill()


def soak(minutes: float, rate: float, seed: int, every: float, kills: bool = True) -> Report:
    """Make trades for `minutes`, with a fault about every `every` seconds, and wait for all of them."""
    with tempfile.TemporaryDirectory() as name, LoopbackExchanges(PAIRS, keep=20_000, seed=seed) as exchanges:
        # Each trade of OKX on its own, so that none can be received twice unnoticed.
        exchanges["OKX"].max_group = 1
        run = Soak(exchanges, Path(name), seed, kills)
        rng, server_memory, client_memory = random.Random(seed), [], []
        begin = time.monotonic()
        ends = begin + minutes * 60
        try:
            exchanges.set_rate(rate)
            due = begin + every
            while (now := time.monotonic()) < ends:
                if now >= due:
                    run.fault()
                    due = time.monotonic() + rng.uniform(0.5, 1.5) * every
                run.flush()
                run.ledger.note_position()
                server_memory.append(resident_memory(run.server.process.pid))
                client_memory.append(resident_memory(run.client.process.pid))
                time.sleep(0.5)
            exchanges.set_rate(0.0)
            # What an exchange left out shows with its next trade.
            for exchange in exchanges:
                for pair in PAIRS:
                    exchanges.wait_subscribed(exchange.name, pair=pair)
                    exchanges.make(exchange.name, pair)
            took = time.monotonic() - begin
            counters = run.finish()
            print(*run.ledger.missing(), sep="\n", end="")
            return Report(
                seed, rate, took / 60, run.ledger.result(), run.ledger.missing_by_exchange(), run.lost,
                run.ledger.received, run.faults, run.client_says,
                counters, server_memory, client_memory,
            )  # fmt: skip
        finally:
            run.close()


def main() -> None:
    """Run the test, write the report, and set the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=600.0, help="trades per second in total")
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-kills", action="store_true", help="one life of the server, to see its memory")
    parser.add_argument("--output", type=Path, default=Path("build/soak"), help="the folder for the report")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--urls", help=argparse.SUPPRESS)
    parser.add_argument("--listen", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.port, given.serve, json.loads(given.urls))
    elif given.listen is not None:
        listen(given.listen)
    else:
        report = soak(given.minutes, given.rate, given.seed, given.every, not given.no_kills)
        print(report)
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "live_soak.md").write_text(f"{report}\n")
        if mistakes := report.judge():
            print(*mistakes, sep="\n")
            sys.exit(1)


if __name__ == "__main__":
    main()
