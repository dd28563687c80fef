"""The state machine of one stream, fed by hand: no socket, no clock, no thread.

The first part goes through what the protocol and the design ask for, one by one. The second feeds it any sequence of
events, as a network side would that is out of luck, and checks what must hold whatever comes.
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from finx_streamer.config.reconnect import ReconnectPolicy
from finx_streamer.errors import (
    AuthenticationError,
    ConnectionFailed,
    ProtocolError,
    RateLimited,
    StaleStream,
    StreamNotFound,
)
from finx_streamer.streaming.session import (
    EARLY_RETRY_INTERVAL,
    NEW_KEY_TIMEOUT,
    Action,
    Announce,
    Connect,
    Disconnect,
    End,
    Link,
    Report,
    SendKeepAlive,
    SendPing,
    Session,
    Timing,
)
from finx_streamer.values import State
from tests.support.effort import examples

STEADY = ReconnectPolicy(initial=1.0, factor=2.0, maximum=8.0, jitter=False, reset_after=60.0)
NEVER = math.inf


def a_session(policy: ReconnectPolicy | None = STEADY, key_can_change: bool = False, **timing: Any) -> Session:
    return Session(policy, Timing(**timing), key_can_change=key_can_change)


def an_open_session(policy: ReconnectPolicy | None = STEADY, key_can_change: bool = False, **timing: Any) -> Session:
    """A session whose connection was opened at 0."""
    session = a_session(policy, key_can_change, **timing)
    session.start(0.0)
    session.handshake_started(0.0)
    session.opened(0.0)
    return session


def reconnected(session: Session, now: float) -> None:
    """Have it connect again at its deadline, and open `now`."""
    assert [Connect()] == session.wake(session.deadline)
    session.handshake_started(now)
    assert [Announce(State.STREAMING)] == session.opened(now)


def a_loss(**facts: Any) -> ConnectionFailed:
    return ConnectionFailed("lost", **facts)


def run_until(session: Session, end: float) -> list[tuple[float, Action]]:
    """Wake it at each of its deadlines up to `end`; what it did, and when."""
    done: list[tuple[float, Action]] = []
    while (now := session.deadline) <= end:
        done += [(now, action) for action in session.wake(now)]
    return done


# Connecting.


def test_it_begins_idle() -> None:
    """Nothing is due before the start."""
    session = a_session()
    assert (session.state, session.link, session.deadline) == (State.IDLE, Link.NONE, NEVER)
    assert session.wake(1e9) == []
    assert not session.delivers


def test_start_connects() -> None:
    """It says so, and counts the attempt."""
    session = a_session()
    assert [Announce(State.CONNECTING), Connect()] == session.start(0.0)
    assert session.attempt == 1


@pytest.mark.parametrize("end", [False, True])
def test_a_second_start_does_nothing(end: bool) -> None:
    """Neither while it runs nor after its end."""
    session = a_session()
    session.start(0.0)
    if end:
        session.stop(0.0)
    assert session.start(1.0) == []


def test_an_opened_connection_streams() -> None:
    """From then on messages are delivered."""
    session = a_session()
    session.start(0.0)
    session.handshake_started(0.0)
    assert not session.delivers
    assert [Announce(State.STREAMING)] == session.opened(1.0)
    assert session.delivers
    assert Link.OPEN is session.link


def test_a_handshake_that_waits_for_its_turn_has_no_deadline() -> None:
    """The time of an attempt runs from when it begins."""
    session = a_session(connect_timeout=10.0)
    session.start(0.0)
    assert session.deadline == NEVER
    session.handshake_started(100.0)
    assert session.deadline == 110.0


def test_a_handshake_that_takes_too_long_is_given_up() -> None:
    """After `connect_timeout` it is a failed attempt like any other."""
    session = a_session(connect_timeout=10.0)
    session.start(0.0)
    session.handshake_started(0.0)
    assert session.wake(9.9) == []
    match session.wake(10.0):
        case [Disconnect(), Report(error), Announce(State.RECONNECTING)]:
            assert "no connection within 10 s" in str(error)
        case actions:
            pytest.fail(f"{actions}")
    assert session.deadline == 11.0


@pytest.mark.parametrize("stopped", [False, True])
def test_a_connection_that_opens_after_it_was_given_up_is_closed(stopped: bool) -> None:
    """A late success is not taken for the connection of an attempt that is over."""
    session = a_session(connect_timeout=10.0)
    session.start(0.0)
    session.handshake_started(0.0)
    _ = session.stop(5.0) if stopped else session.wake(10.0)
    state, deadline = session.state, session.deadline
    assert [Disconnect()] == session.opened(10.5)
    assert (state, Link.NONE, deadline) == (session.state, session.link, session.deadline)
    assert not session.delivers


def test_a_begin_that_comes_late_sets_no_deadline() -> None:
    """Neither while it waits for the next attempt nor once it is open."""
    session = an_open_session(connect_timeout=1.0, ping_interval=None)
    session.handshake_started(5.0)
    assert session.deadline == NEVER
    session.lost(a_loss(), 6.0)
    session.handshake_started(6.0)
    assert session.deadline == 7.0


# Reconnecting.


def test_a_loss_is_reported_and_mended() -> None:
    """The report says what follows; the next attempt comes after the policy's delay."""
    session = an_open_session()
    error = a_loss(close_code=1006)
    assert [Report(error), Announce(State.RECONNECTING)] == session.lost(error, 5.0)
    assert (error.symbol, error.attempt, error.will_retry, error.retry_in) == (None, 1, True, 1.0)
    assert not session.delivers
    assert session.deadline == 6.0
    assert session.wake(5.9) == []
    assert [Connect()] == session.wake(6.0)


