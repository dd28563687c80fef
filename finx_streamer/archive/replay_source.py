"""What a replay reads: `ReplaySource` takes the place of `streaming.Streams` in a run, on the same loop."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

import attrs
import pyarrow as pa

from ..clock import monotonic
from ..config import checks as check
from ..config.symbols import Pair, Symbol
from ..delivery.bar_feed import BarFeed
from ..delivery.callbacks import Callbacks
from ..errors import ConfigurationError, ConnectionFailed, DecodeError, FinxStreamerError
from ..run import Run
from ..streaming.counters import ConnectionCounters, Counters
from ..values import NEVER, Event, Gap, Greeks, State, Tick, TimePassed
from ..wire.decoder import Decoder, Message
from . import columns
from .archive import Archive
from .events import payload_of
from .journal import FIELDS, Entry
from .layout import time_of

logger = logging.getLogger("finx_streamer")

#: How many ticks are delivered at once: their callbacks should take less time than the relief waits.
_CHUNK = 1_024

#: What is delivered in one step.
_Item = list[Tick] | Entry | DecodeError


@attrs.frozen(kw_only=True)
class Playing:
    """The checked arguments of a `ReplayListener` that concern what is read, and how fast."""

    archive: Archive
    start: datetime | None
    end: datetime | None
    speed: float | None
    max_pause: float | None
    exchanges: frozenset[str] | None
    parse_price: Callable[[str], Any]


class ReplayConnection:
    """The counters that a stream's connection had."""

    def __init__(self) -> None:
        self.counters = ConnectionCounters()
        self.reconnects = 0
        #: Whether the connection was lost, and isn't back.
        self.is_lost = False


class ReplayStream:
    """One symbol: its decoder and its counters."""

    #: A replay tells history and live ticks apart only by `backfilled`.
    history_until = None

    def __init__(self, name: str, symbol: Symbol | None, parse_price: Callable[[str], Any]) -> None:
        self.symbol = name
        self.state = State.STREAMING
        self.counters = Counters()
        self.connection = ReplayConnection()
        self.newest: dict[str, Greeks] = {}
        pair, contract = (name, None) if symbol is None or isinstance(symbol, Pair) else (None, symbol)
        self.decoder = Decoder(name, pair, parse_price, contract=contract)


