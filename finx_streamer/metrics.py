"""Metrics for Prometheus: a page with the counters of this process. Needs the extra `[metrics]`.

    from finx_streamer import metrics

    with metrics.expose(9464) as page:
        print(page.url)

Each request for the page reads the snapshots that exist anyway, so streaming costs nothing more.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from operator import attrgetter
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import attrs

try:
    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.core import InfoMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        'finx_streamer.metrics needs the prometheus_client package: pip install "finx-streamer[metrics]"'
    ) from error

from . import metered
from ._version import __version__
from .config import checks as check
from .config.redaction import redact
from .errors import make_printable
from .run import live_runs
from .values import State

__all__ = ["MetricsPage", "expose"]

#: What replaces the names beyond a limit, in labels.
OTHER = "other"
#: How many listeners, servers and so on have a label of their own, and how many pairs of a listener.
MOST_OWNERS, MOST_PAIRS = 50, 200
#: The same for the exchanges of a server, and for the types of a listener's errors.
MOST_EXCHANGES = 50
#: The longest label, in characters.
_LONGEST_LABEL = 100
#: Seconds after which a client that sends or reads nothing is disconnected.
_CLIENT_TIMEOUT = 10.0


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
    most=50,
)
PAIR = Group(
    ("listener", "pair"),
    (
        _counter("finx_listener_ticks", "Ticks handed to callbacks and loops.", "ticks"),
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
        Row("finx_server_store_writable", "1 if the store can be written, 0 if not.", lambda s: s.store_error is None),
        Row("finx_server_source_running", "1 while the source plays.", lambda s: s.started and not s.finished),
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
ARCHIVE = Group(
    ("archive",),
    (
        Row("finx_archive_queue_bytes", "Bytes that wait to be written.", "queued_bytes", unit="bytes"),
        Row("finx_archive_queue_limit_bytes", "How many bytes may wait to be written.", "queue_bytes", unit="bytes"),
        _counter("finx_archive_dropped_entries", "Entries that aren't recorded.", "dropped_entries"),
        Row("finx_archive_writable", "1 if the directory can be written, 0 if not.", "writable"),
    ),
)
PUBLISHER = Group(
    ("publisher",),
    (
        _counter("finx_publisher_published_ticks", "Ticks that JetStream has stored.", "published"),
        _counter("finx_publisher_duplicate_ticks", "Ticks that another publisher had stored.", "duplicates"),
        Row("finx_publisher_waiting_ticks", "Ticks that JetStream hasn't acknowledged yet.", "waiting"),
        _counter("finx_publisher_lost_ticks", "Ticks that were dropped while NATS was away.", "lost"),
    ),
)
GATEWAY = Group(
    ("gateway",),
    (Row("finx_gateway_log_lag_messages", "Messages of the log that the gateway hasn't read yet.", "log_lag"),),
)
GROUPS = (LISTENER, STATE, PAIR, ERROR, SERVER, EXCHANGE, ARCHIVE, PUBLISHER, GATEWAY)
FAILURES = Row("finx_metrics_failed_snapshots", "Snapshots that failed, by kind.", float, "counter")

#: The snapshots of one object: for each group and value of the second label, what its rows are read from.
Snapshots = Iterator[tuple[Group, str, Any]]


def _of_run(run: Any) -> Snapshots:
    stats = run.stats()
    yield LISTENER, "", stats
    states = Counter(stream.state for stream in stats.streams.values())
    yield from ((STATE, state.value, states[state]) for state in State)
    yield from ((PAIR, symbol, stream) for symbol, stream in stats.streams.items())
    yield from ((ERROR, name, count) for name, count in stats.errors_by_type.items())


def _of_server(server: Any) -> Snapshots:
    stats = server.stats
    yield SERVER, "", stats
    yield from ((EXCHANGE, name, exchange) for name, exchange in stats.exchanges.items())


def _reader(group: Group) -> Callable[[Any], Snapshots]:
    return lambda owner: iter([(group, "", owner.stats)])


#: How the objects of each kind are read.
READERS: Mapping[str, Callable[[Any], Snapshots]] = {
    "listener": _of_run,
    "server": _of_server,
    "archive": _reader(ARCHIVE),
    "publisher": _reader(PUBLISHER),
    "gateway": _reader(GATEWAY),
}


def _owners(kind: str) -> Iterator[tuple[Any, str]]:
    """Yield the objects of a kind with their names, the oldest first."""
    if kind == "listener":
        yield from ((run, listener.name) for run, listener in tuple(live_runs.items()) if not run.forked)
    elif kind == "server":
        yield from ((each, f"{each.host}:{each.port}") for each in metered.registered(kind) if each.running)
    else:
        yield from ((each, each.name) for each in metered.registered(kind))


class Names:
    """Chooses which names have a label of their own, at most `most`. The others share the label "other".

    A name that has one keeps it until it's gone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._own: dict[str, str] = {}

    def labels(self, names: Iterable[str]) -> dict[str, str]:
        """Return the label of each name."""
        present = dict.fromkeys(names)
        own = [name for name in self._own if name in present]
        own += islice((name for name in present if name not in self._own), self._most - len(own))
        self._own = {name: _label(name) for name in own}
        return {name: self._own.get(name, OTHER) for name in present}


def _label(name: str) -> str:
    """A label without keys, and without characters that can't be encoded."""
    return make_printable(redact(name))[:_LONGEST_LABEL]


@attrs.define
class _Seen:
    """What was read from an object last time."""

    values: dict[tuple[Group, str], list[float | None]] = attrs.field(factory=dict)
    names: dict[Group, Names] = attrs.field(factory=dict)

    def labels(self) -> dict[tuple[Group, str], str]:
        """The second label of all that was read."""
        found = {}
        for group in {group for group, _ in self.values}:
            names = self.names.setdefault(group, Names(group.most))
            labels = names.labels(name for each, name in self.values if each is group)
            found.update({(group, name): label for name, label in labels.items()})
        return found


