"""The network side over real sockets: reconnects, refusals, liveness, back-pressure, and bad messages on the wire."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import trustme

from finx_streamer import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    ProtocolError,
    RateLimited,
    ReconnectPolicy,
    ServerError,
    StaleStream,
    State,
    StreamNotFound,
)
from finx_streamer.connection.handshake_pool import MAX_CONCURRENT
from finx_streamer.server import LocalServer, Tape
from tests.support import market
from tests.support.peers import (
    BINARY,
    PAIR,
    PATIENCE,
    PING,
    PONG,
    Caller,
    Peer,
    Script,
    Seen,
    close_frame,
    frame,
    free_port,
    refuse,
    stay,
    tick,
    tick_text,
    ticks,
)

NEVER_AGAIN = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)


def raw_tick(number: int) -> dict[str, str]:
    """A tick as a tape holds it."""
    return {
        "pair": PAIR,
        "date": "2022-07-02",
        "time": "15:30:55.817Z",
        "exchange": ("BINANCE", "KRAKEN")[number % 2],
        "price": f"{number}.10",
    }


def hang(caller: Caller) -> None:
    """A server that takes the request and says nothing."""
    caller.read_request()
    caller.wait_until_left()


def leave_after(*sent: bytes) -> Script:
    """A script that completes the handshake, sends this, and ends TCP."""

    def script(caller: Caller) -> None:
        caller.welcome(*sent)
        caller.leave()

    return script


# Reconnecting.


def test_a_server_that_appears_later_is_found(seen: Seen) -> None:
    """Refused connections are reported and tried again, until the server is there."""
    port = free_port()
    with seen.listener(f"ws://127.0.0.1:{port}/"):
        seen.wait_errors(3)
        with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}, port=port):
            seen.wait_ticks(1)
    assert [error.attempt for error in seen.errors[:3]] == [1, 2, 3]
    assert all(error.will_retry and error.retry_in == 0.01 for error in seen.of_type(ConnectionFailed)[:3])
    assert list(dict.fromkeys(state for _, state in seen.states)) == [
        State.CONNECTING,
        State.RECONNECTING,
        State.STREAMING,
        State.STOPPED,
    ]


def test_a_lost_connection_is_opened_again(seen: Seen) -> None:
    """After each way of losing a connection the stream goes on with a new one, and says what was lost."""
    scripts = [
        leave_after(tick(0)),
        stay(tick(1), close_frame(1000)),
        stay(tick(2), close_frame(1011, b"oops")),
        stay(tick(3), frame("x", rsv=7)),
        lambda caller: (caller.welcome(tick(4)), caller.read_frame(), caller.reset()),
        stay(tick(5)),
    ]
    with Peer(*scripts) as peer, seen.listener(peer.url, ping_interval=0.05) as listener:
        seen.wait_ticks(6)
        assert listener.stats.reconnects == 5
        assert listener.state is State.STREAMING
    assert seen.prices == list(range(6))
    assert [type(error) for error in seen.errors] == [
        ConnectionFailed,
        ConnectionFailed,
        ConnectionFailed,
        ProtocolError,
        ConnectionFailed,
    ]
    assert [error.close_code for error in seen.of_type(ConnectionFailed)[:3]] + [
        None,
        None,
    ] == [None, 1000, 1011, None, None]
    assert all(error.will_retry for error in seen.of_type(ConnectionFailed))


def test_a_handshake_without_answer_is_tried_again(seen: Seen) -> None:
    """A handshake that hangs is given up after connect_timeout."""
    with Peer(hang, hang, stay(tick(7))) as peer, seen.listener(peer.url, connect_timeout=0.5):
        seen.wait_ticks(1)
    assert [(error.attempt, error.will_retry) for error in seen.of_type(ConnectionFailed)] == [(1, True), (2, True)]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_wins_over_the_policy(seen: Seen, form: str) -> None:
    """429 is reported as RateLimited, and what the server asks for is how long is waited, in either form."""
    later = 3_600 if form == "seconds" else datetime.now(UTC) + timedelta(hours=1)
    with LocalServer(Tape([raw_tick(1)]), keys={"demo"}) as server:
        server.refuse_next(1, 429, retry_after=later)
        listener = seen.listener(server.url).start()
        seen.wait_errors(1)
        assert listener.state is State.RECONNECTING
        assert listener.stop()
    assert [type(error) for error in seen.errors] == [RateLimited]
    assert seen.of_type(RateLimited)[0].will_retry
    assert 3_500 < seen.of_type(RateLimited)[0].retry_in <= 3_601


def test_a_short_retry_after_is_kept(seen: Seen) -> None:
    """A server that asks for a second gets it, though the policy would be quicker."""
    times: list[float] = []

    def busy(caller: Caller) -> None:
        caller.read_request()
        times.append(time.monotonic())
        caller.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\n\r\n")

    def ready(caller: Caller) -> None:
        times.append(time.monotonic())
        stay(tick(1))(caller)

    with Peer(busy, ready) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (refuse("401 Unauthorized"), AuthenticationError),
        (refuse("403 Forbidden"), AuthenticationError),
        (refuse("404 Not Found"), StreamNotFound),
        (stay(close_frame(1008, b"revoked")), AuthenticationError),
        (refuse("302 Found", "Location: wss://elsewhere.example/\r\n"), ConnectionFailed),
        (refuse("200 OK"), ProtocolError),
    ],
)
def test_what_a_retry_can_not_mend_ends_the_listener(seen: Seen, script: Script, kind: type[ConnectionFailed]) -> None:
    """A bad key, an unknown stream and the like end all streams: FAILED, one attempt, and join raises the error."""
    with Peer(script) as peer:
        listener = seen.listener(peer.url).start()
        with pytest.raises(kind) as caught:
            listener.join(PATIENCE)
        assert peer.accepted == 1
    assert listener.state is State.FAILED
    assert [caught.value] == seen.errors
    assert (caught.value.attempt, caught.value.will_retry, caught.value.retry_in) == (1, False, None)
    assert seen.states[-1] == (PAIR, State.FAILED)


def test_one_stream_that_fails_for_good_ends_all(seen: Seen) -> None:
    """A listener does not go on half: an unknown pair ends the other streams too."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server:
        listener = seen.listener(server.url, PAIR).start()
        seen.wait_ticks(1)
        listener.add("NO:SUCH")
        with pytest.raises(StreamNotFound) as caught:
            listener.join(PATIENCE)
    assert caught.value.symbol == "NO:SUCH"
    assert dict(seen.states) == {PAIR: State.STOPPED, "NO:SUCH": State.FAILED}


