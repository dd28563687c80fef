"""`since`: history, then live ticks, as one sequence. On real sockets, over both wires."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

from finx_streamer import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailed,
    Endpoint,
    GapNotFilled,
    State,
    StreamListener,
    StreamNotFound,
)
from finx_streamer.run import Settings
from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.streaming import catch_up
from finx_streamer.streaming.catch_up import Past
from tests.support.market import BEGIN, OTHER, PAIR, Market, outage, prices, send, tick
from tests.support.peers import PATIENCE, Seen
from tests.support.program import program_environment
from tests.support.storm import bursts, shared_storm, storm

#: A second, in numbers of the market's ticks.
SECOND = 100


@pytest.fixture(params=[False, True], ids=["no log", "log"])
def server(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2, resumable=request.param) as server:
        yield server


@pytest.fixture(params=["url", "subscribe"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def since(server: LocalServer, seen: Seen, *symbols: str, wire: str = "url", **settings: Any) -> StreamListener:
    """A listener that begins with history."""
    defaults = {"backfill": True, "since": BEGIN}
    return seen.listener(Endpoint(server.url, wire=wire), *symbols, **defaults | settings)  # type: ignore[arg-type]


def wait_live(seen: Seen, symbol: str = PAIR) -> None:
    seen.wait_for(lambda: any(gap.symbol == symbol for gap in seen.gaps))


# One sequence.


def test_history_comes_first(server: LocalServer, seen: Seen, wire: str, dispatch: str) -> None:
    """History is marked. The gap comes between history and the live ticks."""
    order: list[Any] = []
    send(server, 1, 2, 150, 400, 401)
    with since(server, seen, wire=wire, dispatch=dispatch, since=BEGIN + timedelta(milliseconds=20)) as listener:
        listener.on_tick(lambda each: order.append((int(each["price"]) - 19_200, each["backfilled"])))
        listener.on_gap(order.append)
        server.wait_connected(1)
        send(server, 402, 403)
        seen.wait_ticks(6)
        wait_live(seen)
        gap = seen.gaps[0]
        assert order[:4] == [(2, True), (150, True), (400, True), (401, True)]
        assert order[4:] == [gap, (402, False), (403, False)]
        assert (gap.symbol, gap.filled, gap.ticks) == (PAIR, True, 4)
        assert gap.since == BEGIN + timedelta(milliseconds=20)
        assert gap.until == BEGIN + timedelta(milliseconds=4_020)
        stats = listener.stats
        assert (stats.catching_up, stats.streams[PAIR].history_until) == (0, None)
        assert (stats.ticks, stats.filled_ticks, stats.gaps, stats.held) == (6, 4, 1, 0)
    assert seen.errors == []
    assert seen.states[:2] == [(PAIR, State.CONNECTING), (PAIR, State.STREAMING)]


def test_without_history_live_ticks_follow(server: LocalServer, seen: Seen, wire: str) -> None:
    """The gap is empty, and does not wait for a tick."""
    with since(server, seen, wire=wire):
        wait_live(seen)
        assert (seen.gaps[0].ticks, seen.gaps[0].filled, seen.gaps[0].until) == (0, True, BEGIN)
        send(server, 1)
        seen.wait_ticks(1)
    assert [each["backfilled"] for each in seen.ticks] == [False]


def test_ticks_between_the_last_page_and_the_stream_are_found(server: LocalServer, seen: Seen, wire: str) -> None:
    """They came when history had been read, and the stream wasn't open."""
    late = iter([(3 * SECOND, 3 * SECOND), (3 * SECOND + 1,)])

    def emit(_: Any) -> None:
        if numbers := next(late, None):
            send(server, *numbers)

    send(server, 1, 2 * SECOND)
    # Inline, the stream isn't opened before the callback returns.
    with since(server, seen, wire=wire, dispatch="inline") as listener:
        listener.on_tick(emit)
        wait_live(seen)
        server.wait_connected(1)
        send(server, 4 * SECOND)
        seen.wait_for(lambda: 4 * SECOND in prices(seen))
    assert prices(seen) == [1, 200, 300, 300, 301, 400]


def test_equal_trades_at_the_seam_are_counted(server: LocalServer, seen: Seen, wire: str) -> None:
    """Some in history, some live, all with the same exchange, time and price."""
    send(server, 1, *[SECOND] * 3)
    with since(server, seen, wire=wire):
        server.wait_connected(1)
        send(server, *[SECOND] * 4)
        send(server, SECOND + 1)
        seen.wait_for(lambda: SECOND + 1 in prices(seen))
        wait_live(seen)
    assert prices(seen) == [1] + [SECOND] * 7 + [SECOND + 1]


