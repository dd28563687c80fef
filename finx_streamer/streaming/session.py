"""The state machine of one connection: no socket, no clock, no thread.

You feed it what happened, and it returns the actions to carry out.
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
    """What the session currently has of the network."""

    NONE = "none"
    HANDSHAKE = "handshake"
    OPEN = "open"


@attrs.frozen
class Timing:
    """The timeouts and intervals of a session, in seconds. None turns one off."""

    ping_interval: float | None = 20.0
    ping_timeout: float = 10.0
    stale_after: float | None = None
    keep_alive: float | None = None
    #: Whether a stale connection is replaced, and not only reported.
    stale_reconnect: bool = False


@attrs.frozen
class Connect:
    """Open a connection."""


@attrs.frozen
class Disconnect:
    """Close the connection, or abort the handshake."""


@attrs.frozen
class SendPing:
    """Send a ping."""


@attrs.frozen
class SendKeepAlive:
    """Send FinX's keepAlive message."""


@attrs.frozen
class Announce:
    """Report the new state to the user."""

    state: State


@attrs.frozen
class Report:
    """Report an error to the user. It has no symbol yet: the owner of the session sets it."""

    error: ConnectionFailed | StaleStream


@attrs.frozen
class End:
    """The session is over. `error` ended it; None if it was stopped."""

    error: ConnectionFailed | None


Action = Connect | Disconnect | SendPing | SendKeepAlive | Announce | Report | End

#: Seconds for which another key is requested after one was revoked: the source of keys may be slightly late.
NEW_KEY_TIMEOUT = 3.0
#: Minimum seconds between two early retries, because the network may come and go.
EARLY_RETRY_INTERVAL = 10.0
_NEVER = float("inf")


