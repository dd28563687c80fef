"""When to connect again, and when not to."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import attrs

from ..errors import AuthenticationError, ConfigurationError, ConnectionFailed
from .redaction import shown

#: A Retry-After longer than this is taken as this: a mistyped header must not silence a stream for years.
LONGEST_RETRY_AFTER = 86_400.0


def _number(name: str, value: object, low: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= sys.float_info.max
    if not good:
        raise ConfigurationError(f"{name}: {shown(value)} is not allowed; expected a number >= {low:g}")


@attrs.frozen
class ReconnectPolicy:
    """How long to wait before connection attempts: exponential backoff with full jitter.

    The nth wait is drawn evenly from 0 to `min(maximum, initial * factor ** n)` seconds (`jitter=False`: exactly
    that); but after a connection no longer than that had lasted, or `initial`. `attempts` bounds the attempts in a row,
    the first one included (None: no bound). A connection that lasted `reset_after` seconds starts the policy afresh. A
    server's Retry-After wins over the drawn wait.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    jitter: bool = True
    attempts: int | None = None
    reset_after: float = 60.0

    def __attrs_post_init__(self) -> None:
        _number("initial", self.initial, 0.0)
        _number("factor", self.factor, 1.0)
        _number("maximum", self.maximum, 0.0)
        _number("reset_after", self.reset_after, 0.0)
        if not isinstance(self.jitter, bool):
            raise ConfigurationError(f"jitter: {shown(self.jitter)} is not allowed; expected True or False")
        if self.attempts is not None and (
            isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1
        ):
            raise ConfigurationError(
                f"attempts: {shown(self.attempts)} is not allowed; expected an int >= 1, or None for no bound"
            )

    def delays(self, rng: random.Random | None = None) -> Iterator[float]:
        """The waits in seconds, one after another, without end."""
        draw = (rng or random.Random()).uniform
        ceiling = self.initial
        while True:
            capped = min(self.maximum, ceiling)
            yield draw(0.0, capped) if self.jitter else capped
            # Never past the maximum, so that it can't grow to infinity over a long outage.
            ceiling = capped * self.factor


def is_fatal(error: ConnectionFailed, had_been_open: bool = False) -> bool:
    """Whether trying again can't mend it: a bad key, an unknown stream, a handshake that can't succeed.

    `had_been_open`: the right server was there before. If another one answers now, with a page, a redirect or a
    certificate of its own, as the login page of a hotel or a train does, it is a matter of time.

    Source: the refusals of docs/protocol.md, O. HTTP: 401, 403, 404 and every other answer that is neither a switch of
    protocols nor "later" (408, 425, 429, 5xx) is fatal. Close codes: 1008 alone is. What has neither (refused, reset,
    timeout, DNS, a lost connection) is retried, unless the error is marked permanent (a refused certificate).
    """
    if error.close_code == 1008:
        return True
    status = error.status
    refused = status is not None and status < 500 and status not in (408, 425, 429)
    if had_been_open and not isinstance(error, AuthenticationError):
        return refused and status is not None and status >= 400
    return error.permanent or refused


def retry_delay(error: ConnectionFailed, drawn: float) -> float:
    """How long to wait after this error: what the server asked for, or else what the policy drew.

    A Retry-After of 0, or a date that has passed, asks for no wait: taken at its word it would be a reconnect storm.
    """
    return min(error.retry_after, LONGEST_RETRY_AFTER) if error.retry_after else drawn
