"""Streams without gaps, end to end: `on_tick` gets what the market sent, whenever connections break."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme

from finx_streamer import CallTimeout, Gap, GapNotFilled
from finx_streamer import run as run_module
from finx_streamer.connection import relief
from finx_streamer.server import LocalServer, Tape
from tests.support.market import BEGIN, OTHER, PAIR, Market, begin, interrupt, outage, prices, send, tick, wait_held
from tests.support.peers import PATIENCE, Seen
from tests.support.storm import bursts, killings, shared_storm, storm, with_outages
from tests.support.tls import client_context, server_context
from tests.support.turns import TURNS


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2, resumable=False) as server:
        yield server


# Filled gaps.


def test_ticks_of_an_outage_come_before_the_live_ones(server: LocalServer, seen: Seen, dispatch: str) -> None:
    """Missed ticks are fetched, marked, and delivered in order with the gap."""
    order: list[Any] = []
    with seen.listener(server.url, backfill=True, dispatch=dispatch) as listener:
        listener.on_tick(lambda each: order.append((int(each["price"]) - 19_200, each["backfilled"])))
        listener.on_gap(order.append)
        server.wait_connected(1)
        send(server, 1, 2)
        seen.wait_ticks(2)
        with outage(server, seen):
            send(server, 3, 4, 5)
        send(server, 6, 7)
        seen.wait_ticks(7)
        gap = seen.gaps[0]
        assert order == [(1, False), (2, False), (3, True), (4, True), (5, True), gap, (6, False), (7, False)]
        assert gap.symbol == PAIR
        assert (gap.since, gap.until) == (BEGIN + timedelta(milliseconds=20), BEGIN + timedelta(milliseconds=60))
        assert (gap.filled, gap.ticks) == (True, 3)
        stats = listener.stats.streams[PAIR]
        assert (stats.gaps, stats.filled_ticks, stats.ticks) == (1, 3, 7)
    assert seen.of_type(GapNotFilled) == []


def test_every_reconnect_reports_a_gap(server: LocalServer, seen: Seen) -> None:
    """A gap without missed ticks has no ticks. Each interruption has its own gap."""
    with seen.listener(server.url, backfill=True):
        server.wait_connected(1)
        for number in (1, 11, 21):
            send(server, number)
            seen.wait_for(lambda number=number: number in prices(seen))  # type: ignore[misc]
            with outage(server, seen):
                pass
            send(server, number + 5)
            seen.wait_for(lambda number=number: number + 5 in prices(seen))  # type: ignore[misc]
        assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 0)] * 3
    assert prices(seen) == [1, 6, 11, 16, 21, 26]


def test_missed_ticks_do_not_wait_for_a_live_one(server: LocalServer, seen: Seen) -> None:
    """In a quiet market, history is fetched without a live tick."""
    with seen.listener(server.url, backfill=True):
        begin(server, seen)
        with outage(server, seen):
            send(server, 2, 3)
        seen.wait_ticks(3)
        seen.wait_for(lambda: seen.gaps)
        gap = seen.gaps[0]
        assert (gap.filled, gap.ticks, gap.until) == (True, 2, BEGIN + timedelta(milliseconds=30))
        send(server, 4)
        seen.wait_ticks(4)
    assert prices(seen) == [1, 2, 3, 4]


def test_a_gap_may_span_many_pages_and_days(server: LocalServer, seen: Seen) -> None:
    """Thousands of ticks across two midnights are fetched page by page."""
    numbers = [*range(2, 3_000), *range(8_640_000, 8_641_500), *range(17_280_001, 17_281_200)]
    with seen.listener(server.url, backfill=True, queue_size=100):
        begin(server, seen)
        with outage(server, seen):
            send(server, *numbers)
        send(server, 17_281_300)
        seen.wait_ticks(len(numbers) + 2)
    assert prices(seen) == [1, *numbers, 17_281_300]
    assert [gap.ticks for gap in seen.gaps] == [len(numbers)]


def test_equal_ticks_are_different_trades(server: LocalServer, seen: Seen) -> None:
    """Equal ticks before, in and after the outage are each delivered once."""
    with seen.listener(server.url, backfill=True):
        server.wait_connected(1)
        send(server, 1, 1)
        seen.wait_ticks(2)
        with outage(server, seen):
            send(server, 1, 1, 1)
        send(server, 1, 2)
        seen.wait_ticks(7)
    assert prices(seen) == [1] * 6 + [2]
    assert seen.gaps[0].ticks == 3


def test_unwanted_exchanges_are_not_filled(server: LocalServer, seen: Seen) -> None:
    """`exchanges` applies to history as well as to the live stream."""
    with seen.listener(server.url, backfill=True, exchanges=["OKX"]):
        server.wait_connected(1)
        server.emit(tick(1, exchange="OKX"))
        seen.wait_ticks(1)
        with outage(server, seen):
            server.emit(tick(2), tick(3, exchange="OKX"), tick(4))
        server.emit(tick(5), tick(6, exchange="OKX"))
        seen.wait_ticks(3)
    assert prices(seen) == [1, 3, 6]
    assert [gap.ticks for gap in seen.gaps] == [1]


def test_backfilled_prices_are_parsed_too(server: LocalServer, seen: Seen) -> None:
    """`parse_price` applies to history as well as to the live stream."""
    with seen.listener(server.url, backfill=True, parse_price=Decimal):
        interrupt(server, seen)
        seen.wait_ticks(3)
    assert [each["price"] for each in seen.ticks] == [Decimal("19201.50"), Decimal("19202.50"), Decimal("19203.50")]


def test_a_gap_is_not_filled_if_prices_never_compare_equal(server: LocalServer, seen: Seen) -> None:
    """If ticks can't be recognized, none is delivered twice, and the gap reports why."""

    class Price:
        """Comparable, but not hashable, like most mutable classes."""

        def __init__(self, text: str) -> None:
            self.text = text

        def __int__(self) -> int:
            return int(float(self.text))

    with seen.listener(server.url, backfill=True, parse_price=Price):
        interrupt(server, seen)
        seen.wait_ticks(2)
    assert prices(seen) == [1, 3]
    assert "has none of the ticks" in str(seen.of_type(GapNotFilled)[0])


