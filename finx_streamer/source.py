"""What a run needs of the source of its ticks, which is `Streams` or an archive, and of its recorder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Protocol

from .config.symbols import Symbol
from .connection.loop import EventLoop
from .streaming.catch_up import Past
from .streaming.counters import ConnectionCounters, Counters
from .streaming.tap import Recorder
from .values import Greeks, State


class RunStream(Protocol):
    """What a run needs of a stream."""

    symbol: str
    counters: Counters
    state: State
    newest: dict[str, Greeks]

    @property
    def connection(self) -> RunConnection:
        """What it shares with other streams."""

    @property
    def history_until(self) -> datetime | None:
        """Up to when history was delivered, until live ticks follow."""


class RunConnection(Protocol):
    """What a run needs of a connection."""

    counters: ConnectionCounters

    @property
    def reconnects(self) -> int:
        """How often it was re-established."""


class Source(Protocol):
    """Where the ticks of a run come from: `Streams`, or an archive."""

    loop: EventLoop

    @property
    def alive(self) -> bool:
        """Whether a thread runs and isn't the calling one."""

    def start(self) -> None:
        """Start the threads."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for the threads."""

    def stop(self) -> None:
        """End, after what has been read was delivered."""

    def add(self, symbol: Symbol, past: Past | None = None) -> RunStream:
        """Deliver what a symbol gets."""

    def remove(self, symbol: str) -> None:
        """Deliver no more of it."""

    def resume_reading(self) -> None:
        """There is room again."""


class RunRecorder(Recorder, Protocol):
    """What a run needs of `archive.recorder.Recorder`."""

    def pasts(self, pairs: Iterable[str], parse_price: Callable[[str], Any]) -> dict[str, Past]:
        """Return where the recording of each pair ends, if it was recorded before."""

    def start(self, symbols: Iterable[str]) -> None:
        """Take note that the listener starts."""

    def stop(self) -> None:
        """Take note that the streams have ended."""

    def close(self, timeout: float) -> None:
        """Write what waits, and release the directory."""

    def state(self) -> Any:
        """How recording keeps up: an `archive.reporting.WriterState`."""
