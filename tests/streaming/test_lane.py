"""The lane does what the longer way does, and it is left at once where it couldn't."""

from __future__ import annotations

import json
import socket
import ssl
from decimal import Decimal
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import ConnectionFailed, DecodeError, Gap, Notice, StaleStream
from finx_streamer.delivery.iteration import TickBuffer
from finx_streamer.streaming.stream_connection import StreamConnection
from finx_streamer.values import NEVER
from finx_streamer.wire.single_tick import SingleTick
from tests.support.driven import Driven
from tests.support.effort import examples
from tests.support.peers import BINARY, PAIR, PING, PONG, TEXT, close_frame, frame, tick, tick_text
from tests.support.tls import client_context, server_context

OTHER, UMLAUT, UNKNOWN = "A:B", "BÜC:USDT", "ETH:USDT"
STYLES = ((",", ":"), (", ", ": "))


def message(
    pair: str = PAIR,
    exchange: str = "BINANCE",
    price: str = "1.5",
    *,
    date: str = "2022-07-02",
    time: str = "15:30:55.817Z",
    enveloped: bool = True,
    style: tuple[str, str] = STYLES[0],
    number: int | None = None,
    ensure_ascii: bool = True,
) -> bytes:
    """The message of a tick."""
    content: dict[str, Any]
    if enveloped:
        fields = {"pair": pair, "date": date, "time": time, "exchange": exchange, "price": price}
        content = {"results": "streaming", "resultData": fields}
    else:
        content = {"pair": pair, "unixDate": 165, "UTCDate": f"{date}T{time}", "exchange": exchange, "price": price}
    if number is not None:
        content["id"] = number
    return json.dumps(content, separators=style, ensure_ascii=ensure_ascii).encode()


def flat(number: int, pair: str = PAIR) -> bytes:
    """A frame of the second wire. Its price is its number."""
    return frame(message(pair, price=f"{number}", enveloped=False))


