"""An `ExchangeMarket` with six loopback exchanges in another process: CPU, a burst, and a flood of one exchange."""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from harness import HERE, Figures, Options, Watch, disturbed, median, rounds, table

from finx_streamer import StreamListener, Tick

TITLE = "Live exchanges: six on loopback"
PAIRS = ["BTC:USDT", "ETH:USDT"]
EXCHANGES = ("BINANCE", "COINBASE", "KRAKEN", "OKX", "BYBIT", "BITSTAMP")
#: Trades per second of all exchanges: under load, and otherwise.
_RATE, _CALM = 20_000, 600
_BURST = 100_000
#: How many trades the flood has, and how often, in seconds.
_FLOOD, _FLOOD_EVERY = 2_000, 0.1
#: Their times are precise enough to measure lag.
_PRECISE = ("COINBASE", "KRAKEN")
_PATIENCE = 60.0


class _Process:
    """A process that answers lines with lines of JSON."""

    def __init__(self, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
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


class _Setting:
    """Exchanges, a server and a client, each in a process of its own. This process is the client."""

    def __init__(self, exchanges: _Process, server: _Process) -> None:
        self.exchanges, self.server = exchanges, server
        self.count = 0
        self.lags: list[float] = []

    def take(self, tick: Tick) -> None:
        self.count += 1
        if tick["exchange"] in _PRECISE:
            self.lags.append(tick["received_ns"] / 1e9 - tick["timestamp"].timestamp())

    def wait_for(self, condition: Any) -> Figures:
        end = time.monotonic() + _PATIENCE
        while not condition(figures := self.server.ask()):
            if time.monotonic() > end:
                raise RuntimeError(f"the server's counters didn't become right: {figures}")
            time.sleep(0.05)
        return dict(figures)


@contextlib.contextmanager
def _setting(*, client: bool) -> Iterator[_Setting]:
    with contextlib.ExitStack() as stack:
        exchanges = _Process("-m", "tests.support.exchanges", *PAIRS)
        stack.callback(exchanges.kill)
        about = {"pairs": PAIRS, "base_urls": {name: exchanges.first[name] for name in EXCHANGES}}
        server = _Process(str(HERE / "exchange_server.py"), json.dumps(about))
        stack.callback(server.kill)
        setting = _Setting(exchanges, server)
        setting.wait_for(lambda figures: figures["connected"] == len(EXCHANGES))
        if client:
            url = f"ws://127.0.0.1:{server.first}/"
            listener = StreamListener(*PAIRS, api_key="demo", endpoint=url, on_tick=setting.take)
            stack.enter_context(listener)
            exchanges.ask(f"rate {_CALM}")
            end = time.monotonic() + _PATIENCE
            while not setting.count and time.monotonic() < end:
                time.sleep(0.05)
        yield setting


def _cpu(seconds: float, *, client: bool) -> Figures:
    """The server's share of a core at the full rate."""
    with _setting(client=client) as setting:
        setting.exchanges.ask(f"rate {_RATE}")
        time.sleep(1.0)
        watch = Watch(setting.exchanges.process.pid, setting.server.process.pid)
        before = setting.server.ask()
        time.sleep(seconds)
        after = setting.server.ask()
        took = after["at"] - before["at"]
        return {
            "cpu": (after["cpu"] - before["cpu"]) / took,
            "rate": (after["trades"] - before["trades"]) / took,
            "gaps": after["gaps"],
            "disturbed": watch.disturbance(),
        }


def _burst() -> Figures:
    """Seconds until all trades of a burst are sent, and how many are missing."""
    with _setting(client=True) as setting:
        setting.exchanges.ask("rate 0")
        time.sleep(0.5)
        before, received = setting.server.ask(), setting.count
        watch = Watch(setting.exchanges.process.pid, setting.server.process.pid)
        began = time.monotonic()
        for name in EXCHANGES:
            setting.exchanges.ask(f"make {name} {PAIRS[0]} {_BURST // len(EXCHANGES)}")
        made = time.monotonic() - began
        # OKX reports some trades as one.
        end, last = time.monotonic() + _PATIENCE, -1
        while setting.count != last and time.monotonic() < end:
            last = setting.count
            time.sleep(1.0)
        after = setting.server.ask()
        return {
            "made": made,
            "sent": after["trades"] - before["trades"],
            "received": setting.count - received,
            "lost": after["lost"],
            "gaps": after["gaps"],
            "reconnects": after["reconnects"],
            "disturbed": watch.disturbance(),
        }


def _lag(seconds: float, *, flood: bool) -> Figures:
    """The lag of two exchanges while another one floods, or doesn't."""
    with _setting(client=True) as setting:
        watch = Watch(setting.exchanges.process.pid, setting.server.process.pid)
        setting.lags.clear()
        end = time.monotonic() + seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            if flood:
                setting.exchanges.ask(f"make BINANCE {PAIRS[0]} {_FLOOD}")
            due = max(due + _FLOOD_EVERY, now)
            time.sleep(max(0.0, due - time.monotonic()))
        cuts = statistics.quantiles(setting.lags, n=100)
        return {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3, "disturbed": watch.disturbance()}


def benchmark(options: Options) -> str:
    """Measure all three."""
    seconds = 8 * options.seconds
    jobs = {
        "no client": lambda: _cpu(seconds, client=False),
        "one client": lambda: _cpu(seconds, client=True),
        "burst": _burst,
        "calm": lambda: _lag(seconds, flood=False),
        "flood": lambda: _lag(seconds, flood=True),
    }
    results = rounds({name: job for name, job in jobs.items() if name in options.chosen(jobs)}, options.rounds)
    parts = []
    rows = [
        (name, f"{median(results[name], 'rate'):,.0f}", f"{median(results[name], 'cpu'):.0%}")
        for name in ("no client", "one client")
        if name in results
    ]
    if rows:
        parts.append(table(("server with", "trades/s", "CPU, of one core"), rows))
    if "burst" in results:
        worst = max(results["burst"], key=lambda each: each["sent"] - each["received"] + each["lost"])
        parts.append(
            f"A burst of {_BURST:,} trades, which the exchanges made in {median(results['burst'], 'made'):.1f} s: "
            f"{worst['sent']:,} ticks sent (OKX reports some trades as one), {worst['received']:,} received, "
            f"{worst['lost']} lost, {worst['gaps']} gaps, {worst['reconnects']} reconnects in the worst run."
        )
    rows = [
        (text, f"{median(results[name], 'p50'):.1f}", f"{median(results[name], 'p99'):.1f}")
        for name, text in (("calm", f"{_CALM} trades/s in total"), ("flood", "BINANCE adds 20,000/s in bursts"))
        if name in results
    ]
    if rows:
        parts.append(table((f"lag at the client, {' and '.join(_PRECISE)}", "p50, ms", "p99, ms"), rows))
    return "\n\n".join([*parts, disturbed(results)])
