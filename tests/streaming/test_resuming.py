"""Streams that are resumed by ID: against our server, and against peers that know only docs/protocol.md."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import DecodeError, Endpoint, GapNotFilled, Tick, TicksDropped
from finx_streamer.server import LocalServer
from finx_streamer.streaming.log_position import LogPosition
from tests.support.calls import wait_until
from tests.support.effort import examples
from tests.support.market import OTHER, PAIR, Market, outage, send
from tests.support.peers import Caller, Peer, Script, Seen, close_frame, frame, refuse
from tests.support.raw_client import TIMEOUT

Wire = Literal["url", "subscribe"]


@pytest.fixture(params=["url", "subscribe"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """Each of FinX's wires."""
    found: Wire = request.param
    return found


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2) as server:
        yield server


def line(
    price: object, exchange: str = "BINANCE", time: str = "15:30:55.817Z", date: str = "2022-07-02"
) -> dict[str, str]:
    return {"pair": PAIR, "date": date, "time": time, "exchange": exchange, "price": str(price)}


def got(seen: Seen) -> list[tuple[str, bool]]:
    """The prices that were received, and whether they were backfilled."""
    return [(str(tick["price"]), tick["backfilled"]) for tick in seen.ticks]


# Our server.


def test_missed_ticks_come_from_the_log(server: LocalServer, seen: Seen, wire: Wire, dispatch: str) -> None:
    """In the order of arrival, marked, before the gap and the live ticks. History isn't requested."""
    missed = [
        line(1),
        line(1),
        line(7, time="15:30:55.816Z"),
        line(3, date="2022-07-03", time="00:00:00.000Z"),
        line(4),
    ]
    order: list[Any] = []
    with seen.listener(Endpoint(server.url, wire=wire), backfill=True, dispatch=dispatch, parse_price=str) as listener:
        listener.on_tick(lambda tick: order.append((tick["price"], tick["backfilled"])))
        listener.on_gap(order.append)
        server.wait_connected(1)
        server.emit(line(0), line(1))
        seen.wait_ticks(2)
        with outage(server, seen):
            server.emit(*missed)
            send(server, 1, 2, pair=OTHER)
        server.emit(line(8), line(9))
        seen.wait_ticks(9)
        [gap] = seen.gaps
        assert order[:2] == [("0", False), ("1", False)]
        assert order[2:] == [*((each["price"], True) for each in missed), gap, ("8", False), ("9", False)]
        assert (gap.filled, gap.ticks) == (True, len(missed))
        assert (gap.since, gap.until) == (seen.ticks[1]["timestamp"], seen.ticks[7]["timestamp"])
        # On a shared connection, streams learn of their ticks a little later.
        wait_until(lambda: listener.stats.streams[PAIR].ticks == 9)
        stats = listener.stats.streams[PAIR]
        assert (stats.gaps, stats.filled_ticks) == (1, len(missed))
    assert server.stats.calls == 0


def test_a_gap_in_a_quiet_market(server: LocalServer, seen: Seen, wire: Wire) -> None:
    """It ends with the newest tick that was missed. Without one, it ends at once."""
    with seen.listener(Endpoint(server.url, wire=wire), backfill=True, parse_price=str):
        server.wait_connected(1)
        server.emit(line(1))
        seen.wait_ticks(1)
        with outage(server, seen):
            pass
        seen.wait_for(lambda: len(seen.gaps) == 1)
        with outage(server, seen):
            server.emit(line(2))
        seen.wait_for(lambda: len(seen.gaps) == 2)
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 0), (True, 1)]
    assert got(seen) == [("1", False), ("2", True)]


def test_a_gap_ends_while_only_other_pairs_move(server: LocalServer, seen: Seen, wire: Wire) -> None:
    """The server marks the end of what was missed. That is no notice."""
    with seen.listener(Endpoint(server.url, wire=wire), backfill=True, parse_price=str):
        server.wait_connected(1)
        server.emit(line(1))
        seen.wait_ticks(1)
        for number in (2, 3):
            with outage(server, seen):
                server.emit(line(number))
                send(server, 1, 2, pair=OTHER)
            seen.wait_for(lambda number=number: len(seen.gaps) == number - 1)  # type: ignore[misc]
        server.emit(line(4))
        seen.wait_ticks(4)
    assert got(seen) == [("1", False), ("2", True), ("3", True), ("4", False)]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 1), (True, 1)]
    assert seen.notices == []