def test_attempts_may_be_used_up(seen: Seen) -> None:
    """With `attempts=3` the third failure in a row is the last, and says so."""
    policy = ReconnectPolicy(initial=0.01, jitter=False, attempts=3)
    listener = seen.listener(f"ws://127.0.0.1:{free_port()}/", reconnect=policy).start()
    with pytest.raises(ConnectionFailed, match="connection refused"):
        listener.join(PATIENCE)
    assert [(e.attempt, e.will_retry) for e in seen.of_type(ConnectionFailed)] == [(1, True), (2, True), (3, False)]
    assert listener.state is State.FAILED


def test_no_policy_is_one_connection(seen: Seen) -> None:
    """`reconnect=None` ends the listener with the first connection, a normal close included."""
    with Peer(stay(tick(1), close_frame(1000))) as peer:
        listener = seen.listener(peer.url, reconnect=None).start()
        with pytest.raises(ConnectionFailed, match="normally"):
            listener.join(PATIENCE)
        assert peer.accepted == 1
    assert seen.prices == [1]


def test_a_restart_of_the_server_is_survived(seen: Seen) -> None:
    """The listener finds a server that went away (1001) and came back on the same port."""
    with LocalServer(Tape([raw_tick(1)], speed=None), keys={"demo"}) as server, seen.listener(server.url):
        seen.wait_ticks(1)
        server.stop()
        seen.wait_errors(2)
        server.start()
        seen.wait_ticks(2)
    assert seen.of_type(ConnectionFailed)[0].close_code == 1001


