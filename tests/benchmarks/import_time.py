"""What `import finx_streamer` costs on top of what it must import: websocket-client and attrs.

`make import-time`. Both imports run in fresh processes, in turn; the medians and their difference are shown.
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
    taken: dict[str, list[float]] = {BASE: [], OURS: []}
    for _ in range(runs):
        for statement, times in taken.items():
            times.append(_milliseconds(statement))
    for statement, times in taken.items():
        print(f"{median(times):7.1f} ms  {statement}  ({min(times):.1f} to {max(times):.1f}, {runs} runs)")
    print(f"{median(taken[OURS]) - median(taken[BASE]):7.1f} ms  added by finx_streamer")


def _milliseconds(statement: str) -> float:
    program = f"import time; start = time.perf_counter(); {statement}; print((time.perf_counter() - start) * 1e3)"
    # -P: the current directory is not searched, so that the installed package is what is imported.
    command = [sys.executable, "-P", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return float(ended.stdout)


if __name__ == "__main__":
    main()