@pytest.mark.parametrize(
    "settings",
    [
        {"exchanges": ["OKX"]},
        {"overflow": "drop_oldest", "queue_size": 1},
        {"overflow": "latest", "queue_size": 1},
        {"overflow": "block", "queue_size": 1},
    ],
    ids=["filtered", "drop_oldest", "latest", "block"],
)
def test_the_newest_id_counts_before_filters_and_drops(
    server: LocalServer, seen: Seen, wire: Wire, settings: dict[str, Any]
) -> None:
    """What was received isn't sent again, and what was missed is filtered and dropped like any other tick."""
    with seen.listener(Endpoint(server.url, wire=wire), backfill=True, parse_price=str, **settings) as listener:
        server.wait_connected(1)
        server.emit(line(0, "OKX"), *(line(number) for number in range(1, 6)))
        seen.wait_ticks(1)
        while listener.stats.streams[PAIR].messages < 6:
            assert not listener.join(0.01)
        with outage(server, seen):
            server.emit(*(line(number, "OKX" if number % 2 else "BINANCE") for number in range(6, 10)))
        server.emit(line(10, "OKX"))
        seen.wait_for(lambda: ("10", False) in got(seen))
    prices = [int(price) for price, _ in got(seen)]
    assert prices == sorted(set(prices))
    if "exchanges" in settings:
        assert got(seen) == [("0", False), ("7", True), ("9", True), ("10", False)]
        assert [gap.ticks for gap in seen.gaps] == [2]
    elif settings["overflow"] == "block":
        assert prices == list(range(11))
    else:
        assert len(prices) + sum(error.count for error in seen.of_type(TicksDropped)) == 11


def test_ticks_that_cannot_be_read_are_not_sent_again(server: LocalServer, seen: Seen, wire: Wire) -> None:
    """A price that `parse_price` refuses is a DecodeError once, live or missed."""

    def parse(text: str) -> int:
        if text in ("1", "3"):
            raise ValueError(text)
        return int(text)

    with seen.listener(Endpoint(server.url, wire=wire), backfill=True, parse_price=parse):
        server.wait_connected(1)
        server.emit(line(0), line(1))
        seen.wait_for(lambda: len(seen.of_type(DecodeError)) == 1)
        with outage(server, seen):
            server.emit(line(2), line(3))
        seen.wait_for(lambda: len(seen.gaps) == 1)
        assert len(seen.of_type(DecodeError)) == 2
        with outage(server, seen):
            pass
        server.emit(line(4))
        seen.wait_ticks(3)
    assert got(seen) == [("0", False), ("2", True), ("4", False)]
    assert len(seen.of_type(DecodeError)) == 2


def test_a_stream_that_is_added_again_starts_fresh(server: LocalServer, seen: Seen, wire: Wire) -> None:
    """What was sent while it was removed isn't wanted."""
    with seen.listener(Endpoint(server.url, wire=wire), PAIR, OTHER, backfill=True, parse_price=str) as listener:
        server.wait_connected(2)
        server.emit(line(1))
        seen.wait_ticks(1)
        listener.remove(PAIR)
        server.wait_until(lambda stats: PAIR not in stats.symbols)
        server.emit(line(2))
        listener.add(PAIR)
        server.wait_until(lambda stats: PAIR in stats.symbols)
        server.emit(line(3))
        seen.wait_ticks(2)
    assert got(seen) == [("1", False), ("3", False)]
    assert seen.gaps == []


def test_without_backfill_nothing_is_resumed(server: LocalServer, seen: Seen, wire: Wire) -> None:
    """The gap is only reported."""
    with seen.listener(Endpoint(server.url, wire=wire), backfill=False, parse_price=str):
        server.wait_connected(1)
        server.emit(line(1))
        seen.wait_ticks(1)
        with outage(server, seen):
            server.emit(line(2))
        server.emit(line(3))
        seen.wait_ticks(2)
    assert got(seen) == [("1", False), ("3", False)]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(False, 0)]


