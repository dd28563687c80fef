"""All streams of a listener on one connection, requested by message: FinX's second wire. Source: D."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Collection
from typing import Any

import attrs

from ..config.symbols import Instrument, Option, instrument
from ..connection.websocket import Connection
from ..errors import ConfigurationError, DecodeError, ServerError, StreamNotFound
from ..values import NEVER, Event, State, Tick
from ..wire.contract_ticker import NAME
from ..wire.decoder import MAX_TICK_MESSAGE, Decoder, Message
from ..wire.frames import Binary, read_text_frames
from ..wire.json_codec import loads
from ..wire.mixed_pattern import MixedPattern, spellings
from ..wire.tick_form import read_number
from .delivered_window import Key
from .lane import Lane
from .log_position import ASK, LogPosition
from .noted import Noted, group
from .stream import Owner, Stream
from .stream_connection import MESSAGES_WITHOUT_PATTERN, StreamConnection

logger = logging.getLogger("finx_streamer")

#: Requests wait while this many bytes are unsent: a server may be slow to read ten thousand of them.
_MAX_UNSENT = 65_536
#: For how many seconds, and how many, delivered ticks may be unknown to their streams. See `Noted`.
_LONGEST_NOTED, _MOST_NOTED = 0.1, 32_768
#: Seconds between requests of the list of contracts. Source: O.
_LIST_INTERVAL = 300.0
#: Names the stream of a message that isn't JSON.
_NAME = re.compile(rb'"(?:pair|instrument_name)"\s*:\s*"([^"\\]{1,200})"')


class SharedConnection(StreamConnection):
    """Requests its streams after each handshake, and routes each message to its stream.

    A stream has joined once the server has confirmed it, or has sent its first message: only then is it certain that
    from now on nothing is missed. FinX confirms nothing, our server does if the request has a `resume` member.
    """

    __slots__ = (
        "_confirmed",
        "_decoder",
        "_leaving",
        "_list_at",
        "_noted",
        "_pairs",
        "_pattern",
        "_requested",
        "_routes",
        "_settle_at",
        "_streams",
        "_to_request",
        "_unjoined",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner, owner.new_session(), attrs.evolve(owner.settings.connection, shared=True))
        self._streams: dict[str, Stream] = {}
        #: The streams of each pair and contract: those of a contract's month, and its own.
        self._routes: dict[str, list[Stream]] = {}
        #: Each spelling of each pair in the read buffer.
        self._pairs: dict[str, str] = {}
        self._pattern = MixedPattern()
        #: For messages that belong to no stream.
        self._decoder = Decoder(None, None, owner.settings.parse_price)
        #: The pairs and contracts that were requested on this connection, and those that wait for that.
        self._requested: set[str] = set()
        self._to_request: deque[str] = deque()
        #: The pairs that the server has confirmed, so it also confirms their end.
        self._confirmed: set[str] = set()
        #: Those whose end it hasn't confirmed: what arrives is in transit.
        self._leaving: set[str] = set()
        #: The symbols of streams that haven't joined on this connection.
        self._unjoined: set[str] = set()
        #: When to ask for the list of contracts.
        self._list_at = NEVER
        self._noted = Noted()
        #: When the streams must know them.
        self._settle_at = NEVER

    # Its streams.

    @property
    def symbol(self) -> None:
        return None

    def streams(self) -> Collection[Stream]:
        return self._streams.values()

    def add(self, stream: Stream) -> None:
        self._streams[stream.symbol] = stream
        self._match(stream)
        if self.session.state.ended:
            # It ended with its last stream.
            self.session = self._owner.new_session()
        stream.enter(State.CONNECTING)
        if self.session.delivers:
            self._request(stream)
            self._send_requests()
        else:
            self.start()

    def _match(self, stream: Stream) -> None:
        """Let the pattern find a stream's ticks, except those in transit that were sent for an earlier stream."""
        if stream.decoder.contract is None and stream.symbol not in self._leaving:
            self._pairs.update(dict.fromkeys(spellings(stream.symbol), stream.symbol))

    def remove(self, stream: Stream) -> None:
        self.settle()
        self._forget(stream)
        if not stream.state.ended:
            stream.end(State.STOPPED, "the stream was removed")
        if not self._streams:
            self.stop()

    def deliver_rest(self) -> None:
        super().deliver_rest()
        self.settle()

    def disconnect(self) -> None:
        self.settle()
        self._list_at = NEVER
        super().disconnect()

    def _forget(self, stream: Stream) -> None:
        if self._streams.get(stream.symbol) is not stream:
            return
        del self._streams[stream.symbol]
        self._unjoined.discard(stream.symbol)
        for name in self._names_of(stream):
            self._unsubscribe(name, stream)
        if stream.decoder.contract is None:
            self.leave_lane(stream)
            for spelling in spellings(stream.symbol):
                self._pairs.pop(spelling, None)

    def _names_of(self, stream: Stream) -> set[str]:
        """Return the pairs and contracts that a stream gets now."""
        return {name for name, streams in self._routes.items() if stream in streams}

    # Requests.

    def begin(self, now: float) -> None:
        for names in (self._requested, self._to_request, self._routes, self._confirmed, self._leaving):
            names.clear()
        if self.session.delivers:
            for stream in self._streams.values():
                self._match(stream)
                self._request(stream)
            self._send_requests()

    def on_writable(self) -> None:
        super().on_writable()
        self._send_requests()

    @property
    def deadline(self) -> float:
        return min(super().deadline, self._list_at, self._settle_at)

    def wake(self, now: float) -> None:
        if now >= self._settle_at:
            self.settle()
        super().wake(now)
        if now >= self._list_at:
            self._request_list(now)

    def _request(self, stream: Stream) -> None:
        """Have a stream requested. Which contracts are in a month, only the list of contracts says."""
        self._unjoined.add(stream.symbol)
        stream.requested(self.loop.now)
        if not isinstance(stream.decoder.contract, Option):
            self._subscribe(stream.symbol, stream)
        if stream.decoder.contract is not None:
            self._list_at = self.loop.now
            self.loop.schedule(self)

    def _request_list(self, now: float) -> None:
        """Contracts are listed and expire, so ask again later."""
        if any(stream.decoder.contract is not None for stream in self._streams.values()):
            self._list_at = now + _LIST_INTERVAL
            self.send(lambda websocket: websocket.send_request({"functionName": "listDeribitContracts"}))
        else:
            self._list_at = NEVER

    def _subscribe(self, name: str, stream: Stream) -> None:
        """Request a pair or contract, unless it was already on this connection: a server may send it twice then."""
        self._routes.setdefault(name, []).append(stream)
        if name not in self._requested:
            self._to_request.append(name)

    def _unsubscribe(self, name: str, stream: Stream) -> None:
        self._routes[name].remove(stream)
        if not self._routes[name]:
            del self._routes[name]
            if name in self._requested and name not in self._leaving:
                self.send(lambda websocket: websocket.send_request({"functionName": "unsubscribe", **_named(name)}))
            if name in self._confirmed:
                self._leaving.add(name)

    def _send_requests(self) -> None:
        while self._to_request and self.websocket is not None and len(self.websocket.wire.unsent) < _MAX_UNSENT:
            name = self._to_request.popleft()
            if name in self._routes and name not in self._requested:
                self._requested.add(name)
                function = "getSpotRates" if ":" in name else "getDeribitContractStream"
                stream = self._streams.get(name)
                resume = None if stream is None else stream.resume_request()
                request = {"functionName": function, **_named(name), "resume": resume or ASK}
                self.send(lambda websocket: websocket.send_request(request))  # noqa: B023 (called at once)

    # Reading.

    def room(self) -> int:
        """How many messages may be read now.

        Where one stream can't wait, none does: it goes on as long as the callbacks take ticks. They don't depend on
        it, so they make room at last, and answers that are unread until then cost only time.
        """
        room = self._owner.delivery.room()
        busy, held = self._owner.busy, self._owner.allowance.room
        if not busy or room <= held or any(stream.resequencer.must_read for stream in busy):
            return room
        return held

    def new_lane(self, websocket: Connection, noted: Noted | None = None) -> Lane:
        return super().new_lane(websocket, self._noted)

    def find_stream(self, spelling: str) -> Stream | None:
        symbol = self._pairs.get(spelling)
        # It has joined with its first message.
        return None if symbol is None else self._streams[symbol]

    def read_messages(self, websocket: Connection, limit: int) -> int:
        wire, taken, session = websocket.wire, 0, self.session
        text = str(wire.buffer, "latin-1")
        parse_price = self._decoder.price_parser
        # How many messages go the other way before the pattern is tried again.
        without_pattern = 1
        while taken < limit:
            if websocket.before_message:
                start = wire.at
                ticks, pairs, keys, numbers, wire.at = self._pattern.match_ticks(
                    text, start, limit - taken, self._pairs, parse_price, wire.received_ns
                )
                if ticks:
                    without_pattern = 1
                    taken += len(ticks)
                    if session.delivers:
                        frames = wire.buffer[start : wire.at] if self._owner.tap is not None else b""
                        self._put_ticks(ticks, pairs, keys, numbers, wire.received_ns, frames)
                if wire.at == len(text):
                    break
            # Something other than a tick of the usual form, or an incomplete frame.
            messages = websocket.messages(min(limit - taken, without_pattern))
            if not messages:
                break
            without_pattern = min(2 * without_pattern, MESSAGES_WITHOUT_PATTERN)
            taken += len(messages)
            if session.delivers:
                self.settle()
                for message in messages:
                    self._put_message(message, wire.received_ns)
        if self._noted.size > _MOST_NOTED:
            self.settle()
        return taken

    def _put_ticks(
        self, ticks: list[Tick], pairs: list[str], keys: list[Key], numbers: list[str], received_ns: int, frames: bytes
    ) -> None:
        """Pass on ticks of any streams, in order of arrival. `frames` is what was read, if it is recorded."""
        unjoined, busy, tap = self._unjoined, self._owner.busy, self._owner.tap
        all_live = not (unjoined or busy) or unjoined.union(stream.symbol for stream in busy).isdisjoint(pairs)
        if all_live and self._owner.settings.exchanges is None:
            if not self._noted.size:
                self._settle_at = self.loop.now + _LONGEST_NOTED
                self.loop.schedule(self)
            self._noted.add(ticks, pairs, keys, numbers, received_ns)
            if tap is not None:
                tap.put_frames(received_ns, frames)
            self._owner.delivery.put_ticks(ticks, pairs)
            return
        self.settle()
        live: list[list[Tick]] = []
        ids = group(pairs, map(read_number, numbers))
        payloads = {} if tap is None else group(pairs, read_text_frames(frames, 0, len(ticks))[0])
        for pair, run in group(pairs, ticks).items():
            stream = self._streams[pair]
            stream.counters.messages += len(run)
            self._join(stream)
            if tap is None:
                live.append(stream.take_ticks(run, ids[pair]))
            else:
                live.append(tap.take_run(stream, run, ids[pair], payloads[pair], received_ns))
            if stream.log:
                stream.received(ids[pair][-1])
        if sum(map(len, live)) < len(ticks):
            # Some are held, or of exchanges that aren't wanted.
            now = {id(tick) for run in live for tick in run}
            ticks = [tick for tick in ticks if id(tick) in now]
            pairs = [tick["pair"] for tick in ticks]
        if ticks:
            self._owner.delivery.put_ticks(ticks, pairs)

    def settle(self) -> None:
        """Tell each stream which of its ticks were delivered."""
        self._settle_at = NEVER
        for symbol, keys, last, received_ns, number in self._noted.take():
            if (stream := self._streams.get(symbol)) is not None:
                stream.note_delivered(keys, last, received_ns, read_number(number))

    def _put_message(self, message: bytes | Binary, received_ns: int) -> None:
        if self.take_mark(message):
            return
        content = _parse(message)
        if isinstance(content, list):
            self._take_list(frozenset(content))
        elif not self._take_confirmation(content):
            name = _name_in(content, message)
            if name in self._leaving and content.get("error"):
                self._end_leaving(name)  # it goes on
            streams = self._find(name)
            for stream in streams:
                self._put_to(stream, message, received_ns, content)
            # Otherwise, its stream was removed, and the server doesn't know `unsubscribe`.
            if not streams and name not in self._requested:
                self._put_other(message, received_ns)

    def _put_to(self, stream: Stream, message: bytes | Binary, received_ns: int, content: dict[str, Any]) -> None:
        if content.get("error"):
            decoded = stream.decoder.decode(message, received_ns)
            if not _refuses_unsubscribe(decoded):  # then the stream was added again meanwhile
                reason = decoded.message if isinstance(decoded, ServerError) else "the server refuses the stream"
                self._refuse(str(_name_in(content, message)), stream, reason)
            return
        self._join(stream)
        stream.counters.messages += 1
        stream.put_messages([message], received_ns)
        if isinstance(message, bytes) and stream.decoder.pair is not None:
            self._pattern.learn(message)

    def _take_confirmation(self, content: dict[str, Any]) -> bool:
        """Take the answer to a request. Return False for anything else, and if the answer names no requested stream."""
        subscribed, unsubscribed = content.get("subscribed"), content.get("unsubscribed")
        if "pair" in content or NAME in content or content.get("error"):
            return False
        if isinstance(subscribed, str) and subscribed in self._requested:
            self._confirmed.add(subscribed)
            for stream in self._find(subscribed):
                self._join(stream, LogPosition.from_answer(content) if stream.resequencer.fills_gaps else None)
            return True
        if isinstance(unsubscribed, str) and unsubscribed in self._requested:
            self._unsubscribed(unsubscribed)
            return True
        return False

    def _put_other(self, message: bytes | Binary, received_ns: int) -> None:
        """Report a message that belongs to no stream."""
        self.counters.messages += 1
        if self._owner.tap is not None:
            self._owner.tap.put_other(None, self._decoder, message, received_ns)
        decoded = self._decoder.decode(message, received_ns)
        if isinstance(decoded, DecodeError):
            self.counters.decode_errors += 1
        assert not isinstance(decoded, dict)
        if not _refuses_unsubscribe(decoded):
            self._owner.put_event(Event(decoded))

    def _take_list(self, listed: frozenset[str]) -> None:
        """Take the list of contracts: request those of months, and end the streams of those that aren't listed."""
        for stream in list(self._streams.values()):
            contract = stream.decoder.contract
            if isinstance(contract, Option):
                wanted, known = {name for name in listed if _includes(contract, name)}, self._names_of(stream)
                for name in known - wanted:
                    self._unsubscribe(name, stream)
                    stream.newest.pop(name, None)
                for name in sorted(wanted - known):
                    self._subscribe(name, stream)
                if not wanted:
                    self._end(stream, f"no option of {contract.underlying} that expires in that month is listed")
            elif isinstance(contract, Instrument) and contract.name not in listed:
                self._end(stream, f"{contract} is not listed")
        self._send_requests()

    def _find(self, name: object) -> list[Stream]:
        """Return the streams that get the messages of a pair or contract."""
        return list(self._routes.get(name, ())) if isinstance(name, str) and name not in self._leaving else []

    def _join(self, stream: Stream, start: LogPosition | None = None) -> None:
        if stream.symbol in self._unjoined:
            self._unjoined.discard(stream.symbol)
            stream.joined(self.loop.now, start)

    def _unsubscribed(self, name: str) -> None:
        """Nothing of it follows. It may be wanted again meanwhile."""
        self._requested.discard(name)
        self._end_leaving(name)
        if name in self._routes:
            self._to_request.append(name)
            self._send_requests()

    def _end_leaving(self, name: str) -> None:
        self._confirmed.discard(name)
        self._leaving.discard(name)
        if name in self._streams:
            self._match(self._streams[name])

    def _refuse(self, name: str, stream: Stream, reason: str) -> None:
        """The server refuses a pair or contract. That ends its own stream, and a month's with its last contract."""
        self._requested.discard(name)
        self._unsubscribe(name, stream)
        if stream.symbol == name or not self._names_of(stream):
            self._end(stream, reason)

    def _end(self, stream: Stream, reason: str) -> None:
        """End one stream. The others go on."""
        self._forget(stream)
        error = StreamNotFound(reason, symbol=stream.symbol)
        stream.refused(error)
        # Not now: if it was the last stream, the end reads what is left, and this read isn't over.
        self.loop.defer(lambda: self._owner.failed(error))


