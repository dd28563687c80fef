"""Streams over real sockets: messages, TLS, back-pressure, and many streams at once."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from decimal import Decimal
from typing import Any

import pytest
import trustme

from finx_streamer import ConfigurationError, ConnectionFailed, DecodeError, ServerError, State
from finx_streamer.server import LocalServer, Tape
from tests.support import market
from tests.support.peers import (
    BINARY,
    PATIENCE,
    PING,
    PONG,
    Caller,
    Peer,
    Seen,
    close_frame,
    frame,
    raw_tick,
    stay,
    tick,
    tick_text,
    ticks,
)
from tests.support.tls import client_context, server_context

# Messages.


def test_a_bad_message_does_not_end_the_stream(seen: Seen) -> None:
    """Each bad message is reported as one error, in order with the ticks, and the connection stays open."""
    bad = ["{broken", "[1]", "", tick_text(9, "ETH:USDC"), '{"pair":"BTC:USDC","price":"x"}']
    sent = [tick(0), *(data for n, text in enumerate(bad, 1) for data in (frame(text), tick(n)))]
    order: list[object] = []
    with Peer(stay(*sent, frame(b"\x00\x01", BINARY), tick(6))) as peer:
        listener = seen.listener(peer.url)
        listener.on_tick(lambda tick: order.append(int(tick["price"])))
        listener.on_error(lambda error: order.append("error"))
        with listener:
            seen.wait_for(lambda: 6 in seen.prices)
            stats = listener.stats
        assert peer.accepted == 1
    assert order == [0, *(event for number in range(1, 7) for event in ("error", number))]
    assert {name: getattr(stats, name) for name in ("decode_errors", "ticks", "messages", "reconnects")} == {
        "decode_errors": 6,
        "ticks": 7,
        "messages": 13,
        "reconnects": 0,
    }
    assert [type(error) for error in seen.errors] == [DecodeError] * 6
    assert [error.payload for error in seen.of_type(DecodeError)] == [*bad, b"\x00\x01"]


@pytest.mark.parametrize("queue_size", [65_536, 3])
def test_ticks_in_all_forms_keep_their_order(seen: Seen, queue_size: int) -> None:
    """Ticks that are decoded together and the messages between them are delivered in order."""
    sent: list[bytes] = []
    for number in range(0, 300, 5):
        text = tick_text(number)
        compact = text.replace(": ", ":").replace(", ", ",")
        sent += [tick(number), frame(compact.replace(f'"{number}"', f'"{number + 1}"')), frame(b"", PING)]
        half = tick_text(number + 2).encode()
        sent += [frame(half[:50], fin=False), frame(half[50:], 0)]
        sent += [frame(json.dumps({**json.loads(text)["resultData"], "price": f"{number + 3}"})), tick(number + 4)]
    with Peer(stay(b"".join(sent))) as peer, seen.listener(peer.url, queue_size=queue_size):
        seen.wait_ticks(300)
    assert seen.prices == list(range(300))


def test_notices_and_server_errors_are_delivered(seen: Seen) -> None:
    """Every other object is delivered as a notice or a server error."""
    sent = [frame('{"isAuth":true}'), frame('{"error":"slow down"}'), tick(1)]
    with Peer(stay(*sent)) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)
    assert [notice.message for notice in seen.notices] == [{"isAuth": True}]
    assert [error.message for error in seen.of_type(ServerError)] == ["slow down"]


def test_ticks_before_a_close_frame_are_delivered(seen: Seen) -> None:
    """All ticks before a close frame in the same buffer are delivered before the loss is reported."""
    order: list[object] = []
    with Peer(stay(ticks(1, 300), close_frame(1012), tick(999)), stay(tick(301))) as peer:
        listener = seen.listener(peer.url, queue_size=50, on_tick=lambda tick: order.append(int(tick["price"])))
        listener.on_tick(seen.on_tick)
        listener.on_error(order.append)
        with listener:
            seen.wait_ticks(301)
    assert seen.prices == list(range(1, 302))
    assert order[300].close_code == 1012  # type: ignore[attr-defined]


def test_received_ns_is_the_time_of_receipt(seen: Seen) -> None:
    """Ticks in the same segment as the handshake's answer also have the time of their receipt."""
    before = time.time_ns()
    go_on = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        go_on.wait(PATIENCE)
        caller.send(tick(2))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url) as listener:
        seen.wait_ticks(1)
        between = time.time_ns()
        go_on.set()
        seen.wait_ticks(2)
        assert listener.stats.bytes > len(ticks(1, 2))
    first, second = (tick["received_ns"] for tick in seen.ticks)
    assert before <= first <= between <= second <= time.time_ns()