def test_every_failed_attempt_is_reported_with_its_number() -> None:
    """Delays grow from one to the next, up to the maximum."""
    session = a_session()
    session.start(0.0)
    reports = []
    now = 0.0
    for _ in range(6):
        session.handshake_started(now)
        error = a_loss()
        assert Report(error) == session.lost(error, now)[0]
        reports.append((error.attempt, error.retry_in))
        now = session.deadline
        assert [Connect()] == session.wake(now)
    assert reports == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (6, 8.0)]


def test_a_state_is_announced_once() -> None:
    """A second failure in a row is no new state."""
    session = a_session()
    session.start(0.0)
    assert Announce(State.RECONNECTING) in session.lost(a_loss(), 0.0)
    session.wake(session.deadline)
    assert State.RECONNECTING is session.state
    assert not any(isinstance(action, Announce) for action in session.lost(a_loss(), 5.0))


def test_a_loss_that_comes_late_is_ignored() -> None:
    """One loss makes one report and one delay, whoever else noticed it."""
    session = an_open_session()
    assert a_session().lost(a_loss(), 0.0) == []
    session.lost(a_loss(), 5.0)
    assert session.lost(a_loss(), 5.5) == []
    assert session.deadline == 6.0
    session.stop(5.7)
    assert session.lost(a_loss(), 5.8) == []


def test_retry_after_is_honoured() -> None:
    """What the server asks for takes the place of the policy's delay, in the report as well."""
    session = a_session()
    session.start(0.0)
    error = RateLimited("too many requests", status=429, retry_after=77.0)
    session.lost(error, 1.0)
    assert error.retry_in == 77.0
    assert session.deadline == 78.0


def test_a_stable_connection_starts_the_policy_afresh() -> None:
    """After `reset_after` seconds the delays and the count of attempts begin anew; 0 says that it had been stable."""
    session = an_open_session()
    now = 0.0
    for expected in ((1, 1.0), (2, 2.0), (3, 4.0)):
        error = a_loss()
        now += 59.0  # not long enough
        session.lost(error, now)
        assert expected == (error.attempt, error.retry_in)
        now = session.deadline
        reconnected(session, now)
    error = a_loss()
    session.lost(error, now + 60.0)
    assert (error.attempt, error.retry_in) == (0, 1.0)
    session.wake(session.deadline)
    error = a_loss()
    session.lost(error, now + 61.0)
    assert (error.attempt, error.retry_in) == (1, 2.0)


def test_a_long_handshake_is_no_stable_connection() -> None:
    """Only what was open counts towards `reset_after`."""
    session = a_session(connect_timeout=1_000.0)
    session.start(0.0)
    error = a_loss()
    session.lost(error, 500.0)
    assert error.attempt == 1