def test_a_position_that_expired_falls_back_to_history(seen: Seen, wire: Wire) -> None:
    """The log no longer holds what was missed, so history says what is left of it."""
    with LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2, store_limit=3) as server:
        with seen.listener(Endpoint(server.url, wire=wire), backfill=True, parse_price=str):
            server.wait_connected(1)
            server.emit(line(1, time="15:30:00.000Z"))
            seen.wait_ticks(1)
            with outage(server, seen):
                server.emit(*(line(number, time=f"15:30:{number:02}.000Z") for number in range(2, 9)))
            server.emit(line(9, time="15:30:09.000Z"))
            seen.wait_for(lambda: ("9", False) in got(seen))
        assert server.stats.calls > 0
    assert ("8", True) in got(seen)


@pytest.mark.parametrize(("lateness", "count"), [(1.0, 2), (5.0, 3)])
def test_lateness_widens_what_history_finds(seen: Seen, lateness: float, count: int) -> None:
    """Only where streams can't be resumed does it matter."""
    with (
        LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2, resumable=False) as server,
        seen.listener(server.url, backfill=True, parse_price=str, lateness=lateness),
    ):
        server.wait_connected(1)
        server.emit(line(1, time="15:30:00.000Z"), line(2, time="15:30:10.000Z"), line(3, time="15:30:10.000Z"))
        seen.wait_ticks(3)
        with outage(server, seen):
            server.emit(line(4, time="15:30:07.000Z"), line(5, time="15:30:10.500Z"), line(6, time="15:30:11.000Z"))
        server.emit(line(7, time="15:30:12.000Z"))
        seen.wait_for(lambda: ("7", False) in got(seen))
    assert [gap.ticks for gap in seen.gaps] == [count]


# Peers.


def message(price: object, number: int | None) -> bytes:
    """The frame of a tick, with its ID."""
    content: dict[str, Any] = {"results": "streaming", "resultData": line(price)}
    return frame(json.dumps(content if number is None else content | {"id": number}, separators=(",", ":")))


def log(*headers: str, sent: bytes = b"", leaves: bool = True) -> Script:
    """A script that completes the handshake with these headers, sends frames, and leaves or stays."""

    def script(caller: Caller) -> None:
        caller.send(caller.acceptance(*headers), sent)
        if leaves:
            caller.leave()
        else:
            caller.wait_until_left()

    return script


def asked(peer: Peer) -> list[str | None]:
    """What each handshake said about resuming."""
    found = []
    for request in peer.requests:
        values = [each[13:].decode() for each in request.split(b"\r\n") if each.startswith(b"FinX-Resume: ")]
        assert len(values) <= 1
        found.append(values[0] if values else None)
    return found


def run(seen: Seen, *scripts: Script, until: Callable[[], object]) -> list[str | None]:
    """Listen to a peer without history until something is seen. Return what was asked for."""
    with Peer(*scripts) as peer:
        with seen.listener(peer.url, backfill=True, parse_price=str):
            seen.wait_for(until)
        return asked(peer)


def test_each_attempt_names_the_newest_tick(seen: Seen) -> None:
    """At first there is none. A connection that brings none changes nothing."""
    assert run(
        seen,
        log("FinX-Log: a:5", sent=message(1, 6) + message(2, 9)),
        log("FinX-Log: a:9"),
        log("FinX-Log: a:11", sent=message(3, 10) + message(4, 11) + message(5, 12), leaves=False),
        until=lambda: ("5", False) in got(seen),
    ) == ["ask", "a:9", "a:9"]
    assert got(seen) == [("1", False), ("2", False), ("3", True), ("4", True), ("5", False)]
    # The second connection missed nothing, and the third two ticks.
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 0), (True, 2)]


def test_before_the_first_tick_the_log_says_where_the_stream_is(seen: Seen) -> None:
    """So not even the first tick is missed. There is no gap before it."""
    assert run(
        seen,
        log("FinX-Log: a:5"),
        log("FinX-Log: a:6", sent=message(1, 6) + message(2, 7), leaves=False),
        until=lambda: len(seen.ticks) == 2,
    ) == ["ask", "a:5"]
    assert seen.gaps == []


