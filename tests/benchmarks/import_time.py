"""Measure how long `import finx_streamer` takes on top of its dependencies, websocket-client and attrs.

Run it with `make import-time`. Both imports run alternately, each in a fresh process. It prints medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from statistics import median

BASE = "import websocket, attrs"
OURS = f"{BASE}, finx_streamer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=21, help="[%(default)s]")
    runs = parser.parse_args().runs
    _milliseconds(OURS)  # the first import compiles
    times: dict[str, list[float]] = {BASE: [], OURS: []}
    for _ in range(runs):
        for statement, measured in times.items():
            measured.append(_milliseconds(statement))
    for statement, measured in times.items():
        print(f"{median(measured):7.1f} ms  {statement}  ({min(measured):.1f} to {max(measured):.1f}, {runs} runs)")
    print(f"{median(times[OURS]) - median(times[BASE]):7.1f} ms  added by finx_streamer")


def _milliseconds(statement: str) -> float:
    program = f"import time; start = time.perf_counter(); {statement}; print((time.perf_counter() - start) * 1e3)"
    # -P: import the installed package, not the one in the current directory.
    command = [sys.executable, "-P", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return float(ended.stdout)


if __name__ == "__main__":
    main()