def test_used_up_attempts_fail_the_stream() -> None:
    """The last failure is reported as one that is not retried, and ends the session."""
    session = a_session(ReconnectPolicy(1.0, jitter=False, attempts=3))
    session.start(0.0)
    for _ in range(2):
        session.lost(a_loss(), 0.0)
        assert [Connect()] == session.wake(session.deadline)
    error = a_loss()
    assert [Report(error), Announce(State.FAILED), End(error)] == session.lost(error, 9.0)
    assert (error.attempt, error.will_retry, error.retry_in) == (3, False, None)
    assert session.deadline == NEVER
    assert session.wake(1e9) == []


def test_attempts_are_counted_anew_after_a_stable_connection() -> None:
    """A stream that was good for an hour is tried again, even where one attempt is all there is."""
    session = an_open_session(ReconnectPolicy(1.0, jitter=False, attempts=1))
    assert Announce(State.RECONNECTING) in session.lost(a_loss(), 3_600.0)
    session.wake(session.deadline)
    assert Announce(State.FAILED) in session.lost(a_loss(), 3_602.0)


@pytest.mark.parametrize("is_open", [False, True])
def test_without_a_policy_the_first_loss_is_the_last(is_open: bool) -> None:
    """`reconnect=None` is one connection and no retry."""
    session = an_open_session(None)
    if not is_open:
        session = a_session(None)
        session.start(0.0)
    error = a_loss()
    assert [Report(error), Announce(State.FAILED), End(error)] == session.lost(error, 5.0)


#: What does not end a stream that has been open.
_MAY_PASS = {"certificate refused"}
FATAL: list[ConnectionFailed] = [
    AuthenticationError("refused", status=401),
    AuthenticationError("refused", status=403),
    AuthenticationError("policy", close_code=1008),
    StreamNotFound("no such stream", status=404),
    ConnectionFailed("certificate refused", permanent=True),
]


ELSEWHERE: list[ConnectionFailed] = [
    ConnectionFailed("certificate refused", permanent=True),
    ProtocolError("a page", status=200, permanent=True),
    ProtocolError("a redirect", status=302, permanent=True),
]


@pytest.mark.parametrize("error", ELSEWHERE, ids=lambda error: error.reason)
def test_another_server_in_the_place_of_the_right_one_is_waited_out(error: ConnectionFailed) -> None:
    """A login page on a train ends no stream that has been open; one that never was it does."""
    session = a_session()
    session.start(0.0)
    assert Announce(State.FAILED) in session.lost(error, 1.0)
    session = an_open_session()
    session.lost(a_loss(), 100.0)
    session.wake(session.deadline)
    again = copy.copy(error)
    assert [Report(again)] == session.lost(again, 200.0)
    assert again.will_retry
    assert again.retry_in is not None
    assert STEADY.maximum / 2 <= again.retry_in <= STEADY.maximum


def test_no_wait_is_longer_than_the_connection_lasted() -> None:
    """Nor shorter than the policy's first: who has a bad line is not punished for it."""
    session = an_open_session()
    now = 0.0
    for lasted, expected in ((0.1, 1.0), (50.0, 2.0), (3.0, 3.0), (0.5, 1.0), (50.0, 8.0)):
        error = a_loss()
        now += lasted
        session.lost(error, now)
        assert error.retry_in == pytest.approx(expected)
        now = session.deadline
        reconnected(session, now)


def test_who_waits_for_the_network_can_be_hurried() -> None:
    """Once, and never to wait for longer; whoever waits because he was told to, waits."""
    session = an_open_session()
    assert not session.retry_by(1.0)
    session.lost(a_loss(), 10.0)
    assert not session.retry_by(12.0)
    assert session.retry_by(10.5)
    assert session.deadline == 10.5
    assert [Connect()] == session.wake(10.5)
    assert not session.retry_by(10.6)
    session.lost(a_loss(), 10.7)
    assert not session.retry_by(10.8)
    assert not session.retry_by(10.5 + EARLY_RETRY_INTERVAL - 0.1)
    session.wake(session.deadline)
    session.lost(RateLimited("too many requests", status=429, retry_after=77.0), 30.0)
    assert not session.retry_by(31.0)
    session.stop(32.0)
    assert not session.retry_by(32.0)