def _refuses_unsubscribe(message: Message) -> bool:
    if not (isinstance(message, ServerError) and "unsubscribe" in message.message):
        return False
    logger.info("the server can't stop a stream, so messages of a removed one are ignored: %s", message)
    return True


def _named(name: str) -> dict[str, str]:
    return {"pair" if ":" in name else "instrumentName": name}


def _includes(month: Option, name: str) -> bool:
    try:
        return month.includes(instrument(name))
    except ConfigurationError:
        return False  # a kind of contract that this version doesn't know


def _parse(message: bytes | Binary) -> dict[str, Any] | list[str]:
    """Return a message's object without a tick's envelope, or a list of contracts. Empty if it is something else."""
    try:
        content = loads(message) if isinstance(message, bytes) and len(message) <= MAX_TICK_MESSAGE else None
    except (ValueError, RecursionError):
        return {}
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    if not isinstance(content, dict):
        return {}
    tick = content.get("resultData")
    return tick if content.get("results") == "streaming" and isinstance(tick, dict) else content


def _name_in(content: dict[str, Any], message: bytes | Binary) -> str | None:
    """Return the pair or contract that a message names, even if it can't be read otherwise."""
    if not content and isinstance(message, bytes) and (found := _NAME.search(message)):
        return found[1].decode("utf-8", "replace")
    names = (content.get(key) for key in ("pair", NAME, "instrumentName"))
    return next((name for name in names if isinstance(name, str)), None)