class Longer:
    """Counts the reads that the lane leaves to the longer way."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        received = StreamConnection._received

        def count(connection: StreamConnection, *arguments: Any) -> None:
            self.reads += 1
            received(connection, *arguments)

        patch.setattr(StreamConnection, "_received", count)


@pytest.fixture
def longer(monkeypatch: pytest.MonkeyPatch) -> Longer:
    """Counts the reads that the lane leaves to the longer way."""
    return Longer(monkeypatch)


# The same as on the longer way.

usual = st.builds(
    message,
    st.sampled_from([PAIR, PAIR, PAIR, OTHER, UMLAUT]),
    st.sampled_from(["BINANCE", "BINANCE", "KRAKEN", "", "A B", 'a"b', "a\\b", "Zürich", "x" * 90]),
    st.one_of(
        st.sampled_from(["1", "1.", ".5", "0001.10", "19000.12"]),
        st.sampled_from([".", "", "1.2.3", "1e5", "-1", "+1", "NaN", "1_0", "9" * 40, "13", "666", "1" + "0" * 100]),
    ),
    date=st.sampled_from(["2022-07-02", "2022-07-02", "2022-07-03", "2022-02-30", "0000-00-00"]),
    time=st.sampled_from(
        ["15:30:55.817Z", "15:30:55.817Z", "15:30:56.Z", "15:30:55.8171234Z", "15:30:55Z", "23:59:60.5Z", "1234567.8Z"]
    ),
    enveloped=st.booleans(),
    style=st.sampled_from(STYLES),
    number=st.one_of(st.none(), st.integers(0, 50), st.just(10**18)),
    ensure_ascii=st.booleans(),
)
plain = st.builds(
    message,
    st.sampled_from([PAIR, PAIR, OTHER]),
    st.sampled_from(["BINANCE", "KRAKEN"]),
    st.sampled_from(["1.5", "2", "3.25"]),
    date=st.sampled_from(["2022-07-02", "2022-07-02", "2022-07-02", "2022-07-03"]),
    time=st.sampled_from(["15:30:55.817Z", "15:30:56.1Z", "15:30:57.12Z", "15:30:59.123456Z"]),
    enveloped=st.booleans(),
    number=st.one_of(st.none(), st.integers(1, 50)),
)
odd = st.sampled_from(
    [
        frame(b"", PING),
        frame(b"x", PONG),
        frame(b"{}"),
        frame(b'{"keepAlive":true}'),
        frame(b'{"error":"slow down"}'),
        frame(b"{broken"),
        frame(b"\0\1", BINARY),
        frame(message()[:50], fin=False),
        frame(message()[:50], fin=False) + frame(message()[50:], 0),
        frame(message()[:-1] + b',"more":1}'),
        frame(message() + b" "),
        b"\x81\x7e\0\x5a" + b" " * 8 + b'{"pair":"A:B"}' + b" " * 68,
        frame(message(UNKNOWN)),
        frame(message(UNKNOWN, enveloped=False)),
        close_frame(1000),
        frame(b"\xff\xff", TEXT),
        frame(message(), rsv=4),
        frame(message(enveloped=False), 0x3),
    ]
)
frames = st.one_of(plain.map(frame), plain.map(frame), plain.map(frame), usual.map(frame), odd)
#: Each frame, where it is cut in two (0: nowhere), and whether it is sent together with the next one.
conversations = st.lists(
    st.tuples(frames, st.one_of(st.just(0), st.integers(1, 300)), st.integers(0, 5).map(lambda at: at == 0)),
    min_size=1,
    max_size=25,
)


def cuts_of(conversation: list[tuple[bytes, int, bool]]) -> list[bytes]:
    """What to send at once."""
    sent, waiting = [], b""
    for data, cut, glued in conversation:
        waiting += data
        if glued:
            continue
        sent += [waiting[:cut], waiting[cut:]] if cut else [waiting]
        waiting = b""
    return list(filter(None, [*sent, waiting]))


class Odd(float):
    """A price of an own class."""


def odd_price(text: str) -> Any:
    """A parser that refuses some prices, and makes something odd of others."""
    match text:
        case "13":
            raise RuntimeError("unlucky")
        case "666":
            return float("nan")
        case "2":
            return (text,)
        case "3.25":
            return Odd("inf")
        case _:
            return Decimal(text)


def without_receipt(each: Any) -> Any:
    """A tick without the time at which it was received."""
    return each and {name: value for name, value in each.items() if name != "received_ns"}


def outcome(driven: Driven) -> dict[str, Any]:
    """Everything that a user or a later message could notice."""
    found: dict[str, Any] = {
        "ticks": list(map(without_receipt, driven.ticks)),
        "events": [event.message if isinstance(event, Notice) else str(event) for event in driven.events],
        "open": driven.is_open,
    }
    for pair, stream in driven.stream.items():
        counters, window = stream.counters, stream.resequencer.window
        found[pair] = {
            "counters": (counters.messages, counters.ticks, counters.decode_errors, counters.gaps, counters.dropped),
            "rate": sum(counters.per_second),
            "last": without_receipt(counters.last_tick),
            "times": counters.last_times and counters.last_times[1],
            "window": window.last and window.snapshot(),
            "log": (stream.log, stream._log, stream._number),
            "silent": stream.is_silent,
            "state": stream.state,
        }
    counters_of_all = driven.connection.counters
    found["connection"] = (counters_of_all.messages, counters_of_all.decode_errors, counters_of_all.errors)
    return found


def play(cuts: list[bytes], lane: bool, before: tuple[bytes, ...] = (), **arguments: Any) -> tuple[dict[str, Any], int]:
    """What comes of these reads, and how many bytes they were. `before`: what the server sends first."""
    pairs = (PAIR, OTHER, UMLAUT) if arguments.get("wire") == "subscribe" else (PAIR,)
    with pytest.MonkeyPatch.context() as patch:
        if not lane:
            patch.setattr(SingleTick, "learn", lambda _self, _frame: None)
        with Driven(*pairs, **arguments) as driven:
            for data in (*before, *cuts):
                if driven.is_open:
                    driven.send(data)
            driven.connection.settle()
            return outcome(driven), driven.connection.counters.bytes


settings_of_streams = st.fixed_dictionaries(
    {
        "exchanges": st.sampled_from([None, None, frozenset({"BINANCE"})]),
        "parse_price": st.sampled_from([float, float, Decimal, str, odd_price]),
        "stale_after": st.sampled_from([None, 30.0]),
    }
)


@given(conversations, settings_of_streams, st.booleans(), st.integers(1, 200))
@examples(300)
def test_first_wire(
    conversation: list[tuple[bytes, int, bool]], settings: dict[str, Any], has_log: bool, size: int
) -> None:
    """Ticks, events, counters, window and place in the log are those of the longer way, however the bytes are cut."""
    arguments = {**settings, "headers": ("FinX-Log: abc:0",) if has_log else ()}
    cuts = cuts_of(conversation)
    expected, count = play(cuts, False, **arguments)
    assert play(cuts, True, **arguments) == (expected, count)
    everything = b"".join(cuts)
    other_cuts = [everything[at : at + size] for at in range(0, len(everything), size)]
    assert play(other_cuts, True, **arguments)[0] == expected


@given(conversations, settings_of_streams, st.lists(st.sampled_from([PAIR, OTHER, UMLAUT])), st.integers(1, 200))
@examples(300)
def test_second_wire(
    conversation: list[tuple[bytes, int, bool]], settings: dict[str, Any], confirmed: list[str], size: int
) -> None:
    """The same on a connection of several pairs, of which some have joined."""
    answers = [frame(json.dumps({"subscribed": pair, "log": "abc:0", "resume": None})) for pair in confirmed]
    arguments = {**settings, "wire": "subscribe", "before": tuple(answers)}
    cuts = cuts_of(conversation)
    expected, count = play(cuts, False, **arguments)
    assert play(cuts, True, **arguments) == (expected, count)
    everything = b"".join(cuts)
    other_cuts = [everything[at : at + size] for at in range(0, len(everything), size)]
    assert play(other_cuts, True, **arguments)[0] == expected


# Which reads take the lane.


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("enveloped", [True, False])
@pytest.mark.parametrize("pair", [PAIR, "A:B", UMLAUT])
@pytest.mark.parametrize("wire", ["url", "subscribe"])
@pytest.mark.parametrize("numbered", [True, False])
def test_takes_the_lane_after_one_tick(
    longer: Longer, style: tuple[str, str], enveloped: bool, pair: str, wire: str, numbered: bool
) -> None:
    """In each form and style, with and without IDs, in short frames and others, on both wires."""
    with Driven(pair, wire=wire, exchanges=frozenset({"X"}), parse_price=Decimal, stale_after=9.0) as driven:
        for number in range(1, 10):
            form: dict[str, Any] = {"style": style, "enveloped": enveloped, "number": number if numbered else None}
            driven.send(frame(message(pair, "XY"[number % 2], f"{number}", **form)))
        assert [each["price"] for each in driven.ticks] == [2, 4, 6, 8]
        assert longer.reads == 1


def test_takes_the_lane_again_on_the_next_day(longer: Longer) -> None:
    """The first tick of a day goes the longer way."""
    with Driven(PAIR) as driven:
        for date in ("2022-07-02", "2022-07-03"):
            for _ in range(3):
                driven.send(frame(message(date=date)))
        assert [each["date"] for each in driven.ticks] == ["2022-07-02"] * 3 + ["2022-07-03"] * 3
        assert [str(each["timestamp"].date()) for each in driven.ticks] == [each["date"] for each in driven.ticks]
        assert longer.reads == 2


@pytest.mark.parametrize(
    "between",
    [
        frame(b"", PING),
        frame(b'{"keepAlive":true}'),
        frame(message()) * 2,
        frame(message(price="1e5")),
        frame(message()[:50], fin=False) + frame(message()[50:], 0),
    ],
)
def test_returns_to_the_lane_after_anything_else(longer: Longer, between: bytes) -> None:
    """A read of something else doesn't end the lane."""
    with Driven(PAIR) as driven:
        driven.send(tick(1))
        driven.send(between)
        driven.send(tick(2))
        assert longer.reads == 2
        assert driven.ticks[-1]["price"] == 2


