"""The local server stores what it streams: what that costs, and how soon a call is answered meanwhile.

Each run is a server in a process of its own, and one client that reads its stream and looks at none of it.
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

from harness import Figures, Options, Watch, client, disturbed, ended, median, rounds, spread, table
from ticks import DISTINCT, pair, price

TITLE = "The local server: ticks stored beside the stream"

#: What is asked of the paced server, in ticks a second.
RATE = 50_000
_STORES = ("none", "memory", "file")
_PAIRS = 100
_PATIENCE = 60.0


def benchmark(options: Options) -> str:
    """Streams as fast as they are taken, streams at a set rate, and the store alone."""
    count = int(RATE * max(2.0, options.seconds))
    names = options.chosen(
        [f"{what}, store: {where}" for what in ("as fast as taken", f"{RATE:,}/s") for where in _STORES]
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
        f"{table(heads, rows)}\n\n{count:,} ticks of {_PAIRS} pairs a run, one client on one pair in ten. "
        f"Calls are tick histories of 1,000 ticks, one after another, made while the market plays. {disturbed(results)}"
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
                figures = ended(process, name, _PATIENCE)
                return {**figures, "disturbed": watch.disturbance()}

    return run


# Within the server's process.


class Market:
    """So many ticks of a hundred pairs in turn, made beforehand; one pair in ten is the one that is listened to."""

    def __init__(self, count: int, rate: float | None) -> None:
        self._count, self._rate = count, rate
        names = [pair(number) for number in range(_PAIRS)]
        self.pairs = frozenset(names)
        self.wait_for = 1
        self.paced = rate is not None
        self._kinds = [
            {"pair": names[0 if number % 10 == 0 else number % _PAIRS], "exchange": "BINANCE", "price": price(number)}
            for number in range(DISTINCT)
        ]

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Any]]:
        """All at one pace. The time moves on by a millisecond every 50 ticks."""
        step = 1 / self._rate if self._rate is not None else 0.0
        for number in range(self._count):
            yield number * step, self.tick(number)

    def tick(self, number: int) -> dict[str, str]:
        """The tick of this number."""
        seconds, milliseconds = divmod(number // 50, 1_000)
        time_of_day = f"15:{seconds // 60:02}:{seconds % 60:02}.{milliseconds:03}Z"
        return {**self._kinds[number % DISTINCT], "date": "2022-07-02", "time": time_of_day}


def main(job: Mapping[str, Any]) -> None:
    """Play it, or store it; print what was measured."""
    market = Market(job["count"], job["rate"])
    figures = _stored_alone(market, job) if job["alone"] else _played(market, job)
    print(json.dumps({"count": job["count"], "cpu": time.process_time(), **figures}))


def _stored_alone(market: Market, job: Mapping[str, Any]) -> Figures:
    from finx_streamer.server.store import TickStore, fields_of

    store = TickStore(job["path"], job["limit"])
    rows = [fields_of(market.tick(number)) for number in range(job["count"])]
    with store.opened():
        began = time.perf_counter()
        for first in range(0, len(rows), 4_096):
            store.write(rows[first : first + 4_096])
        seconds = time.perf_counter() - began
    store.close()
    return {"seconds": seconds, "stored": store.count, "call_median": None, "call_worst": None}


def _played(market: Market, job: Mapping[str, Any]) -> Figures:
    from finx_streamer.server import LocalServer

    # An unread queue of a client must not be what is measured.
    with LocalServer(market, store=job["path"], store_limit=job["limit"], queue_bytes=1 << 28) as server:
        calls = job["rate"] is not None and job["limit"]
        with client("ingest.py", call=server.url) if calls else contextlib.nullcontext() as caller:
            if caller is not None and caller.stdout is not None:
                caller.stdout.readline()
            child = os.fork()
            if not child:
                _drain(server.host, server.port)
            server.wait_until(lambda stats: stats.started, _PATIENCE)
            began = time.perf_counter()
            server.wait_finished(_PATIENCE)
            seconds = time.perf_counter() - began
            stored = job["count"] if job["limit"] else 0
            server.wait_until(lambda stats: stats.ticks_stored == stored, _PATIENCE)
            taken = {}
            if caller is not None and caller.stdin is not None:
                # A word, since the other child keeps the pipe open.
                caller.stdin.write("\n")
                taken = ended(caller, "the caller", _PATIENCE)
    os.waitpid(child, 0)
    return {"call_median": None, "call_worst": None, "seconds": seconds, "stored": stored, **taken}


def _drain(host: str, port: int) -> None:
    """A child process: a client that takes everything."""
    with socket.create_connection((host, port)) as peer:
        peer.sendall(
            f"GET /streaming/k/{pair(0)} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while peer.recv(262_144):
            pass
    os._exit(0)


def _call(url: str) -> None:
    """A further process: makes calls until it is told to end, and prints how long they took, in milliseconds."""
    from websockets.sync.client import connect

    taken = []
    request = {"APIKey": "k", "functionName": "tickHistory", "pair": pair(0), "date": "2022-07-02", "time": "15:00"}
    with connect(f"{url}streamer/k", proxy=None, compression=None) as peer:
        print(flush=True)
        # Some 50 a second: it is the delay that is asked for, not how many can be had.
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            began = time.perf_counter()
            peer.send(json.dumps(request))
            size = len(peer.recv())
            # At the beginning there are no 1,000 ticks yet.
            if size > 90_000:
                taken.append((time.perf_counter() - began) * 1e3)
    print(json.dumps({"call_median": statistics.median(taken), "call_worst": max(taken)}))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    if "call" in told:
        _call(told["call"])
    else:
        main(told)
