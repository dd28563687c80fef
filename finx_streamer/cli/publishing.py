"""`finx-streamer publish`: run a listener whose ticks go to NATS, and show the progress in one line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from .. import Gap, ListenerStats, PublishError
from ..base_listener import BaseListener
from ..jetstream import JetStreamPublisher
from .quantities import parse_age, parse_size
from .recording import ProgressRun, ProgressView
from .terminal import count, say, shorten

#: Seconds that ticks may take to reach NATS at the end.
_CLOSE_TIMEOUT = 10.0


def open_publisher(
    to: str, stream: str, replicas: int | None, max_age: str | None, max_bytes: str | None
) -> Publishing:
    """Return a publisher with the settings of the options.

    Raises:
        ConfigurationError: A setting is wrong.
    """
    return Publishing(to, stream, replicas, parse_age("--max-age", max_age), parse_size("--max-bytes", max_bytes))


class Publishing:
    """A publisher whose problems are shown."""

    def __init__(
        self, to: str, stream: str, replicas: int | None, max_age: timedelta | None, max_bytes: int | None
    ) -> None:
        #: Shows a message.
        self.show: Callable[[str], None] = say
        self.publisher = JetStreamPublisher(
            to, stream, max_age=max_age, max_bytes=max_bytes, replicas=replicas, on_error=self._on_error
        )

    def _on_error(self, error: PublishError) -> None:
        self.show(shorten(str(error)))


class _View(ProgressView):
    """Shows what was published."""

    def __init__(self, publishing: Publishing) -> None:
        super().__init__()
        self._publisher = publishing.publisher
        publishing.show = self.on_error

    def describe(self, stats: ListenerStats) -> str:
        published = self._publisher.stats
        known = published.duplicates + published.skipped
        is_away = not published.connected and (published.waiting or published.in_flight)
        return (
            f"{count(published.published, 'tick')} published, {known:,} known already, {published.waiting:,} waiting, "
            f"{published.lost:,} lost, {self.gaps(stats)}{', NATS is away' if is_away else ''}"
        )


class PublishRun(ProgressRun):
    """One run of a listener whose ticks are published."""

    _drains = True

    def __init__(self, publishing: Publishing) -> None:
        super().__init__(_View(publishing), None)
        self._publisher = publishing.publisher

    def run(self, listener: BaseListener) -> int:
        self._publisher.attach(listener)
        with self._publisher:
            return super().run(listener)

    def _on_gap(self, gap: Gap) -> None:
        # At the start, most of what history has is in the log.
        if gap.symbol in self._interrupted or not gap.filled:
            super()._on_gap(gap)

    def _on_stopped(self) -> None:
        self._publisher.close(_CLOSE_TIMEOUT)