def test_exchanges_and_parse_price_apply_to_ticks(seen: Seen) -> None:
    """`exchanges` keeps only ticks of those exchanges, and `parse_price` converts their prices."""
    tape = Tape([raw_tick(number) for number in range(10)], speed=None)
    with (
        LocalServer(tape, keys={"demo"}) as server,
        seen.listener(server.url, exchanges=["KRAKEN"], parse_price=Decimal) as listener,
    ):
        seen.wait_ticks(5)
        assert (listener.stats.messages, listener.stats.ticks) == (10, 5)
    assert [tick["price"] for tick in seen.ticks] == [Decimal(f"{number}.10") for number in (1, 3, 5, 7, 9)]
    assert {tick["exchange"] for tick in seen.ticks} == {"KRAKEN"}


def test_filtered_ticks_take_no_room_in_the_queue(seen: Seen) -> None:
    """With a queue of one, a tick arrives after hundreds of filtered ones."""
    sent = b"".join(tick(number, exchange="OTHER") for number in range(500))
    with (
        Peer(stay(sent, tick(501, exchange="MINE"))) as peer,
        seen.listener(peer.url, exchanges={"MINE"}, queue_size=1),
    ):
        seen.wait_ticks(1)
    assert seen.prices == [501]


# TLS.


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's context of a private certificate authority."""
    authority = trustme.CA()
    return server_context(authority.issue_cert("127.0.0.1")), client_context(authority)


def test_ssl_context_is_used(seen: Seen) -> None:
    """A private authority works through ssl_context, and without it the certificate ends the listener."""
    server_context, client_context = tls_contexts()
    tape = Tape([raw_tick(number) for number in range(2_000)], speed=None)
    with LocalServer(tape, keys={"demo"}, ssl_context=server_context) as server:
        with seen.listener(server.url, parse_price=str, ssl_context=client_context):
            seen.wait_ticks(2_000)
        assert [tick["price"] for tick in seen.ticks] == [raw_tick(number)["price"] for number in range(2_000)]
        listener = seen.listener(server.url).start()
        with pytest.raises(ConnectionFailed, match="unable to get local issuer certificate"):
            listener.join(PATIENCE)
    assert listener.state is State.FAILED


def test_ticks_in_the_tls_buffer_are_delivered(seen: Seen) -> None:
    """Ticks in one TLS record with the handshake's answer are delivered even if nothing follows."""
    server_context, client_context = tls_contexts()
    with Peer(stay(ticks(1, 80)), context=server_context) as peer, seen.listener(peer.url, ssl_context=client_context):
        seen.wait_ticks(80)
    assert seen.prices == list(range(1, 81))


# Back-pressure.