def test_a_gap_goes_on_over_several_connections(seen: Seen) -> None:
    """What was missed arrives in pieces. There is one gap."""
    assert run(
        seen,
        log("FinX-Log: a:0", sent=message(1, 1)),
        log("FinX-Log: a:4", sent=message(2, 2)),
        log("FinX-Log: a:5", sent=message(3, 3)),
        log("FinX-Log: a:5", sent=message(4, 5) + message(5, 6), leaves=False),
        until=lambda: ("5", False) in got(seen),
    ) == ["ask", "a:1", "a:2", "a:3"]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 3)]


def test_another_log_takes_over(seen: Seen) -> None:
    """A server that was killed has a new log, whose IDs say nothing about the old one's."""
    assert run(
        seen,
        log("FinX-Log: a:0", sent=message(1, 12)),
        # It knows where the old log ended. Nothing arrives, so the position stays in the old one.
        log("FinX-Log: b:11"),
        log("FinX-Log: b:11", sent=message(2, 11) + message(3, 12)),
        log("FinX-Log: b:12", leaves=False),
        until=lambda: len(seen.gaps) == 2,
    ) == ["ask", "a:12", "a:12", "b:12"]
    assert got(seen) == [("1", False), ("2", True), ("3", False)]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 1), (True, 0)]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["FinX-Resume: no"],
        ["FinX-Resume: no", "FinX-Log: a:7"],
        ["FinX-Log: a"],
        ["FinX-Log: a:-1"],
        ["FinX-Log: " + "a" * 65 + ":1"],
        ["FinX-Log: a:1\x85X: y"],
        ["FinX-Log: a:" + "9" * 30],
    ],
)
def test_a_server_that_does_not_resume(seen: Seen, headers: list[str]) -> None:
    """A gap is filled from history then, which this peer doesn't have. Garbage is never sent back."""
    requests = run(
        seen,
        log("FinX-Log: a:0", sent=message(1, 1)),
        log(*headers, sent=message(2, 8), leaves=False),
        refuse("403 Forbidden"),
        until=lambda: seen.of_type(GapNotFilled),
    )
    # The others are function calls.
    assert set(requests[2:]) <= {None}
    assert requests[:2] == ["ask", "a:1"]
    assert got(seen) == [("1", False), ("2", False)]


def test_a_tick_without_an_id_ends_the_position(seen: Seen) -> None:
    """The next gap can't be resumed, because it is unknown what was received."""
    requests = run(
        seen,
        log("FinX-Log: a:0", sent=message(1, 1) + message(2, None)),
        log("FinX-Log: a:5", sent=message(3, 6), leaves=False),
        refuse("403 Forbidden"),
        until=lambda: ("3", False) in got(seen),
    )
    assert [request for request in requests if request] == ["ask", "ask"]


def test_ids_of_any_spelling_are_read(seen: Seen) -> None:
    """On the fast paths and on the slow one: with spaces, escapes, and a key order of its own."""
    spaced = frame(json.dumps({"results": "streaming", "resultData": line(2), "id": 2}))
    escaped = frame(json.dumps({"id": 3, "resultData": line(3), "results": "streaming"}).replace("BIN", "\\u0042IN"))
    broken = frame(json.dumps({"results": "streaming", "resultData": line("x"), "id": 5}))
    for last, number in [(spaced, 2), (escaped, 3), (message(4, 4), 4), (broken, 5)]:
        seen_now = Seen()
        requests = run(
            seen_now,
            log("FinX-Log: a:0", sent=message(1, 1) + last),
            log(f"FinX-Log: a:{number}", leaves=False),
            until=lambda seen_now=seen_now: seen_now.gaps,  # type: ignore[misc]
        )
        assert requests == ["ask", f"a:{number}"]


def test_a_missed_tick_that_cannot_be_read_ends_the_gap_too(seen: Seen) -> None:
    """Its ID counts all the same."""
    run(
        seen,
        log("FinX-Log: a:0", sent=message(1, 1)),
        log("FinX-Log: a:3", sent=message(2, 2) + message("x", 3) + message(4, 4), leaves=False),
        until=lambda: ("4", False) in got(seen),
    )
    assert got(seen) == [("1", False), ("2", True), ("4", False)]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 1)]


