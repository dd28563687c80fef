"""`Message`: a tick or a contract's ticker on its way into the log."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

#: How much the clocks of exchanges, publishers and NATS may differ.
CLOCKS_DIFFER = timedelta(seconds=60)
#: Earlier than any tick.
FIRST = datetime(1970, 1, 2, tzinfo=UTC)
#: `born` of a tick that isn't known to be new.
LONG_AGO = 0


class Message:
    """A message, with what is needed to send it exactly once.

    Attributes:
        subject: Its subject.
        payload: Its content.
        message_id: By this, NATS and the publishers recognise it.
        exchange: The exchange, for statistics.
        stamp: The time of its tick, as `stamp_of` returns it.
        born: When the first publisher may have sent it, in nanoseconds since 1970.
        filter: The subjects among which it is in the log, if it is there.
        sent_at: When it was sent last, by the event loop's clock.
    """

    __slots__ = ("born", "exchange", "filter", "message_id", "payload", "sent_at", "stamp", "subject")

    def __init__(
        self, subject: str, payload: bytes, message_id: str, exchange: str, stamp: str, born: int, filter: str
    ) -> None:
        self.subject, self.payload, self.message_id = subject, payload, message_id
        self.exchange, self.stamp, self.born, self.filter = exchange, stamp, born, filter
        self.sent_at = 0.0

    def stored_since(self) -> datetime:
        """Return a time before which it can't have been stored."""
        return before(self.stamp)


def trade_prefix(exchange: str, pair: str) -> str:
    """Return how the message IDs of trades begin that have an ID of the exchange's own. That ID follows."""
    return f"{exchange}:{pair}:".encode("ascii", "backslashreplace").decode()


def before(stamp: str) -> datetime:
    """Return a time that is surely before a stamp."""
    return max(FIRST + CLOCKS_DIFFER, _moment(stamp)) - CLOCKS_DIFFER


def time_of(stamp: str) -> int:
    """Return a stamp in nanoseconds since 1970, truncated to seconds."""
    return int(_moment(stamp).timestamp()) * 10**9


def _moment(stamp: str) -> datetime:
    # The day alone for a leap second, and the earliest one for a year that datetime doesn't know.
    for text in (stamp[:26], stamp[:10]):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
    return FIRST
