"""The state machine of a connection: one promise after another, then any sequence of events."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from finx_streamer.config.endpoint import Endpoint
from finx_streamer.config.reconnect import ReconnectPolicy
from finx_streamer.config.servers import Servers
from finx_streamer.errors import (
    AuthenticationError,
    ConnectionFailed,
    ProtocolError,
    RateLimited,
    StreamNotFound,
)
from finx_streamer.streaming.session import (
    EARLY_RETRY_INTERVAL,
    NEW_KEY_TIMEOUT,
    Action,
    Command,
    Session,
    Timing,
)
from finx_streamer.values import State
from tests.support.effort import examples

STEADY = ReconnectPolicy(initial=1.0, factor=2.0, maximum=8.0, jitter=False, reset_after=60.0)
NEVER = math.inf


def new_session(policy: ReconnectPolicy | None = STEADY, key_can_change: bool = False, **timing: Any) -> Session:
    """A session that has not started."""
    return Session(policy, Timing(**timing), Servers((Endpoint.PRODUCTION,)), key_can_change=key_can_change)


def open_session(policy: ReconnectPolicy | None = STEADY, key_can_change: bool = False, **timing: Any) -> Session:
    """A session whose connection was opened at 0."""
    session = new_session(policy, key_can_change, **timing)
    session.start(0.0)
    session.opened(0.0)
    return session


def reconnect(session: Session, now: float) -> None:
    """Connect again at the deadline, and open the connection at `now`."""
    assert session.wake(session.deadline) == [Command.CONNECT]
    assert session.opened(now) == [State.STREAMING]


def loss(**facts: Any) -> ConnectionFailed:
    """An error that is worth a retry."""
    return ConnectionFailed("lost", **facts)


def run_until(session: Session, end: float) -> list[tuple[float, Action]]:
    """Wake the session at each deadline up to `end`. Return its actions and their times."""
    done: list[tuple[float, Action]] = []
    while (now := session.deadline) <= end:
        done += [(now, action) for action in session.wake(now)]
    return done


# Connecting.


def test_a_new_session_is_idle() -> None:
    """Nothing is due before the start."""
    session = new_session()
    assert (session.state, session.deadline) == (State.IDLE, NEVER)
    assert session.wake(1e9) == []
    assert not session.delivers


def test_start_connects() -> None:
    """It announces the state and counts the attempt."""
    session = new_session()
    assert session.start(0.0) == [State.CONNECTING, Command.CONNECT]
    assert session.attempt == 1


@pytest.mark.parametrize("end", [False, True])
def test_a_second_start_does_nothing(end: bool) -> None:
    """Neither while the session runs nor after its end."""
    session = new_session()
    session.start(0.0)
    if end:
        session.stop(0.0)
    assert session.start(1.0) == []


def test_an_opened_connection_streams() -> None:
    """Messages are delivered from then on."""
    session = new_session()
    session.start(0.0)
    assert not session.delivers
    assert session.opened(1.0) == [State.STREAMING]
    assert session.delivers


@pytest.mark.parametrize("stopped", [False, True])
def test_a_connection_that_opens_too_late_is_closed(stopped: bool) -> None:
    """A late success of an aborted attempt is not used."""
    session = new_session()
    session.start(0.0)
    _ = session.stop(5.0) if stopped else session.lost(loss(), 10.0)
    state, deadline = session.state, session.deadline
    assert session.opened(10.5) == [Command.DISCONNECT]
    assert (session.state, session.deadline) == (state, deadline)
    assert not session.delivers


# Reconnecting.


def test_a_lost_connection_is_reported_and_retried() -> None:
    """The report says what follows. The next attempt comes after the policy's delay."""
    session = open_session()
    error = loss(close_code=1006)
    assert session.lost(error, 5.0) == [error, State.RECONNECTING]
    assert (error.symbol, error.attempt, error.will_retry, error.retry_in) == (None, 1, True, 1.0)
    assert not session.delivers
    assert session.deadline == 6.0
    assert session.wake(5.9) == []
    assert session.wake(6.0) == [Command.CONNECT]


def test_every_failed_attempt_is_reported_with_its_number() -> None:
    """Delays grow from attempt to attempt, up to the maximum."""
    session = new_session()
    session.start(0.0)
    reports = []
    now = 0.0
    for _ in range(6):
        error = loss()
        assert session.lost(error, now)[0] == error
        reports.append((error.attempt, error.retry_in))
        now = session.deadline
        assert session.wake(now) == [Command.CONNECT]
    assert reports == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (6, 8.0)]


