"""`metrics.expose`: the page has the values of the snapshots, few labels and no key, and its counters never go back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import select
import socket
import threading
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from finx_streamer import ConfigurationError, Endpoint, StreamListener, metered, metrics
from finx_streamer.config import redaction
from finx_streamer.metrics.collector import MOST_OWNERS, OTHER, Names, StatsCollector
from finx_streamer.metrics.families import FAILURES, GROUPS, MOST_EXCHANGES, MOST_PAIRS, PUBLISHED
from finx_streamer.server import ExchangeStats, LocalServer, Outlet, SimulatedMarket
from tests.support.cli import wait_until
from tests.support.market import OTHER as OTHER_PAIR
from tests.support.market import PAIR, Market, begin, interrupt, outage, send, tick
from tests.support.peers import PATIENCE, Peer, Seen, frame, stay
from tests.support.program import ROOT, run_program
from tests.support.secrets import KEY, assert_clean

#: The samples of a page, by their names and labels.
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
DASHBOARD = ROOT / "docs" / "deploy" / "grafana.json"


def fetch(url: str, accept: str = "text/plain") -> str:
    """The text of a page."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"].startswith(accept.partition(";")[0])
        text: str = answer.read().decode()
    return text


def samples_of(families: Any) -> Samples:
    """The samples of parsed families. None may be there twice."""
    found = [((each.name, tuple(sorted(each.labels.items()))), each.value) for one in families for each in one.samples]
    assert len(found) == len(dict(found))
    return dict(found)


def scrape(page: metrics.MetricsPage) -> Samples:
    """The samples of a page."""
    return samples_of(parse_text(fetch(page.url)))


def read(collector: StatsCollector) -> Samples:
    """The samples of a collector."""
    return samples_of(collector.collect())


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """One sample."""
    return samples.get((name, tuple(sorted(labels.items()))))


def label_values(samples: Samples, label: str, prefix: str = "finx_") -> set[str]:
    """All values of a label."""
    return {dict(labels)[label] for name, labels in samples if label in dict(labels) and name.startswith(prefix)}


