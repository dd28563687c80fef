"""What streaming needs from `delivery` and `functions`, the packages above it, and a resequencer from its owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Protocol

from ..connection.loop import EventLoop
from ..errors import ConnectionFailed, DecodeError
from ..values import Event, Tick


class Delivery(Protocol):
    """Takes ticks and events on their way to the callbacks. The thread that drives the loop makes all calls."""

    def new_loop(
        self, name: str, on_stop: Callable[[], None], on_end: Callable[[BaseException | None], None]
    ) -> EventLoop:
        """Make the loop that suits the way in which callbacks run. Called once, first."""

    def room(self) -> int:
        """Return how many ticks may be put now. At 0 or less, stop reading."""

    def want_room(self) -> None:
        """Ask to be notified when there is room again."""

    def put_ticks(self, ticks: list[Tick], pairs: list[str] | None = None) -> None:
        """Put ticks, at least one, in order. From here on they belong to the user, who may change them.

        `pairs` has the pair of each tick. None: all have that of the first.
        """

    def put_tick(self, tick: Tick) -> None:
        """Put one tick, like `put_ticks`, but faster."""

    def put_greeks(self, event: Event) -> None:
        """Put an event with Greeks. Unlike other events, an overflow policy may drop it."""

    def put_event(self, event: Event) -> None:
        """Put an event behind the ticks that were put before it."""


class History(Protocol):
    """A source of historical ticks. `FunctionClient` is one."""

    def history_pages(
        self,
        pair: str,
        start: datetime,
        end: datetime | None,
        *,
        empty_days: int | None,
        on_bad: Callable[[DecodeError], object],
    ) -> Iterator[list[Tick]]:
        """Yield non-empty pages of ticks, sorted by time within and across pages.

        `end` is exclusive; None means up to the last tick. Raise an error after `empty_days` consecutive days without
        a tick. Pass the error of each tick that can't be read to `on_bad`, before the page that it belongs to.
        """

    def interrupt(self) -> None:
        """Abort the call in progress. Returns at once."""

    def close(self) -> None:
        """Release the connection."""


class Host(Protocol):
    """The owner of one stream. It carries out each request after the current step, not during it."""

    def send_probe(self) -> None:
        """Send a ping on the stream's connection. Report its answer through `Resequencer.probe_answered`."""

    def connect(self) -> None:
        """Open the stream, unless it was opened."""

    def report(self, error: ConnectionFailed) -> None:
        """Report an error that isn't the connection's."""

    def resume_reading(self) -> None:
        """Read again from all streams that were paused for lack of room."""

    def reschedule(self) -> None:
        """Look at `Resequencer.deadline` again: it may have changed."""

    def set_busy(self, busy: bool) -> None:
        """Take note that ticks go straight to the delivery (False), or not (True). Called at once."""

    @property
    def starved_at(self) -> float:
        """When reading last waited for slow callbacks: now, if it does."""