def test_stop_while_missed_ticks_arrive(seen: Seen) -> None:
    """The gap is reported as not filled."""
    scripts = (
        log("FinX-Log: a:0", sent=message(1, 1)),
        log("FinX-Log: a:9", sent=message(2, 2), leaves=False),
    )
    with Peer(*scripts) as peer, seen.listener(peer.url, backfill=True, parse_price=str):
        seen.wait_ticks(2)
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(False, 1)]
    assert [error.reason for error in seen.of_type(GapNotFilled)] == ["the listener was stopped"]


def test_a_resumed_stream_that_is_refused_later(seen: Seen) -> None:
    """What was missed so far is one gap. What follows is another one, for history."""
    run(
        seen,
        log("FinX-Log: a:0", sent=message(1, 1)),
        log("FinX-Log: a:9", sent=message(2, 2) + close_frame(1013)),
        log("FinX-Log: a:9", "FinX-Resume: no", sent=message(10, 10), leaves=False),
        refuse("403 Forbidden"),
        until=lambda: seen.of_type(GapNotFilled),
    )
    assert got(seen) == [("1", False), ("2", True), ("10", False)]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 1), (False, 0)]


@examples(30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), min_size=1, max_size=6), st.randoms())
def test_any_sequence_of_losses(losses: list[tuple[int, int, bool]], rng: Any) -> None:
    """Live ticks, missed ones, and connections that end within what was missed: each tick comes once and in order."""
    scripts: list[Script] = []
    position = newest = 0
    expected: list[tuple[str, bool]] = []
    for live, missed, is_cut in losses:
        sent = b"".join(message(number, number) for number in range(position + 1, newest + 1))
        resumed = newest
        if is_cut and newest > position:
            resumed = rng.randrange(position, newest)
            sent = b"".join(message(number, number) for number in range(position + 1, resumed + 1))
        expected += [(str(number), bool(expected)) for number in range(position + 1, resumed + 1)]
        if resumed == newest:
            sent += b"".join(message(number, number) for number in range(newest + 1, newest + live + 1))
            expected += [(str(number), False) for number in range(newest + 1, newest + live + 1)]
            announced, position = newest, newest + live
            newest = position + missed
        else:
            announced, position = newest, resumed
        scripts.append(log(f"FinX-Log: a:{announced}", sent=sent))
    rest = [*range(position + 1, newest + 2)]
    scripts.append(log(f"FinX-Log: a:{newest}", sent=b"".join(message(n, n) for n in rest), leaves=False))
    seen = Seen()
    run(seen, *scripts, until=lambda: any(price == str(newest + 1) for price, _ in got(seen)))
    prices = [price for price, _ in got(seen)]
    assert prices == list(map(str, range(1, newest + 2)))
    assert got(seen)[-1] == (str(newest + 1), False)
    assert all(gap.filled for gap in seen.gaps)
    assert sum(gap.ticks for gap in seen.gaps) == sum(is_missed for _, is_missed in got(seen))


# Peers on the second wire.


def flat(price: object, number: int, pair: str = PAIR) -> bytes:
    """The frame of a tick in the flat form, with its ID."""
    content = {"pair": pair, "unixDate": 1656775855, "UTCDate": "2022-07-02T15:30:55.817Z", "exchange": "BINANCE"}
    return frame(json.dumps(content | {"price": str(price), "id": number}, separators=(",", ":")))


def confirmation(number: int, pair: str = PAIR, **members: str) -> bytes:
    return frame(json.dumps({"subscribed": pair, "log": f"a:{number}", **members}))


def requested(caller: Caller, pair: str = PAIR) -> dict[str, Any]:
    """Read the client's messages up to a request that names a pair."""
    while True:
        content: dict[str, Any] = json.loads(caller.read_frame()[1] or b"{}")
        if content.get("pair") == pair:
            return content


def confirms(positions: list[str], number: int) -> Script:
    """A script that notes where a pair is to be resumed, confirms it, and stays."""

    def script(caller: Caller) -> None:
        caller.welcome()
        positions.append(requested(caller)["resume"])
        caller.send(confirmation(number))
        caller.wait_until_left()

    return script