def test_late_ticks_are_found_on_either_side_of_the_seam(server: LocalServer, seen: Seen, wire: str) -> None:
    """An exchange is late by almost a second."""
    send(server, 1, 300)
    send(server, 220)  # late, in history
    with since(server, seen, wire=wire):
        server.wait_connected(1)
        server.emit(tick(215, exchange="OKX"), tick(301), tick(225, exchange="OKX"))
        seen.wait_ticks(6)
        wait_live(seen)
    assert sorted(prices(seen)) == [1, 215, 220, 225, 300, 301]


def test_a_long_history_comes_page_by_page(server: LocalServer, seen: Seen, wire: str) -> None:
    """Across two midnights. Meanwhile, the market goes on."""
    numbers = [*range(1, 6_000), *range(8_640_000, 8_641_500), *range(17_280_001, 17_281_200)]
    send(server, *numbers)
    send(server, *range(1, 500), pair=OTHER)
    more = [*range(17_282_000, 17_284_500)]
    with since(server, seen, PAIR, OTHER, wire=wire, queue_size=1_000):
        for number in more:
            send(server, number)
        wait_live(seen)
        seen.wait_for(lambda: len(prices(seen)) >= len(numbers) + len(more))
        wait_live(seen, OTHER)
    assert prices(seen) == numbers + more
    assert prices(seen, OTHER) == [*range(1, 500)]
    assert seen.errors == []


def test_later_outages_are_filled(server: LocalServer, seen: Seen) -> None:
    """Also before the first tick: it is known since when ticks are missing."""
    with since(server, seen):
        wait_live(seen)
        with outage(server, seen):
            send(server, 5, 6)
        seen.wait_for(lambda: len(prices(seen)) == 2)
        send(server, 7)
        seen.wait_ticks(3)
        with outage(server, seen):
            send(server, 8)
        send(server, 9)
        seen.wait_ticks(5)
    assert prices(seen) == [5, 6, 7, 8, 9]


def test_history_may_be_ahead_of_the_newest_id(server: LocalServer, seen: Seen, wire: str) -> None:
    """The connection is lost in the seam, and history brings what came then. The log doesn't repeat it."""
    send(server, 1, 2 * SECOND)
    listener = since(server, seen, wire=wire, dispatch="inline")
    calls: list[int] = []
    listener.on_state(lambda symbol, state: calls.append(server.stats.calls))
    with listener:
        # Inline, the stream isn't opened before the callback returns, and history isn't requested again.
        listener.on_tick(
            lambda each: server.stall_functions(1, function="tickHistory") if len(seen.ticks) == 1 else None
        )
        seen.wait_for(lambda: (PAIR, State.STREAMING) in seen.states)
        server.wait_until(lambda stats: stats.calls > calls[-1])
        with outage(server, seen):
            send(server, 3 * SECOND)
            server.resume()
            seen.wait_for(lambda: 3 * SECOND in prices(seen))
        send(server, 4 * SECOND)
        seen.wait_for(lambda: 4 * SECOND in prices(seen))
    assert prices(seen) == [1, 200, 300, 400]


def test_exchanges_and_prices_are_as_always(server: LocalServer, seen: Seen, wire: str) -> None:
    """Pages without a wanted tick are read once."""
    server.emit(tick(1, exchange="OKX"), *map(tick, range(2, 4_000)))
    with since(server, seen, wire=wire, exchanges=["OKX"], parse_price=Decimal):
        server.wait_connected(1)
        server.emit(tick(4_000), tick(4_001, exchange="OKX"))
        seen.wait_ticks(2)
        assert server.stats.calls < 20
    assert [each["price"] for each in seen.ticks] == [Decimal("19201.50"), Decimal("23201.50")]


def test_ticks_that_cannot_be_read_are_reported(server: LocalServer, seen: Seen) -> None:
    """The others are delivered."""

    def parse(text: str) -> float:
        if text in ("19202.50", "19399.50"):
            raise ValueError("unlucky")
        return float(text)

    send(server, *range(1, 200))
    with since(server, seen, parse_price=parse):
        server.wait_connected(1)
        send(server, 201)
        seen.wait_ticks(198)
        wait_live(seen)
    assert prices(seen) == [1, *range(3, 199), 201]
    assert (seen.gaps[0].filled, seen.gaps[0].ticks) == (False, 197)
    assert "2 ticks of history can't be read" in str(seen.of_type(GapNotFilled)[0])