@pytest.fixture(autouse=True)
def only_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what other tests have registered and left to the garbage collector, and their keys."""
    monkeypatch.setattr(metered, "_metered", {})
    monkeypatch.setattr(redaction, "_keys", OrderedDict())
    redaction.remember(KEY)


@pytest.fixture
def page() -> Iterator[metrics.MetricsPage]:
    """A page on a free port."""
    with metrics.expose(0) as page:
        yield page


@attrs.define(eq=False)
class Publisher:
    """Something with metrics that registers itself, as a publisher does. Its snapshots are itself."""

    name: str
    published: int = 0
    duplicates: int = 0
    skipped: int = 0
    waiting: int = 0
    in_flight: int = 0
    lost: int = 0
    connected: bool = True
    fails: bool = False

    @property
    def exchanges(self) -> dict[str, int]:
        return {KEY: self.published}

    def __attrs_post_init__(self) -> None:
        metered.register("publisher", self)

    @property
    def stats(self) -> Publisher:
        if self.fails:
            raise RuntimeError(KEY)
        return self


class Fed:
    """A market that is fed by exchanges."""

    pairs = frozenset({PAIR})

    def __init__(self, exchange_stats: Mapping[str, ExchangeStats]) -> None:
        self.exchange_stats = exchange_stats

    async def run(self, outlet: Outlet) -> None:
        await asyncio.sleep(0)


def test_the_values_are_those_of_the_stats(page: metrics.MetricsPage, seen: Seen) -> None:
    """Of a listener that had a gap, of its pairs, and of the server, in both formats."""
    with LocalServer(Market(PAIR, OTHER_PAIR), resumable=False) as server:
        with seen.listener(server.url, PAIR, OTHER_PAIR, name="mine", queue_size=1_000) as listener:
            begin(server, seen, 2)
            with outage(server, seen):
                send(server, 2)
            send(server, 3)
            seen.wait_ticks(2)
            seen.wait_for(lambda: seen.gaps)
            stats, served = listener.stats, server.stats
            text, other = fetch(page.url), fetch(page.url, OPENMETRICS)
        assert samples_of(parse_text(text)) == samples_of(parse_openmetrics(other))
        found = samples_of(parse_openmetrics(other))
        for pair, stream in stats.streams.items():
            labels = {"listener": "mine", "pair": pair}
            assert value(found, "finx_listener_ticks_total", **labels) == stream.ticks
            assert value(found, "finx_listener_messages_total", **labels) == stream.messages
            assert value(found, "finx_listener_gaps_total", **labels) == stream.gaps
            assert value(found, "finx_listener_unfilled_gaps_total", **labels) == stream.unfilled_gaps
            assert value(found, "finx_listener_held_ticks", **labels) == stream.held
            assert value(found, "finx_listener_lag_seconds", **labels) == stream.lag
        assert (stats.streams[PAIR].gaps, stats.streams[PAIR].unfilled_gaps) == (1, 1)
        assert value(found, "finx_listener_received_bytes_total", listener="mine") == stats.bytes > 0
        assert value(found, "finx_listener_reconnects_total", listener="mine") == stats.reconnects == 1
        assert value(found, "finx_listener_queue_limit", listener="mine") == stats.queue_size == 1_000
        assert value(found, "finx_listener_streams", listener="mine", state="streaming") == 2
        assert value(found, "finx_listener_streams", listener="mine", state="failed") == 0
        kinds = {type(error).__name__ for error in seen.errors}
        assert stats.errors_by_type == {kind: [type(e).__name__ for e in seen.errors].count(kind) for kind in kinds}
        for kind, count in stats.errors_by_type.items():
            assert value(found, "finx_listener_errors_total", listener="mine", type=kind) == count
        here = {"server": f"127.0.0.1:{server.port}"}
        assert value(found, "finx_server_open_connections", **here) == served.connections == 2
        assert value(found, "finx_server_connections_total", **here) == served.connections_total == 3
        assert value(found, "finx_server_refused_handshakes_total", **here) == served.refused
        assert value(found, "finx_server_ticks_total", **here) == served.ticks_played == 3
        assert value(found, "finx_server_sent_ticks_total", **here) == served.ticks_sent == 2
        assert value(found, "finx_server_store_writable", **here) == 1
    assert label_values(scrape(page), "listener") == set()


def test_filled_ticks_and_failed_callbacks_are_counted(page: metrics.MetricsPage, seen: Seen) -> None:
    """An error in `on_error` counts, too."""

    def fail(error: object) -> None:
        seen.errors.append(error)  # type: ignore[arg-type]
        raise ValueError

    with (
        LocalServer(Market()) as server,
        seen.listener(server.url, name="mine", backfill=True, on_error=fail) as listener,
    ):
        interrupt(server, seen)
        seen.wait_for(lambda: len(seen.ticks) == 3 and seen.gaps)
        errors = len(seen.errors)
        found = scrape(page)
        assert listener.stats.errors_by_type["CallbackError"] == errors > 0
    assert value(found, "finx_listener_filled_ticks_total", listener="mine", pair=PAIR) == 1
    assert value(found, "finx_listener_unfilled_gaps_total", listener="mine", pair=PAIR) == 0
    assert value(found, "finx_listener_errors_total", listener="mine", type="CallbackError") == errors


def test_a_full_queue_shows(page: metrics.MetricsPage) -> None:
    """Ticks that wait, and ticks that were dropped."""
    entered, go_on = threading.Event(), threading.Event()

    def hang(tick: object) -> None:
        entered.set()
        go_on.wait(PATIENCE)

    with LocalServer(Market()) as server, StreamListener(
        PAIR, endpoint=server.url, api_key="demo", name="slow", queue_size=10, overflow="drop_oldest", on_tick=hang,
        on_error=lambda error: None,
    ) as listener:  # fmt: skip
        server.wait_connected()
        send(server, 1)
        assert entered.wait(PATIENCE)
        send(server, *range(2, 52))
        while listener.stats.dropped < 40:
            assert not listener.join(0.01)
        found = scrape(page)
        go_on.set()
    assert value(found, "finx_listener_queue_depth", listener="slow") == 10
    assert value(found, "finx_listener_dropped_ticks_total", listener="slow", pair=PAIR) == 40


def test_exchanges_show_and_are_bounded(page: metrics.MetricsPage) -> None:
    """The names come from data. Those beyond the limit share one label."""
    known = ExchangeStats(True, trades=7, reconnects=1, gaps=3, filled=2, unfilled=1, lost=4, lag=0.5, error=KEY)
    others = {f"E{number}": ExchangeStats(trades=1, lag=float(number)) for number in range(MOST_EXCHANGES + 20)}
    with LocalServer(Fed({"KRAKEN": known} | others)) as server:
        found = scrape(page)
    here = {"server": f"127.0.0.1:{server.port}", "exchange": "KRAKEN"}
    expected = {"connected": 1, "trades_total": 7, "reconnects_total": 1, "gaps_total": 3, "unfilled_gaps_total": 1}
    expected |= {"filled_trades_total": 2, "lost_trades_total": 4, "lag_seconds": 0.5}
    assert {name: value(found, f"finx_exchange_{name}", **here) for name in expected} == expected
    rest = here | {"exchange": OTHER}
    assert value(found, "finx_exchange_trades_total", **rest) == 21
    assert value(found, "finx_exchange_lag_seconds", **rest) == MOST_EXCHANGES + 19
    assert len(label_values(found, "exchange")) == MOST_EXCHANGES + 1


def test_a_recording_shows(page: metrics.MetricsPage, seen: Seen, tmp_path: Path) -> None:
    """How much waits for the disk, and whether it works."""
    pytest.importorskip("pyarrow", reason="the extra `archive` is not installed")
    with LocalServer(Market()) as server, seen.listener(server.url, name="mine", record=tmp_path):
        begin(server, seen)
        found = scrape(page)
    assert value(found, "finx_recorder_queue_limit_bytes", listener="mine") == 64 << 20
    assert value(found, "finx_recorder_dropped_entries_total", listener="mine") == 0
    assert value(found, "finx_recorder_writable", listener="mine") == 1


def test_no_key_is_on_the_page(page: metrics.MetricsPage, seen: Seen, tmp_path: Path) -> None:
    """Wherever a user or a server puts it: names, pairs, exchanges, directories and the texts of errors."""
    pair = "S3CR3TKEY:USDC"
    exchanges = {KEY: ExchangeStats(trades=1, error=KEY)}
    publisher = Publisher(KEY, published=1)
    record = tmp_path / "S3cr3tKey" if find_spec("pyarrow") else None
    with (
        Peer(lambda caller: stay(caller, frame(json.dumps({"results": KEY})))) as peer,
        LocalServer(Market(pair), keys={"S3cr3tKey"}) as server,
        LocalServer(Fed(exchanges)) as fed,
        seen.listener(peer.url, name=KEY, api_key=KEY),
        seen.listener(server.url, pair, name="S3cr3tKey", api_key="S3cr3tKey", record=record),
        seen.listener(fed.url, name='a\n\ud800"\\ ' + KEY, api_key=KEY),
    ):
        server.wait_connected()
        server.emit(tick(1, pair, exchange=KEY))
        seen.wait_ticks(1)
        seen.wait_for(lambda: seen.errors or seen.notices)
        texts = [fetch(page.url), fetch(page.url, OPENMETRICS), fetch(f"{page.url}?name[]=finx_listener_ticks_total")]
        for text in texts:
            assert_clean(text, "page")
        found = samples_of(parse_openmetrics(texts[1]))
    assert label_values(found, "listener") == {"***", 'a\\n\\ud800"\\ ***'}
    assert label_values(found, "pair") >= {"***:USDC"}
    assert (label_values(found, "exchange"), label_values(found, "publisher")) == ({"***"}, {"***"})
    assert publisher.published == 1


def test_listeners_of_one_name_are_added_and_never_go_back(page: metrics.MetricsPage, seen: Seen) -> None:
    """Also when one of them ends, starts again, or no longer listens to a pair."""
    totals: list[float] = []
    received: list[float] = []

    def look() -> None:
        found = scrape(page)
        totals.append(found["finx_listener_ticks_total", (("listener", "twin"), ("pair", PAIR))])
        received.append(found["finx_listener_received_bytes_total", (("listener", "twin"),)])

    with LocalServer(Market(PAIR, OTHER_PAIR)) as server, seen.listener(server.url, PAIR, name="twin") as one:
        with seen.listener(server.url, PAIR, OTHER_PAIR, name="twin") as other:
            server.wait_connected(3)
            send(server, *range(5))
            seen.wait_ticks(10)
            look()
            other.remove(PAIR)
            server.wait_until(lambda stats: stats.streams == 2)
            look()
        look()
        other.start()
        server.wait_connected(2)
        send(server, 5, 6)
        send(server, 5, pair=OTHER_PAIR)
        seen.wait_ticks(13)
        look()
        one.stop()
        assert value(scrape(page), "finx_listener_ticks_total", listener="twin", pair=PAIR) is None
        one.start()
        server.wait_connected(2)
        send(server, 7)
        seen.wait_ticks(14)
        look()
        other.stop()
    assert totals == [10, 10, 10, 12, 1]
    assert received[:4] == sorted(received[:4])
    assert label_values(scrape(page), "listener") == set()


def test_pairs_beyond_the_limit_share_a_label(page: metrics.MetricsPage, seen: Seen) -> None:
    """Their ticks are added, and no tick is missing."""
    pairs = [f"C{number}:USDC" for number in range(MOST_PAIRS + 30)]
    with (
        LocalServer(Market(*pairs)) as server,
        seen.listener(Endpoint(server.url, wire="subscribe"), *pairs, name="many") as listener,
    ):
        server.wait_connected(len(pairs))
        server.emit(*(tick(number, pair) for number, pair in enumerate(pairs)))
        while listener.stats.ticks < len(pairs):  # streams that share a connection learn of their ticks later
            assert not listener.join(0.01)
        found = scrape(page)
    counts = {labels: count for (name, labels), count in found.items() if name == "finx_listener_ticks_total"}
    assert (len(counts), sum(counts.values())) == (MOST_PAIRS + 1, len(pairs))
    assert value(found, "finx_listener_ticks_total", listener="many", pair=OTHER) == 30


NAMES = st.lists(st.sampled_from("abcdefgh"), max_size=8)


@given(st.lists(NAMES, max_size=10), st.integers(1, 5))
def test_few_names_have_a_label_and_keep_it(rounds: list[list[str]], most: int) -> None:
    """As long as they are there. The others share one."""
    names, before = Names(most), dict[str, str]()
    for present in rounds:
        labels = names.labels(present)
        assert set(labels) == set(present)
        own = {name for name, label in labels.items() if label != OTHER}
        assert all(labels[name] == name for name in own)
        assert len(own) == min(most, len(labels))
        assert {name for name, label in before.items() if label != OTHER and name in labels} <= own
        before = labels


#: Publishers begin, count, fail, end. Which one it is, and by how much it counts.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "count", "fail", "work", "end", "look"]), st.integers(0, 80), st.integers(0, 9)
    ),
    max_size=40,
)


@given(STEPS)
def test_counters_never_go_back_and_labels_are_bounded(steps: list[tuple[str, int, int]]) -> None:
    """With any owners and names, each counter grows by what was counted, or disappears."""
    collector, publishers = StatsCollector(), dict[int, Publisher]()
    before: Samples = read(collector)
    # More than there is room for: most steps concern the others.
    crowd = [Publisher(f"crowd {number}") for number in range(MOST_OWNERS - 2)]
    for step, number, amount in [*steps, ("look", 0, 0)]:
        if step == "begin":
            publishers.setdefault(number, Publisher(f"p{number % 7}", published=amount))
        elif step == "end":
            publishers.pop(number, None)
            gc.collect()
        elif step == "look":
            found = read(collector)
            assert len(label_values(found, "publisher")) <= MOST_OWNERS + 1
            for key, count in found.items():
                if key[0].endswith("_total"):
                    assert count >= before.get(key, 0)
            before = found
        elif number in publishers:
            publishers[number].published += amount if step == "count" else 0
            publishers[number].fails = step == "fail" or (step != "work" and publishers[number].fails)
    assert len(crowd) == MOST_OWNERS - 2


def test_a_snapshot_that_fails_is_counted_and_costs_nothing_else(page: metrics.MetricsPage) -> None:
    """Its counters stay, and go on without counting anything twice."""
    one, other = Publisher("one", published=5, waiting=3), Publisher("other", published=1)
    name, failures = "finx_publisher_published_ticks_total", FAILURES.sample_name
    assert value(scrape(page), name, publisher="one", exchange="***") == 5
    one.fails, one.published, other.published = True, 6, 2
    found = scrape(page)
    assert (
        value(found, name, publisher="one", exchange="***"),
        value(found, name, publisher="other", exchange="***"),
    ) == (5, 2)
    assert value(found, "finx_publisher_waiting_ticks", publisher="one") is None
    assert value(found, failures, kind="publisher") == 1
    one.fails = False
    found = scrape(page)
    assert value(found, name, publisher="one", exchange="***") == 6
    assert (value(found, failures, kind="publisher"), value(found, failures, kind="listener")) == (1, 0)


def test_what_is_gone_disappears(page: metrics.MetricsPage) -> None:
    """Registering keeps nothing alive."""
    publisher = Publisher("brief")
    assert label_values(scrape(page), "publisher") == {"brief"}
    del publisher
    gc.collect()
    assert label_values(scrape(page), "publisher") == set()


def test_scrapes_while_ticks_flow(page: metrics.MetricsPage) -> None:
    """Several at once, with listeners that come and go: all can be parsed, and each counter grows."""
    failures: list[BaseException] = []
    done = threading.Event()

    def watch() -> None:
        before: Samples = {}
        try:
            while not done.is_set():
                found = samples_of(parse_openmetrics(fetch(page.url, OPENMETRICS)))
                lower = {
                    key for key, count in found.items() if key[0].endswith("_total") and count < before.get(key, 0)
                }
                assert {key for key in lower if ("listener", "brief") not in key[1]} == set()
                before = found
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=watch) for _ in range(2)]
    with (
        LocalServer(SimulatedMarket(rate=None)) as server,
        StreamListener(PAIR, OTHER_PAIR, endpoint=server.url, api_key="demo", on_tick=len, name="steady") as steady,
    ):
        for thread in threads:
            thread.start()
        for _ in range(10):
            with StreamListener(PAIR, endpoint=server.url, api_key="demo", on_tick=len, name="brief"):
                scrape(page)
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert steady.stats.ticks > 0
    assert failures == []


def test_a_client_that_sends_nothing_delays_no_other(page: metrics.MetricsPage) -> None:
    """Each has a thread of its own."""
    with socket.create_connection(("127.0.0.1", page.port)):
        assert "finx_build_info" in fetch(page.url)


def test_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a thread, so one too many is disconnected at once. Once another one leaves, there is room."""
    monkeypatch.setattr("finx_streamer.metrics.page._MOST_CLIENTS", 1)
    with metrics.expose(0) as page:
        where = ("127.0.0.1", page.port)
        with socket.create_connection(where) as first, socket.create_connection(where, PATIENCE) as second:
            assert second.recv(1) == b""
            assert select.select([first], [], [], 0.0)[0] == []

        def has_room() -> bool:
            with contextlib.suppress(OSError):
                return "finx_build_info" in fetch(page.url)
            return False

        wait_until(has_room, "there is room")


