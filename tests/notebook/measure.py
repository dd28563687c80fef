"""Measure the cost of the live view in a real JupyterLab and Chromium: `make bench-notebook`. Linux only.

For each row, a page shows two charts, or the options of three coins, while a server runs in this process. CPU is in
percent of one core. The page's CPU is that of Chromium's renderers, and its compositor is the process that Chromium
calls GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser

from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.server.contracts import parse_instrument
from tests.support.browser import Book, Lab, chromium, opened

BASES = ("BTC", "ETH", "SOL", "ADA", "XRP")
QUOTES = ("USDC", "USDT", "EUR", "USD", "GBP", "JPY", "CHF", "AUD", "CAD", "BRL")
CELL = """
from finx_streamer import StreamListener
import os
print("kernel", os.getpid())
listener = StreamListener(*{symbols!r}, endpoint={url!r}, api_key="demo")
listener.live(*{charts!r})
"""
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
HEAD = """| ticks/s | shown | frames drawn/s | lag p50 / p99 | kernel CPU | page's CPU | with its compositor |
|---|---|---|---|---|---|---|"""
#: Seconds before the measurement, for the page to settle.
WARM_UP = 5.0


class Steady(SimulatedMarket):
    """A simulated market with a constant rate."""

    def _arrivals(self, chance: Random) -> Iterator[float]:
        assert self._rate is not None
        return (number / self._rate for number in count())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1_000.0, 5_000.0], help="ticks/s [%(default)s]")
    parser.add_argument("--pairs", type=int, nargs="+", default=[10, 50], help="at most 50 [%(default)s]")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row of the table [%(default)s]")
    parser.add_argument("--options", action="store_true", help="only the row of the options")
    options = parser.parse_args()
    if options.options:
        options.rates = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab, chromium() as browser:
        for rate in options.rates:
            for how_many in options.pairs:
                pairs = [f"{base}:{quote}" for quote in QUOTES for base in BASES][:how_many]
                market = Steady(pairs, rate=rate, seed=1)
                found = _measure(lab, browser, market, pairs, ["BTC:USDC", "ETH:USDC"], options.seconds)
                print(_row(found, f"{how_many} pairs"), flush=True)
        market = Steady([f"{coin}:USDC" for coin in BASES[:3]], rate=100.0, seed=1, options=BASES[:3])
        contracts = [each for each in map(parse_instrument, market.contracts) if each.strike is not None]
        months = sorted({each.month for each in contracts if each.month is not None})
        print(
            _row(_measure(lab, browser, market, months, [], options.seconds), f"{len(contracts)} options"), flush=True
        )


def _measure(
    lab: Lab, browser: Browser, market: SimulatedMarket, symbols: list[str], charts: list[str], seconds: float
) -> dict[str, Any]:
    """Return the rates of all counters per second, and the latencies of the frames."""
    with LocalServer(market, keys={"demo"}) as server, opened(browser, lab) as book:
        cell = new_code_cell(CELL.format(symbols=symbols, charts=charts, url=server.url).strip())
        nbformat.write(new_notebook(cells=[cell], metadata=METADATA), lab.files / "measured.ipynb")
        book.open("measured.ipynb")
        book.run(0)
        book.wait("() => document.querySelector('.finx')?.finxMeter.frames > 20")
        book.wait_output(0, "kernel")
        found = re.search(r"kernel (\d+)", book.output(0))
        assert found is not None, book.output(0)
        time.sleep(WARM_UP)
        before = _reading(book, browser, int(found[1]))
        time.sleep(seconds)
        after = _reading(book, browser, int(found[1]))
        lab.end_kernels(set())
    took = after["at"] - before["at"]

    lags = after["lag"][before["frames"] - after["frames"] :]
    rates = {name: (after[name] - before[name]) / took for name in before if name not in {"lag", "at"}}
    return {**rates, "lags": lags}


def _row(found: dict[str, Any], shown: str) -> str:
    percentiles = quantiles(found["lags"], n=100)
    page = 100 * found["renderer"]
    lag = f"{percentiles[49]:.1f} / {percentiles[98]:.0f} ms"
    cpu = f"{100 * found['kernel']:.0f} % | {page:.0f} % | {page + 100 * found['GPU']:.0f} %"
    return f"| {found['ticks']:,.0f} | {shown} | {found['drawn']:.1f} | {lag} | {cpu} |"


def _reading(book: Book, browser: Browser, kernel: int) -> dict[str, Any]:
    """Read all counters, with CPU in seconds."""
    # The view updates its totals only now and then, so wait for a fresh value.
    shown = "document.querySelector('.finx .totals').textContent"
    book.wait(f"old => {shown} !== old", book.page.evaluate(f"() => {shown}"))
    sums = str(book.page.evaluate(f"() => {shown}"))
    counted = re.match(r"([\d,]+) ticks", sums)
    assert counted is not None, sums
    session = browser.new_browser_cdp_session()
    spent = {"renderer": 0.0, "GPU": 0.0}
    for process in session.send("SystemInfo.getProcessInfo")["processInfo"]:
        if process["type"] in spent:
            spent[process["type"]] += process["cpuTime"]
    session.detach()
    return {**book.meter(), **spent, "kernel": _cpu(kernel), "at": time.monotonic(), "ticks": _whole(counted[1])}


def _whole(text: str) -> int:
    return int(text.replace(",", ""))


def _cpu(process: int) -> float:
    # After the name in parentheses, fields 12 and 13 are the clock ticks in user and system mode.
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
