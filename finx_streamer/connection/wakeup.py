"""Wake a sleeping thread."""

from __future__ import annotations

import threading


class Wakeup:
    """Wakes one sleeping thread. A wake-up before the sleep isn't lost: the sleep ends at once.

    `threading.Event` creates a lock for each wait, and takes ten times as long.
    """

    def __init__(self) -> None:
        #: Released by `wake`.
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> None:
        """End the current wait, or the next one. From any thread, and from signal handlers."""
        if self._asleep.locked():
            try:  # noqa: SIM105 (on the hot path)
                self._asleep.release()
            except RuntimeError:
                pass  # another thread released it at the same moment

    def wait(self, timeout: float | None = None) -> None:
        """Wait for `wake`, at most `timeout` seconds."""
        self._asleep.acquire(timeout=-1 if timeout is None else timeout)
