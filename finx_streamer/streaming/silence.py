"""Notice that a stream has gone silent: no socket, no clock, no thread."""

from __future__ import annotations

import attrs

from ..errors import StaleStream
from ..values import NEVER


@attrs.define
class Silence:
    """Measures for how long a stream has sent nothing. `now` is always in monotonic seconds.

    Args:
        limit: Seconds until the silence is reported. None reports none.
    """

    limit: float | None
    #: When the silence began, which the lane sets at each tick; infinity while disconnected, and once it was reported.
    since: float = attrs.field(default=NEVER, init=False)

    @property
    def deadline(self) -> float:
        """When to call `check`; infinity for never."""
        return self.since + (self.limit or NEVER)

    @property
    def is_over(self) -> bool:
        """Whether the next tick restarts the clock: none runs now."""
        return self.since == NEVER

    def begin(self, now: float) -> None:
        """Start the clock: the stream was requested, or something arrived."""
        self.since = now

    def end(self) -> None:
        """Stop the clock: the connection was lost."""
        self.since = NEVER

    def check(self, now: float, paused: bool) -> StaleStream | None:
        """Return the report that is due. `paused`: reading is paused, so messages may be unread."""
        if now < self.deadline:
            return None
        if paused:
            self.since = now
            return None
        report = StaleStream(now - self.since)
        self.since = NEVER
        return report