def test_history_comes_over_tls(seen: Seen) -> None:
    """The listener's own SSL context is used."""
    authority = trustme.CA()
    serving, context = server_context(authority.issue_cert("localhost")), client_context(authority)
    with (
        LocalServer(Market(), keys={"demo"}, ssl_context=serving, host="localhost") as server,
        seen.listener(server.url, backfill=True, ssl_context=context),
    ):
        interrupt(server, seen)
        seen.wait_ticks(3)
    assert prices(seen) == [1, 2, 3]


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_gaps_are_filled_with_a_queue_that_drops(server: LocalServer, seen: Seen, overflow: str) -> None:
    """The overflow policy may drop backfilled ticks, too."""
    with seen.listener(server.url, backfill=True, overflow=overflow, queue_size=1_000) as listener:
        begin(server, seen)
        with outage(server, seen):
            send(server, 2, 3, 4)
        send(server, 5)
        seen.wait_for(lambda: 5 in prices(seen))
        stats = listener.stats
        assert stats.ticks == len(seen.ticks)
        assert stats.ticks + stats.dropped == 5
        assert stats.filled_ticks == 3


def test_a_restarted_tape_fills_a_gap_without_duplicates(seen: Seen, tmp_path: Path) -> None:
    """The server plays its tape again, past the client's position, with the store of its first run."""
    ticks, options = [tick(number) for number in range(300)], {"keys": {"demo"}, "store": tmp_path / "ticks.db"}
    with LocalServer(Tape(ticks, speed=2.0), **options) as server:
        listener = seen.listener(server.url, backfill=True).start()
        seen.wait_ticks(120)
    with listener, LocalServer(Tape(ticks, speed=1e9, wait_for=0), port=server.port, **options) as again:
        again.refuse_next(None, 503)
        again.wait_finished()
        again.refuse_next(0, 503)
        seen.wait_for(lambda: bool(seen.gaps))
        seen.wait_ticks(300)
    assert prices(seen) == list(range(300))
    assert seen.gaps[0].filled


