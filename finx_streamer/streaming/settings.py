"""What all streams of a listener have in common."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs

from ..config.reconnect import ReconnectPolicy
from ..connection.attempt import ConnectionConfig
from .delivered_window import LATENESS
from .session import Timing
from .tap import Recorder


@attrs.define(eq=False)
class Allowance:
    """How many ticks and events all streams of a listener may hold back together, and how many they do."""

    size: int
    used: int = 0

    @property
    def room(self) -> int:
        return self.size - self.used


@attrs.frozen(kw_only=True)
class StreamSettings:
    """What all streams of a listener have in common.

    Attributes:
        connection: Where to connect, without a symbol.
        exchanges: Keep only the ticks of these; None keeps all.
        parse_price: Converts the text of a price.
        reconnect: When to reconnect; None for one attempt and no reconnect.
        timing: The timeouts and intervals of connections.
        stale_after: Seconds without a tick until that is reported; None for never.
        stale_reconnect: Whether a connection is replaced then, if all its streams are silent.
        name: Of the listener; the thread's name starts with it.
        lateness: How much later than others a tick may arrive and still be found when history fills a gap.
        max_held: How many ticks may be held back while gaps are filled, all streams together.
        recorder: Records everything that the streams get; None records nothing.
    """

    connection: ConnectionConfig
    exchanges: frozenset[str] | None = None
    parse_price: Callable[[str], Any] = float
    reconnect: ReconnectPolicy | None = attrs.field(factory=ReconnectPolicy)
    timing: Timing = attrs.field(factory=Timing)
    stale_after: float | None = None
    stale_reconnect: bool = False
    lateness: timedelta = LATENESS
    name: str
    max_held: int
    recorder: Recorder | None = None
