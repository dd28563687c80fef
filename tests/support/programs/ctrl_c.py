"""Scripts that run until Ctrl-C."""

from __future__ import annotations

import signal
import time

from tests.support.programs.common import make, run


def join() -> None:
    listener = make()
    listener.start()
    listener.join()


def start_and_join() -> None:
    make().start().join()


def inline() -> None:
    make(dispatch="inline").start().join()


def loop() -> None:
    for _ in make():
        pass


def loop_in_with() -> None:
    with make() as listener:
        for _ in listener:
            pass


def join_in_with() -> None:
    with make() as listener:
        listener.join()


def sleep_in_with() -> None:
    with make():
        time.sleep(60)


def signal_handler() -> None:
    """Ctrl-C stops the listener, and the script continues after the loop."""
    listener = make()
    signal.signal(signal.SIGINT, lambda *_: listener.stop())
    for _ in listener:
        pass
    print("ended", listener.join(), flush=True)


if __name__ == "__main__":
    run(globals())
