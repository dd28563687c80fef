"""The lane does what the longer way does, and it is left at once where it couldn't."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import Notice
from finx_streamer.connection.websocket import READ_SIZE
from finx_streamer.streaming.stream_connection import StreamConnection
from finx_streamer.wire.single_tick import SingleTick
from tests.support.driven import Driven
from tests.support.effort import examples
from tests.support.peers import BINARY, PAIR, PING, PONG, TEXT, close_frame, frame, tick, ticks
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


def without_receipt(tick: Any) -> Any:
    """A tick without the time at which it was received."""
    return tick and {name: value for name, value in tick.items() if name != "received_ns"}


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
            "rate": sum(count for _, count in counters._per_second),
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
    """Ticks, events, counters, the window and the place in the log are those of the longer way, however bytes are cut."""
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