# Unfilled gaps.


def test_without_backfill_gaps_are_reported(server: LocalServer, seen: Seen, dispatch: str) -> None:
    """`backfill=False` fetches nothing. Each gap is reported before the first live tick."""
    order: list[Any] = []
    with seen.listener(server.url, backfill=False, dispatch=dispatch) as listener:
        listener.on_tick(lambda each: order.append(int(each["price"]) - 19_200))
        listener.on_gap(order.append)
        begin(server, seen)
        with outage(server, seen):
            send(server, 2)
        send(server, 3, 4)
        seen.wait_ticks(3)
    gap = seen.gaps[0]
    assert order == [1, gap, 3, 4]
    expected = Gap(PAIR, BEGIN + timedelta(milliseconds=10), BEGIN + timedelta(milliseconds=30), False, 0)
    assert gap == expected
    assert seen.of_type(GapNotFilled) == []
    assert server.stats.calls == 0


@pytest.mark.parametrize("message", ["function 'tickHistory' is not available", "no rights"])
def test_without_history_the_live_ticks_are_released(server: LocalServer, seen: Seen, message: str) -> None:
    """If history is refused, the gap reports it and the stream goes on."""
    server.fail_functions(None, message)
    with seen.listener(server.url, backfill=True) as listener:
        interrupt(server, seen)
        seen.wait_ticks(2)
        seen.wait_for(lambda: seen.of_type(GapNotFilled))
        assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(False, 0)]
        error = seen.of_type(GapNotFilled)[0]
        assert error.symbol == PAIR
        assert message in str(error)
        assert (listener.stats.gaps, listener.stats.filled_ticks) == (1, 0)
    assert prices(seen) == [1, 3]


def test_a_given_up_gap_is_not_filled_later(server: LocalServer, seen: Seen) -> None:
    """A later gap is filled with its own missed ticks only."""
    server.fail_functions(1)
    with seen.listener(server.url, backfill=True):
        interrupt(server, seen)
        seen.wait_ticks(2)
        with outage(server, seen):
            send(server, 4)
        send(server, 5)
        seen.wait_ticks(4)
    assert prices(seen) == [1, 3, 4, 5]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(False, 0), (True, 1)]


