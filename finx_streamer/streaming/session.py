"""The state machine of a connection: no socket, no clock, no thread. Time is an argument, in monotonic seconds.

It is fed with what happened and answers with what to do, as a list of actions:

    IDLE ──start──> CONNECTING ──opened──> STREAMING <──────────opened───────┐
                        │                      │                             │
                        └──────────lost────────┴───lost───> RECONNECTING ────┘
                                                            (waits, then connects)
    any of them ──stop──> STOPPED
    any of them ──lost for good, or attempts used up──> FAILED
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator

import attrs

from ..config.reconnect import ReconnectPolicy, is_fatal, retry_delay
from ..errors import AuthenticationError, ConnectionFailed, StaleStream
from ..values import State


class Link(enum.Enum):
    """What a session has of the network at this moment."""

    NONE = "none"
    HANDSHAKE = "handshake"
    OPEN = "open"


@attrs.frozen
class Timing:
    """The bounds of a session, in seconds; None turns one off."""

    connect_timeout: float = 10.0
    ping_interval: float | None = 20.0
    ping_timeout: float = 10.0
    stale_after: float | None = None
    keep_alive: float | None = None
    #: Whether a stale stream's connection is given up, besides being reported.
    stale_reconnect: bool = False


@attrs.frozen
class Connect:
    """Open a connection. `after_refusal`: the last key was refused, so only another one is worth trying."""

    after_refusal: bool = False


@attrs.frozen
class Disconnect:
    """Give up the connection or the handshake there is."""


@attrs.frozen
class SendPing:
    """Send a ping."""


@attrs.frozen
class SendKeepAlive:
    """Send FinX's keepAlive message."""


@attrs.frozen
class Announce:
    """Tell the user the new state."""

    state: State


@attrs.frozen
class Report:
    """Tell the user of an error."""

    error: ConnectionFailed | StaleStream


@attrs.frozen
class End:
    """The session is over: with the error that ended it, or None where it was stopped."""

    error: ConnectionFailed | None


Action = Connect | Disconnect | SendPing | SendKeepAlive | Announce | Report | End
#: For so many seconds after a key was revoked, another one is asked for: who gives it out may be a moment behind.
KEY_PATIENCE = 3.0
#: Seconds from one time that a session is hurried to the next: the network may come and go.
HURRY_EVERY = 10.0
_NEVER = float("inf")