# What `since` means.


def test_ages_are_before_each_start(seen: Seen) -> None:
    """Another run begins there again, and so does an added pair."""
    with LocalServer(SimulatedMarket(), keys={"demo"}) as server:
        listener = since(server, seen, since=timedelta(hours=1))
        for _ in range(2):
            before = datetime.now(UTC)
            with listener:
                seen.wait_for(lambda: seen.gaps)
                age = before - seen.gaps.pop().since
                assert abs(age - timedelta(hours=1)) < timedelta(seconds=PATIENCE)
        with listener:
            listener.add(OTHER)
            wait_live(seen, OTHER)


def test_a_time_is_the_same_for_each_start(server: LocalServer, seen: Seen) -> None:
    send(server, 1, 2)
    listener = since(server, seen, since="2022-07-02T15:30:00.02Z")
    for run in (1, 2):
        with listener:
            seen.wait_for(lambda run=run: len(seen.gaps) == run)  # type: ignore[misc]
    assert prices(seen) == [2, 2]


def test_an_added_pair_begins_there_too(server: LocalServer, seen: Seen, wire: str) -> None:
    send(server, 1, 2, pair=OTHER)
    with since(server, seen, wire=wire) as listener:
        wait_live(seen)
        listener.add(OTHER)
        wait_live(seen, OTHER)
        listener.remove(OTHER)
        listener.add(OTHER)
        seen.wait_for(lambda: len(seen.gaps) == 3)
    assert prices(seen, OTHER) == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"since": timedelta(hours=1), "backfill": False}, "backfill=False, which fetches no history"),
        ({"since": timedelta(seconds=-1)}, "a timedelta of 0 to"),
        ({"since": timedelta(days=99_999)}, "a timedelta of 0 to"),
        ({"since": datetime(2026, 11, 1)}, "no time zone"),
        ({"since": "1h"}, "ISO text"),
        ({"since": 3600}, "ISO text"),
    ],
)
def test_wrong_values_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match="since") as caught:
        StreamListener(PAIR, api_key="demo", **settings)
    assert message in str(caught.value)


def test_contracts_have_no_history(seen: Seen, wire: str) -> None:
    """Their values come live, next to a pair with history."""
    market = SimulatedMarket(rate=200.0, options=("BTC",))
    with (
        LocalServer(market, keys={"demo"}) as server,
        since(server, seen, PAIR, "BTC-PERPETUAL", wire=wire, since=timedelta(minutes=1)) as listener,
    ):
        assert listener.stats.catching_up <= 1
        seen.wait_greeks(1)
        wait_live(seen)
    assert [gap.symbol for gap in seen.gaps] == [PAIR]


# Failures.


def test_refused_history_is_reported(server: LocalServer, seen: Seen, wire: str) -> None:
    """As for any gap. The live ticks follow."""
    send(server, 1)
    server.fail_functions(None, "no such function", function="tickHistory")
    with since(server, seen, wire=wire):
        server.wait_connected(1)
        send(server, 2)
        seen.wait_ticks(1)
    assert prices(seen) == [2]
    assert [gap.filled for gap in seen.gaps] == [False]
    assert "no such function" in str(seen.of_type(GapNotFilled)[0])


def test_history_that_drops_connections_goes_on(server: LocalServer, seen: Seen) -> None:
    """Also between two pages."""
    send(server, *range(1, 8_000))
    server.drop_functions(2, reset=True)
    with since(server, seen) as listener:
        listener.on_tick(lambda each: server.drop_functions(1) if int(each["price"]) % 1_000 == 0 else None)
        wait_live(seen)
    assert prices(seen) == [*range(1, 8_000)]


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """History is requested again at once."""
    monkeypatch.setattr(catch_up, "CATCH_UP_DELAYS", (0.01,) * 2_000)