def test_a_full_queue_applies_back_pressure(seen: Seen) -> None:
    """While a callback blocks, the queue keeps its bound, the server can't send, and no tick is lost."""
    total, gate = 40_000, threading.Event()
    blocked, finished = threading.Event(), threading.Event()

    def script(caller: Caller) -> None:
        caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        caller.welcome()
        caller.sock.settimeout(0.5)
        number = 0
        while number < total:
            batch = ticks(number, number + 99)
            number += 100
            while batch:
                try:
                    batch = batch[caller.sock.send(batch) :]
                except TimeoutError:
                    blocked.set()
        finished.set()
        caller.sock.settimeout(None)
        while True:
            caller.read_frame()
            caller.send(frame(b"", PONG))

    def slow(tick: Any) -> None:
        gate.wait(PATIENCE)
        seen.on_tick(tick)

    with Peer(script, receive_buffer=16_384) as peer:
        listener = seen.listener(
            peer.url, on_tick=slow, queue_size=100, ping_interval=0.1, ping_timeout=0.5, parse_price=int
        ).start()
        assert blocked.wait(PATIENCE)
        # Longer than ping_interval and ping_timeout: a pong may be among the unread bytes, so it isn't missing.
        assert not listener.join(1.2)
        assert not finished.is_set()
        assert listener.state is State.STREAMING
        assert listener.stats.queue_depth <= 100
        gate.set()
        assert finished.wait(2 * PATIENCE)
        seen.wait_ticks(total)
        assert peer.accepted == 1
        stats = listener.stats
        assert listener.stop()
    assert seen.prices == list(range(total))
    assert stats.queue_peak <= 101
    assert stats.dropped == 0


# Stopping.


def test_stop_works_during_a_flood_of_filtered_ticks(seen: Seen) -> None:
    """stop() returns in time while a gap is checked and filtered ticks arrive without a break."""

    def message(number: int, exchange: str = "BINANCE") -> bytes:
        return frame(json.dumps({"results": "streaming", "resultData": market.tick(number, exchange=exchange)}))

    stopped = threading.Event()

    def script(caller: Caller) -> None:
        if "/streamer/" in caller.read_request().decode():
            caller.welcome()
            caller.wait_until_left()
            return
        caller.welcome(*map(message, first))
        if len(first) == 1:
            first[:] = [500, 900]
            caller.leave()
            return
        while not stopped.is_set():
            caller.send(message(901, "OTHER") * 5_000)

    first = [1]
    with Peer(script) as peer:
        listener = seen.listener(peer.url, exchanges=["BINANCE"], backfill=True, queue_size=3).start()
        seen.wait_for(lambda: seen.ticks)
        while listener.stats.messages < 20_000:
            assert not listener.join(0.01)
        try:
            assert listener.stop(10.0, drain=False)
        finally:
            stopped.set()


def test_stop_returns_false_while_parse_price_hangs(seen: Seen) -> None:
    """Meanwhile, start() refuses to start a second network thread."""
    inside, gate = threading.Event(), threading.Event()

    def parse(text: str) -> float:
        inside.set()
        gate.wait(PATIENCE)
        return float(text)

    with Peer(stay(ticks(1, 1))) as peer:
        listener = seen.listener(peer.url, parse_price=parse).start()
        assert inside.wait(PATIENCE)
        assert not listener.stop(0.1)
        assert not listener.stop(0.3, drain=False)
        with pytest.raises(ConfigurationError, match="still stopping"):
            listener.start()
        gate.set()
        assert listener.stop(PATIENCE)
        assert peer.accepted == 1


# Many streams.


def test_all_streams_share_one_network_thread(seen: Seen) -> None:
    """Thirty streams need no more threads than one."""
    pairs = [f"P{number}:USD" for number in range(30)]
    tape = Tape([raw_tick(1) | {"pair": pair} for pair in pairs], speed=None, wait_for=30)
    with LocalServer(tape, keys={"demo"}) as server, seen.listener(server.url, *pairs, name="many") as listener:
        seen.wait_ticks(30)
        seen.wait_for(lambda: [s for _, s in seen.states].count(State.STREAMING) == 30)
        assert server.stats.connections == 30
        names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("many"))
        assert [name for name in names if "handshake" not in name] == ["many-callbacks", "many-relief"]
        assert set(listener.stats.streams) == set(pairs)
    assert {tick["pair"] for tick in seen.ticks} == set(pairs)