def test_only_wanted_metrics(page: metrics.MetricsPage) -> None:
    """Prometheus can ask for a few."""
    publisher = Publisher("one", published=5)
    text = fetch(f"{page.url}?name[]={PUBLISHED.rows[0].sample_name}")
    labels = (("exchange", "***"), ("publisher", "one"))
    assert samples_of(parse_text(text)) == {(PUBLISHED.rows[0].sample_name, labels): 5}
    assert publisher.published == 5


def test_the_port(page: metrics.MetricsPage) -> None:
    """It is on loopback, a taken one is refused, and `close` frees it."""
    assert (page.url, page._server.server_address[0]) == (f"http://127.0.0.1:{page.port}/metrics", "127.0.0.1")
    with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{page.port}: .*; pass another port, or 0"):
        metrics.expose(page.port)
    page.close()
    page.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", page.port))
    with metrics.expose(page.port, host="127.0.0.1") as again:
        assert again.port == page.port
        assert repr(again) == f"<MetricsPage {again.url}>"


@pytest.mark.parametrize(
    ("port", "host"), [(-1, "127.0.0.1"), (65_536, "127.0.0.1"), ("9464", "::1"), (0, ""), (0, None)]
)
def test_wrong_arguments_are_refused(port: Any, host: Any) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=r"^(port|host): "):
        metrics.expose(port, host)


