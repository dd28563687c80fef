"""`LogReader`: reads a JetStream stream in order, from a sequence or a time on, and then waits for more.

NATS pushes the entries, without acknowledgements. Flow control lets it wait while nothing is read. Heartbeats show that
it is still there, and the consumer's own sequence that nothing was lost on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from typing import Any, NamedTuple

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RawStreamMsg
from nats.js.errors import NotFoundError

from ..errors import ConnectionFailed
from .connection import REQUEST_TIMEOUT, translate

#: Seconds between heartbeats, and without any message until NATS counts as gone.
_HEARTBEAT, _SILENCE = 1.0, 3.5
#: Seconds that a node has to create a reader, and to send an entry that is in the stream. How many nodes are tried.
_CREATE_TIMEOUT, _LAG, _ATTEMPTS = 2.0, 2.0, 6
#: Seconds between two looks whether the connection is still there.
_LOOK_EVERY = 0.25
#: The number of unread entries at which NATS pauses, and the most to read at once.
_MOST_UNREAD, _MOST_READ = 8_192, 1_024
#: Seconds until NATS forgets a reader that is gone.
_INACTIVE = 30.0


class Entry(NamedTuple):
    """A message in the stream.

    Attributes:
        number: Its sequence number.
        subject: Its subject.
        payload: Its content.
        stored_ns: When it was stored, in nanoseconds since 1970, by NATS's clock.
        message_id: The ID by which NATS recognised duplicates. None: it was sent without one.
    """

    number: int
    subject: str
    payload: bytes
    stored_ns: int
    message_id: str | None = None


class LogReader:
    """Reads entries in order. Use `reading`."""

    def __init__(self, client: Client, stream: str) -> None:
        self._client, self._stream = client, stream
        #: Whether the node that sends the entries numbers them as the stream's leader does.
        self._is_verified = False
        self._entries: list[Entry] = []
        self._arrived = asyncio.Event()
        #: The consumer's own sequence number of the newest entry.
        self._delivered = 0
        #: Where to answer, so that NATS goes on.
        self._resume_at: str | None = None
        self._failure: ConnectionFailed | None = None
        #: How many entries follow the newest one that has arrived.
        self.pending = 0

    @property
    def has_delivered(self) -> bool:
        """Whether an entry has arrived."""
        return self._delivered > 0

    async def read(self) -> list[Entry]:
        """Wait until there are entries, and return those that have arrived, or the first of them.

        Raises:
            ConnectionFailed: NATS is gone, or entries were lost on the way. Read again, after the last entry.
        """
        looks = 0
        while not self._entries:
            if self._failure is not None:
                raise self._failure
            if self._client.is_closed:
                raise ConnectionFailed("NATS: the connection was lost")
            if looks >= _SILENCE / _LOOK_EVERY:
                raise ConnectionFailed(f"NATS: nothing arrived for {_SILENCE:g} s")
            await self._answer()
            self._arrived.clear()
            looks += 1
            # The client doesn't say when it is closed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await self._arrived.wait()
                    looks = 0
        entries = self._entries[:_MOST_READ]
        del self._entries[:_MOST_READ]
        await self._answer()
        if not self._is_verified:
            await self._verify(entries[0])
        return entries

    async def _verify(self, entry: Entry) -> None:
        """Compare with the leader: after SIGKILL, a node of NATS 2.9 may have some entries twice, and count on."""
        found = await find_entry(self._client, self._stream, entry.number)
        if found is None:
            return  # it has just expired, or the leader lags behind
        if (found.subject, found.payload) != (entry.subject, entry.payload):
            raise ConnectionFailed("NATS: the node that sends the entries has other numbers for them")
        self._is_verified = True

    async def _answer(self) -> None:
        """Let NATS go on, unless too much is unread."""
        if self._resume_at is not None and len(self._entries) < _MOST_UNREAD:
            subject, self._resume_at = self._resume_at, None
            try:
                await self._client.publish(subject)
            except nats.errors.Error as error:
                raise translate(error) from None

    async def on_message(self, message: Msg) -> None:
        """Take a message of the consumer."""
        # Not by its headers: an entry may have any.
        if message.reply.startswith("$JS.ACK."):
            self._take_entry(message)
        else:
            self._take_status(message.headers or {}, message.reply)
        self._arrived.set()
        # If it fails, `read` finds out.
        with contextlib.suppress(ConnectionFailed):
            await self._answer()

    def _take_status(self, headers: dict[str, str], reply: str) -> None:
        if reply:
            self._resume_at = reply
        elif "Nats-Consumer-Stalled" in headers:
            self._resume_at = headers["Nats-Consumer-Stalled"]
        else:
            # A heartbeat: all was sent.
            self.pending = 0
        if int(headers.get("Nats-Last-Consumer", self._delivered)) != self._delivered:
            self._fail()

    def _take_entry(self, message: Msg) -> None:
        # $JS.ACK, perhaps a domain and an account, then: stream, consumer, deliveries, sequence, consumer's sequence,
        # time, pending.
        tokens = message.reply.split(".")
        if len(tokens) > 9:
            tokens = tokens[2:]
        delivered = int(tokens[6])
        if delivered != self._delivered + 1:
            self._fail()
        if self._failure is None:
            self._delivered, self.pending = delivered, int(tokens[8])
            message_id = (message.headers or {}).get("Nats-Msg-Id")
            self._entries.append(Entry(int(tokens[5]), message.subject, message.data, int(tokens[7]), message_id))

    def _fail(self) -> None:
        self._failure = ConnectionFailed("NATS: entries were lost on the way")


async def find_last(client: Client, stream: str, subjects: str) -> Entry | None:
    """Return the last entry of some subjects; None if there is none.

    Raises:
        ConfigurationError: NATS has no JetStream.
        ConnectionFailed: JetStream doesn't answer now.
    """
    return await _find(client.jetstream(timeout=REQUEST_TIMEOUT).get_last_msg(stream, subjects))


async def find_entry(client: Client, stream: str, number: int) -> Entry | None:
    """Return an entry, as the stream's leader has it; None if there is none of this number.

    Raises:
        ConfigurationError: NATS has no JetStream.
        ConnectionFailed: JetStream doesn't answer now.
    """
    return await _find(client.jetstream(timeout=REQUEST_TIMEOUT).get_msg(stream, number))


async def _find(request: Awaitable[RawStreamMsg]) -> Entry | None:
    try:
        found = await request
    except NotFoundError:
        return None
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise translate(error) from None
    stored_ns = int(found.time.timestamp() * 1e9) if found.time else 0
    message_id = (found.headers or {}).get("Nats-Msg-Id")
    return Entry(found.seq or 0, found.subject or "", found.data or b"", stored_ns, message_id)


@contextlib.asynccontextmanager
async def reading(
    client: Client, stream: str, subjects: str, *, after: int = 0, since: datetime | None = None
) -> AsyncIterator[LogReader]:
    """Read the entries of a stream after a sequence number, or those stored since a time.

    Args:
        client: A connection.
        stream: The stream's name.
        subjects: A filter, with wildcards.
        after: The sequence number of the last entry that is known.
        since: Counts instead, unless it is None.

    Raises:
        ConfigurationError: The stream doesn't exist, or NATS has no JetStream.
        ConnectionFailed: JetStream doesn't answer now.
    """
    reader = LogReader(client, stream)
    subscription = None
    start: dict[str, Any] = {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": after + 1}
    if since is not None:
        start = {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": since}
    manager = client.jetstream(timeout=_CREATE_TIMEOUT)
    inbox = client.new_inbox()
    try:
        # No limits: flow control bounds what waits.
        subscription = await client.subscribe(inbox, cb=reader.on_message, pending_msgs_limit=0, pending_bytes_limit=0)
        consumer = await manager.add_consumer(
            stream,
            ConsumerConfig(
                deliver_subject=inbox,
                filter_subject=subjects,
                ack_policy=AckPolicy.NONE,
                flow_control=True,
                idle_heartbeat=_HEARTBEAT,
                inactive_threshold=_INACTIVE,
                mem_storage=True,
                num_replicas=1,
                **start,
            ),
        )
    except (nats.errors.Error, TimeoutError, OSError, TypeError) as error:
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        # TypeError: nats-py can't read the answer of a node that doesn't know the consumer any more.
        raise translate(error) from None
    if not reader.has_delivered:
        reader.pending = consumer.num_pending or 0
    try:
        yield reader
    finally:
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()
            async with asyncio.timeout(1.0):
                await manager.delete_consumer(stream, consumer.name)


async def read_up_to(
    client: Client, stream: str, subjects: str, last: int, *, after: int = 0, since: datetime | None = None
) -> AsyncIterator[Entry]:
    """Read up to an entry that is known to be in the stream, and perhaps a few more.

    `LogReader.pending` doesn't say where the end is. NATS chooses the node that sends entries, and it may hang or lag
    behind; then another one is tried. And NATS 2.9 counts entries twice that arrive while the reader is created.

    Args:
        client: A connection.
        stream: The stream's name.
        subjects: A filter, with wildcards.
        last: The sequence number of the known entry.
        after: As for `reading`.
        since: As for `reading`.

    Raises:
        ConfigurationError: As for `reading`.
        ConnectionFailed: No node sends the entry now.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with reading(client, stream, subjects, after=after, since=since) as reader:
                while after < last:
                    for entry in await _read_soon(reader, last):
                        after, since = entry.number, None
                        yield entry
            return
        except ConnectionFailed:
            if client.is_closed or attempt == _ATTEMPTS:
                raise


async def _read_soon(reader: LogReader, last: int) -> list[Entry]:
    try:
        async with asyncio.timeout(_LAG):
            return await reader.read()
    except TimeoutError:
        raise ConnectionFailed(f"NATS: entry {last} didn't come") from None