@pytest.mark.parametrize("exchanges", [None, ["BINANCE"]])
def test_a_notice_does_not_move_the_position(seen: Seen, exchanges: list[str] | None) -> None:
    """It has no ID, and the last tick that was read in the same way may be an old one."""
    positions: list[str] = []

    def first(caller: Caller) -> None:
        caller.welcome()
        positions.append(requested(caller)["resume"])
        caller.send(confirmation(0), *(flat(number, number) for number in range(1, 201)))
        caller.send(frame(json.dumps({"pair": PAIR, "notice": "KRAKEN is away"})))
        seen.wait_for(lambda: seen.notices)
        caller.leave()

    with (
        Peer(first, confirms(positions, 200)) as peer,
        seen.listener(Endpoint(peer.url, wire="subscribe"), backfill=True, parse_price=str, exchanges=exchanges),
    ):
        seen.wait_for(lambda: seen.gaps)
    assert positions == ["ask", "a:200"]


def test_history_that_fails_before_the_answer(seen: Seen) -> None:
    """The answer is one to what was asked: the log begins there, and what was missed before is a gap of its own."""
    positions: list[str] = []

    def answer(*frames: bytes, failed: bool = False) -> Script:
        def script(caller: Caller) -> None:
            caller.welcome()
            positions.append(requested(caller)["resume"])
            if failed:
                seen.wait_for(lambda: seen.of_type(GapNotFilled))
            caller.send(*frames)
            if failed:
                caller.wait_until_left()
            caller.leave()

        return script

    with (
        Peer(
            answer(confirmation(0), flat(1, 1)),
            answer(confirmation(5, resume="no")),
            answer(confirmation(9), flat(10, 10), failed=True),
            refuse("403 Forbidden"),
        ) as peer,
        seen.listener(Endpoint(peer.url, wire="subscribe"), backfill=True, parse_price=str),
    ):
        seen.wait_for(lambda: ("10", False) in got(seen))
    assert positions == ["ask", "a:1", "ask"]
    assert [gap.filled for gap in seen.gaps] == [False, False]


def test_a_stream_added_again_does_not_get_what_is_in_transit(seen: Seen) -> None:
    """It starts once the server has ended the old subscription. Otherwise, what is published in between is lost."""
    added = threading.Event()
    positions: list[str] = []

    def first(caller: Caller) -> None:
        caller.welcome()
        positions.append(requested(caller)["resume"])
        caller.send(confirmation(0), flat(1, 1), flat(2, 2))
        assert requested(caller)["functionName"] == "unsubscribe"
        assert added.wait(TIMEOUT)
        caller.send(flat(3, 3), frame(json.dumps({"unsubscribed": PAIR})))
        positions.append(requested(caller)["resume"])
        caller.send(confirmation(4), flat(5, 5))
        seen.wait_ticks(3)
        caller.leave()

    with (
        Peer(first, confirms(positions, 5)) as peer,
        seen.listener(Endpoint(peer.url, wire="subscribe"), PAIR, OTHER, backfill=True, parse_price=str) as listener,
    ):
        seen.wait_ticks(2)
        listener.remove(PAIR)
        listener.add(PAIR)
        added.set()
        seen.wait_for(lambda: seen.gaps)
    assert positions == ["ask", "ask", "a:5"]
    assert got(seen) == [("1", False), ("2", False), ("5", False)]
    assert [(gap.filled, gap.ticks) for gap in seen.gaps] == [(True, 0)]


# Values.


@given(st.text(max_size=80) | st.integers() | st.none())
def test_any_log_header_gives_a_position_or_nothing(value: Any) -> None:
    """What comes back is exactly what was sent, so nothing else can get into our next request."""
    found = LogPosition.from_answer({"log": value})
    assert found is None or str(found) == value.partition(":")[0] + f":{int(value.partition(':')[2])}"


def test_ticks_carry_no_id(server: LocalServer, seen: Seen, wire: Wire) -> None:
    """The ID is the wire's matter: a tick has the documented keys."""
    with seen.listener(Endpoint(server.url, wire=wire), backfill=True):
        server.wait_connected(1)
        send(server, 1, 2)
        seen.wait_ticks(2)
    assert all(set(tick) == set(Tick.__annotations__) for tick in seen.ticks)
