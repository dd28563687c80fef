"""Frozen snapshots of the counters, for the user."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import attrs

from ..clock import monotonic
from ..errors import ConnectionFailed, FinxStreamerError, make_printable
from ..streaming.counters import ConnectionCounters, Counters, TimedError
from ..values import State, Tick


@attrs.frozen(kw_only=True)
class Totals:
    """What streams and listeners both count."""

    state: State
    messages: int = 0
    ticks: int = 0
    dropped: int = 0
    callback_errors: int = 0
    decode_errors: int = 0
    connection_errors: int = 0
    reconnects: int = 0
    gaps: int = 0
    unfilled_gaps: int = 0
    filled_ticks: int = 0
    held: int = 0
    bytes: int = 0
    rate: float = 0.0


@attrs.frozen(kw_only=True)
class StreamStats(Totals):
    """A snapshot of one stream's counters::

        from finx_streamer import StreamListener

        with StreamListener("BTC:USDC", endpoint="demo") as listener:
            listener.join(timeout=1)
            print(listener.stats.streams["BTC:USDC"].rate, "ticks per second")

    Streams that share a connection show the same counts of it, and may be 0.1 s behind with their own.

    Attributes:
        state: The state of the stream.
        messages: Messages received.
        ticks: Ticks handed to your callbacks and loops.
        dropped: Ticks dropped by the overflow policy, or because the listener ended before your callbacks had them.
        callback_errors: Exceptions raised by callbacks.
        decode_errors: Messages that could not be decoded.
        connection_errors: Connection attempts that failed, and connections that were lost.
        reconnects: How often the connection was re-established.
        gaps: How often the connection was lost and ticks may have been missed. Counted when it is back.
        unfilled_gaps: How many of these gaps weren't filled.
        filled_ticks: Ticks fetched from history.
        held: Ticks received and held back while a gap is being filled.
        bytes: Bytes received on the connection.
        rate: Live ticks per second over the last 10 s.
        lag: Seconds from the last live tick's own time to its receipt. None before the first.
        queue_depth: Ticks that wait for callbacks now.
        queue_peak: The highest `queue_depth` so far.
        last_tick: The last tick. None before the first.
        connected_since: Time of the last handshake, aware and in UTC. None while disconnected.
        last_error: Why the connection last failed, was lost, or counted as stale. None if it never was.
        history_until: With `since`: the time up to which history was delivered, until live ticks follow. Then None.
    """

    lag: float | None = None
    queue_depth: int = 0
    queue_peak: int = 0
    last_tick: Tick | None = None
    connected_since: datetime | None = None
    last_error: FinxStreamerError | None = None
    history_until: datetime | None = None


@attrs.frozen(kw_only=True)
class ListenerStats(Totals):
    """A snapshot of a listener's counters: the sums over its streams and connections::

        from finx_streamer import StreamListener

        with StreamListener("BTC:USDC", "ETH:USDC", endpoint="demo") as listener:
            listener.join(timeout=1)
            print(listener.stats.ticks, "ticks,", listener.stats.reconnects, "reconnects")

    Removed streams don't count. Only `state`, `queue_depth`, `queue_size`, `queue_peak`, `last_error`,
    `errors_by_type` and `catching_up` aren't sums. All streams share one queue.

    Attributes:
        state: The state of the listener, as in `StreamListener.state`.
        messages: Messages received.
        ticks: Ticks handed to your callbacks and loops.
        dropped: Ticks dropped by the overflow policy, or because the listener ended before your callbacks had them.
        callback_errors: Exceptions raised by callbacks.
        decode_errors: Messages that could not be decoded.
        connection_errors: Connection attempts that failed, and connections that were lost.
        reconnects: How often connections were re-established.
        gaps: How often a connection was lost and ticks may have been missed. Counted when it is back.
        unfilled_gaps: How many of these gaps weren't filled.
        filled_ticks: Ticks fetched from history.
        held: Ticks received and held back while gaps are being filled.
        bytes: Bytes received on the connections.
        rate: Live ticks per second over the last 10 s.
        queue_depth: Entries that wait for callbacks now.
        queue_size: How many may wait.
        queue_peak: The highest `queue_depth` so far.
        last_error: The latest `last_error` of its streams.
        errors_by_type: How many errors of each class were reported in this run, by the name of the class.
        catching_up: How many streams still deliver history, because of `since`.
        streams: A `StreamStats` for each symbol.
    """

    queue_depth: int = 0
    queue_size: int = 0
    queue_peak: int = 0
    last_error: FinxStreamerError | None = None
    errors_by_type: Mapping[str, int] = attrs.field(factory=dict)
    catching_up: int = 0
    streams: Mapping[str, StreamStats] = attrs.field(factory=dict)


#: What a connection counts. Streams that share one all show its counts, so sums take them from the connections.
_OF_CONNECTION = ("bytes", "connection_errors", "reconnects")
#: Both count these: a shared connection also has messages that belong to no stream.
_OF_BOTH = ("messages", "decode_errors")
SUMMED = tuple(field.name for field in attrs.fields(Totals) if field.name != "state")
_COUNTED = tuple(name for name in SUMMED if name not in (*_OF_CONNECTION, "rate"))


@attrs.frozen
class ConnectionStats:
    """A snapshot of one connection's counters. See `StreamStats`; `messages` are those that belong to no stream."""

    bytes: int = 0
    connection_errors: int = 0
    reconnects: int = 0
    messages: int = 0
    decode_errors: int = 0
    connected_since: datetime | None = None
    last_error: TimedError | None = None

    @classmethod
    def of(cls, counters: ConnectionCounters, reconnects: int) -> ConnectionStats:
        at = counters.connected_at
        return cls(
            bytes=counters.bytes,
            connection_errors=counters.errors,
            reconnects=reconnects,
            messages=counters.messages,
            decode_errors=counters.decode_errors,
            connected_since=datetime.fromtimestamp(at, UTC) if at else None,
            last_error=counters.last_error,
        )