def test_a_state_is_announced_once() -> None:
    """A second failure in a row is not a new state."""
    session = open_session()
    assert State.RECONNECTING in session.lost(loss(), 0.0)
    session.wake(session.deadline)
    assert session.state is State.RECONNECTING
    assert not any(isinstance(action, State) for action in session.lost(loss(), 5.0))


def test_a_session_that_was_never_open_is_connecting() -> None:
    """It can't reconnect yet, however often it fails."""
    session = new_session()
    assert session.start(0.0) == [State.CONNECTING, Command.CONNECT]
    for _ in range(3):
        error = loss()
        assert session.lost(error, 0.0) == [error]
        assert session.state is State.CONNECTING
        session.wake(session.deadline)


def test_a_second_report_of_a_loss_is_ignored() -> None:
    """Each loss has one report and one delay."""
    session = open_session()
    assert new_session().lost(loss(), 0.0) == []
    session.lost(loss(), 5.0)
    assert session.lost(loss(), 5.5) == []
    assert session.deadline == 6.0
    session.stop(5.7)
    assert session.lost(loss(), 5.8) == []


def test_retry_after_replaces_the_delay() -> None:
    """The server's Retry-After counts, in the report as well."""
    session = new_session()
    session.start(0.0)
    error = RateLimited("too many requests", status=429, retry_after=77.0)
    session.lost(error, 1.0)
    assert error.retry_in == 77.0
    assert session.deadline == 78.0


def test_a_stable_connection_restarts_the_policy() -> None:
    """After `reset_after` seconds, delays and attempts start again. Attempt 0 is the loss of a stable connection."""
    session = open_session()
    now = 0.0
    for expected in ((1, 1.0), (2, 2.0), (3, 4.0)):
        error = loss()
        now += 59.0  # not long enough
        session.lost(error, now)
        assert (error.attempt, error.retry_in) == expected
        now = session.deadline
        reconnect(session, now)
    error = loss()
    session.lost(error, now + 60.0)
    assert (error.attempt, error.retry_in) == (0, 1.0)
    session.wake(session.deadline)
    error = loss()
    session.lost(error, now + 61.0)
    assert (error.attempt, error.retry_in) == (1, 2.0)


def test_a_long_handshake_is_not_a_stable_connection() -> None:
    """Only time on an open connection counts towards `reset_after`."""
    session = new_session()
    session.start(0.0)
    error = loss()
    session.lost(error, 500.0)
    assert error.attempt == 1


def test_the_last_attempt_fails_the_session() -> None:
    """Its error is reported without a retry, and ends the session."""
    session = new_session(ReconnectPolicy(1.0, jitter=False, attempts=3))
    session.start(0.0)
    for _ in range(2):
        session.lost(loss(), 0.0)
        assert session.wake(session.deadline) == [Command.CONNECT]
    error = loss()
    assert session.lost(error, 9.0) == [error, State.FAILED]
    assert session.failure is error
    assert (error.attempt, error.will_retry, error.retry_in) == (3, False, None)
    assert session.deadline == NEVER
    assert session.wake(1e9) == []


def test_attempts_restart_after_a_stable_connection() -> None:
    """Even with `attempts=1`, a connection that was stable is replaced."""
    session = open_session(ReconnectPolicy(1.0, jitter=False, attempts=1))
    assert State.RECONNECTING in session.lost(loss(), 3_600.0)
    session.wake(session.deadline)
    assert State.FAILED in session.lost(loss(), 3_602.0)


@pytest.mark.parametrize("is_open", [False, True])
def test_without_a_policy_there_is_no_retry(is_open: bool) -> None:
    """`reconnect=None` means one connection."""
    session = open_session(None)
    if not is_open:
        session = new_session(None)
        session.start(0.0)
    error = loss()
    assert session.lost(error, 5.0) == [error, State.FAILED]


#: Not fatal for a connection that has been open.
PASSING = {"certificate refused"}
FATAL: list[ConnectionFailed] = [
    AuthenticationError("refused", status=401),
    AuthenticationError("refused", status=403),
    AuthenticationError("policy", close_code=1008),
    StreamNotFound("no such stream", status=404),
    ConnectionFailed("certificate refused", permanent=True),
]