# Keys.


def test_the_key_is_asked_for_at_every_attempt(seen: Seen) -> None:
    """A callable gives each attempt its key."""
    keys = iter(["first", "second", "third"])
    with (
        Peer(leave_after(tick(1)), leave_after(tick(2)), stay(tick(3))) as peer,
        seen.listener(peer.url, api_key=lambda: next(keys)),
    ):
        seen.wait_ticks(3)
        paths = [request.split()[1] for request in peer.requests]
    assert paths == [b"/streaming/%s/BTC:USDC" % key for key in (b"first", b"second", b"third")]


def test_a_revoked_key_is_replaced(seen: Seen) -> None:
    """Close 1008 is not the end where the callable has another key."""
    with LocalServer(Tape([raw_tick(n) for n in range(2)], speed=None), keys={"old", "new"}) as server:
        keys = ["old"]
        with seen.listener(server.url, api_key=lambda: keys[-1]) as listener:
            server.wait_connected()
            keys.append("new")
            assert server.revoke_key("old") == 1
            seen.wait_for(lambda: [s for _, s in seen.states].count(State.STREAMING) == 2)
            assert listener.state is State.STREAMING
    assert [(e.close_code, e.will_retry) for e in seen.of_type(AuthenticationError)] == [(1008, True)]


@pytest.mark.parametrize("script", [stay(close_frame(1008)), refuse("401 Unauthorized")])
def test_a_callable_that_has_no_other_key_ends_the_listener(seen: Seen, script: Script) -> None:
    """A refused key is not offered again."""
    with Peer(script) as peer:
        listener = seen.listener(peer.url, api_key=lambda: "demo").start()
        with pytest.raises(AuthenticationError):
            listener.join(PATIENCE)
        assert peer.accepted == 1


def test_a_key_that_rotated_meanwhile_is_tried(seen: Seen) -> None:
    """401 for the old key is followed by an attempt with the new one."""
    keys = iter(["old", "new"])
    with Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer:
        with seen.listener(peer.url, api_key=lambda: next(keys)):
            seen.wait_ticks(1)
        assert b"/streaming/new/" in peer.requests[1]


def test_a_refusal_is_told_though_the_callable_fails(seen: Seen) -> None:
    """401 is reported as what it is, even where asking for another key raises."""
    answers = iter(["old", OSError("vault sealed"), "new"])

    def key() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Peer(refuse("401 Unauthorized"), stay(tick(1))) as peer, seen.listener(peer.url, api_key=key):
        seen.wait_ticks(1)
    assert [(error.status, error.will_retry) for error in seen.of_type(AuthenticationError)] == [(401, True)]


def test_a_callable_that_raises_is_asked_again(seen: Seen) -> None:
    """A vault that is out of reach is reported with the cause, and asked again."""
    answers = iter([OSError("vault sealed"), "demo"])

    def key() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=key):
        seen.wait_ticks(1)
    assert [type(error.__cause__) for error in seen.errors] == [OSError]
    assert seen.of_type(ConnectionFailed)[0].will_retry


def test_a_callable_that_wants_to_exit_blocks_no_place(seen: Seen) -> None:
    """SystemExit in the key callable is a failed attempt like any other, at once and not at the deadline."""
    answers = iter([SystemExit(1), "demo"])

    def key() -> str:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, api_key=key, connect_timeout=3_600.0):
        seen.wait_ticks(1)
    assert "SystemExit" in str(seen.errors[0])


@pytest.mark.parametrize("key", [lambda: None, lambda: "", lambda: 7, lambda: "white space"])
def test_a_callable_without_a_usable_key_ends_the_listener(seen: Seen, key: Any) -> None:
    """No key, and one that can't be one, is an AuthenticationError and no connection is made."""
    with Peer(stay()) as peer:
        listener = seen.listener(peer.url, api_key=key).start()
        with pytest.raises(AuthenticationError):
            listener.join(PATIENCE)
        assert peer.accepted == 0


