"""What a publisher has done so far."""

from __future__ import annotations

from collections import Counter

import attrs

#: How many exchanges are counted by name. The others share a name.
_MOST_NAMES = 64
_OTHER = "other"


@attrs.frozen(kw_only=True)
class PublisherStats:
    """A snapshot of a publisher's counters::

        from finx_streamer.jetstream import JetStreamPublisher

        with JetStreamPublisher("nats://127.0.0.1:4222") as publisher:
            print(publisher.stats.published, publisher.stats.lost)

    Ticks and Greeks count alike.

    Attributes:
        published (int): How many NATS has stored.
        duplicates (int): How many NATS had already, from another publisher or from an earlier attempt.
        checked (int): How many were compared with the log before they were sent.
        skipped (int): How many of these were in the log.
        lost (int): How many were dropped or refused.
        waiting (int): How many wait to be sent.
        in_flight (int): How many were sent, and aren't acknowledged yet.
        connected (bool): Whether NATS can be reached, and accepts them.
        exchanges (dict[str, int]): How many NATS has stored, by exchange. Beyond 64 names, "other" has the rest.
        last_error (str | None): The last problem.
    """

    published: int = 0
    duplicates: int = 0
    checked: int = 0
    skipped: int = 0
    lost: int = 0
    waiting: int = 0
    in_flight: int = 0
    connected: bool = False
    exchanges: dict[str, int] = attrs.field(factory=dict)
    last_error: str | None = None


@attrs.define
class Counters:
    """The counters of a publisher."""

    published: int = 0
    duplicates: int = 0
    checked: int = 0
    skipped: int = 0
    lost: int = 0
    exchanges: Counter[str] = attrs.field(factory=Counter)
    last_error: str | None = None

    def count_published(self, exchange: str) -> None:
        """Count a message that NATS has stored."""
        self.published += 1
        exchanges = self.exchanges
        exchanges[exchange if exchange in exchanges or len(exchanges) < _MOST_NAMES else _OTHER] += 1

    def snapshot(self, waiting: int, in_flight: int, connected: bool) -> PublisherStats:
        """Return the counters as they are now."""
        fields = attrs.asdict(self, recurse=False) | {"exchanges": dict(self.exchanges.copy())}
        return PublisherStats(waiting=waiting, in_flight=in_flight, connected=connected, **fields)