CAPTIVE_PORTAL: list[ConnectionFailed] = [
    ConnectionFailed("certificate refused", permanent=True),
    ProtocolError("a page", status=200, permanent=True),
    ProtocolError("a redirect", status=302, permanent=True),
]


@pytest.mark.parametrize("error", CAPTIVE_PORTAL, ids=lambda error: error.reason)
def test_a_captive_portal_is_waited_out(error: ConnectionFailed) -> None:
    """A login page on a train doesn't end a connection that has been open, only one that never was."""
    session = new_session()
    session.start(0.0)
    assert State.FAILED in session.lost(error, 1.0)
    session = open_session()
    session.lost(loss(), 100.0)
    session.wake(session.deadline)
    again = copy.copy(error)
    assert session.lost(again, 200.0) == [again]
    assert again.will_retry
    assert again.retry_in is not None
    assert STEADY.maximum / 2 <= again.retry_in <= STEADY.maximum


def test_no_delay_is_longer_than_the_connection_lasted() -> None:
    """Nor is it shorter than the policy's initial delay."""
    session = open_session()
    now = 0.0
    for lasted, expected in ((0.1, 1.0), (50.0, 2.0), (3.0, 3.0), (0.5, 1.0), (50.0, 8.0)):
        error = loss()
        now += lasted
        session.lost(error, now)
        assert error.retry_in == pytest.approx(expected)
        now = session.deadline
        reconnect(session, now)


def test_a_retry_can_be_moved_forward() -> None:
    """Only once in a while, never to a later time, and not if the server asked for the delay."""
    session = open_session()
    assert not session.retry_by(1.0)
    session.lost(loss(), 10.0)
    assert not session.retry_by(12.0)
    assert session.retry_by(10.5)
    assert session.deadline == 10.5
    assert session.wake(10.5) == [Command.CONNECT]
    assert not session.retry_by(10.6)
    session.lost(loss(), 10.7)
    assert not session.retry_by(10.8)
    assert not session.retry_by(10.5 + EARLY_RETRY_INTERVAL - 0.1)
    session.wake(session.deadline)
    session.lost(RateLimited("too many requests", status=429, retry_after=77.0), 30.0)
    assert not session.retry_by(31.0)
    session.stop(32.0)
    assert not session.retry_by(32.0)


@pytest.mark.parametrize(
    ("error", "is_open"),
    [(error, is_open) for error in FATAL for is_open in (False, True) if not (is_open and error.reason in PASSING)],
    ids=lambda value: getattr(value, "reason", value),
)
def test_a_fatal_error_fails_the_session(error: ConnectionFailed, is_open: bool) -> None:
    """It ends with that error, at once."""
    session = open_session() if is_open else new_session()
    session.start(0.0)
    assert session.lost(error, 5.0) == [error, State.FAILED]
    assert not error.will_retry


def test_a_refused_key_is_retried_if_it_can_change() -> None:
    """Keys rotate, so the next attempt may have a different one."""
    session = open_session(key_can_change=True)
    error = AuthenticationError("policy", close_code=1008)
    session.lost(error, 5.0)
    assert error.will_retry
    assert session.wake(session.deadline) == [Command.CONNECT]


def test_the_session_fails_if_there_is_no_different_key() -> None:
    """The source of keys has only the refused one."""
    session = new_session(key_can_change=True)
    session.start(0.0)
    error = AuthenticationError("refused", status=401, permanent=True)
    assert session.lost(error, 5.0) == [error, State.FAILED]
    assert session.failure is error


def test_a_new_key_may_be_slightly_late() -> None:
    """After an open connection, the source of keys is asked repeatedly before the session fails."""
    session = open_session(key_can_change=True)
    now, asked = 100.0, 0
    while True:
        error = AuthenticationError("refused", status=401, permanent=True)
        actions = session.lost(error, now)
        if State.FAILED in actions:
            break
        now = session.deadline
        assert session.wake(now) == [Command.CONNECT]
        asked += 1
    assert 5 <= asked < 50
    assert 100.0 + NEW_KEY_TIMEOUT <= now < 100.0 + NEW_KEY_TIMEOUT + 1.0


def test_reconnects_count_connections_and_not_attempts() -> None:
    """Neither the first connection nor a failed attempt counts."""
    session = new_session()
    session.start(0.0)
    session.lost(loss(), 1.0)
    counts = []
    for _ in range(3):
        reconnect(session, session.deadline)
        counts.append(session.reconnects)
        session.lost(loss(), session.deadline)
    assert counts == [0, 1, 2]


