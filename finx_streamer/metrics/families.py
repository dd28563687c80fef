"""Which metrics there are, and from which snapshots they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, Literal

import attrs

from .. import metered
from ..run import Run, live_runs
from ..values import State

#: How many pairs of a listener have a label of their own; exchanges of a server; and types of a listener's errors.
MOST_PAIRS, MOST_EXCHANGES, MOST_TYPES = 200, 50, 50


def _reading(read: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    return attrgetter(read) if isinstance(read, str) else read


@attrs.frozen(eq=False)
class Row:
    """One metric.

    Attributes:
        name: Its name, without the `_total` of a counter.
        help: What it is.
        read: Reads it from a snapshot: a function, or the name of an attribute. None has no sample.
        type: Counters count from 0. Each of their samples is at least as high as the one before.
        unit: "seconds", "bytes" or none. The name ends with it.
        combine: What joins values that share their labels. Counters are added.
    """

    name: str
    help: str
    read: Callable[[Any], Any] = attrs.field(converter=_reading)
    type: Literal["counter", "gauge"] = "gauge"
    unit: str = ""
    combine: Callable[[Iterable[float]], float] = sum

    @property
    def sample_name(self) -> str:
        """The name of its samples, which queries use."""
        return f"{self.name}_total" if self.type == "counter" else self.name


@attrs.frozen(eq=False)
class Group:
    """Metrics with the same labels. With two labels, `most` values of the second one have a label of their own."""

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    most: int = 0


def _counter(name: str, help: str, read: Any, unit: str = "") -> Row:
    return Row(name, help, read, "counter", unit)


LISTENER = Group(
    ("listener",),
    (
        _counter("finx_listener_received_bytes", "Bytes received on its connections.", "bytes", "bytes"),
        _counter("finx_listener_reconnects", "Connections that were re-established.", "reconnects"),
        Row("finx_listener_queue_depth", "Entries that wait for callbacks.", "queue_depth"),
        Row("finx_listener_queue_limit", "How many entries may wait for callbacks.", "queue_size"),
        Row("finx_listener_catching_up_streams", "Streams that still deliver history.", "catching_up"),
    ),
)
STATE = Group(("listener", "state"), (Row("finx_listener_streams", "Streams in each state.", float),), most=len(State))
ERROR = Group(
    ("listener", "type"),
    (_counter("finx_listener_errors", "Errors reported to `on_error` or the log, by class.", float),),
    most=MOST_TYPES,
)
PAIR = Group(
    ("listener", "pair"),
    (
        _counter("finx_listener_ticks", "Ticks, or messages with Greeks, handed to callbacks and loops.", "ticks"),
        _counter("finx_listener_messages", "Messages received.", "messages"),
        _counter("finx_listener_dropped_ticks", "Ticks that callbacks never got.", "dropped"),
        _counter("finx_listener_gaps", "Lost connections after which ticks may have been missed.", "gaps"),
        _counter("finx_listener_unfilled_gaps", "Gaps that couldn't be filled.", "unfilled_gaps"),
        _counter("finx_listener_filled_ticks", "Missed ticks that were fetched.", "filled_ticks"),
        Row("finx_listener_held_ticks", "Ticks held back while a gap is being filled.", "held"),
        Row(
            "finx_listener_lag_seconds",
            "Time from the last live tick's own time to its receipt.",
            "lag",
            unit="seconds",
            combine=max,
        ),
    ),
    most=MOST_PAIRS,
)
SERVER = Group(
    ("server",),
    (
        Row("finx_server_open_connections", "Open connections.", "connections"),
        _counter("finx_server_connections", "Connections accepted.", "connections_total"),
        _counter("finx_server_refused_handshakes", "Handshakes refused.", "refused"),
        _counter("finx_server_slow_clients", "Clients disconnected because they were too slow.", "slow_clients"),
        Row("finx_server_streams", "Subscriptions of open connections.", "streams"),
        _counter("finx_server_ticks", "Ticks played by the source.", "ticks_played"),
        _counter("finx_server_sent_ticks", "Tick messages sent to clients.", "ticks_sent"),
        _counter("finx_server_greeks", "Contract tickers played by the source.", "greeks_played"),
        _counter("finx_server_sent_greeks", "Contract tickers sent to clients.", "greeks_sent"),
        _counter("finx_server_calls", "Function calls.", "calls"),
        Row("finx_server_stored_ticks", "Ticks in the store.", "ticks_stored"),
        Row(
            "finx_server_store_writable",
            "1 if the store can be written, 0 if not.",
            lambda stats: stats.store_error is None,
            combine=min,
        ),
        Row(
            "finx_server_source_running",
            "1 while the source plays.",
            lambda stats: stats.started and not stats.finished,
        ),
    ),
)
EXCHANGE = Group(
    ("server", "exchange"),
    (
        Row("finx_exchange_connected", "1 if the exchange sends trades now, 0 if not.", "connected"),
        _counter("finx_exchange_trades", "Trades that became ticks.", "trades"),
        _counter("finx_exchange_reconnects", "Connections that were lost and opened again.", "reconnects"),
        _counter("finx_exchange_gaps", "Gaps in the trades of a pair.", "gaps"),
        _counter("finx_exchange_unfilled_gaps", "Gaps that weren't filled in full.", "unfilled"),
        _counter("finx_exchange_filled_trades", "Missed trades that were fetched.", "filled"),
        _counter("finx_exchange_lost_trades", "Trades known to be missing.", "lost"),
        Row(
            "finx_exchange_lag_seconds",
            "Time from the newest trade's own time to its arrival.",
            "lag",
            unit="seconds",
            combine=max,
        ),
    ),
    most=MOST_EXCHANGES,
)
RECORDER = Group(
    ("listener",),
    (
        Row("finx_recorder_queue_bytes", "Bytes that wait to be written.", "queued_bytes", unit="bytes"),
        Row("finx_recorder_queue_limit_bytes", "How many bytes may wait to be written.", "limit_bytes", unit="bytes"),
        _counter("finx_recorder_dropped_entries", "Entries that aren't recorded.", "dropped"),
        Row("finx_recorder_writable", "1 if the directory can be written, 0 if not.", "is_writable", combine=min),
    ),
)
PUBLISHER = Group(
    ("publisher",),
    (
        Row("finx_publisher_connected", "1 if NATS can be reached and accepts ticks, 0 if not.", "connected"),
        _counter("finx_publisher_duplicate_ticks", "Ticks that NATS already had.", "duplicates"),
        _counter("finx_publisher_skipped_ticks", "Ticks that weren't sent because the log has them.", "skipped"),
        _counter("finx_publisher_lost_ticks", "Ticks that were dropped or refused.", "lost"),
        Row("finx_publisher_waiting_ticks", "Ticks that wait to be sent.", "waiting"),
        Row("finx_publisher_in_flight_ticks", "Ticks that were sent, and aren't acknowledged yet.", "in_flight"),
    ),
)
PUBLISHED = Group(
    ("publisher", "exchange"),
    (_counter("finx_publisher_published_ticks", "Ticks that NATS has stored.", float),),
    most=MOST_EXCHANGES,
)
GATEWAY = Group(
    ("server",),
    (
        Row("finx_gateway_connected", "1 if NATS sends the log, 0 if not.", "connected"),
        Row("finx_gateway_behind_entries", "Entries of the log that NATS hasn't sent yet.", "behind"),
        Row("finx_gateway_lag_seconds", "Time an entry took from NATS.", "lag", unit="seconds", combine=max),
        Row("finx_gateway_first_entry", "The number from which on the store has all ticks.", "first", combine=max),
        _counter("finx_gateway_filled_entries", "Earlier entries that were read to fill the store.", "filled"),
        _counter("finx_gateway_lost_entries", "Entries that had expired before they were read.", "lost"),
        _counter("finx_gateway_resets", "How often NATS had lost entries that were read.", "resets"),
        _counter("finx_gateway_foreign_messages", "Messages that aren't ticks or tickers of their subject.", "foreign"),
        _counter("finx_gateway_reconnects", "Connections to NATS that were lost and opened again.", "reconnects"),
    ),
)
GROUPS = (LISTENER, STATE, PAIR, ERROR, RECORDER, SERVER, EXCHANGE, PUBLISHER, PUBLISHED, GATEWAY)
FAILURES = Row("finx_metrics_failed_snapshots", "Snapshots that failed, by kind.", float, "counter")

#: The snapshots of one object: for each group and value of the second label, what its rows are read from.
Snapshots = Iterator[tuple[Group, str, Any]]


def _of_run(run: Run) -> Snapshots:
    stats = run.stats()
    yield LISTENER, "", stats
    states = Counter(stream.state for stream in stats.streams.values())
    yield from ((STATE, state.value, states[state]) for state in State)
    yield from ((PAIR, symbol, stream) for symbol, stream in stats.streams.items())
    yield from ((ERROR, name, count) for name, count in stats.errors_by_type.items())
    if run.recorder is not None:
        yield RECORDER, "", run.recorder.state()


def _of_server(server: Any) -> Snapshots:
    stats = server.stats
    yield SERVER, "", stats
    yield from ((EXCHANGE, name, exchange) for name, exchange in stats.exchanges.items())
    if stats.log is not None:
        yield GATEWAY, "", stats.log


def _of_publisher(publisher: Any) -> Snapshots:
    stats = publisher.stats
    yield PUBLISHER, "", stats
    yield from ((PUBLISHED, name, count) for name, count in stats.exchanges.items())


@attrs.frozen
class Kind:
    """One kind of objects that have metrics: how they are found, what they are called, and how they are read."""

    name: str
    find: Callable[[], Iterable[Any]]
    name_of: Callable[[Any], str]
    read: Callable[[Any], Snapshots]


KINDS = (
    Kind("listener", lambda: [run for run in tuple(live_runs) if not run.forked], attrgetter("name"), _of_run),
    Kind(
        "server",
        lambda: [each for each in metered.registered("server") if each.running],
        lambda server: f"{server.host}:{server.port}",
        _of_server,
    ),
    Kind("publisher", lambda: metered.registered("publisher"), attrgetter("name"), _of_publisher),
)