def test_the_environment_is_read_at_every_attempt(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without api_key, FINX_API_KEY is read when an attempt begins."""
    monkeypatch.setenv("FINX_API_KEY", "morning")
    release = threading.Event()

    def first(caller: Caller) -> None:
        caller.welcome(tick(1))
        release.wait(PATIENCE)

    with Peer(lambda caller: (first(caller), caller.leave()), stay(tick(2))) as peer:
        with seen.listener(peer.url, api_key=None):
            seen.wait_ticks(1)
            monkeypatch.setenv("FINX_API_KEY", "evening")
            release.set()
            seen.wait_ticks(2)
        assert [request.split(b"/")[2] for request in peer.requests] == [b"morning", b"evening"]


# TLS.


def test_a_context_of_the_users_own_is_used(seen: Seen) -> None:
    """A private authority works through ssl_context; without it the certificate is refused and all ends."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    tape = Tape([raw_tick(number) for number in range(2_000)], speed=None)
    with LocalServer(tape, keys={"demo"}, ssl_context=theirs) as server:
        with seen.listener(server.url, parse_price=str, ssl_context=ours):
            seen.wait_ticks(2_000)
        assert [tick["price"] for tick in seen.ticks] == [raw_tick(number)["price"] for number in range(2_000)]
        listener = seen.listener(server.url).start()
        with pytest.raises(ConnectionFailed, match="unable to get local issuer certificate"):
            listener.join(PATIENCE)
    assert listener.state is State.FAILED


def test_what_tls_has_read_ahead_is_delivered(seen: Seen) -> None:
    """Ticks in one TLS record with the handshake's answer are delivered, though nothing comes after them."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    with Peer(stay(ticks(1, 80)), context=theirs) as peer, seen.listener(peer.url, ssl_context=ours):
        seen.wait_ticks(80)
    assert seen.prices == list(range(1, 81))


# What comes over the wire.


def test_bad_messages_are_reported_and_the_stream_goes_on(seen: Seen) -> None:
    """Each bad message is one error, in its place between the ticks, and costs no connection."""
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
    assert order == [0, *(what for number in range(1, 7) for what in ("error", number))]
    assert {name: getattr(stats, name) for name in ("decode_errors", "ticks", "messages", "reconnects")} == {
        "decode_errors": 6,
        "ticks": 7,
        "messages": 13,
        "reconnects": 0,
    }
    assert [type(error) for error in seen.errors] == [DecodeError] * 6
    assert [error.payload for error in seen.of_type(DecodeError)] == [*bad, b"\x00\x01"]


@pytest.mark.parametrize("queue_size", [65_536, 3])
def test_ticks_of_all_forms_keep_their_order(seen: Seen, queue_size: int) -> None:
    """Runs that are read in one go, and whatever stands between them, are delivered as they came."""
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


def test_notices_and_server_errors_are_handed_on(seen: Seen) -> None:
    """Other objects are notices, or server errors, and nothing is dropped in silence."""
    sent = [frame('{"isAuth":true}'), frame('{"error":"slow down"}'), tick(1)]
    with Peer(stay(*sent)) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)
    assert [notice.message for notice in seen.notices] == [{"isAuth": True}]
    assert [error.message for error in seen.of_type(ServerError)] == ["slow down"]


def test_ticks_before_a_close_frame_are_all_delivered(seen: Seen) -> None:
    """However much lies before a close frame in the same buffer, it is delivered before the loss is told."""
    order: list[object] = []
    with Peer(stay(ticks(1, 300), close_frame(1012), tick(999)), stay(tick(301))) as peer:
        listener = seen.listener(peer.url, queue_size=50, on_tick=lambda tick: order.append(int(tick["price"])))
        listener.on_tick(seen.on_tick)
        listener.on_error(order.append)
        with listener:
            seen.wait_ticks(301)
    assert seen.prices == list(range(1, 302))
    assert order[300].close_code == 1012  # type: ignore[attr-defined]


def test_received_ns_is_when_the_bytes_were_read(seen: Seen) -> None:
    """Ticks glued to the handshake's answer and those after it have the time of their receipt."""
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


def test_exchanges_filters_and_parse_price_reads(seen: Seen) -> None:
    """`exchanges` keeps only what it names, and `parse_price` makes the price."""
    tape = Tape([raw_tick(number) for number in range(10)], speed=None)
    with (
        LocalServer(tape, keys={"demo"}) as server,
        seen.listener(server.url, exchanges=["KRAKEN"], parse_price=Decimal) as listener,
    ):
        seen.wait_ticks(5)
        assert (listener.stats.messages, listener.stats.ticks) == (10, 5)
    assert [tick["price"] for tick in seen.ticks] == [Decimal(f"{number}.10") for number in (1, 3, 5, 7, 9)]
    assert {tick["exchange"] for tick in seen.ticks} == {"KRAKEN"}


def test_a_filter_that_lets_nothing_through_stalls_nothing(seen: Seen) -> None:
    """Ticks that are filtered take no room in the queue: with a queue of one, the last still arrives."""
    sent = b"".join(tick(number, exchange="OTHER") for number in range(500))
    with (
        Peer(stay(sent, tick(501, exchange="MINE"))) as peer,
        seen.listener(peer.url, exchanges={"MINE"}, queue_size=1),
    ):
        seen.wait_ticks(1)
    assert seen.prices == [501]


# Liveness.


def test_pings_are_answered(seen: Seen) -> None:
    """The server's pings are answered with their payload while ticks flow."""
    answers: list[tuple[int, bytes]] = []

    def script(caller: Caller) -> None:
        for number in range(3):
            (caller.send if number else caller.welcome)(tick(number), frame(b"%d" % number, PING), tick(number))
            answers.append(caller.read_frame())
        caller.send(tick(99))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url):
        seen.wait_for(lambda: 99 in seen.prices)
    assert answers == [(PONG, b"0"), (PONG, b"1"), (PONG, b"2")]