# Pings.


def test_a_half_open_connection_is_lost_within_interval_and_timeout() -> None:
    """A ping follows `ping_interval` of silence, and the loss `ping_timeout` later."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    match run_until(session, 30.0):
        case [(20.0, Command.SEND_PING), (30.0, Command.DISCONNECT), (30.0, error), (30.0, State.RECONNECTING)]:
            assert "no answer to a ping within 10 s" in str(error)
        case done:
            pytest.fail(f"{done}")


@pytest.mark.parametrize("last", [0.0, 0.1, 7.0, 19.9, 20.0, 20.1, 29.9, 35.0])
@pytest.mark.parametrize(("interval", "timeout"), [(20.0, 10.0), (5.0, 30.0), (1.0, 1.0), (10.0, 10.0)])
def test_a_silent_peer_is_lost_in_time(last: float, interval: float, timeout: float) -> None:
    """At most interval plus timeout after its last sign of life, whichever is longer."""
    session = open_session(ping_interval=interval, ping_timeout=timeout)
    while session.deadline < last:
        session.wake(session.deadline)
        session.received()
    session.received()
    [lost] = [now for now, action in run_until(session, last + 1_000.0) if isinstance(action, State)][:1]
    assert last + timeout <= lost <= last + interval + timeout


def test_a_quiet_peer_that_answers_is_kept() -> None:
    """In a quiet market, answered pings are enough."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    for turn in range(1, 1_000):
        assert run_until(session, turn * 20.0) == [(turn * 20.0, Command.SEND_PING)]
        session.received()
    assert session.state is State.STREAMING


def test_an_answer_counts_on_a_coarse_clock() -> None:
    """A ping and its answer may have the same time."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    assert session.wake(20.0) == [Command.SEND_PING]
    session.received()
    assert [action for _, action in run_until(session, 49.0)] == [Command.SEND_PING]


def test_further_pings_do_not_postpone_the_deadline_of_the_first() -> None:
    """An interval shorter than the timeout is harmless."""
    session = open_session(ping_interval=2.0, ping_timeout=5.0)
    done = run_until(session, 20.0)[:4]
    assert done == [
        (2.0, Command.SEND_PING),
        (4.0, Command.SEND_PING),
        (6.0, Command.SEND_PING),
        (7.0, Command.DISCONNECT),
    ]


def test_without_an_interval_no_pings_are_sent() -> None:
    """`ping_interval=None` turns the check off."""
    session = open_session(ping_interval=None)
    assert session.deadline == NEVER
    assert session.wake(1e9) == []


def test_a_new_connection_owes_no_old_answer() -> None:
    """It isn't lost because of a ping of the previous connection."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold()
    session.lost(loss(), 22.0)
    reconnect(session, 25.0)
    assert session.deadline == 45.0
    assert run_until(session, 54.0) == [(45.0, Command.SEND_PING)]
    assert (55.0, Command.DISCONNECT) in run_until(session, 55.0)


# While reading is paused.


def test_no_answer_is_due_while_reading_is_paused() -> None:
    """Pings go out, but their answers may be unread."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold()
    assert {action for _, action in run_until(session, 10_000.0)} == {Command.SEND_PING}
    assert session.state is State.STREAMING


def test_after_a_pause_the_ping_timeout_starts_again() -> None:
    """A peer that died meanwhile is found within `ping_timeout`."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold()
    run_until(session, 95.0)
    session.release(95.0)
    assert [now for now, action in run_until(session, 104.0) if action == Command.SEND_PING] == [100.0]
    assert (105.0, Command.DISCONNECT) in run_until(session, 105.0)


def test_after_a_pause_an_unread_answer_counts() -> None:
    """Reading it shows that the peer is alive."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.hold()
    run_until(session, 95.0)
    session.release(95.0)
    session.received()
    assert {action for _, action in run_until(session, 109.0)} == {Command.SEND_PING}


def test_a_release_without_a_hold_changes_nothing() -> None:
    """It doesn't postpone the deadline of a ping."""
    session = open_session(ping_interval=20.0, ping_timeout=10.0)
    session.wake(20.0)
    session.release(29.0)
    assert session.deadline == 30.0


# KeepAlive, and connections that don't work.


def test_keep_alive_is_sent_at_its_interval() -> None:
    """It doesn't depend on other messages."""
    session = open_session(ping_interval=None, keep_alive=270.0)
    session.received()
    assert run_until(session, 600.0) == [(270.0, Command.SEND_KEEP_ALIVE), (540.0, Command.SEND_KEEP_ALIVE)]


