"""The tap: hands what the streams get to a recorder, in the order in which it is delivered.

Ticks are recorded as they were sent. While a gap is being filled, live ticks are held, and recorded when they leave. So
a recording never has ticks from behind a gap that isn't filled yet, and a recorder that is killed meanwhile can resume
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from ..errors import DecodeError, FinxStreamerError, ServerError
from ..values import SENT, Event, Gap, State, Tick
from ..wire.decoder import Decoder
from ..wire.frames import Binary, read_text_frames
from .delivered_window import Key


class Recorder(Protocol):
    """Writes a recording. Its methods don't wait and don't raise."""

    def put_frames(self, received_ns: int, frames: bytes, backfilled: bool = False) -> None:
        """Record whole text frames, each of them a tick."""

    def put_payloads(self, received_ns: int, payloads: list[bytes], backfilled: bool = False) -> None:
        """Record ticks by their messages."""

    def put_backfilled(self, ticks: list[tuple[str, str, str, str, str]], received_ns: int) -> None:
        """Record ticks of history: pair, date, time, exchange and price, as they were sent."""

    def put_message(self, received_ns: int, payload: bytes, symbol: str | None) -> None:
        """Record a message that isn't a tick. It may quote the key."""

    def put_event(self, event: Event) -> None:
        """Record a state or an error."""

    def put_gap(self, gap: Gap, reason: str | None) -> None:
        """Record a gap. `reason`: why it isn't filled."""

    def put_log(self, symbol: str, log: str) -> None:
        """Record to which log the IDs of the following ticks of a stream belong."""

    def put_missing(self, symbol: str, since: datetime) -> None:
        """Record that ticks from this time on are missing, until a gap says what became of them."""


class Gaps(Protocol):
    """What the tap needs of a resequencer."""

    #: The ID of the newest tick that was missed.
    resume_until: int

    @property
    def is_resuming(self) -> bool:
        """Whether the server is sending what was missed."""

    @property
    def is_recovering(self) -> bool:
        """Whether live ticks are held while history is fetched."""


class Tapped(Protocol):
    """What the tap needs of a stream."""

    symbol: str

    @property
    def resequencer(self) -> Gaps:
        """Holds ticks while a gap is being filled."""

    @property
    def are_missed(self) -> bool:
        """Whether the ticks that were just read were missed."""

    def put_ticks(self, ticks: list[Tick], keys: Callable[[], list[Key]] | None = None) -> None:
        """Deliver, queue or hold ticks."""

    def take_ticks(self, ticks: list[Tick], numbers: Sequence[int | None]) -> list[Tick]:
        """Queue or hold ticks. Return those to deliver now."""


