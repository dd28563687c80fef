"""`finx-streamer replay`: what `listen` shows, from an archive."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ..archive import ReplayListener
from ..base_listener import BaseListener
from ..errors import ConfigurationError, FinxStreamerError
from .history import parse_time
from .listening import ListenRun, View


def open_replay(
    path: Path, symbols: list[str], start: str | None, end: str | None, speed: float | None, max_pause: float | None
) -> ReplayListener:
    """Return the listener. Raises `ConfigurationError`."""
    now = datetime.now(UTC)
    since = None if start is None else parse_time("--start", start, now)
    until = None if end is None else parse_time("--end", end, now)
    if since is not None and until is not None and until < since:
        raise ConfigurationError(f"--end {until.isoformat()} is before --start {since.isoformat()}")
    return ReplayListener(
        path,
        *symbols,
        start=since,
        end=until,
        speed=speed,
        max_pause=max_pause,
        parse_price=str,
    )


class ReplayRun(ListenRun):
    """One replay in a view. Errors that were recorded don't end it, and don't change the exit code."""

    _needs_a_server = False

    def __init__(self, view: View, limit: int | None, greeks: bool) -> None:
        super().__init__(view, limit, None, "update" if greeks else "tick")
        self._greeks = greeks

    def _watch_values(self, listener: BaseListener) -> None:
        # Without symbols, all pairs are shown: a table or a CSV file has either ticks or Greeks.
        if self._greeks:
            listener.on_greeks(lambda greeks: self._on_value(self._view.on_greeks, greeks))
        else:
            listener.on_tick(lambda tick: self._on_value(self._view.on_tick, tick))

    def _is_fatal(self, error: FinxStreamerError) -> bool:
        return False