def test_half_a_frame_is_left_to_the_longer_way(longer: Longer) -> None:
    """The rest of a frame may look like a whole one."""
    inner = tick(99)
    outer = frame(b" " * 200 + inner, BINARY)
    with Driven(PAIR) as driven:
        driven.send(tick(1))
        driven.send(outer[: -len(inner)])
        driven.send(inner)
        driven.send(tick(2))
        assert [each["price"] for each in driven.ticks] == [1, 2]
        assert longer.reads == 3


def test_a_small_limit_of_messages_keeps_off_the_lane(longer: Longer) -> None:
    """The longer way checks `max_message_size`."""
    with Driven(PAIR) as driven:
        assert driven.connection.websocket is not None
        driven.connection.websocket.max_message = 250
        driven.send(tick(1))
        driven.send(tick(2))
        assert longer.reads == 2


def test_odd_prices_are_left_to_the_longer_way(longer: Longer) -> None:
    """A parser that raises, or returns what isn't finite, causes an error."""
    with Driven(PAIR, parse_price=odd_price) as driven:
        for number in (1, 13, 666, 4):
            driven.send(tick(number))
        assert [each["price"] for each in driven.ticks] == [1, 4]
        assert [error.payload for error in driven.of(DecodeError)] == [tick_text(13), tick_text(666)]
        assert longer.reads == 3