class Tap:
    """Sits between the streams and a recorder. For the thread that drives the loop.

    Args:
        recorder: Writes the recording.
        exchanges: The exchanges whose ticks are delivered; None: all. The others are recorded, too.
    """

    def __init__(self, recorder: Recorder, exchanges: frozenset[str] | None) -> None:
        self.put_frames = recorder.put_frames
        self.put_message = recorder.put_message
        self.put_gap = recorder.put_gap
        self.put_missing = recorder.put_missing
        self._recorder = recorder
        self._exchanges = exchanges
        #: The log of each stream that was recorded last.
        self._logs: dict[str, str] = {}
        #: The messages of ticks that aren't delivered and wait for the next one that is held, by symbol, with the times
        #: at which they were received.
        self._waiting: dict[str, list[tuple[int, bytes]]] = {}

    # What was read.

    def put_run(
        self, stream: Tapped, ticks: list[Tick], keys: Callable[[], list[Key]] | None, frames: bytes, received_ns: int
    ) -> None:
        """Do what `Stream.put_ticks` does, and record the ticks, of which these are the frames."""
        if stream.resequencer.is_recovering:
            self._attach(stream.symbol, ticks, read_text_frames(frames, 0, len(ticks))[0], received_ns)
            stream.put_ticks(ticks, keys)
        else:
            backfilled = stream.are_missed
            stream.put_ticks(ticks, keys)  # reports a gap before the first live tick
            self.put_frames(received_ns, frames, backfilled)

    def take_run(
        self, stream: Tapped, ticks: list[Tick], numbers: list[int | None], payloads: list[bytes], received_ns: int
    ) -> list[Tick]:
        """Do what `Stream.take_ticks` does, and record the ticks, of which these are the messages."""
        resequencer, live = stream.resequencer, []
        if resequencer.is_recovering:
            self._attach(stream.symbol, ticks, payloads, received_ns)
            return stream.take_ticks(ticks, numbers)
        if not resequencer.is_resuming:
            live = stream.take_ticks(ticks, numbers)
            self._recorder.put_payloads(received_ns, payloads)
            return live
        for tick, number, payload in zip(ticks, numbers, payloads, strict=True):
            backfilled = resequencer.is_resuming and number is not None and number <= resequencer.resume_until
            live += stream.take_ticks([tick], [number])
            self._recorder.put_payloads(received_ns, [payload], backfilled)
        return live

    def _attach(self, symbol: str, ticks: list[Any], payloads: list[bytes], received_ns: int) -> None:
        """Keep the messages of ticks that will be held, until they leave.

        Those that aren't delivered are kept, too: a recorder that is stopped meanwhile resumes before all of them.
        """
        waiting = self._waiting.pop(symbol, [])
        for tick, payload in zip(ticks, payloads, strict=True):
            waiting.append((received_ns, payload))
            if self._exchanges is None or tick["exchange"] in self._exchanges:
                tick[SENT], waiting = waiting, []
        if waiting:
            self._waiting[symbol] = waiting

    def put_other(
        self,
        symbol: str | None,
        decoder: Decoder,
        message: bytes | Binary,
        received_ns: int,
        is_recovering: bool = False,
    ) -> None:
        """Record a message that isn't a tick. If only `parse_price` refuses it, it is one for the recorder.

        `is_recovering`: whether live ticks of its stream are held.
        """
        if isinstance(message, Binary):
            self.put_message(received_ns, message.payload, symbol)
        elif decoder.pair is not None and isinstance(
            Decoder(symbol, decoder.pair, str).decode(message, received_ns), dict
        ):
            if symbol is not None and is_recovering:
                self._waiting.setdefault(symbol, []).append((received_ns, message))
            else:
                self._recorder.put_payloads(received_ns, [message])
        else:
            self.put_message(received_ns, message, symbol)

    # What leaves.

    def put_leaving(self, ticks: Iterable[Any], record: bool) -> None:
        """Record ticks that were held, or that history had. Live ones were recorded when they were read."""
        for (kind, received_ns), run in groupby(ticks, _kind_of):
            if kind is type(None):
                continue
            sent = [(tick["pair"], tick["date"], tick["time"], tick["exchange"], tick.pop(SENT)) for tick in run]
            if kind is list and record:
                self._put_held(held for *_, messages in sent for held in messages)
            elif record:
                self._recorder.put_backfilled(sent, received_ns)

    def put_rest(self, symbol: str, record: bool) -> None:
        """Record what waits for the next tick: no further one will be held."""
        waiting = self._waiting.pop(symbol, ())
        if record:
            self._put_held(waiting)

    def _put_held(self, messages: Iterable[tuple[int, bytes]]) -> None:
        for received_ns, run in groupby(messages, itemgetter(0)):
            self._recorder.put_payloads(received_ns, [payload for _, payload in run])

    def put_event(self, event: Event) -> None:
        """Record a state or an error. The messages of other events were recorded when they were read."""
        if isinstance(event.payload, State | FinxStreamerError) and not isinstance(
            event.payload, DecodeError | ServerError
        ):
            self._recorder.put_event(event)

    def put_log(self, symbol: str, log: str) -> None:
        """Record to which log the IDs of the following ticks belong, if that changes."""
        if self._logs.get(symbol, "") != log:
            self._logs[symbol] = log
            self._recorder.put_log(symbol, log)


def _kind_of(tick: dict[str, Any]) -> tuple[type, int]:
    return type(tick.get(SENT)), tick["received_ns"]