def test_the_keep_alive_interval_starts_with_each_connection() -> None:
    """The server counts from the opening."""
    session = open_session(ping_interval=None, keep_alive=270.0)
    session.lost(loss(), 200.0)
    reconnect(session, 210.0)
    assert run_until(session, 700.0) == [(480.0, Command.SEND_KEEP_ALIVE)]


def test_one_wake_does_everything_that_is_due() -> None:
    """Ping and keepAlive come from the same call."""
    session = open_session(ping_interval=5.0, keep_alive=5.0)
    match session.wake(5.0):
        case [Command.SEND_PING, Command.SEND_KEEP_ALIVE]:
            pass
        case actions:
            pytest.fail(f"{actions}")


def test_an_early_wake_does_nothing() -> None:
    """This holds in every state."""
    session = new_session()
    session.start(0.0)
    assert session.wake(1.0) == []
    session.opened(1.0)
    assert session.wake(2.0) == []
    session.lost(loss(), 3.0)
    assert session.wake(3.5) == []


# Stopping.


def test_stop_disconnects_and_ends() -> None:
    """Nothing is delivered afterwards."""
    session = open_session()
    assert session.stop(5.0) == [Command.DISCONNECT, State.STOPPED]
    assert session.failure is None
    assert not session.delivers
    assert session.deadline == NEVER


def test_stop_aborts_a_handshake() -> None:
    """This includes one that has not started."""
    session = new_session()
    session.start(0.0)
    assert session.stop(5.0) == [Command.DISCONNECT, State.STOPPED]


@pytest.mark.parametrize("started", [False, True])
def test_stop_without_a_connection_only_ends(started: bool) -> None:
    """Before the start, and between two attempts."""
    session = new_session()
    if started:
        session.start(0.0)
        session.lost(loss(), 1.0)
    assert session.stop(5.0) == [State.STOPPED]
    assert session.wake(1e9) == []


@pytest.mark.parametrize("failed", [False, True])
def test_an_end_is_final(failed: bool) -> None:
    """No event revives an ended session, and there is only one end."""
    session = open_session(ping_interval=5.0, keep_alive=5.0)
    _ = session.lost(FATAL[0], 1.0) if failed else session.stop(1.0)
    state = session.state
    session.received()
    session.hold()
    session.release(2.0)
    assert [session.start(3.0), session.lost(loss(), 3.0), session.wake(1e9), session.stop(4.0)] == [[], [], [], []]
    assert session.opened(5.0) == [Command.DISCONNECT]
    assert (session.state, session.deadline, session.delivers) == (state, NEVER, False)


# Any sequence of events.

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


