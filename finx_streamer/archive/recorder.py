"""`Recorder`: what a listener records into, and from where it goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config.redaction import redact
from ..errors import ConfigurationError, RecordingError
from ..streaming.catch_up import Past
from ..values import Event, Gap
from .events import fields_of
from .layout import Layout
from .tail import read_tails
from .writer import ArchiveWriter


class Recorder:
    """Records what the streams of a listener get. Implements `Recorder` of `streaming.tap`.

    Args:
        path: The directory.
        exchanges: The exchanges whose missed ticks are fetched; None: all.
        on_problem: Called with each problem, on any thread, from `start` on.

    Raises:
        ConfigurationError: Another process records into the directory.
        RecordingError: The directory can't be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        exchanges: frozenset[str] | None,
        on_problem: Callable[[str], object],
    ) -> None:
        self._path = Path(path)
        self._exchanges = exchanges
        self._on_problem = on_problem
        #: Set when problems can be reported.
        self._started = threading.Event()
        try:
            self._writer = ArchiveWriter(path, on_problem=self._report)
        except OSError as error:
            raise RecordingError(redact(f"{self._path}: can't be written: {error.strerror or error}")) from None
        except ConfigurationError as error:
            raise ConfigurationError(redact(str(error))) from None
        self.state = self._writer.state
        self.put_frames = self._writer.put_frames
        self.put_payloads = self._writer.put_payloads
        self.put_backfilled = self._writer.put_backfilled

    def pasts(self, pairs: Iterable[str], parse_price: Callable[[str], Any]) -> dict[str, Past]:
        """Return where the recording of each pair ends, if an earlier run recorded it."""
        tails = read_tails(Layout(self._path), pairs)
        for tail in tails.values():
            for tick in tail.ticks:
                # What can't be parsed stays a text, which equals no price.
                with suppress(Exception):
                    tick["price"] = parse_price(tick["price"])
        return {pair: Past(ticks=tail.ticks, log=tail.log, number=tail.number) for pair, tail in tails.items()}

    def start(self, symbols: Iterable[str]) -> None:
        """Take note that the listener starts."""
        self._writer.put_event("start", {"symbols": list(symbols)})
        self._started.set()

    def _report(self, problem: str) -> None:
        self._started.wait()
        self._on_problem(redact(problem))  # the path may have the key

    def stop(self) -> None:
        """Take note that the streams have ended."""
        self._writer.put_event("stop", {})

    def close(self, timeout: float) -> None:
        """Write what waits, and release the directory."""
        self._started.set()
        self._writer.close(timeout)

    def put_message(self, received_ns: int, payload: bytes, symbol: str | None) -> None:
        """Record a message that isn't a tick. It may quote the key."""
        text = redact(payload.decode("utf-8", "surrogateescape"))
        self._writer.put_message(received_ns, text.encode("utf-8", "surrogateescape"), symbol)

    def put_event(self, event: Event) -> None:
        """Record a state or an error."""
        if (found := fields_of(event)) is not None:
            self._writer.put_event(*found, event.symbol)

    def put_gap(self, gap: Gap, reason: str | None) -> None:
        """Record a gap. `reason`: why it isn't filled."""
        kind, fields = fields_of(Event(gap, gap.symbol), reason) or ("gap", {})
        if self._exchanges is not None and gap.filled:
            fields["only"] = sorted(self._exchanges)
        self._writer.put_event(kind, fields, gap.symbol)

    def put_missing(self, symbol: str, since: datetime) -> None:
        """Record that ticks from this time on are missing, until a gap says what became of them."""
        self._writer.put_event("missing", {"since": since}, symbol)

    def put_log(self, symbol: str, log: str) -> None:
        """Record to which log the IDs of the following ticks of a stream belong."""
        self._writer.put_event("log", {"log": log}, symbol)