class ReplaySource:
    """Reads an archive on the loop of a run, as far as the delivery has room.

    Args:
        run: Gets the ticks and events.
        playing: What is read, and how fast.
        name: The threads' names begin with it.
        callbacks: Those for bars need to know how time passes.
        on_end: See `EventLoop`.
    """

    def __init__(
        self,
        run: Run,
        playing: Playing,
        name: str,
        callbacks: Callbacks,
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        self._run, self._playing = run, playing
        self._delivery = run.delivery
        self._delivery.now = lambda: time_of(self._now)
        self.loop = run.delivery.new_loop(name, self._close, on_end)
        self.start, self.join = self.loop.start, self.loop.join
        #: For the loop: see `Timed`.
        self.scheduled = self.deadline = NEVER
        self._streams: dict[str, ReplayStream] = {}
        #: The symbols that are wanted; none for all.
        self._wanted: set[str] = set()
        #: Decodes messages that belong to no stream.
        self._decoder = Decoder(None, None, playing.parse_price)
        self._items: Iterator[_Item] = iter(())
        #: What is delivered next, if it was read.
        self._next: _Item | None = None
        #: When the last item was received, in nanoseconds since 1970.
        self._now = 0
        self._pace = None if playing.speed is None else _Pace(playing.speed, playing.max_pause)
        self._bars = _BarsDue(callbacks)
        self._stopping = self._starved = False
        #: Whether `parse_price` refuses a price of the current batch.
        self._refused = False
        self.loop.post(self._begin)

    # From any thread.

    @property
    def alive(self) -> bool:
        """Whether the loop's thread runs and isn't the calling one."""
        return self.loop.alive

    def stop(self) -> None:
        """End, after what has been read was delivered."""
        self.loop.post(self._stop)

    def resume_reading(self) -> None:
        """There is room again."""
        self.loop.post(self._resume)

    # Before it starts.

    def add(self, symbol: Symbol, past: object = None) -> ReplayStream:
        """Replay only the symbols that are added."""
        self._wanted.add(str(symbol))
        stream = ReplayStream(str(symbol), symbol, self._playing.parse_price)
        self._streams[stream.symbol] = stream
        return stream

    def remove(self, symbol: str) -> None:
        """Do nothing: a replay keeps its symbols."""

    # On the loop's thread.

    def wake(self, now: float) -> None:
        """Go on after a pause."""
        self.deadline = NEVER
        self._play()

    def _begin(self) -> None:
        self._bars.start_over()
        self._items = self._read()
        self._play()

    def _resume(self) -> None:
        if self._starved:
            self._starved = False
            self._play()

    def _stop(self) -> None:
        self._stopping = True
        self.loop.end()

    def _close(self) -> None:
        self._items = iter(())  # closes files
        for stream in self._streams.values():
            stream.state = State.STOPPED

    def _play(self) -> None:
        """Deliver the next item, then let the loop and the callbacks have a turn."""
        if self._stopping:
            return
        if self._next is None:
            self._next = next(self._items, None)
            # The time that callbacks may take begins now.
            self.loop.polled_at = monotonic()
        item = self._next
        if item is None:
            self._stop()
            return
        room = self._delivery.room()
        if room <= 0:
            self._starved = True
            self._delivery.want_room()
            return
        at = self._received(item)
        self._bars.update(at)
        bars_due = self._bars.due_at <= at
        if self._pace is not None:
            if bars_due:
                at = int(self._bars.due_at)
            now = monotonic()
            if (pause := self._pace.pause(at, now)) > 0:
                self.deadline = now + pause
                self.loop.schedule(self)
                return
        self._now = max(self._now, at)
        if bars_due:
            self._delivery.put_event(Event(TimePassed(time_of(at))))
            self._bars.passed(at)
        elif isinstance(item, list):
            count = self._count_due(item, min(room, _CHUNK))
            ticks, self._next = item[:count], item[count:] or None
            self._now = max(self._now, ticks[-1]["received_ns"])
            self._put_ticks(ticks)
        else:
            self._next = None
            self._put(item)
        self.loop.defer(self._play)

    def _received(self, item: _Item) -> int:
        if isinstance(item, Entry):
            return item.at
        return item[0]["received_ns"] if isinstance(item, list) else self._now

    def _count_due(self, ticks: list[Tick], limit: int) -> int:
        """Return how many ticks of a run can be delivered at once: at least one."""
        until = self._bars.due_at
        if self._pace is not None:
            until = min(until, self._pace.position(monotonic()))
        count = min(limit, len(ticks))
        if ticks[count - 1]["received_ns"] < until:
            return count
        return max(1, bisect_left(ticks, until, 0, count, key=_received_ns))

    # What is read.

    def _read(self) -> Iterator[_Item]:
        """Return what is wanted. Ticks that `parse_price` refuses become errors."""
        playing, wanted = self._playing, self._wanted
        # A name that no pair has stands for none.
        pairs = {name for name in wanted if self._streams[name].decoder.contract is None} or ({""} if wanted else set())
        for run in playing.archive.runs(playing.start, playing.end, self._convert, pairs):
            if isinstance(run, Entry):
                if not wanted or run.symbol is None or run.symbol in wanted:
                    yield run
            elif self._refused:
                for is_tick, group in groupby(run, key=lambda each: isinstance(each, dict)):
                    alike = list(group)
                    yield from self._of_exchanges(alike) if is_tick else alike
            else:
                yield from self._of_exchanges(run)

    def _of_exchanges(self, ticks: list[Tick]) -> Iterator[list[Tick]]:
        exchanges = self._playing.exchanges
        if exchanges is not None:
            ticks = [tick for tick in ticks if tick["exchange"] in exchanges]
        if ticks:
            yield ticks

    def _convert(self, batch: pa.RecordBatch) -> list[Any]:
        """Return ticks, with an error in the place of each one that `parse_price` refuses."""
        self._refused = False
        parse_price = self._playing.parse_price
        try:
            ticks = columns.ticks_of(batch, parse_price if parse_price is float else self._checked_price)
            # One sum is faster than a check of each price.
            if parse_price is not float or math.isfinite(sum(tick["price"] for tick in ticks)):
                return ticks
        except Exception as error:
            logger.debug("prices are parsed one by one: %s", type(error).__name__)
        self._refused = True
        return [self._decoded(tick) for tick in columns.ticks_of(batch, str)]

    def _checked_price(self, text: str) -> Any:
        price = self._playing.parse_price(text)
        if type(price) is float and not math.isfinite(price):
            raise ValueError(text)
        return price

    def _decoded(self, tick: Tick) -> Tick | DecodeError:
        """Decode a tick as it was decoded when it was received."""
        raw = {name: tick[name] for name in FIELDS}  # type: ignore[literal-required]
        pair = tick["pair"]
        decoded = Decoder(pair, pair, self._playing.parse_price).decode_tick(raw, tick["received_ns"])
        if not isinstance(decoded, DecodeError):
            decoded["backfilled"] = tick["backfilled"]
        return decoded

    # What is delivered.

    def _stream(self, name: str) -> ReplayStream:
        stream = self._streams.get(name)
        if stream is None:
            symbol: Symbol | None = None
            with suppress(ConfigurationError):
                symbol = check.symbol(name)
            stream = self._streams[name] = ReplayStream(name, symbol, self._playing.parse_price)
            self._run.adopt(stream)
        return stream

    def _put_ticks(self, ticks: list[Tick]) -> None:
        pairs = [tick["pair"] for tick in ticks]
        newest = dict(zip(pairs, ticks, strict=True))
        counts = Counter(pairs) if len(newest) > 1 else {pairs[0]: len(pairs)}
        for pair, last in newest.items():
            counters, count = self._stream(pair).counters, counts[pair]
            counters.messages += count
            if last["backfilled"]:
                counters.ticks += count
                counters.last_tick = last
            else:
                counters.count_live(count, last, last["timestamp"], last["received_ns"], self.loop.now)
        self._delivery.put_ticks(ticks, pairs if len(newest) > 1 else None)

    def _put(self, item: Entry | DecodeError) -> None:
        if isinstance(item, DecodeError):
            self._put_message(item.symbol, item)
        elif item.kind == "message":
            decoder = self._decoder if item.symbol is None else self._stream(item.symbol).decoder
            text = str(item.fields.get("text", ""))
            self._put_message(item.symbol, decoder.decode(text.encode("utf-8", "surrogateescape"), item.at))
        elif (payload := payload_of(item)) is not None:
            if item.symbol is not None:
                self._note(self._stream(item.symbol), payload)
            if item.symbol is not None or isinstance(payload, FinxStreamerError):
                self._delivery.put_event(Event(payload, item.symbol))

    def _note(self, stream: ReplayStream, payload: State | Gap | FinxStreamerError) -> None:
        """Count what the stream counted."""
        if isinstance(payload, Gap):
            stream.counters.gaps += 1
            stream.counters.unfilled_gaps += not payload.filled
            stream.counters.filled_ticks += payload.ticks
        elif isinstance(payload, ConnectionFailed):
            stream.connection.counters.count_error(payload)
        elif payload is State.RECONNECTING:
            stream.connection.is_lost = True
        elif payload is State.STREAMING and stream.connection.is_lost:
            stream.connection.reconnects += 1
            stream.connection.is_lost = False

    def _put_message(self, symbol: str | None, message: Message) -> None:
        stream = None if symbol is None else self._stream(symbol)
        if stream is not None:
            stream.counters.messages += 1
            stream.counters.decode_errors += isinstance(message, DecodeError)
        if not isinstance(message, dict):
            self._delivery.put_event(Event(message, symbol))
        elif stream is None or stream.decoder.contract is None:
            self._put_ticks([cast("Tick", message)])
        else:
            greeks = cast("Greeks", message)
            stream.newest[greeks["instrument"]] = greeks
            stream.counters.count_greeks(greeks["timestamp"], greeks["received_ns"], self.loop.now)
            self._delivery.put_greeks(Event(greeks, symbol))


class _Pace:
    """Where a replay is on the time axis of the recording, if it isn't as fast as possible."""

    def __init__(self, speed: float, max_pause: float | None) -> None:
        self._speed, self._max_pause = speed, max_pause
        #: A time of the recording, in nanoseconds since 1970, and the monotonic time at which it is reached.
        self._origin: tuple[float, float] | None = None

    def position(self, now: float) -> float:
        """Return how far the replay may be, in nanoseconds since 1970."""
        assert self._origin is not None
        at, reached = self._origin
        return at + (now - reached) * self._speed * 1e9

    def pause(self, at: int, now: float) -> float:
        """Return how many seconds remain until a time of the recording. Skips what is too long."""
        if self._origin is None:
            self._origin = at, now
        left = (at - self.position(now)) / 1e9 / self._speed
        if self._max_pause is not None and left > self._max_pause:
            left = self._max_pause
            self._origin = at, now + left
        return left


class _BarsDue:
    """When bars are due without a tick, on the time axis of the recording. In nanoseconds since 1970."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._feeds = callbacks.bar_feeds
        self._known: tuple[BarFeed, ...] = ()
        self.due_at: float = NEVER

    def start_over(self) -> None:
        """Forget the bars of an earlier replay."""
        for feed in self._feeds():
            feed.start_over()

    def update(self, at: int) -> None:
        """Take callbacks into account that were added. `at` is the current time."""
        if (feeds := self._feeds()) != self._known:
            self._known, due_before = feeds, self.due_at
            self.passed(at)
            self.due_at = min(due_before, self.due_at)

    def passed(self, at: int) -> None:
        """Take note that all bars that were due by then were emitted."""
        # A microsecond later, because floats of today's times aren't more exact.
        due = min((feed.due_after(at / 1e9 + 1e-6) for feed in self._known), default=NEVER)
        self.due_at = due if due == NEVER else math.ceil(due * 1e6) * 1_000


_received_ns = itemgetter("received_ns")
