"""Scripts that end while a listener runs."""

from __future__ import annotations

import signal
import sys
import threading
import time

from finx_streamer import StreamListener, Tick
from tests.support.programs.common import NOWHERE, announce, flows, make, run

#: Keeps listeners alive until the interpreter exits.
kept: list[StreamListener] = []


def running() -> None:
    kept.append(make().start())
    flows.wait()


def inline() -> None:
    kept.append(make(dispatch="inline").start())
    flows.wait()


def not_kept() -> None:
    make().start()
    flows.wait()


def stopped() -> None:
    listener = make().start()
    flows.wait()
    listener.stop()


def left_loop() -> None:
    for _ in make():
        break


def stop_in_callback() -> None:
    listener = make()
    listener.on_tick(lambda tick: listener.stop())
    listener.start()
    listener.join()


def sys_exit() -> None:
    kept.append(make().start())
    flows.wait()
    sys.exit(7)


def sys_exit_in_with() -> None:
    with make():
        flows.wait()
        sys.exit(0)


def exception() -> None:
    kept.append(make().start())
    flows.wait()
    raise ZeroDivisionError


def full_queue() -> None:
    def slow(tick: Tick) -> None:
        announce(tick)
        time.sleep(0.05)

    kept.append(make(queue_size=1, on_tick=slow).start())
    flows.wait()


def stuck_callback() -> None:
    def stick(tick: Tick) -> None:
        announce(tick)
        time.sleep(60)

    kept.append(make(on_tick=stick).start())
    flows.wait()


def stuck_inline_callback() -> None:
    def stick(tick: Tick) -> None:
        announce(tick)
        time.sleep(60)

    kept.append(make(on_tick=stick, dispatch="inline").start())
    flows.wait()


def backoff() -> None:
    kept.append(make().start())
    flows.wait()
    kept.append(make(endpoint=NOWHERE, on_error=lambda error: None).start())


def loop_in_thread() -> None:
    listener = make()
    threading.Thread(target=lambda: list(listener), daemon=True).start()
    flows.wait()


def gap() -> None:
    """Print GAP while history doesn't answer, and end at SIGUSR1. The argument after the URL is the dispatch."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    states: list[str] = []
    listener = make(
        dispatch=sys.argv[3],
        on_state=lambda symbol, state: states.append(state.value),
        on_error=lambda error: None,
    )
    kept.append(listener.start())
    flows.wait()
    while states.count("streaming") < 2:
        time.sleep(0.01)
    print("GAP", flush=True)
    signal.sigwait([signal.SIGUSR1])


if __name__ == "__main__":
    run(globals())
