"""`Tape`: a recording of ticks, to be replayed."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from ..errors import ConfigurationError
from .ticks import Tick, epoch_seconds, parse_tick, with_time

#: The pause between two rounds of a loop in seconds, if `max_pause` is None.
_LOOP_PAUSE = 1.0


class Tape:
    """A recording of ticks, replayed in its own order.

    The pace follows the latest time so far. A late tick is sent at once. Equal lines are different trades. Clients can
    subscribe to the pairs that occur in the tape.

    A file is read twice: here, to find its pairs and check every line, and again when it is played. It may therefore
    be larger than memory. An iterable is read here and kept in memory.

    Args:
        ticks (str | os.PathLike[str] | Iterable[Mapping[str, str]]): A `.jsonl` or `.jsonl.gz` file with one tick per
            line, or tick dicts. Blank lines are skipped.
        speed (float | None): 1.0 is real time, 10.0 is ten times as fast. With `None`, the tape is played as fast as
            the connected clients accept it, and stands still while no tick stream is connected.
        loop (bool): Whether to start again at the end, after `max_pause` seconds (1 second if that is `None`).
        wait_for (int): The number of connected streams, of ticks and Greeks, at which the tape starts. It doesn't stop
            when they disconnect: a client that isn't connected misses ticks.
        shift (bool): Whether to replace the recorded times with the time of sending, in milliseconds. A tick that was
            late in the recording stays late by the same time divided by `speed`.
        max_pause (float | None): The longest pause between two ticks in seconds of real time. With `None`, pauses are
            as long as in the recording, which may be days.

    Raises:
        ConfigurationError: An argument is out of range, the file can't be read, a line is malformed (the error names
            it), or the tape has no ticks.
    """

    def __init__(
        self,
        ticks: str | os.PathLike[str] | Iterable[Mapping[str, str]],
        speed: float | None = 1.0,
        loop: bool = False,
        wait_for: int = 1,
        *,
        shift: bool = False,
        max_pause: float | None = 1.0,
    ) -> None:
        _check_arguments(speed, wait_for, max_pause)
        self._speed = speed
        self._loop = loop
        self._wait_for = wait_for
        self._shift = shift
        self._max_pause = max_pause
        self._read = _make_reader(ticks)
        self._pairs = frozenset(tick["pair"] for tick in self._read())
        if not self._pairs:
            raise ConfigurationError(f"{_describe(ticks)} has no ticks; expected at least one")

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that occur in the tape."""
        return self._pairs

    @property
    def wait_for(self) -> int:
        """The number of connected streams at which the tape starts."""
        return self._wait_for

    @property
    def paced(self) -> bool:
        """Whether ticks are due at set times (`speed` is not `None`)."""
        return self._speed is not None

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """Play the tape from its beginning. See `Source.play`."""
        schedule = self._schedule()
        if not self._shift:
            return ((due, tick) for due, _, tick in schedule)
        return self._shifted(schedule, clock)

    def _schedule(self) -> Iterator[tuple[float, float, Tick]]:
        """For each tick of all rounds: when it is due, how late it is then (both in seconds), and the tick."""
        start = 0.0
        while True:
            due = None
            for due, late, tick in self._schedule_round():
                yield start + due, late, tick
            # A file that was emptied meanwhile ends the loop. Otherwise this would spin.
            if not self._loop or due is None:
                return
            start += due + self._loop_pause

    def _schedule_round(self) -> Iterator[tuple[float, float, Tick]]:
        if not self.paced and not self._shift:
            # Parsing the time is half of the work, and no one needs it here.
            return ((0.0, 0.0, tick) for tick in self._read())
        return self._schedule_by_time()

    def _schedule_by_time(self) -> Iterator[tuple[float, float, Tick]]:
        speed = math.inf if self._speed is None else self._speed
        max_pause = math.inf if self._max_pause is None else self._max_pause
        due = 0.0
        latest: float | None = None
        for tick in self._read():
            now = epoch_seconds(tick)
            latest = now if latest is None else latest
            due += min(max(0.0, now - latest) / speed, max_pause)
            latest = max(latest, now)
            yield due, (latest - now) / (self._speed or 1.0), tick

    @property
    def _loop_pause(self) -> float:
        if not self.paced:
            return 0.0
        return _LOOP_PAUSE if self._max_pause is None else self._max_pause

    def _shifted(
        self, schedule: Iterator[tuple[float, float, Tick]], clock: Callable[[], float]
    ) -> Iterator[tuple[float, Tick]]:
        started = clock()
        for due, late, tick in schedule:
            yield due, with_time(tick, (started + due if self.paced else clock()) - late)


def read_ticks(ticks: str | os.PathLike[str] | Iterable[Mapping[str, str]]) -> Iterator[Tick]:
    """Read the ticks of a `.jsonl` or `.jsonl.gz` file, or of tick dicts, after all of them were checked.

    Raises `ConfigurationError` at once if a tick is malformed or the file can't be read.
    """
    read = _make_reader(ticks)
    if isinstance(ticks, str | os.PathLike):
        # Check all lines first. Don't keep them: the file may be larger than memory.
        for _ in read():
            pass
    return read()


def _check_arguments(speed: float | None, wait_for: int, max_pause: float | None) -> None:
    if speed is not None and not (0 < speed < math.inf):
        raise ConfigurationError(f"speed is {speed!r}; expected a number above 0, or None for as fast as possible")
    if not isinstance(wait_for, int) or wait_for < 0:
        raise ConfigurationError(f"wait_for is {wait_for!r}; expected a whole number, 0 or more")
    if max_pause is not None and not (0 <= max_pause < math.inf):
        raise ConfigurationError(f"max_pause is {max_pause!r}; expected seconds, 0 or more, or None for no limit")


def _make_reader(ticks: str | os.PathLike[str] | Iterable[Mapping[str, str]]) -> Callable[[], Iterator[Tick]]:
    """A function that reads the ticks from the beginning on each call."""
    if isinstance(ticks, str | os.PathLike):
        path = Path(ticks)
        return lambda: _read_file(path)
    kept = tuple(_parse_all(ticks))
    return lambda: iter(kept)


def _parse_all(ticks: Iterable[Mapping[str, str]]) -> Iterator[Tick]:
    for number, raw in enumerate(ticks, start=1):
        try:
            yield parse_tick(dict(raw) if isinstance(raw, Mapping) else raw)
        except ValueError as error:
            raise ConfigurationError(f"tick {number} of the tape: {error}") from None


def _read_file(path: Path) -> Iterator[Tick]:
    number = 0
    try:
        with _open_lines(path) as lines:
            for line in lines:
                number += 1
                if not line.isspace():
                    yield parse_tick(json.loads(line))
    except (OSError, EOFError, zlib.error) as error:
        position = f" after line {number}" if number else ""
        raise ConfigurationError(f"cannot read the tape {path}{position}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}, line {number}: {error}") from None


def _open_lines(path: Path) -> IO[bytes]:
    # Bytes, so that invalid UTF-8 is an error of its line and not of the file.
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _describe(ticks: object) -> str:
    return f"the tape {os.fspath(ticks)}" if isinstance(ticks, str | os.PathLike) else "the tape"
