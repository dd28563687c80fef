"""What is counted: mutable counters inside, frozen snapshots for the user."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs

from ..streaming.counters import Counters
from ..values import State, Tick


@attrs.frozen(kw_only=True)
class StreamStats:
    """A snapshot of one stream.

    `state`: a `State`. `messages`, `bytes`: what was received, in messages and in bytes of the connection. `ticks`:
    handed on to your callbacks; `last_tick`: the last of them, None before the first. `dropped`: by the overflow
    policy. `callback_errors`: how often a callback raised; `decode_errors`: messages that could not be understood.
    `reconnects`: how often the connection was made anew. `gaps`: how often the connection was lost and ticks may have
    passed; `filled_ticks`: of `ticks`, those that history supplied. `held`: what was received and waits while a gap is
    filled. `rate`: live ticks a second over the last 10 s. `lag`: seconds from the last live tick's own time to its
    receipt. `queue_depth`, `queue_peak`: ticks that wait for callbacks, now and at most. `connected_since`: aware
    datetime in UTC, None while there is no connection.
    """

    state: State
    messages: int = 0
    ticks: int = 0
    dropped: int = 0
    callback_errors: int = 0
    decode_errors: int = 0
    reconnects: int = 0
    gaps: int = 0
    filled_ticks: int = 0
    held: int = 0
    bytes: int = 0
    rate: float = 0.0
    lag: float | None = None
    queue_depth: int = 0
    queue_peak: int = 0
    last_tick: Tick | None = None
    connected_since: datetime | None = None


@attrs.frozen(kw_only=True)
class ListenerStats:
    """A snapshot of a listener: `streams` by symbol, and the sums over them, fields as in `StreamStats`.

    No sums are `state`, that of the whole (see `StreamListener.state`), and `queue_depth` and `queue_peak`, which are
    those of the one queue that all streams share. Streams that were removed are not counted any more.
    """

    state: State
    messages: int = 0
    ticks: int = 0
    dropped: int = 0
    callback_errors: int = 0
    decode_errors: int = 0
    reconnects: int = 0
    gaps: int = 0
    filled_ticks: int = 0
    held: int = 0
    bytes: int = 0
    rate: float = 0.0
    queue_depth: int = 0
    queue_peak: int = 0
    streams: Mapping[str, StreamStats] = attrs.field(factory=dict)


SUMMED = (
    "messages",
    "ticks",
    "dropped",
    "callback_errors",
    "decode_errors",
    "reconnects",
    "gaps",
    "filled_ticks",
    "held",
    "bytes",
    "rate",
)


def snapshot(counters: Counters, state: State, reconnects: int, queue_depth: int) -> StreamStats:
    """Return a snapshot of one stream. `queue_depth`: how many of its ticks wait for callbacks."""
    connected_at = counters.connected_at
    return StreamStats(
        state=state,
        messages=counters.messages,
        ticks=counters.ticks,
        dropped=counters.dropped,
        callback_errors=counters.callback_errors,
        decode_errors=counters.decode_errors,
        reconnects=reconnects,
        gaps=counters.gaps,
        filled_ticks=counters.filled_ticks,
        held=counters.held,
        bytes=counters.bytes,
        rate=counters.rate(time.monotonic()),
        lag=counters.lag,
        queue_depth=queue_depth,
        queue_peak=max(counters.queue_peak, queue_depth),
        last_tick=counters.last_tick,
        connected_since=datetime.fromtimestamp(connected_at, UTC) if connected_at else None,
    )


def add_up(state: State, streams: dict[str, StreamStats], queue_depth: int, queue_peak: int) -> ListenerStats:
    """The snapshot of a listener from those of its streams."""
    sums = {name: sum(getattr(stream, name) for stream in streams.values()) for name in SUMMED}
    return ListenerStats(state=state, queue_depth=queue_depth, queue_peak=queue_peak, streams=streams, **sums)