class AnySequence(RuleBasedStateMachine):
    """The owner of a session, as unlucky as it can be: any event may happen at any time.

    It carries out actions, wakes the session at its deadlines, and checks both against its own records.
    """

    @initialize(
        policy=st.none() | policies,
        key_can_change=st.booleans(),
        timing=st.builds(Timing, optional_seconds, seconds, optional_seconds),
    )
    def create(self, policy: ReconnectPolicy | None, key_can_change: bool, timing: Timing) -> None:
        self.session = Session(
            policy, timing, Servers((Endpoint.PRODUCTION,)), key_can_change=key_can_change, rng=random.Random(1)
        )
        self.policy, self.timing = policy, timing
        self.now = 1_000.0
        self.handshake = self.open = self.held = self.started = self.stopped = False
        self.ended = 0
        self.announced = State.IDLE
        self.connects = 0
        self.lost_connections = 0
        self.reported_losses = 0
        self.silent_since = 0.0

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Command.CONNECT:
                    assert not self.handshake
                    assert not self.open
                    assert not self.ended
                    self.handshake = True
                    self.connects += 1
                case Command.DISCONNECT:
                    self.lost_connections += self.handshake or self.open
                    self.handshake = self.open = self.held = False
                case Command.SEND_PING | Command.SEND_KEEP_ALIVE:
                    assert self.open
                case State():
                    assert action is not self.announced
                    self.announced = action
                    self.ended += action.ended
                    assert not action.ended or (action is State.STOPPED) == self.stopped
                    assert (action is State.FAILED) == (self.session.failure is not None)
                case ConnectionFailed():
                    self.reported_losses += 1
                    assert action.will_retry == (action.retry_in is not None) == (not self.session.state.ended)
                    assert action.retry_in is None or 0.0 <= action.retry_in < math.inf

    def wake_until(self, end: float) -> None:
        turns = 0
        while not self.session.state.ended and self.session.deadline <= end:
            before, self.now = self.session.deadline, max(self.now, self.session.deadline)
            waits = self.announced in (State.CONNECTING, State.RECONNECTING) and not self.handshake
            actions = self.session.wake(self.now)
            assert actions or self.session.deadline > before, "nothing was due"
            assert not waits or actions == [Command.CONNECT], "no reconnect"
            self.carry_out(actions)
            turns += 1
            assert turns < 10_000, "the deadline does not advance"
        self.now = max(self.now, end)

    @rule()
    def start(self) -> None:
        self.carry_out(self.session.start(self.now))
        self.started = self.started or not self.ended

    @precondition(lambda self: self.handshake)
    @rule()
    def finish_handshake(self) -> None:
        self.handshake, self.open, self.held = False, True, False
        self.silent_since = self.now
        self.carry_out(self.session.opened(self.now))

    @precondition(lambda self: not self.handshake and not self.open)
    @rule()
    def finish_handshake_late(self) -> None:
        assert self.session.opened(self.now) == [Command.DISCONNECT]

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
    @rule()
    def receive(self) -> None:
        if self.open:
            self.silent_since = self.now
        self.session.received()

    @precondition(lambda self: self.open)
    @rule()
    def hold(self) -> None:
        self.held = True
        self.session.hold()

    @rule()
    def release(self) -> None:
        if self.held:
            self.silent_since = self.now
        self.held = False
        self.session.release(self.now)

    @rule(passed=st.sampled_from([0.0, 0.5, 1.0, 7.0, 30.0, 100.0]))
    def let_time_pass(self, passed: float) -> None:
        self.wake_until(self.now + passed)

    @precondition(lambda self: self.session.deadline < math.inf)
    @rule(late=st.sampled_from([0.0, 0.25, 500.0]))
    def reach_the_deadline(self, late: float) -> None:
        """The process may have been suspended, so this may be long ago."""
        self.now = max(self.now, self.session.deadline) + late
        deadline = self.session.deadline
        actions = self.session.wake(self.now)
        assert actions or self.session.deadline > deadline
        self.carry_out(actions)
        if self.open and not self.held:
            self.silent_since += late  # not the peer's fault

    @rule()
    def wake_early(self) -> None:
        if self.session.deadline > self.now:
            assert self.session.wake(self.now) == []

    @precondition(lambda self: self.started)
    @rule(roll=st.integers(0, 9))
    def stop(self, roll: int) -> None:
        if roll == 0 or self.ended:
            self.stopped = self.stopped or not self.ended
            before = self.lost_connections
            self.carry_out(self.session.stop(self.now))
            self.lost_connections = before  # a stop is not a loss
            assert not self.handshake
            assert not self.open

    @invariant()
    def is_never_stuck(self) -> None:
        """While it runs, there is a handshake, an open connection or a deadline."""
        if self.started and not self.session.state.ended:
            assert self.handshake or self.open or self.session.deadline < math.inf

    @invariant()
    def agrees_with_the_records(self) -> None:
        assert self.session.state is self.announced
        assert self.session.state.ended == bool(self.ended)
        assert self.ended <= 1

    @invariant()
    def delivers_only_on_an_open_connection(self) -> None:
        assert self.open == self.session.delivers
        assert not (self.session.delivers and self.ended)

    @invariant()
    def leaves_nothing_behind(self) -> None:
        if self.ended:
            assert not self.handshake
            assert not self.open
            assert self.session.deadline == math.inf

    @invariant()
    def reports_every_loss(self) -> None:
        assert self.lost_connections == self.reported_losses

    @invariant()
    def limits_attempts(self) -> None:
        assert self.session.attempt <= self.connects
        if self.policy is None:
            assert self.connects <= 1
        elif self.policy.attempts is not None:
            assert self.session.attempt <= self.policy.attempts

    @invariant()
    def finds_a_dead_peer_in_time(self) -> None:
        if self.open and not self.held and self.timing.ping_interval is not None:
            assert self.now - self.silent_since <= self.timing.ping_interval + self.timing.ping_timeout + 1e-6


AnySequence.TestCase.settings = examples(250, stateful_step_count=50)
TestAnySequence = AnySequence.TestCase