@pytest.mark.parametrize(
    ("error", "is_open"),
    [(error, is_open) for error in FATAL for is_open in (False, True) if not (is_open and error.reason in _MAY_PASS)],
    ids=lambda value: getattr(value, "reason", value),
)
def test_what_a_retry_can_not_mend_fails_the_stream(error: ConnectionFailed, is_open: bool) -> None:
    """With the error itself, at once."""
    session = an_open_session() if is_open else a_session()
    session.start(0.0)
    assert [Report(error), Announce(State.FAILED), End(error)] == session.lost(error, 5.0)
    assert not error.will_retry


def test_a_refused_key_is_asked_for_again_where_it_can_change() -> None:
    """Keys rotate: the next attempt is told that only another key is worth trying."""
    session = an_open_session(key_can_change=True)
    error = AuthenticationError("policy", close_code=1008)
    session.lost(error, 5.0)
    assert error.will_retry
    assert [Connect(after_refusal=True)] == session.wake(session.deadline)
    session.lost(a_loss(), 6.0)
    assert [Connect(after_refusal=False)] == session.wake(session.deadline)


def test_a_key_that_was_taken_clears_the_refusal() -> None:
    """The next reconnect may use the key that worked."""
    session = an_open_session(key_can_change=True)
    session.lost(AuthenticationError("refused", status=401), 5.0)
    session.wake(session.deadline)
    session.opened(6.0)
    session.lost(a_loss(), 7.0)
    assert [Connect(after_refusal=False)] == session.wake(session.deadline)


def test_the_same_key_again_fails_the_stream_even_where_it_can_change() -> None:
    """No other key is to be had: permanent."""
    session = a_session(key_can_change=True)
    session.start(0.0)
    error = AuthenticationError("refused", status=401, permanent=True)
    assert End(error) in session.lost(error, 5.0)


def test_a_new_key_may_be_a_moment_late() -> None:
    """Of a stream that was open: the source of keys is asked some more times before there is no other."""
    session = an_open_session(key_can_change=True)
    now, asked = 100.0, 0
    while True:
        error = AuthenticationError("refused", status=401, permanent=True)
        actions = session.lost(error, now)
        if End(error) in actions:
            break
        now = session.deadline
        assert [Connect(after_refusal=True)] == session.wake(now)
        asked += 1
    assert 5 <= asked < 50
    assert 100.0 + NEW_KEY_TIMEOUT <= now < 100.0 + NEW_KEY_TIMEOUT + 1.0


def test_reconnects_count_connections_and_not_attempts() -> None:
    """The first connection is no reconnect, and nor is an attempt that fails."""
    session = a_session()
    session.start(0.0)
    session.lost(a_loss(), 1.0)
    counts = []
    for _ in range(3):
        reconnected(session, session.deadline)
        counts.append(session.reconnects)
        session.lost(a_loss(), session.deadline)
    assert counts == [0, 1, 2]


# Is the peer alive?


def test_a_half_open_connection_is_lost_within_interval_and_timeout() -> None:
    """Silence is asked about after `ping_interval`, and believed after `ping_timeout` more."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    match run_until(session, 30.0):
        case [(20.0, SendPing()), (30.0, Disconnect()), (30.0, Report(error)), (30.0, Announce(State.RECONNECTING))]:
            assert "no answer to a ping within 10 s" in str(error)
        case done:
            pytest.fail(f"{done}")


@pytest.mark.parametrize("last", [0.0, 0.1, 7.0, 19.9, 20.0, 20.1, 29.9, 35.0])
@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 10.0), (5.0, 30.0), (1.0, 1.0), (10.0, 10.0)])
def test_a_peer_that_falls_silent_is_lost_in_time_whenever_it_does(
    last: float, interval: float, timeout: float
) -> None:
    """Answers up to `last`, then nothing: interval and timeout later it is lost, whatever their proportion."""
    session = an_open_session(ping_interval=interval, ping_timeout=timeout)
    while session.deadline < last:
        session.wake(session.deadline)
        session.received(session.deadline - interval, ticks=False)
    session.received(last, ticks=True)
    [lost] = [now for now, action in run_until(session, last + 1_000.0) if isinstance(action, Announce)][:1]
    assert last + timeout <= lost <= last + interval + timeout


def test_a_quiet_peer_that_answers_is_left_alone() -> None:
    """A quiet market is not a dead one: pings and their answers are enough, for ever."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    for turn in range(1, 1_000):
        assert [(turn * 20.0, SendPing())] == run_until(session, turn * 20.0)
        session.received(turn * 20.0 + 9.9, ticks=False)
    assert State.STREAMING is session.state


