"""The local server while it streams and stores ticks: its throughput, and the latency of function calls.

Each run is a server in its own process, and one client that receives the stream without decoding it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness import Figures, Options, Watch, client, disturbed, median, rounds, spread, table, wait_for
from ticks import DISTINCT, pair, price

TITLE = "The local server: streaming and storing ticks"

#: The rate of the paced market, in ticks per second.
RATE = 50_000
_STORES = ("none", "memory", "file")
_PAIRS = 100
_PATIENCE = 60.0


def benchmark(options: Options) -> str:
    """Stream as fast as possible, stream at a fixed rate, and store without streaming."""
    count = int(RATE * max(2.0, options.seconds))
    names = options.chosen(
        [f"{what}, store: {where}" for what in ("as fast as possible", f"{RATE:,}/s") for where in _STORES]
        + [f"store alone: {where}" for where in _STORES[1:]]
    )
    jobs: dict[str, Callable[[], Figures]] = {name: _job(name, count) for name in names}
    results = rounds(jobs, options.rounds)
    rows = [
        (
            name,
            f"{median(runs, _rate):,.0f}",
            spread(runs, _rate),
            f"{median(runs, 'cpu') / count * 1e6:.1f}",
            f"{median(runs, 'stored'):,.0f}",
            *(f"{median(runs, part):.1f}" if runs[0][part] else "" for part in ("call_median", "call_worst")),
        )
        for name, runs in results.items()
    ]
    heads = ("server", "ticks/s", "slowest to fastest round", "CPU us/tick", "stored", "call ms, median", "worst")
    return (
        f"{table(heads, rows)}\n\n{count:,} ticks of {_PAIRS} pairs per run; one client receives every tenth tick. "
        f"A call returns a tick history of 1,000 ticks; one is made at a time, during the stream. {disturbed(results)}"
    )


def _rate(figures: Figures) -> float:
    return float(figures["count"] / figures["seconds"])


def _job(name: str, count: int) -> Callable[[], Figures]:
    what, _, where = name.partition("store: ") if "alone" not in name else name.partition("alone: ")
    rate = None if what.startswith("as fast") else RATE

    def run() -> Figures:
        with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
            job = {"count": count, "rate": rate, "path": f"{folder}/ticks.db" if where == "file" else None}
            job |= {"limit": 0 if where == "none" else count, "alone": "alone" in name}
            with client("ingest.py", **job) as process:
                watch = Watch(process.pid)
                figures = wait_for(process, name, _PATIENCE)
                return {**figures, "disturbed": watch.disturbance()}

    return run


# In the server's process.


class Market:
    """A market with `count` ticks of a hundred pairs. Every tenth tick is one of the client's pair."""

    def __init__(self, count: int, rate: float | None) -> None:
        self._count, self._rate = count, rate
        names = [pair(number) for number in range(_PAIRS)]
        self.pairs = frozenset(names)
        self.wait_for = 1
        self.paced = rate is not None
        self._templates = [
            {"pair": names[0 if number % 10 == 0 else number % _PAIRS], "exchange": "BINANCE", "price": price(number)}
            for number in range(DISTINCT)
        ]

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        """Yield the ticks at a constant rate."""
        step = 1 / self._rate if self._rate is not None else 0.0
        for number in range(self._count):
            yield number * step, self.tick(number)

    def tick(self, number: int) -> dict[str, str]:
        """Return the tick with this number. Their time advances by 1 ms every 50 ticks."""
        seconds, milliseconds = divmod(number // 50, 1_000)
        time_of_day = f"15:{seconds // 60:02}:{seconds % 60:02}.{milliseconds:03}Z"
        return {**self._templates[number % DISTINCT], "date": "2022-07-02", "time": time_of_day}


def main(job: Mapping[str, Any]) -> None:
    """Stream or store the market and print the figures."""
    market = Market(job["count"], job["rate"])
    figures = _store_only(market, job) if job["alone"] else _play(market, job)
    print(json.dumps({"count": job["count"], "cpu": time.process_time(), **figures}))


def _store_only(market: Market, job: Mapping[str, Any]) -> Figures:
    from finx_streamer.server.store import TickStore, fields_of

    store = TickStore(job["path"], job["limit"])
    rows = [fields_of(market.tick(number)) for number in range(job["count"])]
    with store.opened():
        start = time.perf_counter()
        for first in range(0, len(rows), 4_096):
            store.write(rows[first : first + 4_096])
        seconds = time.perf_counter() - start
    store.close()
    return {"seconds": seconds, "stored": store.count, "call_median": None, "call_worst": None}


def _play(market: Market, job: Mapping[str, Any]) -> Figures:
    from finx_streamer.server import LocalServer

    # Large enough that the client's queue is never the bottleneck.
    with LocalServer(market, store=job["path"], store_limit=job["limit"], queue_bytes=1 << 28) as server:
        calls = job["rate"] is not None and job["limit"]
        with client("ingest.py", call=server.url) if calls else contextlib.nullcontext() as caller:
            if caller is not None and caller.stdout is not None:
                caller.stdout.readline()
            child = os.fork()
            if not child:
                _drain(server.host, server.port)
            server.wait_until(lambda stats: stats.started, _PATIENCE)
            start = time.perf_counter()
            server.wait_finished(_PATIENCE)
            seconds = time.perf_counter() - start
            stored = job["count"] if job["limit"] else 0
            server.wait_until(lambda stats: stats.ticks_stored == stored, _PATIENCE)
            latencies = {}
            if caller is not None and caller.stdin is not None:
                # A line ends the caller. Closing the pipe would not: the other child keeps it open.
                caller.stdin.write("\n")
                latencies = wait_for(caller, "the caller", _PATIENCE)
    os.waitpid(child, 0)
    return {"call_median": None, "call_worst": None, "seconds": seconds, "stored": stored, **latencies}


def _drain(host: str, port: int) -> None:
    """Receive the whole stream without decoding it, in a child process."""
    with socket.create_connection((host, port)) as peer:
        peer.sendall(
            f"GET /streaming/k/{pair(0)} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while peer.recv(262_144):
            pass
    os._exit(0)


def _call(url: str) -> None:
    """Make calls until standard input has a line, in another process. Print their latency in milliseconds."""
    from websockets.sync.client import connect

    latencies = []
    request = {"APIKey": "k", "functionName": "tickHistory", "pair": pair(0), "date": "2022-07-02", "time": "15:00"}
    with connect(f"{url}streamer/k", proxy=None, compression=None) as peer:
        print(flush=True)
        # About 50 per second: this measures latency, not throughput.
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            start = time.perf_counter()
            peer.send(json.dumps(request))
            size = len(peer.recv())
            # At first, fewer than 1,000 ticks are stored.
            if size > 90_000:
                latencies.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"call_median": statistics.median(latencies), "call_worst": max(latencies)}))


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if "call" in job:
        _call(job["call"])
    else:
        main(job)
