"""When to reconnect, and how long to wait before."""

from __future__ import annotations

import errno
import random
import socket
import sys
from collections.abc import Iterator

import attrs

from ..errors import AuthenticationError, ConnectionFailed
from . import checks as check

#: In seconds. A longer Retry-After is cut to this: a typing error in a header must not silence a stream for years.
MAX_RETRY_AFTER = 86_400.0
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


@attrs.frozen
class ReconnectPolicy:
    """How long to wait before connection attempts: exponential backoff with full jitter::

        from finx_streamer import ReconnectPolicy, StreamListener

        listener = StreamListener("BTC:USDC", endpoint="demo", reconnect=ReconnectPolicy(maximum=10, attempts=20))

    The nth wait is random between 0 and `initial * factor ** n` seconds, capped at `maximum`. It is also capped at the
    lifetime of the lost connection, or at `initial` if that is longer. A server's Retry-After takes precedence. With
    several servers, n counts rounds: each of them is tried before the limit grows.

    Args:
        initial: Seconds, the limit of the first wait.
        factor: By how much the limit grows with each attempt, at least 1.
        maximum: Seconds, the limit of all waits.
        jitter: False waits exactly as long as the limit.
        attempts: How many attempts in a row, with the first; None for no limit.
        reset_after: Seconds after which a connection counts as stable: its loss starts the backoff from `initial`.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    jitter: bool = True
    attempts: int | None = None
    reset_after: float = 60.0

    def __attrs_post_init__(self) -> None:
        for name, low in (("initial", 0), ("factor", 1), ("maximum", 0), ("reset_after", 0)):
            number = check.number(name, getattr(self, name), low, sys.float_info.max, f"a number >= {low}")
            object.__setattr__(self, name, number)
        check.boolean("jitter", self.jitter)
        if self.attempts is not None:
            attempts = check.integer("attempts", self.attempts, 1, ", or None for no bound")
            object.__setattr__(self, "attempts", attempts)

    def delays(self, rng: random.Random | None = None, servers: int = 1) -> Iterator[float]:
        """Yield the waits in seconds, without end.

        Args:
            rng: The source of jitter. None uses a new one.
            servers: How many servers are tried in turn. The limit grows after each round.
        """
        draw = (rng or random.Random()).uniform
        ceiling = self.initial
        while True:
            capped = min(self.maximum, ceiling)
            for _ in range(servers):
                yield draw(0.0, capped) if self.jitter else capped
            # From the capped value, so that it can't grow to infinity during a long outage.
            ceiling = capped * self.factor


def checked_policy(value: object) -> ReconnectPolicy | None:
    """Check the argument `reconnect`. Raises `ConfigurationError`."""
    if value is None or isinstance(value, ReconnectPolicy):
        return value
    raise check.refusal("reconnect", value, "a ReconnectPolicy or None (None: no retry)")


def is_fatal(error: ConnectionFailed, had_been_open: bool = False) -> bool:
    """Whether another attempt can't help, for example with a bad key or an unknown stream.

    Fatal are close code 1008, the HTTP statuses below 500 except 408, 425 and 429, and errors marked as permanent, such
    as a refused certificate. Everything else is retried. Sources: O; see the refusals in docs/protocol.md.

    Args:
        error: Why the attempt failed or the connection was lost.
        had_been_open: The stream was open before, so the configuration is right. A page, a redirect or a certificate
            instead of the server is temporary then, such as the login page of a hotel. The same if there are other
            servers to try.
    """
    if error.close_code == 1008:
        return True
    status = error.status
    refused = status is not None and status < 500 and status not in (408, 425, 429)
    if had_been_open and not isinstance(error, AuthenticationError):
        return refused and status is not None and status >= 400
    return error.permanent or refused


def is_unreachable(error: ConnectionFailed) -> bool:
    """Whether no server was reached: its name can't be resolved, it refuses connections, or there is no way to it."""
    cause = error.__cause__
    return isinstance(cause, socket.gaierror | ConnectionRefusedError) or (
        isinstance(cause, OSError) and cause.errno in _NO_WAY
    )


def retry_delay(error: ConnectionFailed, drawn: float) -> float:
    """Return the seconds to wait: the server's Retry-After, or else the `drawn` delay.

    A Retry-After of 0, or a date in the past, doesn't count: it would cause a storm of reconnects.
    """
    return min(error.retry_after, MAX_RETRY_AFTER) if error.retry_after else drawn