def test_an_answer_counts_though_the_clock_did_not_move() -> None:
    """A coarse clock gives a ping and its answer the same time."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    assert [SendPing()] == session.wake(20.0)
    session.received(20.0, ticks=False)
    assert [SendPing()] == [action for _, action in run_until(session, 49.0)]


def test_a_short_interval_does_not_put_off_the_deadline_of_an_unanswered_ping() -> None:
    """Further pings go out, and the first one's deadline stands."""
    session = an_open_session(ping_interval=2.0, ping_timeout=5.0)
    done = run_until(session, 20.0)[:4]
    assert [(2.0, SendPing()), (4.0, SendPing()), (6.0, SendPing()), (7.0, Disconnect())] == done


def test_without_an_interval_no_pings_are_sent() -> None:
    """`ping_interval=None` turns the check off."""
    session = an_open_session(ping_interval=None)
    assert session.deadline == NEVER
    assert session.wake(1e9) == []


def test_what_the_last_connection_owed_is_forgotten() -> None:
    """A new connection is not lost for a ping of the one before."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold(21.0)
    session.lost(a_loss(), 22.0)
    reconnected(session, 25.0)
    assert session.deadline == 45.0
    assert [(45.0, SendPing())] == run_until(session, 54.0)
    assert (55.0, Disconnect()) in run_until(session, 55.0)


# With reading held.


def test_no_answer_is_missed_while_reading_is_held() -> None:
    """The answer may lie unread: pings go out, and no deadline stands."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold(21.0)
    assert {SendPing()} == {action for _, action in run_until(session, 10_000.0)}
    assert State.STREAMING is session.state


def test_after_the_release_an_answer_is_owed_anew() -> None:
    """A peer that died meanwhile is found within `ping_timeout` of the release."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold(21.0)
    run_until(session, 95.0)
    session.release(95.0)
    assert [now for now, action in run_until(session, 104.0) if action == SendPing()] == [100.0]
    assert (105.0, Disconnect()) in run_until(session, 105.0)


def test_after_the_release_an_answer_that_lay_unread_counts() -> None:
    """What is read then shows that the peer lives."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold(21.0)
    run_until(session, 95.0)
    session.release(95.0)
    session.received(95.0, ticks=False)
    assert {SendPing()} == {action for _, action in run_until(session, 109.0)}


def test_a_release_without_a_hold_changes_nothing() -> None:
    """It does not put off the deadline of a ping."""
    session = an_open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.release(29.0)
    assert session.deadline == 30.0


# Stale streams, and keepAlive.


def test_a_stale_stream_is_reported_once_a_silence() -> None:
    """After `stale_after` seconds without a message, and again only after one came; the connection stays."""
    session = an_open_session(ping_interval=None, stale_after=5.0)
    for begin in (0.0, 100.0, 200.0):
        session.received(begin, ticks=True)
        match run_until(session, begin + 99.0):
            case [(now, Report(StaleStream() as error))]:
                assert (begin + 5.0, 5.0, None) == (now, error.seconds, error.symbol)
            case done:
                pytest.fail(f"{done}")
    assert State.STREAMING is session.state


def test_a_stale_stream_is_given_up_if_asked() -> None:
    """With `stale_reconnect` the report is followed by a loss, and that by another attempt."""
    session = an_open_session(ping_interval=None, stale_after=5.0, stale_reconnect=True)
    match session.wake(5.0):
        case [Report(StaleStream()), Disconnect(), Report(ConnectionFailed() as lost), Announce(State.RECONNECTING)]:
            assert "no tick for 5 s" in str(lost)
            assert lost.will_retry
        case done:
            pytest.fail(f"{done}")


