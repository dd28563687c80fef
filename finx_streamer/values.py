"""values"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

import attrs

from .errors import (
    FinxStreamerError,
)

if TYPE_CHECKING:
    pass


class Tick(TypedDict):
    """One trade. A plain dict; `pair`, `date`, `time` and `exchange` are the wire's own text.

    `price` is what `parse_price` made of the wire's decimal string (float by default); `timestamp` is `date` and
    `time` as an aware datetime in UTC, cut to microseconds; `received_ns` is `time.time_ns()` when the bytes were
    read; `backfilled` says whether the tick was fetched from history. Source: S for the first five fields.
    """

    pair: str
    date: str
    time: str
    exchange: str
    price: Any
    timestamp: datetime
    received_ns: int
    backfilled: bool


@attrs.frozen
class Notice:
    """A message that is no tick and reports no error, e.g. `{"keepAlive": true}`. Source: O.

    `symbol`: of the stream that it came on. `message`: the decoded JSON object. `received_ns`: `time.time_ns()` when
    its bytes were read.
    """

    symbol: str
    message: dict[str, Any]
    received_ns: int


@attrs.frozen
class Event:
    """What travels beside the ticks: an error, a notice, a gap, or a change of state (`symbol` names whose)."""

    payload: FinxStreamerError | Notice | Gap | State
    symbol: str | None = None


NO_BOUND = 1 << 30


class State(enum.Enum):
    """Where a stream, or a whole listener, is. STOPPED and FAILED are ends."""

    IDLE = "idle"
    CONNECTING = "connecting"
    STREAMING = "streaming"
    RECONNECTING = "reconnecting"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether it is an end: STOPPED or FAILED."""
        return self in (State.STOPPED, State.FAILED)


@attrs.frozen
class Gap:
    """The connection of a stream was lost, and ticks may have passed meanwhile.

    `since` is the time of the last tick before the gap and `until` that of the first one after it (aware, UTC; the
    ticks' own times). Where no tick has come since, `until` is the time of the last one that history knows. `ticks` is
    how many were fetched from history and delivered. `filled` says whether these are all that had been missed.
    """

    symbol: str
    since: datetime
    until: datetime
    filled: bool
    ticks: int
