"""`JetStreamMarket`: the ticks of a NATS JetStream stream, which publishers fill and any number of gateways serve."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import attrs

from ..config.symbols import Pair
from ..errors import ConfigurationError, ConnectionFailed, FinxStreamerError
from .contracts import ContractTicker, Played
from .log_entries import is_expired, is_pair, is_same, list_symbols, parse_entry, read_back
from .log_store import Span
from .log_trail import Trail, base_of, find_name, identity_of, lost_after, name_of, private_name
from .outlets import LogOutlet, Numbered
from .source import Outlet
from .stats import LogStats

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.api import StreamInfo

    from ..jetstream.reader import Entry, LogReader
    from ..jetstream.settings import Nats

log = logging.getLogger("finx_streamer.server.jetstream")

#: Seconds. The wait before a reconnect is random up to a limit that doubles with each attempt.
_FIRST_WAIT, _LONGEST_WAIT, _STABLE = 0.25, 5.0, 10.0
_WARN_EVERY = 60.0
#: How many earlier entries to read at a time, and to store at a time, so that other work gets a turn.
_CHUNK, _PIECE = 16_384, 1_024
#: The number of unread live entries at which filling pauses.
_MOST_BEHIND = 1_000
#: Seconds between two looks for something to fill, and while filling waits.
_LOOK_EVERY, _PAUSE = 2.0, 0.05
#: Seconds for NATS to find all acknowledged entries again, after it was started.
_CATCH_UP = 10.0
#: Seconds between two looks for contracts that have expired.
_LIST_EVERY = 60.0


@attrs.define(slots=False, eq=False, repr=False, str=False)
class _LogEnded(FinxStreamerError):
    """The stream isn't the one that was served: clients' positions mean something else now."""

    reason: str

    def _text(self) -> str:
        return self.reason


class JetStreamMarket:
    """The ticks and Greeks that publishers have put into a NATS JetStream stream. Needs the extra `jetstream`.

    Any number of servers, the gateways, can serve a stream. The ID of a tick is its sequence number in the stream, so a
    client can resume on any gateway what it began on another one.

    Live ticks are sent from the start on. Meanwhile, the store is filled backwards: from the newest entry to `since`,
    to the stream's first entry, or to the store's limits, whichever comes first. Functions are answered from the store,
    and clients can resume from where it begins. `LocalServer.stats.log` says how far it is.

    While NATS can't be reached, clients stay connected and get a notice, and the market connects again. Entries that
    expire in NATS meanwhile are reported as lost. If NATS itself loses some, the store is filled again from the log.

    Args:
        url (str | Iterable[str] | Nats): One or more URLs of a NATS server or cluster, such as `nats://10.0.0.1`, or a
            `Nats`, which says how to log in.
        stream (str): The name of the stream.
        pairs (Iterable[str] | None): The pairs to serve. `None` is all that are in the stream or appear in it: others
            are refused with 404 until then.
        since (timedelta | datetime): From when on to fill the store: an aware datetime, or a time before now.

    Raises:
        ConfigurationError: An argument is malformed, or a file for logging in can't be read.
        ImportError: The extra isn't installed.
    """

    def __init__(
        self,
        url: str | Iterable[str] | Nats,
        stream: str = "FINX",
        *,
        pairs: Iterable[str] | None = None,
        since: timedelta | datetime = timedelta(hours=1),
    ) -> None:
        from ..jetstream.settings import Nats, check_stream_name
        from ..jetstream.subjects import LOST, SETTLED, parse_subject

        self._nats = Nats.of(url)
        self._parse_subject, self._lost, self._settled = parse_subject, LOST, SETTLED
        self._stream = check_stream_name(stream)
        if isinstance(pairs, str):
            raise ConfigurationError(f"pairs is {pairs!r}; expected a list of pairs, or None for all")
        self._wanted = None if pairs is None else frozenset(str(Pair.parse(each)) for each in pairs)
        if not isinstance(since, timedelta | datetime) or (isinstance(since, datetime) and since.tzinfo is None):
            raise ConfigurationError(f"since is {since!r}; expected a timedelta or an aware datetime")
        self._since = since
        self._pairs = self._wanted or frozenset()
        self._stored_pairs: frozenset[str] = frozenset()
        self._contracts: frozenset[str] = frozenset()
        self._contracts_until = 0.0
        self._ready = False
        self._stats = LogStats()
        #: Entries to skip don't make a log line each.
        self._warned = -math.inf
        self._outlet: LogOutlet
        #: What reads the live entries.
        self._reader: LogReader | None = None
        #: How the log's names begin, and whether it was found since the start.
        self._identity, self._has_begun = "", False
        self._trail = Trail(stream)
        #: The number up to which the log may be what was read, once it's known to have lost entries.
        self._lost_after: int | None = None
        #: The log's names so far, without what makes them private.
        self._bases: set[str] = set()
        #: Increases whenever the log turns out to have lost entries.
        self._generation = 0
        #: The stream's first entry, and the one below which nothing is filled.
        self._expired_to = self._bottom = 1

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that clients can subscribe to: those in the stream and in the store, or those that were given."""
        return self._pairs

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that have tickers in the stream, and haven't expired."""
        now = time.time()
        if now >= self._contracts_until:
            self._contracts_until = now + _LIST_EVERY
            self._contracts = frozenset(name for name in self._contracts if not is_expired(name, now))
        return self._contracts

    @property
    def ready(self) -> bool:
        """Whether the pairs are known."""
        return self._ready

    @property
    def log_stats(self) -> LogStats:
        """Where the market is in its log."""
        return attrs.evolve(self._stats, behind=0 if self._reader is None else self._reader.pending)

    def expects(self, number: int) -> bool:
        """Whether the store will soon be able to resume after a number, but may not be now.

        Args:
            number (int): The number, as in `LogStats.newest`.
        """
        stats = self._stats
        return number > stats.newest or (not stats.filling_done and self._expired_to - 1 <= number < stats.first - 1)

    async def run(self, outlet: Outlet) -> None:
        """Send the ticks until the task is cancelled. See `LiveSource.run`.

        Args:
            outlet (Outlet): Where to send them.

        Raises:
            ConfigurationError: The stream can't be served, or no longer.
        """
        self._outlet = cast(LogOutlet, outlet)
        self._ready, self._has_begun, self._lost_after, self._bottom = False, False, None, 1
        self._set(connected=False, filling_done=False, error=None)
        known = asyncio.Event()
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._stay_connected(known))
        tasks = [reader, loop.create_task(self._keep_filling(known))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await reader
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._ready = False
            self._set(connected=False)

    # Live entries.

    async def _stay_connected(self, known: asyncio.Event) -> None:
        from ..jetstream.connection import connected, translate

        loop, attempt = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                async with connected(self._nats, "finx-streamer gateway") as client:
                    await self._join(client)
                    known.set()
                    await self._read(client)
            except _LogEnded:
                raise
            except FinxStreamerError as error:
                if not self._ready and (not isinstance(error, ConnectionFailed) or error.permanent):
                    raise
                self._on_lost(_reason_of(error))
            except (OSError, EOFError, TimeoutError) as error:
                self._on_lost(_reason_of(translate(error)))
            attempt = 0 if loop.time() - began >= _STABLE else attempt + 1
            await asyncio.sleep(random.uniform(0.05, min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)))

    async def _join(self, client: Client) -> None:
        """Find the stream. Continue in it, or report what is missing."""
        info = await self._find_stream(client)
        if not self._has_begun:
            self._identity = identity_of(info)
            await self._begin(client, info)
        elif identity_of(info) != self._identity:
            raise _LogEnded(
                f"the JetStream stream {self._stream} was deleted and created again; start again with an empty store"
            )
        elif self._lost_after is not None or not await self._is_intact(client, info):
            await self._begin_again(client, info)
        elif (name := await find_name(client, self._stream, self._identity)) not in self._bases:
            await self._rename(name)
        self._expired_to = info.state.first_seq
        if not self._ready:
            await self._list_symbols(client)
        if info.state.first_seq > self._stats.newest + 1:
            self._report_expired(info.state.first_seq - 1)

    async def _begin(self, client: Client, info: StreamInfo) -> None:
        """Follow the log at the start, with what the store has of it."""
        held, newest = await self._outlet.open_log(self._identity)
        base = await find_name(client, self._stream, self._identity)
        self._bases = {base_of(held)} if held else set()
        self._trail.note(None)
        row = await self._outlet.first_after(None)
        if newest > info.state.last_seq or not await is_same(client, self._stream, row):
            await self._begin_again(client, info)
        else:
            await self._follow(client, info, held if base in self._bases else base)

    async def _is_intact(self, client: Client, info: StreamInfo) -> bool:
        """Whether the log still has the newest entry that was read. Unknown if that has expired."""
        newest = self._stats.newest
        if newest > info.state.last_seq:
            return False
        return newest < info.state.first_seq or await self._trail.is_intact(client)

    async def _begin_again(self, client: Client, info: StreamInfo) -> None:
        """Follow the log after it has lost entries."""
        # Noted, because this may fail, and is tried again then.
        if self._lost_after is None:
            self._lost_after = self._stats.newest
        self._generation += 1
        keep = min(self._lost_after, await self._trail.find_intact(client))
        self._bottom = min(self._bottom, keep + 1)
        name = await find_name(client, self._stream, self._identity)
        # Until the marker of this loss, what the numbers mean elsewhere is unknown.
        await self._follow(client, info, private_name(name) if name in self._bases else name, keep)
        self._lost_after = None
        # What was found out meanwhile is worthless, too.
        self._generation += 1
        self._set(resets=self._stats.resets + 1)
        log.error("%s: NATS has lost entries that were read; the store is filled again from the log", self._stream)

    async def _follow(self, client: Client, info: StreamInfo, name: str, keep: int | None = None) -> None:
        from ..jetstream.reader import find_entry

        last = info.state.last_seq
        newest = await find_entry(client, self._stream, last) if last else None
        if keep is not None:
            self._notify("log lost entries", after=keep)
        self._stored_pairs = await self._outlet.follow(name, last, keep)
        self._has_begun = True
        self._bases.add(base_of(name))
        self._trail.note(newest)
        self._set(newest=last, first=last + 1, filling_done=False)

    async def _rename(self, name: str) -> None:
        await self._outlet.rename(name, self._stats.newest)
        self._bases.add(name)

    async def _find_stream(self, client: Client) -> StreamInfo:
        from ..jetstream.connection import find_stream

        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CATCH_UP
        while True:
            info = await find_stream(client, self._stream)
            if not self._ready or loop.time() >= deadline:
                break
            if info is not None and (info.state.last_seq >= self._stats.newest or identity_of(info) != self._identity):
                break
            # A node that has just started may not have found everything yet.
            await asyncio.sleep(0.5)
        if info is not None:
            return info
        if self._ready:
            raise _LogEnded(f"the JetStream stream {self._stream} was deleted; start again with an empty store")
        raise ConfigurationError(
            f"NATS at {self._nats} has no JetStream stream {self._stream}; start a publisher, which creates it"
        )

    async def _list_symbols(self, client: Client) -> None:
        pairs, contracts = await list_symbols(client, self._stream)
        if self._wanted is None:
            self._pairs = self._stored_pairs | frozenset(filter(is_pair, pairs))
        now = time.time()
        self._contracts = frozenset(name for name in contracts if not is_expired(name, now))
        self._ready = True

    async def _read(self, client: Client) -> None:
        from ..jetstream.reader import reading

        async with reading(client, self._stream, "", after=self._stats.newest) as reader:
            self._reader = reader
            self._on_connected()
            while True:
                await self._publish(client, await reader.read())

    async def _publish(self, client: Client, entries: Sequence[Entry]) -> None:
        if entries[0].number <= self._stats.newest:
            raise ConnectionFailed("NATS: the log has gone back")
        played = [(entry.number, each) for entry in entries if (each := self._parse(entry)) is not None]
        self._note_symbols(played)
        newest = entries[-1]
        await self._outlet.publish_numbered(played, newest.number)
        self._trail.note(newest)
        self._set(newest=newest.number, lag=time.time() - newest.stored_ns / 1e9)
        if len(played) < len(entries):
            for entry in entries:
                if entry.subject == self._lost and (after := lost_after(entry)) is not None:
                    await self._on_marker(client, entry, after)

    async def _on_marker(self, client: Client, marker: Entry, after: int) -> None:
        """Take note that entries were lost, and their numbers assigned again."""
        log.warning("%s: NATS has lost entries after %d, says entry %d", self._stream, after, marker.number)
        await self._rename(name_of(self._identity, marker))
        self._notify("log lost entries", after=after)
        if not await is_same(client, self._stream, await self._outlet.first_after(after)):
            self._lost_after = after
            raise ConnectionFailed("NATS: entries that were read are others now")

    def _note_symbols(self, played: Sequence[Numbered]) -> None:
        """Add the pairs and contracts that are new."""
        pairs, contracts = self._pairs, self._contracts
        for _, each in played:
            if type(each) is ContractTicker:
                if each.instrument.name not in contracts and not is_expired(each.instrument.name, time.time()):
                    contracts |= {each.instrument.name}
            elif each["pair"] not in pairs:
                pairs |= {each["pair"]}
        self._pairs, self._contracts = pairs, contracts

    def _parse(self, entry: Entry) -> Played | None:
        """Return what an entry says. None if it isn't wanted, or is foreign."""
        subject = self._parse_subject(entry.subject)
        try:
            if subject is None:
                if entry.subject == self._settled or (entry.subject == self._lost and lost_after(entry) is not None):
                    return None
                raise ValueError("an unknown subject")
            played = parse_entry(entry.payload, subject)
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            self._skip_foreign(entry, error)
            return None
        is_wanted = type(played) is ContractTicker or self._wanted is None or played["pair"] in self._wanted
        return played if is_wanted else None

    def _skip_foreign(self, entry: Entry, error: Exception) -> None:
        self._set(foreign=self._stats.foreign + 1)
        now = time.monotonic()
        if now >= self._warned:
            self._warned = now + _WARN_EVERY
            # Without the payload, which may be anything.
            log.warning(
                "%s: entry %d isn't a tick or ticker of its subject (%s); skipped, %d so far",
                self._stream,
                entry.number,
                type(error).__name__,
                self._stats.foreign,
            )

    def _on_connected(self) -> None:
        was_away = self._stats.error is not None
        reconnects = self._stats.reconnects + was_away
        self._set(connected=True, error=None, reconnects=reconnects)
        if was_away:
            log.info("%s: back", self._stream)
            self._notify("log back")
        self._outlet.notify((), {})

    def _on_lost(self, reason: str) -> None:
        is_news = self._stats.error is None
        self._set(connected=False, error=reason)
        if is_news:
            log.warning("%s: away: %s", self._stream, reason)
            self._notify("log away")

    def _report_expired(self, until: int) -> None:
        missing = until - self._stats.newest
        log.error("%s: %d entries expired in NATS before they were read", self._stream, missing)
        self._notify("log expired", missing=missing)
        self._set(lost=self._stats.lost + missing, newest=until, first=until + 1)
        self._outlet.skip(until, "entries of the log expired")

    def _notify(self, notice: str, **more: Any) -> None:
        self._outlet.notify(self._pairs, {"notice": notice, "source": self._stream, **more})

    def _set(self, **changes: Any) -> None:
        self._stats = attrs.evolve(self._stats, **changes)

    # Earlier entries.

    async def _keep_filling(self, known: asyncio.Event) -> None:
        """Fill the store, and look again from time to time: a store that failed for a while has holes."""
        from ..jetstream.connection import connected

        await known.wait()
        while True:
            generation = self._generation
            try:
                if (hole := await self._find_hole()) is not None:
                    self._set(filling_done=False)
                    async with connected(self._nats, "finx-streamer gateway, filling") as client:
                        while hole is not None and generation == self._generation:
                            await self._fill(client, *hole)
                            hole = await self._find_hole()
                await self._note_beginning(generation, done=True)
            except (FinxStreamerError, OSError, TimeoutError) as error:
                log.info("%s: filling the store: %s", self._stream, _reason_of(error))
            except Exception:
                log.exception("%s: filling the store: unexpected error; trying again", self._stream)
            await asyncio.sleep(_LOOK_EVERY)

    async def _find_hole(self) -> tuple[Span, bool] | None:
        """The entries to fill next, and whether the store has those before them; None if it's full enough."""
        hole = await self._outlet.hole()
        if hole is None:
            return None
        bottom = max(hole.first, self._expired_to, self._bottom)
        return (Span(bottom, hole.last), bottom == hole.first > 1) if bottom <= hole.last else None

    async def _fill(self, client: Client, hole: Span, joins: bool) -> None:
        """Read the newest entries of a hole, and store them. One that `joins` earlier ticks is filled in any case."""
        generation = self._generation
        while self.log_stats.behind > _MOST_BEHIND:
            await asyncio.sleep(_PAUSE)
        first = max(hole.first, hole.last - _CHUNK + 1)
        entries = await read_back(client, self._stream, Span(first, hole.last))
        info = await self._find_stream(client)
        if identity_of(info) != self._identity:
            return  # The reader of live entries finds out, too.
        # What expired meanwhile can't be told from what never was.
        self._expired_to = max(self._expired_to, info.state.first_seq)
        first = max(first, self._expired_to)
        if not joins:
            since = self._since_ns()
            old = [entry.number for entry in entries if entry.stored_ns < since]
            if old and generation == self._generation:
                first = self._bottom = old[-1] + 1
        last = hole.last
        while last >= first and generation == self._generation:
            piece = Span(max(first, last - _PIECE + 1), last)
            if not await self._store_piece(piece, entries):
                if generation == self._generation:
                    self._bottom = piece.last + 1
                break
            last = piece.first - 1
        await self._note_beginning(generation)

    async def _store_piece(self, span: Span, entries: Sequence[Entry]) -> bool:
        """Store some of the entries. Returns whether there is room for more."""
        some = [entry for entry in entries if span.first <= entry.number <= span.last]
        stored_ns = some[-1].stored_ns if some else time.time_ns()
        played = [(entry.number, each) for entry in some if (each := self._parse(entry)) is not None]
        self._set(filled=self._stats.filled + len(some))
        return await self._outlet.fill(played, span, stored_ns / 1e9)

    async def _note_beginning(self, generation: int, *, done: bool = False) -> None:
        first, store_from = await self._outlet.beginning()
        # What was found is worthless if the log has lost entries meanwhile.
        if generation == self._generation:
            self._set(first=first, store_from=store_from, filling_done=done or self._stats.filling_done)
            if done:
                self._outlet.end_refilling()
        self._outlet.notify((), {})

    def _since_ns(self) -> int:
        since = datetime.now(UTC) - self._since if isinstance(self._since, timedelta) else self._since
        return int(since.timestamp() * 1e9)


def _reason_of(error: Exception) -> str:
    return error.reason if isinstance(error, ConnectionFailed) else str(error)
