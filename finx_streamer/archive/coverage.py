"""What an archive has of a pair, and what it lacks: intervals computed from the ledger."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import attrs

from ..values import State
from .journal import Entry
from .layout import HOUR_NS, time_of

#: Hours later than that don't fit into nanoseconds since 1970.
_LAST_HOUR = (1 << 63) // HOUR_NS
#: States in which a stream that was open still is.
_NEUTRAL = (State.IDLE, State.CONNECTING)


@attrs.frozen
class Coverage:
    """A part of the time of a pair.

    Attributes:
        start (datetime): Its start, in UTC.
        end (datetime): Its end.
        complete (bool): Whether the archive has every tick that was sent.
        why (str): "live", "filled", or why ticks are missing.
    """

    start: datetime
    end: datetime
    complete: bool
    why: str


def paint(parts: list[Coverage], new: Coverage) -> list[Coverage]:
    """Replace a part of the time, in place. The parts are in order and don't overlap."""
    if new.start >= new.end:
        return parts
    # Most strokes are at the end.
    first = bisect_left(parts, new.start, key=lambda part: part.end)
    kept = []
    for part in parts[first:]:
        if part.start < new.start:
            kept.append(attrs.evolve(part, end=min(part.end, new.start)))
        if part.end > new.end:
            kept.append(attrs.evolve(part, start=max(part.start, new.end)))
    merged: list[Coverage] = []
    for part in sorted([*kept, new], key=lambda part: part.start):
        last = merged[-1] if merged else None
        if last and last.end == part.start and (last.complete, last.why) == (part.complete, part.why):
            merged[-1] = attrs.evolve(last, end=part.end)
        else:
            merged.append(part)
    parts[first:] = merged
    return parts


class _Pair:
    """Follows the ledger of one pair."""

    def __init__(self) -> None:
        self.parts: list[Coverage] = []
        self._connected = False
        #: Since when ticks are complete, as far as that isn't painted. None: they aren't.
        self._live: datetime | None = None
        #: The last time without a connection, until a gap explains it.
        self._hole: tuple[datetime, datetime] | None = None
        #: Since when ticks aren't complete, and why.
        self._closed: datetime | None = None
        self._why = ""
        #: Whether a gap is being filled.
        self._is_filling = False

    def begin(self, at: datetime) -> None:
        """The stream is connected: ticks are complete from here on, unless a gap is being filled."""
        if self._connected:
            return
        self._connected = True
        if self._closed is not None:
            self._hole = min(self._closed, self._hole[0]) if self._hole else self._closed, at
            self._paint(self._closed, at, False, self._why)
        if not self._is_filling:
            self._live = at

    def missing(self, at: datetime, since: datetime) -> None:
        """Ticks from a time on are missing. Later ones are held until a gap says what became of them."""
        if self._live is not None:
            self._paint(self._live, at, True, "live")
        self._closed = min(filter(None, (since, self._live, self._hole and self._hole[0])))
        self._live, self._is_filling, self._why = None, True, "the gap isn't filled yet"
        if self.parts:
            # Ticks have the time of the service. A recorder whose clock was ahead has claimed later times.
            self._paint(self._closed, self.parts[-1].end, False, self._why)

    def end(self, at: datetime, why: str) -> None:
        """The stream isn't connected any more."""
        if self._live is not None:
            self._paint(self._live, at, True, "live")
            self._closed, self._why, self._live = max(at, self._live), why, None
        self._connected = False

    def finish(self, at: datetime) -> None:
        """The ledger ends here."""
        self.end(at, "")
        if self._is_filling and self._closed is not None:
            self._paint(self._closed, at, False, self._why)

    def set_clock(self, since: datetime, until: datetime) -> None:
        """The recorder's clock was set. Only what both clocks agree on is known to be complete."""
        live = self._connected
        self.end(since, "the clock was set forward")
        self._paint(until, since, False, "the clock was set back")
        if live:
            self.begin(until)

    def gap(self, at: datetime, since: datetime, until: datetime, filled: bool, why: str, whole: bool) -> None:
        """A gap was filled or not. `whole`: it explains the time without a connection."""
        if whole and self._hole is not None:
            since, until = min(since, self._hole[0]), max(until, self._hole[1])
            self._hole = None
            self._closed = self._closed and max(self._closed, until)
        if whole and self._is_filling:
            self._is_filling = False
            if self._connected:
                self._live = until
        if self._live is not None:
            self._paint(self._live, at, True, "live")
            self._live = max(self._live, at, until)
        self._paint(since, until, filled, why)

    def _paint(self, start: datetime, end: datetime, complete: bool, why: str) -> None:
        self.parts = paint(self.parts, Coverage(start, end, complete, why))