def test_a_half_open_connection_is_found(seen: Seen) -> None:
    """A peer that says nothing more, not even a pong, is given up after ping_interval and ping_timeout."""
    tape = Tape([raw_tick(1)], speed=None)
    with (
        LocalServer(tape, keys={"demo"}) as server,
        seen.listener(server.url, ping_interval=0.1, ping_timeout=0.5) as listener,
    ):
        seen.wait_ticks(1)
        assert server.go_silent() == 1
        seen.wait_for(lambda: [state for _, state in seen.states].count(State.STREAMING) == 2)
        assert listener.stats.reconnects == 1
        server.resume()
    assert "no answer to a ping within 0.5 s" in str(seen.errors[0])


def test_half_a_frame_followed_by_silence_is_found(seen: Seen) -> None:
    """A peer that stops in the midst of a frame blocks nothing: the missing pong tells."""
    with (
        Peer(lambda caller: (caller.welcome(tick(1)[:20]), caller.wait_until_left()), stay(tick(2))) as peer,
        seen.listener(peer.url, ping_interval=0.1, ping_timeout=0.5),
    ):
        seen.wait_ticks(1)
    assert seen.prices[:1] == [2]
    assert "no answer to a ping" in str(seen.errors[0])


def test_a_quiet_peer_that_answers_is_left_alone(seen: Seen) -> None:
    """A market without ticks is not a dead one: several pings later the connection still stands."""
    pings: list[bytes] = []

    def script(caller: Caller) -> None:
        caller.welcome()
        while True:
            opcode, payload = caller.read_frame()
            if opcode == PING:
                pings.append(payload)
                caller.send(frame(payload, PONG))
                if len(pings) == 6:
                    caller.send(tick(1))

    with Peer(script) as peer, seen.listener(peer.url, ping_interval=0.05, ping_timeout=PATIENCE):
        seen.wait_ticks(1)
        assert peer.accepted == 1
    assert seen.errors == []