def test_without_the_extra() -> None:
    """The error says what to install. Everything else works."""
    done = run_program("imported_modules", "finx_streamer.metrics", "--hide", "prometheus_client")
    assert done.returncode == 1
    assert (
        'ImportError: finx_streamer.metrics needs the prometheus_client package: pip install "finx-streamer[metrics]"'
        in done.stderr
    )
    done = run_program("imported_modules", "finx_streamer", "finx_streamer.server", "--hide", "prometheus_client")
    assert (done.returncode, "prometheus_client" in done.stdout) == (0, False)


def test_the_names_follow_the_conventions() -> None:
    """A prefix, base units, and no name twice. prometheus_client checks the rest."""
    rows = [row for group in GROUPS for row in group.rows]
    assert len({row.name for row in rows}) == len(rows)
    for row in (*rows, FAILURES):
        assert re.fullmatch(r"finx_[a-z]+(_[a-z]+)+", row.name)
        assert not row.name.endswith("_total")
        assert [unit for unit in ("seconds", "bytes") if row.name.endswith(unit)] == ([row.unit] if row.unit else [])
        assert re.fullmatch(r"[A-Z0-9].*\.", row.help)
    families = {family.name: family for family in StatsCollector().describe()}
    assert {row.name for row in (*rows, FAILURES)} == set(families) - {"finx_build"}