class Session:
    """The life of one connection, reconnects included.

        IDLE ──start──> CONNECTING ──opened──> STREAMING <──────────opened──────┐
                            │                      │                            │
                            └──────────lost────────┴───lost───> RECONNECTING ───┘
                                                                (waits, then connects)
        any state ──stop──> STOPPED
        any state ──fatal error, or no attempt left──> FAILED

    `now` is always in monotonic seconds. Methods that return actions expect you to carry them out in order.
    """

    def __init__(
        self,
        policy: ReconnectPolicy | None,
        timing: Timing,
        *,
        key_can_change: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        """Create an idle session.

        Args:
            policy: When to reconnect; None for one attempt and no reconnect.
            timing: Timeouts and intervals.
            key_can_change: Whether a refused key may be followed by a different one.
            rng: Source of the policy's jitter.
        """
        self.state = State.IDLE
        self.link = Link.NONE
        self.attempt = 0
        self.reconnects = 0
        self._policy = policy
        self._timing = timing
        self._key_can_change = key_can_change
        self._rng = rng
        self._delays = self._restart_delays()
        self._was_open = False
        self._opened_at = 0.0
        self._last_tick = 0.0
        #: Reading is paused, so messages may be unread.
        self._held = False
        #: When the ping that is unanswered was sent.
        self._ping_sent: float | None = None
        #: When the key was first refused since the last open connection.
        self._refused_at = _NEVER
        #: Whether the last error suggests that the network is down.
        self._may_retry_early = False
        self._last_early_retry = -_NEVER
        self._connect_at = self._ping_at = self._stale_at = self._keep_alive_at = _NEVER

    @property
    def delivers(self) -> bool:
        """Whether messages that arrive now go to the user."""
        return self.state is State.STREAMING

    @property
    def deadline(self) -> float:
        """When to call `wake`; infinity for never."""
        if self.link is not Link.OPEN:
            return self._connect_at
        return min(self._ping_at, self._pong_by, self._stale_by, self._keep_alive_at)

    def start(self, now: float) -> list[Action]:
        """Begin to connect. Does nothing after the first call."""
        if self.state is not State.IDLE:
            return []
        return [*self._enter(State.CONNECTING), *self._connect()]

    def opened(self, now: float) -> list[Action]:
        """Take note that the handshake succeeded."""
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
        """Take note that bytes arrived: the peer is alive. `ticks`: whether a wanted tick was among them.

        Returns:
            Whether `deadline` may be earlier than before.
        """
        # Cleared, not compared: on a coarse clock (16 ms on Windows) a ping and its answer have the same time.
        self._ping_sent = None
        if not ticks:
            return False
        self._last_tick = now
        was_reported, self._stale_at = self._stale_at == _NEVER, now + (self._timing.stale_after or _NEVER)
        return was_reported and self._stale_at < _NEVER

    def hold(self, now: float) -> None:
        """Take note that reading is paused. An answer may be unread, so no timeout applies meanwhile."""
        self._held = True

    def release(self, now: float) -> None:
        """Take note that reading resumes. Timeouts start again."""
        if not self._held:
            return
        self._held = False
        if self._stale_at < _NEVER:
            self._last_tick = now
            self._stale_at = now + (self._timing.stale_after or _NEVER)
        if self._ping_sent is not None:
            self._ping_sent = now

    def lost(self, error: ConnectionFailed, now: float) -> list[Action]:
        """Take note that the attempt failed, or that the connection was lost."""
        if self.link is Link.NONE:
            return []
        lasted = now - self._opened_at if self.link is Link.OPEN else None
        self._reset_if_stable(lasted)
        self.link = Link.NONE
        error.attempt = self.attempt
        if isinstance(error, AuthenticationError):
            self._refused_at = min(self._refused_at, now)
        if not self._may_retry(error, now):
            return [Report(error), *self._enter(State.FAILED), End(error)]
        error.will_retry = True
        error.retry_in = retry_delay(error, self._choose_delay(error, lasted))
        self._connect_at = now + error.retry_in
        self._may_retry_early = error.status is None and not is_fatal(error)
        return [Report(error), *self._enter(State.RECONNECTING)]

    def retry_by(self, by: float) -> bool:
        """Retry at the latest at `by`: another connection has shown that the network is back.

        Returns:
            Whether `deadline` changed. It doesn't if the session waits for another reason.
        """
        if self.link is not Link.NONE or not self._may_retry_early or self._connect_at <= by:
            return False
        if by < self._last_early_retry + EARLY_RETRY_INTERVAL:
            return False
        self._connect_at = self._last_early_retry = by
        return True

    def wake(self, now: float) -> list[Action]:
        """Do what is due. Harmless when nothing is."""
        if self.state.ended or self.state is State.IDLE:
            return []
        if self.link is not Link.OPEN:
            return self._connect() if now >= self._connect_at else []
        if now >= self._pong_by:
            return self._give_up(f"no answer to a ping within {self._timing.ping_timeout:g} s", now)
        due = self._send_due(now)
        return [*due, *self._report_stale(now)] if now >= self._stale_by else due

    def stop(self, now: float) -> list[Action]:
        """End the session. Nothing is delivered afterwards."""
        if self.state.ended:
            return []
        link, self.link = self.link, Link.NONE
        self._connect_at = _NEVER
        disconnect: list[Action] = [Disconnect()] if link is not Link.NONE else []
        return [*disconnect, *self._enter(State.STOPPED), End(None)]

    @property
    def _pong_by(self) -> float:
        """When the connection counts as dead; infinity if no ping is unanswered, or its answer may be unread."""
        if self._ping_sent is None or self._held:
            return _NEVER
        return self._ping_sent + self._timing.ping_timeout

    @property
    def _stale_by(self) -> float:
        """When the connection counts as stale; infinity if that was reported, or a message may be unread."""
        return _NEVER if self._held else self._stale_at

    def _report_stale(self, now: float) -> list[Action]:
        # Once per silence: the next tick sets the deadline again.
        self._stale_at = _NEVER
        report = Report(StaleStream(now - self._last_tick))
        if not self._timing.stale_reconnect:
            return [report]
        return [report, *self._give_up(f"no tick for {self._timing.stale_after:g} s", now)]

    def _send_due(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if now >= self._ping_at:
            # An unanswered ping keeps its deadline: a short interval must not postpone it forever.
            if self._ping_sent is None:
                self._ping_sent = now
            self._ping_at = now + (self._timing.ping_interval or _NEVER)
            actions.append(SendPing())
        if now >= self._keep_alive_at:
            self._keep_alive_at = now + (self._timing.keep_alive or _NEVER)
            actions.append(SendKeepAlive())
        return actions

    def _give_up(self, reason: str, now: float) -> list[Action]:
        return [Disconnect(), *self.lost(ConnectionFailed(reason), now)]

    def _connect(self) -> list[Action]:
        self.attempt += 1
        self.link = Link.HANDSHAKE
        self._connect_at = _NEVER
        return [Connect()]

    def _may_retry(self, error: ConnectionFailed, now: float) -> bool:
        if self._policy is None:
            return False
        may_get_key = isinstance(error, AuthenticationError) and self._key_can_change
        if may_get_key and error.permanent:
            # The source has no other key. If the last one worked until now, the next one may be slightly late.
            may_get_key = self._was_open and now < self._refused_at + NEW_KEY_TIMEOUT
        if is_fatal(error, self._was_open) and not may_get_key:
            return False
        return self._policy.attempts is None or self.attempt < self._policy.attempts

    def _choose_delay(self, error: ConnectionFailed, lasted: float | None) -> float:
        """Draw a delay from the policy, and adjust it to the error."""
        assert self._policy is not None
        drawn = next(self._delays)
        if lasted is not None:
            # A bad line shouldn't cost more time than it gave.
            return min(drawn, max(self._policy.initial, lasted))
        if isinstance(error, AuthenticationError):
            # This burdens only the source of keys, and not for long.
            return min(drawn, NEW_KEY_TIMEOUT / 6)
        if is_fatal(error):
            # It isn't fatal here, so the connection had been open: a captive portal, say, answers for a while.
            return max(drawn, self._policy.maximum / 2)
        return drawn

    def _reset_if_stable(self, lasted: float | None) -> None:
        """Restart the policy after a connection that lasted long enough."""
        if self._policy and lasted is not None and lasted >= self._policy.reset_after:
            self.attempt = 0
            self._delays = self._restart_delays()

    def _restart_delays(self) -> Iterator[float]:
        return self._policy.delays(self._rng) if self._policy else iter(())

    def _enter(self, state: State) -> list[Action]:
        """Set the state. Nothing else does."""
        if state is self.state:
            return []
        self.state = state
        return [Announce(state)]