def test_an_answer_to_a_ping_is_no_message() -> None:
    """The stream is stale though the connection answers."""
    session = an_open_session(ping_interval=2.0, stale_after=5.0)
    for second in (1.0, 3.0, 4.9):
        session.received(second, ticks=False)
    assert sum(isinstance(action, Report) for _, action in run_until(session, 6.0)) == 1


def test_a_stream_with_messages_is_not_stale() -> None:
    """Each message puts it off."""
    session = an_open_session(ping_interval=None, stale_after=5.0)
    for second in range(1, 100):
        assert run_until(session, float(second)) == []
        session.received(float(second), ticks=True)


def test_no_stream_is_stale_while_reading_is_held() -> None:
    """A message may lie unread; the time begins anew with the release, and `wake` is not called in vain."""
    session = an_open_session(ping_interval=None, stale_after=5.0)
    session.hold(4.0)
    assert session.deadline == NEVER
    assert session.wake(50.0) == []
    session.release(60.0)
    match run_until(session, 1_000.0):
        case [(65.0, Report(StaleStream(seconds=5.0)))]:
            pass
        case done:
            pytest.fail(f"{done}")


def test_a_hold_is_no_end_of_a_silence() -> None:
    """What was reported is not reported again before a message came."""
    session = an_open_session(ping_interval=None, stale_after=5.0)
    run_until(session, 6.0)
    session.hold(7.0)
    session.release(8.0)
    assert session.deadline == NEVER


def test_keep_alive_is_sent_at_its_interval() -> None:
    """Whatever else is received or sent."""
    session = an_open_session(ping_interval=None, keep_alive=270.0)
    session.received(200.0, ticks=True)
    assert [(270.0, SendKeepAlive()), (540.0, SendKeepAlive())] == run_until(session, 600.0)


def test_keep_alive_starts_anew_with_each_connection() -> None:
    """The server counts from the opening."""
    session = an_open_session(ping_interval=None, keep_alive=270.0)
    session.lost(a_loss(), 200.0)
    reconnected(session, 210.0)
    assert [(480.0, SendKeepAlive())] == run_until(session, 700.0)


def test_what_is_due_together_is_done_together() -> None:
    """One wake does all that is due."""
    session = an_open_session(ping_interval=5.0, stale_after=5.0, keep_alive=5.0)
    match session.wake(5.0):
        case [SendPing(), SendKeepAlive(), Report(StaleStream())]:
            pass
        case actions:
            pytest.fail(f"{actions}")


def test_a_wake_that_comes_too_early_does_nothing() -> None:
    """In every state."""
    session = a_session()
    session.start(0.0)
    session.handshake_started(0.0)
    assert session.wake(1.0) == []
    session.opened(1.0)
    assert session.wake(2.0) == []
    session.lost(a_loss(), 3.0)
    assert session.wake(3.5) == []


# Stopping.


def test_stop_disconnects_and_ends() -> None:
    """Nothing is delivered from then on."""
    session = an_open_session()
    assert [Disconnect(), Announce(State.STOPPED), End(None)] == session.stop(5.0)
    assert not session.delivers
    assert session.deadline == NEVER


def test_stop_gives_up_a_handshake() -> None:
    """Whether it has begun or not."""
    session = a_session()
    session.start(0.0)
    assert [Disconnect(), Announce(State.STOPPED), End(None)] == session.stop(5.0)


@pytest.mark.parametrize("started", [False, True])
def test_stop_without_a_connection_has_nothing_to_disconnect(started: bool) -> None:
    """Before the start, and while it waits for the next attempt."""
    session = a_session()
    if started:
        session.start(0.0)
        session.lost(a_loss(), 1.0)
    assert [Announce(State.STOPPED), End(None)] == session.stop(5.0)
    assert session.wake(1e9) == []


@pytest.mark.parametrize("failed", [False, True])
def test_an_end_is_final(failed: bool) -> None:
    """No event brings an ended session back, and there is one end."""
    session = an_open_session(ping_interval=5.0, stale_after=5.0, keep_alive=5.0)
    _ = session.lost(FATAL[0], 1.0) if failed else session.stop(1.0)
    state = session.state
    session.handshake_started(2.0)
    session.received(2.0, ticks=True)
    session.hold(2.0)
    session.release(2.0)
    assert [session.start(3.0), session.lost(a_loss(), 3.0), session.wake(1e9), session.stop(4.0)] == [[], [], [], []]
    assert [Disconnect()] == session.opened(5.0)
    assert (state, NEVER, False) == (session.state, session.deadline, session.delivers)


