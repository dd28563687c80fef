"""An `ExchangeMarket` with six loopback exchanges in another process: CPU, a burst, and a flood of one exchange."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from harness import HERE, Figures, Options, Process, Watch, disturbed, median, rounds, table

from finx_streamer import StreamListener, Tick

TITLE = "Live exchanges: six on loopback"
PAIRS = ["BTC:USDT", "ETH:USDT"]
EXCHANGES = ("BINANCE", "COINBASE", "KRAKEN", "OKX", "BYBIT", "BITSTAMP")
#: Trades per second of all exchanges: under load, and otherwise.
_RATE, _CALM = 20_000, 600
_BURST = 100_000
#: Trades per second of the process with the flooding exchange, which makes those of six but sends those of one.
_FLOOD = 60_000
#: Their times are precise enough to measure lag.
_PRECISE = ("COINBASE", "KRAKEN")
_PATIENCE = 60.0


class _Setting:
    """Exchanges, a server and a client, each in a process of its own. This process is the client."""

    def __init__(self, exchanges: Process, server: Process, flooder: Process | None) -> None:
        self.exchanges, self.server, self.flooder = exchanges, server, flooder
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
def _setting(*, client: bool, pairs: Sequence[str] = PAIRS, flooding: str | None = None) -> Iterator[_Setting]:
    """The client subscribes to `pairs`. A flooding exchange has a process of its own: it mustn't delay the others."""
    with contextlib.ExitStack() as stack:
        exchanges = Process("-m", "tests.support.exchanges", *PAIRS)
        stack.callback(exchanges.kill)
        urls = {name: exchanges.first[name] for name in EXCHANGES}
        flooder = None
        if flooding is not None:
            flooder = Process("-m", "tests.support.exchanges", *PAIRS)
            stack.callback(flooder.kill)
            urls[flooding] = flooder.first[flooding]
        about = {"pairs": PAIRS, "base_urls": urls}
        server = Process(str(HERE / "exchange_server.py"), json.dumps(about))
        stack.callback(server.kill)
        setting = _Setting(exchanges, server, flooder)
        setting.wait_for(lambda figures: figures["connected"] == len(EXCHANGES))
        if client:
            url = f"ws://127.0.0.1:{server.first}/"
            listener = StreamListener(*pairs, api_key="demo", endpoint=url, on_tick=setting.take)
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
    """The lag of two exchanges while another one floods another pair, or doesn't."""
    with _setting(client=True, pairs=PAIRS[:1], flooding="BINANCE") as setting:
        assert setting.flooder is not None
        own = setting.exchanges.process.pid, setting.server.process.pid, setting.flooder.process.pid
        watch, before = Watch(*own), setting.server.ask()
        setting.lags.clear()
        setting.flooder.ask(f"rate {_FLOOD if flood else 0}")
        time.sleep(seconds)
        after = setting.server.ask()
        cuts = statistics.quantiles(setting.lags, n=100)
        rate = (after["trades"] - before["trades"]) / (after["at"] - before["at"])
        return {"p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3, "rate": rate, "disturbed": watch.disturbance()}


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
        (
            name,
            f"{median(results[name], 'rate'):,.0f}",
            f"{median(results[name], 'cpu'):.0%}",
            f"{median(results[name], lambda each: each['cpu'] / each['rate'] * 1e6):.0f}",
        )
        for name in ("no client", "one client")
        if name in results
    ]
    if rows:
        parts.append(table(("server with", "trades/s", "CPU, of one core", "µs a trade"), rows))
    if "burst" in results:
        worst = max(results["burst"], key=lambda each: each["sent"] - each["received"] + each["lost"])
        parts.append(
            f"A burst of {_BURST:,} trades, which the exchanges made in {median(results['burst'], 'made'):.1f} s: "
            f"{worst['sent']:,} ticks sent (OKX reports some trades as one), {worst['received']:,} received, "
            f"{worst['lost']} lost, {worst['gaps']} gaps, {worst['reconnects']} reconnects in the worst run."
        )
    rows = [
        (
            text,
            *(
                f"{median(results[name], key):{form}}"
                for key, form in (("rate", ",.0f"), ("p50", ".1f"), ("p99", ".1f"))
            ),
        )
        for name, text in (("calm", "no flood"), ("flood", "BINANCE floods ETH:USDT"))
        if name in results
    ]
    if rows:
        heads = (f"lag of {' and '.join(_PRECISE)} at a client of BTC:USDT", "trades/s in total", "p50, ms", "p99, ms")
        parts.append(table(heads, rows))
    return "\n\n".join([*parts, disturbed(results)])