def produced() -> set[str]:
    """The names of all samples that a page can have."""
    return {row.sample_name for group in GROUPS for row in group.rows} | {FAILURES.sample_name, "finx_build_info"}


def test_the_dashboard_uses_what_there_is() -> None:
    """It is valid, each of its queries asks for metrics that exist, and it shows all of them."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert [each["title"] for each in panels if each["type"] == "row"] == [
        "Listeners", "Servers", "Exchanges", "Publishers", "Gateways",
    ]  # fmt: skip
    assert len({each["id"] for each in panels}) == len(panels)
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels]
    assert len(set(places)) == len(places)
    queries = [target for each in panels for target in each.get("targets", ())]
    asked = {name for target in queries for name in re.findall(r"finx_\w+", target["expr"])}
    assert asked == produced()
    labels = {label for group in GROUPS for label in group.labels} | {"kind", "version"}
    shown = {label for target in queries for label in re.findall(r"{{(\w+)}}", target["legendFormat"])}
    assert shown <= labels


def test_the_documentation_lists_all_metrics() -> None:
    """With their types, labels and meanings."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(finx_\w+)` \| (\w+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    rows = [(group.labels, row) for group in GROUPS for row in group.rows] + [(("kind",), FAILURES)]
    expected = [
        (row.sample_name, row.type, ", ".join(f"`{each}`" for each in labels), row.help) for labels, row in rows
    ]
    assert sorted(listed) == sorted(
        [*expected, ("finx_build_info", "gauge", "`version`", "The version of this package.")]
    )