def coverage(ledger: Iterable[Entry], pair: str, last: datetime | None) -> list[Coverage]:
    """Return the intervals of a pair.

    Args:
        ledger (Iterable[Entry]): The events, in recorded order.
        pair (str): The pair.
        last (datetime | None): When the last entry was received.
    """
    found = _Pair()
    for entry in ledger:
        if entry.symbol is not None and entry.symbol != pair:
            continue
        at, fields = time_of(entry.at), entry.fields
        if entry.kind == "open":
            previous = fields.get("last_ns")
            last_at = time_of(previous) if isinstance(previous, int) and 0 <= previous < 1 << 63 else at
            found.end(last_at, "not recorded: the recorder was killed")
            if last_at > at:
                found.set_clock(last_at, at)
        elif entry.kind == "clock" and (times := _interval(fields)) is not None:
            found.set_clock(*times)
        elif entry.kind in ("close", "stop"):
            found.end(at, "not recorded")
        elif entry.kind == "state" and entry.symbol is not None:
            state = fields.get("state")
            if state == State.STREAMING:
                found.begin(at)
            elif state not in _NEUTRAL:
                found.end(at, f"not connected: {state}")
        elif entry.kind == "missing" and (since := _time(fields.get("since"))) is not None:
            found.missing(at, since)
        elif entry.kind == "gap" and (times := _interval(fields)) is not None:
            filled = bool(fields.get("filled"))
            why = str(fields.get("why") or ("filled" if filled else "the gap wasn't filled"))
            if only := fields.get("only"):
                filled, why = False, f"filled with ticks of {', '.join(only)} only"
            found.gap(at, *times, filled, why, whole=entry.symbol is not None)
    if last is not None:
        found.finish(last)
    return found.parts


def _interval(fields: dict[str, Any]) -> tuple[datetime, datetime] | None:
    since, until = _time(fields.get("since")), _time(fields.get("until"))
    return None if since is None or until is None else (since, until)


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


@attrs.define
class Ledger:
    """The events that `coverage` reads, in recorded order.

    Attributes:
        entries (list[Entry]): The events. A file that is missing becomes a gap.
        missing (list[int]): The hours whose files are missing.
    """

    entries: list[Entry] = attrs.field(factory=list)
    missing: list[int] = attrs.field(factory=list)
    _hours: set[int] = attrs.field(factory=set)
    _last_ns: int | None = None

    def add(self, hours: Iterable[int], entries: Iterable[Entry], last_ns: int | None) -> None:
        """Add the events of the next file."""
        self._hours.update(hours)
        for entry in entries:
            hour = {"hour": entry.fields.get("previous"), "seal": entry.fields.get("hour")}.get(entry.kind)
            if isinstance(hour, int) and 0 <= hour < _LAST_HOUR and hour not in self._hours:
                self.missing.append(hour)
                self._hours.add(hour)
                since = entry.at if self._last_ns is None else min(self._last_ns, entry.at)
                times = {"since": time_of(since).isoformat(), "until": time_of(entry.at).isoformat()}
                fields = {**times, "filled": False, "why": "the file of an hour is missing"}
                self.entries.append(Entry(entry.at, "gap", None, fields, ""))
            self.entries.append(entry)
        self._last_ns = self._last_ns if last_ns is None else last_ns

    def coverage(self, pair: str) -> list[Coverage]:
        """Return the intervals of a pair."""
        return coverage(self.entries, pair, None if self._last_ns is None else time_of(self._last_ns))
