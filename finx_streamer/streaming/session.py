"""The state machine of one connection: no socket, no clock, no thread.

You feed it what happened, and it returns the actions to carry out.
"""

from __future__ import annotations

import enum
import random
import sys
from collections.abc import Iterator

import attrs

from ..config.reconnect import ReconnectPolicy, is_fatal
from ..config.servers import Servers
from ..errors import AuthenticationError, ConnectionFailed
from ..values import NEVER, State


@attrs.frozen
class Timing:
    """The timeouts and intervals of a session, in seconds. None turns one off."""

    ping_interval: float | None = 20.0
    ping_timeout: float = 10.0
    keep_alive: float | None = None


class Command(enum.Enum):
    """What the session asks of the network."""

    CONNECT = "open a connection"
    DISCONNECT = "close the connection, or abort the handshake"
    SEND_PING = "send a ping"
    SEND_KEEP_ALIVE = "send FinX's keepAlive message"


#: A command, or something to report to the user: a new state, or an error. Errors have no symbol yet: the owner of the
#: session sets it.
Action = Command | State | ConnectionFailed

#: Seconds for which another key is requested after one was revoked: the source of keys may be slightly late.
NEW_KEY_TIMEOUT = 3.0
#: Minimum seconds between two early retries, because the network may come and go.
EARLY_RETRY_INTERVAL = 10.0
#: A single attempt, no matter how long the connection lasts.
_NO_RETRY = ReconnectPolicy(attempts=1, reset_after=sys.float_info.max)


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

    __slots__ = (
        "_connect_at",
        "_delays",
        "_held",
        "_keep_alive_at",
        "_key_can_change",
        "_last_early_retry",
        "_may_retry_early",
        "_opened_at",
        "_ping_at",
        "_policy",
        "_refused_at",
        "_rng",
        "_servers",
        "_timing",
        "attempt",
        "failure",
        "ping_sent",
        "reconnects",
        "server",
        "state",
    )

    def __init__(
        self,
        policy: ReconnectPolicy | None,
        timing: Timing,
        servers: Servers,
        *,
        key_can_change: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        """Create an idle session.

        Args:
            policy: When to reconnect; None for one attempt and no reconnect.
            timing: Timeouts and intervals.
            servers: Where to connect. After a loss or a failed attempt, the next one is tried.
            key_can_change: Whether a refused key may be followed by a different one.
            rng: Source of the policy's jitter.
        """
        self.state = State.IDLE
        self.attempt = 0
        self.reconnects = 0
        #: Set when an error ended the session.
        self.failure: ConnectionFailed | None = None
        self._policy = policy or _NO_RETRY
        self._timing = timing
        self._servers = servers
        #: The server of the connection, or of the next attempt.
        self.server = servers.preferred
        self._key_can_change = key_can_change
        self._rng = rng
        self._delays = self._new_delays()
        #: When the last connection opened.
        self._opened_at = NEVER
        #: Reading is paused, so messages may be unread.
        self._held = False
        #: When the ping that is unanswered was sent; infinity without one.
        self.ping_sent = NEVER
        #: When the key was first refused since the last open connection.
        self._refused_at = NEVER
        #: Whether the last error suggests that the network is down.
        self._may_retry_early = False
        self._last_early_retry = -NEVER
        self._connect_at = self._ping_at = self._keep_alive_at = NEVER

    @property
    def delivers(self) -> bool:
        """Whether the connection is open, so that messages that arrive now go to the user."""
        return self.state is State.STREAMING

    @property
    def deadline(self) -> float:
        """When to call `wake`; infinity for never."""
        if not self.delivers:
            return self._connect_at
        return min(self._ping_at, self._pong_by, self._keep_alive_at)

    def start(self, now: float) -> list[Action]:
        """Begin to connect. Does nothing after the first call."""
        if self.state is not State.IDLE:
            return []
        self.server = self._servers.preferred
        return [*self._enter(State.CONNECTING), *self._connect()]

    def opened(self, now: float) -> list[Action]:
        """Take note that the handshake succeeded."""
        if not self._in_handshake:
            return [Command.DISCONNECT]
        self.reconnects += self._was_open
        self._held = False
        self.ping_sent = self._refused_at = NEVER
        self._opened_at = now
        self._ping_at = now + (self._timing.ping_interval or NEVER)
        self._keep_alive_at = now + (self._timing.keep_alive or NEVER)
        return self._enter(State.STREAMING)

    def received(self) -> None:
        """Take note that bytes arrived: the peer is alive."""
        # Cleared, not compared: on a coarse clock (16 ms on Windows) a ping and its answer have the same time.
        self.ping_sent = NEVER

    def hold(self) -> None:
        """Take note that reading is paused. An answer may be unread, so no timeout applies meanwhile."""
        self._held = True

    def release(self, now: float) -> None:
        """Take note that reading resumes. Timeouts start again."""
        if not self._held:
            return
        self._held = False
        if self.ping_sent < NEVER:
            self.ping_sent = now

    def lost(self, error: ConnectionFailed, now: float) -> list[Action]:
        """Take note that the attempt failed, or that the connection was lost."""
        if not (self.delivers or self._in_handshake):
            return []
        lasted = now - self._opened_at if self.delivers else None
        if lasted is not None and lasted >= self._policy.reset_after:
            self.attempt = 0
            self._delays = self._new_delays()
        self._servers.name_in(error, self.server)
        error.attempt = self.attempt
        if isinstance(error, AuthenticationError):
            self._refused_at = min(self._refused_at, now)
        if not self._may_retry(error, now):
            self.failure = error
            return [error, *self._enter(State.FAILED)]
        error.will_retry = True
        drawn = self._choose_delay(error, lasted)
        self.server, error.retry_in = self._servers.after(self.server, error, drawn, now)
        self._connect_at = now + error.retry_in
        self._may_retry_early = error.status is None and not is_fatal(error)
        return [error, *self._enter(State.RECONNECTING if self._was_open else State.CONNECTING)]

    def give_up(self, reason: str, now: float) -> list[Action]:
        """Replace the connection: it is open, but doesn't work."""
        return [Command.DISCONNECT, *self.lost(ConnectionFailed(reason), now)]

    def retry_by(self, by: float) -> bool:
        """Retry at the latest at `by`: another connection has shown that the network is back.

        Returns:
            Whether `deadline` changed. It doesn't if the session waits for another reason.
        """
        if not self._may_retry_early or not by < self._connect_at < NEVER:
            return False
        if by < self._last_early_retry + EARLY_RETRY_INTERVAL:
            return False
        self._connect_at = self._last_early_retry = by
        return True

    def wake(self, now: float) -> list[Action]:
        """Do what is due. Harmless when nothing is."""
        if not self.delivers:
            return self._connect() if now >= self._connect_at else []
        if now >= self._pong_by:
            return self.give_up(f"no answer to a ping within {self._timing.ping_timeout:g} s", now)
        actions: list[Action] = []
        if now >= self._ping_at:
            # An unanswered ping keeps its deadline: a short interval must not postpone it forever.
            self.ping_sent = min(self.ping_sent, now)
            self._ping_at = now + (self._timing.ping_interval or NEVER)
            actions.append(Command.SEND_PING)
        if now >= self._keep_alive_at:
            self._keep_alive_at = now + (self._timing.keep_alive or NEVER)
            actions.append(Command.SEND_KEEP_ALIVE)
        return actions

    def stop(self, now: float) -> list[Action]:
        """End the session. Nothing is delivered afterwards."""
        if self.state.ended:
            return []
        disconnect: list[Action] = [Command.DISCONNECT] if self.delivers or self._in_handshake else []
        self._connect_at = NEVER
        return [*disconnect, *self._enter(State.STOPPED)]

    @property
    def _in_handshake(self) -> bool:
        """Whether an attempt is under way."""
        return self.state in (State.CONNECTING, State.RECONNECTING) and self._connect_at == NEVER

    @property
    def _was_open(self) -> bool:
        """Whether any connection has been open."""
        return self._opened_at < NEVER

    @property
    def _pong_by(self) -> float:
        """When the connection counts as dead; infinity if no ping is unanswered, or its answer may be unread."""
        return NEVER if self._held else self.ping_sent + self._timing.ping_timeout

    def _new_delays(self) -> Iterator[float]:
        return self._policy.delays(self._rng, len(self._servers.endpoints))

    def _connect(self) -> list[Action]:
        self.attempt += 1
        self._connect_at = NEVER
        return [Command.CONNECT]

    def _may_retry(self, error: ConnectionFailed, now: float) -> bool:
        may_get_key = isinstance(error, AuthenticationError) and self._key_can_change
        if may_get_key and error.permanent:
            # The source has no other key. If the last one worked until now, the next one may be slightly late.
            may_get_key = self._was_open and now < self._refused_at + NEW_KEY_TIMEOUT
        # What is wrong with one of several servers needn't be wrong with the next.
        may_be_temporary = self._was_open or self.attempt < len(self._servers.endpoints)
        if is_fatal(error, may_be_temporary) and not may_get_key:
            return False
        return self._policy.attempts is None or self.attempt < self._policy.attempts

    def _choose_delay(self, error: ConnectionFailed, lasted: float | None) -> float:
        """Draw a delay from the policy, and adjust it to the error."""
        drawn = next(self._delays)
        if lasted is not None:
            # A bad line shouldn't cost more time than it gave.
            return min(drawn, max(self._policy.initial, lasted))
        if isinstance(error, AuthenticationError):
            # This burdens only the source of keys, and not for long.
            return min(drawn, NEW_KEY_TIMEOUT / 6)
        if is_fatal(error) and len(self._servers.endpoints) == 1:
            # It isn't fatal here, so the connection had been open: a captive portal, say, answers for a while.
            return max(drawn, self._policy.maximum / 2)
        return drawn

    def _enter(self, state: State) -> list[Action]:
        """Set the state. Nothing else does."""
        if state is self.state:
            return []
        self.state = state
        return [state]
