"""`Sender`: sends messages in order, and sends them again until NATS has acknowledged them. Runs in an event loop.

Whenever an acknowledgement is overdue or negative, nothing new is sent until all unacknowledged messages were sent
again, in order. NATS recognises what it has by its ID, but forgets IDs after a while. So a message that others may have
sent long ago is looked for in the log first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..errors import ConfigurationError, ConnectionFailed, FinxStreamerError, PublishError
from .acknowledged import Acknowledged
from .connection import REQUEST_TIMEOUT, connected, translate
from .logged import Logged
from .message import LONG_AGO, Message
from .publisher_stats import Counters
from .settings import Nats
from .stream import StreamSettings, prepare
from .subjects import LOST, SETTLED
from .waiting import Waiting
from .window import Window

logger = logging.getLogger("finx_streamer")

#: Seconds until an acknowledgement is overdue. Doubles as long as none comes.
ACK_TIMEOUT, _LONGEST_ACK_TIMEOUT = 3.0, 24.0
#: Seconds between attempts: the first, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
#: Seconds between two looks at the connection.
_LOOK_EVERY = 0.5
#: How many messages are sent before acknowledgements are read.
_BATCH = 256
_ID = "Nats-Msg-Id"
#: The most bytes of a subject, and of a header without the ID. NATS ends the connection if a line has more than 4,096.
_LONGEST_SUBJECT, _HEADER = 3_500, 64
_NUMBER = re.compile(rb'"seq":\s*(\d+)')
#: Seconds after which to look again for what NATS had lost: until it forgets the IDs, it may refuse it as known.
_VERIFY_AFTER = 10.0
#: Error codes of JetStream: the message or its header is too large.
_REFUSED = {10054, 10097}
_HINTS = {
    10023: "its disk may be full",
    10047: "its disk may be full",
    10077: "the stream is full, and discards what is new; nats stream edit can change that",
}


class Sender:
    """Sends what waits.

    Args:
        nats: Where NATS is.
        stream: The stream.
        max_waiting: How many messages may wait.
        max_in_flight: How many may be sent without an acknowledgement.
        report: Called with each problem, in the event loop.
    """

    def __init__(
        self,
        nats: Nats,
        stream: StreamSettings,
        max_waiting: int,
        max_in_flight: int,
        report: Callable[[PublishError], None],
    ) -> None:
        self.counters = Counters()
        self.waiting = Waiting(max_waiting, self._wake_from_outside, self._report_full)
        self.window = Window(max_in_flight)
        #: The current connection, if the stream is ready.
        self.client: Client | None = None
        #: Set when there is a connection, or none will ever be.
        self.has_client = asyncio.Event()
        #: Why there will never be one.
        self.failure: FinxStreamerError | None = None
        self._nats, self._stream = nats, stream
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._wants_room = False
        #: Set when nothing more will come.
        self.closing = asyncio.Event()
        #: The stream's description, which is new each time it's created.
        self._description: str | None = None
        #: Nanoseconds after which NATS may have forgotten an ID, or soon will.
        self._fresh_ns = 0
        self._inbox = ""
        #: When to send everything again, by the event loop's clock.
        self._again_at = float("inf")
        self._ack_timeout = ACK_TIMEOUT
        self._wait = _FIRST_WAIT
        self._acknowledged = Acknowledged()
        #: When to look whether NATS still has it, by the event loop's clock.
        self._verify_at = float("inf")
        #: When the trouble began, if there is some.
        self._trouble_since = 0.0
        #: The last entry before a loss that isn't marked in the log yet.
        self._marked: int | None = None
        #: The reported problems that aren't over, and the number up to which messages must be acknowledged for that.
        self._problems: set[object] = set()
        self._problems_until = 0

    @property
    def is_well(self) -> bool:
        """Whether NATS can be reached and accepts messages."""
        return self.client is not None and not self._problems

    def close(self) -> None:
        """End once everything that waits is acknowledged."""
        self.closing.set()
        self._woken.set()

    async def run(self) -> None:
        """Connect, send, and connect again after each loss. Returns after `close`, or if it can't ever work."""
        while not self._is_done:
            began = self._loop.time()
            try:
                async with connected(self._nats, "finx-streamer publisher") as client:
                    await self._prepare(client)
                    self.client = client
                    self.has_client.set()
                    await self._send(client)
                    return
            except Exception as raised:
                if not isinstance(raised, FinxStreamerError | nats.errors.Error | OSError):
                    logger.exception("publishing: unexpected error; trying again")
                error = translate(raised)
                if not self._fresh_ns and (isinstance(error, ConfigurationError) or getattr(error, "permanent", False)):
                    self.failure = error
                    self.has_client.set()
                    return
            finally:
                self.client = None
                if self.failure is None:
                    self.has_client.clear()
            if self._loop.time() - began > _LONGEST_WAIT:
                self._wait = _FIRST_WAIT
            self._take_note("connection", getattr(error, "reason", str(error)))
            await self._sleep(self._next_wait())

    @property
    def _is_done(self) -> bool:
        return self.closing.is_set() and not self.window and not self.waiting

    async def _prepare(self, client: Client) -> None:
        info = await prepare(client, self._stream)
        if self._description not in (None, info.config.description):
            self._tell(f"stream {self._stream.name} was deleted or lost, and created again")
        self._description = info.config.description
        self._fresh_ns = int(info.config.duplicate_window * 1e9 / 2)

    # One connection.

    async def _send(self, client: Client) -> None:
        self._inbox = client.new_inbox()
        # No limits: there are at most as many acknowledgements as messages in flight.
        await client.subscribe(f"{self._inbox}.*", cb=self._on_ack, pending_msgs_limit=0, pending_bytes_limit=0)
        # Together with what `_skip_logged` allows, less than NATS remembers.
        logged = Logged(client, self._stream.name, self._fresh_ns / 4e9)
        self._again_at = self._loop.time() if self.window else float("inf")
        self._verify_at = self._loop.time() if self._acknowledged else float("inf")
        while not self._is_done:
            if client.is_closed:
                raise ConnectionFailed("NATS: the connection was lost")
            self._look_for_overdue()
            if self._verify_at <= self._loop.time():
                await self._verify(client)
            if self._again_at <= self._loop.time():
                if self._problems:
                    # Perhaps the stream is gone, or a leader is elected.
                    await self._prepare(client)
                await self._settle(client)
                self._again_at = float("inf")
                await self._transmit(client, logged, self.window.numbers())
            elif self._again_at == float("inf") and await self._send_new(client, logged):
                continue
            self._report_ends()
            logged.forget()
            await self._sleep(min(_LOOK_EVERY, self._again_at - self._loop.time()))

    async def _settle(self, client: Client) -> None:
        """After a long trouble, wait until NATS has settled what became of all earlier messages.

        A cluster that has stalled stores them later. Until then they aren't in the log, and their IDs may be forgotten.
        """
        if self._problems and self._loop.time() - self._trouble_since > self._fresh_ns / 1e9:
            await self._mark(client, SETTLED, b"")

    async def _mark(self, client: Client, subject: str, payload: bytes) -> None:
        """Store an entry that isn't a tick. Wait until NATS has it."""
        name = f"{subject}-{random.getrandbits(64):x}"
        await client.jetstream(timeout=REQUEST_TIMEOUT).publish(subject, payload, headers={_ID: name})

    async def _verify(self, client: Client) -> None:
        """Look whether NATS still has what it has acknowledged. Send what it has lost again."""
        self._verify_at = float("inf")
        if (loss := await self._acknowledged.take_lost(client, self._stream.name)) is not None:
            for message in loss.messages:
                message.born = LONG_AGO
            self.window.add(loss.messages)
            self._marked = loss.after
            self._again_at = self._loop.time()
            self._tell(
                f"NATS has lost what it had acknowledged after entry {loss.after:,}; "
                f"{len(loss.messages):,} ticks are sent again"
            )
        if self._marked is not None:
            # Gateways and their clients must not take the new entries for those that had their numbers before.
            await self._mark(client, LOST, json.dumps({"after": self._marked}).encode())
            self._marked = None
            self._verify_at = self._loop.time() + _VERIFY_AFTER

    async def _send_new(self, client: Client, logged: Logged) -> bool:
        """Send what waits, as far as there is room. Return whether there was something."""
        room = self.window.room
        self._wants_room = room <= 0
        if self._wants_room or not (messages := self.waiting.take(min(room, _BATCH))):
            return False
        await self._transmit(client, logged, self.window.add(messages))
        # Now acknowledgements are read.
        await asyncio.sleep(0)
        return True

    async def _transmit(self, client: Client, logged: Logged, numbers: Sequence[int]) -> None:
        await self._skip_logged(logged, numbers)
        now, inbox = self._loop.time(), self._inbox
        for number in numbers:
            if (message := self.window.get(number)) is None:
                continue
            if problem := _problem_of(message, client.max_payload):
                self._lose(number, problem)
                continue
            message.sent_at = now
            await client.publish(
                message.subject, message.payload, f"{inbox}.{number}", headers={_ID: message.message_id}
            )

    async def _skip_logged(self, logged: Logged, numbers: Sequence[int]) -> None:
        """Remove what is in the log from the window, as far as NATS may have forgotten the ID."""
        checked = set[int]()
        while True:
            began = time.time_ns()
            oldest_fresh = began - self._fresh_ns
            messages = {number: message for number in numbers if (message := self.window.get(number)) is not None}
            old = {number: message for number, message in messages.items() if message.born < oldest_fresh}
            if not old:
                break
            found = await logged.find(old.values())
            for number, message in old.items():
                if message.message_id in found and self.window.remove(number):
                    self.counters.skipped += 1
            checked |= old.keys()
            # What was found out a while ago is no longer certain.
            if time.time_ns() - began < self._fresh_ns / 2:
                break
        self.counters.checked += len(checked)

    async def _on_ack(self, answer: Msg) -> None:
        number = int(answer.subject[len(self._inbox) + 1 :])
        data = answer.data
        if not data or b'"error"' in data:
            self._on_refusal(number, data)
            return
        message = self.window.remove(number)
        if message is None:
            return
        if b'"duplicate"' in data:
            self.counters.duplicates += 1
        else:
            self.counters.count_published(message.exchange)
        self._acknowledged.keep(int(found[1]) if (found := _NUMBER.search(data)) else 0, message)
        self._ack_timeout = ACK_TIMEOUT
        if (self._wants_room and self.window.room >= _BATCH) or not self.window:
            self._wants_room = False
            self._woken.set()

    def _on_refusal(self, number: int, data: bytes) -> None:
        if self.window.get(number) is None:
            return
        error: dict[str, Any] = json.loads(data)["error"] if data else {}
        code = error.get("err_code")
        text = f"{error.get('description')} (JetStream error {code})"
        if code in _REFUSED:
            self._lose(number, text)
            return
        if not data:
            text = f"stream {self._stream.name} has no leader now"
        hint = _HINTS.get(code, "") if code else ""
        self._take_note(code, f"NATS: {text}{hint and f'; {hint}'}")
        if self._again_at == float("inf"):
            self._again_at = self._loop.time() + self._next_wait()
            self._woken.set()

    def _look_for_overdue(self) -> None:
        oldest = self.window.get(self.window.oldest)
        now = self._loop.time()
        if oldest is not None and now - oldest.sent_at > self._ack_timeout and self._again_at == float("inf"):
            self._take_note("overdue", f"NATS: no acknowledgement for {self._ack_timeout:g} s")
            self._ack_timeout = min(2 * self._ack_timeout, _LONGEST_ACK_TIMEOUT)
            self._again_at = now

    # Problems.

    def _lose(self, number: int, reason: str) -> None:
        message = self.window.remove(number)
        if message is not None:
            self._tell(f"{lost_text(1)} on {message.subject[:200]}: {reason}", lost=1)

    def _take_note(self, kind: object, reason: str) -> None:
        """Report a problem once, until it's over."""
        self._acknowledged.note_trouble()
        self._problems_until = self.window.next
        if not self._problems:
            self._trouble_since = self._loop.time()
        if kind not in self._problems:
            self._problems.add(kind)
            self._tell(f"{reason}; ticks wait")

    def _report_ends(self) -> None:
        """Report what is over."""
        if self._problems and self.window.oldest >= self._problems_until:
            self._problems.clear()
            self._verify_at = self._loop.time()
            self._wait = _FIRST_WAIT
            self._tell("NATS accepts ticks again")
        if dropped := self.waiting.take_dropped():
            self._tell(f"there is room again; {lost_text(dropped)}", lost=dropped)

    def _report_full(self) -> None:
        reason = "too many ticks wait for NATS; from now on, ticks are lost"
        self._loop.call_soon_threadsafe(self._tell, reason)

    def _tell(self, reason: str, lost: int = 0) -> None:
        self.counters.last_error = reason
        self.counters.lost += lost
        self._report(PublishError(reason, lost))

    # Time.

    def _next_wait(self) -> float:
        wait, self._wait = self._wait, min(2 * self._wait, _LONGEST_WAIT)
        return random.uniform(wait / 2, wait)

    async def _sleep(self, seconds: float) -> None:
        """Wait, until something has to be done."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    def _wake_from_outside(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)


def _problem_of(message: Message, max_payload: int) -> str | None:
    """Why NATS would never accept a message. None if it may do so."""
    subject = message.subject
    if len(message.payload) + len(message.message_id) + _HEADER > max_payload:
        return "it is larger than NATS's max_payload"
    if len(subject) > _LONGEST_SUBJECT:
        return "its names are too long"
    if ".." in subject or subject.endswith("."):
        return "a name is empty"
    return None


def lost_text(ticks: int) -> str:
    """Return `1 tick was lost` or `2 ticks were lost`."""
    return "1 tick was lost" if ticks == 1 else f"{ticks:,} ticks were lost"
