"""A script that is suspended for longer than all its timeouts."""

from __future__ import annotations

import signal
import time

from finx_streamer import FinxStreamerError, Tick
from tests.support.programs.common import flows, make, run


def suspended() -> None:
    """Print READY. After SIGUSR1, wait for 100 more ticks and print the numbers of errors and reconnects."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    ticks: list[Tick] = []
    errors: list[FinxStreamerError] = []
    listener = make(on_error=errors.append, ping_interval=0.2, ping_timeout=0.2, connect_timeout=5.0)
    listener.on_tick(ticks.append)
    listener.start()
    flows.wait()
    print("READY", flush=True)
    signal.sigwait([signal.SIGUSR1])
    count = len(ticks)
    while len(ticks) < count + 100:
        time.sleep(0.01)
    print(len(errors), listener.stats.reconnects, flush=True)
    listener.stop()


if __name__ == "__main__":
    run(globals())