def test_a_tick_on_the_lane_answers_a_ping() -> None:
    """Any received byte does."""
    with Driven(PAIR) as driven:
        driven.send(tick(1))
        driven.connection.wake(driven.streams.loop.now + 1_000)
        assert driven.connection.session.ping_sent < NEVER
        driven.send(tick(2))
        assert driven.connection.session.ping_sent == NEVER


def test_a_tick_on_the_lane_moves_the_clocks() -> None:
    """The silence begins again, and a new second is counted for the rate."""
    with Driven(PAIR) as driven:
        driven.send(tick(1))
        stream = driven.stream[PAIR]
        stream.silence.since = stream.counters.second_ends = 0.0
        driven.send(tick(2))
        assert 0.0 < stream.silence.since <= driven.streams.loop.now < stream.counters.second_ends + 1.0
        assert stream.counters.rate(driven.streams.loop.now) == 2.0


# The lane is left at once.


def test_silence_begins_again_after_its_report(longer: Longer) -> None:
    """Each silence is reported once, and a tick starts the clock again."""
    with Driven(PAIR, stale_after=0.02) as driven:
        for number in range(1, 4):
            driven.send(tick(number))
            driven.send(tick(number))
            driven.turn_until(lambda reports=number: len(driven.of(StaleStream)) == reports)  # type: ignore[misc]
            assert driven.stream[PAIR].is_silent
        assert longer.reads == 3
        assert all(0.02 <= report.seconds < 5 for report in driven.of(StaleStream))


def test_a_gap_takes_a_stream_off_the_lane(longer: Longer) -> None:
    """The next tick ends the gap."""
    with Driven(PAIR, backfill=False) as driven:
        driven.send(tick(1))
        driven.send(tick(2))
        driven.stream[PAIR].resequencer.opened(driven.streams.loop.now)
        driven.send(tick(3))
        assert [gap.filled for gap in driven.of(Gap)] == [False]
        assert longer.reads == 2
        driven.send(tick(4))
        assert longer.reads == 2
        assert [each["price"] for each in driven.ticks] == [1, 2, 3, 4]


def test_pauses_when_there_is_no_room(longer: Longer) -> None:
    """What the lane would read waits in the socket until there is room."""
    with Driven(PAIR) as driven:
        driven.send(tick(0))
        buffer = driven.iterations.open(TickBuffer)
        driven.on_tick = buffer
        for number in range(1, 11):
            driven.send(tick(number))
        assert longer.reads == 1
        driven.caller.send(tick(11))
        driven.turn_until(lambda: driven.connection.paused)
        assert driven.ticks[-1]["price"] == 10
        driven.iterations.close(buffer)
        driven.turn_until(lambda: len(driven.ticks) == 12)
        driven.send(tick(12))
        assert [each["price"] for each in driven.ticks] == list(range(13))
        assert longer.reads == 2


def test_a_removed_stream_gets_nothing_more(longer: Longer) -> None:
    """On the second wire, the others stay on the lane."""
    with Driven(PAIR, OTHER, wire="subscribe") as driven:
        driven.send(frame(json.dumps({"subscribed": PAIR})))
        for number in range(3):
            driven.send(flat(number))
            driven.send(flat(number, OTHER))
        assert longer.reads == 3
        driven.streams.remove(PAIR)
        driven.turn_until(lambda: driven.stream[PAIR].state.ended)
        driven.send(flat(7))
        driven.send(flat(8, OTHER))
        assert [each["price"] for each in driven.ticks] == [0, 0, 1, 1, 2, 2, 8]
        assert longer.reads == 4