# Whatever comes.

losses = st.one_of(
    st.builds(
        ConnectionFailed, st.just("lost"), close_code=st.sampled_from([None, 1000, 1001, 1006, 1011, 1012, 4999])
    ),
    st.builds(
        ConnectionFailed, st.just("503"), status=st.just(503), retry_after=st.sampled_from([None, 0.0, 5.0, 1e12])
    ),
)
fatal_losses = st.sampled_from(
    [
        lambda: AuthenticationError("refused", status=401),
        lambda: AuthenticationError("refused", status=401, permanent=True),
        lambda: StreamNotFound("no such stream", status=404),
        lambda: ConnectionFailed("policy", close_code=1008),
    ]
).map(lambda make: make())
seconds = st.integers(1, 40).map(float)
optional_seconds = st.none() | seconds
policies = st.builds(
    ReconnectPolicy,
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([0.0, 30.0]),
    st.booleans(),
    st.none() | st.integers(1, 4),
    st.sampled_from([0.0, 10.0, 60.0]),
)


class Driver(RuleBasedStateMachine):
    """The network side, reduced to what a session sees of it, with every misfortune that it can have.

    It carries out actions, wakes the session at its deadlines, and keeps its own books of what there is.
    """

    @initialize(
        policy=st.none() | policies,
        key_can_change=st.booleans(),
        timing=st.builds(Timing, seconds, optional_seconds, seconds, optional_seconds, optional_seconds),
    )
    def create(self, policy: ReconnectPolicy | None, key_can_change: bool, timing: Timing) -> None:
        self.session = Session(policy, timing, key_can_change=key_can_change, rng=random.Random(1))
        self.policy, self.timing = policy, timing
        self.now = 1_000.0
        self.handshake = self.open = self.held = self.started = self.stopped = False
        self.ended = 0
        self.announced = State.IDLE
        self.connects = 0
        self.lost_connections = 0
        self.reported_losses = 0
        self.silent_since = 0.0
        self.stale_told = False

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect():
                    assert not self.handshake
                    assert not self.open
                    assert not self.ended
                    self.handshake = True
                    self.connects += 1
                case Disconnect():
                    self.lost_connections += self.handshake or self.open
                    self.handshake = self.open = self.held = False
                case SendPing() | SendKeepAlive():
                    assert self.open
                case Announce(state):
                    assert state is not self.announced
                    self.announced = state
                case Report(StaleStream()):
                    assert self.open
                    assert not self.held
                    assert not self.stale_told
                    self.stale_told = True
                case Report(error):
                    assert isinstance(error, ConnectionFailed)
                    self.reported_losses += 1
                    assert error.will_retry == (error.retry_in is not None) == (not self.session.state.ended)
                    assert error.retry_in is None or 0.0 <= error.retry_in < math.inf
                case End(error):
                    self.ended += 1
                    assert (error is None) == self.stopped

    def wake_at_each_deadline(self, end: float) -> None:
        turns = 0
        while not self.session.state.ended and self.session.deadline <= end:
            before, self.now = self.session.deadline, max(self.now, self.session.deadline)
            waits = self.announced is State.RECONNECTING and not self.handshake
            actions = self.session.wake(self.now)
            assert actions or self.session.deadline > before, "it was woken in vain"
            assert not waits or [Connect] == [type(action) for action in actions], "a reconnect was forgotten"
            self.carry_out(actions)
            self.handshakes_begin()
            turns += 1
            assert turns < 10_000, "it goes round in circles"
        self.now = max(self.now, end)

    def handshakes_begin(self) -> None:
        if self.handshake:
            self.session.handshake_started(self.now)

    @rule()
    def start(self) -> None:
        self.carry_out(self.session.start(self.now))
        self.started = self.started or not self.ended

    @rule()
    def begin(self) -> None:
        self.session.handshake_started(self.now)

    @precondition(lambda self: self.handshake)
    @rule()
    def succeed(self) -> None:
        self.handshake, self.open, self.held = False, True, False
        self.silent_since, self.stale_told = self.now, False
        self.carry_out(self.session.opened(self.now))

    @precondition(lambda self: not self.handshake and not self.open)
    @rule()
    def succeed_late(self) -> None:
        assert [Disconnect()] == self.session.opened(self.now)

    @precondition(lambda self: self.handshake or self.open)
    @rule(error=losses | fatal_losses)
    def lose(self, error: ConnectionFailed) -> None:
        self.handshake = self.open = self.held = False
        self.lost_connections += 1
        self.carry_out(self.session.lost(error, self.now))

    @precondition(lambda self: not self.handshake and not self.open)
    @rule(error=losses | fatal_losses)
    def lose_late(self, error: ConnectionFailed) -> None:
        assert self.session.lost(error, self.now) == []

    @precondition(lambda self: not self.held)
    @rule(messages=st.booleans())
    def receive(self, messages: bool) -> None:
        if self.open:
            self.silent_since = self.now
            self.stale_told = self.stale_told and not messages
        self.session.received(self.now, messages)

    @precondition(lambda self: self.open)
    @rule()
    def hold(self) -> None:
        self.held = True
        self.session.hold(self.now)

    @rule()
    def release(self) -> None:
        if self.held:
            self.silent_since = self.now
        self.held = False
        self.session.release(self.now)

    @rule(passed=st.sampled_from([0.0, 0.5, 1.0, 7.0, 30.0, 100.0]))
    def time_passes(self, passed: float) -> None:
        self.wake_at_each_deadline(self.now + passed)

    @precondition(lambda self: self.session.deadline < math.inf)
    @rule(late=st.sampled_from([0.0, 0.25, 500.0]))
    def the_deadline_comes(self, late: float) -> None:
        """Perhaps long ago: the process may have been suspended."""
        self.now = max(self.now, self.session.deadline) + late
        deadline = self.session.deadline
        actions = self.session.wake(self.now)
        assert actions or self.session.deadline > deadline
        self.carry_out(actions)
        if self.open and not self.held:
            self.silent_since += late  # the peer is not to blame

    @rule()
    def wake_for_nothing(self) -> None:
        if self.session.deadline > self.now:
            assert self.session.wake(self.now) == []

    @precondition(lambda self: self.started)
    @rule(roll=st.integers(0, 9))
    def stop(self, roll: int) -> None:
        if roll == 0 or self.ended:
            self.stopped = self.stopped or not self.ended
            before = self.lost_connections
            self.carry_out(self.session.stop(self.now))
            self.lost_connections = before  # what was stopped was not lost
            assert not self.handshake
            assert not self.open

    @invariant()
    def it_is_never_stuck(self) -> None:
        """While it runs there is a handshake in flight, an open connection, or a moment at which it goes on."""
        if self.started and not self.session.state.ended:
            assert self.handshake or self.open or self.session.deadline < math.inf

    @invariant()
    def its_books_are_right(self) -> None:
        assert self.announced is self.session.state
        assert (Link.OPEN if self.open else Link.HANDSHAKE if self.handshake else Link.NONE) is self.session.link
        assert self.session.state.ended == bool(self.ended)
        assert self.ended <= 1

    @invariant()
    def it_delivers_what_comes_over_an_open_connection_and_nothing_else(self) -> None:
        assert self.open == self.session.delivers
        assert not (self.session.delivers and self.ended)

    @invariant()
    def an_end_leaves_nothing_behind(self) -> None:
        if self.ended:
            assert not self.handshake
            assert not self.open
            assert math.inf == self.session.deadline

    @invariant()
    def every_loss_is_reported(self) -> None:
        assert self.lost_connections == self.reported_losses

    @invariant()
    def attempts_are_bounded(self) -> None:
        assert self.session.attempt <= self.connects
        if self.policy is None:
            assert self.connects <= 1
        elif self.policy.attempts is not None:
            assert self.session.attempt <= self.policy.attempts

    @invariant()
    def a_dead_peer_is_found_in_time(self) -> None:
        if self.open and not self.held and self.timing.ping_interval is not None:
            assert self.now - self.silent_since <= self.timing.ping_interval + self.timing.ping_timeout + 1e-6


Driver.TestCase.settings = examples(250, stateful_step_count=50)
TestWhateverComes = Driver.TestCase