@pytest.mark.usefixtures("short_delays")
def test_history_continues_after_a_restart_of_the_server(seen: Seen, wire: str) -> None:
    """Each failure is reported with the next attempt. Nothing comes twice."""
    server = LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2)
    gate = threading.Event()
    with server:
        send(server, *range(1, 20_000))
        # A single attempt for each call: the failure isn't hidden by another one.
        with since(server, seen, wire=wire, queue_size=500) as listener:
            listener.on_tick(lambda each: gate.wait(PATIENCE) if int(each["price"]) == 19_200 + 50 else None)
            seen.wait_ticks(50)
            server.stop()
            gate.set()
            seen.wait_for(lambda: seen.of_type(ConnectionFailed))
            error = seen.of_type(ConnectionFailed)[0]
            assert (error.symbol, error.will_retry) == (PAIR, True)
            assert "no history" in str(error)
            assert listener.stats.catching_up == 1
            assert "delivering history of 1 pair, now at 2022-07-02" in repr(listener)
            assert listener.stats.last_error is not None
            server.start()
            wait_live(seen)
            send(server, 20_001)
            seen.wait_for(lambda: 20_001 in prices(seen))
    assert prices(seen) == [*range(1, 20_000), 20_001]
    assert seen.of_type(GapNotFilled) == []


def test_an_unknown_pair_ends_alone(server: LocalServer, seen: Seen, wire: str) -> None:
    send(server, 1)
    with since(server, seen, PAIR, "NO:SUCH", wire=wire):
        seen.wait_for(lambda: seen.of_type(StreamNotFound))
        server.wait_connected(1)
        send(server, 2)
        seen.wait_for(lambda: 2 in prices(seen))
    assert prices(seen) == [1, 2]


def test_a_rejected_key_ends_the_listener(server: LocalServer, seen: Seen, wire: str) -> None:
    listener = since(server, seen, PAIR, OTHER, wire=wire, api_key="wrong").start()
    with pytest.raises(AuthenticationError):
        listener.join(PATIENCE)
    assert listener.state is State.FAILED


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "finx-streamer" in thread.name]


@pytest.mark.parametrize("how", ["stop", "remove", "drain"])
def test_the_end_does_not_wait_for_history(server: LocalServer, seen: Seen, wire: str, how: str) -> None:
    """A call that hangs is interrupted. The rest is reported as missing."""
    send(server, *range(1, 3_000))
    server.stall_functions(None, function="tickHistory")
    listener = since(server, seen, PAIR, OTHER, wire=wire).start()
    server.wait_until(lambda stats: stats.calls > 0)
    assert listener.stats.catching_up == 2
    if how == "remove":
        listener.remove(PAIR, OTHER)
        seen.wait_for(lambda: len(seen.gaps) == 2)
        assert listener.stats.catching_up == 0
    assert listener.stop(PATIENCE, drain=how == "drain")
    assert workers() == []
    if how != "stop":
        assert [gap.filled for gap in seen.gaps] == [False, False]
        assert len(seen.of_type(GapNotFilled)) == 2
        assert set(seen.states[-2:]) == {(PAIR, State.STOPPED), (OTHER, State.STOPPED)}
    assert server.stats.streams == 0


def test_a_callback_may_stop_the_listener_meanwhile(server: LocalServer, seen: Seen, dispatch: str) -> None:
    send(server, *range(1, 5_000))
    listener = since(server, seen, dispatch=dispatch)
    listener.on_tick(lambda each: listener.stop() if int(each["price"]) == 19_200 + 1_500 else None)
    listener.start()
    assert listener.join(PATIENCE)
    assert prices(seen) == [*range(1, 1_501)]
    assert workers() == []


# How much waits.


@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_slow_callbacks_slow_history_down(server: LocalServer, seen: Seen, wire: str, dispatch: Any) -> None:
    """What was read and not delivered is bounded, and no live tick is held."""
    send(server, *range(1, 30_000))
    most = [0, 0]

    def look(each: Any) -> None:
        run = listener._run
        assert run is not None
        most[0] = max(most[0], run.streams.allowance.used + listener.stats.queue_depth)
        if int(each["price"]) - 19_200 < 20_000:
            most[1] = max(most[1], listener.stats.held)
            if int(each["price"]) % 100 == 0:
                send(server, 30_000 + int(each["price"]))

    listener = since(server, seen, wire=wire, dispatch=dispatch, queue_size=500)
    with listener:
        listener.on_tick(look)
        wait_live(seen)
        seen.wait_for(lambda: len(prices(seen)) >= 29_999 + 199)
    assert len(set(prices(seen))) == len(prices(seen))
    assert prices(seen)[:29_999] == [*range(1, 30_000)]
    # The queue, two pages that are taken, and what doesn't fit into them.
    assert most[0] < 5_000
    assert most[1] == 0


