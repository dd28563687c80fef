"""A long gap: how fast a listener fills it from history, from the reconnect to the report of the gap.

The local server runs in a process of its own. It doesn't number its ticks, as FinX doesn't, so that history is needed.
"""

from __future__ import annotations

import select
from functools import partial

from harness import Figures, Options, Watch, client, disturbed, median, rounds, spread, table, wait_for

TITLE = "A gap of many ticks, filled from history"
MODES = ("thread", "inline")
KEY, TICKS = "bench-key", 1_000_000


def benchmark(options: Options) -> str:
    """Run each dispatch mode."""
    results = rounds({mode: partial(_run, mode) for mode in options.chosen(MODES)}, options.rounds)
    rows = []
    for mode, runs in results.items():
        cost = median(runs, lambda figures: figures["cpu"] / figures["ticks"] * 1e6)
        rows.append((mode, f"{TICKS:,}", f"{median(runs, _rate):,.0f}", spread(runs, _rate), f"{cost:.2f}"))
    heads = ("dispatch", "ticks", "ticks/s", "slowest to fastest round", "client CPU us/tick")
    return f"{table(heads, rows)}\n\n{disturbed(results)}"


def _rate(figures: Figures) -> float:
    return float(figures["ticks"] / figures["seconds"])


def _run(mode: str) -> Figures:
    with client("gap_server.py", count=TICKS) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        if not select.select([server.stdout], [], [], 120.0)[0]:
            raise RuntimeError("the server of the gap printed no URL within 120 s")
        url = server.stdout.readline().strip()
        with client("gap_fill_client.py", url=url, dispatch=mode) as process:
            watch = Watch(server.pid, process.pid)
            figures = wait_for(process, mode, 120.0)
            figures["disturbed"] = watch.disturbance()
    if figures["ticks"] != TICKS or figures["errors"]:
        raise RuntimeError(f"{mode}: {figures['ticks']:,} ticks were filled: {figures['errors']}")
    return figures
