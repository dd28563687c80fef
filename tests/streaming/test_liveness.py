"""Liveness over real sockets: pings, silence, and keepAlive messages."""

from __future__ import annotations

import threading

from finx_streamer import StaleStream, State
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import PATIENCE, PING, PONG, Caller, Peer, Seen, frame, raw_tick, stay, tick


def test_pings_are_answered(seen: Seen) -> None:
    """While ticks arrive, pings are answered with their payload."""
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


def test_a_half_open_connection_is_detected(seen: Seen) -> None:
    """If no pong arrives within ping_interval and ping_timeout, the listener reconnects."""
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


def test_silence_after_half_a_frame_is_detected(seen: Seen) -> None:
    """If the peer stops in the middle of a frame, the missing pong ends the connection."""
    with (
        Peer(lambda caller: (caller.welcome(tick(1)[:20]), caller.wait_until_left()), stay(tick(2))) as peer,
        seen.listener(peer.url, ping_interval=0.1, ping_timeout=0.5),
    ):
        seen.wait_ticks(1)
    assert seen.prices[:1] == [2]
    assert "no answer to a ping" in str(seen.errors[0])


def test_a_quiet_peer_that_answers_pings_stays_connected(seen: Seen) -> None:
    """A market without ticks isn't a lost connection."""
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


def test_a_silence_is_reported_once(seen: Seen) -> None:
    """StaleStream is reported once per silence and doesn't end the connection."""
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


def test_keep_alive_sends_messages(seen: Seen) -> None:
    """`keep_alive` sends FinX's own message at its interval, and the answer is a notice."""
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


def test_very_long_intervals_are_allowed(seen: Seen) -> None:
    """Intervals of years, which may exceed what a poller can wait, turn a check off."""
    settings = {"ping_interval": 1e9, "ping_timeout": 1e9, "stale_after": 1e9, "connect_timeout": 1e8}
    with Peer(stay(tick(1))) as peer, seen.listener(peer.url, **settings) as listener:
        seen.wait_ticks(1)
        assert listener.state is State.STREAMING