def test_a_silence_is_told_once(seen: Seen) -> None:
    """`stale_after` reports that nothing comes, once until something does, and ends nothing."""
    more = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        more.wait(PATIENCE)
        caller.send(tick(2))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, stale_after=0.05, ping_interval=None) as listener:
        seen.wait_errors(1)
        more.set()
        seen.wait_errors(2)
        assert listener.state is State.STREAMING
    assert [type(error) for error in seen.errors] == [StaleStream] * 2
    assert seen.prices == [1, 2]


def test_keep_alive_is_sent(seen: Seen) -> None:
    """`keep_alive` sends FinX's own message with the key at that interval, and its answer is a notice."""
    messages: list[bytes] = []

    def script(caller: Caller) -> None:
        caller.welcome()
        for _ in range(2):
            messages.append(caller.read_frame()[1])
            caller.send(frame('{"keepAlive":true}'))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, keep_alive=0.05, ping_interval=None):
        seen.wait_for(lambda: len(seen.notices) >= 2)
    assert messages == [b'{"APIKey": "demo", "functionName": "keepAlive"}'] * 2


def test_intervals_beyond_what_a_selector_can_wait_are_allowed(seen: Seen) -> None:
    """A bound of years, which some give to turn a thing off, ends nothing."""
    settings = {"ping_interval": 1e9, "ping_timeout": 1e9, "stale_after": 1e9, "connect_timeout": 1e8}
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, **settings) as listener:
        seen.wait_ticks(1)
        assert listener.state is State.STREAMING


# Back-pressure.


def test_a_full_queue_stops_the_sender(seen: Seen) -> None:
    """With a blocked callback the queue stays within its bound, the sender is held up, and nothing is lost."""
    total, gate = 40_000, threading.Event()
    held_up, finished = threading.Event(), threading.Event()

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
                    held_up.set()
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
        assert held_up.wait(PATIENCE)
        # Long enough for a ping to go unanswered, were it not for the answer that may lie unread.
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


def test_a_stop_is_heard_in_a_flood_that_takes_no_room(seen: Seen) -> None:
    """While a gap is looked into, with less room than a read brings, of ticks that `exchanges` leaves out."""

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


def test_a_stop_does_not_say_that_a_hanging_parse_price_has_ended(seen: Seen) -> None:
    """Nor does a start make a second network thread beside it."""
    inside, gate = threading.Event(), threading.Event()

    def parse(text: str) -> float:
        inside.set()
        gate.wait(PATIENCE)
        return float(text)

    with Peer(stay(ticks(1, 1))) as peer:
        listener = seen.listener(peer.url, parse_price=parse).start()
        assert inside.wait(PATIENCE)
        assert not listener.stop(0.1)
        assert not listener.stop(2.0, drain=False)
        with pytest.raises(ConfigurationError, match="still stopping"):
            listener.start()
        gate.set()
        assert listener.stop(PATIENCE)
        assert peer.accepted == 1


def test_a_stream_that_is_back_brings_the_others(seen: Seen) -> None:
    """They waited for the same network: nobody sits out half a minute of backoff when it is there again."""
    patient = ReconnectPolicy(initial=3_000.0, maximum=3_000.0, jitter=False)
    pairs = ("BTC:USDC", "ETH:USDC", "SOL:USDC")
    with (
        LocalServer(market.Market(*pairs), keys={"demo"}) as server,
        seen.listener(server.url, *pairs[:2], reconnect=patient) as listener,
    ):
        server.wait_connected(2)
        server.drop_connections()
        seen.wait_for(lambda: {(pair, State.RECONNECTING) for pair in pairs[:2]} <= set(seen.states))
        listener.add(pairs[2])
        server.wait_connected(3)


def test_other_streams_are_not_held_up_by_a_dead_one(seen: Seen) -> None:
    """One stream that hangs in its handshake, or reconnects for ever, takes nothing from the others."""

    def script(caller: Caller) -> None:
        if "DEAD" in caller.read_request().decode():
            caller.wait_until_left()
        caller.welcome(ticks(1, 100, "LIVE:USD"))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, "DEAD:USD", "LIVE:USD"):
        seen.wait_ticks(100)
    assert seen.errors == []


