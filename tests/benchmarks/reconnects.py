"""An outage: the server closes 1,000 connections at once, refuses new ones for a while, and takes them again.

Then it does so again, and the listener is stopped in the middle. The first outage is drawn over time, as the server
saw it.
"""

from __future__ import annotations

import time

import ticks
from harness import Figures, Options, client, ended, note, serving, table

TITLE = "1,000 reconnects at once"
MODES = ("thread", "inline")
#: Seconds for which the server refuses.
OUTAGE = 2.0
#: Seconds from a request to its answer.
_HANDSHAKE = 0.02
#: How long after the second outage began the listener is stopped.
_STOP_AFTER = 1.0
_STOP_TIMEOUT = 5.0
_BIN = 0.25
_WIDEST = 60


def benchmark(options: Options) -> str:
    """One run for each way to dispatch; the histogram is of the first one."""
    runs = {mode: _run(mode) for mode in MODES}
    heads = ("dispatch", "all back after", "attempts", "refused", "most side by side", "stop() in the middle", "left")
    rows = [_row(mode, figures) for mode, figures in runs.items()]
    text = (
        f"The server was away for {OUTAGE:g} s, and took {_HANDSHAKE * 1e3:g} ms for each answer. "
        f"stop() had a timeout of {_STOP_TIMEOUT:g} s; what is left are threads of the listener after it."
    )
    drawn = _histogram(runs[MODES[0]])
    return f"{table(heads, rows)}\n\n{text}\n\nAttempts over time (x refused, # taken):\n\n```text\n{drawn}\n```"


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
            figures = ended(process, f"stop of {mode}", 60.0)
        seen = server.finish()
    first, second = seen["drops"]
    attempts = [(done - first, status) for _, done, status in seen["attempts"] if first <= done < second]
    return {**figures, "attempts": attempts, "side_by_side": seen["side_by_side"]}


def _row(mode: str, figures: Figures) -> tuple[object, ...]:
    attempts = figures["attempts"]
    refused = sum(status != 101 for _, status in attempts)
    back = max(at for at, status in attempts if status == 101)
    stopped = f"{figures['stop_seconds'] * 1e3:.0f} ms, {'ended' if figures['stopped'] else 'NOT ENDED'}"
    return mode, f"{back:.2f} s", len(attempts), refused, figures["side_by_side"], stopped, figures["threads_left"]


def _histogram(figures: Figures) -> str:
    bins: dict[int, list[int]] = {}
    for at, status in figures["attempts"]:
        bins.setdefault(int(at / _BIN), [0, 0])[status == 101] += 1
    most = max(map(sum, bins.values()))
    lines = []
    for number in range(max(bins) + 1):
        refused, taken = bins.get(number, [0, 0])
        bar = "x" * round(refused * _WIDEST / most) + "#" * round(taken * _WIDEST / most)
        lines.append(f"{number * _BIN:6.2f} s {refused + taken:5} {bar}")
    return "\n".join(lines)
