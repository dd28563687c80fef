"""`Tape`: recorded ticks, replayed."""

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
from .ticks import Tick, checked, epoch, stamped

#: The pause between two rounds of a loop in seconds, if there is no `max_pause`.
_SEAM = 1.0


class Tape:
    """A recording of ticks: a `.jsonl` or `.jsonl.gz` file with a tick a line, or an iterable of tick dicts.

    - `speed`: 1.0 is real time, 10.0 ten times as fast, `None` as fast as the connected clients take it. With `None`
      the tape stands still while no tick stream is connected.
    - `loop`: begin again at the end, after `max_pause` (after 1 s if that is None).
    - `wait_for`: the number of connected streams (ticks and Greeks) at which the tape starts. It doesn't stop again
      when they leave: who is not connected misses what passes.
    - `shift`: `False` sends the times as recorded. `True` sends the time at which the tick goes out, in
      milliseconds; a tick that was late in the recording stays late by as much (divided by `speed`).
    - `max_pause`: the longest wait between two ticks in seconds of real time, since recordings are islands that can
      lie days apart. `None` waits as long as the recording says.

    Ticks are played in the order of the tape, which need not be that of time: the pace follows the latest time so
    far, and a late tick goes out at once. Equal lines are different trades. The pairs that can be asked for are those
    in the tape. A file is read through once here, to find its pairs and its mistakes, and again when it is played,
    so it may be larger than the memory; an iterable is read to its end here, and kept.

    Raises `ConfigurationError` for an argument out of range, a file that cannot be read, a tape without ticks, and
    for a malformed line, which it names (blank lines are skipped).
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
        self._open = _opener(ticks)
        self._pairs = frozenset(tick["pair"] for tick in self._open())
        if not self._pairs:
            raise ConfigurationError(f"there are no ticks in {_name(ticks)}")

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
        """Whether the tape keeps to the clock (`speed` is not None)."""
        return self._speed is not None

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Tick]]:
        """The ticks, each with the seconds after the start at which it is due. See `Source.play`."""
        timed = self._timed()
        if not self._shift:
            return ((due, tick) for due, _, tick in timed)
        return self._shifted(timed, clock)

    def _timed(self) -> Iterator[tuple[float, float, Tick]]:
        """When a tick is due, how late it is by then (both in seconds), and the tick; round after round."""
        start = 0.0
        while True:
            due = None
            for due, late, tick in self._once():
                yield start + due, late, tick
            # A file that has been emptied since ends the loop, which would spin on nothing.
            if not self._loop or due is None:
                return
            start += due + self._seam

    def _once(self) -> Iterator[tuple[float, float, Tick]]:
        if not self.paced and not self._shift:
            # Nobody asks for the time of a tick, and reading it is half of the work.
            return ((0.0, 0.0, tick) for tick in self._open())
        return self._once_by_time()

    def _once_by_time(self) -> Iterator[tuple[float, float, Tick]]:
        speed = math.inf if self._speed is None else self._speed
        longest = math.inf if self._max_pause is None else self._max_pause
        due = 0.0
        latest: float | None = None
        for tick in self._open():
            now = epoch(tick)
            latest = now if latest is None else latest
            due += min(max(0.0, now - latest) / speed, longest)
            latest = max(latest, now)
            yield due, (latest - now) / (self._speed or 1.0), tick

    @property
    def _seam(self) -> float:
        """The pause between two rounds: no recording tells it."""
        if not self.paced:
            return 0.0
        return _SEAM if self._max_pause is None else self._max_pause

    def _shifted(
        self, timed: Iterator[tuple[float, float, Tick]], clock: Callable[[], float]
    ) -> Iterator[tuple[float, Tick]]:
        started = clock()
        for due, late, tick in timed:
            yield due, stamped(tick, (started + due if self.paced else clock()) - late)


def read_ticks(ticks: str | os.PathLike[str] | Iterable[Mapping[str, str]]) -> Iterator[Tick]:
    """The ticks of a `.jsonl` or `.jsonl.gz` file, or of an iterable of tick dicts, once all were found to be right.

    Raises `ConfigurationError` at once for those that are wrong, and for a file that cannot be read.
    """
    begin = _opener(ticks)
    if isinstance(ticks, str | os.PathLike):
        # Read to its end, to find its mistakes; a file may be larger than the memory.
        for _ in begin():
            pass
    return begin()


def _check_arguments(speed: float | None, wait_for: int, max_pause: float | None) -> None:
    if speed is not None and not (0 < speed < math.inf):
        raise ConfigurationError(f"speed is {speed!r}; expected a number above 0, or None for as fast as possible")
    if not isinstance(wait_for, int) or wait_for < 0:
        raise ConfigurationError(f"wait_for is {wait_for!r}; expected a whole number, 0 or more")
    if max_pause is not None and not (0 <= max_pause < math.inf):
        raise ConfigurationError(f"max_pause is {max_pause!r}; expected seconds, 0 or more, or None for no limit")


def _opener(ticks: str | os.PathLike[str] | Iterable[Mapping[str, str]]) -> Callable[[], Iterator[Tick]]:
    """A function that begins the tape anew with each call."""
    if isinstance(ticks, str | os.PathLike):
        path = Path(ticks)
        return lambda: _read(path)
    kept = tuple(_each(ticks))
    return lambda: iter(kept)


def _each(ticks: Iterable[Mapping[str, str]]) -> Iterator[Tick]:
    for number, raw in enumerate(ticks, start=1):
        try:
            yield checked(dict(raw) if isinstance(raw, Mapping) else raw)
        except ValueError as error:
            raise ConfigurationError(f"tick {number} of the tape: {error}") from None


def _read(path: Path) -> Iterator[Tick]:
    number = 0
    try:
        with _lines_of(path) as lines:
            for line in lines:
                number += 1
                if not line.isspace():
                    yield checked(json.loads(line))
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(f"cannot read the tape {path}{_after(number)}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}, line {number}: {error}") from None


def _lines_of(path: Path) -> IO[bytes]:
    # Bytes, because a line that is no UTF-8 is then an error of that line and not of the file.
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _after(number: int) -> str:
    return f" after line {number}" if number else ""


def _name(ticks: object) -> str:
    return f"the tape {os.fspath(ticks)}" if isinstance(ticks, str | os.PathLike) else "the tape"
