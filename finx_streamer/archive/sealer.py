"""Seal finished hours, one after the other, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable

from ..connection.wakeup import Wakeup
from .layout import Layout
from .reporting import Reports

_COMMAND = f"import sys; from {__package__}.sealing import main; main(*sys.argv[1:])"
#: The pause after an hour that can't be sealed, in seconds. The next finished hour ends it.
_RETRY = 300.0
#: How much the processes yield to others.
NICENESS = 10


class Sealer:
    """The thread that starts the processes. What it doesn't finish, the next writer seals."""

    def __init__(self, layout: Layout, reports: Reports, on_sealed: Callable[[int], object]) -> None:
        self._layout = layout
        self._reports = reports
        self._on_sealed = on_sealed
        self._hours: deque[int] = deque()
        self._failed: set[int] = set()
        self._closed = False
        self._wakeup = Wakeup()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="finx-archive-seal", daemon=True)
        self._thread.start()

    def put(self, hour: int) -> None:
        """Seal an hour soon."""
        self._hours.append(hour)
        self._wakeup.wake()

    def close(self) -> None:
        """Stop. Doesn't wait for a process that hangs."""
        self._closed = True
        self._wakeup.wake()
        if (process := self._process) is not None:
            process.terminate()
        self._thread.join(0.5)

    def _run(self) -> None:
        while not self._closed:
            if not self._hours:
                self._wakeup.wait()
                continue
            hour = self._hours.popleft()
            problem = self._seal(hour)
            if problem is None:
                self._on_sealed(hour)
            elif not self._closed:
                if hour not in self._failed:
                    self._failed.add(hour)
                    self._reports.put(f"can't seal {self._layout.journal(hour).name}, trying again later: {problem}")
                self._hours.append(hour)
                self._wakeup.wait(_RETRY)

    def _seal(self, hour: int) -> str | None:
        """Return what went wrong."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(self._layout.root.absolute()), str(hour), str(NICENESS)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            return str(error)
        if self._closed:
            self._process.terminate()
        _, errors = self._process.communicate()
        code, self._process = self._process.returncode, None
        return (errors.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {code}") if code else None
