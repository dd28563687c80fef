"""Reconnects after an outage: the server closes 1,000 connections at once and refuses new ones for a while.

During a second outage, the listener is stopped. A histogram shows the attempts of the first one over time.
"""

from __future__ import annotations

import time

import ticks
from harness import Figures, Options, client, note, serving, table, wait_for

TITLE = "1,000 reconnects at once"
MODES = ("thread", "inline")
#: Seconds for which the server refuses connections.
OUTAGE = 2.0
#: Seconds from a handshake request to its response.
_HANDSHAKE = 0.02
#: Seconds from the start of the second outage to `stop()`.
_STOP_AFTER = 1.0
_STOP_TIMEOUT = 5.0
_BIN = 0.25
_WIDTH = 60


def benchmark(options: Options) -> str:
    """Run once for each dispatch mode. The histogram shows the first one."""
    runs = {mode: _run(mode) for mode in MODES}
    heads = ("dispatch", "all back after", "attempts", "refused", "most at once", "stop() in an outage", "threads left")
    rows = [_row(mode, figures) for mode, figures in runs.items()]
    text = (
        f"The server was down for {OUTAGE:g} s. Each handshake took {_HANDSHAKE * 1e3:g} ms. "
        f"stop() had a timeout of {_STOP_TIMEOUT:g} s; the last column counts the listener's threads after it."
    )
    drawn = _histogram(runs[MODES[0]])
    return f"{table(heads, rows)}\n\n{text}\n\nAttempts over time (x refused, # accepted):\n\n```text\n{drawn}\n```"


def _run(mode: str) -> Figures:
    pairs = ticks.MOST_PAIRS
    with serving(mode="quiet", clients=pairs, handshake=_HANDSHAKE) as server:
        job = {"port": server.port, "pairs": pairs, "dispatch": mode, "timeout": _STOP_TIMEOUT}
        with client("outage_client.py", **job) as process:
            note(f"{mode}: connecting")
            server.wait_open(60.0)
            note(f"{mode}: outage")
            server.drop(OUTAGE)
            server.wait_open(120.0)
            server.drop(OUTAGE)
            time.sleep(_STOP_AFTER)
            figures = wait_for(process, f"stop of {mode}", 60.0)
        seen = server.finish()
    first, second = seen["drops"]
    attempts = [(done - first, status) for _, done, status in seen["attempts"] if first <= done < second]
    return {**figures, "attempts": attempts, "most_at_once": seen["most_at_once"]}


def _row(mode: str, figures: Figures) -> tuple[object, ...]:
    attempts = figures["attempts"]
    refused = sum(status != 101 for _, status in attempts)
    back = max(at for at, status in attempts if status == 101)
    stopped = f"{figures['stop_seconds'] * 1e3:.0f} ms, {'ended' if figures['stopped'] else 'NOT ENDED'}"
    return mode, f"{back:.2f} s", len(attempts), refused, figures["most_at_once"], stopped, figures["threads_left"]


def _histogram(figures: Figures) -> str:
    bins: dict[int, list[int]] = {}
    for at, status in figures["attempts"]:
        bins.setdefault(int(at / _BIN), [0, 0])[status == 101] += 1
    most = max(map(sum, bins.values()))
    lines = []
    for number in range(max(bins) + 1):
        refused, accepted = bins.get(number, [0, 0])
        bar = "x" * round(refused * _WIDTH / most) + "#" * round(accepted * _WIDTH / most)
        lines.append(f"{number * _BIN:6.2f} s {refused + accepted:5} {bar}")
    return "\n".join(lines)