def test_ticks_that_streams_do_not_know_come_first() -> None:
    """On the second wire, ticks that were read together are counted before one on the lane."""
    with Driven(PAIR, OTHER, wire="subscribe") as driven:
        for pair in (PAIR, OTHER):
            driven.send(flat(0, pair))
        driven.send(flat(0) + flat(0))
        driven.send(flat(1) + flat(2, OTHER) + flat(3))
        assert driven.stream[OTHER].counters.ticks == 1
        driven.send(flat(4))
        stream = driven.stream[PAIR]
        assert [key[2] for key in stream.resequencer.window.snapshot()[1]] == [0, 0, 0, 1, 3, 4]
        assert (stream.counters.ticks, stream.counters.last_tick["price"]) == (6, 4)  # type: ignore[index]
        assert driven.stream[OTHER].counters.ticks == 2


@pytest.mark.parametrize("end", ["leave", "reset"])
def test_a_loss_on_the_lane_is_reported_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the longer way."""

    def losses() -> list[str]:
        with Driven(PAIR) as driven:
            driven.send(tick(1))
            driven.send(tick(2))
            # Its thread reads until then.
            driven.caller.sock.shutdown(socket.SHUT_RD)
            getattr(driven.caller, end)()
            driven.turn_until(lambda: not driven.is_open)
            return list(map(str, driven.of(ConnectionFailed)))

    on_the_lane = losses()
    monkeypatch.setattr(SingleTick, "learn", lambda _self, _frame: None)
    assert len(on_the_lane) == 1
    assert on_the_lane == losses()


def test_a_callback_may_end_everything_on_the_lane() -> None:
    """A tick is put when nothing is half changed."""
    with Driven(PAIR) as driven:
        driven.send(tick(1))
        driven.on_tick = lambda _tick: driven.end()
        driven.send(tick(2))
        assert not driven.is_open
        assert driven.stream[PAIR].counters.ticks == 2
        assert driven.stream[PAIR].state.ended


# TLS.


class Reads:
    """Counts the reads of TLS sockets that are in use."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        recv = ssl.SSLSocket.recv

        def counted(sock: ssl.SSLSocket, *arguments: Any) -> bytes:
            self.count += 1
            return recv(sock, *arguments)

        patch.setattr(ssl.SSLSocket, "recv", counted)


@pytest.fixture
def secure() -> dict[str, ssl.SSLContext]:
    """The TLS contexts of a server and of a client that trusts it."""
    authority = trustme.CA()
    return {"context": server_context(authority.issue_cert("localhost")), "ssl_context": client_context(authority)}


def left_in_tls(driven: Driven) -> int:
    """How many bytes TLS has decrypted and not handed over."""
    assert driven.connection.websocket is not None
    sock = driven.connection.websocket.wire.socket
    assert isinstance(sock, ssl.SSLSocket)
    return sock.pending()


def test_a_tick_over_tls_takes_one_read(longer: Longer, secure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second read would raise, which costs more than the first. So that is tried only now and then."""
    counting = Reads(monkeypatch)
    with Driven(PAIR, **secure) as driven:
        driven.send(tick(0))
        before = counting.count
        for number in range(1, 65):
            driven.send(tick(number))
            assert left_in_tls(driven) == 0
        # The other end is in this process, and reads nothing.
        assert counting.count - before <= 64 + 3
        assert longer.reads == 1
    assert [each["price"] for each in driven.ticks] == list(range(65))


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 40_000, 200_000])
def test_everything_is_read_that_tls_has(secure: Any, size: int) -> None:
    """Messages of many records, and many records at once, arrive whole. TLS keeps nothing back."""
    sent = [frame(b'{"filler":"' + b"x" * size + b'"}'), *map(tick, range(100))]
    with Driven(PAIR, **secure) as driven:
        driven.send(tick(-1))
        for data in sent:
            driven.caller.send(data)
        until = driven.connection.counters.bytes + sum(map(len, sent))
        while driven.connection.counters.bytes < until:
            driven.streams.loop._turn()
            assert left_in_tls(driven) == 0
        driven.send(tick(100))
        assert [each["price"] for each in driven.ticks[-101:]] == list(range(101))
        assert driven.stream[PAIR].counters.messages == 103


def test_a_burst_of_small_records_is_read_in_few_turns(secure: Any) -> None:
    """A server that sends each tick in a record of its own doesn't cost a turn per tick, if they come quickly."""
    with Driven(PAIR, **secure) as driven:
        driven.send(tick(0))
        for number in range(1, 301):
            driven.caller.send(tick(number))
        turns = 0
        while len(driven.ticks) < 301:
            driven.streams.loop._turn()
            turns += 1
        assert turns < 50