# Many streams, and what is left over.


def test_all_streams_share_one_network_thread(seen: Seen) -> None:
    """Thirty streams need as many threads as one."""
    pairs = [f"P{number}:USD" for number in range(30)]
    tape = Tape([raw_tick(1) | {"pair": pair} for pair in pairs], speed=None, wait_for=30)
    with LocalServer(tape, keys={"demo"}) as server, seen.listener(server.url, *pairs, name="many") as listener:
        seen.wait_ticks(30)
        seen.wait_for(lambda: [s for _, s in seen.states].count(State.STREAMING) == 30)
        assert server.stats.connections == 30
        names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("many"))
        assert [name for name in names if "handshake" not in name] == ["many-callbacks", "many-network"]
        assert set(pairs) == set(listener.stats.streams)
    assert set(pairs) == {tick["pair"] for tick in seen.ticks}


def test_hung_handshakes_let_the_others_pass(seen: Seen) -> None:
    """When all places are taken by handshakes that hang, those that wait get theirs after connect_timeout."""
    dead = [f"DEAD{number}:USD" for number in range(MAX_CONCURRENT)]

    def script(caller: Caller) -> None:
        if "DEAD" in caller.read_request().decode():
            caller.wait_until_left()
        caller.welcome(tick(1, "LIVE:USD"))
        caller.wait_until_left()

    with Peer(script) as peer, seen.listener(peer.url, *dead, "LIVE:USD", connect_timeout=1.0, reconnect=NEVER_AGAIN):
        seen.wait_ticks(1)


def test_removing_hung_streams_gives_their_places_free(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake that nothing interrupts, in name resolution, holds no place once its stream is removed."""
    hung = [f"DEAD{number}:USD" for number in range(MAX_CONCURRENT)]
    release, stuck = threading.Event(), threading.Semaphore(0)

    def key() -> str:
        if not release.is_set():
            stuck.release()
            free.wait(PATIENCE)
        return "demo"

    free = threading.Event()
    with Peer(stay(tick(1, "LIVE:USD"))) as peer:
        try:
            with seen.listener(peer.url, *hung, "LIVE:USD", api_key=key, connect_timeout=3_600.0) as listener:
                for _ in hung:
                    assert stuck.acquire(timeout=PATIENCE)
                release.set()
                listener.remove(*hung)
                seen.wait_ticks(1)
        finally:
            free.set()


def test_reconnects_leave_no_deadlines_behind(seen: Seen) -> None:
    """Deadlines of connections that are gone are forgotten: the heap does not grow with each reconnect."""
    pings = threading.Semaphore(0)

    def answer(caller: Caller) -> None:
        caller.welcome()
        while True:
            caller.read_frame()
            caller.send(frame(b"", PONG))
            pings.release()

    bounds = {"ping_interval": 0.3, "connect_timeout": 0.3}
    policy = ReconnectPolicy(initial=0.0)
    with Peer(*[leave_after()] * 40, answer) as peer, seen.listener(peer.url, reconnect=policy, **bounds) as listener:
        for _ in range(4):
            assert pings.acquire(timeout=PATIENCE)
        # Not public, and not to be seen from outside but as a slow leak.
        assert len(listener._run.streams.loop._deadlines) <= 5  # type: ignore[union-attr]


def test_long_intervals_do_not_fill_the_heap(seen: Seen) -> None:
    """Deadlines that lie a day ahead are forgotten with their connections, and not a day later."""
    policy = ReconnectPolicy(initial=0.0)
    with (
        Peer(*[leave_after()] * 150, stay(tick(1))) as peer,
        seen.listener(peer.url, reconnect=policy, ping_interval=86_400.0) as listener,
    ):
        seen.wait_ticks(1)
        assert len(listener._run.streams.loop._deadlines) <= 70  # type: ignore[union-attr]
