"""`StatsCollector`: makes metrics of the snapshots, with bounded labels and counters that never go back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from .._version import __version__
from ..config.redaction import redact
from ..errors import make_printable
from .families import FAILURES, GROUPS, KINDS, Group, Kind, Row

#: The label of all names beyond a limit.
OTHER = "other"
#: How many listeners have a label of their own, how many servers, and so on.
MOST_OWNERS = 50
#: The longest label, in characters.
_LONGEST_LABEL = 100


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

    name: str = ""
    #: The values of each group's rows, by the second label.
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


#: Metrics with their labels.
_Series = tuple[Row, tuple[str, ...]]


class StatsCollector(Collector):
    """Reads all snapshots when it's asked. Adds up how much counters have grown, so that none of its samples goes back.

    They would otherwise, because several objects share a label: listeners of one name, and all beyond a limit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names = {kind: Names(MOST_OWNERS) for kind in KINDS}
        self._seen: WeakKeyDictionary[Any, _Seen] = WeakKeyDictionary()
        #: The counters with labels that exist now.
        self._totals: dict[_Series, float] = {}
        self._failures = {kind.name: 0 for kind in KINDS}

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values. Called by prometheus_client."""
        return self._metrics({}, {})

    def collect(self) -> Iterable[Metric]:
        """Return the metrics. Called by prometheus_client, on any thread."""
        with self._lock:
            totals: dict[_Series, float] = {}
            gauges: dict[_Series, list[float]] = {}
            seen: WeakKeyDictionary[Any, _Seen] = WeakKeyDictionary()
            for kind in KINDS:
                found = {owner: self._read(kind, owner) for owner in kind.find()}
                labels = self._names[kind].labels(now.name for now, _ in found.values())
                for owner, (now, works) in found.items():
                    self._add(labels[now.name], now, self._seen.get(owner), totals, gauges if works else {})
                    seen[owner] = now
            self._totals, self._seen = totals, seen
            combined = {series: series[0].combine(values) for series, values in gauges.items()}
            return list(self._metrics(totals | combined, self._failures))

    def _read(self, kind: Kind, owner: Any) -> tuple[_Seen, bool]:
        """Return what was read, and whether that worked. If not, the rest of the page must not fail with it."""
        last = self._seen.get(owner) or _Seen()
        try:
            values = {
                (group, part): [_number(row.read(snapshot)) for row in group.rows]
                for group, part, snapshot in kind.read(owner)
            }
            return _Seen(kind.name_of(owner), values, last.names), True
        except Exception:
            self._failures[kind.name] += 1
            return last, False

    def _add(
        self,
        name: str,
        now: _Seen,
        last: _Seen | None,
        totals: dict[_Series, float],
        gauges: dict[_Series, list[float]],
    ) -> None:
        """Add what was read from one object. `name` is its label."""
        for (group, part), label in now.labels().items():
            at = (name, label)[: len(group.labels)]
            values, zeros = now.values[group, part], [0.0] * len(group.rows)
            before = zeros if last is None else last.values.get((group, part), zeros)
            for row, value, start in zip(group.rows, values, before, strict=True):
                if value is None:
                    continue
                if row.type == "gauge":
                    gauges.setdefault((row, at), []).append(value)
                else:
                    # It is less than before if a stream was removed.
                    grown = max(0.0, value - (start or 0.0))
                    totals[row, at] = totals.get((row, at), self._totals.get((row, at), 0.0)) + grown

    def _metrics(self, samples: Mapping[_Series, float], failures: Mapping[str, int]) -> Iterator[Metric]:
        yield InfoMetricFamily("finx_build", "The version of this package.", {"version": __version__})
        metrics = {
            row: (Metric(row.name, row.help, row.type, row.unit), group) for group in GROUPS for row in group.rows
        }
        for (row, labels), value in samples.items():
            metric, group = metrics[row]
            metric.add_sample(row.sample_name, dict(zip(group.labels, labels, strict=True)), value)
        yield from (metric for metric, _ in metrics.values() if metric.samples or not samples)
        failed = Metric(FAILURES.name, FAILURES.help, FAILURES.type)
        for kind, count in failures.items():
            failed.add_sample(FAILURES.sample_name, {"kind": kind}, count)
        yield failed


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