def snapshot(
    counters: Counters,
    connection: ConnectionStats,
    state: State,
    queue_depth: int,
    history_until: datetime | None = None,
) -> StreamStats:
    """Return a snapshot of one stream. `queue_depth`: how many of its ticks wait for callbacks."""
    counts = {name: getattr(counters, name) for name in _COUNTED}
    counts["ticks"] = max(0, counters.ticks - counters.dropped - queue_depth)
    return StreamStats(
        **counts,
        **{name: getattr(connection, name) for name in _OF_CONNECTION},
        state=state,
        rate=counters.rate(monotonic()),
        lag=counters.lag,
        queue_depth=queue_depth,
        queue_peak=max(counters.queue_peak, queue_depth),
        last_tick=counters.last_tick,
        last_error=latest([counters.last_error, connection.last_error]),
        connected_since=connection.connected_since,
        history_until=history_until,
    )


def latest(errors: Iterable[TimedError | None]) -> FinxStreamerError | None:
    """Return the latest of these errors, if there is any."""
    happened = [error for error in errors if error is not None]
    return max(happened, key=itemgetter(0))[1] if happened else None


def add_up(
    state: State,
    streams: dict[str, StreamStats],
    connections: Collection[ConnectionStats] = (),
    **others: Any,
) -> ListenerStats:
    """Return the snapshot of a listener, from those of its streams and connections, and from `others`."""
    sums = {name: sum(getattr(stream, name) for stream in streams.values()) for name in (*_COUNTED, "rate")}
    for name in (*_OF_CONNECTION, *_OF_BOTH):
        sums[name] = sums.get(name, 0) + sum(getattr(connection, name) for connection in connections)
    return ListenerStats(
        state=state,
        catching_up=sum(stream.history_until is not None for stream in streams.values()),
        streams=streams,
        **sums,
        **others,
    )


def reason(stats: StreamStats | ListenerStats) -> str:
    """Say why there is no connection, for views. Empty while there is one, or after `stop`."""
    error, reasons = stats.last_error, []
    if stats.state not in (State.CONNECTING, State.RECONNECTING, State.FAILED):
        return ""
    if isinstance(stats, ListenerStats) and stats.catching_up:
        first = min(each.history_until for each in stats.streams.values() if each.history_until is not None)
        pairs = "1 pair" if stats.catching_up == 1 else f"{stats.catching_up:,} pairs"
        reasons.append(f"delivering history of {pairs}, now at {first:%Y-%m-%d %H:%M:%S}")
    if error is not None:
        reasons.append(make_printable(error.reason) if isinstance(error, ConnectionFailed) else str(error))
    return "; ".join(reasons)