@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_pairs_that_are_live_do_not_wait_for_others(seen: Seen, wire: str) -> None:
    """Their gaps are filled, although all workers have a long history to read."""
    pairs = [f"C{number}:USDC" for number in range(6)]
    with LocalServer(Market(PAIR, *pairs), keys={"demo"}, close_timeout=0.2, resumable=False) as server:
        send(server, 1)
        with since(server, seen, wire=wire) as listener:
            wait_live(seen)
            server.stall_functions(4, function="tickHistory")
            calls = server.stats.calls
            listener.add(*pairs)
            server.wait_until(lambda stats: stats.calls >= calls + 4)
            server.drop_connections(PAIR)
            seen.wait_for(lambda: len(seen.gaps) == 2)
            assert listener.stats.catching_up == 6
            server.resume()
            for pair in pairs:
                wait_live(seen, pair)


# An earlier run.


def continue_after(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs continue after a past, as an archive does."""
    monkeypatch.setattr(Settings, "pasts", lambda self, pairs, recorder: dict.fromkeys(pairs, past))


@pytest.mark.parametrize("resumable", [False, True], ids=["no log", "log"])
@pytest.mark.parametrize("known_log", [False, True], ids=["another log", "the same log"])
def test_a_run_continues_where_another_ended(
    seen: Seen, wire: str, resumable: bool, known_log: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ID if the server has its log, otherwise by history. Equal ticks are counted."""
    first = Seen()
    with LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2, resumable=resumable) as server:
        with first.listener(Endpoint(server.url, wire=wire), backfill=True) as listener:  # type: ignore[arg-type]
            server.wait_connected(1)
            send(server, 1, 2, 2)
            first.wait_ticks(3)
            run = listener._run
            assert run is not None
            stream = run._streams[PAIR]
        log, number = stream._log, stream._number
        assert bool(log) is resumable
        send(server, 2, 3)
        name = log if known_log or not log else "another"
        continue_after(Past(ticks=list(first.ticks), log=name, number=number), monkeypatch)
        with seen.listener(Endpoint(server.url, wire=wire), backfill=True):  # type: ignore[arg-type]
            wait_live(seen)
            server.wait_connected(1)
            send(server, 4)
            seen.wait_for(lambda: 4 in prices(seen))
    assert [(number, each["backfilled"]) for number, each in zip(prices(seen), seen.ticks, strict=True)] == [
        (2, True),
        (3, True),
        (4, False),
    ]
    assert [(gap.filled, gap.ticks, gap.since) for gap in seen.gaps] == [(True, 2, first.ticks[-1]["timestamp"])]


# Storms.


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("seed", "settings"), [(1, {}), (2, {"dispatch": "inline"}), (3, {"queue_size": 64})])
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
def test_nothing_is_lost_in_a_storm(
    seed: int, settings: dict[str, Any], resumable: bool, wire: Literal["url", "subscribe"]
) -> None:
    """Faults hit history, the seam and the stream. Each tick is delivered once and in order."""
    ticks = bursts([PAIR, OTHER], 22_000, random.Random(seed))
    outcome = storm(ticks, 800.0, 25, seed, wire, resumable, past=20_000, **settings)
    print(outcome)
    assert outcome.mistakes() == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("confirms", [False, True], ids=["as FinX", "as our server"])
@pytest.mark.parametrize("seed", [4, 5])
def test_nothing_is_lost_in_a_storm_on_one_connection(seed: int, confirms: bool) -> None:
    """From a service that shares no code with ours, and confirms nothing, as FinX."""
    outcome = shared_storm(bursts([PAIR, OTHER], 8_000, random.Random(seed)), 25, seed, confirms, past=6_000)
    print(outcome)
    assert outcome.mistakes() == []


# The command.


def test_the_command_begins_with_history(server: LocalServer, tmp_path: Path) -> None:
    send(server, 1, 2)
    file = tmp_path / "ticks.csv"
    command = [sys.executable, "-m", "finx_streamer", "listen", PAIR, "--endpoint", server.url, "--since", "2022-07-02"]
    arguments = ["--limit", "2", "--format", "csv", "--output", str(file)]
    environment = program_environment(FINX_API_KEY="demo")
    done = subprocess.run(command + arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(",")[4] for line in file.read_text().splitlines()[1:]] == ["19201.50", "19202.50"]


def test_the_command_refuses_a_wrong_time() -> None:
    command = [sys.executable, "-m", "finx_streamer", "listen", PAIR, "--since", "soon"]
    environment = program_environment(FINX_API_KEY="demo")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--since: 'soon' is not allowed" in done.stderr
