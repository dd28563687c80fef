"""The snapshots of counters for the user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_type_hints

import attrs
import pytest

from finx_streamer.delivery.stats import SUMMED, ConnectionStats, ListenerStats, StreamStats, add_up, snapshot
from finx_streamer.streaming.counters import ConnectionCounters, Counters
from finx_streamer.values import State, Tick


def a_tick(received_after: float = 0.25) -> Tick:
    moment = datetime(2022, 7, 2, 15, 30, 55, tzinfo=UTC)
    return {
        "pair": "BTC:USDC",
        "date": "2022-07-02",
        "time": "15:30:55Z",
        "exchange": "BINANCE",
        "price": 19200.84,
        "timestamp": moment,
        "received_ns": int((moment.timestamp() + received_after) * 1e9),
        "backfilled": False,
    }


def test_a_new_stream_has_counted_nothing() -> None:
    """Counts are zero, and values without data are None."""
    assert snapshot(Counters(), ConnectionStats(), State.IDLE, 0) == StreamStats(state=State.IDLE)


def test_a_snapshot_has_the_counts() -> None:
    """Each counter goes into the field of the same name."""
    counters = Counters()
    counters.messages, counters.dropped, counters.callback_errors, counters.decode_errors = 1, 2, 3, 4
    counters.queue_peak = 6
    connection = ConnectionCounters()
    connection.bytes, connection.errors, connection.connected_at = 5, 8, 1_656_775_855.5
    assert snapshot(counters, ConnectionStats.of(connection, 7), State.STREAMING, 3) == StreamStats(
        state=State.STREAMING,
        messages=1,
        dropped=2,
        callback_errors=3,
        decode_errors=4,
        bytes=5,
        connection_errors=8,
        reconnects=7,
        queue_depth=3,
        queue_peak=6,
        connected_since=datetime(2022, 7, 2, 15, 30, 55, 500_000, UTC),
    )


def test_a_snapshot_never_changes() -> None:
    """Later counts don't affect it, and users can't assign to it."""
    counters = Counters()
    before = snapshot(counters, ConnectionStats(), State.STREAMING, 0)
    counters.count_ticks([a_tick()], 100.0)
    assert (before.ticks, snapshot(counters, ConnectionStats(), State.STREAMING, 0).ticks) == (0, 1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.ticks = 5  # type: ignore[misc]


def test_counts_ticks_and_keeps_the_last_one() -> None:
    """The lag is that of the last tick."""
    counters = Counters()
    last = a_tick(received_after=1.5)
    counters.count_ticks([a_tick(), a_tick(), last], 100.0)
    stats = snapshot(counters, ConnectionStats(), State.STREAMING, 0)
    assert stats.ticks == 3
    assert stats.last_tick is last
    assert stats.lag == pytest.approx(1.5, abs=1e-6)


def test_the_peak_is_never_below_the_depth() -> None:
    """A snapshot doesn't contradict itself."""
    assert snapshot(Counters(), ConnectionStats(), State.STREAMING, 9).queue_peak == 9


def test_the_counts_of_a_listener_are_sums() -> None:
    """Each is the sum over the streams, or over the connections. Depth and peak are those of the queue."""
    one = StreamStats(state=State.STREAMING, **{name: position for position, name in enumerate(SUMMED, 1)})
    two = StreamStats(state=State.RECONNECTING, **dict.fromkeys(SUMMED, 100))
    # Both streams share one of the connections. The other one has just lost its last stream.
    connections = [
        ConnectionStats(bytes=1_000, connection_errors=3, reconnects=2, messages=10, decode_errors=20),
        ConnectionStats(bytes=1),
    ]
    total = add_up(State.RECONNECTING, {"A:B": one, "C:D": two}, connections, queue_depth=17, queue_peak=40)
    expected = {name: 100 + position for position, name in enumerate(SUMMED, 1)}
    expected |= {"bytes": 1_001, "connection_errors": 3, "reconnects": 2}
    expected["messages"] += 10
    expected["decode_errors"] += 20
    assert {name: getattr(total, name) for name in SUMMED} == expected
    assert (total.state, total.queue_depth, total.queue_peak) == (State.RECONNECTING, 17, 40)
    assert total.streams == {"A:B": one, "C:D": two}


def test_a_listener_without_streams_has_counted_nothing() -> None:
    """All sums are zero."""
    assert add_up(State.IDLE, {}) == ListenerStats(state=State.IDLE)


def test_listeners_and_streams_count_the_same() -> None:
    """Both kinds of snapshots have every summed field."""
    others = {
        "state",
        "queue_depth",
        "queue_size",
        "queue_peak",
        "last_error",
        "errors_by_type",
        "catching_up",
        "streams",
    }
    assert set(get_type_hints(ListenerStats)) == {*SUMMED, *others}
    assert set(get_type_hints(StreamStats)) >= set(SUMMED)
