"""Function calls over one WebSocket, compared with one HTTP request per call to the same handler.

Each client makes one call at a time and decodes the ticks of the answer. `FunctionClient` requests the next page of a
long history before it decodes the current one. The server is one process with one thread. It runs the local server's
handler behind a WebSocket server (websockets) and an HTTP server (aiohttp). Clients that use requests decode ticks with
the decoder of this package, or without any checks, as a short script would.
"""

from __future__ import annotations

import json
import select
from functools import partial

from harness import Figures, Options, Watch, client, disturbed, median, rate, rounds, spread, table, wait_for

TITLE = "Function calls over a WebSocket and over HTTP"
CLIENT, SESSION, REQUESTS = "FunctionClient", "requests, a Session", "requests, a connection per call"
UNCHECKED = "requests, a Session, no checks"
KEY, PAIR = "bench-key", "BTC:USDC"
FIRST, DAY, TIME = "2022-07-02T00:00:00.05", "2022-07-02", "01:00:00.000"
#: The functions, and how many ticks each returns.
HISTORY = "tick_history"
_FUNCTIONS = {"tickSnap": 1, "tickHistory": 1_000, HISTORY: 20_000}
#: The end of `HISTORY`, which takes 21 calls.
END = "01:33:20.000"
_TICKS = 100_000


def benchmark(options: Options) -> str:
    """Run each client with each function."""
    names = options.chosen((CLIENT, SESSION, UNCHECKED, REQUESTS), always=(CLIENT,))
    jobs = {
        f"{name}, {function}": partial(_run, name, function, options.seconds)
        for function in _FUNCTIONS
        for name in names
    }
    results = rounds(jobs, options.rounds)
    rows = []
    for function, size in _FUNCTIONS.items():
        best = median(results[f"{CLIENT}, {function}"], rate)
        for name in names:
            runs = results[f"{name}, {function}"]
            calls = median(runs, rate)
            cost = median(runs, lambda figures: figures["cpu"] / figures["count"] * 1e6)
            times, ticks = f"{best / calls:.1f}", f"{size:,}"
            rows.append((function, ticks, name, f"{calls:,.1f}", spread(runs, rate), f"{cost:,.0f}", times))
    heads = (
        "function",
        "ticks",
        "client",
        "per second",
        "slowest to fastest round",
        "client CPU us each",
        "FunctionClient is x",
    )
    return f"{table(heads, rows)}\n\n{disturbed(results)}"


def _run(contender: str, function: str, seconds: float) -> Figures:
    with client("functions_server.py", count=_TICKS) as server:
        assert server.stdout is not None
        if not select.select([server.stdout], [], [], 20.0)[0]:
            raise RuntimeError("the server of functions printed no ports within 20 s")
        http, websocket = json.loads(server.stdout.readline())
        job = {"contender": contender, "function": function, "http": http, "websocket": websocket, "seconds": seconds}
        with client("functions_client.py", **job) as process:
            watch = Watch(server.pid, process.pid)
            figures = wait_for(process, contender, 60.0)
            figures["disturbed"] = watch.disturbance()
    if figures["ticks"] != _FUNCTIONS[function]:
        raise RuntimeError(f"{contender}: {figures['ticks']} ticks in an answer")
    return figures