class Session:
    """See the module. Each method that takes `now` returns the actions to carry out, in order."""

    def __init__(
        self,
        policy: ReconnectPolicy | None,
        timing: Timing,
        *,
        key_can_change: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self.state = State.IDLE
        self.link = Link.NONE
        self.attempt = 0
        self.reconnects = 0
        self._policy = policy
        self._timing = timing
        self._key_can_change = key_can_change
        self._rng = rng
        self._delays = self._fresh_delays()
        self._after_refusal = False
        self._was_open = False
        self._held = False
        self._opened_at = 0.0
        self._last_tick = 0.0
        self._ping_sent: float | None = None
        #: What it waits for is the network, as far as can be told; and when it was last told that it is there.
        self._may_retry_early = False
        self._hurried = -_NEVER
        #: When the key was first refused since there was a connection.
        self._refused_at = _NEVER
        self._connect_by = self._connect_at = self._ping_at = self._stale_at = self._keep_alive_at = _NEVER

    @property
    def delivers(self) -> bool:
        """Whether messages that arrive now are for the user."""
        return self.state is State.STREAMING

    @property
    def deadline(self) -> float:
        """When `wake` is due, if nothing happens before; infinity for never."""
        if self.link is Link.HANDSHAKE:
            return self._connect_by
        if self.link is Link.NONE:
            return self._connect_at
        return min(self._ping_at, self._pong_by, self._stale_by, self._keep_alive_at)

    def start(self, now: float) -> list[Action]:
        if self.state is not State.IDLE:
            return []
        return [*self._enter(State.CONNECTING), *self._connect()]

    def handshake_started(self, now: float) -> None:
        """The handshake that was asked for begins: it may have had to wait for its turn."""
        if self.link is Link.HANDSHAKE:
            self._connect_by = now + self._timing.connect_timeout

    def opened(self, now: float) -> list[Action]:
        """The handshake succeeded."""
        if self.link is not Link.HANDSHAKE:
            return [Disconnect()]
        timing = self._timing
        self.link = Link.OPEN
        self._held = False
        self._ping_sent = None
        self._opened_at = self._last_tick = now
        self._refused_at = _NEVER
        self._ping_at = now + (timing.ping_interval or _NEVER)
        self._stale_at = now + (timing.stale_after or _NEVER)
        self._keep_alive_at = now + (timing.keep_alive or _NEVER)
        self.reconnects += self._was_open
        self._was_open = True
        return self._enter(State.STREAMING)

    def received(self, now: float, ticks: bool) -> bool:
        """Bytes arrived; `ticks` says whether there was one among them that is wanted. Any byte shows that the peer
        lives.

        Returns whether `deadline` may be nearer than it was.
        """
        # A flag, and no comparison of times: on a coarse clock (16 ms on Windows) ping and answer have the same one.
        self._ping_sent = None
        if not ticks:
            return False
        self._last_tick = now
        told, self._stale_at = self._stale_at == _NEVER, now + (self._timing.stale_after or _NEVER)
        return told and self._stale_at < _NEVER

    def hold(self, now: float) -> None:
        """Reading stopped for want of room: an answer may lie unread, so no answer is missed meanwhile."""
        self._held = True

    def release(self, now: float) -> None:
        """Reading goes on; what was due is due anew."""
        if not self._held:
            return
        self._held = False
        if self._stale_at < _NEVER:
            self._last_tick = now
            self._stale_at = now + (self._timing.stale_after or _NEVER)
        if self._ping_sent is not None:
            self._ping_sent = now

    def lost(self, error: ConnectionFailed, now: float) -> list[Action]:
        """The attempt failed, or the connection was lost."""
        if self.link is Link.NONE:
            return []
        lasted = now - self._opened_at if self.link is Link.OPEN else None
        self._settle_backoff(now)
        self.link = Link.NONE
        error.attempt = self.attempt
        if isinstance(error, AuthenticationError):
            self._refused_at = min(self._refused_at, now)
        if not self._may_retry(error, now):
            return [Report(error), *self._enter(State.FAILED), End(error)]
        self._after_refusal = isinstance(error, AuthenticationError)
        error.will_retry = True
        error.retry_in = retry_delay(error, self._wait(error, lasted))
        self._connect_at = now + error.retry_in
        self._may_retry_early = error.status is None and not is_fatal(error)
        return [Report(error), *self._enter(State.RECONNECTING)]

    def retry_by(self, by: float) -> bool:
        """The network is back, another stream has shown: try again no later than this, if that is what it waits for."""
        if self.link is not Link.NONE or not self._may_retry_early or self._connect_at <= by:
            return False
        if by < self._hurried + HURRY_EVERY:
            return False
        self._connect_at = self._hurried = by
        return True

    def wake(self, now: float) -> list[Action]:
        """Do what is due. Harmless when nothing is."""
        if self.state.ended or self.state is State.IDLE:
            return []
        if self.link is Link.HANDSHAKE:
            if now < self._connect_by:
                return []
            seconds = self._timing.connect_timeout
            # Whatever else may take long says so itself.
            stuck = f"no connection within {seconds:g} s: name resolution hangs, or the source of keys"
            return [Disconnect(), *self.lost(ConnectionFailed(stuck), now)]
        if self.link is Link.NONE:
            return self._connect() if now >= self._connect_at else []
        if now >= self._pong_by:
            seconds = self._timing.ping_timeout
            return [Disconnect(), *self.lost(ConnectionFailed(f"no answer to a ping within {seconds:g} s"), now)]
        due = self._due_while_open(now)
        return [*due, *self._stale(now)] if now >= self._stale_by else due

    def stop(self, now: float) -> list[Action]:
        """End for good. Nothing is delivered from here on."""
        if self.state.ended:
            return []
        link, self.link = self.link, Link.NONE
        self._connect_at = _NEVER
        farewell: list[Action] = [Disconnect()] if link is not Link.NONE else []
        return [*farewell, *self._enter(State.STOPPED), End(None)]

    @property
    def _pong_by(self) -> float:
        """When the connection counts as dead; infinity while no answer is owed, or while it may lie unread."""
        if self._ping_sent is None or self._held:
            return _NEVER
        return self._ping_sent + self._timing.ping_timeout

    @property
    def _stale_by(self) -> float:
        """When the stream counts as stale; infinity once it was reported, or while a message may lie unread."""
        return _NEVER if self._held else self._stale_at

    def _stale(self, now: float) -> list[Action]:
        # Once a silence: the next message sets it again.
        self._stale_at = _NEVER
        report = Report(StaleStream(now - self._last_tick))
        if not self._timing.stale_reconnect:
            return [report]
        seconds = self._timing.stale_after
        return [report, Disconnect(), *self.lost(ConnectionFailed(f"no tick for {seconds:g} s"), now)]

    def _due_while_open(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if now >= self._ping_at:
            # An unanswered ping keeps its own deadline: a short interval must not put it off for ever.
            if self._ping_sent is None:
                self._ping_sent = now
            self._ping_at = now + (self._timing.ping_interval or _NEVER)
            actions.append(SendPing())
        if now >= self._keep_alive_at:
            self._keep_alive_at = now + (self._timing.keep_alive or _NEVER)
            actions.append(SendKeepAlive())
        return actions

    def _connect(self) -> list[Action]:
        self.attempt += 1
        self.link = Link.HANDSHAKE
        self._connect_at = self._connect_by = _NEVER
        return [Connect(after_refusal=self._after_refusal)]

    def _may_retry(self, error: ConnectionFailed, now: float) -> bool:
        if self._policy is None:
            return False
        another_key = isinstance(error, AuthenticationError) and self._key_can_change
        if another_key and error.permanent:
            # There is none at this moment. Where one was good until now, the next one may be on its way.
            another_key = self._was_open and now < self._refused_at + KEY_PATIENCE
        if is_fatal(error, self._was_open) and not another_key:
            return False
        return self._policy.attempts is None or self.attempt < self._policy.attempts

    def _wait(self, error: ConnectionFailed, lasted: float | None) -> float:
        """What the policy draws, with three exceptions."""
        assert self._policy is not None
        drawn = next(self._delays)
        if lasted is not None:
            # It had worked: to wait for longer than it did would punish whoever has a bad line.
            return min(drawn, max(self._policy.initial, lasted))
        if isinstance(error, AuthenticationError):
            # Nobody is bothered but the source of keys, and that not for long.
            return min(drawn, KEY_PATIENCE / 6)
        if is_fatal(error):
            # Only for a stream that has been open. Somebody else answers in the server's place, and may for a while.
            return max(drawn, self._policy.maximum / 2)
        return drawn

    def _settle_backoff(self, now: float) -> None:
        """Start the policy afresh after a connection that was stable."""
        if self._policy and self.link is Link.OPEN and now - self._opened_at >= self._policy.reset_after:
            self.attempt = 0
            self._delays = self._fresh_delays()

    def _fresh_delays(self) -> Iterator[float]:
        return self._policy.delays(self._rng) if self._policy else iter(())

    def _enter(self, state: State) -> list[Action]:
        """The only place that sets the state."""
        if state is self.state:
            return []
        self.state = state
        return [Announce(state)]