def test_the_wait_for_history_is_bounded(server: LocalServer, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live ticks are delivered after the timeout."""
    monkeypatch.setattr(run_module, "HISTORY_TIMEOUT", 0.2)
    server.stall_functions(None)
    with seen.listener(server.url, backfill=True):
        interrupt(server, seen)
        seen.wait_ticks(2)
        seen.wait_for(lambda: seen.of_type(GapNotFilled))
    assert prices(seen) == [1, 3]
    assert "no answer within 0.2 s" in str(seen.of_type(GapNotFilled)[0])
    assert seen.of_type(CallTimeout) == []


def test_before_the_first_tick_there_is_no_gap(server: LocalServer, seen: Seen) -> None:
    """Without a tick before the outage it is unknown from when on ticks are missing, so nothing is reported."""
    with seen.listener(server.url, backfill=True):
        server.wait_connected(1)
        with outage(server, seen):
            send(server, 1)
        send(server, 2)
        seen.wait_ticks(1)
        assert (prices(seen), seen.gaps, server.stats.calls) == ([2], [], 0)


# During a gap.


def test_other_streams_go_on_during_a_gap(server: LocalServer, seen: Seen) -> None:
    """While history hangs for one stream, the ticks of another are delivered."""
    server.stall_functions(None)
    with seen.listener(server.url, PAIR, OTHER, backfill=True):
        server.wait_connected(2)
        send(server, 1)
        send(server, 1, pair=OTHER)
        seen.wait_ticks(2)
        with outage(server, seen):
            send(server, 2)
        send(server, 3)
        server.wait_until(lambda stats: stats.calls >= 1)
        send(server, *range(2, 500), pair=OTHER)
        seen.wait_for(lambda: len(prices(seen, OTHER)) == 499)
        assert prices(seen) == [1]
        server.stall_functions(0)
        server.resume()
        seen.wait_for(lambda: prices(seen) == [1, 2, 3])
    assert prices(seen, OTHER) == list(range(1, 500))


def test_held_ticks_are_bounded(server: LocalServer, seen: Seen) -> None:
    """During a long gap the stream is read up to the queue's size, and nothing is lost."""
    server.stall_functions(None)
    with seen.listener(server.url, backfill=True, queue_size=50) as listener:
        begin(server, seen)
        with outage(server, seen):
            send(server, 2)
        for block in range(100):
            send(server, *range(3 + block * 100, 103 + block * 100))
        server.wait_until(lambda stats: stats.calls >= 1)
        assert listener.stats.streams[PAIR].messages < 2_000
        server.stall_functions(0)
        server.resume()
        seen.wait_ticks(10_002)
    assert prices(seen) == list(range(1, 10_003))


def test_stop_during_a_gap(server: LocalServer, seen: Seen) -> None:
    """It doesn't wait for history: received ticks are delivered, and the gap is not filled."""
    server.stall_functions(None)
    listener = seen.listener(server.url, backfill=True).start()
    begin(server, seen)
    with outage(server, seen):
        send(server, 2)
    send(server, 3, 4)
    server.wait_until(lambda stats: stats.calls >= 1)
    wait_held(listener, 2)
    asked = time.monotonic()
    assert listener.stop(PATIENCE)
    assert time.monotonic() - asked < PATIENCE / 2
    assert listener.join(0)
    assert prices(seen) == [1, 3, 4]
    assert [gap.filled for gap in seen.gaps] == [False]
    assert [thread.name for thread in threading.enumerate() if listener.name in thread.name] == []


def test_remove_during_a_gap(server: LocalServer, seen: Seen) -> None:
    """Received ticks are delivered. A new stream of the same pair starts without a gap."""
    server.stall_functions(None)
    with seen.listener(server.url, PAIR, OTHER, backfill=True) as listener:
        begin(server, seen, streams=2)
        with outage(server, seen):
            send(server, 2)
        send(server, 3)
        server.wait_until(lambda stats: stats.calls >= 1)
        wait_held(listener, 1)
        listener.remove(PAIR)
        seen.wait_ticks(2)
        server.wait_until(lambda stats: PAIR not in stats.symbols)
        listener.add(PAIR)
        server.wait_connected(2)
        send(server, 4)
        seen.wait_ticks(3)
    assert prices(seen) == [1, 3, 4]
    assert [gap.filled for gap in seen.gaps] == [False]


def test_a_silent_server_causes_a_gap(server: LocalServer, seen: Seen) -> None:
    """A missing pong ends the connection, and the gap is filled."""
    with seen.listener(server.url, backfill=True, ping_interval=0.1, ping_timeout=0.1):
        begin(server, seen)
        connections = server.stats.connections_total
        server.go_silent()
        send(server, 2)
        server.wait_until(lambda stats: stats.connections_total > connections)
        send(server, 3)
        seen.wait_ticks(3)
    assert prices(seen) == [1, 2, 3]


def test_a_lost_history_connection_is_replaced(server: LocalServer, seen: Seen) -> None:
    """The call is repeated, and the gap is filled."""
    server.drop_functions(2)
    with seen.listener(server.url, backfill=True):
        interrupt(server, seen)
        seen.wait_ticks(3)
    assert [gap.filled for gap in seen.gaps] == [True]


# Storms.


def take_turns(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have the listener's threads take turns as `turns` says. Return the other settings."""
    others = dict(settings)
    if (turns := others.pop("turns", None)) is not None:
        monkeypatch.setattr(relief, "TIMING", TURNS[turns])
    return others


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("count", "faults"), [(2_000, 25), pytest.param(8_000, 100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("seed", "settings"),
    [(1, {}), (2, {"dispatch": "inline"}), (3, {"queue_size": 64}), (7, {"turns": "changing hands"})],
    ids=["thread", "inline", "small queue", "changing hands"],
)
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
def test_nothing_is_lost_in_a_storm(
    seed: int, settings: dict[str, Any], resumable: bool, count: int, faults: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random faults and bursts of equal ticks, each tick is delivered once and in order."""
    settings = take_turns(settings, monkeypatch)
    ticks = bursts([PAIR, OTHER], count, random.Random(seed))
    outcome = storm(ticks, 800.0, faults, seed, resumable=resumable, **settings)
    print(outcome)
    assert outcome.mistakes() == []
    assert len(outcome.gaps) > faults // 10


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
def test_nothing_is_lost_in_a_storm_of_our_server_on_one_connection(seed: int, resumable: bool) -> None:
    """Ticks that history has before they arrive don't come twice, even if their stream has not joined yet."""
    ticks = bursts([PAIR, OTHER], 2_000, random.Random(seed))
    outcome = storm(ticks, 800.0, 25, seed, "subscribe", resumable, queue_size=64)
    print(outcome)
    assert outcome.mistakes() == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("count", "faults"), [(2_000, 25), pytest.param(8_000, 100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_nothing_is_lost_when_exchanges_are_away(wire: Literal["url", "subscribe"], count: int, faults: int) -> None:
    """An exchange's ticks come late and all at once, and connections break. Only IDs make that exact."""
    rng = random.Random(6)
    outcome = storm(with_outages(bursts([PAIR, OTHER], count, rng), rng), 800.0, faults, 6, wire)
    print(outcome)
    assert outcome.mistakes() == []
    assert len(outcome.gaps) > faults // 10


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("count", "faults"), [(2_000, 25), pytest.param(8_000, 100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("confirms", [False, True], ids=["as FinX", "as our server"])
@pytest.mark.parametrize(
    ("seed", "settings"),
    [(1, {}), (2, {"dispatch": "inline"}), (3, {"queue_size": 64}), (7, {"turns": "changing hands"})],
    ids=["thread", "inline", "small queue", "changing hands"],
)
def test_nothing_is_lost_in_a_storm_on_one_connection(
    seed: int, settings: dict[str, Any], confirms: bool, count: int, faults: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On FinX's second wire, from a service that shares no code with ours."""
    settings = take_turns(settings, monkeypatch)
    outcome = shared_storm(bursts([PAIR, OTHER], count, random.Random(seed)), faults, seed, confirms, **settings)
    print(outcome)
    assert outcome.mistakes() == []
    assert len(outcome.gaps) > faults // 10


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("count", "kills"), [(1_800, 2), pytest.param(6_000, 6, marks=pytest.mark.slow)])
def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path, count: int, kills: int) -> None:
    """The server dies by SIGKILL at random moments, and its store loses the last batch each time."""
    outcome = killings(tmp_path, bursts([PAIR, OTHER], count, random.Random(5)), 700.0, kills, 5)
    print(outcome)
    assert outcome.mistakes() == []
    assert len(outcome.gaps) > kills // 2


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("count", "faults"), [(500, 25), pytest.param(None, 100, marks=pytest.mark.slow)])
def test_recorded_trades_survive_a_storm(shared_data: Path, count: int | None, faults: int) -> None:
    """The same with recorded trades: they are years apart, and many are equal."""
    lines = [json.loads(line) for line in (shared_data / "tape-small.jsonl").read_text().splitlines()]
    ticks = [line for line in lines if line["pair"] in ("BTC:USDT", "ETH:USDT")]
    outcome = storm(ticks[:count], 200.0, faults, seed=4)
    print(outcome)
    assert outcome.mistakes() == []
    assert len(outcome.gaps) > faults // 10