#: The values of metrics, by their labels.
_Samples = dict[tuple[Row, tuple[str, ...]], float]


class StatsCollector(Collector):
    """Reads all snapshots when it's asked. Adds up how much counters have grown, so that none of its samples goes back.

    They would otherwise, because several objects share a label: listeners of one name, and all beyond a limit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names = {kind: Names(MOST_OWNERS) for kind in READERS}
        self._seen: WeakKeyDictionary[Any, _Seen] = WeakKeyDictionary()
        #: Of the labels that exist now.
        self._totals: _Samples = {}
        self._failures = dict.fromkeys(READERS, 0)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values."""
        return self._families({}, {})

    def collect(self) -> Iterable[Metric]:
        """Return the metrics. Called by prometheus_client, on any thread."""
        with self._lock:
            gauges: dict[tuple[Row, tuple[str, ...]], list[float]] = {}
            before, self._totals, self._seen, seen = self._totals, {}, WeakKeyDictionary(), self._seen
            for kind in READERS:
                self._read_kind(kind, before, seen, gauges)
            combined = {key: key[0].combine(values) for key, values in gauges.items()}
            return list(self._families({**self._totals, **combined}, self._failures))

    def _read_kind(
        self,
        kind: str,
        before: _Samples,
        seen: Mapping[Any, _Seen],
        gauges: dict[tuple[Row, tuple[str, ...]], list[float]],
    ) -> None:
        owners = self._attempt(kind, lambda: list(_owners(kind))) or []
        labels = self._names[kind].labels(name for _, name in owners)
        for owner, name in owners:
            last = seen.get(owner) or _Seen()
            read = self._attempt(kind, partial(_values, READERS[kind], owner))
            now = self._seen[owner] = attrs.evolve(last, values=last.values if read is None else read)
            for (group, part), label in now.labels().items():
                at = (labels[name], label)[: len(group.labels)]
                earlier = last.values.get((group, part), [0.0] * len(group.rows))
                for row, value, start in zip(group.rows, now.values[group, part], earlier, strict=True):
                    if row.type == "counter":
                        total = self._totals.get((row, at), before.get((row, at), 0.0))
                        # Less than before: a stream was removed.
                        self._totals[row, at] = total + max(0.0, (value or 0.0) - (start or 0.0))
                    elif read is not None and value is not None:
                        gauges.setdefault((row, at), []).append(value)

    def _attempt(self, kind: str, read: Callable[[], Any]) -> Any:
        """Return what was read. None if that failed: the rest of the page must not fail with it."""
        try:
            return read()
        except Exception:
            self._failures[kind] += 1
            return None

    def _families(self, samples: _Samples, failures: Mapping[str, int]) -> Iterator[Metric]:
        yield InfoMetricFamily("finx_build", "The version of this package.", {"version": __version__})
        rows = {row: Metric(row.name, row.help, row.type, row.unit) for group in GROUPS for row in group.rows}
        labels = {row: group.labels for group in GROUPS for row in group.rows}
        for (row, values), value in samples.items():
            rows[row].add_sample(row.sample_name, dict(zip(labels[row], values, strict=True)), value)
        yield from rows.values()
        failed = Metric(FAILURES.name, FAILURES.help, FAILURES.type)
        for kind, count in failures.items():
            failed.add_sample(FAILURES.sample_name, {"kind": kind}, count)
        yield failed


def _values(read: Callable[[Any], Snapshots], owner: object) -> dict[tuple[Group, str], list[float | None]]:
    found = {}
    for group, part, snapshot in read(owner):
        values = [row.read(snapshot) for row in group.rows]
        found[group, part] = [None if value is None else float(value) for value in values]
    return found


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # On Windows, this would let another program take over the port.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: the client left, or was too slow."""


class MetricsPage:
    """A page with the metrics of this process, as `expose` returned it::

        from finx_streamer import metrics

        with metrics.expose(0) as page:
            print(page.url)

    The end of a `with` block closes it.

    Attributes:
        port (int): The port that it listens on.
        url (str): Its address.
    """

    def __init__(self, port: int, host: str) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StatsCollector())
        try:
            self._server = _HttpServer(host, port)
        except OSError as error:
            why = error.strerror or str(error)
            raise OSError(
                error.errno, f"metrics: can't listen on {host}:{port}: {why}; pass another port, or 0 for a free one"
            ) from None
        self._server.set_app(make_wsgi_app(registry))
        self.port: int = self._server.server_port
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="finx-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving the page. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MetricsPage {self.url}>"


def expose(port: int, host: str = "127.0.0.1") -> MetricsPage:
    """Serve the metrics of this process over HTTP, in the formats of Prometheus and OpenMetrics::

        from finx_streamer import metrics

        page = metrics.expose(9464)
        print(page.url)
        page.close()

    The page has the running listeners, local servers and recordings of this process. See `docs/metrics.md`.

    Args:
        port (int): The port to listen on. 0 picks a free one.
        host (str): The address to listen on. Anyone who can reach it can read the page. It shows no API key.

    Returns:
        The page, with its `port` and `url`. Close it, or use it in a `with` block.

    Raises:
        ConfigurationError: An argument is wrong.
        OSError: The port is taken, or this machine doesn't have the address.
    """
    if check.integer("port", port, 0) > 65_535:
        raise check.refusal("port", port, "a port, from 0 to 65535")
    if not isinstance(host, str) or not host:
        raise check.refusal("host", host, "an address, such as '127.0.0.1'")
    return MetricsPage(port, host)
